"""Whether Python runs for its result, or only once to record a graph."""

import torch

from gaunt_plugin.kernels._call import is_available


def is_traced() -> bool:
    """True under ``torch.compile``, ``torch.export`` and ``make_fx``; False in TorchScript.

    A graph must hold neither sizes that depend on data nor loops over blocks of a size.
    """
    if torch.jit.is_scripting():
        return False
    return _is_traced()


@torch.jit.unused
def _is_traced() -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    return get_proxy_mode() is not None


def calls_kernel(x: torch.Tensor) -> bool:
    """Whether a program of a layer prepared by ``put_into_programs`` calls a kernel; scriptable."""
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript compiles the right-hand side of `or`)
        if not _is_traced():
            return False
    return x.device.type == "cpu" and (x.dtype == torch.float32 or x.dtype == torch.float64)


def has_kernel(*tensors: torch.Tensor) -> bool:
    """Whether a compiled kernel takes these inputs; not in programs, nor for TorchScript."""
    return not _is_traced() and is_available(*tensors)
