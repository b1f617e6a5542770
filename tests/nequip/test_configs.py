"""Every configuration in configs/nequip, run on a few frames of the sample in the repository."""

import warnings

import pytest
import yaml
from hydra import compose, initialize_config_dir
from nequip.model.saved_models import load_saved_model
from nequip.utils.resolvers import _register_default_resolvers
from omegaconf import OmegaConf

from .conftest import CONFIGS, read_metrics

PATHS = sorted(CONFIGS.glob("*.yaml"))
NAMES = [path.stem for path in PATHS]
MODEL = "training_module.model."
STATISTICS = {  # of the published training set, roughly; a build needs some
    "num_neighbors_mean": 15.0,
    "forces_rms": 1.0,
    "per_atom_energy_mean": -300.0,
}


def read(name):
    """A configuration with its defaults, as `nequip-train` sees it."""
    _register_default_resolvers()
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return OmegaConf.to_container(compose(name, return_hydra_config=True))


def blocks(model):
    return {
        type(module).__name__
        for module in model.modules()
        if type(module).__name__.endswith("InteractionBlock")
    }


def expected_blocks(name):
    return {"InteractionBlock"} if name.endswith("_cg") else {"GauntInteractionBlock"}


@pytest.mark.training
@pytest.mark.parametrize("name", NAMES)
def test_runs(workshop, name):
    """One epoch; width, depth and number of frames made small, everything else as it stands."""
    folder = workshop.folder(name)
    kept = {f"{MODEL}l_max": ..., f"{MODEL}num_bessels": ..., "data.train_dataloader.shuffle": ...}
    kept["model_type_names"] = "[C,H,N,O]"  # of the sample
    settings = workshop.settings(name, **kept, trainer__max_epochs=1)
    output = workshop.run(folder, "nequip.scripts.train", *settings)
    assert "TEST RUN END" in output
    metrics = read_metrics(folder / "out")
    # Energies of isolated atoms in 3bpa.yaml are those of the published data, not of the sample.
    errors = [*metrics["val0_epoch/forces_rmse"], *metrics["test0_epoch/forces_rmse"]]
    assert len(errors) == 3
    assert max(errors) < 2  # eV/Å
    model = load_saved_model(folder / "out/best.ckpt")
    assert blocks(model) == expected_blocks(name)
    products = [m for m in model.modules() if type(m).__name__ == "GauntManyBody"]
    correlation = read(name)["training_module"]["model"].get("correlation", 1)
    assert len(products) == (2 if correlation > 1 else 0)


@pytest.mark.parametrize("name", NAMES)
def test_builds_at_its_own_size(name):
    settings = read(name)["training_module"]["model"]
    config = OmegaConf.create(
        {"model": settings, "model_type_names": ["C", "H", "N", "O"], "seed": 0}
    )
    cutoff = yaml.safe_load((CONFIGS / f"{name.removesuffix('_cg')}.yaml").read_text())
    config.cutoff_radius = cutoff.get("cutoff_radius", 5.0)
    OmegaConf.register_new_resolver("training_data_stats", STATISTICS.get, replace=True)
    options = OmegaConf.to_container(config, resolve=True)["model"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from hydra.utils import get_method

        model = get_method(options.pop("_target_"))(**options)
    assert blocks(model) == expected_blocks(name)
    layers = [name for name, _ in model.named_modules() if name.endswith("_convnet")]
    assert len(layers) == options["num_layers"]
    features = model.model.func.layer1_convnet.conv.irreps_in["node_features"]
    degrees = range(options["l_max"] + 1)
    expected = [f"{options['num_features']}x{l}{'eo'[l % 2]}" for l in degrees]
    assert str(features) == "+".join(expected)


@pytest.mark.parametrize("name", NAMES)
def test_paths_of_data_are_whole(name):
    """NequIP's later commands read the data again, from any folder."""
    settings = read(name)
    data = settings["data"]
    tests = data["test_file_path"]
    paths = [data["split_dataset"]["file_path"], *([tests] if isinstance(tests, str) else tests)]
    assert all(path.startswith("${data_folder}/") for path in paths)
    assert settings["data_folder"].startswith("${hydra:runtime.cwd}/")


def test_published_settings():
    """Batzner et al., Nature Communications 2022: NequIP on 3BPA."""
    settings = read("3bpa")
    model = settings["training_module"]["model"]
    assert (model["num_layers"], model["l_max"], model["num_bessels"]) == (5, 3, 8)
    assert (model["polynomial_cutoff_p"], settings["cutoff_radius"]) == (2, 5.0)
    assert (model["radial_mlp_depth"], model["radial_mlp_width"]) == (3, 64)
    assert settings["data"]["train_dataloader"]["batch_size"] == 5
    split = settings["data"]["split_dataset"]
    assert (split["train"], split["val"]) == (450, 50)
    assert settings["training_module"]["optimizer"]["lr"] == 0.01
    assert settings["training_module"]["ema_decay"] == 0.99
    scheduler = settings["training_module"]["lr_scheduler"]["scheduler"]
    assert (scheduler["factor"], scheduler["patience"]) == (0.8, 50)


@pytest.mark.parametrize("name", [name for name in NAMES if f"{name}_cg" in NAMES])
def test_twins_differ_in_the_blocks_only(name):
    one, two = read(name), read(f"{name}_cg")
    assert one["training_module"]["model"].pop("_target_") == (
        "gaunt_plugin.nequip.GauntNequIPGNNModel"
    )
    assert two["training_module"]["model"].pop("_target_") == "nequip.model.NequIPGNNModel"
    for settings in (one, two):
        settings.pop("hydra")  # differs in the name of the run
    assert one == two


def test_every_twin_is_found():
    assert sum(name.endswith("_cg") for name in NAMES) == 2
