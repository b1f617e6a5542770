"""Checkpointing: functions whose intermediates are made again in every pass, block by block.

Autograd keeps what a function is made of for the backward pass, and once more for the second one of
training on forces. Here only the operands are kept. Each pass goes through the rows (edges, or
rows of coefficients) in blocks that fit the cache, so that no pass holds the intermediates of all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from gaunt_plugin.ops.recording import recording

# Intermediate numbers from which memory counts more than time: 64 MiB in float32.
LARGE = 1 << 24
# Intermediate numbers per block.
BLOCK = {"cpu": 1 << 17}
OTHER_BLOCK = 1 << 25


def works() -> bool:
    """Whether functions may be checkpointed here and now.

    Derivatives in forward mode and the transforms of ``torch.func`` are those of plain torch.
    """
    return (
        not torch._C._are_functorch_transforms_active()  # as torch.autograd.Function asks
        and torch.autograd.forward_ad._current_level < 0
    )


def pays(numbers: int) -> bool:
    """Whether to checkpoint a function with that many intermediate numbers, in eager mode."""
    return numbers > LARGE and torch.is_grad_enabled() and not recording() and works()


class Checkpoint:
    """A function of rows and its derivatives, block by block.

    ``function(*operands)`` must be differentiable as often as wanted. Subclasses may know better
    ways to a block's derivatives than autograd, in :meth:`gradient` and :meth:`second`.

    Args:
        function: of tensors that have a row each per row of the result.
        numbers: intermediate numbers per row.
        edges: whether rows are edges of a graph. Then the first operand has a row per node, the
            last two are the senders and the receivers of the edges, ``function`` is given the rows
            of the senders, and the result is the sum of its rows at each receiver.
    """

    def __init__(self, function: Callable, numbers: int, edges: bool = False) -> None:
        self.function, self.numbers, self.edges = function, max(1, numbers), edges

    def __call__(self, *operands: torch.Tensor) -> torch.Tensor:
        return _Value.apply(self, *operands)

    def gradient(self, needs, grad, *operands):
        """Gradients of ``<grad, function>`` with respect to the operands that are needed."""
        return gradient(self.function, needs, grad, *operands)

    def second(self, needs, directions, grad, *operands):
        """Gradients of ``<directions, gradient>`` with respect to ``grad`` and the operands."""
        return second(self.function, needs, directions, grad, *operands)

    def of_all(self, *operands):
        """The result in one piece."""
        if not self.edges:
            return self.function(*operands)
        x, *others, senders, receivers = operands
        rows = self.function(x.index_select(0, senders), *others)
        return rows.new_zeros(x.shape[0], *rows.shape[1:]).index_add(0, receivers, rows)


class _Rows:
    """Blocks of the rows of operands, and arrays that are filled block by block."""

    def __init__(self, checkpoint: Checkpoint, operands) -> None:
        self.edges = checkpoint.edges
        if self.edges:
            *self.operands, self.senders, self.receivers = operands
            self.nodes, self.count = self.operands[0].shape[0], self.senders.shape[0]
        else:
            self.operands, self.count = operands, operands[0].shape[0]
        size = max(1, BLOCK.get(operands[0].device.type, OTHER_BLOCK) // checkpoint.numbers)
        self.blocks = [slice(i, min(i + size, self.count)) for i in range(0, self.count, size)]
        self.blocks = self.blocks or [slice(0, 0)]

    def take(self, block, tensors=None):
        """Rows of the operands, or of tensors like them."""
        tensors = self.operands if tensors is None else tensors
        return [self._part(t, block, self.edges and k == 0) for k, t in enumerate(tensors)]

    def take_result(self, block, tensor):
        """Rows of a tensor like the result."""
        if self.edges:
            return tensor.index_select(0, self.receivers[block])
        return tensor[block]

    def _part(self, tensor, block, gathered: bool):
        if tensor is None:
            return None
        return tensor.index_select(0, self.senders[block]) if gathered else tensor[block]

    def add(self, whole, block, part, like_result: bool, k: int):
        """Put rows into the whole, which is made with the first block."""
        index = None
        if self.edges and (like_result or k == 0):
            index = (self.receivers if like_result else self.senders)[block]
        if whole is None:
            rows = self.count if index is None else self.nodes
            make = part.new_empty if index is None else part.new_zeros
            whole = make(rows, *part.shape[1:])
        if index is None:
            whole[block] = part
        else:
            whole.index_add_(0, index, part)
        return whole


def gradient(function, needs, grad, *operands, create_graph: bool = False):
    """Gradients of ``<grad, function(*operands)>`` by autograd, of the operands that are needed."""
    with torch.enable_grad():
        operands = [variable(t, create_graph) for t in operands]
        return torch.autograd.grad(
            function(*operands),
            [t for t, need in zip(operands, needs) if need],
            grad,
            create_graph=create_graph,
            allow_unused=True,
            materialize_grads=True,
        )


def second(function, needs, directions, grad, *operands, create_graph: bool = False):
    """Gradients of ``<directions, gradient>`` with respect to ``grad`` and all operands.

    ``directions``: of the operands that are needed. None for indices and operands left out.
    """
    with torch.enable_grad():
        variables = [variable(t, create_graph) for t in (grad, *operands)]
        first = gradient(function, needs, *variables, create_graph=True)
        differentiable = [t is not None and t.is_floating_point() for t in variables]
        found = iter(
            torch.autograd.grad(
                first,
                [t for t, yes in zip(variables, differentiable) if yes],
                directions,
                create_graph=create_graph,
                allow_unused=True,
                materialize_grads=True,
            )
        )
    return [next(found) if yes else None for yes in differentiable]


def third(function, directions, grad, operands, grads):
    """Gradients of ``<grads, second>`` with respect to the directions, ``grad`` and the operands.

    ``directions`` and ``grads``: None is zero; the others as for :func:`second`.
    """
    create_graph, count = torch.is_grad_enabled(), len(operands)
    with torch.enable_grad():
        variables = [variable(t) for t in (*directions, grad, *operands)]
        directions, (grad, *operands) = variables[:count], variables[count:]
        outputs = second(
            function,
            [v is not None for v in directions],
            [v for v in directions if v is not None],
            grad,
            *operands,
            create_graph=True,
        )
        pairs = [(o, g) for o, g in zip(outputs, grads) if o is not None and g is not None]
        differentiable = [t is not None and t.is_floating_point() for t in variables]
        found = iter(
            torch.autograd.grad(
                [output for output, _ in pairs],
                [t for t, yes in zip(variables, differentiable) if yes],
                [g for _, g in pairs],
                create_graph=create_graph,
                allow_unused=True,
                materialize_grads=True,
            )
        )
    return [next(found) if yes else None for yes in differentiable]


def variable(tensor: torch.Tensor | None, connected: bool = True) -> torch.Tensor | None:
    """A variable of its own: operands may depend on each other, and ``grad`` on all of them."""
    if tensor is None or not tensor.is_floating_point():
        return tensor
    if connected and tensor.requires_grad:
        return tensor.view_as(tensor)
    return tensor.detach().requires_grad_()


def one_by_one(function: Callable):
    """The rule of ``vmap`` for a function that knows no batches: one call per element."""

    def rule(info, in_dims, *arguments):
        results = []
        for b in range(info.batch_size):
            row = [
                a.select(d, b) if isinstance(a, torch.Tensor) and d is not None else a
                for a, d in zip(arguments, in_dims)
            ]
            results.append(function(*row))
        if isinstance(results[0], torch.Tensor):
            return torch.stack(results), 0
        stacked = [None if parts[0] is None else torch.stack(parts) for parts in zip(*results)]
        return tuple(stacked), tuple(None if t is None else 0 for t in stacked)

    return rule


def _as_forward(tensor: torch.Tensor):
    """Without autocast, which layers switch off; forces are made where it may be on again."""
    device = tensor.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(checkpoint, *operands):
        rows, out = _Rows(checkpoint, operands), None
        with _as_forward(operands[0]):
            for block in rows.blocks:
                out = rows.add(out, block, checkpoint.function(*rows.take(block)), True, 0)
        return out

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.checkpoint, *operands = inputs
        ctx.save_for_backward(*operands)

    @staticmethod
    def backward(ctx, grad):
        operands = ctx.saved_tensors
        needs = ctx.needs_input_grad[1:]
        found = iter(_Gradient.apply(ctx.checkpoint, needs, grad, *operands))
        return None, *(next(found) if need else None for need in needs)

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return one_by_one(_Value.apply)(info, in_dims, *arguments)


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(checkpoint, needs, grad, *operands):
        rows = _Rows(checkpoint, operands)
        places = [k for k, need in enumerate(needs) if need]
        out = [None for _ in places]
        with _as_forward(operands[0]):
            for block in rows.blocks:
                of_grad = rows.take_result(block, grad)
                parts = checkpoint.gradient(needs, of_grad, *rows.take(block))
                for i, (k, part) in enumerate(zip(places, parts)):
                    out[i] = rows.add(out[i], block, part, False, k)
        return tuple(out)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.checkpoint, ctx.needs, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, *directions):
        given = iter(directions)
        directions = [next(given) if need else None for need in ctx.needs]
        return None, None, *_Second.apply(ctx.checkpoint, *directions, *ctx.saved_tensors)

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return one_by_one(_Gradient.apply)(info, in_dims, *arguments)


class _Second(torch.autograd.Function):
    @staticmethod
    def forward(checkpoint, *tensors):
        count = len(tensors) // 2
        directions, (grad, *operands) = tensors[:count], tensors[count:]
        needs = [v is not None for v in directions]
        rows = _Rows(checkpoint, operands)
        along = directions[: len(rows.operands)]
        out = [None for _ in range(1 + count)]
        with _as_forward(grad):
            for block in rows.blocks:
                of_block = [v for v in rows.take(block, along) if v is not None]
                of_grad = rows.take_result(block, grad)
                parts = checkpoint.second(needs, of_block, of_grad, *rows.take(block))
                for i, part in enumerate(parts):
                    if part is not None:
                        out[i] = rows.add(out[i], block, part, i == 0, i - 1)
        return tuple(out)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.checkpoint, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, *grads):
        """Third derivatives are rare: they are autograd's, in one piece."""
        tensors = ctx.saved_tensors
        count = len(tensors) // 2
        directions, (grad, *operands) = tensors[:count], tensors[count:]
        return None, *third(ctx.checkpoint.of_all, directions, grad, operands, grads)

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return one_by_one(_Second.apply)(info, in_dims, *arguments)
