"""What layers call: an operation with all of its implementations."""

from __future__ import annotations

import functools
from typing import ClassVar

import torch

from gaunt_plugin.ops._operator import Operator
from gaunt_plugin.ops.tables import TableModule, unpack


class Operation(TableModule):
    """Base of the operations that have an operator ``gaunt::...``.

    In eager mode an operation calls its operator where there is a kernel for the operands, and
    takes its plain form, of differentiable torch operations, elsewhere. Programs (TorchScript,
    ``torch.compile``, ``make_fx``) hold the plain form, which needs libtorch alone, or the operator
    with ``in_programs``.

    Subclasses are made from numbers alone, which are the head of their ``constants``.

    Attributes:
        constants: what kernels know of the layer, see cpu/operators.h.
        in_programs: whether programs that are made of this module hold the operator.
    """

    in_programs = False
    __constants__: ClassVar[list[str]] = ["in_programs"]
    operator: ClassVar[Operator]

    @classmethod
    def arguments(cls, numbers: list[int], values: list[float]) -> tuple:
        """Arguments of the constructor, from unpacked constants."""
        raise NotImplementedError

    def plain(self, *operands):
        """The plain form."""
        raise NotImplementedError


def operators_in_programs(model: torch.nn.Module, held: bool = True) -> int:
    """Say what programs that will be made of a model hold; returns the number of its operations."""
    operations = [module for module in model.modules() if isinstance(module, Operation)]
    for operation in operations:
        operation.in_programs = held
    return len(operations)


def plain_of(cls: type[Operation]):
    """For :class:`Operator`: the plain form of the operation that has these constants."""

    @functools.lru_cache(maxsize=64)
    def make(arguments, dtype, device):
        return cls(*arguments).to(device, dtype)

    def plain(constants: torch.Tensor, like: torch.Tensor):
        arguments = cls.arguments(*unpack(constants))
        return make(arguments, like.dtype, like.device).plain

    return plain
