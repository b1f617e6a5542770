"""Every configuration in configs/mace, run on a few frames of the sample in the repository."""

import re
from pathlib import Path

import pytest
import yaml

from gaunt_plugin.mace.models import ScaleShiftMACE

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "mace").glob("*.yaml"))
NAMES = [path.stem for path in CONFIGS]


def read(path):
    return yaml.safe_load(path.read_text())


def run(workshop, folder, settings, *arguments):
    """Train for one epoch on six frames."""
    if settings["name"].startswith("acac"):
        settings["E0s"] = read(CONFIGS[NAMES.index("3bpa")])["E0s"]  # the sample has nitrogen
    files = {"train_file": "train.xyz", "test_file": "test.xyz", "valid_fraction": 0.17}
    settings.update(files, work_dir=".", device="cpu", max_num_epochs=1)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    module = "gaunt_plugin.mace.run_train"
    return workshop.run(folder, module, "--config", "config.yaml", *arguments)


@pytest.mark.training
@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_runs(workshop, load, path):
    folder = workshop.folder(path.stem)
    settings = read(path)
    settings["hidden_irreps"] = re.sub(r"\d+x", "4x", settings["hidden_irreps"])
    output = run(workshop, folder, settings)
    assert "Epoch 0: head: Default" in output
    assert "Default_Default" in output.split("Error-table on TEST")[1]
    model = load(folder / f"{settings['name']}.model")
    assert isinstance(model, ScaleShiftMACE) == ("plugin" in settings)
    assert (folder / f"{settings['name']}_compiled.model").exists()


@pytest.mark.training
@pytest.mark.parametrize("name", ["3bpa", "3bpa_paper", "acac"])
def test_published_size_builds(workshop, name):
    settings = read(CONFIGS[NAMES.index(name)])
    output = run(workshop, workshop.folder(f"{name}_large"), settings, "--dry_run")
    assert "Hidden irreps: 256x0e + 256x1o + 256x2e" in output
    assert "DRY RUN" in output.upper()


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_twins_differ_in_blocks_only(path):
    twin = path.with_name(f"{path.stem}_cg.yaml")
    if not twin.exists():
        pytest.skip("has no twin")
    one, two = read(path), read(twin)
    different = {key for key in one.keys() | two.keys() if one.get(key) != two.get(key)}
    assert different <= {"plugin", "name", "work_dir", "interaction", "interaction_first"}
    for key in ("interaction", "interaction_first"):
        assert one[key].replace("Gaunt", "RealAgnostic") == two[key]
