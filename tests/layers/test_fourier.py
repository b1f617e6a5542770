"""The paper's way through 2D Fourier series: the same numbers as exact quadrature."""

import numpy as np
import pytest
import torch

from gaunt_plugin.layers import FourierProduct, GauntTensorProduct
from gaunt_plugin.ops import ProjectedPowers
from gaunt_plugin.sphere import quadrature, real_harmonics

from ..tolerances import assert_close
from .cases import natural


def dim(degrees):
    return sum(2 * l + 1 for l in degrees)


@pytest.mark.parametrize(
    ("degrees_in", "degrees_out"),
    [
        ([[0, 1], [0, 1, 2]], [0, 1, 2, 3]),
        ([[3], [1, 4]], [2, 4]),
        ([[0, 1, 2], [1], [2, 3]], [0, 1, 5]),
        ([[12], [12]], [0, 12]),
    ],
)
def test_products_equal_quadrature(degrees_in, degrees_out):
    product = FourierProduct(degrees_in, degrees_out)
    rule = quadrature(sum(max(ls) for ls in degrees_in) + max(degrees_out))
    factors = [torch.randn(3, dim(ls)) for ls in degrees_in]
    field = 1.0
    for ls, c in zip(degrees_in, factors, strict=True):
        field = field * (c.numpy() @ real_harmonics(ls, rule.nodes).T)
    expected = (field * rule.weights) @ real_harmonics(degrees_out, rule.nodes)
    assert np.abs(expected).max() > 1e-3
    assert_close(product(*factors), expected, "equivariance")


@pytest.mark.parametrize("lmax", [1, 2, 3, 5])
@pytest.mark.parametrize("correlation", [2, 3, 4, 5])
def test_powers_equal_the_grid(lmax, correlation):
    """What many-body products are made of; equal factors are multiplied once."""
    degrees, degrees_out = list(range(lmax + 1)), [0, 1, 2]
    powers = ProjectedPowers(
        degrees, degrees_out, np.ones(dim(degrees)), np.ones((correlation - 1, dim(degrees_out)))
    )
    c = torch.randn(4, dim(degrees))
    product = FourierProduct([degrees] * correlation, degrees_out)
    assert_close(product(*[c] * correlation), powers(c)[:, -1], "equivariance")
    apart = product(*(c.clone() for _ in range(correlation)))
    assert_close(apart, powers(c)[:, -1], "equivariance")


@pytest.mark.parametrize("lmax", [1, 3, 6])
def test_takes_the_place_of_a_layers_product(lmax):
    """As in the benchmarks: a layer that multiplies in the paper's way."""
    irreps = natural(2, lmax)
    layer = GauntTensorProduct(irreps, irreps, irreps, "uuu")
    x, y = torch.randn(3, irreps.dim), torch.randn(3, irreps.dim)
    expected = layer(x, y)
    layer.product = FourierProduct.of_paths(layer.paths)
    assert_close(layer(x, y), expected, "equivariance")


def test_other_paths_are_refused():
    for irreps in (("0e+1o", "1o", "1e+0e"), ("1e", "1e", "0e")):
        paths = GauntTensorProduct(*irreps).paths
        with pytest.raises(ValueError, match="natural parity only"):
            FourierProduct.of_paths(paths)
