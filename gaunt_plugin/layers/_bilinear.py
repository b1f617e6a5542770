"""Bilinear products of rows, where there are many made again block by block in every pass.

Autograd keeps what a product is made of, several numbers per row and node of the grid. Here only
the inputs are kept. Derivatives of any order are the same product and its gradient at other
arguments. Training on forces takes up to twice as long, so it is for large inputs only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from gaunt_plugin.layers._recompute import block_rows

LARGE = 1 << 24  # numbers per field from which memory matters: 64 MiB in float32


def by_rows(product: Callable, a: torch.Tensor, b: torch.Tensor, numbers: int) -> torch.Tensor:
    """``product(a, b)`` with little memory.

    Args:
        product: bilinear, row by row, without gradients in anything else.
        a: ``[rows, ...]``.
        b: ``[rows, ...]``.
        numbers: size of an intermediate field per row.
    """
    if a.shape[0] * numbers <= LARGE:
        return product(a, b)
    return _Product.apply(product, block_rows(a.device, numbers), a, b)


def _blocks(size: int, *tensors: torch.Tensor):
    return zip(*(t.split(size) for t in tensors))


class _Product(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(product, size, a, b):
        return torch.cat([product(*rows) for rows in _blocks(size, a, b)])

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.product, ctx.size, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, grad):
        return None, None, *_Gradient.apply(ctx.product, ctx.size, grad, *ctx.saved_tensors)


class _Gradient(torch.autograd.Function):
    """Gradients of ``g . product(a, b)`` with respect to a and b: ``D1(b, g)`` and ``D2(a, g)``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(product, size, g, a, b):
        parts = [
            torch.func.vjp(product, *rows)[1](rows_g) for rows_g, *rows in _blocks(size, g, a, b)
        ]
        return tuple(torch.cat(part) for part in zip(*parts))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.product, ctx.size, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, va, vb):
        # g . (product(va, b) + product(a, vb)) is linear in g, a and b.
        g, a, b = ctx.saved_tensors
        product, size = ctx.product, ctx.size
        of_g = _Product.apply(product, size, va, b) + _Product.apply(product, size, a, vb)
        return None, None, of_g, *_Gradient.apply(product, size, g, va, vb)
