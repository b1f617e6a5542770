"""Grid and fast Fourier transforms: the same numbers and the same weights."""

import pytest
import torch

from gaunt_plugin.layers import GauntConvolution, GauntManyBody, GauntSelfmix, GauntTensorProduct
from gaunt_plugin.layers._method import choose_method, method_cost

from ..e3nn_o3 import LMAX
from ..tolerances import assert_close
from . import cases
from .cases import both, natural

LAYERS = {
    "power": lambda l, m: GauntManyBody(natural(1, l), natural(1, l), 2, 3, views=2, method=m),
    "power, 3": lambda l, m: GauntManyBody(natural(1, l), natural(1, 2), 3, 3, views=2, method=m),
    "paper, 4": lambda l, m: GauntManyBody(natural(1, l), natural(1, 1), 4, 3, "paper", method=m),
    "power of both parities": lambda l, m: GauntManyBody(
        both(1, l), both(1, 1), 3, 3, views=1, method=m
    ),
    "nested": lambda l, m: GauntManyBody(
        natural(1, l), "0e+1o", 3, 3, "nested", 1, method=m, antisymmetric=True
    ),
    "convolution": lambda l, m: GauntConvolution(
        natural(2, l), natural(1, l), natural(2, l), method=m
    ),
    "convolution of few": lambda l, m: GauntConvolution(
        natural(1, l)[l:], natural(1, 2), natural(1, l)[l:], method=m
    ),
    "selfmix": lambda l, m: GauntSelfmix(natural(2, l), method=m),
}


@pytest.mark.parametrize("lmax", [1, 2, 3, 5, 8, LMAX])
@pytest.mark.parametrize("name", LAYERS)
def test_fourier_equals_grid(name, lmax):
    grid, fourier = (LAYERS[name](lmax, method) for method in ("grid", "fourier"))
    fourier.load_state_dict(grid.state_dict())
    inputs = cases.inputs(grid, nodes=3, edges=4)
    expected = cases.run(grid, inputs)
    assert expected.abs().max() > 1e-3
    assert_close(cases.run(fourier, inputs), expected, "equivariance")
    assert "method=fourier," in repr(fourier)
    assert "method=grid," in repr(grid)


@pytest.mark.parametrize("name", LAYERS)
def test_auto_is_the_cheaper_one_and_says_so(name):
    layer = LAYERS[name](2, "auto")
    assert "method=grid (auto)," in repr(layer)
    with pytest.raises(ValueError, match="'cg'; possible: auto, grid, fourier"):
        LAYERS[name](2, "cg")


def test_auto_is_the_default():
    for layer in (
        GauntTensorProduct("0e+1o", "0e+1o", "0e+1o"),
        GauntSelfmix("0e+1o"),
        GauntConvolution("0e+1o", "0e+1o", "0e+1o"),
        GauntManyBody("0e+1o", "0e+1o", 3, 1),
    ):
        assert layer.method == "auto"


def test_choice_follows_the_count():
    for factors in (2, 3, 4):
        for l in range(1, 13):
            counts = {name: method_cost(name, (l,) * factors, l) for name in ("grid", "fourier")}
            assert choose_method("auto", (l,) * factors, l) == min(counts, key=counts.get)
            assert choose_method("fourier", (l,) * factors, l) == "fourier"
            assert choose_method("grid", (l,) * factors, l) == "grid"


def test_no_rows():
    """Sums over nothing: the FFT itself refuses them."""
    layer = LAYERS["convolution"](2, "fourier")
    x, vectors, weights, edge_index = cases.inputs(layer, nodes=0, edges=0)
    assert cases.run(layer, (x, vectors, weights, edge_index)).shape == (0, layer.irreps_out.dim)
    assert torch.equal(
        cases.run(layer, (torch.ones(2, x.shape[1]), vectors, weights, edge_index)),
        torch.zeros(2, layer.irreps_out.dim),
    )
