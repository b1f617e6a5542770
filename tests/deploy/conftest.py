"""Models of the host that is installed, and the files that they are exported to.

The same tests run in both environments. ``tests/lammps`` takes these fixtures from here.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("mace"):
    from . import mace_models as host  # before anything imports e3nn 0.4.4
else:
    from . import nequip_models as host

from gaunt_plugin.deploy.program import run_as_written

from ..once import once


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Models of the host by name, ``gaunt``, ``stock`` and others, as its helpers know them."""
    return host.make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def exported(models, tmp_path_factory):
    """Exported files by name and dtype, written when first asked for."""

    def get(name: str, dtype: str = "float64", radial: str = "exact") -> Path:
        def export(folder: Path) -> None:
            host.write(models[name], folder / "model.pt", dtype, radial)

        return once(tmp_path_factory, f"{name}-{dtype}-{radial}", export) / "model.pt"

    return get


@pytest.fixture(scope="session")
def calculator(models):
    """The host's own ASE calculator in float64."""
    return lambda name: host.calculator(models[name])


@pytest.fixture(scope="session", autouse=True)
def small_models_fast():
    """One thread, and TorchScript as LAMMPS runs it: otherwise it compiles for each array size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with run_as_written():
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def same_default_dtype():
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def python():
    """Run a Python program in a new process, with variables from the caller's environment."""

    def run(code: str, *arguments: object, check: bool = True, **env: str):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(
            command,
            check=check,
            capture_output=True,
            text=True,
            timeout=200,
            env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        )

    return run
