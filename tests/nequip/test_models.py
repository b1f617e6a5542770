"""Whole Gaunt models, in this process: symmetries, derivatives, every option, bad input."""

import copy
import functools
import os
import pickle
import subprocess
import sys
from unittest import mock

import ase
import ase.build
import numpy as np
import pytest
import torch
from e3nn.util.jit import script
from nequip.data import AtomicDataDict, compute_neighborlist_, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper
from nequip.model import NequIPGNNModel, nequip_models
from nequip.model.modify_utils import modify
from nequip.nn import InteractionBlock

from gaunt_plugin.deploy.program import run_as_written
from gaunt_plugin.layers import ElementLinear
from gaunt_plugin.nequip import (
    FullGauntNequIPGNNModel,
    GauntNequIPGNNModel,
    PresetGauntNequIPGNNModel,
)
from gaunt_plugin.nequip.interaction import GauntInteractionBlock
from gaunt_plugin.ops import EdgeConvolution

SLOW = pytest.mark.skipif(
    os.environ.get("GAUNT_TEST_ALL") != "1", reason="minutes of a compiler: GAUNT_TEST_ALL=1"
)
TYPES = ["H", "C", "O"]
R_MAX = 3.0
OPTIONS = {
    "seed": 5,
    "model_dtype": "float64",
    "type_names": TYPES,
    "r_max": R_MAX,
    "num_layers": 2,
    "l_max": 2,
    "parity": False,
    "num_features": 4,
    "radial_mlp_width": 8,
    "num_bessels": 4,
    "avg_num_neighbors": 6.0,
    "per_type_energy_scales": {"H": 1.0, "C": 2.0, "O": 1.5},
    "per_type_energy_shifts": {"H": -1.0, "C": -2.0, "O": -3.0},
}
MODELS = {
    "natural parity": {},
    "both parities": {"parity": True},
    "both parities and a product": {"parity": True, "num_features": [5, 3, 2], "correlation": 3},
    "features per degree": {
        "num_features": [3, 6, 2],
        "correlation": [3, 2],
        "convolution_rank": 2,
    },
    "the paper's weights": {"correlation": 4, "parametrization": "paper", "product_features": 3},
    "every coupling": {"correlation": 3, "parametrization": "full"},
    "selfmix": {"selfmix_rank": [2, 0]},
    "selfmix and product of both parities": {
        "parity": True,
        "num_features": [4, 3, 2],
        "selfmix_rank": 1,
        "correlation": [2, 3],
        "product_parity": True,
    },
    "nested products": {
        "parity": True,
        "correlation": [1, 3],
        "parametrization": "nested",
        "product_parity": True,
        "antisymmetric": True,
        "product_rank": 2,
    },
    "neighbours of each type": {"avg_num_neighbors": {"H": 4.0, "C": 7.0, "O": 5.0}},
    "one Gaunt layer of three": {"num_layers": 3, "gaunt_layers": [1], "correlation": [1, 2, 1]},
    "cutoff of each pair": {"per_edge_type_cutoff": {"H": 2.0, "C": {"H": 2.5, "C": 3.0}}},
}
OUTPUTS = ("total_energy", "atomic_energy", "forces", "virial", "stress")


@functools.lru_cache
def of_name(name):
    return make_model(**MODELS[name])


def make_model(builder=GauntNequIPGNNModel, **options):
    return builder(**{**OPTIONS, **options}).eval()


def molecule():
    atoms = ase.build.molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=1)
    return atoms


def crystal():
    """A cell smaller than twice the cutoff, so that atoms meet several images of others."""
    cell = [[3.1, 0.2, 0.0], [0.1, 2.8, 0.3], [0.0, -0.2, 3.5]]
    positions = [[0, 0, 0], [1.4, 0.2, 0.3], [0.4, 1.8, 1.6]]
    return ase.Atoms("CHO", positions=positions, cell=cell, pbc=True)


