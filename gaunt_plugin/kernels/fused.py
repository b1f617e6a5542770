"""Autograd around a kernel that knows its first and second derivatives."""

from __future__ import annotations

from collections.abc import Callable

import torch


def fused(plain: Callable, kernel, *inputs: torch.Tensor) -> torch.Tensor:
    """``kernel.forward(*inputs)``, differentiable to any order.

    Args:
        plain: the same function in differentiable torch operations, for derivatives of third order
            and under ``torch.func``.
        kernel: with ``forward(*inputs)``, ``gradient(needed, g, *inputs)``, which gives the
            gradients of ``<g, forward>``, those that aren't needed maybe 0, and
            ``second(g, *inputs, v)``, which gives those of ``<v, gradient>`` with respect to g and
            the inputs.
        inputs: floating-point tensors.
    """
    return _Fused.apply(plain, kernel, *inputs)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plain, kernel, *inputs):
        ctx.plain, ctx.kernel = plain, kernel
        ctx.save_for_backward(*inputs)
        return kernel.forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        if torch._C._are_functorch_transforms_active():
            return None, None, *_gradient(ctx.plain, g, ctx.saved_tensors)
        needed = [_is_needed(node) for node, _ in ctx.next_functions[-len(ctx.saved_tensors) :]]
        return None, None, *_Gradient.apply(ctx.plain, ctx.kernel, needed, g, *ctx.saved_tensors)


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plain, kernel, needed, g, *inputs):
        ctx.plain, ctx.kernel = plain, kernel
        ctx.save_for_backward(g, *inputs)
        return tuple(kernel.gradient(needed, g, *inputs))

    @staticmethod
    def backward(ctx, *v):
        g, *inputs = ctx.saved_tensors
        if not (torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()):
            return None, None, None, *ctx.kernel.second(g, *inputs, v)
        with torch.enable_grad():
            inputs = [_differentiable(t) for t in (g, *inputs)]
            first = _gradient(ctx.plain, inputs[0], inputs[1:])
            second = torch.autograd.grad(
                first, inputs, v, create_graph=True, allow_unused=True, materialize_grads=True
            )
        return None, None, None, *second


def _is_needed(node) -> bool:
    """Whether this backward pass goes on to a node: that for forces leaves out the weights."""
    if node is None:
        return False
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf that is asked for
        return True


def _gradient(plain, g, inputs):
    with torch.enable_grad():
        inputs = [_differentiable(t) for t in inputs]
        return torch.autograd.grad(plain(*inputs), inputs, g, create_graph=True)


def _differentiable(tensor):
    """A variable of its own: inputs may depend on each other, g on all of them."""
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()
