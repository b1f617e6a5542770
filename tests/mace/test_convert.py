"""Stock models rewritten on Gaunt layers, and back: the same numbers."""

import re

from mace import modules
from mace.calculators import MACECalculator
from mace.modules.lora import inject_lora
from mace.tools.scripts_utils import extract_config_mace_model
from mace.tools.torch_tools import default_dtype
from mace.tools.utils import AtomicNumberTable

import numpy as np
import pytest
import torch
from e3nn import o3
from e3nn.util import jit

from gaunt_plugin import cli
from gaunt_plugin.calculator import GauntCalculator
from gaunt_plugin.mace.blocks import INTERACTIONS
from gaunt_plugin.mace.contraction import ContractionMap
from gaunt_plugin.mace.convert import ConversionError, to_gaunt, to_stock
from gaunt_plugin.mace.finetuning import load_foundations_elements
from gaunt_plugin.mace.models import ScaleShiftMACE
from gaunt_plugin.mace.weights import load_weights, save_weights

from .building import KEYS, assert_equivariant, crystal, make_batch, make_model, molecule
from .test_flags import EMBEDDING

PLAIN, RESIDUAL = "RealAgnosticInteractionBlock", "RealAgnosticResidualInteractionBlock"
ATTENTION = "RealAgnosticAttResidualInteractionBlock"
NON_LINEAR = "RealAgnosticResidualNonLinearInteractionBlock"
DENSITY = "RealAgnosticDensityInteractionBlock"
DENSITY_RESIDUAL = "RealAgnosticDensityResidualInteractionBlock"


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)  # set back by the fixture of conftest.py


def make_stock(
    first=PLAIN, then=RESIDUAL, hidden="16x0e+16x1o", cls=modules.ScaleShiftMACE, **options
):
    """Weights of a trained model: of different sizes, and none is zero."""
    model = make_model(first, then, hidden, cls, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
                value.mul_(1.0 + 0.3 * noise.to(value.dtype)).add_(0.02)
    return model


def assert_equal_results(one, two, tolerance=1e-10, head="Default", **inputs):
    """Energies, forces, virials and stress, relative to the largest."""
    for atoms in (molecule(), crystal()):
        a, b = (results(model, atoms, head, inputs) for model in (one, two))
        for key in KEYS:
            assert (a[key] - b[key]).abs().max() <= tolerance * b[key].abs().max()


def results(model, atoms, head, inputs):
    batch = make_batch(model, atoms, head=head) | inputs
    out = model(batch, compute_virials=True, compute_stress=True)
    return {key: out[key].detach().double() for key in KEYS}


TINY = {"hidden": "2x0e+2x1o", "max_ell": 1, "correlation": 1}
CASES = {
    "scalars": {"hidden": "16x0e", "max_ell": 3, "correlation": 3},
    "vectors": {"hidden": "16x0e+16x1o", "max_ell": 3, "correlation": 3, "first": RESIDUAL},
    "tensors": {"hidden": "8x0e+8x1o+8x2e", "max_ell": 3, "correlation": 3},
    "pairs": {"hidden": "8x0e+8x1o+8x2e", "correlation": 2, "heads": ("room", "hot")},
    "correlation 1": {"correlation": 1, "distance_transform": "Soft", "pair_repulsion": True},
    "density": {
        "first": DENSITY,
        "then": DENSITY_RESIDUAL,
        "correlation": (3, 2),
        "distance_transform": "Agnesi",
    },
    "attention": {
        "first": ATTENTION,
        "then": NON_LINEAR,
        "apply_cutoff": False,
        "use_agnostic_product": True,
        "readout_cls": modules.NonLinearBiasReadoutBlock,
    },
    "non-linear": {
        "first": NON_LINEAR,
        "then": ATTENTION,
        "edge_irreps": o3.Irreps("6x0e + 3x1o"),
        "use_edge_irreps_first": True,
        "use_last_readout_only": True,
        "radial_MLP": [5, 6],
    },
    "pseudo vectors": {"hidden": "4x0e+4x1o+4x1e", "correlation": 3},
    "no scale": {"cls": modules.MACE, "heads": ("room", "hot")},
    "gaussian": {**TINY, "radial_type": "gaussian", "use_reduced_cg": False},
}


@pytest.mark.parametrize("name", CASES)
def test_same_results(name):
    stock = make_stock(**CASES[name])
    gaunt = to_gaunt(stock)
    assert type(gaunt) is ScaleShiftMACE
    assert all(type(block).__name__ in INTERACTIONS for block in gaunt.interactions)
    head = stock.heads[-1]
    assert_equal_results(gaunt, stock, head=head)
    back = to_stock(gaunt)
    assert type(back) is modules.ScaleShiftMACE
    assert [type(block) for block in back.interactions] == [
        type(block) for block in stock.interactions
    ]
    assert_equal_results(back, stock, head=head)
    jit.script(gaunt)


def test_float32():
    with default_dtype("float32"):
        stock = make_stock(max_ell=3, correlation=3)
        gaunt = to_gaunt(stock)
    assert next(gaunt.parameters()).dtype == torch.float32
    a, b = (in_float32(model) for model in (gaunt, stock))
    for key in ("energy", "forces", "stress"):
        assert (a[key] - b[key]).abs().max() <= 1e-5 * b[key].abs().max()


def in_float32(model):
    batch = make_batch(model, molecule(), crystal())
    batch = {k: v.float() if v.is_floating_point() else v for k, v in batch.items()}
    return model(batch, compute_stress=True)


def test_compiled_kernels(kernels):
    stock = make_stock(max_ell=3, correlation=3)
    gaunt = to_gaunt(stock)
    assert_equal_results(gaunt, stock)
    found = training_gradients(gaunt)
    kernels(False)
    for name, gradient in training_gradients(gaunt).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-9)


