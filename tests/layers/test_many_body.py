import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from gaunt_plugin.layers import GauntManyBody
from gaunt_plugin.sphere import coupling_rms

from ..e3nn_o3 import o3
from ..tolerances import assert_close
from . import cases

LS = "0e+1o+2e+3o"
SAVED = Path(__file__).parent / "saved"
PARAMETRIZATIONS = ["power", "paper", "full", "nested"]


def outputs_per_weight(layer, x, one_hot):
    """Outputs of a layer that is linear in its weights, one column for each weight."""
    columns = []
    with torch.no_grad():
        for w in layer.parameters():
            w.zero_()
        for w in layer.parameters():
            for i in range(w.numel()):
                w.view(-1)[i] = 1
                columns.append(layer(x, one_hot).flatten())
                w.view(-1)[i] = 0
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("correlation", [1, 2, 3])
@pytest.mark.parametrize("lmax", [1, 2, 3])
def test_full_spans_maces_contraction(lmax, correlation):
    mace = pytest.importorskip(
        "mace.modules.symmetric_contraction", reason="compares with MACE's SymmetricContraction"
    )
    irreps_in = o3.Irreps(LS)[: lmax + 1]
    irreps_out = o3.Irreps("0e+1o+2e")[: lmax + 1 if correlation == 1 else 3]
    full = GauntManyBody(irreps_in, irreps_out, correlation, 1, "full")
    x, one = torch.randn(40, 1, irreps_in.dim), torch.ones(40, 1)
    fit, fresh = slice(20), slice(20, 40)
    basis = outputs_per_weight(full, x[fit], one[fit])
    new = outputs_per_weight(full, x[fresh], one[fresh])
    stock = mace.SymmetricContraction(irreps_in, irreps_out, correlation, num_elements=1)
    for _ in range(2):
        with torch.no_grad():
            for w in stock.parameters():
                w.normal_()
            y = stock(x, one)
        weights = torch.linalg.lstsq(basis, y[fit].reshape(-1, 1), driver="gelsd").solution
        assert_close(new @ weights, y[fresh].reshape(-1, 1), "span")


def test_the_other_parametrizations_do_not_span_it():
    """So the fit above can fail."""
    torch.manual_seed(0)
    paper, full = (GauntManyBody(LS, "1o", 3, 1, p) for p in ("paper", "full"))
    x, one = torch.randn(40, 1, 16), torch.ones(40, 1)
    y = full(x, one).reshape(-1, 1).detach()
    basis = outputs_per_weight(paper, x, one)
    rest = y - basis @ torch.linalg.lstsq(basis, y, driver="gelsd").solution
    assert rest.norm() > 0.1 * y.norm()


def independent_couplings(irreps_in, ir, order):
    """Multiplicity of an irrep in the symmetric power of order 2 or 3, from characters."""
    angle = 2 * math.pi * (np.arange(64) + 0.5) / 64
    total = 0
    for inverted in (False, True):

        def character(k, irreps, inverted=inverted):
            return sum(
                (x.p**k if inverted else 1)
                * sum(np.cos(m * k * angle) for m in range(-x.l, x.l + 1))
                for _, x in o3.Irreps(irreps)
            )

        one, two, three = (character(k, irreps_in) for k in (1, 2, 3))
        power = (one**2 + two) / 2 if order == 2 else (one**3 + 3 * one * two + 2 * three) / 6
        total += np.mean((1 - np.cos(angle)) * power * character(1, ir)) / 2
    assert abs(total - round(total)) < 1e-10
    return round(total)


def span(ir, order, parametrization, samples=24, **options):
    """Dimension of the span of the terms of one order, over random weights."""
    x, scales = torch.randn(8, 1, 16), torch.linspace(-1, 1, 5)
    vandermonde = torch.stack([scales**k for k in range(order + 1)], dim=1)
    columns = []
    for _ in range(samples):
        layer = GauntManyBody(LS, ir, order, 1, parametrization, rank=1, **options)
        with torch.no_grad():
            y = torch.stack([layer(s * x, torch.ones(8, 1)).flatten() for s in scales])
        columns.append(torch.linalg.lstsq(vandermonde, y).solution[order])
    values = torch.linalg.svdvals(torch.stack(columns, dim=1))
    return int((values > 1e-9 * values[0]).sum())


@pytest.mark.parametrize("ir", ["0e", "1o", "2e", "3o"])
def test_nested_products_span_every_symmetric_coupling(ir):
    couplings = independent_couplings(LS, ir, 3)
    assert couplings == {"0e": 8, "1o": 12, "2e": 14, "3o": 15}[ir]
    assert span(ir, 3, "nested") == couplings
    assert span(ir, 2, "nested") == independent_couplings(LS, ir, 2)
    if ir != "0e":
        assert span(ir, 3, "power") < couplings


@pytest.mark.parametrize("ir", ["1o", "2o", "1e", "3e"])
def test_brackets_span_every_coupling(ir):
    for order in (2, 3):
        couplings = independent_couplings(LS, ir, order)
        if couplings:
            assert span(ir, order, "nested", antisymmetric=True) == couplings
            assert span(ir, order, "full") == couplings
        else:
            assert (ir, order) == ("1e", 2)


