"""The bilinear product: oracle, completeness, conventions of e3nn."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gaunt_plugin.layers import GauntTensorProduct, reachable_paths

from ..e3nn_o3 import o3
from ..tolerances import assert_close
from . import cases, oracles

IRREPS = [o3.Irrep(l, p) for l in range(4) for p in (1, -1)]
ENTRIES = st.lists(st.tuples(st.integers(1, 3), st.sampled_from(IRREPS)), min_size=1, max_size=4)
LMAX = 6
EVERY = o3.Irreps([(1, (l, p)) for l in range(LMAX + 1) for p in (1, -1)])


@st.composite
def layers(draw):
    mode = draw(st.sampled_from(["uuu", "uvw"]))
    sides = [draw(ENTRIES) for _ in range(2)]
    mul = draw(st.integers(1, 2))
    if mode == "uuu":
        sides = [[(mul, ir) for ir in dict.fromkeys(ir for _, ir in side)] for side in sides]
    antisymmetric = draw(st.booleans())
    options = reachable_paths(*map(o3.Irreps, sides), IRREPS_OUT, antisymmetric)
    reached = sorted({path.irreps[2] for path in options})
    if not reached:  # 0e times itself is always reached
        sides = [[(mul, o3.Irrep("1e"))]] * 2
        reached = [o3.Irrep("0e")]
    out = draw(st.lists(st.sampled_from(reached), min_size=1, max_size=4))
    if mode == "uuu":
        out = [(mul, ir) for ir in dict.fromkeys(out)]
    else:
        out = [(draw(st.integers(1, 2)), ir) for ir in out]
    torch.manual_seed(draw(st.integers(0, 2**31)))
    return GauntTensorProduct(
        *map(o3.Irreps, (sides[0], sides[1], out)),
        mode=mode,
        rank=draw(st.sampled_from([None, 1, 3])),
        antisymmetric=antisymmetric,
        shared_weights=draw(st.booleans()),
    )


IRREPS_OUT = o3.Irreps([(1, ir) for ir in IRREPS])


@given(layers(), st.integers(0, 4))
def test_oracle(layer, rows):
    x, y = torch.randn(rows, layer.irreps_in1.dim), torch.randn(rows, layer.irreps_in2.dim)
    if layer.shared_weights:
        out, weight = layer(x, y), layer.weight.detach().expand(rows, -1)
    else:
        weight = torch.randn(rows, layer.weight_numel)
        out = layer(x, y, weight)
    assert_close(out, oracles.tensor_product(layer, x.numpy(), y.numpy(), weight.numpy()), "oracle")


def test_oracles_brackets_are_antisymmetric_coefficients():
    from gaunt_plugin import sphere

    for l1, l2 in itertools.product(range(5), repeat=2):
        for l3, table in oracles.bracket(l1, l2).items():
            assert_close(sphere.antisymmetric(l1, l2, l3), table, "span")


def wigner(ir1, ir2, ir3):
    return o3.wigner_3j(ir1.l, ir2.l, ir3.l, dtype=torch.float64)


def test_every_path_of_clebsch_gordan_is_reached():
    """One set of weights per path gives a multiple of wigner_3j, and nothing else."""
    layer = GauntTensorProduct(EVERY, EVERY, EVERY, "uuu", shared_weights=False)
    order = [layer.product.irreps1, layer.product.irreps2, layer.product.irreps3]
    allowed = [(a, b, c) for _, a in EVERY for _, b in EVERY for _, c in EVERY if c in a * b]
    assert len(allowed) == 700
    slices = {ir: where for (_, ir), where in zip(EVERY, EVERY.slices(), strict=True)}
    weights, expected = [], []
    fit = torch.randn(2, EVERY.dim), torch.randn(2, EVERY.dim)
    factors = []
    for path in allowed:
        one_hot = torch.cat(
            [
                torch.eye(len(order[0]))[order[0].index(path[0])],
                torch.eye(len(order[1]))[order[1].index(path[1])],
                torch.ones(len(order[2])),
            ]
        )
        # Only the output's weight stays zero for other outputs.
        one_hot[-len(order[2]) :] *= torch.eye(len(order[2]))[order[2].index(path[2])]
        weights.append(one_hot)
        target = torch.zeros(2, EVERY.dim)
        a, b, c = (slices[ir] for ir in path)
        target[:, c] = torch.einsum("ni,nj,ijk->nk", fit[0][:, a], fit[1][:, b], wigner(*path))
        expected.append(target)
    weights, expected = torch.stack(weights), torch.stack(expected)
    # npk: two random inputs under the weights of every path; the first sets the factor
    out = torch.stack([layer(fit[0][n], fit[1][n], weights) for n in range(2)], dim=1)
    factors = (out * expected)[:, 0].sum(1) / expected[:, 0].square().sum(1)
    assert factors.abs().min() > 0.01
    for actual, target, factor in zip(out, expected, factors, strict=True):
        assert_close(actual, factor * target, "oracle")
    assert {path.irreps for path in layer.paths} == set(allowed)


@pytest.mark.parametrize("lmax", range(7))
def test_number_of_paths_is_that_of_e3nn(lmax):
    irreps = o3.Irreps([(1, (l, p)) for l in range(lmax + 1) for p in (1, -1)])
    tp = o3.FullyConnectedTensorProduct(
        irreps, irreps, irreps, compile_left_right=False, compile_right=False
    )
    paths = reachable_paths(irreps, irreps, irreps)
    assert len(paths) == len(tp.instructions)
    even = reachable_paths(irreps, irreps, irreps, antisymmetric=False)
    assert even == [path for path in paths if (path.l1 + path.l2 + path.l3) % 2 == 0]
    assert (len(even) < len(paths)) == (lmax > 0)


def test_paths_without_the_antisymmetric_product_are_never_reached():
    """So completeness above can fail: the symmetric layer refuses, or gives none of it."""
    with pytest.raises(ValueError, match="no symmetric product of 1x1o and 1x1o reaches 1e"):
        GauntTensorProduct("1o", "1o", "1e", antisymmetric=False)
    layer = GauntTensorProduct("1o+2o", "1o", "1e+2e", antisymmetric=False)
    v = torch.randn(5, 3)
    out = layer(torch.cat([v, torch.zeros(5, 5)], dim=1), v.roll(1, 0))
    assert (out[:, :3] == 0).all()  # 1o x 1o -> 1e
    assert out[:, 3:].abs().max() > 0


def test_one_layer_is_any_fully_connected_tensor_product():
    """With a rank of one per path and pair of channels, weights reproduce e3nn's layer."""
    sides = [o3.Irreps(s) for s in ("2x0e+1x1o+2x1e", "1x0o+2x1o+1x2e", "2x0e+1x1e+2x1o+1x2o")]
    tp = o3.FullyConnectedTensorProduct(*sides)
    terms = [
        (ins, u, v)
        for ins in tp.instructions
        for u in range(sides[0][ins.i_in1].mul)
        for v in range(sides[1][ins.i_in2].mul)
    ]
    layer = GauntTensorProduct(*sides, rank=len(terms))
    tables = oracles.coupled(*({ir for _, ir in side} for side in sides), True)
    used = [ordered_irreps(layer, i) for i in range(3)]
    w = [
        {ir: np.zeros((muls(side, ir), len(terms))) for ir in irs}
        for side, irs in zip(sides, used, strict=True)
    ]
    views = dict(zip(map(id, tp.instructions), tp.weight_views(), strict=True))
    for r, (ins, u, v) in enumerate(terms):
        path = (sides[0][ins.i_in1].ir, sides[1][ins.i_in2].ir, sides[2][ins.i_out].ir)
        w[0][path[0]][u, r] = math.sqrt(muls(sides[0], path[0]))
        w[1][path[1]][v, r] = math.sqrt(muls(sides[1], path[1]))
        factor = np.sum(tables[path] * oracles.wigner(*(ir.l for ir in path)))
        weight = views[id(ins)][u, v].detach().numpy() * ins.path_weight
        w[2][path[2]][:, r] = weight / factor * math.sqrt(len(terms))
    flat = [*w[0].values(), *w[1].values(), *(table.T for table in w[2].values())]
    weight = torch.from_numpy(np.concatenate([table.ravel() for table in flat]))
    x, y = torch.randn(7, sides[0].dim), torch.randn(7, sides[1].dim)
    assert_close(layer(x, y, weight), tp(x, y), "oracle")


