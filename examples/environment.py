"""Set up an environment for one host with nothing but Python and pip (standard library only).

Shared by ``examples/quickstart.py`` and ``tests/run.py``. An environment is installed once and
then reused until something that decides its contents changes.
"""

import hashlib
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036 (say so before newer syntax fails)
    sys.exit(f"gaunt_plugin needs Python 3.10 or newer; this is {sys.version.split()[0]}")

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = "constraints-cpu.txt"
# An editable install copies these; everything else is read from the source tree.
_INSTALLED_FROM = ("pyproject.toml", "gaunt_plugin/_startup.pth")
_STAMP = "gaunt_plugin.stamp"


def ensure(
    venv: Path, extras: str, python: str = sys.executable, constraints: str = CONSTRAINTS
) -> Path:
    """Create or update an environment that holds this source tree.

    Args:
        venv: Where it lies or will lie; a broken environment there is built again.
        extras: The package's extras to install, e.g. ``"mace,dev"``.
        python: The interpreter to create it with.
        constraints: The file that says which releases to install.

    Returns:
        The environment's Python.
    """
    start = time.monotonic()
    inside = venv / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    stamp = venv / _STAMP
    if not _works(inside, "import pip"):
        if venv.exists() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").exists():
            sys.exit(f"{venv} is not a virtual environment; name another place")
        print(f"Creating the environment {_short(venv)}", flush=True)
        check([python, "-m", "venv", "--clear", str(venv)], f"creating {venv} failed")

    wanted = _fingerprint(inside, extras, constraints)
    ours = f"import gaunt_plugin as g; assert g.__path__[0] == {str(ROOT / 'gaunt_plugin')!r}"
    if stamp.exists() and stamp.read_text() == wanted and _works(inside, ours):
        print(f"The environment {_short(venv)} is up to date", flush=True)
        return inside
    stamp.unlink(missing_ok=True)

    log = venv / "install.log"
    print(f"Installing into {_short(venv)}; the whole log is {_short(log)}", flush=True)
    command = [str(inside), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    command += ["--progress-bar", "off", "-e", f".[{extras}]", "-c", constraints]
    with log.open("w", encoding="utf-8") as file:

        def show(line: str) -> None:
            file.write(line)
            if line.startswith(("Collecting", "Installing", "Successfully")):
                print("  " + line.rstrip()[:100], flush=True)

        code = stream(command, show)
    if code != 0:
        text = log.read_text(encoding="utf-8")
        print("".join(text.splitlines(keepends=True)[-20:]))
        # pip's last lines only say that it found no release.
        offline = "connection broken" in text
        reason = ": pip doesn't reach its package index (network, proxy?)" if offline else ""
        sys.exit(f"installing the package failed{reason}; {_short(log)} has the whole log")
    stamp.write_text(wanted)
    print(f"Installed in {time.monotonic() - start:.0f} s", flush=True)
    return inside


def stream(command: Sequence[str], show: Callable[[str], object], env: dict | None = None) -> int:
    """Run a command in the source tree, hand over its output line by line, return its code."""
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        for line in process.stdout:
            show(line)
    return process.returncode


def check(command: Sequence[str], message: str) -> None:
    """Run a command in the source tree; end the program with the message if it fails."""
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code != 0:
        sys.exit(f"{message} (exit code {code}): {shlex.join(command)}")


def _works(python: Path, statement: str) -> bool:
    try:
        done = subprocess.run([python, "-c", statement], cwd="/", capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


def _fingerprint(python: Path, extras: str, constraints: str) -> str:
    version = subprocess.run([python, "-VV"], capture_output=True, check=True).stdout
    parts = [str(ROOT).encode(), extras.encode(), version]
    parts += [(ROOT / name).read_bytes() for name in (*_INSTALLED_FROM, constraints)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
