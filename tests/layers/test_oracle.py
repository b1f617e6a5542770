"""Every layer against explicit coupling coefficients and loops."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaunt_plugin import sphere
from gaunt_plugin.layers import AlignedConvolution, GauntConvolution, GauntManyBody

from ..e3nn_o3 import o3
from ..tolerances import assert_close
from . import oracles

DEGREES = st.sets(st.integers(0, 4), min_size=1).map(sorted)
MULTIPLICITY = st.integers(1, 3)
SEED = st.integers(0, 2**31)


def irreps(ls, mul):
    return o3.Irreps([(mul, (l, (-1) ** l)) for l in ls])


def reachable(ls, correlation):
    """Natural degrees up to 4 that products of up to ``correlation`` factors contain."""
    found, last = set(ls), set(ls)
    for _ in range(correlation - 1):
        last = {
            k
            for a in last
            for b in ls
            for k in range(abs(a - b), a + b + 1)
            if (a + b + k) % 2 == 0
        }
        found |= last
    return sorted(l for l in found if l <= 4)


def test_oracles_coefficients_are_gaunt_coefficients():
    for l1 in range(5):
        for l2 in range(5):
            for l3 in range(9):
                expected = sphere.gaunt(l1, l2, l3)
                assert np.abs(oracles.gaunt(l1, l2, l3) - expected).max() < 1e-13


@st.composite
def many_body_layers(draw, parametrization):
    ls, mul = draw(DEGREES), draw(MULTIPLICITY)
    correlation = draw(st.integers(1, 3 if parametrization == "full" else 4))
    out = draw(st.sets(st.sampled_from(reachable(ls, correlation)), min_size=1).map(sorted))
    elements, rank = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    torch.manual_seed(draw(SEED))
    return GauntManyBody(
        irreps(ls, mul), irreps(out, mul), correlation, elements, parametrization, rank
    )


def check_many_body(layer, nodes):
    elements = torch.randint(layer.num_elements, (nodes,))
    one_hot = torch.nn.functional.one_hot(elements, layer.num_elements).to(torch.float64)
    x = torch.randn(nodes, layer.irreps_in[0].mul, sum(ir.dim for _, ir in layer.irreps_in))
    expected = oracles.many_body(layer, x.numpy(), elements.numpy())
    assert_close(layer(x, one_hot), expected, "oracle")


@given(
    st.lists(
        st.sampled_from([o3.Irrep(l, p) for l in range(3) for p in (1, -1)]),
        unique=True,
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["power", "paper", "full", "nested", "brackets"]),
    st.integers(2, 4),
    st.integers(1, 2),
    SEED,
)
def test_products_of_both_parities(irs, parametrization, correlation, mul, seed):
    irs = list(dict.fromkeys([*irs, o3.Irrep("1e")]))  # at least one of pseudo parity
    if parametrization == "full":
        correlation = min(correlation, 3)
    torch.manual_seed(seed)
    out = list(dict.fromkeys([*reversed(irs), o3.Irrep("0e")]))
    both = [o3.Irreps([(mul, ir) for ir in side]) for side in (irs, out)]
    brackets = parametrization == "brackets"
    name = "nested" if brackets else parametrization
    layer = GauntManyBody(*both, correlation, 2, name, rank=2, antisymmetric=brackets)
    elements = torch.tensor([0, 1, 1])
    one_hot = torch.nn.functional.one_hot(elements, 2).to(torch.float64)
    x = torch.randn(3, mul, sum(ir.dim for ir in irs))
    expected = oracles.parity_many_body(layer, x.numpy(), elements.numpy())
    assert_close(layer(x, one_hot), expected, "oracle")


@given(many_body_layers("power"), st.integers(1, 4))
def test_power(layer, nodes):
    check_many_body(layer, nodes)


@given(many_body_layers("paper"), st.integers(1, 4))
def test_paper(layer, nodes):
    check_many_body(layer, nodes)


@given(many_body_layers("nested"), st.integers(1, 4))
def test_nested(layer, nodes):
    check_many_body(layer, nodes)


@given(many_body_layers("full"), st.integers(1, 4))
def test_full(layer, nodes):
    check_many_body(layer, nodes)


@st.composite
def edges(draw, layer):
    """Node features, directions, weights and edges, with self-edges and repeated edges."""
    torch.manual_seed(draw(SEED))
    nodes, count = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    directions = torch.nn.functional.normalize(torch.randn(count, 3), dim=1)
    if draw(st.booleans()):  # along an axis
        directions[0] = torch.eye(3)[draw(st.integers(0, 2))] * draw(st.sampled_from([1, -1]))
    return (
        torch.randn(nodes, layer.irreps_in.dim),
        directions,
        torch.randn(count, layer.weight_numel),
        torch.randint(nodes, (2, count)),
    )


def check_convolution(layer, oracle, x, directions, weights, edge_index):
    attrs = o3.spherical_harmonics(
        layer.irreps_edge, directions, normalize=True, normalization="component"
    )
    expected = oracle(layer, *(t.numpy() for t in (x, directions, weights, edge_index)))
    assert_close(layer(x, attrs, weights, edge_index), expected, "oracle")


@st.composite
def gaunt_convolutions(draw):
    ls, ls_edge, mul = draw(DEGREES), draw(DEGREES), draw(MULTIPLICITY)
    reached = [
        L for L in range(5) if any(oracles.three_j_zero(a, b, L) for a in ls for b in ls_edge)
    ]
    if not reached:
        reached = [abs(ls[0] - ls_edge[0])]
    out = draw(st.sets(st.sampled_from(reached), min_size=1).map(sorted))
    layer = GauntConvolution(irreps(ls, mul), irreps(ls_edge, 1), irreps(out, mul))
    return layer, draw(edges(layer))


@given(gaunt_convolutions())
def test_gaunt_convolution(case):
    layer, inputs = case
    check_convolution(layer, oracles.gaunt_convolution, *inputs)


@st.composite
def aligned_convolutions(draw):
    ls, out, mul = draw(DEGREES), draw(DEGREES), draw(MULTIPLICITY)
    others = draw(st.sets(st.integers(0, 4)))
    ls_edge = sorted(others | (set(out) if ls == [0] else {1}))
    layer = AlignedConvolution(irreps(ls, mul), irreps(ls_edge, 1), irreps(out, mul))
    return layer, draw(edges(layer))


@given(aligned_convolutions())
def test_aligned_convolution(case):
    layer, inputs = case
    check_convolution(layer, oracles.aligned_convolution, *inputs)


@given(st.sets(st.integers(0, 4), min_size=1).map(sorted), MULTIPLICITY, st.data())
def test_aligned_convolution_of_scalars(out, mul, data):
    layer = AlignedConvolution(irreps([0], mul), irreps(range(5), 1), irreps(out, mul))
    check_convolution(layer, oracles.aligned_convolution, *data.draw(edges(layer)))


@st.composite
def aligned_convolutions_of_both_parities(draw):
    every = st.sets(st.integers(0, 7), min_size=1).map(
        lambda found: [o3.Irrep(i // 2, (-1) ** i) for i in found]
    )
    irs, mul = draw(every), draw(MULTIPLICITY)

    def reached(ir3):
        return any(ir1.p * ir3.p == (-1) ** (ir1.l + ir3.l) or min(ir1.l, ir3.l) > 0 for ir1 in irs)

    out = [ir for ir in draw(every) if reached(ir)] or irs
    layer = AlignedConvolution([(mul, ir) for ir in irs], "0e+1o+2e+3o", [(mul, ir) for ir in out])
    return layer, draw(edges(layer))


@given(aligned_convolutions_of_both_parities())
def test_aligned_convolution_of_both_parities(case):
    layer, inputs = case
    check_convolution(layer, oracles.aligned_convolution, *inputs)
