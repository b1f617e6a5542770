"""Gaunt tensor products as plugins for the interatomic potentials MACE and NequIP.

Importing the package imports neither host nor anything slow: each part is imported where it
is used.

* ``gaunt_plugin.sphere``: quadrature, harmonics and coupling coefficients (float64 NumPy)
* ``gaunt_plugin.ops``: the layers' operations, in plain torch and as compiled CPU kernels
* ``gaunt_plugin.layers``: torch modules, with e3nn irreps in and out
* ``gaunt_plugin.mace``: blocks for MACE and its ``--plugin`` option
* ``gaunt_plugin.nequip``: model builders for NequIP
* ``gaunt_plugin.deploy``: a trained model of either host in one file
* ``gaunt_plugin.pretrained``: a small trained model
* ``gaunt_plugin.calculator`` and ``gaunt_plugin.lammps``: what runs it in ASE and in LAMMPS
* ``gaunt_plugin.cli``: the command ``gaunt``
"""

from gaunt_plugin import _nequip_hook

__version__ = "0.2.0"

__all__ = ["__version__"]

_nequip_hook.install()
