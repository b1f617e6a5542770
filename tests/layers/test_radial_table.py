"""Radial functions from a table of cubic splines."""

import numpy as np
import pytest
import torch

from gaunt_plugin.layers import AlignedConvolution
from gaunt_plugin.layers.convolution.radial_table import (
    RadialTable,
    TabulatedConvolution,
    TabulatedFunctions,
    join_radial,
    split_radial,
)

from ..tolerances import assert_close
from . import cases

CUTOFFS = (5.0, 4.0)


def functions(r, kind):
    """Waves that vanish at the cutoff with two derivatives, as the hosts' do."""
    cutoff = CUTOFFS[kind]
    waves = [torch.sin((n + 1) * np.pi * r / cutoff) / r for n in range(6)]
    return torch.stack(waves, dim=1) * (1 - r / cutoff).clamp(min=0)[:, None] ** 3


def tabulated(intervals, r, kind):
    table = RadialTable(0.3, CUTOFFS, intervals)
    function = TabulatedFunctions(table.fit(functions))
    return function(join_radial(*table(r, torch.full(r.shape, kind))))


@pytest.mark.parametrize("kind", [0, 1])
def test_order_of_the_error(kind):
    """Fourth for values, third for slopes, second for curvatures."""
    r = torch.linspace(0.3, CUTOFFS[kind], 999)[:-1].requires_grad_()
    errors = []
    for intervals in (128, 256):
        different = (tabulated(intervals, r, kind) - functions(r, kind)).sum(1)
        slope = torch.autograd.grad(different.sum(), r, create_graph=True)[0]
        curvature = torch.autograd.grad(slope.sum(), r)[0]
        errors.append([t.abs().max().item() for t in (different, slope, curvature)])
    assert errors[1][0] < 1e-6
    ratios = np.array(errors[0]) / errors[1]
    assert (ratios > [12, 6, 3]).all()


def test_continuous_at_knots():
    table = RadialTable(0.3, CUTOFFS, 16)
    knots = 0.3 + torch.arange(1, 16) * (4.7 / 16)
    values = []
    for side in (-1e-9, 1e-9):
        r = (knots + side).requires_grad_()
        found = TabulatedFunctions(table.fit(functions))(
            join_radial(*table(r, torch.zeros(15).long()))
        )
        slope = torch.autograd.grad(found.sum(), r, create_graph=True)[0]
        curvature = torch.autograd.grad(slope.sum(), r)[0]
        values.append([found.detach(), slope.detach(), curvature])
    for before, after in zip(*values):
        assert (before - after).abs().max() < 1e-6


def test_zero_from_the_cutoff_on():
    """Of the edge's kind, with nothing left on the way there."""
    r = torch.tensor([4.0 + 1e-12, 4.5, 5.0, 7.0], requires_grad=True)
    found = tabulated(256, r, 1)
    assert (found == 0).all()
    assert (torch.autograd.grad(found.sum(), r)[0] == 0).all()
    assert tabulated(256, torch.tensor([4.0 - 1e-12]), 1).abs().max() < 1e-10
    assert tabulated(256, torch.tensor([4.5]), 0).abs().max() > 1e-4


def test_rows_survive_float32():
    rows = torch.tensor([0, 1, 2**24 - 1])
    factors = torch.randn(3, 4, dtype=torch.float32)
    found = split_radial(join_radial(factors, rows))
    assert torch.equal(found[0], factors)
    assert torch.equal(found[1], rows)


@pytest.mark.parametrize("program", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_convolution(dtype, program, kernels):
    layer = AlignedConvolution("3x0e+3x1o", "0e+1o", "3x0e+3x1o+3x2e")
    x, vectors, _, index = cases.inputs(layer, nodes=5, edges=30)
    r = torch.linspace(0.35, 4.9, 30)
    mixing = torch.randn(6, layer.weight_numel)
    table = RadialTable(0.3, CUTOFFS, 512)
    coefficients = table.fit(lambda r, kind: functions(r, kind) @ mixing)
    module = TabulatedConvolution(layer, coefficients)
    inputs = x, vectors, functions(r, 0) @ mixing, index
    expected = cases.run(layer, inputs)
    table, module = table.to(dtype), module.to(dtype)
    if program:
        table, module = torch.jit.script(table), torch.jit.script(module)
    radial = join_radial(*table(r.to(dtype), torch.zeros(30).long()))
    x, attrs, _, _ = (t if t is index else t.to(dtype) for t in cases.arguments(layer, inputs))
    found = module(x, attrs, radial, index)
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < (1e-7 if dtype == torch.float64 else 1e-5)
    if not program:
        assert_close(module.double().table, torch.from_numpy(coefficients), "exact")


def test_wrong_arguments():
    for start in (0.0, 4.0, -1.0):
        with pytest.raises(ValueError, match="start must lie between 0 and the cutoffs"):
            RadialTable(start, CUTOFFS, 16)
    layer = AlignedConvolution("1x0e", "0e", "1x0e")
    x, attrs, index = torch.randn(2, 1), torch.ones(3, 1), torch.zeros(2, 3, dtype=torch.int64)
    table, rows = torch.randn(8, 1), torch.zeros(3, dtype=torch.int64)
    for mixing, wrong, message in (
        (None, rows, "rows are those of mixing, which is None"),
        (table, rows[1:], r"rows must be \[3\] of int64"),
        (table, rows.int(), r"rows must be \[3\] of int64"),
        (table[:2], rows, r"mixing must be \[4, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(x, attrs, torch.randn(3, 4), index, mixing, wrong)
