"""Fixtures for tests in NequIP's environment: the host's own, and small runs of its commands.

Most commands run in forks of one process. The runs that others start from go through the real
console script.
"""

import csv
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

# NequIP's commands are run by name, by its own tests too.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

import ase.io
import pytest
from nequip.utils.test import set_irreps_debug

# Model dtypes, molecules and crystals of the host's test suite.
from nequip.utils.unittests.conftest import *  # noqa: F403

from ..forks import Forks
from ..once import once

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "nequip"
SAMPLE = ROOT / "examples" / "3bpa_sample"
# The quickstart on few frames, with a small model.
SMALL = {
    "data.split_dataset.train": 6,
    "data.split_dataset.val": 3,
    "data.train_dataloader.batch_size": 2,
    "data.train_dataloader.shuffle": False,
    "trainer.max_epochs": 2,
    "trainer.log_every_n_steps": 1,
    "training_module.model.num_layers": 2,
    "training_module.model.l_max": 1,
    "training_module.model.num_features": 4,
    "training_module.model.radial_mlp_width": 8,
    "training_module.model.num_bessels": 4,
    "hydra.run.dir": "out",
}
PRELOAD = [
    "nequip.scripts.train",
    "nequip.scripts.package",
    "nequip.scripts.compile",
    "nequip.model.nequip_models",
    "nequip.integrations.ase",
    "nequip.data.datamodule",
]

# The host's conftest has every forward of the process checked, that is in the tests of other
# folders, too. torch 2.7 can't compile a module with such hooks.
set_irreps_debug(False)


@pytest.fixture(autouse=True)
def _irreps_debug():
    set_irreps_debug(True)
    yield
    set_irreps_debug(False)


def pytest_collection_modifyitems(config, items):
    """Of the host's tests of compiled files, one: it takes more than a minute of a compiler.

    A float32 file, of a checkpoint: test_aotinductor_file_for_lammps. A package equals its
    checkpoint in either dtype: test_calculator_from_a_package. Those of torch-sim need
    torch-sim-atomistic and nvalchemi-toolkit-ops.
    """
    if find_spec("nvalchemiops") is None:
        for item in items:
            if "test_torchsim" in item.name:
                item.add_marker(pytest.mark.skip(reason="nvalchemi-toolkit-ops not installed"))
    if os.environ.get("GAUNT_TEST_ALL") == "1":
        return
    chosen = {
        "model_dtype": "float64",
        "conffile": "minimal_toy_emt.yaml",
        "model_source": "package",
    }
    left_out = []
    for item in items:
        values = item.callspec.params if hasattr(item, "callspec") else {}
        compiles = "model_source" in values and "test_mliap" not in item.name
        if compiles and any(values[name] != value for name, value in chosen.items()):
            left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def write_data(folder: Path) -> None:
    """Write the files that the configurations name: nine frames for training, three for testing."""
    frames = ase.io.read(SAMPLE / "train_300K.xyz", ":12")
    for config in CONFIGS.glob("*.yaml"):
        text = config.read_text()
        for data in re.findall(r"data_folder: \$\{hydra:runtime.cwd\}/(.+)", text):
            (folder / data).mkdir(parents=True, exist_ok=True)
            # A configuration with defaults doesn't repeat the training file.
            for name in ["train_300K.xyz", *re.findall(r"\$\{data_folder\}/(.+)", text)]:
                chosen = frames[:9] if name == "train_300K.xyz" else frames[9:]
                ase.io.write(folder / data / name, chosen)


class Workshop(Forks):
    """Runs NequIP's commands in folders of their own."""

    def folder(self, name: str) -> Path:
        """A folder with data."""
        path = self.root / name
        path.mkdir()
        write_data(path)
        return path

    def settings(self, config: str = "quickstart", **changes) -> list[str]:
        """Arguments of `nequip-train`: a configuration of the repository, and what is changed."""
        settings = {**SMALL, **{key.replace("__", "."): value for key, value in changes.items()}}
        arguments = ["-cp", str(CONFIGS), "-cn", config]
        return arguments + [f"++{k}={v}" for k, v in settings.items() if v is not ...]

    def train(self, folder: Path, *arguments, fails: bool = False, **changes) -> str:
        settings = self.settings(**changes)
        return self.run(folder, "nequip.scripts.train", *settings, *arguments, fails=fails)


def run_command(folder: Path, *command, timeout: float = 300) -> str:
    """Run a console script and return what it printed."""
    result = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=timeout,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def real_training(folder: Path, settings: list[str]) -> None:
    write_data(folder)
    run_command(folder, "nequip-train", *settings)


def read_metrics(folder: Path) -> dict[str, list[float]]:
    """Columns of the training's metrics.csv, without empty fields."""
    columns: dict[str, list[float]] = {}
    (path,) = folder.glob("log/version_*/metrics.csv")
    with path.open() as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value:
                    columns.setdefault(name, []).append(float(value))
    return columns


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    return Workshop(tmp_path_factory.mktemp("nequip"), PRELOAD, timeout=500)


@pytest.fixture(scope="session")
def single(workshop, tmp_path_factory):
    """Folder of a float32 model: natural parity, a product, no cutoffs of pairs."""
    settings = workshop.settings(training_module__model__correlation=2)
    return once(tmp_path_factory, "single", lambda folder: real_training(folder, settings))


@pytest.fixture(scope="session")
def double(workshop, tmp_path_factory):
    """Folder of a float64 model: both parities, features per degree, cutoffs of pairs."""
    settings = workshop.settings(
        training_module__model__model_dtype="float64",
        training_module__model__l_max=2,
        training_module__model__parity=True,
        training_module__model__num_features="[4,3,2]",
        training_module__model__correlation="[1,3]",
        training_module__model__per_edge_type_cutoff="{H: 3.0, C: {H: 3.5, O: 3.8}}",
    )
    return once(tmp_path_factory, "double", lambda folder: real_training(folder, settings))
