"""MACE's blocks, models and their options with Gaunt layers, in this process."""

import functools

from mace import modules
from mace.modules import blocks as stock
from mace.modules.gate import GatedEquivariantBlock
from mace.modules.radial import RadialMLP
from mace.tools import AtomicNumberTable
from mace.tools.scripts_utils import extract_config_mace_model, remove_pt_head

import ase
import numpy as np
import pytest
import torch
from e3nn import o3
from e3nn.util import jit

from gaunt_plugin.deploy.export import ModelFileError, export
from gaunt_plugin.mace import weights
from gaunt_plugin.mace.blocks import INTERACTIONS, GauntProductBasisBlock
from gaunt_plugin.mace.finetuning import load_foundations_elements
from gaunt_plugin.mace.models import AtomicDielectricMACE, AtomicDipolesMACE, EnergyDipolesMACE
from gaunt_plugin.mace.scripting import Gate, replace_gates

from ..tolerances import assert_close
from .building import (
    BLOCKS,
    assert_equivariant,
    assert_forces_are_derivatives,
    assert_same,
    crystal,
    evaluate,
    isometry,
    make_batch,
    make_model,
    molecule,
)

ATTENTION = "GauntAttResidualInteractionBlock"
NON_LINEAR = "GauntResidualNonLinearInteractionBlock"
PLAIN = "GauntInteractionBlock"


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)  # set back by the fixture of conftest.py


def energy_of(model):
    return lambda atoms: model(make_batch(model, atoms))["energy"].item()


@pytest.mark.parametrize(
    ("first", "then", "convolution"),
    [
        (PLAIN, ATTENTION, ("aligned", "grid")),
        (ATTENTION, NON_LINEAR, ("aligned",)),
        (NON_LINEAR, NON_LINEAR, ("grid", "aligned")),
    ],
)
def test_symmetry(first, then, convolution):
    model = make_model(
        first, then, convolution=convolution, convolution_rank=(2,), apply_cutoff=False
    )
    assert [type(block).__name__ for block in model.interactions] == [first, then]
    for inversion in (1, -1):
        assert_equivariant(model, inversion)


OPTIONS = {
    "attention": {"then": ATTENTION},
    "non-linear": {"first": NON_LINEAR, "then": NON_LINEAR},
    "mixed": {"first": ATTENTION, "then": "RealAgnosticResidualNonLinearInteractionBlock"},
    "apply_cutoff": {"first": NON_LINEAR, "then": ATTENTION, "apply_cutoff": False},
    "edge_irreps": {"edge_irreps": o3.Irreps("2x0e + 2x1o"), "convolution_rank": (1, 2)},
    "edge_irreps_first": {
        "first": NON_LINEAR,
        "then": NON_LINEAR,
        "edge_irreps": o3.Irreps("2x0e + 2x1o"),
        "use_edge_irreps_first": True,
        "convolution_rank": (2,),
    },
    "radial_MLP": {"first": ATTENTION, "then": NON_LINEAR, "radial_MLP": [5, 6]},
    "last_readout": {"use_last_readout_only": True},
    "bias_readout": {"readout_cls": modules.NonLinearBiasReadoutBlock},
    "agnostic_product": {"use_agnostic_product": True},
    "stock_product": {"parametrization": ("power", "stock"), "use_reduced_cg": True},
    "agnesi": {"distance_transform": "Agnesi"},
    "soft": {"distance_transform": "Soft"},
    "repulsion": {"pair_repulsion": True},
    "gaussian": {"radial_type": "gaussian"},
    "both_parities": {
        "first": ATTENTION,
        "then": NON_LINEAR,
        "hidden": "4x0e + 4x1o + 4x1e",
        "parametrization": ("nested", "power"),
        "antisymmetric": (True, False),
        "correlation": 3,
    },
}


# Those that change what TorchScript has to compile.
PROGRAMS = {"attention", "non-linear", "apply_cutoff", "edge_irreps_first", "bias_readout"}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name, tmp_path):
    """Equivariance, forces, a file of weights and MACE's configuration, programs."""
    model = make_model(**OPTIONS[name])
    for inversion in (1, -1):
        assert_equivariant(model, inversion)
    expected = evaluate(model, molecule(), crystal())
    forces = evaluate(model, crystal())["forces"]
    assert_forces_are_derivatives(energy_of(model), crystal(), forces)
    weights.save_weights(model, tmp_path / "w")
    loaded = weights.load_weights(tmp_path / "w")
    assert_same(evaluate(loaded, molecule(), crystal()), expected, 0)
    if name in PROGRAMS:
        assert_same(evaluate(jit.compile(loaded), molecule(), crystal()), expected)
        export(model, tmp_path / "model.pt")  # compares energies and gradients itself


