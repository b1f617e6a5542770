"""Operators of torch whose kernels know their first and second derivatives.

An operation is three torch operators, for example::

    gaunt::powers(node_feats, weights_out, weights_in, constants, width) -> result
    gaunt::powers_backward(grad, <the same>, needs) -> gradient of each operand
    gaunt::powers_double_backward(<directions>, grad, <the same>, needs)
        -> gradients of <directions, gradients> with respect to grad and each operand

``constants`` describes the layer (cpu/operators.h), ``width`` is a size of the result, and
``needs`` says which gradients are wanted: the others are empty tensors. Third derivatives are
autograd's, of the plain form. ``vmap`` calls an operator once per element of the batch. Programs
that hold the operators need them where they are loaded: importing :mod:`gaunt_plugin.ops` registers
them in Python, and ``pair_style gaunt`` in C++ (values and first derivatives).
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from gaunt_plugin.ops import checkpointing, cuda
from gaunt_plugin.ops.cpu.build import library
from gaunt_plugin.ops.cpu.call import BACKWARD, DOUBLE_BACKWARD, DTYPES, FORWARD, call
from gaunt_plugin.ops.cuda import launch
from gaunt_plugin.ops.recording import recording

# A package of NequIP holds a copy of this code; the operators are the installed gaunt_plugin's.
_IN_PACKAGE = __name__.startswith("<torch_package")
# Another one when schemas or constants change.
INTERFACE = 3
_LIBRARY = None if _IN_PACKAGE else torch.library.Library("gaunt", "FRAGMENT")


class Kernels(NamedTuple):
    """Those of a kind of device.

    Attributes:
        dtypes: that they take.
        ready: whether they are there, for a device.
        call: runs a pass, see :func:`gaunt_plugin.ops.cpu.call.call`.
        any_left_out: whether each gradient can be left out; else only that of the last of several
            operands.
    """

    dtypes: tuple[torch.dtype, ...]
    ready: Callable[[torch.device], bool]
    call: Callable
    any_left_out: bool


KERNELS = {
    # Found when they are called: tests replace them.
    "cpu": Kernels(DTYPES, lambda _: library() is not None, lambda *a: call(*a), False),
    "cuda": Kernels(launch.DTYPES, cuda.ready, launch.call, True),
}


class Operator:
    """``gaunt::NAME`` with its derivatives.

    Args:
        name: of the operator.
        operands: names of the differentiable operands. The last one may be left out if its name
            ends with ``?``.
        axes: number of axes of the first operand.
        shape: of the result, from the first operand and ``width``.
        plain: makes the plain form from the constants and a tensor of the dtype and the device: a
            differentiable function of the operands and the indices.
        indices: names of the arrays of indices that follow the operands; ``?`` as there.
    """

    def __init__(
        self,
        name: str,
        operands: Sequence[str],
        axes: int,
        shape: Callable,
        plain: Callable,
        indices: Sequence[str] = (),
    ) -> None:
        self.name, self.count, self.first = name, len(operands), operands[0]
        self.axes, self.shape, self.plain = axes, shape, plain
        names = [o.rstrip("?") for o in operands]
        arguments = [
            f"Tensor? {name[:-1]}" if name.endswith("?") else f"Tensor {name}"
            for name in (*operands, *indices, "constants")
        ]
        arguments.append("int width")
        self.schemas = [
            f"({', '.join(arguments)}) -> Tensor",
            f"(Tensor grad, {', '.join(arguments)}, bool[] needs) -> {_tensors(self.count)}",
            f"({', '.join(f'Tensor? direction_of_{n}' for n in names)}, Tensor grad, "
            f"{', '.join(arguments)}, bool[] needs) -> {_tensors(1 + self.count)}",
        ]
        if not _IN_PACKAGE:
            self._register()

    def __call__(self, *arguments) -> torch.Tensor:
        """With the operands, edge_index if there is one, constants and width."""
        return self.operators[FORWARD](*arguments)

    def eagerly(self, *arguments) -> torch.Tensor:
        """The same, in eager mode, of tensors that :func:`has_kernel` takes."""
        return self._run(FORWARD, arguments[0], arguments)

    def _run(self, number: int, like: torch.Tensor, arguments):
        """A pass of tensors that have a kernel.

        On the CPU without torch's dispatcher, which takes as long as a small kernel, unless a mode
        (of ``torch.utils.checkpoint``, of a counter of operations) must see the operator. A package
        has no kernels of its own.
        """
        if _IN_PACKAGE or not like.is_cpu or torch._C._len_torch_dispatch_stack() > 0:
            return self.operators[number](*arguments)
        return _differentiable(self, number, self.kernels[number], *arguments)

    def _run_here(self, number: int, like: torch.Tensor, tensors, others):
        """A pass of any tensors; a backward pass may be recorded or transformed, too."""
        if recording() or not has_kernel(like, *tensors):
            return self.operators[number](*tensors, *others)
        return self._run(number, like, (*tensors, *others))

    # The kernel's passes, as implementations for all devices.

    def _forward(self, *arguments):
        out = self._fake_forward(*arguments)
        *tensors, constants, _ = arguments
        _call_of(out)(self.name, FORWARD, [constants, *tensors, out])
        return out

    def _backward(self, grad, *arguments):
        *tensors, constants, _, needs = arguments
        out = self._gradients(tensors, needs)
        _call_of(grad)(self.name, BACKWARD, [constants, *tensors, grad, *out])
        return _one_or_more(self._wanted(grad, out, needs))

    def _double_backward(self, *arguments):
        directions, grad = arguments[: self.count], arguments[self.count]
        *tensors, constants, _, needs = arguments[self.count + 1 :]
        # Kernels know a direction that is left out, zero, only of the last of several operands.
        directions = [
            torch.zeros_like(t) if v is None and k < max(1, self.count - 1) else v
            for k, (v, t) in enumerate(zip(directions, tensors))
        ]
        out = [_rows_like(grad), *self._gradients(tensors, needs)]
        arrays = [constants, *tensors, grad, *directions, *out]
        _call_of(grad)(self.name, DOUBLE_BACKWARD, arrays)
        return out[0], *self._wanted(grad, out[1:], needs)

    def _gradients(self, tensors, needs):
        """Arrays for gradients, but those that kernels can leave out."""
        last = self.count - 1 if self.count > 1 else self.count
        first = 0 if KERNELS[tensors[0].device.type].any_left_out else last
        return [
            None if t is None or (k >= first and not need) else _rows_like(t)
            for k, (t, need) in enumerate(zip(tensors[: self.count], needs))
        ]

    @staticmethod
    def _wanted(like, gradients, needs):
        """What is not wanted is an empty tensor: operators can't return None."""
        return [g if need else like.new_empty(0) for g, need in zip(gradients, needs)]

    # The shapes, for tensors without memory.

    def _fake_forward(self, *arguments):
        first = arguments[0]
        if first.dim() != self.axes:
            raise ValueError(
                f"gaunt::{self.name}: {self.first} must have {self.axes} axes, got "
                f"{list(first.shape)}"
            )
        return first.new_empty(self.shape(first, arguments[-1]))

    def _fake_backward(self, grad, *arguments):
        return _one_or_more(self._fake_gradients(grad, *arguments))

    def _fake_double_backward(self, *arguments):
        grad, *arguments = arguments[self.count :]
        return _rows_like(grad), *self._fake_gradients(grad, *arguments)

    def _fake_gradients(self, grad, *arguments):
        *tensors, _, _, needs = arguments
        return self._wanted(grad, [t if t is None else _rows_like(t) for t in tensors], needs)

    # The derivatives.

    def derivative(self, ctx, grad):
        tensors = ctx.saved_tensors  # once: checkpointing unpacks them only once
        needs = self._needs(ctx, 0)
        found = self._run_here(BACKWARD, grad, (grad, *tensors), (ctx.width, needs))
        found = [found] if self.count == 1 else found
        return self._returned(found, needs, tensors, 1)

    def second_derivative(self, ctx, *directions):
        grad, *tensors = ctx.saved_tensors
        directions = [v if need else None for v, need in zip(directions, ctx.needs)]
        needs = self._needs(ctx, 1)
        of_grad, *found = self._run_here(
            DOUBLE_BACKWARD, grad, (*directions, grad, *tensors), (ctx.width, needs)
        )
        return of_grad, *self._returned(found, needs, tensors, 2)

    def third_derivative(self, ctx, *grads):
        """By autograd, of the plain form."""
        count = self.count
        tensors = ctx.saved_tensors
        directions, grad, operands = (
            tensors[:count],
            tensors[count],
            tensors[count + 1 : 2 * count + 1],
        )
        *index, constants = tensors[2 * count + 1 :]
        plain = self.plain(constants, grad)
        grads = [g if need else None for g, need in zip(grads, [True, *ctx.needs])]
        found = checkpointing.third(
            lambda *now: plain(*now, *index), directions, grad, operands, grads
        )
        return *found, *[None] * (len(index) + 3)

    @functools.cached_property
    def operators(self):
        """Those of torch: value, gradients, second derivatives."""
        return [getattr(torch.ops.gaunt, self.name + suffix).default for suffix in _SUFFIXES]

    @property
    def kernels(self):
        """The implementations of these for the CPU."""
        return self._forward, self._backward, self._double_backward

    def _below_autograd(self, number: int, *arguments):
        with torch._C._AutoDispatchBelowAutograd():
            return self.operators[number](*arguments)

    def _needs(self, ctx, first: int) -> list[bool]:
        """Of each operand, whether its gradient is wanted; ``first`` arguments come before.

        That of the last of several operands, which kernels can leave out, only if this backward
        pass goes on to it: a pass for forces doesn't go on to the weights.
        """
        # behind the operator, the pass and its function
        needs = list(ctx.needs_input_grad[3 + first : 3 + first + self.count])
        last = self.count - 1
        if last > 0 and needs[last]:
            # The graph has an edge per argument that is a tensor.
            node, _ = ctx.next_functions[first + last]
            needs[last] = _goes_on_to(node)
        return needs

    def _returned(self, found, needs, tensors, others: int):
        """Gradients of all arguments: operands, other tensors, and ``others`` that are not."""
        rest = len(tensors) - self.count + others
        return *(g if need else None for g, need in zip(found, needs)), *[None] * rest

    # What torch is told.

    def _register(self) -> None:
        if hasattr(torch.ops.gaunt, self.name) and library() is None:
            return  # pair_style gaunt, in this process, has kernels; there are none here
        fakes = self._fake_forward, self._fake_backward, self._fake_double_backward
        for number, suffix in enumerate(_SUFFIXES):
            name = self.name + suffix
            # That of pair_style gaunt knows no second derivatives: ours take its place.
            if not hasattr(torch.ops.gaunt, name):
                _LIBRARY.define(name + self.schemas[number])
            for device in ("CPU", "CUDA"):
                _LIBRARY.impl(name, self.kernels[number], device)
            below = functools.partial(self._below_autograd, number)
            differentiable = functools.partial(_differentiable, self, number, below)
            _LIBRARY.impl(name, differentiable, "Autograd")
            torch.library.register_fake(f"gaunt::{name}", fakes[number], lib=_LIBRARY)
            batched = checkpointing.one_by_one(getattr(torch.ops.gaunt, name))
            torch.library.register_vmap(f"gaunt::{name}", batched, lib=_LIBRARY)
        for device in ("cpu", "cuda"):
            name = f"gaunt::{self.name}"
            torch.library.register_autocast(name, device, torch.float32, lib=_LIBRARY)


