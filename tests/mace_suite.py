"""Run MACE's own test suite with ``--plugin gaunt`` added to every training.

The suite comes from a checkout of MACE, of the release that is installed::

    git clone --branch v0.3.16 https://github.com/ACEsuit/mace
    python tests/mace_suite.py mace tests/test_run_train.py -k restart

Paths are relative to the checkout; without any, the files that train are run. Tests that fail are
run once more without the plugin. The list at the end says what differs and how. Numbers of trained
models differ by construction: the suite compares them with those of stock models.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

# They stand where the suite looks for MACE's scripts.
TRAIN = """
import sys
from gaunt_plugin.mace.run_train import main
sys.argv += {arguments}
main()
"""
OTHER = "import runpy; runpy.run_module('mace.cli.{name}', run_name='__main__')"


def main() -> int:
    """Run the suite and print the list; return 1 if anything but numbers differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkout", type=Path)
    args, pytest_args = parser.parse_known_args()
    files = training_files(args.checkout)
    if not any(argument.startswith("tests/") for argument in pytest_args):
        pytest_args += files
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "tests").symlink_to((args.checkout / "tests").resolve())
        results = run(root, pytest_args, ["--plugin", "gaunt"])
        failed = [test for test, message in results.items() if message is not None]
        stock = run(root, failed, []) if failed else {}
    differ = {test: results[test] for test in failed if stock.get(test) is None}
    print(f"\n{len(results)} tests, {len(results) - len(failed)} passed with the plugin")
    print(f"{len(failed) - len(differ)} fail without it, too")
    numbers = [test for test, message in differ.items() if "allclose" in message]
    print(f"{len(numbers)} differ in numbers:", *numbers, sep="\n  ")
    others = differ.keys() - set(numbers)
    print(f"{len(others)} differ otherwise:", *(f"{t}: {differ[t]}" for t in others), sep="\n  ")
    return int(bool(others))


def training_files(checkout: Path) -> list[str]:
    """The files of the suite that call the training script."""
    files = sorted((checkout / "tests").glob("test_*.py"))
    return [f"tests/{file.name}" for file in files if "run_train.py" in file.read_text()]


def run(root: Path, pytest_args: list[str], arguments: list[str]) -> dict[str, str | None]:
    """The tests that ran, and the message of those that failed."""
    import mace

    scripts = root / "mace" / "cli"
    scripts.mkdir(parents=True, exist_ok=True)
    for file in (Path(mace.__file__).parent / "cli").glob("[!_]*.py"):
        text = OTHER.format(name=file.stem)
        if file.stem == "run_train" and arguments:
            text = TRAIN.format(arguments=arguments)
        (scripts / file.name).write_text(text)
    report = root / "report.xml"
    # Importing the copies of tests, not the checkout's MACE.
    command = ["-m", "pytest", "-q", "--rootdir=.", "-p", "no:cacheprovider"]
    command += ["--import-mode=importlib", f"--junitxml={report}", *pytest_args]
    ours = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [ours, os.environ.get("PYTHONPATH")]))
    subprocess.run([sys.executable, *command], cwd=root, env={**os.environ, "PYTHONPATH": path})
    results = {}
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("skipped") is not None:
            continue
        fault = case.find("failure") if case.find("failure") is not None else case.find("error")
        name = f"{case.get('classname').replace('.', '/')}.py::{case.get('name')}"
        results[name] = None if fault is None else describe(fault)
    return results


def describe(fault: ElementTree.Element) -> str:
    """The statement that failed, pytest's message, and the last message of a process."""
    lines = [line.strip() for line in fault.text.splitlines() if line.strip()]
    statement = [line[1:].strip() for line in lines if line.startswith(">")][-1:]
    errors = [line for line in lines if "rror: " in line and not line.startswith("E ")][-1:]
    message = fault.get("message", "").splitlines()[:1]
    return " | ".join([*statement, *message, *errors])[:400]


if __name__ == "__main__":
    sys.exit(main())
