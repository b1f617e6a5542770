"""The tutorial on few frames, one epoch and a few steps."""

import argparse
import ast
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.io import read, write

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "examples" / "3bpa_sample"


@pytest.mark.training
def test_tutorial(tmp_path):
    """With names of energies and forces that are not ASE's, and no isolated atoms."""
    frames = read(SAMPLE / "train_300K.xyz", ":12")
    for frame in frames:
        frame.info["E"], frame.arrays["F"] = frame.get_potential_energy(), frame.get_forces()
        frame.calc = None
    write(tmp_path / "own.xyz", frames)
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "examples/tutorial.py", "--installed", "--engine", "ase"]
        + ["--data", str(tmp_path / "own.xyz"), "--energy-key", "E", "--forces-key", "F"]
        + ["--out", str(out), "--epochs", "1", "--steps", "20"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "E0s: average" in done.stdout
    assert "epoch 1 of 1: errors of energies " in done.stdout
    assert "The total energy drifts by " in done.stdout
    assert (out / "tutorial.png").stat().st_size > 10_000


def test_isolated_atoms_in_the_file(tmp_path, monkeypatch):
    """Energies and forces where ASE keeps those of a calculator."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    tutorial = importlib.import_module("tutorial")
    frames = read(SAMPLE / "train_300K.xyz", ":12") + read(SAMPLE / "iso_atoms.xyz", ":")
    write(tmp_path / "own.xyz", frames)
    args = argparse.Namespace(
        data=tmp_path / "own.xyz", energy_key="energy", forces_key="forces", e0s=None, out=tmp_path
    )
    test, e0s = tutorial.split(args)
    assert ast.literal_eval(e0s) == {1: -10.707211, 6: -48.79808, 7: -70.908087, 8: -102.521807}
    rest = read(tmp_path / "train.xyz", ":")
    assert (len(test), len(rest)) == (5, 7)
    energies = {frame.info["REF_energy"] for frame in [*test, *rest]}
    assert energies == {frame.get_potential_energy() for frame in frames[:12]}
    assert np.abs(rest[0].arrays["REF_forces"]).max() > 0.1


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
