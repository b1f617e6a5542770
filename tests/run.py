"""Set up one environment per host and run everything that must pass in each.

MACE and NequIP need different releases of e3nn, so there is no environment for both.
Standard library only: ``python tests/run.py`` needs Python 3.10 or newer and pip.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

import environment  # noqa: E402

from gaunt_plugin._compiler import BuildError, find_compiler, sanitizers  # noqa: E402

# The long ones first, so that workers end together.
TESTS = {
    host: [
        "tests/test_documentation.py",
        f"tests/{host}",
        "tests/lammps",
        "tests/deploy",
        "tests/layers",
        "tests/ops",
        "tests/sphere",
        "tests/test_*.py",
    ]
    for host in ("mace", "nequip")
}
# Tests that would say the same with any host, which one environment runs: of operators (those of
# the kernels run in both all the same), and of the pair style's own side.
ANY_HOST = "mace"
OF_ANY_HOST = [
    "tests/deploy/test_neighbors.py",
    "tests/lammps/test_builds.py",
    "tests/lammps/test_errors.py",
    "tests/lammps/test_inputs.py",
    "tests/lammps/test_ranks.py",
    "tests/ops/test_build.py",
    "tests/ops/test_checkpointing.py",
    "tests/ops/test_kernel_build.py",
    "tests/ops/test_operators.py",
    "tests/ops/test_programs.py",
    "tests/ops/test_triton.py",
    "tests/ops/test_triton_compiled.py",
    "tests/ops/test_wheel.py",
]
# That which builds the documentation.
DOCS = "mace"
# Modules and classes stay together: they share trained models.
WORKERS = ["-n", str(min(os.cpu_count() or 1, 4)), "--dist", "loadscope", "--no-loadscope-reorder"]
# Title, exit code, closing line.
Result = tuple[str, int, str]
STYLE = [["check", "."], ["format", "--check", "."]]
# Of --oldest: the oldest Python of pyproject.toml; environments stand beside the usual ones.
OLDEST_PYTHON = "python3.10"
OLDEST_CONSTRAINTS = "constraints-oldest.txt"
# Of --sanitize: tests that run the C++ kernels; they need no host, so one environment will do.
SANITIZED = [
    "tests/sanitizers",
    "tests/ops/test_kernels.py",
    "tests/ops/test_operators.py",
]
# Of --wheel: a short training, and what an installation must say of its kernels.
SHORT = {"mace": ["--max_num_epochs", "2"], "nequip": ["trainer.max_epochs=2"]}
REPLACE = ["--force-reinstall", "--no-deps"]
HAS_KERNELS = """
import sys
from gaunt_plugin.ops.cpu import build
print(build.status())
sys.exit(str(build.is_built()) != sys.argv[1])
"""
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -g -O1"


def main() -> int:
    """Run the checks that the command line asks for; return 1 if any failed."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Other arguments go to pytest; a path among them replaces the usual test files. "
        "Tests run in a process per core, at most 4; -n NUMBER sets this, -n 0 uses none.",
    )
    parser.add_argument("--env", choices=list(TESTS), help="only this environment")
    parser.add_argument(
        "--python",
        help=f"creates the environments; this one, or {OLDEST_PYTHON} with --oldest",
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--oldest",
        action="store_true",
        help=f"with the oldest releases that pyproject.toml allows ({OLDEST_CONSTRAINTS}); pip "
        "fetches several GB for them",
    )
    kind.add_argument(
        "--newest",
        action="store_true",
        help="with the newest releases that pyproject.toml allows, as users get them: those of "
        "the day when .venv-*-newest was made; pip fetches several GB for them, too",
    )
    kind.add_argument(
        "--sanitize",
        action="store_true",
        help="tests of the C++ kernels, compiled with checks of memory and of undefined behavior",
    )
    kind.add_argument(
        "--wheel",
        action="store_true",
        help="the quickstart outside of the repository with an installed wheel, made from the "
        "source distribution with and without a compiler",
    )
    kind.add_argument(
        "--docs",
        action="store_true",
        help="build the documentation, in docs/_build, and run all blocks of code in it",
    )
    args, pytest_args = parser.parse_known_args()
    if args.oldest:
        results = run_bounds(args, pytest_args, "oldest", OLDEST_PYTHON, OLDEST_CONSTRAINTS)
    elif args.newest:
        results = run_bounds(args, pytest_args, "newest", sys.executable, os.devnull)
    elif args.sanitize:
        results = run_sanitized(args, pytest_args)
    elif args.wheel:
        results = run_wheel(args)
    elif args.docs:
        results = run_docs(args, pytest_args)
    else:
        results = run_usual(args, pytest_args)

    print("== Results")
    for title, code, closing_line in results:
        print(f"{'ok' if code == 0 else 'FAILED':6}  {title}: {closing_line}")
    return int(any(code != 0 for _, code, _ in results))


