"""The command that compiles the kernels."""

import pytest

from gaunt_plugin import cli
from gaunt_plugin.ops.cpu import build


def test_command(tmp_path, monkeypatch, capsys, kernels):
    assert cli.main(["build", "kernels"]) == 0
    assert "built already" in capsys.readouterr().out
    assert cli.main(["info"]) == 0
    assert str(build.path()) in capsys.readouterr().out
    monkeypatch.setenv("CXX", "no-compiler")
    monkeypatch.setenv("GAUNT_PLUGIN_CACHE", str(tmp_path))
    build.library.cache_clear()
    assert cli.main(["build", "kernels"]) == 1
    assert "no-compiler" in capsys.readouterr().err
    assert cli.main(["info"]) == 0
    assert "not built" in capsys.readouterr().out
    monkeypatch.delenv("CXX")
    build.path().parent.mkdir()
    build.path().write_text("no library")
    build.library.cache_clear()
    with pytest.raises(RuntimeError, match="gaunt build kernels --force"):
        build.library()
    monkeypatch.setenv("GAUNT_KERNELS", "0")
    build.library.cache_clear()
    assert build.library() is None
    assert cli.main(["info"]) == 0
    assert "switched off" in capsys.readouterr().out


def test_a_failing_compiler_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GAUNT_PLUGIN_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    assert cli.main(["build", "kernels"]) == 1
    assert "compiling failed: false" in capsys.readouterr().err
    assert not list((tmp_path / "kernels").iterdir())
