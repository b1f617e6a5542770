"""Generated source of kernels: kept as files that can be read, and imported."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from gaunt_plugin._compiler import cache

HEAD = """import triton
import triton.language as tl
"""


def indented(lines: Iterable[str], levels: int) -> str:
    """Lines of a block, at a depth."""
    return "\n".join("    " * levels + line for line in lines)


@functools.cache
def module_of(name: str, text: str) -> ModuleType:
    """Import source through a file in the cache, where Triton and its users can read it.

    The name of the file depends on the text, and the text is compared before it is run.
    """
    key = digest(text)
    path = cache("triton") / f"{name}-{key}.py"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write(path, text)
    spec = importlib.util.spec_from_file_location(f"gaunt_triton_{name}_{key}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digest(text: str) -> str:
    """For names of files."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write(path: Path, text: str) -> None:
    """In one step: other processes may read the file at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(scratch, path)
