"""pair_style gaunt against the host's own ASE calculator, on several numbers of ranks.

With compiled kernels where the model has any, and once without.
"""

import numpy as np
import pytest
from ase import units
from ase.md.verlet import VelocityVerlet

from ..deploy.conftest import host
from ..deploy.structures import STRUCTURES, molecule, small_cell, triclinic
from .simulation import Case, simulate, virial_of

ENERGY, FORCE, VIRIAL = 1e-8, 1e-10, 1e-8  # eV, eV/Å, relative
STEPS = 20
# Every structure with the Gaunt model, other models where they are most likely to differ.
MOVING = (molecule, small_cell, triclinic)
PAIRS = [("gaunt", make.__name__) for make in MOVING] + [("gaunt", "slab")]
PAIRS += [(name, "small_cell") for name in ("three_layers", "one_layer", "stock")]


@pytest.fixture(scope="module")
def results(lammps, plain_lammps, exported):
    """By kind of run, the results of all pairs; the first ones go on for some steps."""
    cases = [Case(STRUCTURES[structure](), exported(model)) for model, structure in PAIRS]
    for case in cases[: len(MOVING)]:
        # Atoms change ranks and ghosts while they move, not only when LAMMPS finds it time to.
        case.before = "neigh_modify every 5 delay 0 check no\ntimestep 0.0005\nfix 1 all nve"
        case.after = f"run {STEPS}"
    runs = {ranks: simulate(lammps, cases, ranks) for ranks in host.RANKS}
    return runs | {"plain": simulate(plain_lammps, cases)}


@pytest.mark.parametrize("number", range(len(PAIRS)), ids=["-".join(pair) for pair in PAIRS])
def test_energy_forces_and_virial(results, calculator, number):
    model, structure = PAIRS[number]
    atoms = STRUCTURES[structure]()
    atoms.calc = calculator(model)
    virial = virial_of(atoms)
    size = np.abs(virial).max()
    assert size > 0.01
    for run in results.values():
        found = run[number]
        assert found.energy == pytest.approx(atoms.get_potential_energy(), rel=0, abs=ENERGY)
        np.testing.assert_allclose(found.forces, atoms.get_forces(), rtol=0, atol=FORCE)
        np.testing.assert_allclose(found.virial, virial, rtol=0, atol=VIRIAL * size)


@pytest.mark.parametrize("number", range(len(PAIRS)), ids=["-".join(pair) for pair in PAIRS])
def test_values_of_single_atoms(results, calculator, number):
    model, structure = PAIRS[number]
    atoms = STRUCTURES[structure]()
    atoms.calc = calculator(model)
    expected = atoms.get_potential_energies()
    for run in results.values():
        found = run[number]
        np.testing.assert_allclose(found.energies, expected, rtol=0, atol=ENERGY)
        size = np.abs(found.virial).max()
        np.testing.assert_allclose(found.virials.sum(0), found.virial, rtol=0, atol=1e-8 * size)
        alone = results[1][number].virials
        np.testing.assert_allclose(found.virials, alone, rtol=0, atol=1e-8 * size)


@pytest.mark.parametrize("number", range(len(MOVING)), ids=[make.__name__ for make in MOVING])
def test_same_trajectory(results, calculator, number):
    atoms = MOVING[number]()
    before = atoms.positions.copy()
    atoms.calc = calculator("gaunt")
    VelocityVerlet(atoms, timestep=0.5 * units.fs).run(STEPS)
    assert np.abs(atoms.positions - before).max() > 0.05
    for run in results.values():
        moved = run[number].moved_positions - atoms.positions
        if atoms.pbc.any():  # LAMMPS puts atoms back into the box
            scaled = np.linalg.solve(atoms.cell.T, moved.T).T
            moved -= np.round(scaled) @ atoms.cell
        np.testing.assert_allclose(moved, 0, atol=1e-6)