def make_graph(atoms, r_max=R_MAX):
    to_types = ChemicalSpeciesToAtomTypeMapper(TYPES, {name: name for name in TYPES})
    return compute_neighborlist_(to_types(from_ase(atoms)), r_max=r_max)


def evaluate(model, atoms):
    out = model(make_graph(atoms))
    keys = OUTPUTS if atoms.pbc.any() else OUTPUTS[:-1]  # no stress without a volume
    return {key: out[key].detach() for key in keys}


def assert_same(one, two, tolerance=1e-10):
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=tolerance)


def convolutions(model):
    return [
        module.conv
        for name, module in model.named_modules()
        if name.endswith("_convnet") and hasattr(module, "conv")
    ]


def assert_equivariant(model, atoms, inversion):
    q = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    q *= inversion * np.sign(np.linalg.det(q))
    order = np.random.default_rng(4).permutation(len(atoms))
    moved = atoms[order]
    moved.positions = moved.positions @ q.T + [1.0, -2.0, 3.0]
    moved.set_cell(atoms.cell @ q.T)
    one, two = evaluate(model, atoms), evaluate(model, moved)
    q = torch.tensor(q)
    assert one["forces"].abs().max() > 0.01
    close = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-9)
    close(two["total_energy"], one["total_energy"])
    close(two["atomic_energy"], one["atomic_energy"][order])
    close(two["forces"], one["forces"][order] @ q.T)
    close(two["virial"], q @ one["virial"] @ q.T)
    if "stress" in one:
        close(two["stress"], q @ one["stress"] @ q.T)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("inversion", [1, -1])
@pytest.mark.parametrize("make_atoms", [molecule, crystal])
def test_turned_inverted_and_permuted(name, inversion, make_atoms):
    assert_equivariant(of_name(name), make_atoms(), inversion)


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("l_max", [0, 1, 3, 4, 5, 6])
def test_every_degree(l_max, parity):
    model = make_model(l_max=l_max, parity=parity, num_features=2, correlation=2)
    for inversion in (1, -1):
        assert_equivariant(model, molecule(), inversion)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("make_atoms", [molecule, crystal])
def test_forces_are_finite_differences(name, make_atoms):
    model, atoms, step = of_name(name), make_atoms(), 1e-4
    forces = evaluate(model, atoms)["forces"]
    for atom, axis in [(0, 0), (1, 1), (2, 2)]:
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            energies.append(evaluate(model, moved)["total_energy"].item())
        slope = (energies[0] - energies[1]) / (2 * step)
        assert forces[atom, axis].item() == pytest.approx(-slope, abs=1e-6)


@pytest.mark.parametrize("name", ["both parities and a product", "features per degree"])
def test_small_cell(name):
    model, atoms, step = of_name(name), crystal(), 1e-4
    one, two = evaluate(model, atoms), evaluate(model, atoms * (2, 1, 2))
    torch.testing.assert_close(two["total_energy"], 4 * one["total_energy"], rtol=0, atol=1e-9)
    torch.testing.assert_close(two["stress"], one["stress"], rtol=0, atol=1e-9)
    for i, j in [(0, 0), (1, 2)]:
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += sign * step / 2
            strain[j, i] += sign * step / 2
            strained = atoms.copy()
            strained.set_cell(atoms.cell @ strain, scale_atoms=True)
            energies.append(evaluate(model, strained)["total_energy"].item())
        slope = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
        assert one["stress"][0, i, j].item() == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("name", ["both parities and a product", "features per degree"])
def test_hessian(name):
    model = make_model(**MODELS[name], do_derivatives=False)
    atoms, step = molecule()[:5], 1e-4
    graph = make_graph(atoms)

    def energy(positions):
        return model({**graph, "pos": positions})["total_energy"].sum()

    n = 3 * len(atoms)
    hessian = torch.autograd.functional.hessian(energy, graph["pos"]).view(n, n)
    assert hessian.abs().max() > 0.01
    torch.testing.assert_close(hessian, hessian.T, rtol=0, atol=1e-9)
    forces = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[1, 2] += sign * step
        forces.append(evaluate(of_name(name), moved)["forces"].flatten())
    slope = (forces[1] - forces[0]) / (2 * step)
    torch.testing.assert_close(hessian[5], slope, rtol=0, atol=1e-6)


