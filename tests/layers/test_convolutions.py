import pytest
import torch

from gaunt_plugin.layers import AlignedConvolution, GauntConvolution

from ..e3nn_o3 import o3
from ..tolerances import TOLERANCES, assert_close
from . import cases

EVERY = "0e+1o+2e+3o"


def harmonics(irreps, vectors):
    return o3.spherical_harmonics(
        o3.Irreps(irreps), vectors, normalize=True, normalization="component"
    )


def pairs(edges):
    """Graph in which node i sends one message, to node i."""
    return torch.arange(edges).repeat(2, 1)


def outputs_per_weight(layer, x, vectors, radial):
    """Outputs for each weight equal to ``radial`` on all edges and the others zero."""
    edges = len(vectors)
    attrs = harmonics(layer.irreps_edge, vectors)
    columns = []
    for i in range(layer.weight_numel):
        weights = torch.zeros(edges, layer.weight_numel)
        weights[:, i] = radial
        columns.append(layer(x, attrs, weights, pairs(edges)).flatten())
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("lmax_in", [0, 1, 2])
def test_aligned_spans_every_coupling_of_clebsch_gordan(lmax_in):
    irreps_in = o3.Irreps(EVERY)[: lmax_in + 1]
    layer = AlignedConvolution(irreps_in, EVERY, EVERY)
    edges, fit, fresh = 30, slice(15), slice(15, 30)
    x, vectors, radial = (
        torch.randn(edges, irreps_in.dim),
        torch.randn(edges, 3),
        torch.randn(edges),
    )
    basis, new = (
        outputs_per_weight(layer, x[part], vectors[part], radial[part]) for part in (fit, fresh)
    )
    paths = 0
    for l1 in range(lmax_in + 1):
        for l2 in range(4):
            for l3 in range(abs(l1 - l2), min(l1 + l2, 3) + 1):
                if (l1 + l2 + l3) % 2:
                    continue
                paths += 1
                y = torch.zeros(edges, 16)
                y[:, l3**2 : (l3 + 1) ** 2] = radial[:, None] * torch.einsum(
                    "ei,ej,ijk->ek",
                    x[:, l1**2 : (l1 + 1) ** 2],
                    harmonics([(1, (l2, (-1) ** l2))], vectors),
                    o3.wigner_3j(l1, l2, l3, dtype=torch.float64),
                )
                solution = torch.linalg.lstsq(basis, y[fit].reshape(-1, 1)).solution
                assert_close(new @ solution, y[fresh].reshape(-1, 1), "span")
    assert paths == {0: 4, 1: 10, 2: 17}[lmax_in]


@pytest.mark.parametrize(("irreps_in", "paths"), [("1e", 9), ("0o+1o+1e+2o", 33)])
def test_aligned_spans_every_coupling_with_both_parities(irreps_in, paths):
    """Also the antisymmetric ones, l1 + l2 + l3 odd, that plain products on the sphere miss."""
    irreps_in = o3.Irreps(irreps_in)
    irreps_out = o3.Irreps("0e+0o+1o+1e+2e+2o+3o+3e")
    layer = AlignedConvolution(
        irreps_in, EVERY, [x for x in irreps_out if x.ir != o3.Irrep("0e") or irreps_in.dim > 3]
    )
    irreps_out = layer.irreps_out
    edges, fit, fresh = 40, slice(20), slice(20, 40)
    x, vectors = torch.randn(edges, irreps_in.dim), torch.randn(edges, 3)
    ones = torch.ones(edges)
    basis, new = (
        outputs_per_weight(layer, x[part], vectors[part], ones[part]) for part in (fit, fresh)
    )
    y = harmonics(EVERY, vectors)
    found = 0
    for (_, ir1), s1 in zip(irreps_in, irreps_in.slices(), strict=True):
        for (_, ir2), s2 in zip(o3.Irreps(EVERY), o3.Irreps(EVERY).slices(), strict=True):
            for (_, ir3), s3 in zip(irreps_out, irreps_out.slices(), strict=True):
                if ir3 not in ir1 * ir2:
                    continue
                found += 1
                target = torch.zeros(edges, irreps_out.dim)
                target[:, s3] = torch.einsum(
                    "ei,ej,ijk->ek",
                    x[:, s1],
                    y[:, s2],
                    o3.wigner_3j(ir1.l, ir2.l, ir3.l, dtype=torch.float64),
                )
                solution = torch.linalg.lstsq(basis, target[fit].reshape(-1, 1)).solution
                assert_close(new @ solution, target[fresh].reshape(-1, 1), "span")
    assert found == paths


