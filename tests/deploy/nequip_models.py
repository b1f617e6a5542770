"""Small NequIP models with random weights, and NequIP's calculator."""

from pathlib import Path

import torch
from nequip.integrations.ase import NequIPCalculator
from nequip.integrations.utils import basic_transforms
from nequip.model import NequIPGNNModel
from nequip.utils.global_state import set_global_state

from gaunt_plugin.deploy.export import export
from gaunt_plugin.nequip import GauntNequIPGNNModel

CUTOFF = 3.0
RANKS = (1, 2)  # on which LAMMPS is compared with ASE; 4 are for MACE's
STOCK_KERNELS = True  # of what `export` makes of a stock model
# All models whose radial functions can be tabulated; the first has cutoffs of its own per pair.
TABULATED = ("gaunt", "three_layers", "one_layer", "stock")
SYMBOLS = ["H", "C", "O"]
OPTIONS = {
    "seed": 5,
    "type_names": SYMBOLS,
    "r_max": CUTOFF,
    "avg_num_neighbors": 6.0,
    "radial_mlp_depth": 1,
    "radial_mlp_width": 8,
    "l_max": 2,
    "parity": True,
    "num_features": 4,
    "per_type_energy_shifts": {"H": -1.0, "C": -2.0, "O": -3.0},
}
ZBL = {
    "_target_": "nequip.nn.pair_potential.ZBL",
    "units": "metal",
    "chemical_species": SYMBOLS,
}
CUTOFFS = {"H": 2.0, "C": {"H": 3.0, "C": 2.5, "O": 2.7}}


def make_models(folder: Path) -> dict[str, dict]:
    """The options of each model."""
    return {
        "gaunt": {"num_layers": 2, "correlation": 2, "per_edge_type_cutoff": CUTOFFS},
        "three_layers": {"num_layers": 3, "pair_potential": ZBL},
        "one_layer": {"num_layers": 1, "correlation": 3},
        "stock": {"num_layers": 2, "builder": NequIPGNNModel},
    }


def build(options: dict, dtype: str = "float64") -> torch.nn.Module:
    """A model; in float32 it has the weights of the one in float64."""
    double = build(options) if dtype != "float64" else None
    options = {**OPTIONS, **options}
    builder = options.pop("builder", GauntNequIPGNNModel)
    set_global_state()
    model = builder(**options, model_dtype=dtype).eval()
    if double is not None:
        # not the tables: each model has its own
        own = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in double.named_parameters():
                own[name].copy_(value)
    return model


def write(options: dict, path: Path, dtype: str, radial: str = "exact") -> None:
    export(build(options, dtype), path, radial=radial)


def calculator(options: dict) -> NequIPCalculator:
    # Positions would be rounded to float32.
    torch.set_default_dtype(torch.float64)
    model = build(options)
    transforms = basic_transforms(model.metadata, CUTOFF, SYMBOLS, {s: s for s in SYMBOLS})
    return NequIPCalculator(model, device="cpu", transforms=transforms)
