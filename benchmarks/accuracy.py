"""Trains models to a budget of CPU time and compares their errors, stock and Gaunt.

    python benchmarks/accuracy.py [--set acac] [--minutes 10] [--frames 50] [--lr 0.01]
        [--final 0.1] [--seeds 1] [MODEL ...]
    python benchmarks/accuracy.py --epochs 300 --threads 2 ... MODEL

Models are those of ``accuracy.yaml`` for the host that is installed. Each is trained by the host's
own command with one thread. The budget counts the CPU time of that process from its start to its
last epoch; the clock on the wall doesn't matter, so a training may be stopped or run beside other
work. The number of epochs and the decay of the learning rate come from the time of an epoch,
measured first. With ``--epochs`` the number is given instead, for trainings to convergence.
Run the command again to go on after an interruption: what is finished stays.
Finished runs are added to the CSV files in ``--out``, and the page is written anew.
"""

import argparse
import csv
import functools
import importlib
import importlib.util
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import accuracy_report
import ase.io
import numpy as np
import yaml
from arguments import positive

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "benchmarks" / "accuracy.yaml"
PROBED = 4  # epochs, and more until they took
PROBED_SECONDS = 1.0  # of CPU time, which is read every 0.1 s
SNAPSHOTS = 6  # of a run, tested after it
THREADS = [f"{name}_NUM_THREADS" for name in ("OMP", "MKL", "OPENBLAS")]
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class DataSet:
    """Files of a data set: training, isolated atoms and tests by name."""

    train: str
    isolated: str
    tests: dict[str, str]
    validation: int = 50


SETS = {
    "acac": DataSet(
        "train_300K.xyz",
        "isolated_atoms.xyz",
        {
            "300K": "test_MD_300K.xyz",
            "600K": "test_MD_600K.xyz",
            "dihedral": "test_dihedral.xyz",
            "H_transfer": "test_H_transfer.xyz",
        },
    ),
    "3bpa": DataSet("train_300K.xyz", "iso_atoms.xyz", {"mixedT": "train_mixedT.xyz"}),
    "sample": DataSet("train_300K.xyz", "iso_atoms.xyz", {"300K": "test_300K.xyz"}, validation=5),
}


@dataclass(frozen=True)
class Budget:
    """CPU time in minutes, or the epochs in place of it; the learning rate with its last part."""

    minutes: float
    epochs: int | None
    lr: float
    final: float
    threads: int

    def __str__(self):
        return f"{self.epochs}epochs" if self.epochs else f"{self.minutes:g}min"


@dataclass(frozen=True)
class Schedule:
    """Number of epochs, the first learning rate and its factor after each epoch."""

    epochs: int
    lr: float
    gamma: float


def fitting(seconds, start_up, epoch):
    """The epochs that fit in ``seconds`` after ``start_up``, with ``epoch`` for one, all in s."""
    return max(2, round((seconds - start_up) / epoch))


def schedule(epochs, lr, final):
    """The rate falls by a constant factor, to ``final`` of the first in the last epoch."""
    return Schedule(epochs, lr, final ** (1 / (epochs - 1)))


def timed(curve):
    """Whether the epochs after the first took long enough to tell the time of one."""
    return len(curve) > PROBED and curve[-1]["cpu"] - curve[0]["cpu"] >= PROBED_SECONDS


def default_data(name):
    """The folder of a data set in the project, where the examples download it, or beside it."""
    if name == "sample":
        return ROOT / "examples" / "3bpa_sample"
    places = [ROOT / "data" / name, ROOT.parent / "shared" / "data" / name]
    found = [place for place in places if place.is_dir()]
    if not found:
        tried = " and ".join(str(place) for place in places)
        sys.exit(
            f"data set {name}: no folder {tried}; give it as --data, or run "
            f"python examples/fetch_{name}.py data/{name}"
        )
    return found[0]


def frames(path):
    """The frames of an extended XYZ file, as text."""
    lines, start, found = path.read_text().splitlines(keepends=True), 0, []
    while start < len(lines):
        end = start + int(lines[start]) + 2
        found.append("".join(lines[start:end]))
        start = end
    return found


def split(path, validation, count, seed, folder):
    """Write ``train.xyz`` and ``valid.xyz``: the same frames for every model of this seed.

    Fewer frames for training are some of those that are taken for more.
    """
    found = frames(path)
    random.Random(seed).shuffle(found)
    (folder / "valid.xyz").write_text("".join(found[:validation]))
    (folder / "train.xyz").write_text("".join(found[validation : validation + count]))


@functools.cache
def unseen(path, training):
    """Structures of a test file that aren't in the training file: 31 of 3BPA's train_mixedT are."""
    known = {atoms(frame) for frame in frames(training)}
    text = "".join(frame for frame in frames(path) if atoms(frame) not in known)
    return ase.io.read(io.StringIO(text), ":", format="extxyz")


def atoms(frame):
    return frame.split("\n", 2)[2]


