"""The kernels' common C interface."""

from __future__ import annotations

import ctypes

import numpy as np
import torch

from gaunt_plugin.kernels.build import library

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


def is_available(*tensors: torch.Tensor) -> bool:
    """Whether there is a kernel for these inputs, of one dtype but for indices.

    Layers ask :func:`gaunt_plugin.layers._tracing.has_kernel`.
    """
    dtype = tensors[0].dtype
    return (
        library() is not None
        and dtype in _SUFFIX
        and all(t.device.type == "cpu" for t in tensors)
        and all(t.dtype == dtype for t in tensors if t.is_floating_point())
        and not torch._C._are_functorch_transforms_active()
    )


def make_program(numbers: list[int], values: list[float]) -> torch.Tensor:
    """What a kernel knows of its layer, in one tensor that no change of dtype touches."""
    bits = np.array(values, dtype=np.float64).view(np.int64)
    return torch.from_numpy(np.concatenate([[len(numbers)], numbers, bits]).astype(np.int64))


def call(
    name: str,
    program: torch.Tensor,
    sizes: list[int],
    index: torch.Tensor | None,
    inputs: list[torch.Tensor],
    outputs: list[torch.Tensor],
) -> None:
    """Run a kernel; kernels.h has the order of sizes, inputs and outputs.

    Args:
        name: ``"convolution"``, ``"rotation"`` or ``"powers"``.
        program: of :func:`make_program`.
        sizes: without the number of threads.
        index: of edges, or None.
        inputs: of one dtype.
        outputs: contiguous.

    Raises:
        IndexError: the index has numbers that are out of range.
        TypeError: the inputs have several dtypes.
        RuntimeError: the kernels are not built for this machine.
    """
    if library() is None:
        raise RuntimeError(
            "this model was compiled with calls of gaunt_plugin's CPU kernels, which are not built "
            "for this machine: run gaunt-kernels build (and leave GAUNT_KERNELS=0 away)"
        )
    inputs = [t.contiguous() for t in inputs]
    if any(t.dtype != inputs[0].dtype for t in inputs):
        raise TypeError(f"inputs must be of one dtype, got {[t.dtype for t in inputs]}")
    if index is not None:
        index = index.to(torch.int64).contiguous()
    function = getattr(library(), f"gaunt_{name}_{_SUFFIX[inputs[0].dtype]}")
    failed = function(
        ctypes.c_void_p(program.data_ptr()),
        (ctypes.c_int64 * (len(sizes) + 1))(*sizes, torch.get_num_threads()),
        ctypes.c_void_p(None if index is None else index.data_ptr()),
        (ctypes.c_void_p * 7)(*(t.data_ptr() for t in inputs)),
        (ctypes.c_void_p * 5)(*(t.data_ptr() for t in outputs)),
    )
    if failed:
        raise IndexError(
            f"edge_index has indices from {index.min()} to {index.max()} for {sizes[0]} nodes"
        )


def zeros_like(tensors):
    """Contiguous arrays for derivatives; kernels add to some of them."""
    return [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in tensors]