def named_gradients(model, *molecules, autocast=False):
    """Gradients of a loss on energies and forces, for every parameter that has one."""
    model.train()
    model.zero_grad()
    graphs = AtomicDataDict.batched_from_list([make_graph(atoms) for atoms in molecules])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(graphs)
        loss = out["forces"].square().sum() + out["total_energy"].sum()
    loss.backward()
    model.eval()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def training_gradients(model, atoms):
    return list(named_gradients(model, atoms).values())


@pytest.mark.parametrize("name", ["natural parity", "both parities and a product", "selfmix"])
def test_training_step_under_autocast(name):
    """NequIP's own models raise inside of e3nn."""
    model = make_model(**MODELS[name], model_dtype="float32")
    expected = named_gradients(model, molecule())
    found = named_gradients(model, molecule(), autocast=True)
    assert found.keys() == expected.keys()
    for key, one in expected.items():
        assert (found[key] - one).norm() < 0.1 * one.norm(), key


def test_autocast_of_stock_models():
    """Should they learn it, the test above is to compare with them."""
    model = NequIPGNNModel(**{**OPTIONS, "model_dtype": "float32"})
    with pytest.raises(RuntimeError, match="same dtype"):
        named_gradients(model, molecule(), autocast=True)


@pytest.mark.parametrize("name", MODELS)
def test_compiled_kernels(name, kernels):
    """The same energies, forces, virials and gradients of a training step."""
    model = make_model(**MODELS[name])
    alone = ase.Atoms("H", positions=[[0, 0, 0]])
    operator = EdgeConvolution.operator
    with mock.patch.object(operator, "eagerly", side_effect=operator.eagerly) as calls:
        found = [evaluate(model, atoms) for atoms in (molecule(), crystal(), alone)]
        gradients = training_gradients(model, crystal())
    assert calls.call_count
    kernels(False)
    for one, atoms in zip(found, (molecule(), crystal(), alone), strict=True):
        assert_same(one, evaluate(model, atoms))
    for one, two in zip(gradients, training_gradients(model, crystal()), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["both parities", "features per degree", "the paper's weights"])
def test_compiled_kernels_in_programs(name, kernels):
    """The same from TorchScript, with NequIP's way to ask for them."""
    model = make_model(**MODELS[name])
    changed = modify(copy.deepcopy(model), [{"modifier": "enable_GauntKernels"}])
    program = script(changed)
    assert len(program.inlined_graph.findAllNodes("gaunt::convolution")) >= 2
    assert "gaunt_plugin.ops" in changed.metadata["nequip_custom_ops_libs"]
    alone = ase.Atoms("H", positions=[[0, 0, 0]])
    with run_as_written():  # otherwise it compiles for each size
        found = [evaluate(program, atoms) for atoms in (molecule(), crystal(), alone)]
    kernels(False)
    for one, atoms in zip(found, (molecule(), crystal(), alone), strict=True):
        assert_same(one, evaluate(model, atoms))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=SLOW)])
