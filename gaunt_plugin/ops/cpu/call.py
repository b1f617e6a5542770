"""Calls of the compiled kernels, see operators.h."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Sequence

import torch

from gaunt_plugin.ops.cpu.build import library
from gaunt_plugin.ops.cpu.wheel import cpuinfo

FORWARD, BACKWARD, DOUBLE_BACKWARD = range(3)
DTYPES = (torch.float32, torch.float64)
_TYPES = {torch.float32: 0, torch.float64: 1, torch.int64: 2}
_ERRORS = {1: ValueError, 2: IndexError, 3: MemoryError, 4: RuntimeError}
_LEFT_OUT = (0, 0, -1, 0, 0, 0, 0)  # address, type, number of axes, four sizes: a GauntArray
_POINTER = {0: ctypes.c_float, 1: ctypes.c_double}
_MATMUL = ctypes.CFUNCTYPE(
    ctypes.c_int, *[ctypes.c_int64] * 6, *[ctypes.c_void_p] * 3, ctypes.c_int64
)


def call(name: str, number: int, arrays: Sequence[torch.Tensor | None]) -> None:
    """Run a pass of a kernel.

    Args:
        name: of the operator.
        number: ``FORWARD``, ``BACKWARD`` or ``DOUBLE_BACKWARD``.
        arrays: constants, operands, gradient, directions and results, in the order of operators.h;
            results are contiguous and written to.

    Raises:
        ValueError: an array doesn't fit; the message names it.
        IndexError: an index of an edge is out of range.
        MemoryError: out of memory.
        RuntimeError: the kernels are not built for this machine.
    """
    kernels = library()
    if kernels is None:
        raise RuntimeError(
            "this model was compiled with calls of gaunt_plugin's CPU kernels, which are not built "
            "for this machine: run gaunt build kernels (and leave GAUNT_KERNELS=0 away)"
        )
    fields: list[int] = []
    kept = []  # copies live until the kernel is done
    for array in arrays:
        if array is None:
            fields += _LEFT_OUT
            continue
        kind, dim = _TYPES.get(array.dtype), array.dim()
        if kind is None or not array.is_cpu or dim > 4:
            raise ValueError(
                "kernels take arrays of float32, float64 or int64 on the CPU, got one of "
                f"{array.dtype} on {array.device} with {dim} axes"
            )
        if not array.is_contiguous() or array.is_neg():
            array = array.contiguous().resolve_neg()
            kept.append(array)
        fields += (array.data_ptr(), kind, dim, *array.shape, *_LEFT_OUT[: 4 - dim])
    message = ctypes.create_string_buffer(512)
    status = _kernel(kernels, name)(
        number,
        struct.pack(f"{len(fields)}q", *fields),
        len(arrays),
        torch.get_num_threads(),
        _matmul,
        message,
    )
    if status:
        text = message.value.decode(errors="replace")
        raise _ERRORS.get(status, RuntimeError)(f"gaunt::{name}: {text}")


@functools.cache
def _kernel(kernels: ctypes.CDLL, name: str):
    kernel = kernels[f"gaunt_{name}"]
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    kernel.argtypes = [number, pointer, number, number, _MATMUL, ctypes.c_char_p]
    return kernel


@_MATMUL
def _matmul(kind, transpose_a, transpose_b, m, n, k, a, b, c, accumulate) -> int:
    """Multiply by torch: the product of matrices, for a kernel."""
    try:
        a = _matrix(kind, a, *((k, m) if transpose_a else (m, k)))
        b = _matrix(kind, b, *((n, k) if transpose_b else (k, n)))
        c = _matrix(kind, c, m, n)
        with torch.no_grad():
            if kind == 0 and not transpose_a and _onednn():
                weight = b if transpose_b else b.t()
                product = torch.ops.mkldnn._linear_pointwise(a, weight, None, "none", [], "")
                c.add_(product) if accumulate else c.copy_(product)
                return 0
            torch.addmm(
                c,
                a.t() if transpose_a else a,
                b.t() if transpose_b else b,
                beta=int(accumulate != 0),
                out=c,
            )
    except BaseException:  # it can't pass through C
        return 1
    return 0


@functools.cache
def _onednn() -> bool:
    """Whether to multiply by oneDNN.

    torch's own way is MKL, which has no AVX-512 for other processors than Intel's, and there takes
    twice as long.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    text = cpuinfo()
    if not text or "GenuineIntel" in text:
        return False
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def _matrix(kind: int, address: int, rows: int, columns: int) -> torch.Tensor:
    dtype = DTYPES[kind]
    if rows * columns == 0:
        return torch.empty(rows, columns, dtype=dtype)
    memory = (_POINTER[kind] * (rows * columns)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).view(rows, columns)
