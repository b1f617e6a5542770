"""Whole Gaunt models, in this process: symmetries, derivatives, every mix of blocks, files."""

import copy
import pickle
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

from mace import modules
from mace.calculators import MACECalculator
from mace.cli.convert_cueq_e3nn import run as from_cueq
from mace.cli.convert_e3nn_cueq import run as to_cueq
from mace.cli.convert_e3nn_oeq import run as to_oeq
from mace.tools.scripts_utils import extract_config_mace_model, extract_model, remove_pt_head

import ase
import ase.build
import numpy as np
import pytest
import torch
from e3nn import o3
from e3nn.util import jit

from gaunt_plugin.layers import Linear
from gaunt_plugin.mace import weights
from gaunt_plugin.mace.blocks import GauntProductBasisBlock
from gaunt_plugin.mace.config import GauntConfig
from gaunt_plugin.ops import EdgeConvolution

from ..tolerances import assert_close
from .building import (
    assert_equivariant,
    assert_forces_are_derivatives,
    assert_same,
    crystal,
    evaluate,
    make_batch,
    make_model,
    molecule,
)

BOTH_PARITIES = {"parametrization": ("nested", "power"), "antisymmetric": (True, False)}


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)  # set back by the fixture of conftest.py


@pytest.fixture(scope="module")
def from_file(tmp_path_factory):
    """A model read back from a .model file, as MACE writes them."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    path = tmp_path_factory.mktemp("models") / "gaunt.model"
    torch.save(
        make_model(
            correlation=3, parametrization=("power", "full"), convolution=("aligned", "grid")
        ),
        path,
    )
    torch.set_default_dtype(default)
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize("inversion", [1, -1])
def test_energy_is_invariant_and_forces_turn_along(from_file, inversion):
    assert evaluate(from_file, molecule())["forces"].abs().max() > 0.01
    assert_equivariant(from_file, inversion)


@pytest.mark.parametrize("make_atoms", [molecule, crystal])
def test_forces_are_finite_differences(from_file, make_atoms):
    atoms = make_atoms()
    forces = evaluate(from_file, atoms)["forces"]
    energy = lambda moved: evaluate(from_file, moved)["energy"].item()  # noqa: E731
    assert_forces_are_derivatives(energy, atoms, forces)


def test_stress_is_finite_differences_in_a_small_cell(from_file):
    atoms, step = crystal(), 1e-4
    stress = evaluate(from_file, atoms)["stress"][0]
    for i, j in [(0, 0), (1, 2)]:
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[i, j] += sign * step / 2
            strain[j, i] += sign * step / 2
            strained = atoms.copy()
            strained.set_cell(atoms.cell @ strain, scale_atoms=True)
            energies.append(evaluate(from_file, strained)["energy"].item())
        slope = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
        assert stress[i, j].item() == pytest.approx(slope, abs=1e-6)


def test_small_cell_equals_its_supercell(from_file):
    one, two = evaluate(from_file, crystal()), evaluate(from_file, crystal() * (2, 1, 2))
    torch.testing.assert_close(two["energy"], 4 * one["energy"], rtol=0, atol=1e-9)
    torch.testing.assert_close(two["stress"], one["stress"], rtol=0, atol=1e-9)


def test_hessian(from_file):
    calculator = MACECalculator(models=[from_file], default_dtype="float64")
    atoms, step = molecule()[:4], 1e-4
    n = 3 * len(atoms)
    hessian = calculator.get_hessian(atoms).reshape(n, n)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-9)
    forces = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[1, 2] += sign * step
        forces.append(evaluate(from_file, moved)["forces"].flatten())
    np.testing.assert_allclose(hessian[5], (forces[1] - forces[0]) / (2 * step), atol=1e-6)
    for parameter in from_file.parameters():
        parameter.requires_grad = True  # the calculator switched it off


def training_gradients(model, *frames):
    """Gradients of a loss on energies and forces."""
    model.zero_grad()
    out = model(make_batch(model, *frames), training=True)
    (out["forces"].square().sum() + out["energy"].sum()).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    "options",
    [
        {"correlation": 3},
        {"parametrization": ("paper",), "convolution_rank": (2,)},
        BOTH_PARITIES | {"correlation": 3, "hidden": "5x0e + 5x1o + 5x1e"},
    ],
)
def test_compiled_kernels(options, kernels):
    """The same energies, forces, virials, gradients of a training step and Hessian."""
    model = make_model(**options)
    alone = ase.Atoms("H", positions=[[0, 0, 0]], cell=[9] * 3)
    systems = [(molecule(),), (crystal(),), (alone,), (alone, crystal(), molecule())]
    operator = EdgeConvolution.operator
    with mock.patch.object(operator, "eagerly", side_effect=operator.eagerly) as calls:
        found = [evaluate(model, *frames) for frames in systems]
        gradients = training_gradients(model, *systems[-1])
        hessian = model(make_batch(model, crystal()), compute_hessian=True)["hessian"]
    assert calls.call_count
    kernels(False)
    for one, frames in zip(found, systems, strict=True):
        assert_same(one, evaluate(model, *frames))
    for one, two in zip(gradients, training_gradients(model, *systems[-1]), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
    expected = model(make_batch(model, crystal()), compute_hessian=True)["hessian"]
    torch.testing.assert_close(hessian, expected, rtol=1e-10, atol=1e-10)


def test_linear_layers_are_ours():
    """Readouts and embeddings, too, which MACE builds."""
    model = make_model()
    kinds = {type(module) for module in model.modules() if isinstance(module, o3.Linear)}
    assert kinds == {Linear}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"parametrization": ("paper", "full"), "convolution": ("grid",), "selfmix_rank": (1, 0)},
        BOTH_PARITIES | {"hidden": "4x0e + 4x1o + 4x1e"},
    ],
    ids=["default", "grid", "1e"],
)
def test_autocast(options):
    """Training steps in bfloat16 where torch allows it are those of float32, roughly."""
    torch.set_default_dtype(torch.float32)
    model = make_model(correlation=3, **options)
    atoms, turned = molecule(), molecule()
    turned.rotate(40, (1, 2, 3))

    def step(atoms):
        batch = make_batch(model, atoms)
        model.zero_grad()
        out = model(batch, training=True)
        loss = (out["forces"] - batch["positions"].detach()).square().sum() + out["energy"].sum()
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        return out["energy"].detach(), out["forces"].detach(), gradients

    def assert_near(found, expected):
        assert found.dtype == expected.dtype
        assert (found - expected).norm() < 0.1 * expected.norm()

    expected = step(atoms)
    with torch.autocast("cpu", torch.bfloat16):
        found, (energy, forces, gradients) = step(atoms), step(turned)
    for one, two in zip(found, expected, strict=True):
        assert_near(one, two)
    assert_near(energy, found[0])
    rotation = torch.tensor(np.linalg.lstsq(atoms.positions, turned.positions)[0])
    assert_near(forces, found[1] @ rotation.float())
    assert_near(gradients, found[2])
    for parameter in model.parameters():  # and another step from there
        if parameter.grad is not None:
            parameter.data -= 1e-3 * parameter.grad
    with torch.autocast("cpu", torch.bfloat16):
        assert all(part.isfinite().all() for part in step(atoms))


def test_atoms_without_neighbours(from_file):
    one = evaluate(from_file, ase.Atoms("C"))
    pair = evaluate(from_file, ase.Atoms("CO", positions=[[0, 0, 0], [50, 0, 0]]))
    other = evaluate(from_file, ase.Atoms("O"))
    assert torch.isfinite(one["energy"]).all()
    torch.testing.assert_close(pair["energy"], one["energy"] + other["energy"])
    assert pair["forces"].abs().max() == 0
    # In a batch with a molecule, nothing changes for either.
    both = evaluate(from_file, ase.Atoms("C"), molecule())
    alone = evaluate(from_file, molecule())
    torch.testing.assert_close(both["energy"], torch.cat([one["energy"], alone["energy"]]))


@pytest.mark.parametrize("product", ["power", "paper", "full", "nested", "stock"])
@pytest.mark.parametrize(
    ("first", "then", "convolution"),
    [
        ("GauntInteractionBlock", "GauntResidualInteractionBlock", "aligned"),
        ("GauntDensityInteractionBlock", "GauntDensityResidualInteractionBlock", "grid"),
    ],
)
def test_blocks(first, then, convolution, product):
    check(first, then, convolution=(convolution,), parametrization=(product,))


@pytest.mark.parametrize(
    ("first", "then", "convolution"),
    [
        ("GauntInteractionBlock", "GauntDensityResidualInteractionBlock", ("grid", "aligned")),
        ("GauntDensityResidualInteractionBlock", "GauntResidualInteractionBlock", ("grid",)),
        ("GauntResidualInteractionBlock", "GauntResidualInteractionBlock", ("aligned", "grid")),
        ("GauntDensityInteractionBlock", "RealAgnosticDensityResidualInteractionBlock", ("grid",)),
        ("RealAgnosticInteractionBlock", "GauntResidualInteractionBlock", ("aligned",)),
    ],
)
def test_mixed_blocks(first, then, convolution):
    check(
        first,
        then,
        convolution=convolution,
        parametrization=("power", "stock"),
        convolution_rank=(2, 1),
    )


@pytest.mark.parametrize(
    ("hidden", "max_ell", "correlation"),
    [
        ("4x0e + 4x1o + 4x1e", 2, (3, 3)),
        # With 0o, MACE gives the second layer's messages both parities.
        ("4x0e + 4x0o + 4x1o + 4x1e", 3, (4, 2)),
    ],
)
def test_both_parities(hidden, max_ell, correlation):
    """Features of pseudo parity are made, go with the parity of a mirror image, and are used."""
    blocks = ("GauntInteractionBlock", "GauntResidualInteractionBlock")
    options = {**BOTH_PARITIES, "hidden": hidden, "max_ell": max_ell, "correlation": correlation}
    check(*blocks, **options)
    model, features, mirrored = make_model(*blocks, **options), [], molecule()
    for interaction in model.interactions:  # of size 1, since their products are looked at
        interaction.linear.weight.data *= 100
    mirrored.positions *= -1
    block = model.products[0]
    hook = block.register_forward_hook(lambda module, args, out: features.append(out.detach()))
    one, two = evaluate(model, molecule()), evaluate(model, mirrored)
    hook.remove()
    assert_close(two["energy"], one["energy"], "equivariance")
    assert_close(two["forces"], -one["forces"], "equivariance")
    irreps = block.linear.irreps_out
    for (_, ir), part in zip(irreps, irreps.slices()):
        assert features[0][:, part].abs().max() > 1e-4, ir
        assert_close(features[1][:, part], ir.p * features[0][:, part], "equivariance")
        hook = block.register_forward_hook(lambda m, a, out, part=part: _without(out, part))
        assert (evaluate(model, molecule())["energy"] - one["energy"]).abs() > 1e-6, ir
        hook.remove()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hidden": "4x0e + 4x2e"},
        BOTH_PARITIES | {"hidden": "4x0e + 4x1o + 4x1e", "correlation": 3},
        BOTH_PARITIES
        | {"hidden": "4x0e + 4x0o + 4x1o + 4x1e", "correlation": (4, 2), "max_ell": 3},
    ],
    ids=["natural", "gap", "1e", "0o_1e"],
)
def test_descriptors(options):
    """The 0e features of each layer, which nothing turns or mirrors."""
    models = [make_model(**options, seed=seed) for seed in (0, 1)]
    features = []
    for product in models[0].products:
        product.register_forward_hook(lambda module, args, out: features.append(out[:, :4]))
    calculator = MACECalculator(models=models, default_dtype="float64")
    found = calculator.get_descriptors(molecule())
    assert [one.shape for one in found] == [(9, 8)] * 2
    np.testing.assert_array_equal(found[0], torch.cat(features, 1).detach())
    assert np.abs(found[0] - found[1]).max() > 0.01
    moved = molecule()
    moved.rotate(40, (1, 2, 3))
    moved.positions *= -1
    np.testing.assert_allclose(calculator.get_descriptors(moved), found, rtol=0, atol=1e-12)
    first = calculator.get_descriptors(molecule(), num_layers=1)
    np.testing.assert_array_equal(first[0], found[0][:, :4])


def test_results_can_be_saved(tmp_path):
    model = make_model()
    out = model(make_batch(model, molecule()))
    torch.save(out, tmp_path / "out")
    saved = torch.load(tmp_path / "out", weights_only=True)
    assert torch.equal(saved["node_feats"], out["node_feats"])


def test_descriptors_of_stock_models_are_stock():
    model = make_model(
        "RealAgnosticInteractionBlock",
        "RealAgnosticResidualInteractionBlock",
        cls=modules.ScaleShiftMACE,
    )
    calculator = MACECalculator(models=model, default_dtype="float64")
    everything = calculator.get_descriptors(molecule(), invariants_only=False)
    found = calculator.get_descriptors(molecule())
    np.testing.assert_array_equal(found, everything[:, [0, 1, 2, 3, 16, 17, 18, 19]])


def _without(features, part):
    return torch.cat(
        [features[:, : part.start], 0 * features[:, part], features[:, part.stop :]], 1
    )


def test_selfmix():
    blocks = ("GauntInteractionBlock", "GauntResidualInteractionBlock")
    check(*blocks, parametrization=("power", "stock"), selfmix_rank=(2, 0))
    without, with_it = make_model(correlation=1), make_model(correlation=1, selfmix_rank=(1,))
    # Turning the product off leaves the messages, at their scale: sqrt(1/2) where it reaches all.
    for block in with_it.products:
        block.selfmix.weight.data.zero_()
        block.selfmix.weight_self.data.mul_(2**0.5)
    with_it.load_state_dict(without.state_dict(), strict=False)
    assert_same(evaluate(with_it, molecule()), evaluate(without, molecule()))


def check(first, then, parametrization, **options):
    """The model has the blocks that were asked for, can be rebuilt and goes through TorchScript."""
    model = make_model(first, then, parametrization=parametrization, **options)
    for block, name in zip(model.interactions, (first, then)):
        assert type(block).__name__ == name
    for block, name in zip(model.products, (parametrization * 2)[:2]):
        assert isinstance(block, GauntProductBasisBlock) == (name != "stock")
    expected = evaluate(model, molecule(), crystal())
    assert expected["forces"].abs().max() > 1e-3
    rebuilt = extract_model(model)
    assert rebuilt.state_dict().keys() == model.state_dict().keys()
    assert_same(evaluate(rebuilt, molecule(), crystal()), expected)
    assert_same(evaluate(jit.compile(rebuilt), molecule(), crystal()), expected)


def test_options_differ_per_layer():
    model = make_model(
        parametrization=("power", "paper"),
        product_rank=(2, 5),
        correlation=3,
        convolution_rank=(1, 3),
        convolution=("grid",),
    )
    config = model.cueq_config
    assert config.correlation == (3, 3)
    assert config.product_rank == (2, 5)
    weights_ = [block.conv_tp.convolution.weight_numel for block in model.interactions]
    single = make_model(convolution=("grid",), convolution_rank=(1,), correlation=3)
    expected = [block.conv_tp.convolution.weight_numel for block in single.interactions]
    assert weights_ == [expected[0], 3 * expected[1]]
    assert GauntConfig.from_dict(config.to_dict()) == config


def test_configuration_rebuilds_the_same_model(from_file):
    config = extract_config_mace_model(from_file)
    model = from_file.__class__(**config)
    model.load_state_dict(from_file.state_dict())  # strict
    assert_same(evaluate(model, molecule()), evaluate(from_file, molecule()))


@pytest.mark.parametrize(
    "options",
    [
        {"parametrization": ("power", "full")},
        BOTH_PARITIES | {"hidden": "4x0e + 4x1o + 4x1e"},
    ],
    ids=["natural", "1e"],
)
@pytest.mark.parametrize("head", ["room", "hot"])
def test_one_head_of_two(head, options):
    model = make_model(heads=("room", "hot"), correlation=3, **options)
    single = remove_pt_head(model, head)
    assert single.heads == [head]
    expected = evaluate(model, molecule(), head=head)
    other = evaluate(model, molecule(), head="hot" if head == "room" else "room")
    assert (expected["energy"] - other["energy"]).abs() > 0.1
    assert_same(evaluate(single, molecule(), head=head), expected)


def test_copies_and_casts(from_file):
    expected = evaluate(from_file, molecule())
    assert_same(evaluate(copy.deepcopy(from_file), molecule()), expected, 0)
    assert_same(evaluate(pickle.loads(pickle.dumps(from_file)), molecule()), expected, 0)
    single = copy.deepcopy(from_file).float()
    torch.set_default_dtype(torch.float32)
    rounded = evaluate(single, molecule())
    torch.set_default_dtype(torch.float64)
    assert rounded["energy"].dtype == torch.float32
    assert_same({key: value.double() for key, value in rounded.items()}, expected, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_file(from_file, tmp_path, dtype):
    model = copy.deepcopy(from_file).to(dtype)
    weights.save_weights(model, tmp_path / "w")
    loaded = weights.load_weights(tmp_path / "w")
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.set_default_dtype(dtype)
    assert_same(evaluate(loaded, molecule()), evaluate(model, molecule()), 0)


def test_weights_command(from_file, tmp_path):
    torch.save(from_file, tmp_path / "a.model")
    weights.main(["pack", str(tmp_path / "a.model"), str(tmp_path / "a.weights")])
    weights.main(["unpack", str(tmp_path / "a.weights"), str(tmp_path / "b.model")])
    model = torch.load(tmp_path / "b.model", weights_only=False)
    assert_same(evaluate(model, molecule()), evaluate(from_file, molecule()), 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(format=99),
        lambda content: content.update(format="1"),
        lambda content: content.pop("format"),
        lambda content: content.pop("config"),
        lambda content: content.pop("state_dict"),
        lambda content: content.update(config="{"),
        lambda content: content.update(config="{}"),
        lambda content: content["state_dict"].popitem(),
    ],
    ids=["newer", "text", "format", "config", "state_dict", "json", "empty", "weight"],
)
def test_bad_weights_file(from_file, tmp_path, change):
    weights.save_weights(from_file, tmp_path / "w")
    content = torch.load(tmp_path / "w", weights_only=True)
    change(content)
    torch.save(content, tmp_path / "w")
    with pytest.raises(ValueError, match=r"format 99|not a weights file"):
        weights.load_weights(tmp_path / "w")


def test_what_is_no_weights_file(from_file, tmp_path):
    torch.save(from_file, tmp_path / "pickle")
    (tmp_path / "text").write_text("text")
    for name in ("pickle", "text"):
        with pytest.raises(ValueError, match="is not a weights file"):
            weights.load_weights(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        weights.load_weights(tmp_path / "nothing")
    with pytest.raises(SystemExit, match="error"):
        weights.main(["unpack", str(tmp_path / "text"), str(tmp_path / "x")])
    with pytest.raises(ValueError, match="expected a Gaunt MACE model"):
        weights.save_weights(torch.nn.Linear(1, 1), tmp_path / "x")


@pytest.mark.parametrize("convert", [to_cueq, to_oeq, from_cueq])
def test_conversion_to_another_backend(from_file, convert):
    with pytest.raises(ValueError, match="no cuEquivariance or OpenEquivariance version"):
        convert(copy.deepcopy(from_file), return_model=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": "4x0e + 4x1e"}, "reaches pseudo degree 1 in irreps_out"),
        ({"hidden": "4x0e + 4x0o"}, "reaches pseudo degree 0 in irreps_out"),
        ({"antisymmetric": (True,)}, "has no antisymmetric products; use 'nested'"),
        (
            {"antisymmetric": (1,), "parametrization": ("nested",)},
            "antisymmetric must be true or false",
        ),
        ({"parametrization": ("cg",)}, "unknown gaunt parametrization 'cg'; possible: "),
        ({"convolution": ("fast",)}, "unknown gaunt convolution 'fast'; possible: aligned, grid"),
        ({"convolution_rank": (1, 1, 1)}, "got 3 entries for 2 interactions"),
        (
            {"convolution_rank": (0,)},
            "gaunt convolution_rank must be a whole number, at least 1, got 0",
        ),
        ({"selfmix_rank": (-1,)}, "gaunt selfmix_rank must be a whole number, at least 0, got -1"),
        (
            {"selfmix_rank": (1,), "parametrization": ("power", "stock")},
            "belong to Gaunt products",
        ),
        ({"product_rank": (1.5,)}, "gaunt product_rank must be a whole number"),
        ({"correlation": 99}, "gaunt correlation must be 1 to"),
        ({"correlation": 4, "parametrization": ("full",)}, "takes correlation 1 to 3, got 4"),
        ({"hidden": "4x0e + 2x1o"}, "multiplicit"),
        ({"hidden": "4x1o + 4x0e"}, "must begin with 0e"),
        ({"hidden": "4x1o + 4x0e", "parametrization": ("stock",)}, "must begin with 0e"),
        (BOTH_PARITIES | {"hidden": "4x0o + 4x0e"}, "must begin with 0e"),
    ],
)
def test_clear_errors(options, message):
    with pytest.raises(ValueError, match=message):
        make_model(**options)


def test_stock_class_refuses_gaunt_options():
    config = extract_config_mace_model(make_model())
    config["interaction_cls"] = config["interaction_cls_first"] = modules.interaction_classes[
        "RealAgnosticResidualInteractionBlock"
    ]
    with pytest.raises(ValueError, match="run the command with --plugin gaunt"):
        modules.ScaleShiftMACE(**config)


STOCK = """
import sys, torch
from mace import modules
classes = dict(modules.interaction_classes)
if sys.argv[1] == "ours":
    import gaunt_plugin.mace.models, gaunt_plugin.mace.weights