@pytest.mark.parametrize(
    "modifiers",
    [
        [],
        [{"modifier": "enable_GauntKernels"}],
    ],
    ids=["plain", "kernels"],
)
def test_train_time_compile(modifiers, backend, kernels, monkeypatch):
    """NequIP's ``compile_mode: compile``: every parameter's gradient, as in eager training.

    aot_eager runs the graphs that inductor compiles, operator by operator.
    """
    kernels(bool(modifiers))
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    small = {"l_max": 1, "num_features": 2, "radial_mlp_width": 4, "num_bessels": 3}
    config = {"_target_": "gaunt_plugin.nequip.GauntNequIPGNNModel", **OPTIONS, **small}
    config["correlation"] = 2
    molecules = (molecule(), molecule()[:5])  # with one, NequIP compiles nothing
    eager = named_gradients(make_model(**small, correlation=2), *molecules)
    model = modify({**config, "compile_mode": "compile"}, modifiers)  # as a configuration has it
    for _ in range(2):
        compiled = named_gradients(model, *molecules)
    assert len(model._compiled_cache[0]) == 1
    assert compiled.keys() == eager.keys()
    for name, gradient in eager.items():
        error, size = (compiled[name] - gradient).abs().max(), gradient.abs().max()
        assert error <= 1e-8 * size, name


@pytest.mark.parametrize("name", MODELS)
def test_atoms_without_neighbours(name):
    one, other = (evaluate(of_name(name), ase.Atoms(symbol)) for symbol in "CO")
    pair = evaluate(of_name(name), ase.Atoms("CO", positions=[[0, 0, 0], [50, 0, 0]]))
    # The isolated atom's energy is its shift.
    for out, energy in ((one, -2.0), (other, -3.0), (pair, -5.0)):
        assert out["total_energy"].item() == pytest.approx(energy, abs=1e-12)
        assert not out["forces"].any()


def test_numbers_of_neighbours_of_each_type():
    equal = make_model(avg_num_neighbors=dict.fromkeys(TYPES, 6.0))
    one, other = of_name("natural parity"), of_name("neighbours of each type")
    assert_same(evaluate(one, molecule()), evaluate(equal, molecule()), 1e-12)
    energies = [evaluate(model, molecule())["total_energy"].item() for model in (one, other)]
    assert energies[0] != pytest.approx(energies[1], abs=1e-6)


@pytest.mark.parametrize("large", [False, True])
def test_graph_field_reaches_the_self_connection(large):
    """Atoms of one type have other attributes in another graph."""
    embed = [{"field": "charge", "num_features": 3, "min": -1, "max": 1}]
    model = make_model(categorical_graph_field_embed=embed, num_layers=3)
    if large:  # grouped by element, as for thousands of atoms
        for module in model.modules():
            if isinstance(module, ElementLinear):
                module.large = 0
    graphs = []
    for charge in (0, 1, 0):
        graph = make_graph(molecule())
        graph["charge"] = torch.tensor([[charge]])
        graphs.append(graph)
    alone = [model(graph.copy())["total_energy"].item() for graph in graphs]
    batch = AtomicDataDict.batched_from_list(graphs)
    together = model(batch)["total_energy"].flatten().tolist()
    assert together == pytest.approx(alone, abs=1e-10)
    assert alone[0] == pytest.approx(alone[2], abs=1e-12)
    assert abs(alone[0] - alone[1]) > 1e-3

    # The self-connection alone.
    conv = convolutions(model)[1]
    inputs = {}
    hook = conv.sc.register_forward_hook(
        lambda module, args, out: inputs.update(args=args, out=out.detach())
    )
    model(batch)
    hook.remove()
    x, attrs, types, num_types = inputs["args"]
    assert num_types == 0  # not known: types times graphs
    same = torch.ones_like(x)
    out = conv.sc(same, attrs, types).view(3, len(molecule()), -1)
    torch.testing.assert_close(out[0], out[2], rtol=0, atol=1e-12)
    assert (out[0] - out[1]).abs().max() > 1e-3


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("name", ["both parities and a product", "one Gaunt layer of three"])
def test_copies(name, copied):
    model = of_name(name)
    assert_same(evaluate(copied(model), molecule()), evaluate(model, molecule()), 0)