_SUFFIXES = ("", "_backward", "_double_backward")


def _differentiable(operator: Operator, number: int, function: Callable, *arguments):
    """A pass, done by ``function``, of which autograd keeps what the next one needs.

    As ``torch.library.register_autograd``, whose detours take as long as a small kernel.
    """
    if torch.is_grad_enabled() and any(
        isinstance(a, torch.Tensor) and a.requires_grad for a in arguments
    ):
        return _Pass.apply(operator, number, function, *arguments)
    return function(*arguments)


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx, operator, number, function, *arguments):
        out = function(*arguments)
        ctx.operator, ctx.number = operator, number
        if number == FORWARD:
            *tensors, ctx.width = arguments
        else:
            *tensors, ctx.width, ctx.needs = arguments
        ctx.save_for_backward(*tensors)
        return out

    @staticmethod
    def backward(ctx, *grads):
        operator = ctx.operator
        derivatives = operator.derivative, operator.second_derivative, operator.third_derivative
        return None, None, None, *derivatives[ctx.number](ctx, *grads)


def _tensors(count: int) -> str:
    return f"({', '.join(['Tensor'] * count)})" if count > 1 else "Tensor"


def _one_or_more(tensors):
    return tuple(tensors) if len(tensors) > 1 else tensors[0]


