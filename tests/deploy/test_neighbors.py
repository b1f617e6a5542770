"""Edges against ASE's own list, in all kinds of cells, and when the list is made again."""

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list

from gaunt_plugin.deploy.neighbors import Edges

CUTOFF = 3.0
CPU = torch.device("cpu")
PBC = list(itertools.product([False, True], repeat=3))


def edges_of(edges, atoms):
    vectors, index = edges(atoms.positions, atoms.cell.array, atoms.pbc)
    assert index.dtype == torch.int64
    assert (index[1].diff() >= 0).all()
    return sorted(map(tuple, np.round(np.column_stack([index.T, vectors]), 9)))


def by_ase(atoms):
    receiver, sender, vectors = neighbor_list("ijD", atoms, CUTOFF)
    return sorted(map(tuple, np.round(np.column_stack([sender, receiver, -vectors]), 9)))


def any_atoms(seed, pbc, flat):
    """A few atoms in and around a skewed cell, small or large; ``flat``: zero if not periodic."""
    rng = np.random.default_rng(seed)
    size = [1.3, 2.5, 4.5, 7.0][seed % 4]
    cell = size * (np.eye(3) + rng.uniform(-0.3, 0.3, (3, 3)))
    positions = rng.uniform(-1.5, 2.5, (rng.integers(1, 8), 3)) @ cell
    if flat:
        cell[~np.array(pbc)] = 0.0
    return Atoms("H" * len(positions), positions=positions, cell=cell, pbc=pbc)


@pytest.mark.parametrize("pbc", PBC, ids=lambda pbc: "".join("FT"[p] for p in pbc))
@pytest.mark.parametrize("skin", [0.0, 0.7])
def test_edges_are_those_of_ase(pbc, skin):
    for seed, flat in itertools.product(range(12), (False, True)):
        atoms = any_atoms(seed, pbc, flat)
        edges = Edges(CUTOFF, skin, CPU)
        assert edges_of(edges, atoms) == by_ase(atoms)
        atoms.rattle(0.1, seed=seed)  # with the old list, or a new one
        assert edges_of(edges, atoms) == by_ase(atoms)


def test_a_list_is_made_when_it_must_be():
    """Two atoms come nearer, each by half the skin and a little more."""
    atoms = Atoms("HH", positions=[[0, 0, 0], [CUTOFF + 0.5, 0, 0]], cell=[20, 20, 20], pbc=True)
    edges = Edges(CUTOFF, 0.5, CPU)
    assert edges_of(edges, atoms) == []
    for moved, builds, number in ((0.2, 1, 0), (0.25, 1, 0), (0.2501, 2, 2)):
        atoms.positions[:, 0] = [moved, CUTOFF + 0.5 - moved]
        assert len(edges_of(edges, atoms)) == number
        assert edges.builds == builds


@pytest.mark.parametrize("change", ["number", "cell", "pbc"])
def test_other_atoms_need_another_list(change):
    atoms = any_atoms(3, [True, True, True], False)
    edges = Edges(CUTOFF, 0.5, CPU)
    edges_of(edges, atoms)
    edges_of(edges, atoms)
    assert edges.builds == 1
    if change == "number":
        del atoms[0]
    elif change == "cell":
        atoms.cell[0, 1] += 1e-9
    else:
        atoms.pbc = [True, False, True]
    assert edges_of(edges, atoms) == by_ase(atoms)
    assert edges.builds == 2


def test_no_list_can_be_made():
    edges = Edges(CUTOFF, 0.5, CPU)
    positions, cell, periodic = np.zeros((1, 3)), np.diag([3.0, 3.0, 0.0]), np.array([True] * 3)
    with pytest.raises(ValueError, match="periodic along"):
        edges(positions, cell, periodic)
    with pytest.raises(ValueError, match="not finite"):
        edges(positions + np.nan, cell, ~periodic)
    for skin in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="skin is"):
            Edges(CUTOFF, skin, CPU)
