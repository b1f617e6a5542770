"""Fused CPU kernels in C++, compiled once per machine with ``gaunt-kernels build``.

Layers use them where they are built; the plain path, which gives the same numbers, where they are
not, under ``torch.compile``, in TorchScript and in NequIP's packages. ``GAUNT_KERNELS=0`` switches
them off.
"""