@pytest.mark.parametrize("name", ["both parities and a product", "every coupling"])
def test_float_and_double(name):
    """Tables are built in float64 and survive a model in float32."""
    single = make_model(**MODELS[name], model_dtype="float32")
    double = make_model(**MODELS[name])
    double.load_state_dict({key: value.double() for key, value in single.state_dict().items()})
    rough, fine = evaluate(single, molecule()), evaluate(double, molecule())
    for key in ("total_energy", "forces"):
        torch.testing.assert_close(rough[key], fine[key], rtol=0, atol=1e-4)

    # The layers of the model, cast there and back.
    tables = [
        [
            (name, table)
            for conv in convolutions(model)
            for name, table in conv.named_buffers()
            if name.startswith(("convolution.", "product."))
        ]
        for model in (copy.deepcopy(single).double(), double)
    ]
    assert len(tables[0]) > 10
    for (name, one), (other, two) in zip(*tables):
        assert name == other
        torch.testing.assert_close(one, two, rtol=0, atol=0, msg=name)
    again = copy.deepcopy(single).double().float()
    assert_same(evaluate(again, molecule()), rough, 1e-6)  # NequIP's cutoff was in float64


def test_presets():
    model = make_model(PresetGauntNequIPGNNModel, preset="s", num_features=[16, 8], l_max=1)
    names = ("num_layers", "l_max", "num_features")
    options = {key: value for key, value in OPTIONS.items() if key not in names}
    whole = PresetGauntNequIPGNNModel(**options, preset="S", correlation=2)
    for built, features in ((model, "16x0e+8x1o"), (whole, "128x0e+64x1o")):
        assert len(convolutions(built)) == 2
        assert all(type(conv) is GauntInteractionBlock for conv in convolutions(built))
        assert str(convolutions(built)[1].irreps_in["node_features"]) == features
    assert convolutions(whole)[0].product.contraction_degree == 2
    with pytest.raises(ValueError, match="preset"):
        PresetGauntNequIPGNNModel(**options, preset="XXS")


def test_full_builder():
    """Layers of their own irreps, some listed by degree and parity in the user's order."""
    names = ("num_layers", "l_max", "num_features", "parity")
    options = {key: value for key, value in OPTIONS.items() if key not in names}
    options.update(
        irreps_edge_sh=3,
        type_embed_num_features=5,
        feature_irreps_hidden=["6x0e+3x1o+2x3o", "4x1o+6x0e+2x1e+3x0o", "7x0e"],
        radial_mlp_depth=[1, 0, 2],
        radial_mlp_width=[8, 8, 6],
        correlation=[1, 3, 2],
        convnet_resnet=False,
    )
    model = FullGauntNequIPGNNModel(**options)
    blocks = convolutions(model)
    assert [type(block) for block in blocks] == 3 * [GauntInteractionBlock]
    assert [block.product is not None for block in blocks] == [False, True, True]
    for inversion in (1, -1):
        assert_equivariant(model, molecule(), inversion)
    # NequIP's GNN builder is this one.
    small = {"irreps_edge_sh": 1, "feature_irreps_hidden": ["4x0e+4x1o", "4x0e"]}
    small.update(type_embed_num_features=4, radial_mlp_depth=[1, 1], radial_mlp_width=[8, 8])
    one = FullGauntNequIPGNNModel(**{**options, **small, "correlation": 2})
    two = make_model(l_max=1, correlation=2)
    assert_same(evaluate(one, molecule()), evaluate(two, molecule()), 1e-12)


def test_options_reach_the_layers():
    model = make_model(
        num_layers=3,
        gaunt_layers=[0, 2],
        correlation=[2, 5, 1],
        convolution_rank=3,
        product_rank=2,
        product_features=3,
        selfmix_rank=[2, 0, 0],
    )
    first, second, third = convolutions(model)
    assert type(second) is InteractionBlock
    assert first.product.contraction_degree == 2
    assert first.product.channels == 3
    assert third.product is None
    assert [mul for mul, _ in third.linear_1.irreps_out] == 3 * [12]
    assert first.selfmix.rank == 2
    assert third.selfmix is None
    copies = {parameter.shape[1] for parameter in first.product.product.parameters()}
    assert copies  # weights per element and copy
    assert all(
        type(block) is not GauntInteractionBlock
        for block in convolutions(make_model(gaunt_layers=[]))
    )


