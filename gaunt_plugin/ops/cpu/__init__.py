"""CPU kernels in C++, compiled once per machine with ``gaunt build kernels``.

``GAUNT_KERNELS=0`` switches them off.
"""
