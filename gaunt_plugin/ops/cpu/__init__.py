"""CPU kernels in C++, compiled once per machine with ``gaunt-kernels build``.

``GAUNT_KERNELS=0`` switches them off.
"""