def test_options_of_each_layer():
    """One entry per layer gives each layer what one value gives it alone."""
    options = {
        "convolution_rank": [1, 2],
        "correlation": [3, 2],
        "parametrization": ["nested", "power"],
        "product_rank": [2, 3],
        "antisymmetric": [True, False],
        "selfmix_rank": [0, 1],
    }
    both = {"parity": True, "product_parity": True}
    found = convolutions(make_model(**both, **options))
    for layer, block in enumerate(found):
        alone = {name: entries[layer] for name, entries in options.items()}
        expected = convolutions(make_model(**both, **alone))[layer]
        shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (block, expected)]
        assert shapes[0] == shapes[1]
    others = [block.product.state_dict().keys() for block in found]
    assert others[0] != others[1]


def test_antisymmetric_couplings_are_reached():
    """Features 1o and an edge couple to 1e and on to 0o, which no symmetric coupling reaches."""
    model = make_model(parity=True, num_layers=3, l_max=1)
    features = []
    (block,) = [m for name, m in model.named_modules() if name.endswith("layer1_convnet")]
    hook = block.register_forward_hook(
        lambda module, args, out: features.append(out["node_features"].detach())
    )
    evaluate(model, molecule())
    hook.remove()
    irreps = block.irreps_out["node_features"]
    for (_, ir), part in zip(irreps, irreps.slices()):
        assert features[0][:, part].abs().max() > 1e-7, ir  # stock NequIP: 6e-6 and more