def cpu_seconds(process):
    """CPU time of a running process and of its children that have ended, s; None at its end."""
    try:
        text = Path(f"/proc/{process.pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()
    return None if state == "Z" else sum(map(int, fields[10:14])) / TICK


class Run:
    """One training, in a folder that holds all that is needed to go on."""

    def __init__(self, host, name, seed, budget, data, folder, options, work, count=None):
        self.host, self.name, self.seed = host, name, seed
        self.budget = budget
        self.data, self.spec, self.source, self.options = data, SETS[data], folder, options
        available = len(frames(folder / self.spec.train)) - self.spec.validation
        self.frames = min(count or available, available)
        fewer = f"-{self.frames}frames" if self.frames < available else ""
        place = work / data / host / name.replace(" ", "_")
        rate = f"lr{budget.lr:g}-final{budget.final:g}"
        self.folder = place / f"{budget}-{rate}-seed{seed}{fewer}"
        self.probe = place / f"probe{fewer}"
        self.module = importlib.import_module(f"accuracy_{host}")
        self.label = f"{data} {host} {name}, {self.frames} frames, {budget}, {rate}, seed {seed}"

    def result(self):
        """Errors and costs; trains if that has not been done."""
        path = self.folder / "result.json"
        if not path.exists():
            plan = self.schedule()
            print(f"{self.label}: {plan.epochs} epochs", flush=True)
            curve = self.follow(self.folder, plan, lambda curve: len(curve) == plan.epochs)
            path.write_text(json.dumps(self.tested(plan, curve), indent=1))
        return json.loads(path.read_text())

    def schedule(self):
        """The epochs given, or those in the time by a short training; the same for all seeds."""
        rate = self.budget.lr, self.budget.final
        if self.budget.epochs:
            return schedule(self.budget.epochs, *rate)
        path = self.probe / "times.json"
        if not path.exists():
            shutil.rmtree(self.probe, ignore_errors=True)  # an interrupted one times nothing
            curve = self.follow(self.probe, Schedule(10**6, self.budget.lr, 1.0), timed)
            first, last = (curve[i]["cpu"] for i in (0, -1))
            epoch = (last - first) / (len(curve) - 1)
            path.write_text(json.dumps({"start_up": first - epoch, "epoch": epoch}))
        times = json.loads(path.read_text())
        return schedule(fitting(60 * self.budget.minutes, **times), *rate)

    def follow(self, folder, plan, enough):
        """Train until the curve is enough; that has one row per epoch, with the CPU time."""
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "train.xyz").exists():
            path, validation = self.source / self.spec.train, self.spec.validation
            split(path, validation, self.frames, self.seed, folder)
        isolated = self.source / self.spec.isolated
        command = self.module.prepare(folder, self.options, plan, self.seed, isolated)
        spent = folder / "cpu"  # of earlier attempts, too
        before = float(spent.read_text()) if spent.exists() else 0.0
        path = folder / "curve.json"
        curve = json.loads(path.read_text()) if path.exists() else []
        with (folder / "output").open("a") as output:
            process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
            rows, wanted, running, cpu = self.module.Validations(folder), None, True, 0.0

            def record():
                nonlocal curve, wanted
                for row in rows.new():
                    curve = [r for r in curve if r["epoch"] < row["epoch"]]
                    curve.append({**row, "cpu": round(before + cpu, 2)})
                    path.write_text(json.dumps(curve))
                    if (row["epoch"] + 1) % max(1, plan.epochs // SNAPSHOTS) == 0:
                        wanted = folder / f"epoch{row['epoch']}"

            try:
                while running:
                    running = (now := cpu_seconds(process)) is not None
                    cpu = now if running else cpu
                    spent.write_text(str(before + cpu))
                    # The checkpoint of an epoch is written after its validation.
                    if wanted is not None and keep(folder.glob(self.module.CHECKPOINTS), wanted):
                        wanted = None
                    record()
                    if len(curve) < plan.epochs and enough(curve):
                        break
                    time.sleep(0.1)
            finally:
                if process.poll() is None:
                    process.terminate()
                process.wait()
                record()  # what an interrupted one had done goes on from its checkpoint
        if not enough(curve):
            sys.exit(f"{self.label}: ended after {len(curve)} epochs, see {output.name}")
        return curve

    def tested(self, plan, curve):
        """The result: errors of the end and of the checkpoints that were kept."""
        model = self.module.Trained(self.folder)
        for row in curve:
            kept = self.folder / f"epoch{row['epoch']}"
            if kept.exists():
                model.load(kept)
                row["tests"] = self.errors(model)
        model = self.module.Trained(self.folder)
        return {
            "epochs": plan.epochs,
            "cpu": curve[-1]["cpu"],
            "parameters": model.parameters,
            "tests": self.errors(model),
            "curve": curve,
        }

    def errors(self, model):
        """RMSE of each test: energy in meV and, if the file has forces, those in meV/Å.

        A file without forces is a scan: its errors of each structure are kept, too.
        """
        found = {}
        for test, file in self.spec.tests.items():
            structures = unseen(self.source / file, self.source / self.spec.train)
            energies, forces = model.predict(structures)
            right = np.array([structure.get_potential_energy() for structure in structures])
            found[test] = {"energy": rmse(energies, right)}
            if "forces" in structures[0].calc.results:
                right = np.concatenate([structure.get_forces() for structure in structures])
                found[test]["forces"] = rmse(forces, right)
            else:
                found[test]["scan"] = (1000 * (energies - right)).round(2).tolist()
        return found


def keep(checkpoints, place):
    """Link to the newest checkpoint; False if there is none just now.

    A training replaces its checkpoints at any time, also while this runs.
    """
    try:
        place.unlink(missing_ok=True)
        place.hardlink_to(max(checkpoints, key=os.path.getmtime))
    except (FileNotFoundError, ValueError):  # gone, or none yet
        return False
    return True


def rmse(found, right):
    return 1000 * float(np.sqrt(np.mean((np.asarray(found) - np.asarray(right)) ** 2)))


def record(out, run, result):
    """Put a finished run into the CSV files: its row, in place of an earlier one, and its curve."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "runs.csv"
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    row = {
        "set": run.data,
        "host": run.host,
        "frames": str(run.frames),
        "model": run.name,
        "budget": str(run.budget),
        "lr": f"{run.budget.lr:g}",
        "final": f"{run.budget.final:g}",
        "seed": str(run.seed),
    }
    names = list(row)  # of a run; the others are results
    rows = [old for old in rows if any(old[name] != row[name] for name in names)]
    row |= {key: result[key] for key in ("epochs", "parameters")}
    row |= {"threads": run.budget.threads, "cpu": round(result["cpu"])}
    row |= flat(result["tests"])
    write(path, sorted([*rows, row], key=lambda r: [r[name] for name in names]))
    rows = [{k: v for k, v in r.items() if k != "tests"} for r in result["curve"]]
    tests = [flat(r.get("tests", {})) for r in result["curve"]]
    curve = [{**r, **test} for r, test in zip(rows, tests)]
    write(out / "curves" / f"{accuracy_report.stem(row)}.csv", curve)
    scans = {test: kinds["scan"] for test, kinds in result["tests"].items() if "scan" in kinds}
    points = [
        {"test": test, "point": point, "error": error}
        for test, errors in scans.items()
        for point, error in enumerate(errors)
    ]
    if points:
        write(out / "scans" / f"{accuracy_report.stem(row)}.csv", points)


def flat(tests):
    """One entry for each RMSE, such as ``300K_forces``."""
    return {
        f"{test}_{kind}": round(value, 2)
        for test, kinds in tests.items()
        for kind, value in kinds.items()
        if kind != "scan"
    }


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    fields = dict.fromkeys(key for row in rows for key in row)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: all of the host")
    parser.add_argument("--env", choices=["mace", "nequip"], help="the host, if both would do")
    parser.add_argument("--set", choices=SETS, default="acac")
    parser.add_argument("--data", type=Path, help="folder of the data set")
    parser.add_argument(
        "--minutes", type=positive(float), default=10, help="of CPU time for each run"
    )
    parser.add_argument("--epochs", type=positive(int), help="for each run, in place of a time")
    parser.add_argument("--threads", type=positive(int), default=1)
    parser.add_argument("--lr", type=positive(float), default=0.01, help="first learning rate")
    parser.add_argument(
        "--final", type=positive(float), default=0.1, help="the last one, as a part of the first"
    )
    parser.add_argument(
        "--frames", type=positive(int), help="for training, default: all but validation's"
    )
    numbers = lambda text: [int(number) for number in text.split(",")]  # noqa: E731
    parser.add_argument("--seeds", type=numbers, default=[1], help="of split and weights: 1,2,3")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "accuracy")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "accuracy")
    parser.add_argument("--table", type=Path, default=TABLE, help="the models; a YAML file")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # and end the training
    host = args.env or ("mace" if importlib.util.find_spec("mace") else "nequip")
    table = yaml.safe_load(args.table.read_text())[host]
    unknown = [name for name in args.models if name not in table["models"]]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; possible: {', '.join(table['models'])}")
    if args.epochs is not None and args.epochs < 2:
        parser.error("--epochs must be at least 2")
    os.environ.update(dict.fromkeys(THREADS, str(args.threads)))
    budget = Budget(args.minutes, args.epochs, args.lr, args.final, args.threads)
    source, work = (args.data or default_data(args.set)).resolve(), args.work.resolve()
    for seed in args.seeds:
        for name in args.models or table["models"]:
            options = {**table["common"], **table["models"][name]}
            run = Run(host, name, seed, budget, args.set, source, options, work, args.frames)
            result = run.result()
            record(args.out, run, result)
            print(f"{run.label}: {result['cpu']:.0f} s, {flat(result['tests'])}", flush=True)
            accuracy_report.write(args.out)


if __name__ == "__main__":
    sys.exit(main())
