"""Calls of the Triton kernels: what they are given, and what is kept between calls."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Sequence

import torch

from gaunt_plugin.ops.cuda import triton_version, tuning
from gaunt_plugin.ops.per_tensor import PerTensor
from gaunt_plugin.ops.tables import unpack

FORWARD, BACKWARD, DOUBLE_BACKWARD = range(3)
# Sums are in float32 for the shorter ones.
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_OPERATORS = ("channelwise_convolution", "convolution", "edge_frames", "polynomials", "powers")


def call(name: str, number: int, arrays: Sequence[torch.Tensor | None]) -> None:
    """Run a pass; the arguments are those of :func:`gaunt_plugin.ops.cpu.call.call`.

    Results may be left out, too: those are not computed, or not kept.

    Raises:
        ValueError: an array doesn't fit; the message names it.
        RuntimeError: there is no Triton.
    """
    if triton_version() is None:
        raise RuntimeError(
            "gaunt_plugin's CUDA kernels need triton, which can't be imported here: "
            "pip install triton"
        )
    constants, *rest = arrays
    if name not in _OPERATORS:
        raise ValueError(
            f"gaunt::{name} has no kernel for GPUs: make the program without the operators"
        )
    operator = importlib.import_module(f"gaunt_plugin.ops.cuda.{name}")
    device = rest[0].device
    try:
        arguments = Arguments(rest)
        if device.type == "cuda" and device.index != torch.cuda.current_device():
            with torch.cuda.device(device):
                operator.run(number, constants, arguments)
        else:
            operator.run(number, constants, arguments)
    except ValueError as error:
        raise ValueError(f"gaunt::{name}: {error}") from error


class Arguments:
    """The arrays of a call in their order, each checked: of one dtype, on one device."""

    def __init__(self, arrays: Sequence[torch.Tensor | None]) -> None:
        self.left = list(arrays)
        self.dtype, self.device = arrays[0].dtype, arrays[0].device
        if self.dtype not in DTYPES:
            raise ValueError(
                f"kernels take arrays of float32, float64, float16 or bfloat16, got {self.dtype}"
            )

    def peek(self) -> torch.Tensor | None:
        if not self.left:
            raise ValueError("arrays are missing")
        return self.left[0]

    def _next(self, name: str, sizes, dtype) -> torch.Tensor:
        array = self.peek()
        del self.left[0]
        text = ", ".join("any" if s is None else str(s) for s in sizes)
        if array is None:
            raise ValueError(f"{name} must be [{text}], got none")
        if array.dtype != dtype:
            raise ValueError(f"{name} has the wrong dtype")
        if array.device != self.device:
            raise ValueError(f"{name} is on {array.device}, others are on {self.device}")
        shape = array.shape
        if len(shape) != len(sizes) or any(s not in (None, n) for s, n in zip(sizes, shape)):
            raise ValueError(f"{name} must be [{text}], got {list(shape)}")
        return array

    def take(self, name: str, sizes, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The next array, of these sizes (None: any), contiguous."""
        return self._next(name, sizes, dtype or self.dtype).contiguous().resolve_neg()

    def take_optional(self, name: str, sizes, dtype=None) -> torch.Tensor | None:
        if self.peek() is not None:
            return self.take(name, sizes, dtype)
        del self.left[0]
        return None

    def result(self, name: str, sizes) -> torch.Tensor:
        """The next array, to write to."""
        array = self._next(name, sizes, self.dtype)
        if not array.is_contiguous():
            raise ValueError(f"{name} must be contiguous")
        return array

    def result_optional(self, name: str, sizes) -> torch.Tensor | None:
        if self.peek() is not None:
            return self.result(name, sizes)
        del self.left[0]
        return None

    def finish(self) -> None:
        if self.left:
            raise ValueError("too many arrays")


def start(kernel, grid: tuple[int, ...], *arguments, **options) -> None:
    """Launch a kernel, unless there is nothing to do."""
    if all(grid):
        kernel[grid](*arguments, **{"enable_fp_fusion": True, **options})


def over_channels(kernel, rows: int, channels: int, operands, results, **options) -> None:
    """Launch a program per row and block of channels, with one thread per channel.

    Args:
        kernel: with constants ``C``, the channels, and ``BLOCK``, those of a program.
        rows: programs for a block.
        channels: of a row.
        operands: of the kernel.
        results: that it writes to, behind the operands.
        options: other constants and options of the kernel.
    """

    def run(block: int, *results) -> None:
        sizes = {"C": channels, "BLOCK": block, "num_warps": block // 32}
        grid = rows, -(-channels // block)
        start(kernel, grid, *operands, *results, **sizes, **options)

    tuning.run_fastest(kernel, rows, lanes(channels), run, results, channels, options)


def lanes(channels: int) -> tuple[int, ...]:
    """Channels of a program that are possible, the one that is usual first."""
    return (32,) if channels <= 32 else (64, 32) if channels <= 64 else (64, 32, 128)


def words(array: torch.Tensor) -> int:
    """Registers of a number in sums."""
    return 2 if array.dtype == torch.float64 else 1


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """In which sums of numbers of a dtype are made."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def real(array: torch.Tensor):
    """The same, as Triton names it."""
    language = importlib.import_module("triton.language")
    return language.float64 if array.dtype == torch.float64 else language.float32


def _parsed(constants: torch.Tensor, parse: Callable):
    if constants.dtype == torch.int64 and constants.dim() == 1 and len(constants):
        numbers, values = unpack(constants)
        wrong = IndexError, KeyError, RuntimeError, StopIteration, TypeError, ValueError
        with contextlib.suppress(*wrong):
            return parse(tuple(numbers), tuple(values))
    raise ValueError("constants are not those of a layer of this operator")


# ``parse(numbers, values)``. Constants are read from the device once per layer: that waits for it.
constants_of = PerTensor(_parsed)