def training_gradients(model):
    out = model(make_batch(model, molecule(), crystal()), training=True, compute_stress=True)
    loss = out["forces"].square().mean() + out["energy"].mean() + out["stress"].square().sum()
    model.zero_grad()
    loss.backward()
    return {name: value.grad for name, value in model.named_parameters() if value.numel()}


@pytest.mark.parametrize(("first", "then"), [(DENSITY, RESIDUAL), (NON_LINEAR, ATTENTION)])
def test_gradients_of_all_weights(first, then):
    """Those of ``full`` through the linear map from the contraction's weights."""
    stock = make_stock(first, then, "4x0e+4x1o", max_ell=3, correlation=3)
    gaunt = to_gaunt(stock)
    expected, found = training_gradients(stock), training_gradients(gaunt)
    for i, (product, own) in enumerate(zip(stock.products, gaunt.products)):
        weights = dict(product.symmetric_contractions.named_parameters())
        mapped = ContractionMap(product.symmetric_contractions, own.symmetric_contractions)
        prefix = f"products.{i}.symmetric_contractions."
        outputs = mapped.to_full(weights)
        gradients = torch.autograd.grad(
            list(outputs.values()),
            list(weights.values()),
            [found.pop(prefix + name) for name in outputs],
        )
        for name, gradient in zip(weights, gradients):
            close(gradient, expected.pop(prefix + name))
        block, radial = gaunt.interactions[i], stock.interactions[i].conv_tp_weights
        if hasattr(radial, "net"):
            last, weight = len(radial.net) - 1, block.conv_tp.weight.grad.T
            place = f"interactions.{i}.conv_tp_weights.net.{last}."
            close(found.pop(f"interactions.{i}.conv_tp.bias"), expected.pop(place + "bias"))
        else:
            weight = block.conv_tp.weight.grad
            place = f"interactions.{i}.conv_tp_weights.layer{len(radial) - 1}."
        close(weight, expected.pop(place + "weight"))
        del found[f"interactions.{i}.conv_tp.weight"]
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        close(gradient, expected[name])


def close(found, expected):
    assert (found - expected).abs().max() <= 1e-10 * max(expected.abs().max().item(), 1e-3)


def test_a_foundation_of_two_correlations():
    """MACE describes a stock model by its first product, a converted one by all."""
    stock = make_stock(**{**TINY, "correlation": (2, 1)})
    table = AtomicNumberTable([int(z) for z in stock.atomic_numbers])
    converted = to_gaunt(stock)
    config = extract_config_mace_model(converted) | {"atomic_numbers": table.zs}
    with pytest.raises(ValueError, match=r"correlation 2, 1: rewrite it with gaunt convert"):
        load_foundations_elements(to_gaunt(make_stock(**TINY)), stock, table)
    fresh = ScaleShiftMACE(**config)
    tuned = load_foundations_elements(fresh, converted, table, load_readout=True, max_L=1)
    assert_equal_results(tuned, stock)


def test_embeddings_are_carried():
    specs = {"total_charge": EMBEDDING["total_charge"]}
    stock = make_stock(embedding_specs=specs, use_embedding_readout=True)
    gaunt = to_gaunt(stock)
    for charge in (0, 1):
        assert_equal_results(gaunt, stock, total_charge=torch.tensor([charge]))


def test_a_converted_model_is_like_any_other(tmp_path):
    gaunt = to_gaunt(make_stock())
    for path, write, read in (
        (tmp_path / "gaunt.model", lambda model, path: torch.save(model, path), load),
        (tmp_path / "gaunt.weights", save_weights, load_weights),
    ):
        write(gaunt, path)
        assert_equal_results(read(path), gaunt, tolerance=0)


def load(path):
    return torch.load(path, weights_only=False)


def test_the_option_without_a_stock_model():
    """What trains from scratch is what a conversion gives."""
    options = {"parametrization": ("full", "stock"), "convolution": ("channelwise",)}
    model = make_model("GauntInteractionBlock", "GauntResidualInteractionBlock", **options)
    back = to_stock(model)
    assert_equal_results(back, model)
    assert_equal_results(to_gaunt(back), model)


