"""The benchmarks run, on tiny cases of every kind."""

import argparse
import csv
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOST = "mace" if importlib.util.find_spec("mace") else "nequip"
PEER = {"mace": "MACE, converted", "nequip": "NequIP, compiled"}
MODELS = {
    "mace": ["degree", "calculator", "exported", "many-body", "ASE"],
    "nequip": ["l_max", "exported", "ASE"],
}


def test_quick_run_writes_measurements_and_a_page(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra 'benchmarks' is not installed")
    out = tmp_path / "results"
    command = [sys.executable, ROOT / "benchmarks" / "run.py", "--quick", "--peers", "--out", out]
    command += ["--seconds", "120"]  # this machine may be busy
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr

    lines = (out / f"{HOST}-cpu.csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("# ")))
    for kind in ["ceilings", "feature interaction", "convolution", *MODELS[HOST]]:
        assert any(kind in row["series"] for row in rows), kind
    for row in rows:
        if "not installed" in row["result"]:
            continue
        assert row["result"] == "ok", row
        assert float(row["median"]) > 0, row
        assert float(row["memory_peak"]) >= float(row["memory_before"]) > 0, row
    assert {"forward", "forward + backward", "training on forces"} <= {r["work"] for r in rows}
    steps = {r["contender"] for r in rows if (r["work"], r["result"]) == ("training step", "ok")}
    assert PEER[HOST] in steps
    assert all(int(r["bytes"]) > 0 for r in rows if r["work"] == "forward")

    page = out.with_suffix(".md").read_text()
    for row in rows:
        assert row["shape"] in page, row


@pytest.mark.parametrize("path", sorted(ROOT.glob("benchmarks/*.py")), ids=lambda p: p.stem)
def test_numbers_of_command_lines_are_positive_or_named(path):
    options = re.findall(r"add_argument\((?:[^()]|\([^()]*\))*\)", path.read_text())
    for option in options:
        assert not re.search(r"type=(int|float)\b", option) or "choices=" in option, option


@pytest.mark.parametrize(("kind", "text"), [(int, "0"), (float, "-0.5"), (float, "nan")])
def test_positive_refuses(kind, text, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from arguments import positive

    parse = positive(kind)
    assert parse("3") == 3
    with pytest.raises(argparse.ArgumentTypeError, match="is not positive"):
        parse(text)


@pytest.mark.skipif(HOST != "nequip", reason="NequIP sets torch's default dtype itself")
def test_models_of_nequip_have_the_dtype_of_their_row():
    program = f"""
import sys, torch
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
import nequip_speed
for _ in range(2):
    model = nequip_speed.model(1, 1, 2, 2)
    assert torch.get_default_dtype() == torch.float64
    print({{p.dtype for p in model.parameters()}})
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-2:] == 2 * ["{torch.float32}"]


FAILURES = {
    "time.sleep(60)": "> 0.5 s",
    "torch.zeros(1 << 40)": "out of memory",
    "os._exit(1)": "out of memory",
    "1 / 0": "ZeroDivisionError: division by zero",
}


def test_a_contender_that_fails_says_so_and_is_not_tried_again():
    program = f"""
import os, sys, time, torch
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
from timing import Case, Settings, Work, measure
calls = dict(good=lambda: 0, {", ".join(f"c{i}=lambda: {c}" for i, c in enumerate(FAILURES))})
given_up = {{}}
for x in (1, 2):
    contenders = {{name: lambda c=call: Work({{"work": c}}) for name, call in calls.items()}}
    settings = Settings(seconds=0.5, memory=1e9, threads=1, repeats=1)
    print([row.result for row in measure(Case("series", x, "", contenders), settings, given_up)])
print([why for (_, _, work), why in given_up.items() if not work])
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    results = list(FAILURES.values())
    assert done.stdout.splitlines() == [
        str(r) for r in (["ok", *results], ["ok", *results], results)
    ]


def test_md_goes_on_and_counts_broken_molecules(tmp_path, monkeypatch):
    import ase.io

    sample = ROOT / "examples" / "3bpa_sample" / "test_300K.xyz"
    command = [sys.executable, ROOT / "benchmarks" / "md_stability.py", "3bpa-small"]
    command += ["--start", sample, "--copies", "2"]
    command += ["--work", tmp_path, "--timestep", "1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    bare = tmp_path / "positions.xyz"  # a reference without forces
    frames = ase.io.read(sample, ":")
    for frame in frames:
        frame.calc = None
    ase.io.write(bare, frames)
    for ps, reference in ("0.1", bare), ("0.3", sample):
        options = ["--ps", ps, "--reference", f"300={reference}"]
        done = subprocess.run(
            [*command, *options], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert ("virial of the reference" in done.stdout) == (reference == sample)
    assert ": 2 x 0.3 ps" in done.stdout
    assert " 0 of 6 molecules in pieces" in done.stdout

    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import md_stability
    import numpy as np
    from ase.io import Trajectory

    frames = Trajectory(tmp_path / "3bpa-small-300K.traj")
    assert len(frames) == 3
    pairs = md_stability.distances(frames, len(frames[0]) // 2)
    assert all(md_stability.whole(p) for p in pairs)
    broken = frames[0].positions[: len(frames[0]) // 2].copy()
    broken[0] += 10
    assert not md_stability.whole(md_stability.pdist(broken))
    assert md_stability.difference(pairs, pairs) == 0
    assert md_stability.difference(pairs, np.full_like(pairs, 18.0)) == 1


def test_the_virial_tells_which_forces_sampled(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import md_stability
    import numpy as np
    from ase import Atoms, units
    from ase.calculators.singlepoint import SinglePointCalculator

    # Atoms in harmonic wells, sampled at 300 K.
    stiffness, temperature = 2.0, 300.0
    width = np.sqrt(units.kB * temperature / stiffness)
    frames = []
    for places in width * np.random.default_rng(0).standard_normal((4000, 5, 3)):
        atoms = Atoms("H5", places)
        atoms.calc = SinglePointCalculator(atoms, forces=-stiffness * places)
        frames.append(atoms)
    assert md_stability.virial(frames, temperature) == pytest.approx(1, abs=0.03)
    assert md_stability.virial(frames, temperature / 2) == pytest.approx(2, abs=0.06)
