"""A checkpoint and a package of NequIP, trained and packaged by its own commands, in LAMMPS."""

import numpy as np
import pytest
import torch
from nequip.integrations.ase import NequIPCalculator
from nequip.model.inference_models import torchscript
from nequip.scripts import compile

from gaunt_plugin import cli
from gaunt_plugin.nequip.torchscript import main

from ..deploy.structures import triclinic
from ..nequip.conftest import double, run_command, workshop  # noqa: F401 (fixtures)
from .simulation import Case, simulate

pytestmark = pytest.mark.training


def test_checkpoint_and_package(double, lammps, tmp_path):  # noqa: F811
    """Both parities, features per degree, a cutoff per pair of types, in float64."""
    checkpoint, package = double / "out/best.ckpt", double / "lammps.nequip.zip"
    run_command(double, "nequip-package", "build", str(checkpoint), str(package))
    atoms, cases = triclinic(), []
    for path in (checkpoint, package):
        output = tmp_path / f"{path.name}.pt"
        assert cli.main(["export", str(path), str(output), "--radial", "exact"]) == 0
        cases.append(Case(atoms, output))
    atoms.calc = NequIPCalculator._from_saved_model(checkpoint)
    for ranks in (1, 2):
        for found in simulate(lammps, cases, ranks):
            assert found.energy == pytest.approx(atoms.get_potential_energy(), rel=0, abs=1e-8)
            np.testing.assert_allclose(found.forces, atoms.get_forces(), rtol=0, atol=1e-10)


def test_the_fixtures_leave_no_hooks_for_other_tests():
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert not torch.nn.modules.module._global_forward_hooks


def test_arguments_that_nequip_has_no_use_for(double, tmp_path, capsys):  # noqa: F811
    command = ["export", str(double / "out/best.ckpt"), str(tmp_path / "out.pt")]
    assert cli.main([*command, "--head", "hot"]) == 1
    assert "no heads" in capsys.readouterr().err
    assert cli.main([*command, "--dtype", "float32"]) == 1
    assert "keeps the dtype it was built with, float64" in capsys.readouterr().err
    assert cli.main(["mliap", *command[1:]]) == 1
    assert "nequip-prepare-lmp-mliap" in capsys.readouterr().err


def test_an_old_file_survives_a_full_disk(monkeypatch, tmp_path):
    """Of gaunt nequip-torchscript: NequIP calls the function that saves."""
    path = tmp_path / "model.nequip.pth"
    path.write_text("old")

    def full_disk(model, metadata, output_path, device):
        with open(output_path, "w") as file:
            file.write("half")
        raise OSError("no space left")

    def compile_main(args):
        assert args[:2] == ["--mode", "torchscript"]
        torchscript.save_torchscript_model(None, {}, path, "cpu")

    monkeypatch.setattr(torchscript, "save_torchscript_model", full_disk)
    monkeypatch.setattr(compile, "main", compile_main)
    with pytest.raises(OSError, match="no space left"):
        main(["model.ckpt", str(path)])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