def _rows_like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _goes_on_to(node) -> bool:
    """Whether the backward pass in progress goes on to a node of the graph."""
    if node is None:
        return False
    try:
        # Private, and what torch.autograd.graph.register_multi_grad_hook asks.
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf whose gradient is asked for
        return True


def _call_of(tensor: torch.Tensor) -> Callable:
    return KERNELS[tensor.device.type].call


def has_kernel(*tensors: torch.Tensor | None) -> bool:
    """Whether the operators take these tensors here and now, with every derivative asked for.

    There must be kernels for ordinary tensors of one dtype on one device. Derivatives in forward
    mode and the transforms of ``torch.func`` are those of plain torch.
    """
    dtype, device = tensors[0].dtype, tensors[0].device
    if not checkpointing.works():
        return False
    found = kernels(device)
    if found is None or dtype not in found.dtypes:
        return False
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) is not torch.Tensor and type(tensor) is not torch.nn.Parameter:
            return False
        if tensor.device != device or tensor.layout != torch.strided:
            return False
        if tensor.dtype != dtype and tensor.is_floating_point():
            return False
    return True


def kernels(device: torch.device | None = None) -> Kernels | None:
    """The kernels for a device, or the CPU, if there are any and operators that call them."""
    if _IN_PACKAGE:
        installed = _installed()
        return None if installed is None else installed.kernels(device)
    device = torch.device("cpu") if device is None else device
    found = KERNELS.get(device.type)
    return found if found is not None and found.ready(device) else None


@functools.cache
def _installed():
    """Where this code runs inside of a package of NequIP: the installed one, if it fits."""
    try:
        installed = importlib.import_module("gaunt_plugin.ops._operator")
    except ImportError:
        return None
    return installed if installed.INTERFACE == INTERFACE else None
