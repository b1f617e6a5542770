"""GPU kernels in Triton, generated per layer from its constants.

``GAUNT_KERNELS=0`` switches them off, as it does those of the CPU. Without Triton, which CUDA
builds of torch bring along, the plain forms run.
"""

from __future__ import annotations

import functools
import importlib

import torch

from gaunt_plugin.ops.cpu.build import switched_off

OLDEST = (8, 0)  # compute capability: what current releases of Triton compile for


def ready(device: torch.device) -> bool:
    """Whether layers use the kernels on a device."""
    return not switched_off() and triton_version() is not None and _is_new_enough(device)


@functools.cache
def triton_version() -> str | None:
    """Version of the Triton that can be imported here."""
    try:
        return importlib.import_module("triton").__version__
    except ImportError:
        return None


@functools.cache
def _is_new_enough(device: torch.device) -> bool:
    # On the CPU it is Triton's interpreter that runs, in tests.
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= OLDEST


def status() -> str:
    """One line for logs."""
    if switched_off():
        return "GPU kernels: switched off by GAUNT_KERNELS=0"
    if triton_version() is None:
        return "GPU kernels: none, triton can't be imported (pip install triton)"
    if torch.cuda.is_available() and not _is_new_enough(torch.device("cuda")):
        return "GPU kernels: none for this GPU, they need compute capability 8.0"
    return f"GPU kernels: triton {triton_version()}"
