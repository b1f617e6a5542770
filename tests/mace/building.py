"""Small models with random weights, and what tests ask of them."""

from dataclasses import fields

from mace import data, modules
from mace.tools import AtomicNumberTable, torch_geometric

import ase
import ase.build
import numpy as np
import torch
from e3nn import o3

from gaunt_plugin.mace.blocks import INTERACTIONS
from gaunt_plugin.mace.config import GauntConfig
from gaunt_plugin.mace.models import GauntModel, ScaleShiftMACE

ELEMENTS = [1, 6, 8]
KEYS = ("energy", "forces", "virials", "stress")
BLOCKS = {**modules.interaction_classes, **INTERACTIONS}


def make_model(
    first="GauntInteractionBlock",
    then="GauntResidualInteractionBlock",
    hidden="4x0e + 4x1o",
    cls=ScaleShiftMACE,
    correlation=2,
    max_ell=2,
    heads=("Default",),
    seed=0,
    **options,
):
    """A model of two layers with random weights; options are of its GauntConfig or of MACE's."""
    torch.manual_seed(seed)
    if issubclass(cls, GauntModel):
        names = [field.name for field in fields(GauntConfig) if field.name in options]
        options["cueq_config"] = GauntConfig(**{name: options.pop(name) for name in names})
    n = len(heads)
    if "Dipoles" in cls.__name__ or "Dielectric" in cls.__name__:
        own = {"atomic_energies": None, "MLP_irreps": o3.Irreps(hidden)}
    else:
        own = {
            "MLP_irreps": o3.Irreps(f"{4 * n}x0e"),
            "heads": list(heads),
        }
        if cls is not modules.MACE:
            own["atomic_inter_scale"] = np.linspace(1.0, 2.0, n)
            own["atomic_inter_shift"] = np.linspace(0.1, 0.3, n)
    options = {
        "atomic_energies": np.outer(np.arange(1, n + 1), [-1.0, -2.0, -3.0]),
        "radial_MLP": [8],
        **own,
        **options,
    }
    return cls(
        r_max=3.0,
        num_bessel=4,
        num_polynomial_cutoff=5,
        max_ell=max_ell,
        interaction_cls=BLOCKS[then],
        interaction_cls_first=BLOCKS[first],
        num_interactions=2,
        num_elements=len(ELEMENTS),
        hidden_irreps=o3.Irreps(hidden),
        gate=torch.nn.functional.silu,
        avg_num_neighbors=6.0,
        atomic_numbers=ELEMENTS,
        correlation=list(correlation) if isinstance(correlation, tuple) else correlation,
        **options,
    )


def molecule():
    atoms = ase.build.molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=1)
    return atoms


def crystal():
    """A cell smaller than twice the cutoff, so that atoms meet several images of others."""
    cell = [[3.1, 0.2, 0.0], [0.1, 3.3, 0.3], [0.0, -0.2, 3.5]]
    positions = [[0, 0, 0], [1.4, 0.2, 0.3], [0.4, 1.8, 1.6]]
    return ase.Atoms("CHO", positions=positions, cell=cell, pbc=True)


def make_batch(model, *frames, head="Default"):
    table = AtomicNumberTable([int(z) for z in model.atomic_numbers])
    graphs = [
        data.AtomicData.from_config(
            data.config_from_atoms(atoms, head_name=head),
            z_table=table,
            cutoff=float(model.r_max),
            heads=getattr(model, "heads", ["Default"]),
        )
        for atoms in frames
    ]
    return torch_geometric.Batch.from_data_list(graphs).to_dict()


def evaluate(model, *frames, head="Default"):
    batch = make_batch(model, *frames, head=head)
    out = model(batch, compute_virials=True, compute_stress=True)
    return {key: out[key].detach() for key in KEYS}


def assert_same(one, two, tolerance=1e-10):
    for key in KEYS:
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=tolerance)


def isometry(seed=3, inversion=1):
    """A random rotation, of determinant ``inversion``."""
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return q * inversion * np.linalg.det(q)


def assert_equivariant(model, inversion):
    """Energy and forces of a molecule that is turned, shifted and renumbered."""
    atoms, q = molecule(), isometry(inversion=inversion)
    order = np.random.default_rng(4).permutation(len(atoms))
    moved = atoms[order]
    moved.positions = moved.positions @ q.T + [1.0, -2.0, 3.0]
    one, two = evaluate(model, atoms), evaluate(model, moved)
    q = torch.tensor(q)
    assert one["forces"].abs().max() > 1e-3
    torch.testing.assert_close(two["energy"], one["energy"], rtol=0, atol=1e-9)
    torch.testing.assert_close(two["forces"], one["forces"][order] @ q.T, rtol=0, atol=1e-9)
    torch.testing.assert_close(two["virials"], q @ one["virials"] @ q.T, rtol=0, atol=1e-9)


def assert_forces_are_derivatives(energy, atoms, forces, step=1e-3):
    """Compare three components with central differences, of fourth order, of ``energy(atoms)``."""
    tolerance = 1e-6 * max(1.0, forces.abs().max().item())
    for atom, axis in [(0, 0), (1, 1), (2, 2)]:
        slope = 0.0
        for steps, weight in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
            moved = atoms.copy()
            moved.positions[atom, axis] += steps * step
            slope += weight * energy(moved) / (12 * step)
        assert abs(forces[atom, axis].item() + slope) < tolerance
