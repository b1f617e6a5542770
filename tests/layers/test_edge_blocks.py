"""Recomputed sums over edges and recomputed powers against autograd's own graph."""

import pytest
import torch

from gaunt_plugin.layers import AlignedConvolution, _edge_blocks, _recompute, aligned

from ..e3nn_o3 import o3


def derivatives(function, inputs):
    """Value and first, second (training on forces) and third derivatives."""
    out = function(*inputs)
    first = torch.autograd.grad(out.pow(3).sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), inputs, create_graph=True)
    third = torch.autograd.grad(sum(g.pow(2).sum() for g in second), inputs)
    return [out, *first, *second, *third]


def assert_same(actual, expected):
    for a, b in zip(actual, expected):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11 * b.abs().max().item())


@pytest.mark.parametrize("irreps_in", ["2x0e", "2x0e+2x1o+2x2e"])
def test_sum_over_blocks_of_edges(irreps_in, monkeypatch):
    torch.manual_seed(0)
    harmonics = o3.Irreps.spherical_harmonics(3)
    layer = AlignedConvolution(irreps_in, harmonics, "2x0e+2x1o+2x2e+2x3o").double()
    index = torch.randint(0, 5, (2, 23))
    inputs = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((5, layer.irreps_in.dim), (23, 3), (23, layer.weight_numel))
    ]

    def function(x, vectors, weights):
        edge_attrs = o3.spherical_harmonics(harmonics, vectors, True, "component")
        return layer(x, edge_attrs, weights, index)

    expected = derivatives(function, inputs)
    calls = []
    monkeypatch.setattr(aligned, "LARGE", 0)
    monkeypatch.setattr(_edge_blocks, "_BLOCK", 60)  # several blocks, the last one smaller
    sum_messages = aligned.sum_messages
    monkeypatch.setattr(
        aligned, "sum_messages", lambda *args: calls.append(1) or sum_messages(*args)
    )
    assert_same(derivatives(function, inputs), expected)
    assert calls


@pytest.mark.parametrize("orders", [1, 2, 4])
def test_recomputed_powers(orders, monkeypatch):
    monkeypatch.setitem(_recompute._BLOCK, "cpu", 22)
    torch.manual_seed(0)
    c, to_grid, from_grid = (
        torch.randn(*shape, dtype=torch.float64) for shape in ((7, 4), (4, 11), (orders, 11, 3))
    )
    c.requires_grad_()
    expected = derivatives(
        lambda c: _recompute.projected_powers_reference(c, to_grid, from_grid), [c]
    )
    assert_same(
        derivatives(lambda c: _recompute.projected_powers(c, to_grid, from_grid), [c]), expected
    )
