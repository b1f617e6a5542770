"""Set up one environment per host and run everything that must pass in each.

MACE and NequIP need different releases of e3nn, so there is no environment for both.
Standard library only: ``python tests/run.py`` needs Python 3.10 or newer and pip.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import environment  # noqa: E402

# The long ones first, so that workers end together.
TESTS = {
    host: [
        f"tests/{host}",
        "tests/lammps",
        "tests/layers",
        "tests/ops",
        "tests/sphere",
        "tests/test_*.py",
    ]
    for host in ("mace", "nequip")
}
# Modules and classes stay together: they share trained models.
WORKERS = ["-n", str(min(os.cpu_count() or 1, 4)), "--dist", "loadscope", "--no-loadscope-reorder"]
STYLE = [["check", "."], ["format", "--check", "."]]


def main() -> int:
    """Run the checks that the command line asks for; return 1 if any failed."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Other arguments go to pytest; a path among them replaces the usual test files. "
        "Tests run in a process per core, at most 4; -n NUMBER sets this, -n 0 uses none.",
    )
    parser.add_argument("--env", choices=list(TESTS), help="only this environment")
    parser.add_argument("--python", default=sys.executable, help="creates the environments")
    args, pytest_args = parser.parse_known_args()

    results: list[tuple[str, int, str]] = []
    for host in [args.env] if args.env else list(TESTS):
        print(f"== The environment for {host}", flush=True)
        python = environment.ensure(ROOT / f".venv-{host}", f"{host},lammps,dev", args.python)
        if not results:  # style is the same in both
            for command in STYLE:
                results.append(run(f"ruff {command[0]}", python, ["-m", "ruff", *command]))
        tests = [] if any(map(is_path, pytest_args)) else test_files(host)
        results.append(
            run(f"pytest, {host}", python, ["-m", "pytest", *WORKERS, *tests, *pytest_args])
        )

    print("== Results")
    for title, code, closing_line in results:
        print(f"{'ok' if code == 0 else 'FAILED':6}  {title}: {closing_line}")
    return int(any(code != 0 for _, code, _ in results))


def is_path(argument: str) -> bool:
    """Whether an argument for pytest names a file, a folder or a test in a file."""
    path = argument.split("::")[0]
    return ("/" in path or path.endswith(".py")) and (ROOT / path).exists()


def test_files(host: str) -> list[str]:
    """The files and folders whose tests an environment runs."""
    found = [path for pattern in TESTS[host] for path in sorted(ROOT.glob(pattern))]
    if not found:
        sys.exit(f"there are no tests for {host}")
    return [str(path.relative_to(ROOT)) for path in found]


def run(title: str, python: Path, command: list[str]) -> tuple[str, int, str]:
    """Run a tool of an environment, showing its output; keep its exit code and closing line."""
    print(f"== {title}", flush=True)
    closing_line = ""

    def show(line: str) -> None:
        nonlocal closing_line
        print(line, end="", flush=True)
        # Workers may still print something after pytest's own closing line.
        if line.startswith("=") or not closing_line.startswith("="):
            closing_line = line.strip() or closing_line

    env = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONUNBUFFERED": "1"}
    code = environment.stream([str(python), *command], show, env)
    return title, code, closing_line.strip("= ")


if __name__ == "__main__":
    sys.exit(main())
