"""From a clean clone to a trained, running and exported Gaunt model, in minutes on two cores.

    python examples/quickstart.py                 # MACE
    python examples/quickstart.py --host nequip

needs Python 3.10 or newer and pip. It creates the environment ``.venv-mace`` or ``.venv-nequip``,
trains on the sample in ``examples/3bpa_sample``, exports the model to the file for ASE and LAMMPS
and runs molecular dynamics with it; what it makes lies in ``runs/quickstart`` or
``runs/nequip/quickstart``. When interrupted, the same command goes on where it stopped.
"""

import argparse
import csv
import os
import sys
import time
from pathlib import Path

import environment

ROOT = environment.ROOT
# Per host: the model that the training leaves, and the file that is exported from it.
MODELS = {"mace": "runs/quickstart/quickstart.model", "nequip": "runs/nequip/quickstart/best.ckpt"}
EXPORTED = {
    "mace": "runs/quickstart/quickstart.pt",
    "nequip": "runs/nequip/quickstart/quickstart.pt",
}
RUN = ROOT / "runs" / "nequip" / "quickstart"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog="Other arguments go to the training command."
    )
    parser.add_argument("--host", choices=list(MODELS), default="mace")
    parser.add_argument("--venv", type=Path, help="environment (default: .venv-HOST)")
    parser.add_argument("--python", default=sys.executable, help="creates the environment")
    parser.add_argument(
        "--installed", action="store_true", help="use the environment of this Python as it is"
    )
    args, train_args = parser.parse_known_args()
    start = time.monotonic()

    print("== 1/4 environment", flush=True)
    if args.installed:
        python = Path(sys.executable)
        environment.stream([str(python.with_name("gaunt")), "info"], print_line)
    else:
        venv = args.venv or ROOT / f".venv-{args.host}"
        python = environment.ensure(venv.absolute(), f"{args.host},ase", args.python)
        # Training without them is slower, no more.
        environment.stream([str(python.with_name("gaunt")), "build", "kernels"], print_line)

    train = train_mace if args.host == "mace" else train_nequip
    table = train(python, train_args)
    model, exported = MODELS[args.host], EXPORTED[args.host]
    stage("3/4 export", [str(python.with_name("gaunt")), "export", model, exported])
    stage("4/4 molecular dynamics", [str(python), "examples/md_ase.py", exported])

    print("== Errors of the model")
    print(table.rstrip())
    print(f"== Done in {time.monotonic() - start:.0f} s; the model is {model},")
    print(f"   for ASE and LAMMPS {exported}; the programs are in {python.parent}")


def train_mace(python: Path, arguments: list[str]) -> str:
    """Train with MACE and return its error tables."""
    command = [str(python.with_name("mace_run_train")), "--plugin", "gaunt"]
    command += ["--config", "configs/mace/quickstart.yaml", *arguments]
    return "".join(stage("2/4 training", command, keep=("Error-table", "+--", "|")))


def train_nequip(python: Path, arguments: list[str]) -> str:
    """Train with NequIP and return a table of its test metrics."""
    command = [str(python.with_name("nequip-train")), "-cn", "quickstart"]
    command += ["-cp", str(ROOT / "configs" / "nequip"), *arguments]
    last = RUN / "last.ckpt"
    if last.exists():
        command.append(f"++ckpt_path={last.relative_to(ROOT)}")
    stage("2/4 training", command)

    newest = max(RUN.glob("log/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    with newest.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    errors = {name: float(value) for row in rows for name, value in row.items() if value}
    lines = ["test set     energy, meV/atom     forces, meV/Å     (RMSE)"]
    for index, name in enumerate(("300 K", "600 K", "1200 K")):
        energy, forces = (
            1000 * errors[f"test{index}_epoch/{error}"]
            for error in ("per_atom_energy_rmse", "forces_rmse")
        )
        lines.append(f"{name:8}     {energy:16.2f}     {forces:13.1f}")
    return "\n".join(lines)


def print_line(line: str) -> None:
    print(line, end="", flush=True)


def stage(title: str, command: list[str], keep: tuple[str, ...] = ()) -> list[str]:
    """Run one stage, showing its output; end the program if it fails.

    Returns:
        The lines of the output that contain one of the strings in ``keep``.
    """
    print(f"== {title}\n$ {' '.join(command)}", flush=True)
    start = time.monotonic()
    kept = []

    def show(line: str) -> None:
        print_line(line)
        if any(text in line for text in keep):
            kept.append(line)

    # The hosts, Lightning and e3nn warn, several times each, about choices that are theirs.
    quiet = {"PYTHONWARNINGS": "ignore::UserWarning,ignore::DeprecationWarning"}
    code = environment.stream(command, show, {**quiet, **os.environ, "PYTHONUNBUFFERED": "1"})
    if code != 0:
        sys.exit(f"== {title} failed with exit code {code}; the same command goes on from here")
    print(f"== {title} took {time.monotonic() - start:.0f} s", flush=True)
    return kept


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")
