"""Compile the kernels for this machine, and find them. Standard library only."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
import time
from pathlib import Path

from gaunt_plugin._compiler import BuildError, cache, find_compiler, first_errors
from gaunt_plugin.ops.cpu import wheel
from gaunt_plugin.ops.cpu.wheel import SOURCES


def build(*, force: bool = False, report=print) -> Path:
    """Compile the kernels, unless this compiler has made them already.

    ``GAUNT_CXXFLAGS`` has further options for the compiler.

    Args:
        force: compile even if they are there.
        report: called with lines of text.

    Returns:
        The library that the layers will load.

    Raises:
        BuildError: no compiler, or it fails; the message says what to do.
    """
    target = path()
    made_by = target.with_suffix(".compiler")
    if not force and target.is_file() and _is_current(made_by):
        report(f"the kernels are built already: {target}")
        return target
    compiler = find_compiler()
    report(f"Compiling the CPU kernels with {shlex.join(compiler)}, about half a minute")
    start = time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    # Built beside its place and moved there in one step: no half a library is ever loaded.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as scratch:
        out = Path(scratch) / "kernels.so"
        command = command_of(compiler, out, "-march=native", *_extra_options())
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode != 0:
            raise BuildError(f"compiling failed: {' '.join(command)}\n{first_errors(done.stdout)}")
        try:
            ctypes.CDLL(str(out))
        except OSError as error:
            raise BuildError(f"the compiled kernels don't load: {error}") from error
        made_by.unlink(missing_ok=True)  # it never names a compiler of another library
        out.replace(target)
        made_by.write_text(_identity(compiler), encoding="utf-8")
    report(f"Built with {shlex.join(compiler)} in {time.monotonic() - start:.0f} s: {target}")
    return target


def command_of(compiler: list[str], out: Path, *flags: str) -> list[str]:
    """The command that compiles the kernels to a shared library."""
    sources = [str(source) for source in SOURCES if source.suffix == ".cpp"]
    options = ["-std=c++17", "-O3", "-fPIC", "-shared", "-fopenmp", *flags]
    return [*compiler, *options, "-o", str(out), *sources]


def path() -> Path:
    """Where the library lies or will lie: another one for other sources, options or processors.

    The compiler's own version is left to :func:`build`: it decides what is compiled anew, while
    finished kernels also serve where there is another compiler, or none.
    """
    parts = [source.read_bytes() for source in SOURCES]
    parts += [text.encode() for text in (wheel.processor(), *_extra_options())]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    return cache("kernels") / f"kernels-{platform.machine()}-{key}.so"


def _extra_options() -> list[str]:
    return shlex.split(os.environ.get("GAUNT_CXXFLAGS", ""))


def _identity(compiler: list[str]) -> str:
    """The compiler's command and what it says of its version."""
    command = [*compiler, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{shlex.join(compiler)}\n{done.stdout}"


def _is_current(made_by: Path) -> bool:
    """Whether another build would use the same compiler, or there is none for one."""
    try:
        identity = _identity(find_compiler())
    except BuildError:
        return True
    return made_by.is_file() and made_by.read_text(encoding="utf-8") == identity


def switched_off() -> bool:
    """Whether the user wants the plain path."""
    return os.environ.get("GAUNT_KERNELS", "1") == "0"


def in_use() -> Path | None:
    """The library that layers use here: built here, or else of the wheel. Loads nothing."""
    if switched_off() or not SOURCES:
        return None
    own = path()
    return own if own.is_file() else wheel.find()


def is_built() -> bool:
    """Whether layers use kernels here; loads nothing."""
    return in_use() is not None


@functools.lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where there are none or ``GAUNT_KERNELS`` is 0.

    Raises:
        BuildError: they are there but can't be loaded.
    """
    target = in_use()
    if target is None:
        return None
    try:
        return wheel.load(target) if wheel.holds(target) else ctypes.CDLL(str(target))
    except OSError as error:
        raise BuildError(
            f"{target} can't be loaded ({error}): run gaunt build kernels --force, or set "
            "GAUNT_KERNELS=0"
        ) from error


def status() -> str:
    """One line for logs."""
    if switched_off():
        return "CPU kernels: switched off by GAUNT_KERNELS=0"
    if library() is None:
        return f"CPU kernels: not built, {wheel.why_not()}; to compile them: gaunt build kernels"
    target = in_use()
    origin = "of the wheel" if wheel.holds(target) else "built here"
    return f"CPU kernels: {origin}, {target}"
