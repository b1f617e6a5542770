"""NequIP's own tests for models of extension packages, all of them.

What the suite itself leaves out on a machine without GPU: train-time compilation ("known
compilation bugs ... on CPU") and LAMMPS ML-IAP (needs LAMMPS with Kokkos on CUDA; the calls that it
makes are in test_commands.py). The tests of torch-sim run where it and nvalchemi-toolkit-ops are
installed.
"""

from pathlib import Path

import ase.io
import pytest
from nequip.utils.unittests import model_tests, model_tests_torchsim, utils
from omegaconf import OmegaConf

SAMPLE = Path(__file__).parents[2] / "examples" / "3bpa_sample" / "train_300K.xyz"
# Shapes of the host's own tests: large enough for every path, small enough to be quick.
COMMON = {
    "_target_": "gaunt_plugin.nequip.GauntNequIPGNNModel",
    "seed": 123,
    "type_names": ["H", "C", "O"],
    "r_max": 4.0,
    "avg_num_neighbors": 20.0,
    "radial_mlp_depth": 1,
    "radial_mlp_width": 5,
}
MODELS = {
    "minimal": {"num_layers": 2, "l_max": 1, "num_features": 5, "parity": True},
    "features per degree": {
        "num_layers": 2,
        "l_max": 2,
        "num_features": [6, 2, 3],
        "parity": False,
        "avg_num_neighbors": {"H": 3.0, "C": 5.0, "O": 7.0},
        "radial_mlp_depth": 0,
    },
    "many-body product": {
        "num_layers": 2,
        "l_max": 2,
        "num_features": 4,
        "parity": False,
        "correlation": [2, 3],
        "selfmix_rank": [1, 0],
        "per_type_energy_scales": 1.3,
        "per_type_energy_shifts": {"H": 1.0, "C": 2.0, "O": 3.0},
        "per_edge_type_cutoff": {"H": 2.0, "C": {"H": 4.0, "C": 3.5, "O": 3.7}},
    },
    "both kinds of layers and ZBL": {
        "num_layers": 3,
        "l_max": 2,
        "num_features": 4,
        "parity": True,
        "gaunt_layers": [1],
        "pair_potential": {
            "_target_": "nequip.nn.pair_potential.ZBL",
            "units": "metal",
            "chemical_species": ["H", "C", "O"],
        },
    },
}


class NotStrictlyLocal:
    @pytest.fixture
    def strict_locality(self):
        return False


class TestModels(
    NotStrictlyLocal,
    model_tests.TrainTimeCompileMixin,
    model_tests.LAMMPSMLIAPIntegrationMixin,
):
    @pytest.fixture(scope="class", params=list(MODELS))
    @classmethod
    def config(cls, request):
        return {**COMMON, **MODELS[request.param]}


@pytest.mark.training
class TestCompiledFiles(
    NotStrictlyLocal,
    model_tests.BaseEnergyModelTests,
    model_tests_torchsim.TorchSimIntegrationMixin,
):
    """The same tests and those of compiled files, for one small model.

    They train, and generate C++, more than a minute of a compiler, for each of two data sets, two
    dtypes and two kinds of saved models. conftest.py takes one of the eight, test_commands.py has
    the other dtype and kind; all eight run with GAUNT_TEST_ALL=1.
    """

    @pytest.fixture(scope="class")
    @classmethod
    def config(cls):
        return {**COMMON, **MODELS["minimal"], "num_features": 4}

    @pytest.fixture(scope="class", params=["3bpa.yaml", "minimal_toy_emt.yaml"])
    @classmethod
    def conffile(cls, request, tmp_path_factory):
        """The host's configurations; minimal_aspirin.yaml downloads its data, ours are here."""
        if request.param == "minimal_toy_emt.yaml":
            return request.param
        folder = tmp_path_factory.mktemp("3bpa")
        ase.io.write(folder / "frames.xyz", ase.io.read(SAMPLE, ":16"))
        config = OmegaConf.load(Path(utils.__file__).with_name("minimal_aspirin.yaml"))
        del config.data.dataset, config.data.data_source_dir
        del config.data.trainval_test_subset, config.data.train_val_split
        config.data["_target_"] = "nequip.data.datamodule.ASEDataModule"
        config.data["split_dataset"] = {
            "file_path": str(folder / "frames.xyz"),
            "train": 10,
            "val": 3,
            "test": 3,
        }
        config.model_type_names = ["C", "O", "H", "N"]
        OmegaConf.save(config, folder / request.param)
        return str(folder / request.param)
