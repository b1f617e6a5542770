"""The tutorial on few frames, one epoch and a few steps."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.io import read, write

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "examples" / "3bpa_sample"


@pytest.mark.training
@pytest.mark.parametrize("e0s", [None, "average"])
def test_tutorial(tmp_path, e0s):
    """With energies and forces where ASE keeps those of a calculator, and under other names."""
    frames = read(SAMPLE / "train_300K.xyz", ":12")
    options = ["--e0s", e0s] if e0s else []
    if e0s is None:
        frames += read(SAMPLE / "iso_atoms.xyz", ":")
    else:
        for frame in frames:
            frame.info["E"], frame.arrays["F"] = frame.get_potential_energy(), frame.get_forces()
            frame.calc = None
        options += ["--energy-key", "E", "--forces-key", "F"]
    write(tmp_path / "own.xyz", frames)
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "examples/tutorial.py", "--installed", "--engine", "ase"]
        + ["--data", str(tmp_path / "own.xyz"), "--out", str(out), *options]
        + ["--epochs", "1", "--steps", "20"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch 1 of 1: errors of energies " in done.stdout
    assert ("-48.79" in done.stdout) == (e0s is None)
    assert "The total energy drifts by " in done.stdout
    assert (out / "tutorial.png").stat().st_size > 10_000
    assert np.isfinite(read(out / "test.xyz", 0).arrays["REF_forces"]).all()


def test_what_the_tutorial_needs(tmp_path):
    write(tmp_path / "own.xyz", read(SAMPLE / "train_300K.xyz", ":12"))
    for options, answer in (
        (["--energy-key", "E"], "a frame has no E; it has "),
        (["--forces-key", "F"], "a frame has no F; it has numbers, positions"),
        (["--data", str(SAMPLE / "iso_atoms.xyz")], "has 0 frames of several atoms"),
    ):
        done = subprocess.run(
            [sys.executable, "examples/tutorial.py", "--installed", "--engine", "ase"]
            + ["--data", str(tmp_path / "own.xyz"), "--out", str(tmp_path / "out"), *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert answer in done.stderr, done.stderr
