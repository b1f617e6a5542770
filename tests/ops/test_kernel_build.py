"""When the kernels are compiled anew. A stand-in for the compiler makes empty libraries."""

import pytest

from gaunt_plugin._compiler import find_compiler
from gaunt_plugin.ops.cpu import build

COMPILER = """\
#!/bin/sh
if [ "$1" = --version ]; then echo "a compiler, release $RELEASE"; exit; fi
while [ "$1" != -o ]; do echo "$1" >> "$OPTIONS"; shift; done
exec {real} -shared -o "$2" -x c++ /dev/null
"""


@pytest.fixture
def built(tmp_path, monkeypatch):
    """A function that asks for the kernels and says whether they were compiled."""
    monkeypatch.setenv("GAUNT_KERNELS", "1")
    compiler = tmp_path / "compiler"
    compiler.write_text(COMPILER.format(real=" ".join(find_compiler())))
    compiler.chmod(0o755)
    for name, value in {
        "CXX": compiler,
        "GAUNT_PLUGIN_CACHE": tmp_path,
        "GAUNT_CXXFLAGS": "",
        "OPTIONS": tmp_path / "options",
        "RELEASE": "1",
    }.items():
        monkeypatch.setenv(name, str(value))

    def ask():
        said = []
        assert build.build(report=said.append) == build.path()
        assert build.path().is_file()
        return said[-1].startswith("Built with")

    return ask


def test_another_release_of_the_compiler(built, monkeypatch):
    assert built()
    assert not built()
    monkeypatch.setenv("RELEASE", "2")
    place = build.path()
    assert build.is_built()  # and good until somebody asks for a new build
    assert built()
    assert build.path() == place
    assert not built()


def test_another_command_of_the_compiler(built, monkeypatch, tmp_path):
    assert built()
    monkeypatch.setenv("CXX", f"env {tmp_path / 'compiler'}")
    assert built()


def test_no_compiler_is_needed_for_finished_kernels(built, monkeypatch):
    assert built()
    monkeypatch.setenv("CXX", "no-compiler")
    assert not built()
    with pytest.raises(build.BuildError, match="no-compiler"):
        build.build(force=True)


def test_a_build_that_nobody_signed(built):
    """Of an earlier release of this package, or of a build that was stopped."""
    assert built()
    build.path().with_suffix(".compiler").unlink()
    assert built()


def test_options(built, monkeypatch, tmp_path):
    assert built()
    usual = build.path()
    monkeypatch.setenv("GAUNT_CXXFLAGS", "-g '-DNAME=two words'")
    assert build.path() != usual
    assert not build.is_built()
    assert built()
    assert not built()
    options = (tmp_path / "options").read_text().splitlines()
    assert options[-2:] == ["-g", "-DNAME=two words"]
    monkeypatch.setenv("GAUNT_CXXFLAGS", "")
    assert build.path() == usual
    assert not built()