def ordered_irreps(layer, i):
    return oracles.ordered({path.irreps[i] for path in layer.paths})


def muls(irreps, ir):
    return sum(mul for mul, other in irreps if other == ir)


@pytest.mark.parametrize("normalization", ["component", "norm"])
@pytest.mark.parametrize("mode", ["uuu", "uvw"])
def test_unit_variance_at_initialisation(mode, normalization):
    irreps = o3.Irreps("4x0e+4x0o+4x1o+4x1e+4x2e+4x2o+4x3o")
    layer = GauntTensorProduct(
        irreps,
        irreps,
        irreps,
        mode,
        rank=8,
        irrep_normalization=normalization,
        shared_weights=False,
    )
    size = torch.cat(
        [torch.full((mul * ir.dim,), ir.dim**-0.5) for mul, ir in irreps]
        if normalization == "norm"
        else [torch.ones(irreps.dim)]
    )
    rows = 2000
    x, y = torch.randn(rows, irreps.dim) * size, torch.randn(rows, irreps.dim) * size
    out = layer(x, y, torch.randn(rows, layer.weight_numel)) / size
    for where in irreps.slices():
        assert_close(out[:, where].square().mean().sqrt(), torch.tensor(1.0), "statistic")


def test_every_kind_of_product_has_its_share():
    """Outputs reached both ways have both in proportion to the number of paths."""
    irreps = o3.Irreps("1o+1e+2e+2o")
    layer, even = (
        GauntTensorProduct(
            *(irreps, irreps, "1o", "uuu"), rank=32, antisymmetric=odd, shared_weights=False
        )
        for odd in (True, False)
    )
    rows = 2000
    x, y = torch.randn(rows, irreps.dim), torch.randn(rows, irreps.dim)
    weight = torch.randn(rows, layer.weight_numel)
    share = len(even.paths) / len(layer.paths)
    assert share == 0.5
    symmetric = even(x, y, weight) * math.sqrt(share)
    rest = layer(x, y, weight) - symmetric
    for part, expected in ((symmetric, share), (rest, 1 - share)):
        assert_close(part.square().mean(), torch.tensor(expected), "scale")
    assert (symmetric * rest).mean().abs() < 0.05