def test_zero_pseudoscalar_of_three_factors_is_refused():
    """A_1 . (A_2 x A_3) needs three different degrees with an odd sum: 2, 3, 4 are the first."""
    assert independent_couplings(LS, "0o", 3) == 0
    with pytest.raises(ValueError, match="pseudo degree 0"):
        GauntManyBody(LS, "0o", 3, 1, "nested", antisymmetric=True)
    layer = GauntManyBody("2e+3o+4e", "0o", 3, 1, "nested", antisymmetric=True)
    x = torch.randn(5, 1, 21)
    assert layer(x, torch.ones(5, 1)).abs().min() > 0


@pytest.mark.parametrize("ir", ["0e", "0o", "1e", "2o"])
def test_full_spans_every_coupling_of_both_parities(ir):
    irreps = "0e+1e+1o+2e+2o"
    for order in (2, 3):
        layer = GauntManyBody(irreps, ir, order, 1, "full")
        found = layer.product.terms[-1].weight.numel()
        assert found == independent_couplings(irreps, ir, order)


@pytest.mark.parametrize("correlation", [1, 2, 3])
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_scale_at_initialisation_is_that_of_mace(parametrization, correlation):
    channels = 512
    irreps = [o3.Irreps([(channels, ir) for _, ir in o3.Irreps(LS)[:n]]) for n in (3, 2)]
    layer = GauntManyBody(*irreps, correlation, 1, parametrization)
    with torch.no_grad():
        y = layer(torch.randn(50, channels, 9), torch.ones(50, 1))
    for l_out, part in enumerate(y.split([channels, 3 * channels], dim=1)):
        orders = [coupling_rms((0, 1, 2), n, l_out) for n in range(1, correlation + 1)]
        assert_close(part.square().mean().sqrt(), torch.tensor(math.hypot(*orders)), "scale")


@pytest.mark.parametrize("name", cases.MANY_BODY)
def test_elements_have_their_own_weights(name):
    layer = cases.BUILD[name]()
    x, one_hot = cases.inputs(layer)
    before = layer(x, one_hot)
    with torch.no_grad():
        for w in layer.parameters():
            w[1] += 1
    after = layer(x, one_hot)
    changed = (before - after).abs().amax(1) > 0
    assert changed.tolist() == (one_hot[:, 1] == 1).tolist()


@pytest.mark.parametrize("correlation", [1, 2, 3])
@pytest.mark.parametrize("l_out", range(4))
@pytest.mark.parametrize("l_in", range(4))
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_single_degrees(parametrization, l_in, l_out, correlation):
    """Orders that couple to nothing leave no trace; a degree that none reaches is refused."""
    args = (f"2x{l_in}{'eo'[l_in % 2]}", f"2x{l_out}{'eo'[l_out % 2]}", correlation, 1)
    orders = [n for n in range(1, correlation + 1) if coupling_rms((l_in,), n, l_out) > 1e-7]
    if not orders:
        with pytest.raises(ValueError, match=f"degree {l_out}"):
            GauntManyBody(*args, parametrization)
        return
    layer = GauntManyBody(*args, parametrization)
    x, one = torch.randn(3, 2, 2 * l_in + 1), torch.ones(3, 1)
    out = layer(x, one)
    assert out.shape == (3, 2 * (2 * l_out + 1))
    # B(2A) - 2^n B(A) = 0 for a homogeneous term of order n.
    if len(orders) == 1:
        assert_close(layer(2 * x, one), 2 ** orders[0] * out, "oracle")
    assert out.abs().max() > 0


@pytest.mark.parametrize("name", cases.MANY_BODY)
@pytest.mark.parametrize("nodes", [0, 1])
def test_few_nodes(name, nodes):
    layer = cases.BUILD[name]()
    x, one_hot = cases.inputs(layer, nodes=3)
    x.requires_grad_()
    out = layer(x[:nodes], one_hot[:nodes])
    assert_close(out, layer(x, one_hot)[:nodes], "oracle")
    out.sum().backward()
    assert x.grad is not None
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_of_version_0_2_0(dtype):
    """Files hold whole layers; that release kept other tables in this one."""
    saved = torch.load(SAVED / "full-0.2.0.pt", weights_only=False)
    assert saved["layer"].product.polynomials.of_terms.dtype == torch.float64
    layer = saved["layer"].to(dtype)
    found = layer(saved["x"].to(dtype), saved["node_attrs"].to(dtype))
    assert_close(found, saved["out"], "program" if dtype == torch.float64 else "program32")
    again = torch.jit.script(pickle.loads(pickle.dumps(layer)))
    assert_close(again(saved["x"].to(dtype), saved["node_attrs"].to(dtype)), found, "program32")
    fresh = GauntManyBody("1x0e+1x1o", "1x0e+1x1o", 3, 2, "full")
    assert fresh.state_dict().keys() == layer.state_dict().keys()


def test_weights_mix_soft_elements():
    """node_attrs need not be one-hot: the weights are then averaged."""
    layer = cases.BUILD["linear"]()
    x, _ = cases.inputs(layer, nodes=1)
    soft = torch.tensor([[0.25, 0.75, 0.0]])
    parts = [layer(x, torch.eye(3)[i : i + 1]) for i in range(2)]
    assert_close(layer(x, soft), 0.25 * parts[0] + 0.75 * parts[1], "oracle")
