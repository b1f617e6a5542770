"""Kernels that come with a wheel: which are made, which are taken, and why there are none."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from gaunt_plugin._compiler import find_compiler
from gaunt_plugin.ops.cpu import build, wheel

ROOT = Path(__file__).resolve().parents[2]
# Says what it was asked for, in place of an object file and of a library.
COMPILER = """\
#!/bin/sh
echo "$@" >> "$ASKED"
last=
for word in "$@"; do
    [ "$last" = -o ] && echo library > "$word"
    last=$word
done
exit 0
"""
# A call without arrays fails with a text.
CALL = """
import ctypes, sys
from pathlib import Path
from gaunt_plugin.ops.cpu import wheel
library = wheel.load(Path(sys.argv[1]))
message = ctypes.create_string_buffer(512)
print(library.gaunt_edge_frames(0, None, 0, 2, None, message), message.value.decode())
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that makes this an x86-64 processor with the given extensions."""
    monkeypatch.setenv("GAUNT_KERNELS", "1")
    monkeypatch.setenv("GAUNT_PLUGIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(wheel, "FOLDER", tmp_path / "compiled")
    wheel.FOLDER.mkdir()
    build.library.cache_clear()

    def is_one(extensions, name="x86_64"):
        monkeypatch.setattr(platform, "machine", lambda: name)
        monkeypatch.setattr(wheel, "processor", lambda: f"flags : {extensions}")

    yield is_one
    build.library.cache_clear()


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A stand-in; a function that returns its calls."""
    program, asked = tmp_path / "compiler", tmp_path / "asked"
    program.write_text(COMPILER)
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    monkeypatch.setenv("ASKED", str(asked))
    return lambda: asked.read_text().splitlines() if asked.exists() else []


V3 = "fpu avx2 fma bmi2"
V4 = f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.mark.parametrize(("extensions", "taken"), [(V4, "x86-64-v4"), (V3, "x86-64-v3")])
def test_the_best_that_runs_here(machine, compiler, extensions, taken):
    machine(extensions)
    assert build.in_use() is None
    made = wheel.compile_all(wheel.FOLDER, report=lambda _: None)
    assert [path.name for path in made] == ["kernels-x86-64-v4.so", "kernels-x86-64-v3.so"]
    assert build.in_use() == wheel.FOLDER / f"kernels-{taken}.so"
    compiled = [call for call in compiler() if " -c " in call]
    assert len(compiled) == 2
    sources = list((ROOT / "gaunt_plugin" / "ops" / "cpu").glob("*.cpp"))
    for call in compiled:  # every source, without a list of them
        assert {Path(word).name for word in call.split() if word.endswith(".cpp")} == {
            source.name for source in sources
        }
    assert sum("-mavx512vl" in call for call in compiled) == 1


def test_kernels_built_here_go_first(machine, compiler):
    machine(V4)
    wheel.compile_all(wheel.FOLDER, report=lambda _: None)
    build.path().parent.mkdir(parents=True)
    build.path().touch()
    assert build.in_use() == build.path()


def test_an_older_processor(machine, compiler):
    machine("fpu sse4_2")
    wheel.compile_all(wheel.FOLDER, report=lambda _: None)
    assert build.library() is None
    assert "not built, those of the wheel are for other processors" in build.status()


def test_other_machines(machine, compiler):
    machine("fp asimd", "aarch64")
    (path,) = wheel.compile_all(wheel.FOLDER, report=lambda _: None)
    assert build.in_use() == path
    assert not [call for call in compiler() if " -m" in call]


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"CXX": "no-compiler"}, "CXX is 'no-compiler', which is not a program"),
        ({"CXX": "false"}, "compiling failed: false"),
        ({"GAUNT_KERNELS": "0"}, "GAUNT_KERNELS=0 was set"),
        ({}, "none are known for riscv64"),
    ],
)
def test_without_a_compiler_the_reason_is_kept(machine, compiler, monkeypatch, setting, reason):
    machine(V4, "x86_64" if setting else "riscv64")
    with monkeypatch.context() as patch:
        for name, value in setting.items():
            patch.setenv(name, value)
        said = []
        assert wheel.compile_all(wheel.FOLDER, report=said.append) == []
        assert reason in said[-1]
        assert said[-1].startswith("Going on without CPU kernels: ")
    assert [path.name for path in wheel.FOLDER.iterdir()] == [wheel.REASON]
    assert build.library() is None
    assert f"not built, this package was installed without them, {reason}" in build.status()


def test_a_source_tree_has_none(machine):
    machine(V4)
    assert build.status().endswith("a source tree has none; to compile them: gaunt build kernels")


def test_they_run_on_the_openmp_of_torch(tmp_path, monkeypatch):
    """For real, but only the smallest source."""
    smallest = min(
        (path for path in wheel.SOURCES if path.suffix == ".cpp"), key=lambda p: p.stat().st_size
    )
    monkeypatch.setattr(wheel, "SOURCES", [smallest])
    library = wheel._compile(find_compiler(), ("any", ()), tmp_path)
    alone = [sys.executable, "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])", str(library)]
    done = subprocess.run(alone, capture_output=True, text=True, check=False)
    assert "undefined symbol" in done.stderr
    command = [sys.executable, "-c", CALL, str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == ["1", "arrays are missing\n"]


def test_the_hook_of_the_build_loads_it_alone():
    """Where a wheel is built there is no torch."""
    code = (
        "import sys, types; sys.modules.update(torch=None, numpy=None)\n"
        "interface = types.ModuleType('i'); interface.BuildHookInterface = object\n"
        "sys.modules['hatchling.builders.hooks.plugin.interface'] = interface\n"
        "import hatch_build, pathlib\n"
        "module = hatch_build._load_wheel_module(pathlib.Path.cwd())\n"
        "print(len(module.SOURCES), hatch_build._platform())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    count, tag = done.stdout.split()
    assert int(count) == len(wheel.SOURCES)
    assert tag.split("_")[0] in ("linux", "macosx")
