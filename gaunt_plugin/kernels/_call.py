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


def call(
    name: str,
    tables: tuple[np.ndarray, np.ndarray],
    sizes: list[int],
    index: torch.Tensor | None,
    inputs: list[torch.Tensor],
    outputs: list[torch.Tensor],
) -> int:
    """Run ``name``; what it returns is not 0 if it refuses.

    Args:
        name: of the function, without the dtype.
        tables: int64 and float64, what is known when a layer is made.
        sizes: of this call.
        index: int64, contiguous, or None.
        inputs: at most 7; those that are missing at the end are null.
        outputs: contiguous, at most 4.
    """
    inputs = [t.contiguous() for t in inputs]
    function = getattr(library(), f"{name}_{_SUFFIX[inputs[0].dtype]}")
    return function(
        *(ctypes.c_void_p(table.ctypes.data) for table in tables),
        (ctypes.c_int64 * (len(sizes) + 1))(*sizes, torch.get_num_threads()),
        ctypes.c_void_p(None if index is None else index.data_ptr()),
        (ctypes.c_void_p * 7)(*(t.data_ptr() for t in inputs)),
        (ctypes.c_void_p * 4)(*(t.data_ptr() for t in outputs)),
    )


class Kernel:
    """Derivatives as :func:`gaunt_plugin.kernels.fused.fused` calls them; beside ``forward``."""

    def gradient(self, g, *inputs):
        """Gradients of ``<g, forward>`` with respect to the inputs."""
        out = _empty_like(inputs)
        self._run([*inputs, g], out)
        return out

    def second(self, g, *inputs_and_v):
        """Gradients of ``<v, gradient>`` with respect to g and the inputs."""
        *inputs, v = inputs_and_v
        out = _empty_like([g, *inputs])
        self._run([*inputs, g, *v], out)
        return out

    def _run(self, inputs: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        raise NotImplementedError


def _empty_like(tensors):
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors]
