"""Every command and code block of README.md and docs/*.md runs, or says why not.

A comment before a block says which::

    <!-- run: mace -->              in MACE's environment; also ``nequip``, or both
    <!-- run: mace, slow -->        by ``tests/run.py --docs`` only
    <!-- not run: needs a GPU -->   the reason

Blocks run in the order of the pages, README first, in one folder with copies of examples/ and
configs/. To be quick:

* the sample has ten frames for training and a few for testing,
* commands get the options in ``SHORTER``,
* ``pip install`` installs nothing: it checks that gaunt-plugin has the extras that are named.

A block that begins with a comment that is a file's name is written to this file. ``text`` is output
or a formula. ``python tests/test_documentation.py`` counts the blocks.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOST = "mace" if importlib.util.find_spec("mace") else "nequip"
ALL = os.environ.get("GAUNT_DOCS") == "all"
SHORTER = {
    "mace_run_train": "--max_num_epochs 1",
    "nequip-train": "trainer.max_epochs=1",
    "lmp": "-var steps 20",
}
PIP = """
import importlib.metadata, re, sys
known = importlib.metadata.metadata("gaunt-plugin").get_all("Provides-Extra")
for argument in sys.argv[1:]:
    for extra in re.findall(r"[\\w-]+", "".join(re.findall(r"\\[(.*)\\]", argument))):
        assert extra in known, f"{argument}: no extra {extra}"
"""
COMMENT = re.compile(r"\s*<!-- (run|not run): (.+?) -->")
FILE = re.compile(r"# ([\w./-]+\.(?:yaml|lammps))")


class Block(NamedTuple):
    """A block of code and what the comment before it says."""

    place: str  # page:line
    language: str
    text: str
    run: tuple[str, ...]  # environments, and whether it is slow
    reason: str


def blocks_of(path: Path) -> list[Block]:
    """The blocks of a page that are commands or code."""
    found = []
    lines = path.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        opening = re.match(r"(\s*)```(\S*)", lines[number])
        if opening is None:
            number += 1
            continue
        start = number + 1
        number = next(k for k in range(start, len(lines)) if lines[k].strip() == "```") + 1
        indent, language = len(opening[1]), opening[2]
        if language == "text" or language.startswith("{"):
            continue
        text = "\n".join(line[indent:] for line in lines[start : number - 1])
        says = COMMENT.fullmatch(lines[start - 2]) if start > 1 else None
        kind, what = (says[1], says[2]) if says else ("", "")
        run = tuple(re.split(r",\s*", what)) if kind == "run" else ()
        place = f"{path.relative_to(ROOT)}:{start + 1}"
        found.append(Block(place, language, text, run, what if kind == "not run" else ""))
    return found


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def cut(path: Path, frames: int) -> None:
    """Leave some frames of an extended XYZ file, evenly spread."""
    lines = path.read_text().splitlines(keepends=True)
    found = []
    while lines:
        size = int(lines[0]) + 2
        found.append(lines[:size])
        lines = lines[size:]
    chosen = found[:: max(1, len(found) // frames)][:frames]
    path.write_text("".join(line for frame in chosen for line in frame))


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, built_kernels, built_pair_style):
    """Where the blocks run."""
    folder = tmp_path_factory.mktemp("documentation")
    for name in ("examples", "configs", "docs/figures"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("benchmarks", "tests"):
        (folder / name).symlink_to(ROOT / name)
    for path in (folder / "examples" / "3bpa_sample").glob("*.xyz"):
        cut(path, 10 if "train" in path.name else 6)
    commands = folder / ".bin"
    commands.mkdir()
    scripts = sysconfig.get_path("scripts")
    for name, options in SHORTER.items():
        if (Path(scripts) / name).exists():
            program(commands / name, f'#!/bin/sh\nexec "{scripts}/{name}" "$@" {options}\n')
    program(commands / "pip", f"#!{sys.executable}\n{PIP}")
    cache = folder / ".cache"
    cache.mkdir()
    for built in (built_kernels, built_pair_style):
        for part in built.iterdir():
            (cache / part.name).symlink_to(part)
    return folder


@pytest.fixture(scope="module")
def environment(folder):
    path = [str(folder / ".bin"), sysconfig.get_path("scripts"), os.environ["PATH"]]
    return {
        **os.environ,
        "PATH": os.pathsep.join(path),
        "GAUNT_KERNELS": "1",
        "GAUNT_PLUGIN_CACHE": str(folder / ".cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }


def test_every_block_says_whether_it_runs():
    unmarked = [block.place for block in BLOCKS if not block.run and len(block.reason) < 10]
    assert unmarked == [], "see tests/test_documentation.py for the comment that is missing"
    for block in BLOCKS:
        assert set(block.run) <= {"mace", "nequip", "slow"}, block.place
        assert block.language in ("bash", "python") or not block.run or FILE.match(block.text)


@pytest.mark.skipif(ALL, reason="tests/run.py --docs has built them")
def test_the_pages_build_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="the extra 'docs' is not installed")
    command = ["-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-d", tmp_path / "doctrees"]
    done = subprocess.run(
        [sys.executable, *command, ROOT / "docs", tmp_path / "html"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if HOST in block.run and (ALL or "slow" not in block.run)],
    ids=lambda block: block.place,
)
def test_block(block, folder, environment):
    if (name := FILE.match(block.text)) is not None:
        (folder / name[1]).write_text(block.text + "\n", encoding="utf-8")
        return
    start = {"bash": ["bash", "-euc"], "python": [sys.executable, "-c"]}[block.language]
    done = subprocess.run(
        [*start, block.text],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"{block.place}\n{block.text}\n{done.stdout[-4000:]}"


if __name__ == "__main__":
    counts = Counter(
        "with a reason why not" if block.reason else "run: " + ", ".join(block.run)
        for block in BLOCKS
    )
    for what, count in counts.most_common():
        print(f"{count:4} {what}")
    lines = [line for b in BLOCKS if b.run and b.language == "bash" for line in b.text.splitlines()]
    print(len([line for line in lines if line.strip() and line[0] not in "# "]), "commands run")
