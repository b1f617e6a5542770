"""Sums of messages over edges, made again block by block in every pass.

Autograd keeps what a message is made of, for all edges at once and once more for the second
backward pass of training on forces: several times ``edges x channels x (2 lmax + ...)`` numbers.
Here only the inputs are kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

# Numbers per edge times edges beyond which recomputing pays, and per block.
LARGE = 1 << 22
_BLOCK = 1 << 17


def sum_messages(
    message: Callable, x: torch.Tensor, edge: torch.Tensor, weights: torch.Tensor, index
) -> torch.Tensor:
    """``out_i = sum_(e: j -> i) message(x_j, edge_e, weights_e)`` with little memory.

    Differentiable to any order with respect to ``x``, ``edge`` and ``weights``.

    Args:
        message: differentiable function of three tensors with one row per edge.
        x: ``[nodes, ...]``.
        edge: ``[edges, ...]``.
        weights: ``[edges, ...]``.
        index: ``[2, edges]``, senders and receivers.
    """
    return _Sum.apply(message, x, edge, weights, index)


def _blocks(x: torch.Tensor, edge: torch.Tensor) -> list[slice]:
    edges = edge.shape[0]
    size = max(1, _BLOCK // max(1, x[0].numel() if len(x) else 1))
    return [slice(i, min(i + size, edges)) for i in range(0, edges, size)]


def _leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().requires_grad_()


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, message, x, edge, weights, index):
        ctx.message = message
        ctx.save_for_backward(x, edge, weights, index)
        out = None
        for b in _blocks(x, edge):
            part = message(x.index_select(0, index[0, b]), edge[b], weights[b])
            if out is None:
                out = part.new_zeros(x.shape[0], *part.shape[1:])
            out.index_add_(0, index[1, b], part)
        return out

    @staticmethod
    def backward(ctx, grad):
        return None, *_SumGrad.apply(ctx.message, grad, *ctx.saved_tensors), None


class _SumGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, message, grad, x, edge, weights, index):
        ctx.message = message
        ctx.save_for_backward(grad, x, edge, weights, index)
        out = torch.zeros_like(x), torch.empty_like(edge), torch.empty_like(weights)
        for b in _blocks(x, edge):
            with torch.enable_grad():
                leaves = [_leaf(t) for t in (x.index_select(0, index[0, b]), edge[b], weights[b])]
                part = message(*leaves)
            gx, ge, gw = torch.autograd.grad(part, leaves, grad.index_select(0, index[1, b]))
            out[0].index_add_(0, index[0, b], gx)
            out[1][b], out[2][b] = ge, gw
        return out

    @staticmethod
    def backward(ctx, vx, ve, vw):
        grad, x, edge, weights, index = ctx.saved_tensors
        # A third derivative is rare: it is left to autograd, without blocks.
        higher = torch.is_grad_enabled()
        out = [torch.zeros_like(grad), torch.zeros_like(x)]
        out += [torch.zeros_like(edge), torch.zeros_like(weights)]
        for b in [slice(0, len(edge))] if higher else _blocks(x, edge):
            with torch.enable_grad():
                of_senders = x.index_select(0, index[0, b]), edge[b], weights[b]
                inputs = [*of_senders, grad.index_select(0, index[1, b])]
                inputs = [t if higher and t.requires_grad else _leaf(t) for t in inputs]
                part = ctx.message(*inputs[:3])
                first = torch.autograd.grad(part, inputs[:3], inputs[3], create_graph=True)
                second = torch.autograd.grad(
                    first,
                    inputs,
                    [vx.index_select(0, index[0, b]), ve[b], vw[b]],
                    create_graph=higher,
                )
            out[0].index_add_(0, index[1, b], second[3])
            out[1].index_add_(0, index[0, b], second[0])
            out[2][b], out[3][b] = second[1:3]
        return None, *out, None
