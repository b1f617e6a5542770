"""The benchmark of accuracy: schedule, data, page, and a training that is interrupted."""

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("matplotlib", reason="the extra 'benchmarks' is not installed")
ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "examples" / "3bpa_sample"
HOST = "mace" if importlib.util.find_spec("mace") else "nequip"
SMALL = {
    "mace": {"hidden_irreps": "2x0e + 2x1o", "max_ell": 1, "correlation": 2, "radial_MLP": "[8]"},
    "nequip": {"num_layers": 1, "l_max": 1, "num_features": 2, "radial_mlp_width": 8},
}


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_the_rate_ends_with_the_budget():
    from accuracy import fitting, schedule

    assert fitting(600, start_up=20, epoch=5.8) == 100
    assert fitting(1, start_up=20, epoch=5) == 2
    assert schedule(100, lr=0.01, final=0.2).gamma ** 99 == pytest.approx(0.2)


def test_quick_epochs_are_timed_together():
    from accuracy import timed

    # A fast machine finishes some between two readings of the CPU time, which are then the same.
    assert not timed([{"cpu": 6.1}] * 5)
    assert not timed([{"cpu": 6.1}] * 5 + [{"cpu": 6.3}] * 5)
    assert timed([{"cpu": 6.1}] * 5 + [{"cpu": 7.2}])
    assert not timed([{"cpu": 6.1}, {"cpu": 16.1}])


def test_a_seed_is_one_split(tmp_path):
    from accuracy import frames, split

    def parts(seed, count=1000):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        split(SAMPLE / "train_300K.xyz", 7, count, seed, folder)
        return frames(folder / "train.xyz"), frames(folder / "valid.xyz")

    train, valid = parts(1)
    assert len(valid) == 7
    assert sorted(train + valid) == sorted(frames(SAMPLE / "train_300K.xyz"))
    assert parts(1) == (train, valid)
    assert parts(2)[1] != valid
    assert parts(1, 3) == (train[:3], valid)


def test_no_frame_of_the_training_file_is_tested(tmp_path):
    from accuracy import frames, unseen

    known, new = frames(SAMPLE / "train_300K.xyz"), frames(SAMPLE / "test_300K.xyz")
    path = tmp_path / "test.xyz"
    path.write_text("".join([new[0], known[3], new[1]]))
    found = unseen(path, SAMPLE / "train_300K.xyz")
    assert [f"energy={s.get_potential_energy()}" in new[i] for i, s in enumerate(found)] == [
        True
    ] * 2


def test_checkpoints_may_be_replaced_at_any_time(monkeypatch, tmp_path):
    import accuracy

    old, new, place = tmp_path / "old", tmp_path / "new", tmp_path / "kept"
    assert not accuracy.keep([], place)
    assert not accuracy.keep([old], place)  # replaced after it was listed
    old.write_text("old")
    new.write_text("new")
    os.utime(old, (0, 0))
    assert accuracy.keep([old, new], place)
    assert place.read_text() == "new"

    monkeypatch.setattr(os.path, "getmtime", lambda path: path.unlink() or 0.0)
    assert not accuracy.keep([new], place)  # and after its time was read


