"""Values and derivatives of a function, to compare two ways of computing it."""

import torch

from ..tolerances import assert_close


def passes(function, inputs):
    """Value, gradients and their gradients along a direction, as training on forces has them."""
    inputs = [t if t.requires_grad else t.clone().requires_grad_() for t in inputs]
    out = function(*inputs)
    torch.manual_seed(1)
    # Not randn_like: its numbers depend on the strides, which differ between the two ways.
    g = torch.randn(out.shape, dtype=out.dtype, device=out.device).requires_grad_()
    first = torch.autograd.grad(out, inputs, g, create_graph=True)
    v = [torch.randn(t.shape, dtype=t.dtype, device=t.device) for t in first]
    second = torch.autograd.grad(first, [g, *inputs], v, materialize_grads=True)
    return [out, *first, *second]


def derivatives(function, inputs):
    """Value and first, second (training on forces) and third derivatives."""
    out = function(*inputs)
    first = torch.autograd.grad(out.pow(3).sum(), inputs, create_graph=True)
    second = torch.autograd.grad(sum(g.pow(2).sum() for g in first), inputs, create_graph=True)
    third = torch.autograd.grad(sum(g.pow(2).sum() for g in second), inputs)
    return [out, *first, *second, *third]


def assert_same(found, expected, kind="program"):
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, kind)
