"""Small MACE models with random weights, and MACE's calculator."""

from pathlib import Path

from mace import modules
from mace.calculators import MACECalculator

import numpy as np
import torch
from e3nn import o3

from gaunt_plugin.deploy.export import export
from gaunt_plugin.mace.blocks import INTERACTIONS
from gaunt_plugin.mace.config import GauntConfig
from gaunt_plugin.mace.models import ScaleShiftMACE

CUTOFF = 3.0
RANKS = (1, 2, 4)  # on which LAMMPS is compared with ASE
STOCK_KERNELS = False  # of what `export` makes of a stock model
# All models whose radial functions can be tabulated: of one kind of edge, and of all.
TABULATED = ("one_layer", "aligned", "transform", "channelwise")
DENSITY = {"block": "GauntDensityInteractionBlock"}
BLOCKS = {**modules.interaction_classes, **INTERACTIONS}


def make_model(
    kind: str,
    layers: int = 2,
    heads=("Default",),
    block: str = "GauntResidualInteractionBlock",
    **others,
) -> torch.nn.Module:
    """H, C and O with a short-range repulsion, which keeps dynamics tame."""
    torch.manual_seed(0)
    first = block
    cls, options = ScaleShiftMACE, {}
    if kind == "stock":
        block = first = "RealAgnosticResidualInteractionBlock"
        cls = modules.ScaleShiftMACE
    elif kind == "stock_non_linear":
        block = first = "RealAgnosticResidualNonLinearInteractionBlock"
        cls = modules.ScaleShiftMACE
    elif kind == "non_linear":
        first = "GauntResidualNonLinearInteractionBlock"
        block = "GauntAttResidualInteractionBlock"
        options = {"cueq_config": GauntConfig(convolution_rank=(2,)), "apply_cutoff": False}
    else:
        # both convolutions and three products
        names = ("aligned", "grid", "aligned")[:layers], ("power", "paper", "full")[:layers]
        if kind == "aligned":
            names = ("aligned",) * layers, names[1]
        if kind == "channelwise":
            names = ("channelwise",), ("full",)
        options["cueq_config"] = GauntConfig(convolution=names[0], parametrization=names[1])
    n = len(heads)
    return cls(
        r_max=CUTOFF,
        num_bessel=4,
        num_polynomial_cutoff=5,
        max_ell=2,
        interaction_cls=BLOCKS[block],
        interaction_cls_first=BLOCKS[first],
        num_interactions=layers,
        num_elements=3,
        hidden_irreps=o3.Irreps("4x0e + 4x1o"),
        MLP_irreps=o3.Irreps(f"{4 * n}x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.outer(np.arange(1, n + 1), [-1.0, -2.0, -3.0]),
        avg_num_neighbors=6.0,
        atomic_numbers=[1, 6, 8],
        correlation=2,
        pair_repulsion=True,
        radial_MLP=[8],
        heads=list(heads),
        atomic_inter_scale=np.linspace(1.0, 2.0, n),
        atomic_inter_shift=np.linspace(0.1, 0.3, n),
        **options,
        **others,
    )


def make_models(folder: Path) -> dict[str, Path]:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    models = {
        "gaunt": make_model("gaunt"),
        "three_layers": make_model("gaunt", layers=3),
        "one_layer": make_model("gaunt", layers=1),
        "two_heads": make_model("gaunt", heads=("cold", "hot")),
        "stock": make_model("stock"),
        "aligned": make_model("aligned"),
        "channelwise": make_model("channelwise"),
        "transform": make_model("aligned", distance_transform="Agnesi", **DENSITY),
        "non_linear": make_model("non_linear"),
        "stock_non_linear": make_model("stock_non_linear"),
    }
    torch.set_default_dtype(default)
    paths = {name: folder / f"{name}.model" for name in models}
    for name, model in models.items():
        torch.save(model, paths[name])
    return paths


def write(model: Path, path: Path, dtype: str, radial: str = "exact") -> None:
    export(model, path, dtype=dtype, radial=radial)


def calculator(path: Path, **options) -> MACECalculator:
    # Training sets it, the calculator doesn't: the pair repulsion would be rounded to float32.
    torch.set_default_dtype(torch.float64)
    return MACECalculator(str(path), default_dtype="float64", device="cpu", **options)
