"""Fused CPU kernels in C++, compiled once per machine with ``gaunt-kernels build``.

Layers use them where they are built; the plain path, which gives the same numbers, where they are
not and in programs (``torch.compile``, TorchScript) of models that
:func:`gaunt_plugin.kernels.ops.put_into_programs` has not prepared. ``GAUNT_KERNELS=0`` switches
them off.
"""
