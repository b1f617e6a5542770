"""Structures of H, C and O for both hosts, in cells as LAMMPS takes them."""

import ase.build
import numpy as np
from ase import Atoms, units


def with_velocities(atoms: Atoms, temperature: float = 300.0) -> Atoms:
    size = np.sqrt(atoms.get_masses() * units.kB * temperature)[:, None]
    atoms.set_momenta(size * np.random.default_rng(3).standard_normal((len(atoms), 3)))
    return atoms


def molecule() -> Atoms:
    atoms = ase.build.molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    return with_velocities(atoms)


def small_cell() -> Atoms:
    """Smaller than twice the cutoff: atoms meet several images of others and of themselves."""
    positions = [[0.1, 0.2, 0.1], [1.4, 0.2, 0.3], [0.4, 1.8, 1.6]]
    return with_velocities(Atoms("CHO", positions=positions, cell=[3.1, 3.3, 3.5], pbc=True))


def triclinic() -> Atoms:
    """Twelve atoms in a skewed cell."""
    cell = np.array([[6.2, 0, 0], [1.1, 5.9, 0], [-0.8, 1.3, 6.6]])
    grid = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1, 2)]) / (2, 2, 3)
    atoms = Atoms("CHOHCHOHCHOC", scaled_positions=grid + 0.05, cell=cell, pbc=True)
    atoms.rattle(0.15, seed=2)
    return with_velocities(atoms)


def slab() -> Atoms:
    """All atoms in one quarter of a long box: other ranks have none."""
    atoms = small_cell()
    atoms.set_cell([9.0, 9.0, 40.0])
    atoms.positions += [0.5, 0.5, 1.0]
    return atoms


STRUCTURES = {f.__name__: f for f in (molecule, small_cell, triclinic, slab)}