def run_usual(args: argparse.Namespace, pytest_args: list[str]) -> list[Result]:
    """Style, and the tests of each host in its environment."""
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="gaunt-kernels-") as shared:
        env = {"GAUNT_TEST_KERNELS": shared}  # they are the same in both
        for host in hosts(args):
            python = environment_of(host, args.python or sys.executable)
            if not results:  # and so is style
                for command in STYLE:
                    results.append(run(f"ruff {command[0]}", python, ["-m", "ruff", *command]))
            results.append(run_tests(host, python, test_files(host), pytest_args, env))
    return results


def run_bounds(
    args: argparse.Namespace,
    pytest_args: list[str],
    which: str,
    creator: str,
    constraints: str,
) -> list[Result]:
    """Every test with the oldest or the newest releases."""
    creator = args.python or creator
    if not starts(creator):
        sys.exit(f"{creator} does not start here; --python names another one")
    results = []
    for host in hosts(args):
        python = environment_of(host, creator, f"-{which}", constraints)
        results.append(run_tests(f"{host}, {which}", python, test_files(host), pytest_args))
    return results


def run_sanitized(args: argparse.Namespace, pytest_args: list[str]) -> list[Result]:
    """Tests of the kernels, which stop at the first fault that a sanitizer finds."""
    host = args.env or "mace"
    try:
        compiler = find_compiler()
        preload = ":".join(sanitizers(compiler))
    except BuildError as error:
        sys.exit(f"--sanitize: {error}")
    python = environment_of(host, args.python or sys.executable)
    env = {
        "LD_PRELOAD": preload,
        # Python leaves memory to the system when it ends.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # The compiler itself is much slower with the runtime.
        "CXX": shlex.join(["env", "-u", "LD_PRELOAD", *compiler]),
        "GAUNT_CXXFLAGS": SANITIZERS,
    }
    # A report comes to stderr just before it ends the process, which then runs no test again.
    options = ["--capture=sys", "--max-worker-restart=0"]
    return [run_tests("sanitized kernels", python, SANITIZED, [*options, *pytest_args], env)]


def run_wheel(args: argparse.Namespace) -> list[Result]:
    """Source distribution, wheels from it, and the quickstart with each, as a user would."""
    host = args.env or "mace"
    results = []
    with tempfile.TemporaryDirectory(prefix="gaunt-wheel-") as scratch:
        folder = Path(scratch)
        python = folder / "venv" / "bin" / "python"
        creator = args.python or sys.executable
        environment.check([creator, "-m", "venv", str(python.parents[1])], "no environment")
        pip = ["-m", "pip", "-q", "--disable-pip-version-check"]
        # Not the user's own kernels, and no compiler beside the environment's programs.
        cache = {"GAUNT_PLUGIN_CACHE": str(folder / "cache")}
        without = {**cache, "PATH": str(python.parent), "CXX": ""}

        def step(title: str, command: list[str], env: dict) -> bool:
            results.append(run(title, python, command, env))
            return results[-1][1] == 0

        sources = ["-m", "hatchling", "build", "-t", "sdist", "-d", str(folder / "sdist")]
        if not step("pip install hatchling", [*pip, "install", "hatchling"], cache):
            return results
        if not step("sdist", sources, cache):
            return results
        (archive,) = (folder / "sdist").glob("*.tar.gz")
        shutil.unpack_archive(archive, folder)
        (tree,) = folder.glob("gaunt_plugin-*")
        for title, env in (("without a compiler", without), ("with a compiler", cache)):
            wheels = folder / title.split()[0]
            build = [*pip, "wheel", "--no-deps", "-w", str(wheels), str(tree)]
            if not step(f"wheel {title}", build, env):
                continue
            (wheel,) = wheels.glob("*.whl")
            print(f"{wheel.name}: {wheel.stat().st_size / 1000:.0f} kB", flush=True)
            needed = [f"{wheel}[{host},ase]", "-c", environment.CONSTRAINTS]
            quickstart = [str(tree / "examples" / "quickstart.py"), "--installed", "--host", host]
            steps = {
                "what it needs": [*pip, "install", *needed],
                "install": [*pip, "install", *REPLACE, str(wheel)],
                "kernels": ["-I", "-c", HAS_KERNELS, str(env is cache)],
                "quickstart": [*quickstart, *SHORT[host]],
            }
            shutil.rmtree(tree / "runs", ignore_errors=True)
            all(step(f"{name} {title}", command, env) for name, command in steps.items())
    return results