@pytest.mark.parametrize("irreps_in", ["0e", "0e+1o", "0e+1o+2e", "1o+3o"])
def test_aligned_reproduces_gaunt(irreps_in):
    gaunt = GauntConvolution(irreps_in, EVERY, EVERY)
    aligned = AlignedConvolution(irreps_in, EVERY, EVERY)
    x, vectors, ones = torch.randn(20, gaunt.irreps_in.dim), torch.randn(20, 3), torch.ones(20)
    # One row of aligned weights for each Gaunt weight, found on one-edge messages ...
    targets = outputs_per_weight(gaunt, x, vectors, ones)
    basis = outputs_per_weight(aligned, x, vectors, ones)
    table = torch.linalg.lstsq(basis, targets).solution.T
    # ... gives the same layer for any weights, on another graph and with more channels.
    channels, edges = 3, 25
    wide = [
        cls(*(o3.Irreps([(n, ir) for _, ir in o3.Irreps(irreps)]) for n, irreps in every))
        for cls in (GauntConvolution, AlignedConvolution)
        for every in [[(channels, irreps_in), (1, EVERY), (channels, EVERY)]]
    ]
    x = torch.randn(8, wide[0].irreps_in.dim)
    attrs = harmonics(EVERY, torch.randn(edges, 3))
    edge_index = torch.randint(8, (2, edges))
    weights = torch.randn(edges, gaunt.weight_numel, channels)
    expected = wide[0](x, attrs, weights.flatten(1), edge_index)
    # elc,lp->epc
    same = torch.einsum("elc,lp->epc", weights, table).flatten(1)
    assert_close(wide[1](x, attrs, same, edge_index), expected, "span")


@pytest.mark.parametrize("name", cases.CONVOLUTIONS)
def test_a_message_has_unit_variance(name):
    layer = cases.BUILD[name]()
    edges = 20_000
    x, vectors, weights, _ = cases.inputs(layer, nodes=edges, edges=edges)
    y = cases.run(layer, (x, vectors, weights, pairs(edges)))
    for part in y.split([ir.dim * mul for mul, ir in layer.irreps_out], dim=1):
        assert_close(part.square().mean().sqrt(), torch.tensor(1.0), "statistic")


# Directions where the frame's rotation is singular, changes its branch, or is nothing special,
# and ways through them.
POINTS = [(0, 1, 0), (0, -1, 0), (1, 0, 0), (0, 0, -1), (0.6, 0, 0.8), (0.3, 1e-9, 0.4), (1, 2, -3)]
WAYS = [(1, 0, 0.5), (0, 1, 0), (-0.3, 0.7, 0.2)]


def derivatives_along(layer, x, weights, point, way, t):
    """Value, first and second derivative at t, in fixed mixtures of the output's components."""
    t = torch.tensor(t, requires_grad=True)
    bend = torch.tensor([0.2, -0.1, 0.3])
    vectors = torch.tensor(point, dtype=t.dtype) + t * torch.tensor(way) + t**2 * bend
    y = cases.run(layer, (x, vectors[None], weights, torch.tensor([[0], [1]])))
    mixture = torch.cos(torch.arange(3 * y.numel(), dtype=y.dtype)).view(3, -1)
    results = []
    for value in mixture @ y.flatten():
        (first,) = torch.autograd.grad(value, t, create_graph=True)
        (second,) = torch.autograd.grad(first, t, retain_graph=True)
        results.append(torch.stack([value, first, second]).detach())
    return torch.stack(results, dim=1)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("way", WAYS)
def test_aligned_is_smooth(point, way):
    layer = AlignedConvolution("0e+1o+2e+3o", "1o", "0e+1o+2e+3o")
    x, weights = torch.randn(2, 16), torch.randn(1, layer.weight_numel)

    def at(t):
        return derivatives_along(layer, x, weights, point, way, t)

    here, step = at(0.0), 1e-4
    before, after = at(-step), at(step)
    size = here.abs().amax(1).clamp_min(1)
    limit = 100 * TOLERANCES["derivative"] * size[1:]
    # First and second derivative against differences of values and of first derivatives.
    differences = ((after - before) / (2 * step))[:2]
    assert ((differences - here[1:]).abs().amax(1) < limit).all()
    # No jump across the point, the second derivative included.
    near = at(1e-8) - at(-1e-8)
    assert (near.abs().amax(1) < TOLERANCES["derivative"] * size).all()