assert modules.interaction_classes == classes
assert not any("Gaunt" in name for name in classes)
from mace.tools import model_script_utils
assert model_script_utils._build_model.__module__ == "mace.tools.model_script_utils"
assert modules.ScaleShiftMACE.__module__ == "mace.modules.models"
torch.set_default_dtype(torch.float64)
import numpy as np
from e3nn import o3
torch.manual_seed(0)
block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
model = modules.ScaleShiftMACE(
    r_max=3.0, num_bessel=4, num_polynomial_cutoff=5, max_ell=2, interaction_cls=block,
    interaction_cls_first=block, num_interactions=2, num_elements=3,
    hidden_irreps=o3.Irreps("4x0e + 4x1o"), MLP_irreps=o3.Irreps("4x0e"),
    gate=torch.nn.functional.silu, atomic_energies=np.zeros((1, 3)), avg_num_neighbors=6.0,
    atomic_numbers=[1, 6, 8], correlation=2, atomic_inter_scale=1.0, atomic_inter_shift=0.0,
)
torch.save(model.state_dict(), sys.argv[2])
"""


def test_stock_models_are_left_alone(tmp_path):
    states = []
    for name in ("stock", "ours"):
        path = tmp_path / name
        arguments = [sys.executable, "-c", STOCK, name, str(path)]
        subprocess.run(arguments, check=True, timeout=200)
        states.append(torch.load(path, weights_only=True))
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


SAVED = Path(__file__).parent / "saved"
RELEASES = sorted(path for path in SAVED.iterdir() if (path / "model.model").exists())


def check_saved(folder):
    """The model in a folder of saved/make.py computes what it did then, and compiles."""
    expected = np.load(folder / "results.npz")
    atoms = ase.build.molecule("CH3CH2OH")
    path = folder / "model.model"
    atoms.calc = MACECalculator(path, device="cpu", default_dtype="float64")
    assert_close(atoms.get_forces(), expected["forces"], "equivariance")
    assert abs(atoms.get_potential_energy() - expected["energy"]) < 1e-10
    scripted = jit.compile(torch.load(path, weights_only=False))
    batch = atoms.calc._atoms_to_batch(atoms).to_dict()
    assert_close(scripted(batch)["forces"], expected["forces"], "equivariance")


@pytest.mark.parametrize("folder", RELEASES, ids=lambda path: path.name)
def test_models_of_earlier_releases_load(folder):
    check_saved(folder)


def test_the_script_for_saved_models(tmp_path):
    runpy.run_path(str(SAVED / "make.py"))["main"](tmp_path / "now")
    check_saved(tmp_path / "now")
