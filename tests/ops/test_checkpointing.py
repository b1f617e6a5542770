"""Functions made again block by block, against autograd's own graph."""

import numpy as np
import pytest
import torch

from gaunt_plugin.layers import AlignedConvolution
from gaunt_plugin.ops import ProjectedPowers, checkpointing

from ..e3nn_o3 import o3
from .passes import assert_same, derivatives


@pytest.fixture
def small(monkeypatch):
    """Blocks of a few rows, and small inputs count as large."""

    def set_size(numbers):
        monkeypatch.setattr(checkpointing, "LARGE", 0)
        monkeypatch.setitem(checkpointing.BLOCK, "cpu", numbers)

    return set_size


@pytest.mark.parametrize("irreps_in", ["2x0e", "2x0e+2x1o+2x2e"])
def test_sum_over_blocks_of_edges(irreps_in, small, monkeypatch):
    harmonics = o3.Irreps.spherical_harmonics(3)
    layer = AlignedConvolution(irreps_in, harmonics, "2x0e+2x1o+2x2e+2x3o")
    index = torch.randint(0, 5, (2, 23))
    inputs = [
        torch.randn(*shape, requires_grad=True)
        for shape in ((5, layer.irreps_in.dim), (23, 3), (23, layer.weight_numel))
    ]

    def function(x, vectors, weights):
        edge_attrs = o3.spherical_harmonics(harmonics, vectors, True, "component")
        return layer(x, edge_attrs, weights, index)

    expected = derivatives(function, inputs)
    small(4 * layer.convolution.dim_in * 2)  # four edges, the last block has three
    blocks, take = [], checkpointing._Rows.take
    monkeypatch.setattr(
        checkpointing._Rows,
        "take",
        lambda self, block, *rest: blocks.append(block) or take(self, block, *rest),
    )
    assert_same(derivatives(function, inputs), expected)
    assert slice(20, 23) in blocks


@pytest.mark.parametrize("orders", [1, 2, 4])
def test_powers(orders, small):
    powers = ProjectedPowers([0, 1], [0, 2], np.ones(4), np.arange(1.0, orders + 1)[:, None])
    c = torch.randn(7, 4, requires_grad=True)
    expected = derivatives(powers.plain, [c])
    small(2 * powers.to_grid.shape[1])
    assert_same(derivatives(powers, [c]), expected)


def test_nothing_is_kept_for_the_backward_pass(small):
    """Autograd's graph of a checkpointed function holds its operands only."""
    powers = ProjectedPowers([0, 1, 2, 3], [0, 1], np.ones(16), np.ones((2, 4)))
    c = torch.randn(50, 16, requires_grad=True)

    def numbers_kept(function):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append(t.numel()) or t, lambda t: t
        ):
            function(c)
        return sum(kept)

    assert numbers_kept(powers) == c.numel()
    assert numbers_kept(powers.plain) > 5 * numbers_kept(powers)


def test_no_rows(small):
    powers = ProjectedPowers([0, 1], [0, 1], np.ones(4), np.ones((2, 4)))
    small(1)
    c = torch.zeros(0, 4, requires_grad=True)
    out = powers(c)
    assert out.shape == (0, 2, 4)
    (gradient,) = torch.autograd.grad(out.sum(), c)
    assert gradient.shape == c.shape
