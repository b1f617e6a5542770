"""The C++ compiler and the folder of what it has made. Standard library only, and quick."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

_COMPILERS = ("g++", "clang++", "c++")


class BuildError(RuntimeError):
    """Something can't be built or found; the message says why and what to do."""


def cache(part: str) -> Path:
    """Folder of the builds of a part: in ``$GAUNT_PLUGIN_CACHE``, or in the user's cache."""
    if own := os.environ.get("GAUNT_PLUGIN_CACHE"):
        return Path(own) / part
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gaunt_plugin" / part


def find_compiler() -> list[str]:
    """Command of the compiler: ``$CXX``, or the first of the usual ones that is there.

    ``$CXX`` is a program, or a program and its flags as a shell reads them.

    Raises:
        BuildError: there is none.
    """
    if own := os.environ.get("CXX", "").strip():
        if shutil.which(own):
            return [own]  # blanks and all
        try:
            command = shlex.split(own)
        except ValueError:  # a quotation mark without its partner
            command = []
        if not command or shutil.which(command[0]) is None:
            raise BuildError(f"CXX is {own!r}, which is not a program")
        return command
    for name in _COMPILERS:
        if shutil.which(name):
            return [name]
    raise BuildError(
        "no C++ compiler found: install one (for example: apt install g++, or "
        "conda install -c conda-forge gxx) or name it in CXX"
    )


def sanitizers(compiler: list[str]) -> list[str]:
    """Libraries that a process linked without sanitizers must load before all others.

    Raises:
        BuildError: the compiler has none.
    """
    found = []
    # That of addresses looks for the one of C++ exceptions when it starts.
    for name in ("libasan.so", "libstdc++.so"):
        command = [*compiler, f"-print-file-name={name}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        path = Path(done.stdout.strip())
        if not path.is_absolute():
            raise BuildError(f"sanitizers need g++ and its {name}, which {compiler[0]} lacks")
        found.append(str(path.resolve()))
    return found


def first_errors(text: str) -> str:
    """The first errors of a compiler's output: the rest mostly follows from them."""
    errors = [line for line in text.splitlines() if "error" in line.lower()]
    return "\n".join((errors or text.splitlines())[:10])
