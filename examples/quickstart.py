"""From a clean clone to a trained, running and exported Gaunt model, in minutes on two cores.

    python examples/quickstart.py

needs Python 3.10 or newer and pip. It creates the environment ``.venv-mace``, trains on the
sample in ``examples/3bpa_sample``, runs molecular dynamics and exports to TorchScript; what it
makes lies in ``runs/quickstart``. When interrupted, the same command goes on where it stopped.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import environment

ROOT = environment.ROOT
CONFIG = "configs/mace/quickstart.yaml"
MODEL = "runs/quickstart/quickstart.model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-mace", help="environment")
    parser.add_argument("--python", default=sys.executable, help="creates the environment")
    args, train_args = parser.parse_known_args()
    start = time.monotonic()

    print("== 1/4 environment", flush=True)
    python = environment.ensure(args.venv.absolute(), "mace", args.python)

    train = [str(python.with_name("mace_run_train")), "--plugin", "gaunt", "--config", CONFIG]
    tables = stage("2/4 training", [*train, *train_args], keep=("Error-table", "+--", "|"))
    stage("3/4 molecular dynamics", [str(python), "examples/md_ase.py", MODEL])
    stage("4/4 export to TorchScript", [str(python), "examples/export_torchscript.py", MODEL])

    print("== Errors of the model")
    print("".join(tables).rstrip())
    print(f"== Done in {time.monotonic() - start:.0f} s; the model is {MODEL}")


def stage(title: str, command: list[str], keep: tuple[str, ...] = ()) -> list[str]:
    """Run one stage, showing its output; end the program if it fails.

    Returns:
        The lines of the output that contain one of the strings in ``keep``.
    """
    print(f"== {title}\n$ {' '.join(command)}", flush=True)
    start = time.monotonic()
    kept = []

    def show(line: str) -> None:
        print(line, end="", flush=True)
        if any(text in line for text in keep):
            kept.append(line)

    # MACE and e3nn warn, several times each, about choices that are theirs.
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
