"""Equivariant feature interaction."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaunt_plugin.layers import GauntSelfmix

from ..e3nn_o3 import o3
from ..tolerances import assert_close
from . import cases, oracles

IRREPS = [o3.Irrep(l, p) for l in range(4) for p in (1, -1)]


@given(
    st.lists(st.sampled_from(IRREPS), unique=True, max_size=3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    st.integers(1, 3),
)
def test_oracle(irs, mul, rank, antisymmetric, rows):
    # With even scalars there is always a product.
    irreps = o3.Irreps([(mul, ir) for ir in dict.fromkeys([*irs, o3.Irrep("0e")])])
    layer = GauntSelfmix(irreps, rank, antisymmetric)
    with torch.no_grad():
        layer.weight_self.normal_()
    x = torch.randn(rows, irreps.dim)
    assert_close(layer(x), oracles.selfmix(layer, x.numpy()), "oracle")


def flattened(x, lmax):
    """[nodes, components, channels] to e3nn's flat layout."""
    parts = x.split([2 * l + 1 for l in range(lmax + 1)], dim=1)
    return torch.cat([part.mT.flatten(1) for part in parts], dim=1)


@pytest.mark.parametrize("lmax", [0, 2, 6])
def test_embedding(lmax):
    """[nodes, (lmax+1)^2, channels], as in EquiformerV2."""
    channels = 3
    irreps = o3.Irreps([(channels, (l, (-1) ** l)) for l in range(lmax + 1)])
    layer = GauntSelfmix(irreps, rank=2)
    x = torch.randn(5, (lmax + 1) ** 2, channels)
    out = layer(x)
    assert out.shape == x.shape
    flat = flattened(x, lmax)
    assert_close(flattened(out, lmax), layer(flat), "oracle")
    matrix = -o3.rand_matrix()
    turn = o3.Irreps([(1, ir) for _, ir in irreps]).D_from_matrix(matrix)
    assert_close(layer(turn @ x), turn @ out, "equivariance")
    scripted = torch.jit.script(layer)
    assert_close(scripted(x), out, "program")
    assert_close(scripted(flat), layer(flat), "program")


@pytest.mark.parametrize("irreps", ["0e+1o+2e+3o", "0e+0o+1o+1e+2e+2o", "1o+1e", "0e"])
def test_unit_variance_at_initialisation(irreps):
    irreps = o3.Irreps([(300, ir) for _, ir in o3.Irreps(irreps)])
    layer = GauntSelfmix(irreps, rank=8)
    with torch.no_grad():
        out = layer(torch.randn(100, irreps.dim))
    for where in irreps.slices():
        assert_close(out[:, where].square().mean().sqrt(), torch.tensor(1.0), "scale")


def test_brackets_of_different_degrees_are_there():
    layer = GauntSelfmix("1o+2e+1e")
    x = torch.randn(4, 11)
    x[:, -3:] = 0
    # without pseudo input, pseudo output comes from {A_1, A_2} alone, but l3 = 1 is even: 1+2+1
    assert all(path.irreps[0] != path.irreps[1] for path in layer.paths if path.antisymmetric)
    assert (layer(x)[:, -3:] == 0).all()
    layer = GauntSelfmix("1o+2e+2o")
    x = torch.randn(4, 13)
    x[:, -5:] = 0
    assert layer(x)[:, -5:].abs().amax(1).min() > 0


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"rank .*got 0"):
        GauntSelfmix("0e", rank=0)
    with pytest.raises(ValueError, match="2x1o with itself"):
        GauntSelfmix("2x1o")
    with pytest.raises(ValueError, match="one multiplicity"):
        GauntSelfmix("2x0e+1x1o")


def test_parts_that_no_product_reaches_stay():
    layer = GauntSelfmix("1o+3o+2e", antisymmetric=False)
    assert cases.irreps_in(layer) == [layer.irreps_out]
    layer = GauntSelfmix("1x0e+1x5o")  # 5 x 5 -> 5 is odd, but 0 x 5 -> 5
    assert {str(path.irreps[2]) for path in layer.paths} == {"0e", "5o"}
    layer = GauntSelfmix("1x1o+1x2e+1x0o")
    x = torch.randn(3, 9)
    assert torch.equal(layer(x)[:, -1:], x[:, -1:])
