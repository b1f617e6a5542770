"""Small runs on the sample in the repository, shared by the tests of the commands.

Most commands run in forks of one process. The two runs that others start from go through the real
console script.
"""

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import ase.io
import pytest
import torch
import yaml

from ..forks import Forks
from ..once import once

SAMPLE = Path(__file__).parents[2] / "examples" / "3bpa_sample"
E0S = "{1: -10.707211, 6: -48.798080, 7: -70.908087, 8: -102.521807}"
TRAIN = os.path.join(sysconfig.get_path("scripts"), "mace_run_train")
SETTINGS = {
    "train_file": "train.xyz",
    "valid_file": "valid.xyz",
    "energy_key": "energy",
    "forces_key": "forces",
    "E0s": E0S,
    "model": "ScaleShiftMACE",
    "hidden_irreps": "4x0e + 4x1o",
    "max_ell": 2,
    "correlation": 2,
    "num_radial_basis": 4,
    "r_max": 3.5,
    "radial_MLP": "[8]",
    "batch_size": 3,
    "valid_batch_size": 4,
    "lr": 0.01,
    "max_num_epochs": 1,
    "eval_interval": 1,
    "default_dtype": "float64",
    "device": "cpu",
    "seed": 1,
    "plot": False,
}
PRELOAD = ["mace.cli.run_train", "mace.cli.eval_configs", "mace.cli.create_lammps_model"]


def write_data(folder: Path) -> None:
    """Write training files of six and two frames, and two more for testing."""
    frames = ase.io.read(SAMPLE / "train_300K.xyz", ":10")
    for file, part in [("train", frames[:6]), ("valid", frames[6:8]), ("test", frames[8:])]:
        ase.io.write(folder / f"{file}.xyz", part)


class Workshop(Forks):
    """Runs MACE's commands in folders of their own."""

    def folder(self, name: str) -> Path:
        """A folder with data."""
        path = self.root / name
        path.mkdir()
        write_data(path)
        return path

    def settings(self, folder: Path, **changes) -> str:
        """Write a YAML file for a training and return its name."""
        settings = {"name": "run", **SETTINGS, **changes}
        settings = {key: value for key, value in settings.items() if value is not None}
        (folder / "run.yaml").write_text(yaml.safe_dump(settings))
        return "run.yaml"

    def train(self, folder: Path, *arguments, fails: bool = False, **changes):
        """Train with the module that needs no start-up hook."""
        config = self.settings(folder, **changes)
        return self.run(
            folder, "gaunt_plugin.mace.run_train", "--config", config, *arguments, fails=fails
        )


def real_training(folder: Path, config: str) -> None:
    """Run the console script and keep what it printed in training.txt."""
    result = subprocess.run(
        [TRAIN, "--config", config],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (folder / "training.txt").write_text(result.stdout + result.stderr)


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    return Workshop(tmp_path_factory.mktemp("mace"), PRELOAD, timeout=300)


@pytest.fixture(scope="session")
def single(workshop, tmp_path_factory):
    """Folder of a trained model with one head, run.model; a copy for each worker."""

    def train(folder: Path) -> None:
        write_data(folder)
        config = workshop.settings(folder, plugin="gaunt", max_num_epochs=4, batch_size=1)
        real_training(folder, config)

    made = once(tmp_path_factory, "single", train)
    return shutil.copytree(made, workshop.root / "single")


@pytest.fixture(scope="session")
def two_heads(workshop):
    """Folder of a model with two heads, trained in two stages with averaged weights."""
    folder = workshop.folder("two_heads")
    frames = ase.io.read(SAMPLE / "test_1200K.xyz", ":6")
    ase.io.write(folder / "hot.xyz", frames[:4])
    ase.io.write(folder / "hot_valid.xyz", frames[4:])
    config = workshop.settings(
        folder,
        plugin="gaunt",
        heads={
            "room": {"train_file": "train.xyz", "valid_file": "valid.xyz", "E0s": E0S},
            "hot": {"train_file": "hot.xyz", "valid_file": "hot_valid.xyz", "E0s": E0S},
        },
        train_file=None,
        valid_file=None,
        E0s=None,
        gaunt_convolution="aligned, grid",
        gaunt_convolution_rank="1, 2",
        gaunt_selfmix_rank="0, 1",
        ema=True,
        swa=True,
        start_swa=1,
        max_num_epochs=2,
    )
    real_training(folder, config)
    return folder


@pytest.fixture(scope="session")
def load():
    """Read a .model file, MACE's pickle."""
    return lambda path: torch.load(path, map_location="cpu", weights_only=False)


@pytest.fixture(scope="session")
def errors():
    """RMSE of forces by head before the first epoch, in meV/Å, from a training's output."""
    pattern = r"Initial: head: (\w+), .*RMSE_F= *([\d.]+)"
    return lambda output: {name: float(value) for name, value in re.findall(pattern, output)}


@pytest.fixture(autouse=True)
def same_default_dtype():
    """MACE's calculator changes torch's default dtype."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)