@pytest.mark.parametrize("pole", [(0, 1, 0), (0, -1, 0)])
@pytest.mark.parametrize("way", WAYS)
def test_aligned_near_the_polar_axis_is_its_taylor_series(pole, way):
    """Exactly on the axis and 1e-12 to 1e-3 beside it: no jump, no loss of digits."""
    irreps = "0e+0o+1o+1e+2e+3o+3e+4e"
    layer = AlignedConvolution(irreps, "1o", irreps)
    x, weights = torch.randn(2, layer.irreps_in.dim), torch.randn(1, layer.weight_numel)

    def at(t):
        return derivatives_along(layer, x, weights, pole, way, t)

    zero = at(0.0)
    assert zero.isfinite().all()
    # Third derivatives are of the size of l^3 times the values.
    third = 100 * zero.abs().max()
    for t in (1e-12, 1e-10, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3):
        for s in (t, -t):
            value, first, second = at(s)
            series = zero[0] + s * zero[1] + s**2 / 2 * zero[2], zero[1] + s * zero[2], zero[2]
            rounding = 1e-12 * zero.abs().max()
            assert (value - series[0]).abs().max() < t**3 * third + rounding
            assert (first - series[1]).abs().max() < t**2 * third + rounding
            assert (second - series[2]).abs().max() < t * third + rounding


@pytest.mark.parametrize("name", cases.CONVOLUTIONS)
def test_exact_axes_and_zero_vectors_give_finite_numbers(name):
    layer = cases.BUILD[name]()
    axes = torch.cat([torch.eye(3), -torch.eye(3), torch.zeros(1, 3)])
    x, _, weights, _ = cases.inputs(layer, nodes=len(axes), edges=len(axes))
    vectors = axes.clone().requires_grad_()
    y = cases.run(layer, (x, vectors, weights, pairs(len(axes))))
    (first,) = torch.autograd.grad(y.sum(), vectors, create_graph=True)
    assert y.isfinite().all()
    assert first.isfinite().all()
    if first.requires_grad:
        (second,) = torch.autograd.grad(first.square().sum(), vectors)
        assert second[:6].isfinite().all()
    # The limit, not only a number.
    close = torch.nn.functional.normalize(axes[:6] + 1e-9, dim=1)
    there = cases.run(layer, (x[:6], close, weights[:6], pairs(6)))
    assert (there - y[:6]).abs().max() < TOLERANCES["derivative"]


@pytest.mark.parametrize("name", cases.CONVOLUTIONS)
@pytest.mark.parametrize(("nodes", "edges"), [(0, 0), (1, 0), (4, 0), (1, 3)])
def test_few_nodes_and_edges(name, nodes, edges):
    layer = cases.BUILD[name]()
    x, vectors, weights, edge_index = cases.inputs(layer, nodes, edges)
    for t in (x, vectors, weights):
        t.requires_grad_()
    y = cases.run(layer, (x, vectors, weights, edge_index))
    assert y.shape == (nodes, layer.irreps_out.dim)
    assert y.requires_grad
    grads = torch.autograd.grad(y.sum(), (x, vectors, weights), materialize_grads=True)
    if edges == 0:
        assert (y == 0).all()
        assert all((g == 0).all() for g in grads)
    else:
        assert y.abs().max() > 0


@pytest.mark.parametrize("name", cases.CONVOLUTIONS)
def test_messages_add_up(name):
    """The output is a sum over edges, linear in features and in weights."""
    layer = cases.BUILD[name]()
    x, vectors, weights, edge_index = cases.inputs(layer, nodes=4, edges=7)
    whole = cases.run(layer, (x, vectors, weights, edge_index))
    by_edge = sum(
        cases.run(layer, (x, vectors[e], weights[e], edge_index[:, e]))
        for e in (slice(0, 3), slice(3, 7))
    )
    assert_close(by_edge, whole, "oracle")
    y = cases.run(layer, (2 * x, vectors, 3 * weights, edge_index))
    assert_close(y, 6 * whole, "oracle")
    untouched = ~torch.isin(torch.arange(4), edge_index[1])
    assert (whole[untouched] == 0).all()


@pytest.mark.parametrize("name", cases.CONVOLUTIONS)
def test_memory_layout_of_the_inputs_does_not_matter(name):
    layer = cases.BUILD[name]()
    arguments = cases.arguments(layer, cases.inputs(layer))
    strided = [torch.stack([a, a], dim=-1)[..., 0].T.contiguous().T for a in arguments]
    assert not strided[0].is_contiguous()
    assert_close(layer(*strided), layer(*arguments), "oracle")
