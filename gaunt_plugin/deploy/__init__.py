"""Trained models of either host in one file for LAMMPS and ASE.

The package itself imports nothing. ``contract`` documents the exported file, ``export`` writes it
from a model of MACE or NequIP. ``program`` runs a file in Python, on the edges of ``neighbors``.
"""
