"""Projected powers of a function on the sphere that never hold the grid in memory.

``out[r, n] = <(c_r . Y)^(n+2) W_n>``, written in plain torch as :func:`projected_powers_reference`.
Autograd would keep every power at every node for the backward passes, several times 50 numbers
per 16 coefficients. Here the grid is made again, a block of rows that fits the cache at a time, in
each pass, of which training on forces has two.
"""

from __future__ import annotations

import torch

from gaunt_plugin.layers._tracing import is_traced

_BLOCK = {"cpu": 1 << 17}  # numbers per block on the grid: half a MiB in float32
_OTHER_BLOCK = 1 << 25


def block_rows(device: torch.device, numbers: int) -> int:
    """Rows of a block, of ``numbers`` on the grid each."""
    return max(1, _BLOCK.get(device.type, _OTHER_BLOCK) // numbers)


def projected_powers_reference(
    c: torch.Tensor, to_grid: torch.Tensor, from_grid: torch.Tensor
) -> torch.Tensor:
    """Powers 2, 3, ... of functions on the sphere, projected.

    Args:
        c: coefficients ``[rows, components]``.
        to_grid: ``[components, nodes]``.
        from_grid: ``[orders, nodes, components_out]``.

    Returns:
        ``[rows, orders, components_out]``.
    """
    field = c @ to_grid
    power = field
    out = []
    for n in range(from_grid.shape[0]):
        power = power * field
        out.append(power @ from_grid[n])
    return torch.stack(out, dim=1)


def projected_powers(
    c: torch.Tensor, to_grid: torch.Tensor, from_grid: torch.Tensor
) -> torch.Tensor:
    """:func:`projected_powers_reference` with derivatives of any order and little memory.

    Programs, scripted or recorded, hold the reference.
    """
    # Not one condition: TorchScript compiles both sides of `or`.
    if torch.jit.is_scripting():
        return projected_powers_reference(c, to_grid, from_grid)
    if is_traced():
        return projected_powers_reference(c, to_grid, from_grid)
    return _in_blocks(c, to_grid, from_grid)


@torch.jit.unused
def _in_blocks(c: torch.Tensor, to_grid: torch.Tensor, from_grid: torch.Tensor) -> torch.Tensor:
    return _Powers.apply(c, to_grid, from_grid)


def _blocks(rows: int, to_grid: torch.Tensor) -> list[slice]:
    size = block_rows(to_grid.device, to_grid.shape[1])
    return [slice(i, min(i + size, rows)) for i in range(0, max(rows, 1), size)]


class _Powers(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(c, to_grid, from_grid):
        blocks = _blocks(c.shape[0], to_grid)
        return torch.cat([projected_powers_reference(c[b], to_grid, from_grid) for b in blocks])

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        c, to_grid, from_grid = ctx.saved_tensors
        return _PowersGrad.apply(grad, c, to_grid, from_grid), None, None


class _PowersGrad(torch.autograd.Function):
    """``sum_n (n+2) (grad_n W_n^T) F^(n+1) Y^T``, the gradient with respect to c."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, c, to_grid, from_grid):
        out = []
        for b in _blocks(c.shape[0], to_grid):
            field = c[b] @ to_grid
            power = field
            total = 2 * (grad[b, 0] @ from_grid[0].t()) * field
            for n in range(1, from_grid.shape[0]):
                power = power * field
                total = total + (n + 2) * (grad[b, n] @ from_grid[n].t()) * power
            out.append(total @ to_grid.t())
        return torch.cat(out)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, v):
        # Plain differentiable operations: higher derivatives follow from autograd.
        grad, c, to_grid, from_grid = ctx.saved_tensors
        grad_grad, grad_c = [], []
        for b in _blocks(c.shape[0], to_grid):
            field = c[b] @ to_grid
            direction = v[b] @ to_grid
            below = direction  # F^n times the direction
            total = torch.zeros_like(field)
            orders = []
            for n in range(from_grid.shape[0]):
                spread = grad[b, n] @ from_grid[n].t()
                total = total + (n + 2) * (n + 1) * spread * below
                below = below * field
                orders.append((n + 2) * below @ from_grid[n])
            grad_grad.append(torch.stack(orders, dim=1))
            grad_c.append(total @ to_grid.t())
        return torch.cat(grad_grad), torch.cat(grad_c), None, None
