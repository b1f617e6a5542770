"""NequIP's own tests for models of extension packages."""

import pytest
from nequip.utils.unittests.model_tests import BaseEnergyModelTests

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


class TestGauntNequIP(BaseEnergyModelTests):
    @pytest.fixture
    def strict_locality(self):
        return False

    @pytest.fixture(scope="class", params=list(MODELS))
    @classmethod
    def config(cls, request):
        return {**COMMON, **MODELS[request.param]}
