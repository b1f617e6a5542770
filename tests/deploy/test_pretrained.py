"""The models that come with the package."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import read

from gaunt_plugin import cli, pretrained
from gaunt_plugin.calculator import GauntCalculator
from gaunt_plugin.deploy.contract import ModelFileError

SAMPLE = Path(__file__).resolve().parents[2] / "examples" / "3bpa_sample"
# Energies of the first frame of these, eV, by make_3bpa_small.py.
EXPECTED = json.loads((Path(pretrained.__file__).parent / "3bpa-small.json").read_text())

with_mace = pytest.mark.skipif(
    importlib.util.find_spec("mace") is None, reason="weights of MACE models need MACE"
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Exports of this run, not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAUNT_PLUGIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@with_mace
def test_by_name(capsys):
    calculator = GauntCalculator("3bpa-small")
    assert "Exporting 3bpa-small" in capsys.readouterr().out
    for name, energy in EXPECTED.items():
        atoms = read(SAMPLE / name, 0)
        labelled = atoms.get_potential_energy()
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(energy, abs=2e-3)  # float32
        assert abs(energy - labelled) < 0.2
    again = GauntCalculator("3bpa-small")
    assert capsys.readouterr().out == ""  # exported once
    assert again.program.about == calculator.program.about


@with_mace
def test_forces_are_the_derivative(tmp_path, recwarn):
    """In float64: differences of float32 energies are too coarse."""
    path = tmp_path / "double.pt"
    assert cli.main(["export", "3bpa-small", str(path), "--dtype", "float64"]) == 0
    # Torch warns dozens of times of layers that aren't the user's.
    assert not [warning for warning in recwarn if "TorchScript type" in str(warning.message)]
    atoms = read(SAMPLE / "test_1200K.xyz", 0)
    labelled = atoms.get_forces()
    atoms.calc = GauntCalculator(path)
    forces = atoms.get_forces()
    assert np.sqrt(((forces - labelled) ** 2).mean()) < 0.2
    assert forces.sum(axis=0) == pytest.approx(0, abs=1e-9)
    step = 1e-4
    for atom, axis in ((0, 0), (7, 1), (26, 2)):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            moved.calc = atoms.calc
            energies.append(moved.get_potential_energy())
        assert (energies[1] - energies[0]) / (2 * step) == pytest.approx(
            forces[atom, axis], abs=1e-5
        )


@with_mace
def test_its_card_describes_the_model():
    content = torch.load(pretrained.weights("3bpa-small"), weights_only=True)
    card = pretrained.weights("3bpa-small").with_suffix(".md").read_text(encoding="utf-8")
    config = json.loads(content["config"])
    assert config["hidden_irreps"] == "16x0e+16x1o"
    assert "MIT" in card
    assert [row in card for row in ("| test 300K |", "| test 600K |", "| test 1200K |")] == [
        True
    ] * 3


@pytest.mark.skipif(importlib.util.find_spec("mace") is not None, reason="MACE is installed")
def test_without_mace():
    with pytest.raises(ModelFileError, match="mace-torch, which is not installed here"):
        GauntCalculator("3bpa-small")


def test_other_names(tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match="no file or model '4bpa'; models by name: 3bpa-small"):
        GauntCalculator("4bpa")
    assert cli.main(["export", "4bpa", "model.pt"]) == 1
    assert "models by name: 3bpa-small" in capsys.readouterr().err
    with pytest.raises(ModelFileError, match="there is no file"):
        GauntCalculator("4bpa.pt")
    monkeypatch.chdir(tmp_path)
    Path("3bpa-small").touch()  # a file of that name goes first
    with pytest.raises(ModelFileError, match="no TorchScript file"):
        GauntCalculator("3bpa-small")