@pytest.mark.parametrize("name", ["product", "product mixed"])
@pytest.mark.parametrize(
    ("first", "second"), [((), ()), ((3,), ()), ((2, 3), (3,)), ((2, 1), (1, 4)), ((0, 2), (0, 2))]
)
def test_leading_axes_are_broadcast(name, first, second):
    layer = cases.BUILD[name]()
    x, y = torch.randn(*first, layer.irreps_in1.dim), torch.randn(*second, layer.irreps_in2.dim)
    shape = torch.broadcast_shapes(first, second)
    out = layer(x, y)
    assert out.shape == (*shape, layer.irreps_out.dim)
    rows = [t.expand(*shape, -1).reshape(-1, t.shape[-1]) for t in (x, y)]
    if rows[0].numel():
        each = torch.stack([layer(a, b) for a, b in zip(*rows, strict=True)])
        assert_close(out.reshape(each.shape), each, "oracle")


@pytest.mark.parametrize("name", ["product external", "product external rows"])
def test_external_weights(name):
    layer = cases.BUILD[name]()
    assert not list(layer.parameters())
    x, y, weight = cases.inputs(layer, nodes=3)
    with pytest.raises(ValueError, match="pass weight"):
        layer(x, y)
    if not layer.shared_weights:
        each = [layer(*(t[n : n + 1] for t in (x, y, weight))) for n in range(3)]
        assert_close(torch.cat(each), layer(x, y, weight), "oracle")
        shared = layer(x, y, weight[0])
        assert_close(shared, layer(x, y, weight[:1].expand(3, -1)), "oracle")
    # As in e3nn, weights may be passed to a layer that has its own.
    own = GauntTensorProduct(layer.irreps_in1, layer.irreps_in2, layer.irreps_out, "uvw", rank=2)
    new = torch.randn_like(own.weight)
    passed = own(x, y, new)
    with torch.no_grad():
        own.weight.copy_(new)
    assert_close(own(x, y), passed, "oracle")