def test_the_option_with_both_parities():
    """And with edge irreps of different multiplicities."""
    model = make_model(
        then="GauntResidualInteractionBlock",
        hidden="4x0e + 4x1o + 4x1e",
        correlation=3,
        parametrization=("nested", "power"),
        antisymmetric=(True, False),
        convolution=("channelwise",),
        edge_irreps=o3.Irreps("4x0e + 3x1o + 2x1e"),
    )
    for inversion in (1, -1):
        assert_equivariant(model, inversion)


def with_lora():
    model = make_stock(**TINY)
    inject_lora(model)
    return model


def with_cuequivariance():
    model = make_stock(**TINY)
    kind = type("Product", (torch.nn.Module,), {"__module__": "cuequivariance_torch.layers"})
    model.interactions[1].conv_tp = kind()
    return model


def with_another_part():
    model = make_stock(**TINY)
    model.interactions[0].charges = torch.nn.Linear(2, 2)
    return model


def with_other_numbers():
    """As if e3nn's coefficients had other signs in the file."""
    model = make_stock(**TINY)
    model.products[1].linear.forward = lambda x: -x
    return model


STOCK_REFUSALS = {
    "its correlation is 4, and the product 'full' takes 1 to 3": {
        "correlation": 4,
        "hidden": "2x0e",
    },
    "it has no parity (use_so3)": {"use_so3": True},
    "factors of 2x0e+2x1o reaches pseudo degree 0 in irreps_out 2x0e+2x0o+2x1o": {
        "hidden": "2x0e + 2x0o + 2x1o"
    },
    "its last layer has features 2x0e+2x1o": {"keep_last_layer_irreps": True},
    "radial functions are of type chebyshev": {"radial_type": "chebyshev"},
    "it is a Gaunt model already": lambda: make_model(**TINY),
    "it is a AtomicDipolesMACE; possible are MACE and ScaleShiftMACE": {
        "cls": modules.AtomicDipolesMACE
    },
    "has LoRA weights: merge them first": with_lora,
    "its interactions.1.conv_tp is a layer of cuequivariance_torch": with_cuequivariance,
    "its interactions.0.charges.weight has no counterpart": with_another_part,
    "its product 2 and the rewritten one differ by": with_other_numbers,
}


@pytest.mark.parametrize("message", STOCK_REFUSALS)
def test_what_has_no_counterpart(message):
    build = STOCK_REFUSALS[message]
    if isinstance(build, dict):
        model = make_model(PLAIN, RESIDUAL, **{"cls": modules.ScaleShiftMACE, **TINY, **build})
    else:
        model = build()
    with pytest.raises(ConversionError, match=re.escape(message)):
        to_gaunt(model)


GAUNT_REFUSALS = {
    "its convolution 1 is 'aligned' of rank 1": {},
    "its convolution 2 is 'channelwise' of rank 2": {
        "convolution": ("channelwise",),
        "convolution_rank": (1, 2),
    },
    "its product 1 is 'power'": {"convolution": ("channelwise",)},
    "its layer 2 has a selfmix": {
        "convolution": ("channelwise",),
        "parametrization": ("full",),
        "selfmix_rank": (0, 1),
    },
}


@pytest.mark.parametrize("message", GAUNT_REFUSALS)
def test_what_is_no_stock_model(message):
    with pytest.raises(ConversionError, match=message):
        to_stock(make_model(**TINY, **GAUNT_REFUSALS[message]))


def test_command(tmp_path, capsys):
    stock, gaunt, back = (tmp_path / f"{name}.model" for name in ("stock", "gaunt", "back"))
    torch.save(make_stock(), stock)
    assert cli.main(["convert", str(stock), str(gaunt)]) == 0
    said = capsys.readouterr().out
    assert "Rewriting product 2 of 2" in said
    assert f"Wrote {gaunt}: a Gaunt model, 2 layers" in said
    assert cli.main(["convert", str(gaunt), str(back)]) == 0
    assert f"Wrote {back}: a model without gaunt_plugin" in capsys.readouterr().out
    assert_equal_results(load(back), load(stock))

    # in ASE, with MACE's calculator, and exported, with tables
    exported, atoms = tmp_path / "gaunt.pt", molecule()
    assert cli.main(["export", str(gaunt), str(exported)]) == 0
    assert "Radial tables of" in capsys.readouterr().out
    expected = MACECalculator(stock, default_dtype="float64").get_forces(atoms)
    for calculator, bound in (
        (MACECalculator(gaunt, default_dtype="float64"), 1e-10),
        (GauntCalculator(exported), 1e-5),
    ):
        np.testing.assert_allclose(calculator.get_forces(atoms), expected, rtol=0, atol=bound)


def test_nothing_is_written_in_vain(tmp_path, capsys):
    source, target = tmp_path / "a.model", tmp_path / "b.model"
    target.write_text("kept")
    for write, message in (
        (lambda: None, "there is no file"),
        (lambda: source.write_text("no model"), "it is no MACE model"),
        (lambda: torch.save(make_model(**TINY), source), "its convolution 1 is 'aligned'"),
        (lambda: torch.save(make_stock(**TINY, use_so3=True), source), "it has no parity"),
    ):
        write()
        assert cli.main(["convert", str(source), str(target)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("gaunt convert: ")
        assert message in line
        assert target.read_text() == "kept"
