"""pair_style gaunt against the host's own ASE calculator, on 1, 2 and 4 ranks."""

import numpy as np
import pytest
from ase import units
from ase.md.verlet import VelocityVerlet

from .structures import STRUCTURES, molecule, small_cell, triclinic

ENERGY, FORCE, VIRIAL = 1e-8, 1e-10, 1e-8  # eV, eV/Å, relative


def virial_of(atoms) -> np.ndarray:
    """xx, yy, zz, xy, xz, yz in eV."""
    if atoms.pbc.any():
        w = -atoms.get_volume() * atoms.get_stress(voigt=False)
    else:
        w = atoms.positions.T @ atoms.get_forces()
    return w[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]


def assert_same(found, atoms) -> None:
    assert found.energy == pytest.approx(atoms.get_potential_energy(), rel=0, abs=ENERGY)
    np.testing.assert_allclose(found.forces, atoms.get_forces(), rtol=0, atol=FORCE)
    expected = virial_of(atoms)
    size = np.abs(expected).max()
    assert size > 0.01
    np.testing.assert_allclose(found.virial, expected, rtol=0, atol=VIRIAL * size)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_energy_forces_and_virial(lammps, exported, calculator, structure, ranks):
    atoms = STRUCTURES[structure]()
    found = lammps.simulate(atoms, exported("gaunt"), ranks)
    atoms.calc = calculator("gaunt")
    assert_same(found, atoms)
    # what belongs to single atoms adds up to the whole
    assert found.energies.sum() == pytest.approx(found.energy, rel=0, abs=ENERGY)
    np.testing.assert_allclose(found.virials.sum(0), found.virial, rtol=0, atol=1e-7)
    assert np.ptp(found.energies) > 0.1