@pytest.mark.parametrize("name", OPTIONS)
def test_weights_of_a_distributed_model(name, tmp_path):
    """Every weight takes part in the loss: MACE's ``DistributedDataParallel`` wants it."""
    options = {"world_size": 1, "rank": 0, "init_method": f"file://{tmp_path}/store"}
    torch.distributed.init_process_group("gloo", **options)
    try:
        model = torch.nn.parallel.DistributedDataParallel(make_model(**OPTIONS[name]))
        for _ in range(2):  # the second step would complain
            out = model(make_batch(model.module, molecule()), training=True)
            (out["energy"].sum() + out["forces"].square().sum()).backward()
    finally:
        torch.distributed.destroy_process_group()


def test_one_head_of_two():
    model = make_model(NON_LINEAR, ATTENTION, heads=("room", "hot"))
    single = remove_pt_head(model, "hot")
    found = evaluate(single, molecule(), head="hot")
    assert_same(found, evaluate(model, molecule(), head="hot"))


def inputs_of(block, nodes=5, edges=12):
    """Random arguments of an interaction block."""
    torch.manual_seed(1)
    attrs = torch.nn.functional.one_hot(torch.arange(nodes) % 3, 3).double()
    vectors = torch.randn(edges, 3)
    harmonics = o3.spherical_harmonics(block.edge_attrs_irreps, vectors, True)
    return {
        "node_attrs": attrs,
        "node_feats": block.node_feats_irreps.randn(nodes, -1),
        "edge_attrs": harmonics,
        "edge_feats": torch.rand(edges, 4),
        "edge_index": torch.randint(nodes, (2, edges)),
        "cutoff": torch.rand(edges, 1),
    }