def test_nothing_is_built_that_is_not_needed():
    natural, pseudo = "2x0e+2x1o+2x2e", "2x1e+2x2o"
    layer = GauntTensorProduct(natural, natural, natural, "uuu")
    tables = {name.removesuffix(".table") for name, _ in layer.product.named_buffers()}
    assert tables == {"values1n", "values2n", "project0"}
    layer = GauntTensorProduct(pseudo, pseudo, pseudo, "uuu")
    tables = {name.removesuffix(".table") for name, _ in layer.product.named_buffers()}
    assert tables == {"gradients1p", "gradients2p", "project3"}
    layer = GauntTensorProduct(natural, pseudo, pseudo, "uuu", antisymmetric=False)
    tables = {name.removesuffix(".table") for name, _ in layer.product.named_buffers()}
    assert tables == {"values1n", "values2p", "project1"}
    # irreps that couple to nothing have neither weights nor components
    layer = GauntTensorProduct("2x0e+2x1o+2x0o", "2x1o", "2x0e", "uuu")
    assert layer.product.irreps1 == [o3.Irrep("1o")]
    assert layer.weight_numel == 3 * 2


def test_repr_counts_paths():
    layer = GauntTensorProduct("1o+1e", "1o", "0e+1o+1e")
    assert "paths=3 (2 antisymmetric)" in repr(layer)


BAD = {
    "mode": ({"mode": "uvu"}, r"'uvu'; possible: uvw, uuu"),
    "normalization": ({"irrep_normalization": "none"}, r"'none'; possible: component, norm"),
    "rank": ({"rank": 0}, r"rank .*got 0"),
    "internal": (
        {"shared_weights": False, "internal_weights": True},
        "internal weights are shared",
    ),
    "unreachable": ({"irreps_out": "1x3o"}, r"1x0e\+1x1o and 1x0e\+1x1o reaches 3o in .*1x3o"),
    "parity": ({"irreps_out": "1x0e+1x0o"}, r"reaches 0o in irreps_out 1x0e\+1x0o"),
    "empty": ({"irreps_out": ""}, "reaches anything"),
    "multiplicities": (
        {"mode": "uuu", "irreps_out": "2x0e"},
        r"same multiplicity everywhere, got 1x0e\+1x1o.*2x0e",
    ),
    "twice": ({"mode": "uuu", "irreps_in1": "0e+0e"}, "each irrep once"),
    "different": ({"mode": "uuu", "irreps_in1": "2x0e+3x1o"}, "one multiplicity"),
}


@pytest.mark.parametrize(("changed", "message"), BAD.values(), ids=BAD)
def test_bad_arguments(changed, message):
    arguments = {"irreps_in1": "0e+1o", "irreps_in2": "0e+1o", "irreps_out": "0e+1o"}
    with pytest.raises(ValueError, match=message):
        GauntTensorProduct(**{**arguments, **changed})