class Watched(torch.nn.Module):
    """Stands for a model of either host; no more than one of its outputs may be alive."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.atomic_numbers, self.r_max = torch.tensor([1, 6, 7, 8]), torch.tensor(4.0)
        self.type_names = ["H", "C", "N", "O"]
        self.outputs = []

    def forward(self, batch):
        assert sum(output() is not None for output in self.outputs) <= 1
        energy, positions = {"mace": ("energy", "positions"), "nequip": ("total_energy", "pos")}[
            HOST
        ]
        graphs = int(batch["batch"].max()) + 1
        energies = self.weight * torch.arange(graphs)
        self.outputs.append(weakref.ref(energies))
        return {energy: energies, "forces": self.weight * batch[positions]}


def test_predictions_hold_no_graphs():
    trained = importlib.import_module(f"accuracy_{HOST}").Trained
    model = object.__new__(trained)
    model.model = Watched()
    structures = ase.io.read(SAMPLE / "test_300K.xyz", ":24")
    energies, forces = model.predict(structures)
    assert energies.tolist() == [*range(10), *range(10), *range(4)]
    assert forces == pytest.approx(np.concatenate([s.positions for s in structures]), abs=1e-4)


def test_data_that_is_missing_is_said(monkeypatch, tmp_path):
    import accuracy

    monkeypatch.setattr(accuracy, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match=r"fetch_acac\.py data/acac"):
        accuracy.default_data("acac")


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--threads", "0", "0 is not positive"),
        ("--threads", "one", "invalid int value: 'one'"),
        ("--minutes", "-1", "-1 is not positive"),
        ("--final", "0", "0 is not positive"),
        ("--frames", "0", "0 is not positive"),
        ("--epochs", "1", "--epochs must be at least 2"),
        ("--seeds", "a", "--seeds"),
    ],
)
def test_wrong_options_are_refused(monkeypatch, capsys, option, value, said):
    import accuracy

    monkeypatch.setattr(sys, "argv", ["accuracy.py", option, value])
    with pytest.raises(SystemExit):
        accuracy.main()
    assert said in capsys.readouterr().err


def test_page(tmp_path):
    import accuracy_report

    folder = tmp_path / "accuracy"
    (folder / "curves").mkdir(parents=True)
    fields = (
        "set,host,frames,model,budget,lr,final,seed,epochs,parameters,threads,cpu,"
        "300K_energy,300K_forces,"
    )
    rows = [
        "acac,mace,450,worse,1min,0.02,0.1,1,9,1000,1,60,30.0,20.0,5.0",
        "acac,mace,450,worse,1min,0.02,0.01,1,9,1000,1,60,60.0,40.0,5.0",
        "acac,mace,450,better,1min,0.02,0.1,1,9,1000,1,70,4.0,10.0,5.0",
        "acac,mace,450,better,1min,0.02,0.1,2,9,1000,1,60,6.0,12.0,5.0",
        "acac,mace,50,few,1min,0.02,0.1,1,80,1000,1,60,30.0,21.0,5.0",
        "acac,mace,450,better,99epochs,0.02,0.1,1,99,1000,2,999,1.0,2.0,5.0",
    ]
    (folder / "runs.csv").write_text("\n".join([fields + "dihedral_energy", *rows, ""]))
    (folder / "scans").mkdir()
    scan = "test,point,error\ndihedral,0,1.5\ndihedral,1,-20.0\n"
    (folder / "scans" / "acac-mace-better-450frames-1min-lr0.02-final0.1-1.csv").write_text(scan)
    runs = "better-1min-0.1-1 better-1min-0.1-2 worse-1min-0.1-1 worse-1min-0.01-1"
    for name in [*runs.split(), "better-99epochs-0.1-1"]:
        model, budget, *rest = name.split("-")
        name = "-".join([model, "450frames", budget, "lr0.02", f"final{rest[0]}", rest[1]])
        curve = "epoch,cpu,forces,300K_forces\n0,10,30.0,\n1,20,15.0,16.0\n"
        (folder / "curves" / f"acac-mace-{name}.csv").write_text(curve)
    (folder / "findings.md").write_text("## Findings\n")
    (folder / "curves" / "acac-mace-few-50frames-1min-lr0.02-final0.1-1.csv").write_text(curve)
    paths = accuracy_report.write(folder)
    assert all(path.exists() for path in paths)
    assert [path.suffix for path in paths] == [".md"] + 5 * [".svg"]
    page = folder.with_suffix(".md").read_text()
    assert "## Findings" in page
    better, worse = "| better | 0.02 to 0.002 | 2", "| worse | 0.02 to 0.002 | 1"
    last = "| worse | 0.02 to 0.0002 | 1 | 1000 | 9 | 1 | 60 | 40.0 (60.0) | (5.0) |"
    values = "11.0 ± 1.0 (5.0 ± 1.0) | (5.0 ± 0.0) |"
    start = page.index(f"{better} | 1000 | 9 | 1 | **60, 70** | {values}")
    middle = page.index(f"{worse} | 1000 | 9 | 1 | 60 | 20.0 (30.0) | (5.0) |")
    assert start < middle < page.index(last)
    assert page.count("| *MACE, converged (published)* |") == 2  # not where frames are fewer
    assert "NequIP, converged" not in page
    longer = page.index("## Acetylacetone, MACE, longer trainings, 450 frames")
    assert longer < page.index("| 1 | 1000 | 99 | 2 | 999 | 2.0 (1.0) | (5.0) |") < start


def test_each_figure_is_shown():
    pages = [(ROOT / name).read_text() for name in ("README.md", "docs/accuracy.md")]
    figures = list((ROOT / "docs" / "accuracy").glob("*.svg"))
    assert figures
    assert [f.name for f in figures if not any(f.name in page for page in pages)] == []


@pytest.fixture
def small(tmp_path):
    """Data and the table of a small model in ``tmp_path``; the options of trainings of seconds."""
    from accuracy import frames

    for name, count in [("train_300K", 15), ("test_300K", 4), ("iso_atoms", 4)]:
        text = "".join(frames(SAMPLE / f"{name}.xyz")[:count])
        (tmp_path / f"{name}.xyz").write_text(text)
    table = yaml.safe_load((ROOT / "benchmarks" / "accuracy.yaml").read_text())
    table[HOST]["common"].update(SMALL[HOST])
    table[HOST]["models"] = {"small": {}}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(table))
    return table[HOST]["common"]


@pytest.mark.training
def test_a_short_training_tells_the_epochs(small, tmp_path):
    from accuracy import Budget, Run, fitting

    budget = Budget(minutes=10, epochs=None, lr=0.01, final=0.1, threads=1)
    run = Run(HOST, "small", 1, budget, "sample", tmp_path, small, tmp_path / "work")
    planned = run.schedule()
    times = json.loads((run.probe / "times.json").read_text())
    assert times["start_up"] > times["epoch"] > 0
    assert planned.epochs == fitting(600, **times) > 2
    before = (run.probe / "output").read_text()
    assert run.schedule() == planned
    assert (run.probe / "output").read_text() == before  # measured once


@pytest.mark.training
@pytest.mark.usefixtures("small")
def test_training_goes_on_after_an_interruption(tmp_path):
    planned = 40  # enough that a slow reader still sees the first of them alone
    command = [sys.executable, ROOT / "benchmarks" / "accuracy.py", "--env", HOST]
    command += ["--set", "sample", "--data", tmp_path, "--table", tmp_path / "table.yaml"]
    command += ["--epochs", str(planned), "--work", tmp_path, "--out", tmp_path / "out"]
    command += ["--seeds", "1", "small"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    folder = tmp_path / "sample" / HOST / "small" / f"{planned}epochs-lr0.01-final0.1-seed1"
    curve, spent = folder / "curve.json", folder / "cpu"

    first = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    while not (curve.exists() and len(json.loads(curve.read_text() or "[]")) >= 3):
        assert first.poll() is None, (folder / "output").read_text()
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert f"{planned} epochs" in first.communicate()[0]
    assert first.returncode == 1
    assert not (folder / "result.json").exists()
    before = float(spent.read_text())

    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(spent.read_text()) > before
    result = json.loads((folder / "result.json").read_text())
    assert [row["epoch"] for row in result["curve"]] == list(range(planned))
    times = [row["cpu"] for row in result["curve"]]
    assert times == sorted(times)
    assert times[-1] > before
    assert sum("tests" in row for row in result["curve"]) >= 2
    assert 0 < result["tests"]["300K"]["forces"] < 5000  # meV/Å
    (row,) = csv.DictReader((tmp_path / "out" / "runs.csv").open())
    assert (row["model"], row["epochs"]) == ("small", str(planned))
    assert float(row["300K_forces"]) == pytest.approx(result["tests"]["300K"]["forces"], abs=0.01)

    again = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert json.loads((folder / "result.json").read_text()) == result
    assert spent.read_text() == str(float(spent.read_text()))