def test_attention_is_stocks_method():
    block = make_model(then=ATTENTION).interactions[1]
    inputs = inputs_of(block)
    expected = stock.RealAgnosticAttResidualInteractionBlock.forward(block, **inputs)
    for one, two in zip(block(**inputs), expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_weights_of_the_non_linear_block_are_those_of_the_whole_network():
    block = make_model(then=NON_LINEAR).interactions[1]
    inputs, convolution = inputs_of(block), block.conv_tp
    hidden = block.conv_tp_weights
    features = torch.rand(12, hidden.net[0].in_features)
    whole = RadialMLP([hidden.net[0].in_features, 8, convolution.convolution.weight_numel])
    for new, old in zip(whole.net[:-1].parameters(), hidden.net.parameters(), strict=True):
        new.data.copy_(old)
    whole.net[-1].weight.data.copy_(convolution.weight.T)
    whole.net[-1].bias.data.copy_(convolution.bias)
    up = block.edge_irreps.randn(5, -1)
    graph = up, inputs["edge_attrs"]
    found = convolution(*graph, hidden(features) * inputs["cutoff"], inputs["edge_index"])
    expected = convolution.convolution(
        *graph, whole(features) * inputs["cutoff"], inputs["edge_index"]
    )
    assert_close(found, expected, "oracle")


@pytest.mark.parametrize("hidden", ["4x0e + 4x1o", "4x0e"])
@pytest.mark.parametrize("activation", [torch.nn.functional.silu, None])
def test_gate_is_maces(hidden, activation):
    scalars, gated = o3.Irreps(hidden)[:1], o3.Irreps(hidden)[1:]
    gates = o3.Irreps([(mul, "0e") for mul, _ in gated])
    gate = Gate(GatedEquivariantBlock(scalars, [activation], gates, [activation], gated))
    x = gate.irreps_in.randn(7, -1)
    expected = GatedEquivariantBlock.forward(gate, x)
    torch.testing.assert_close(gate(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(torch.jit.script(gate)(x), expected, rtol=1e-14, atol=1e-14)


def test_gates_of_a_stock_model():
    block = "RealAgnosticResidualNonLinearInteractionBlock"
    model = make_model(block, block, cls=modules.ScaleShiftMACE)
    expected = evaluate(model, molecule())
    replace_gates(model)
    assert_same(evaluate(jit.compile(model), molecule()), expected)


@pytest.mark.parametrize(
    "first",
    [
        ATTENTION,
        NON_LINEAR,
        "GauntDensityInteractionBlock",
        "RealAgnosticResidualInteractionBlock",
    ],
)
def test_a_foundation_model_of_more_elements(first):
    """The layers' results are the foundation's, where only elements of both occur."""
    foundation = make_model(first, first)
    config = extract_config_mace_model(foundation)
    kept = [1, 8]
    config.update(atomic_numbers=kept, num_elements=2, atomic_energies=np.array([[-1.0, -3.0]]))
    torch.manual_seed(5)
    model = foundation.__class__(**config)
    model = load_foundations_elements(
        model, foundation, AtomicNumberTable(kept), load_readout=True, max_L=1
    )
    water = ase.Atoms("OHH", positions=[[0, 0, 0], [0.9, 0.2, 0], [-0.3, 0.8, 0.1]])
    assert_same(evaluate(model, water), evaluate(foundation, water))


def test_odd_scalars_have_no_gate():
    with pytest.raises(ValueError, match="takes no 0o"):
        make_model(
            then=NON_LINEAR,
            hidden="4x0e + 4x0o + 4x1o + 4x1e",
            parametrization=("nested", "power"),
            antisymmetric=(True, False),
            correlation=(4, 2),
            max_ell=3,
        )


# Models with dipoles


MODELS = {
    AtomicDipolesMACE: {"MLP_irreps": o3.Irreps("4x1o"), "then": NON_LINEAR},
    EnergyDipolesMACE: {
        "atomic_energies": np.array([[-1.0, -2.0, -3.0]]),
        "then": ATTENTION,
        "convolution_rank": (1, 2),
    },
    AtomicDielectricMACE: {
        "hidden": "4x0e + 4x1o + 4x2e",
        "convolution": ("aligned", "grid"),
        "correlation": 3,
    },
}
every_model_with_dipoles = pytest.mark.parametrize("cls", MODELS)


@functools.cache
def dipole_model(cls):
    return make_model(cls=cls, **MODELS[cls])


def run(model, atoms):
    batch = make_batch(model, atoms)
    batch["charges"] = torch.linspace(-0.1, 0.1, 3)[batch["node_attrs"].argmax(1)]
    batch["total_charge"] = torch.zeros(1)
    return model(batch)


@every_model_with_dipoles
def test_dipoles_turn_along(cls):
    model = dipole_model(cls)
    assert all(isinstance(product, GauntProductBasisBlock) for product in model.products)
    for inversion in (1, -1):
        atoms, q = molecule(), isometry(inversion=inversion)
        one = run(model, atoms)
        atoms.positions = atoms.positions @ q.T
        two = run(model, atoms)
        q = torch.tensor(q)
        assert one["atomic_dipoles"].abs().max() > 1e-3
        for key in ("dipole", "atomic_dipoles"):
            torch.testing.assert_close(two[key], one[key] @ q.T, rtol=0, atol=1e-9)
        if cls is AtomicDielectricMACE:
            assert one["polarizability"].abs().max() > 1e-3
            turned = q @ one["polarizability"] @ q.T
            torch.testing.assert_close(two["polarizability"], turned, rtol=0, atol=1e-9)
        if cls is EnergyDipolesMACE:
            torch.testing.assert_close(two["energy"], one["energy"], rtol=0, atol=1e-9)
            torch.testing.assert_close(two["forces"], one["forces"] @ q.T, rtol=0, atol=1e-9)


def test_forces_of_a_model_with_dipoles():
    model = dipole_model(EnergyDipolesMACE)
    forces = run(model, molecule())["forces"].detach()
    assert_forces_are_derivatives(
        lambda atoms: run(model, atoms)["energy"].item(), molecule(), forces
    )


@every_model_with_dipoles
def test_state_of_a_model_with_dipoles(cls, tmp_path):
    """And what such a model isn't for."""
    model, other = dipole_model(cls), make_model(cls=cls, seed=1, **MODELS[cls])
    other.load_state_dict(model.state_dict())
    torch.save(model, tmp_path / "model")
    loaded = torch.load(tmp_path / "model", weights_only=False)
    expected = run(model, molecule())["dipole"]
    for again in (other, loaded):
        torch.testing.assert_close(run(again, molecule())["dipole"], expected, rtol=0, atol=0)
    with pytest.raises(ModelFileError, match=f"it is a {cls.__name__}; possible are MACE and"):
        export(model, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=f"can't describe a {cls.__name__}"):
        weights.save_weights(model, tmp_path / "x")


def test_products_of_a_model_with_dipoles():
    """Layers of different correlation, one of them stock."""
    options = {**MODELS[AtomicDipolesMACE], "parametrization": ("stock", "power")}
    model = make_model(cls=AtomicDipolesMACE, correlation=3, **options)
    kinds = [type(product).__name__ for product in model.products]
    assert kinds == ["EquivariantProductBasisBlock", "GauntProductBasisBlock"]
    assert len(model.products[0].symmetric_contractions.contractions[0].weights) == 2
    assert run(model, molecule())["dipole"].isfinite().all()


BLOCKS_IN_MACE = [name for name in BLOCKS if name.startswith("RealAgnostic")]


@pytest.mark.parametrize("name", BLOCKS_IN_MACE)
def test_every_block_of_mace_has_a_counterpart(name):
    """A new block of MACE shows up here."""
    counterpart = INTERACTIONS[name.replace("RealAgnostic", "Gaunt")]
    assert issubclass(counterpart, BLOCKS[name])
