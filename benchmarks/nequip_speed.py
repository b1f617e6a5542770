"""Whole models of NequIP, stock and Gaunt: the suite's cases for its environment."""

from functools import partial

import numpy as np
import torch
from nequip.data import AtomicDataDict, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.model import NequIPGNNModel
from nequip.model.modify_utils import modify
from nequip.utils.global_state import set_global_state
from structures import BOX_500, BOXES, molecules, program, water
from timing import Case, Work, device, model_dtype, require, with_kernels, with_plain

from gaunt_plugin.nequip import GauntNequIPGNNModel

TYPES = ["C", "H", "N", "O"]


def batch(frames, cutoff=5.0):
    transforms = [
        ChemicalSpeciesToAtomTypeMapper(TYPES, {t: t for t in TYPES}),
        NeighborListTransform(r_max=cutoff),
    ]
    graphs = []
    for atoms in frames:
        atoms.calc = None
        graph = from_ase(atoms)
        for transform in transforms:
            graph = transform(graph)
        graphs.append(graph)
    data = AtomicDataDict.batched_from_list(graphs)
    dtype = torch.get_default_dtype()
    return {k: v.to(device(), dtype if v.is_floating_point() else v.dtype) for k, v in data.items()}


def model(correlation, lmax, features=64, layers=4, **options):
    """NequIP's own (correlation 0) or ours, with a many-body product beyond correlation 1."""
    set_global_state()  # float64 is the default then, outside of the model
    builder = GauntNequIPGNNModel if correlation else NequIPGNNModel
    return builder(
        seed=0,
        model_dtype=model_dtype(),
        type_names=TYPES,
        r_max=5.0,
        num_layers=layers,
        l_max=lmax,
        parity=False,
        num_features=features,
        radial_mlp_depth=3,
        radial_mlp_width=64,
        avg_num_neighbors=16.6,
        per_type_energy_shifts=dict.fromkeys(TYPES, 0.0),
        per_type_energy_scales=1.0,
        **({"correlation": correlation} if correlation > 1 else {}),
        **options,
    )


def training_step(net, data):
    net.train()
    out = net(data.copy())
    loss = (out["forces"] - 1).square().mean() + out["total_energy"].square().mean()
    net.zero_grad()
    loss.backward()


def energy_forces(net, data):
    net.eval()
    net(data.copy())


def whole(correlation, frames, *sizes, training=True, modifier="", **options):
    """Passes of a model on a batch."""
    if modifier == "enable_OpenEquivariance":
        require("openequivariance")
    net = model(correlation, *sizes, **options)
    net = (modify(net, [{"modifier": modifier}]) if modifier else net).to(device())
    data = batch(frames())
    passes = {"energy + forces": lambda: energy_forces(net, data)}
    if training:
        passes["training step"] = lambda: training_step(net, data)
    return Work(passes)


# Stock models with the kernels of others and with ours.
PEERS = {
    "NequIP, compiled": {"compile_mode": "compile"},
    "NequIP, OpenEquivariance": {"modifier": "enable_OpenEquivariance"},
}
if with_kernels():
    PEERS["NequIP, modified"] = {"modifier": "enable_GauntKernels"}


def add_peers(cases):
    """Beside each stock model that is timed on batches."""
    for case in cases:
        stock = case.contenders.get("NequIP")
        if getattr(stock, "func", None) is whole:
            case.contenders |= {name: partial(stock, **how) for name, how in PEERS.items()}


def exported(correlation, frames, *sizes):
    """The TorchScript file that LAMMPS runs."""
    net = model(correlation, *sizes)
    data = batch(frames())
    shifts = torch.zeros(1, 3, device=device())
    if "edge_cell_shift" in data:
        shifts = data["edge_cell_shift"] @ data["cell"].view(3, 3)
    graphs = {"edge_index": data["edge_index"], "positions": data["pos"], "shifts": shifts}
    return program(net, graphs, data["atom_types"])


def cases(quick):
    def case(series, x, shape, build, *arguments, product=(), dtype="", **options):
        kinds = {"NequIP": 0, "Gaunt": 1} | {f"Gaunt, ν = {nu}": nu for nu in product}
        kinds = {name: partial(build, nu, *arguments, **options) for name, nu in kinds.items()}
        if series == "NequIP, l_max" or build is exported:
            kinds |= with_plain("Gaunt", kinds["Gaunt"])
        found.append(Case(series, x, shape, kinds, dtype))

    found = []
    few, one = partial(molecules, 5), partial(molecules, 1)
    if quick:
        case("NequIP, l_max", 1, "1 molecule, tiny", whole, one, 1, 2, 2)
        case("NequIP, exported", 27, "1 molecule, tiny", exported, one, 1, 2, 2)
        return found
    for lmax in range(1, 5):
        shape = f"5 molecules, l_max {lmax}, 64 features, 4 layers"
        product = (2, 3, 4, 5) if lmax == 2 else (3,) if lmax < 4 else ()
        case("NequIP, l_max", lmax, shape, whole, few, lmax, product=product)
    shape = "5 molecules, l_max 3, 64 features, 5 layers"
    case("NequIP, published size", 5, shape, whole, few, 3, 64, 5)
    for dtype in ("float32", "float64"):
        for number in (1, 5, 20) if dtype == "float32" else (1, 5):
            shape = f"{number} molecules, l_max 2, 32 features, 4 layers"
            frames = partial(molecules, number)
            case(f"NequIP, batch, {dtype}", number, shape, whole, frames, 2, 32, dtype=dtype)
    for cells in BOXES:
        atoms = 3 * int(np.prod(cells))
        box = lambda cells=cells: [water(*cells)]  # noqa: E731
        shape = f"{atoms} atoms of water, l_max 2, 32 features, 4 layers"
        case("NequIP, periodic box", atoms, shape, whole, box, 2, 32, training=False)
    box = lambda: [water(*BOX_500)]  # noqa: E731
    for name, frames in (("molecule", one), ("box", box)):
        for lmax in (1, 2, 3):
            shape = f"l_max {lmax}, 32 features, 4 layers"
            case(f"NequIP, exported, {name}", lmax, shape, exported, frames, lmax, 32)
    return found
