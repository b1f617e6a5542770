"""Run MACE's own test suite with ``--plugin gaunt`` added to every training.

MACE's wheel carries its suite, which is run unless a checkout of the same release is given::

    python tests/mace_suite.py                      # the files that train, an hour
    python tests/mace_suite.py tests/test_run_train.py -k lbfgs
    python tests/mace_suite.py --checkout mace

Two kinds of failures are expected and only counted: foundation models that can't be downloaded, and
``NUMBERS``. What fails otherwise is run once more without the plugin: ``new`` passes there.
"""

import argparse
import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import mace

# Tests that compare trained models with numbers of stock models.
NUMBERS = [
    "test_run_train.py::test_run_train",
    "test_run_train.py::test_run_train_lbfgs",
    "test_run_train.py::test_run_train_missing_data",
    "test_run_train.py::test_run_train_multihead",
    "test_run_train.py::test_run_train_no_stress",
    "test_run_train_allkeys.py::test_key_specification_methods*",
    "test_run_train_dipole_polar.py::*",
]
# How failures are told apart: in the statement, the message and the errors of a test.
KINDS = {"network": r"urlopen error|download failed", "numbers": r"assert np\.allclose"}

# They stand where the suite looks for MACE's scripts.
TRAIN = """
import sys
from gaunt_plugin.mace.run_train import main
if __name__ == "__main__":
    sys.argv += ["--plugin", "gaunt"]
    main()
"""
OTHER = """
from mace.cli.{name} import main
if __name__ == "__main__":
    main()
"""


def main() -> int:
    """Run the suite and print the table; return 1 if anything is new."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkout", type=Path, default=Path(mace.__file__).parents[1])
    args, pytest_args = parser.parse_known_args()
    if not any(argument.startswith("tests/") for argument in pytest_args):
        pytest_args += training_files(args.checkout)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(args.checkout / "tests", root / "tests")
        results = run(root, pytest_args, plugin=True)
        unknown = [test for test, (kind, _) in results.items() if not is_known(test, kind)]
        stock = run(root, unknown, plugin=False) if unknown else {}
    kinds = {test: kind for test, (kind, _) in results.items()}
    fail_too = {test for test, (kind, _) in stock.items() if kind not in ("passed", "skipped")}
    for test in unknown:
        kinds[test] = "stock too" if test in fail_too else "new"
    count = Counter((test.split("::")[0], kind) for test, kind in kinds.items())
    columns = ["passed", "numbers", "network", "stock too", "new", "skipped"]
    print(f"\n| file | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for file in sorted({file for file, _ in count}):
        print(f"| {file} | {' | '.join(str(count[file, column]) for column in columns)} |")
    for test in unknown:
        print(f"\n{kinds[test]}: {test}\n{results[test][1]}")
    return int("new" in kinds.values())


def is_known(test: str, kind: str) -> bool:
    """Whether a test passed, or failed as it is expected to."""
    listed = any(fnmatch.fnmatch(test, f"tests/{name}") for name in NUMBERS)
    return kind in ("passed", "skipped", "network") or (kind == "numbers" and listed)


def training_files(checkout: Path) -> list[str]:
    """The files of the suite that call the training script."""
    files = sorted((checkout / "tests").glob("test_*.py"))
    return [f"tests/{file.name}" for file in files if "run_train.py" in file.read_text()]


def run(root: Path, pytest_args: list[str], plugin: bool) -> dict[str, tuple[str, str]]:
    """What became of each test, and why."""
    scripts = root / "mace" / "cli"
    scripts.mkdir(parents=True, exist_ok=True)
    for file in (Path(mace.__file__).parent / "cli").glob("[!_]*.py"):
        train = plugin and file.stem == "run_train"
        (scripts / file.name).write_text(TRAIN if train else OTHER.format(name=file.stem))
    report = root / "report.xml"
    report.unlink(missing_ok=True)  # of an earlier run, which mustn't stand for this one
    # Importing the copies of tests, not the checkout's MACE.
    command = ["-m", "pytest", "-q", "--rootdir=.", "-p", "no:cacheprovider", "--show-capture=no"]
    command += ["--import-mode=importlib", "-o", "junit_logging=all", f"--junitxml={report}"]
    ours = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [ours, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, *command, *pytest_args], cwd=root, env=environment)
    results = {}
    for case in ElementTree.parse(report).iter("testcase"):
        results[f"{case.get('classname').replace('.', '/')}.py::{case.get('name')}"] = judge(case)
    return results


def judge(case: ElementTree.Element) -> tuple[str, str]:
    """The kind of outcome; of a failure the statement, the message and the last errors."""
    faults = [*case.iter("failure"), *case.iter("error")]
    if not faults:
        return ("passed" if case.find("skipped") is None else "skipped"), ""
    lines = "\n".join(part.text or "" for part in case).splitlines()
    statement = [line for line in lines if line.startswith(">")][-1:]
    errors = [line for line in lines if "rror: " in line][-3:]
    reason = "\n".join([*statement, *faults[0].get("message", "").splitlines()[:1], *errors])[:1000]
    kinds = [kind for kind, pattern in KINDS.items() if re.search(pattern, reason)]
    return [*kinds, "failed"][0], reason


if __name__ == "__main__":
    sys.exit(main())