def run_docs(args: argparse.Namespace, pytest_args: list[str]) -> list[Result]:
    """The documentation, warnings being errors, and its code, slow blocks too."""
    results = []
    for host in hosts(args):
        python = environment_of(host, args.python or sys.executable)
        if host == DOCS:
            command = ["-m", "sphinx", "-W", "--keep-going", "-q", "docs", "docs/_build"]
            results.append(run("documentation", python, command))
        tests = ["tests/test_documentation.py", "-n", "0"]
        results.append(
            run_tests(f"{host}, docs", python, tests, pytest_args, {"GAUNT_DOCS": "all"})
        )
    return results


def hosts(args: argparse.Namespace) -> list[str]:
    """The hosts whose environments are asked for."""
    return [args.env] if args.env else list(TESTS)


def environment_of(
    host: str, creator: str, suffix: str = "", constraints: str = environment.CONSTRAINTS
) -> Path:
    """The Python of a host's environment, which is made or updated first."""
    print(f"== The environment for {host}{suffix}", flush=True)
    venv = ROOT / f".venv-{host}{suffix}"
    extras = f"{host},ase,lammps,dev,triton" + ",polar" * (host == "mace")
    extras += ",docs" * (host == DOCS)
    return environment.ensure(venv, extras, creator, constraints)


def starts(python: str) -> bool:
    """Whether this is a Python that runs here; one in the path may be a manager's stand-in."""
    try:
        return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def is_path(argument: str) -> bool:
    """Whether an argument for pytest names a file, a folder or a test in a file."""
    path = argument.split("::")[0]
    return ("/" in path or path.endswith(".py")) and (ROOT / path).exists()


def test_files(host: str) -> list[str]:
    """The files and folders whose tests an environment runs, and what it leaves out of them."""
    found = [path for pattern in TESTS[host] for path in sorted(ROOT.glob(pattern))]
    if not found:
        sys.exit(f"there are no tests for {host}")
    files = dict.fromkeys(str(path.relative_to(ROOT)) for path in found)
    return [*files, *(f"--ignore={path}" for path in OF_ANY_HOST if host != ANY_HOST)]


def run_tests(
    name: str, python: Path, tests: list[str], pytest_args: list[str], env: dict | None = None
) -> Result:
    """Run pytest, on what its own arguments name or else on the given files."""
    if any(map(is_path, pytest_args)):
        tests = []
    command = ["-m", "pytest", *WORKERS, *tests, *pytest_args]
    return run(f"pytest, {name}", python, command, env)


def run(title: str, python: Path, command: list[str], env: dict | None = None) -> Result:
    """Run a tool of an environment, showing its output; keep its exit code and closing line."""
    print(f"== {title}", flush=True)
    closing_line = ""

    def show(line: str) -> None:
        nonlocal closing_line
        print(line, end="", flush=True)
        # Workers may still print something after pytest's own closing line.
        if line.startswith("=") or not closing_line.startswith("="):
            closing_line = line.strip() or closing_line

    env = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
    code = environment.stream([str(python), *command], show, env)
    return title, code, closing_line.strip("= ")


if __name__ == "__main__":
    sys.exit(main())