def test_product_of_both_parities():
    options = {"parity": True, "l_max": 1, "num_layers": 3, "correlation": 2}
    models = [make_model(**options, product_parity=both) for both in (False, True)]
    one, two = (convolutions(model)[1].product.irreps_in for model in models)
    assert str(one) == "4x0e+4x1o"
    assert str(two) == "4x0e+4x1o+4x1e"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parametrization": "cg"}, "unknown parametrization 'cg'; possible: power, paper, full"),
        ({"convolution_rank": 0}, "convolution_rank must be a whole number, at least 1, got 0"),
        ({"convolution_rank": 1.5}, "convolution_rank must be a whole number"),
        ({"product_rank": 0}, "product_rank must be a whole number, at least 1, got 0"),
        ({"correlation": 0}, "correlation must be 1 to 8, got 0"),
        ({"correlation": 9}, "correlation must be 1 to 8, got 9"),
        ({"correlation": 2.5}, "correlation must be 1 to 8, got 2.5"),
        ({"correlation": [2, 2.5]}, "correlation must be 1 to 8, got 2.5"),
        ({"correlation": [2]}, "one entry for each of the 2 layers"),
        ({"correlation": [2, 2, 2]}, "one entry for each of the 2 layers"),
        ({"selfmix_rank": -1}, "selfmix_rank must be a whole number, at least 0, got -1"),
        ({"selfmix_rank": [1]}, "selfmix_rank must have one entry for each of the 2 layers"),
        ({"product_parity": 1}, "product_parity must be true or false, got 1"),
        (
            {"antisymmetric": True},
            "parametrization 'power' has no antisymmetric products; use 'nested'",
        ),
        (
            {"antisymmetric": True, "parametrization": ["nested", "paper"]},
            "parametrization 'paper' has no antisymmetric products; use 'nested'",
        ),
        ({"antisymmetric": [False, 1]}, "antisymmetric must be true or false, got 1"),
        ({"antisymmetric": [True]}, "has no antisymmetric products; use 'nested'"),
        ({"antisymmetric": [False]}, "antisymmetric must have one entry for each of the 2 layers"),
        ({"parametrization": ["power", "cg"]}, "unknown parametrization 'cg'; possible: power"),
        ({"parametrization": 3 * ["paper"]}, "parametrization must have one entry for each of"),
        ({"product_rank": [4, 0]}, "product_rank must be a whole number, at least 1, got 0"),
        ({"product_rank": [4]}, "product_rank must have one entry for each of the 2 layers"),
        ({"convolution_rank": []}, "convolution_rank must have one entry for each of the 2 layers"),
        ({"correlation": 4, "parametrization": "full"}, "correlation 1 to 3, got 4"),
        ({"gaunt_layers": [0, 2]}, "gaunt_layers \\[2\\] don't exist, .* layers 0 to 1"),
        ({"gaunt_layers": [-1]}, "gaunt_layers \\[-1\\] don't exist"),
        ({"gaunt_layers": 1}, "gaunt_layers must be a list of layers, got 1"),
        ({"product_features": 0}, "product_features must be a whole number, at least 1, got 0"),
        ({"num_features": [4, 2]}, "length `l_max \\+ 1` \\(3\\)"),
        ({"num_features": [4, 2, -1]}, "num_features must be a whole number, or a list"),
        ({"num_features": 2.5}, "num_features must be a whole number, or a list"),
        ({"num_features": 0}, "num_features must be a whole number, or a list"),
        ({"l_max": -1}, "l_max must be a whole number, at least 0, got -1"),
        ({"num_layers": 0}, "at least one convnet layer"),
    ],
)
def test_bad_input_is_one_sentence(options, message):
    stock = nequip_models.ConvNetLayer
    with pytest.raises(ValueError, match=message) as error:
        make_model(**options)
    assert "\n" not in str(error.value)
    assert nequip_models.ConvNetLayer is stock


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_host_is_left_as_it_was():
    """Importing it imports none of our layers; its own builder gives the same model afterwards."""
    run(f"""
import sys, warnings
import nequip
imported = [m for m in sys.modules if m.startswith(("gaunt_plugin.", "mace"))]
assert "gaunt_plugin" in sys.modules and imported == ["gaunt_plugin._nequip_hook"], imported

warnings.simplefilter("ignore")
import torch
from nequip.model import NequIPGNNModel, nequip_models
from nequip.utils.global_state import set_global_state
set_global_state()
options = {OPTIONS!r}
layer = nequip_models.ConvNetLayer
before = NequIPGNNModel(**options)

from gaunt_plugin.nequip import GauntNequIPGNNModel
gaunt = GauntNequIPGNNModel(**options)
try:
    GauntNequIPGNNModel(**options, correlation=[2])
except ValueError:
    pass
assert nequip_models.ConvNetLayer is layer
after = NequIPGNNModel(**options)
names = [[type(m).__name__ for m in x.modules()] for x in (before, gaunt, after)]
assert names[0] == names[2] and "InteractionBlock" in names[0]
assert "GauntInteractionBlock" in names[1] and "InteractionBlock" not in names[1]
for (name, one), (other, two) in zip(before.state_dict().items(), after.state_dict().items()):
    assert name == other and torch.equal(one, two), name
assert "mace" not in sys.modules
""")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("None", "gaunt_plugin.nequip needs NequIP: pip install 'gaunt-plugin[nequip]'"),
        ("host('0.18.2')", "made for nequip >= 0.19.1, < 0.20, found 0.18.2"),
        ("host('0.19.0')", "made for nequip >= 0.19.1, < 0.20, found 0.19.0"),
        ("host('0.20.0rc1')", "made for nequip >= 0.19.1, < 0.20, found 0.20.0rc1"),
    ],
)
def test_missing_host_or_another_release(module, message):
    printed = run(f"""
import sys, types
def host(version):
    module = types.ModuleType("nequip")
    module.__version__ = version
    return module
sys.modules["nequip"] = {module}
try:
    import gaunt_plugin.nequip
except ImportError as error:
    print(error)
""")
    assert message in printed
    assert len(printed.splitlines()) == 1
