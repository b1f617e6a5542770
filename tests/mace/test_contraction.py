"""Stock contractions, rewritten as ``full``."""

import itertools
import math

import mace  # noqa: F401 (before e3nn, see ../e3nn_o3)
from mace.modules.symmetric_contraction import SymmetricContraction

import numpy as np
import pytest
import torch

from gaunt_plugin.layers import GauntManyBody
from gaunt_plugin.mace.contraction import ContractionMap

from ..e3nn_o3 import o3
from ..layers.conftest import _double  # noqa: F401 (float64, one seed)
from ..tolerances import assert_close

CASES = {
    "scalars": ("3x0e+3x1o+3x2e", "3x0e"),
    "vectors": ("3x0e+3x1o+3x2e+3x3o", "3x0e+3x1o"),
    "tensors": ("3x0e+3x1o+3x2e", "3x0e+3x1o+3x2e"),
    "both parities": ("3x0e+3x0o+3x1e+3x1o", "3x0o+3x1e+3x0e"),
    "not in the input": ("3x0e+3x1o", "3x0e+3x2e"),
    "brackets": ("3x0e+3x1o+3x2e", "3x0e+3x2o"),
}


def pair(name, correlation, elements=2):
    irreps = [o3.Irreps(text) for text in CASES[name]]
    stock = SymmetricContraction(*irreps, correlation, num_elements=elements)
    return stock, GauntManyBody(*irreps, correlation, elements, "full")


def reduce(stock):
    """Independent symmetric couplings instead of all paths, as ``use_reduced_cg`` takes them."""
    for contraction, irrep in zip(stock.contractions, stock.irreps_out, strict=True):
        components = [] if irrep.ir.l == 0 else [2 * irrep.ir.l + 1]
        for n in range(1, contraction.correlation + 1):
            U = contraction.U_tensors(n)
            first = len(components)
            axes = itertools.permutations(range(first, first + n))
            head = list(range(first))
            U = sum(U.permute(*head, *p, first + n) for p in axes) / math.factorial(n)
            left, values, _ = np.linalg.svd(U.flatten(0, -2).numpy(), full_matrices=False)
            count = max(1, int((values > 1e-9 * values[0]).sum()))
            reduced = torch.from_numpy(left[:, :count]).view(*U.shape[:-1], count) * (U != 0).any()
            setattr(contraction, f"U_matrix_{n}", reduced.contiguous())
            last = n == contraction.correlation
            old = contraction.weights_max if last else contraction.weights[-n]
            new = torch.nn.Parameter(torch.randn(old.shape[0], count, old.shape[2]))
            if last:
                contraction.weights_max = new
            else:
                contraction.weights[-n] = new
    return stock


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("correlation", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_the_stock_ones(name, correlation, reduced):
    if name in ("not in the input", "brackets") and correlation == 1:
        return  # refused by the layer
    stock, full = pair(name, correlation)
    if reduced:
        reduce(stock)
    full_of = ContractionMap(stock, full)
    weights = dict(stock.named_parameters())
    x = torch.randn(5, 3, full.dims_in, requires_grad=True)
    attrs = torch.eye(2)[torch.arange(5) % 2]
    wanted = [x, *(w for w in weights.values() if w.requires_grad)]

    def passes(function):
        out = function()
        return [out, *torch.autograd.grad(out.sin().sum(), wanted, materialize_grads=True)]

    expected = passes(lambda: stock(x, attrs))
    rewritten = full_of.to_full(weights)
    assert rewritten.keys() == full.state_dict().keys()
    for a, b in zip(
        passes(lambda: torch.func.functional_call(full, rewritten, (x, attrs))),
        expected,
        strict=True,
    ):
        assert_close(a, b, "program")


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name):
    stock, full = pair(name, 3)
    maps = ContractionMap(stock, full)
    x, attrs = torch.randn(5, 3, full.dims_in), torch.eye(2)[torch.arange(5) % 2]
    expected = full(x, attrs)
    weights = full.state_dict()
    back = maps.to_stock(weights)
    assert stock.load_state_dict(back, strict=False).unexpected_keys == []
    assert_close(stock(x, attrs), expected, "program")
    for key, w in maps.to_full(stock.state_dict()).items():
        assert_close(w, weights[key], "program")


def test_couplings_rounded_to_float32():
    with torch.no_grad():
        stock, full = pair("vectors", 3)
        full.load_state_dict(
            ContractionMap(stock.float(), full.float()).to_full(stock.state_dict())
        )
        x, attrs = (
            torch.randn(5, 3, full.dims_in).float(),
            torch.eye(2)[torch.arange(5) % 2].float(),
        )
        assert_close(full(x, attrs), stock(x, attrs), "program32")


def test_wrong_pairs():
    stock, full = pair("vectors", 3)
    with pytest.raises(ValueError, match=r"correlation 3; the rewriting .* correlation 2"):
        ContractionMap(stock, pair("vectors", 2)[1])
    with pytest.raises(ValueError, match=r"the stock contraction is .*2e -> 3x0e, "):
        ContractionMap(pair("scalars", 3)[0], full)
    with pytest.raises(ValueError, match="weights of 3 elements, the rewriting of 2"):
        ContractionMap(pair("vectors", 3, elements=3)[0], full)
    with pytest.raises(ValueError, match="parametrization 'full'"):
        ContractionMap(stock, GauntManyBody(*CASES["vectors"], 3, 2))
    stock.contractions[0].U_matrix_3[0, 0, 4] += 1
    with pytest.raises(ValueError, match=r"couplings of 3 factors to degree 0 are not those"):
        ContractionMap(stock, full)
