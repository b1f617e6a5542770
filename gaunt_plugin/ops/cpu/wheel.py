"""CPU kernels that come with the installed package: for a kind of processor, not for this one.

``hatch_build.py`` compiles them when a wheel is built, also within ``pip install .``, from this
file alone. Standard library only.

They are linked to no OpenMP library and find the functions of the one that torch has loaded: two
of them in a process would mean two sets of threads.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shlex
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gaunt_plugin._compiler import BuildError, find_compiler, first_errors

# All of them; empty where this code runs inside of a package of NequIP.
SOURCES = [p for kind in ("*.cpp", "*.h") for p in sorted(Path(__file__).parent.glob(kind))]
FOLDER = Path(__file__).parent / "compiled"
REASON = "none.txt"  # in that folder: why there are no kernels

# Kinds of processors, the best first, and the extensions that each needs: options of the compiler
# (-mNAME) and words of /proc/cpuinfo alike.
_V3 = ("avx2", "fma", "bmi2")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
KINDS = {"x86_64": {"x86-64-v4": _V4, "x86-64-v3": _V3}, "aarch64": {"aarch64": ()}}
KINDS["arm64"] = KINDS["aarch64"]  # as macOS calls it


def compile_all(folder: Path, report=print) -> list[Path]:
    """Compile the kernels for every kind of this machine's processors.

    Without a compiler, or if it fails, a text in the folder says so.

    Args:
        folder: where to put them.
        report: called with lines of text.

    Returns:
        The libraries: one per kind, or none.
    """
    try:
        if os.environ.get("GAUNT_KERNELS") == "0":
            raise BuildError("GAUNT_KERNELS=0 was set")
        compiler = find_compiler()
        kinds = KINDS.get(platform.machine(), {})
        if not kinds:
            raise BuildError(f"none are known for {platform.machine()}")
        report(f"Compiling CPU kernels for {', '.join(kinds)} with {shlex.join(compiler)}")
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda kind: _compile(compiler, kind, folder), kinds.items()))
    except BuildError as error:
        report(f"Going on without CPU kernels: {error}")
        (folder / REASON).write_text(f"{error}\n", encoding="utf-8")
        return []


def _compile(compiler: list[str], kind: tuple[str, tuple[str, ...]], folder: Path) -> Path:
    name, extensions = kind
    target = folder / f"kernels-{name}.so"
    with tempfile.TemporaryDirectory() as scratch:

        def run(*arguments: str) -> None:
            command = [*compiler, *arguments]
            done = subprocess.run(
                command,
                cwd=scratch,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                text = first_errors(done.stdout)
                raise BuildError(f"compiling failed: {shlex.join(command)}\n{text}")

        sources = [str(source.resolve()) for source in SOURCES if source.suffix == ".cpp"]
        # Apple's compiler has no OpenMP: there kernels run in one thread.
        openmp = ["-fopenmp"] * (platform.system() != "Darwin")
        options = ["-std=c++17", "-O3", "-fPIC", *openmp, *(f"-m{name}" for name in extensions)]
        run(*options, "-c", *sources)
        # Without -fopenmp: see above.
        objects = [f"{Path(source).stem}.o" for source in sources]
        run("-shared", "-s", *objects, "-o", str(target.resolve()))
    return target


def find() -> Path | None:
    """The best kernels of this installation for this processor."""
    extensions = set(processor().split())
    for name, needed in KINDS.get(platform.machine(), {}).items():
        path = FOLDER / f"kernels-{name}.so"
        if path.is_file() and extensions.issuperset(needed):
            return path
    return None


def holds(path: Path) -> bool:
    """Whether these are kernels of the installation, not built by its user."""
    return path.parent == FOLDER


def why_not() -> str:
    """Why :func:`find` found none."""
    reason = FOLDER / REASON
    if reason.is_file():
        first, *_ = reason.read_text(encoding="utf-8").splitlines()
        return f"this package was installed without them, {first}"
    if not any(FOLDER.glob("kernels-*")):
        return "a source tree has none"
    return "those of the wheel are for other processors"


def load(path: Path) -> ctypes.CDLL:
    """Load kernels that :func:`find` found.

    Raises:
        OSError: they don't fit the system.
    """
    import torch  # noqa: F401 (brings OpenMP)

    try:
        return ctypes.CDLL(str(path))
    except OSError:
        # A torch that keeps its OpenMP to itself: the system's will do.
        ctypes.CDLL("libgomp.so.1", ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(path))


def processor() -> str:
    """Names of this processor's extensions, as far as the system tells."""
    found = re.search(r"^(?:flags|Features)\s*:.*$", cpuinfo(), re.MULTILINE)
    return found[0] if found else platform.processor()


def cpuinfo() -> str:
    """What Linux tells of the processor; empty elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
