"""The first steps of a newcomer: what the examples say when something is missing."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def fails(*command):
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


def test_dynamics_in_a_python_without_packages():
    # Without site-packages, as the Python of the system is.
    message = fails("-I", "-S", "examples/md_ase.py", "3bpa-small", "--steps", "5")
    assert "has no numpy" in message
    assert ".venv-mace/bin/python examples/md_ase.py 3bpa-small --steps 5" in message


@pytest.mark.parametrize(
    "command",
    [
        ["examples/md_ase.py", "nowhere.model"],
        ["examples/md_ase.py", "3bpa-small", "--start", "nowhere.xyz"],
        ["examples/tutorial.py", "--data", "nowhere.xyz"],  # before it makes an environment
    ],
)
def test_a_file_that_is_missing(command):
    assert f"there is no file {command[-1]}" in fails(*command)


@pytest.mark.parametrize(
    "command",
    [
        ["examples/md_ase.py", "3bpa-small", "--steps", "0"],
        ["examples/md_ase.py", "3bpa-small", "--timestep", "-0.5"],
        ["examples/md_ase.py", "3bpa-small", "--temperature", "nan"],
        ["examples/tutorial.py", "--epochs", "0"],
        ["examples/tutorial.py", "--cutoff", "-4"],
    ],
)
def test_numbers_that_make_no_sense(command):
    assert f"{command[-2]} must be positive" in fails(*command)


def test_pip_without_a_network(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(ROOT / "examples")
    environment = importlib.import_module("environment")

    def pip(command, show, env=None):
        show("WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnection'\n")
        show("ERROR: No matching distribution found for hatchling\n")
        return 1

    monkeypatch.setattr(environment, "stream", pip)
    monkeypatch.setattr(environment, "_works", lambda python, statement: True)
    monkeypatch.setattr(environment, "_fingerprint", lambda *of: "")
    with pytest.raises(SystemExit, match="doesn't reach its package index") as error:
        environment.ensure(tmp_path, "mace")
    assert "install.log" in str(error.value)
    assert "hatchling" in capsys.readouterr().out


def test_the_quickstart_writes_what_the_lammps_inputs_read(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    quickstart = importlib.import_module("quickstart")
    for name in ("molecule", "box"):
        text = (ROOT / "examples" / "lammps" / f"{name}.in").read_text(encoding="utf-8")
        (model,) = re.findall(r"^variable model index (\S+)", text, re.MULTILINE)
        assert model == quickstart.EXPORTED["mace"]
