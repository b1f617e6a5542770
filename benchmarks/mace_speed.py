"""Whole models of MACE, stock and Gaunt: the suite's cases for its environment."""

import copy
import importlib
from functools import partial

import mace.modules  # noqa: F401 (before e3nn: MACE prepares its import)
from mace import data, modules, tools
from mace.calculators import MACECalculator
from mace.tools import torch_geometric

import numpy as np
import torch
from e3nn import o3
from structures import BOX_500, BOXES, molecules, program, water
from timing import Case, Work, device, model_dtype, require, with_plain

from gaunt_plugin.mace.blocks import INTERACTIONS
from gaunt_plugin.mace.config import GauntConfig
from gaunt_plugin.mace.convert import to_gaunt
from gaunt_plugin.mace.models import ScaleShiftMACE

GAUNT = {"MACE": False, "Gaunt": True}
PUBLISHED = "256x0e+256x1o+256x2e"  # 3BPA, with max_ell 3 and correlation 3
MODERATE = "64x0e+64x1o+64x2e"
LAPTOP = "16x0e+16x1o"


def model(gaunt, hidden, max_ell=3, correlation=3, residual_first=False):
    classes, prefix = (
        (INTERACTIONS, "Gaunt") if gaunt else (modules.interaction_classes, "RealAgnostic")
    )
    kwargs = dict(  # noqa: C408
        r_max=5.0,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=max_ell,
        num_interactions=2,
        num_elements=4,
        hidden_irreps=o3.Irreps(hidden),
        MLP_irreps=o3.Irreps("16x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.zeros(4),
        avg_num_neighbors=16.6,
        atomic_numbers=[1, 6, 7, 8],
        correlation=correlation,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
        interaction_cls_first=classes[f"{prefix}{'Residual' * residual_first}InteractionBlock"],
        interaction_cls=classes[f"{prefix}ResidualInteractionBlock"],
    )
    if gaunt:
        return ScaleShiftMACE(cueq_config=GauntConfig(), **kwargs)
    return modules.ScaleShiftMACE(**kwargs)


def batch(frames, cutoff=5.0):
    keys = data.KeySpecification(info_keys={"energy": "energy"}, arrays_keys={"forces": "forces"})
    table = tools.AtomicNumberTable([1, 6, 7, 8])
    graphs = []
    for atoms in frames:
        atoms.info["energy"], atoms.arrays["forces"] = 0.0, np.ones((len(atoms), 3))
        config = data.config_from_atoms(atoms, key_specification=keys)
        graphs.append(data.AtomicData.from_config(config, z_table=table, cutoff=cutoff))
    return next(iter(torch_geometric.dataloader.DataLoader(graphs, batch_size=len(graphs))))


def training_step(net, graphs):
    out = net(copy.copy(graphs).to_dict(), training=True)
    loss = (out["forces"] - graphs.forces).square().mean() + out["energy"].square().mean()
    net.zero_grad()
    loss.backward()


def whole(gaunt, frames, *sizes, training=True, change=None):
    """Passes of a model on a batch."""
    net, graphs = model(gaunt, *sizes), batch(frames()).to(device())
    net = (change(net) if change else net).to(device())
    passes = {"energy + forces": lambda: net(copy.copy(graphs).to_dict())}
    if training:
        passes["training step"] = lambda: training_step(net, graphs)
    return Work(passes)


def with_kernels_of(package, command, net):
    """A stock model as a command of MACE changes it for a package."""
    require(package)
    return importlib.import_module(f"mace.cli.{command}").run(net, device=device())


# Stock models with the kernels of others and with ours.
PEERS = {
    "MACE, cuEquivariance": partial(with_kernels_of, "cuequivariance_torch", "convert_e3nn_cueq"),
    "MACE, OpenEquivariance": partial(with_kernels_of, "openequivariance", "convert_e3nn_oeq"),
    "MACE, converted": to_gaunt,
}


def add_peers(cases):
    """Beside each stock model that is timed on batches."""
    for case in cases:
        stock = case.contenders.get("MACE")
        if getattr(stock, "func", None) is whole:
            case.contenders |= {name: partial(stock, change=f) for name, f in PEERS.items()}


def calculator(gaunt, frames, hidden):
    """ASE's calculator, with its list of neighbours."""
    atoms = frames()[0]
    net = model(gaunt, hidden)
    atoms.calc = MACECalculator(models=net, device=device(), default_dtype=model_dtype())

    def call():
        atoms.positions[0, 0] += 1e-4  # or it would return what it knows
        return atoms.get_forces()

    return Work({"MACECalculator": call})


def exported(gaunt, frames, hidden):
    """The TorchScript file that LAMMPS runs."""
    graphs = batch(frames())
    return program(model(gaunt, hidden), graphs, graphs.node_attrs.argmax(1))


def cases(quick):
    def case(series, x, shape, build, *arguments, dtype="", **options):
        kinds = {
            name: partial(build, gaunt, *arguments, **options) for name, gaunt in GAUNT.items()
        }
        if series in ("MACE, published size", "MACE, batch, float32") or build is exported:
            kinds |= with_plain("Gaunt", kinds["Gaunt"])
        found.append(Case(series, x, shape, kinds, dtype))

    found = []
    few, one = partial(molecules, 5), partial(molecules, 1)
    if quick:
        case("MACE, degree", 1, "1 molecule, tiny", whole, one, "2x0e+2x1o", 1, 2)
        case("MACE, calculator", 27, "1 molecule, tiny", calculator, one, "2x0e")
        case("MACE, exported", 27, "1 molecule, tiny", exported, one, "2x0e")
        return found
    for lmax in range(1, 5):
        hidden = "+".join(f"32x{l}{'eo'[l % 2]}" for l in range(lmax + 1))
        shape = f"5 molecules, {hidden}, ℓ {lmax}, ν 3"
        case("MACE, degree", lmax, shape, whole, few, hidden, lmax, 3)
    for nu in range(2, 6):
        shape = f"5 molecules, 32x0e+32x1o, ℓ 2, ν {nu}"
        case("MACE, correlation", nu, shape, whole, few, "32x0e+32x1o", 2, nu)
    for dtype in ("float32", "float64"):
        for number in (1, 5, 20) if dtype == "float32" else (1, 5):
            shape = f"{number} molecules, {LAPTOP}, ℓ 3, ν 3"
            frames = partial(molecules, number)
            case(f"MACE, batch, {dtype}", number, shape, whole, frames, LAPTOP, dtype=dtype)
    for number in (1, 5):
        shape = f"{number} molecules, {PUBLISHED}, ℓ 3, ν 3"
        case("MACE, published size", number, shape, whole, partial(molecules, number), PUBLISHED)
    for cells in BOXES:
        atoms = 3 * int(np.prod(cells))
        box = lambda cells=cells: [water(*cells)]  # noqa: E731
        shape = f"{atoms} atoms of water, 32x0e+32x1o, ℓ 3, ν 3"
        case("MACE, periodic box", atoms, shape, whole, box, "32x0e+32x1o", training=False)
    box = lambda: [water(*BOX_500)]  # noqa: E731
    for name, build in (("calculator", calculator), ("exported", exported)):
        for hidden in (LAPTOP, PUBLISHED):
            shape = f"1 molecule, {hidden}, ℓ 3, ν 3"
            case(f"MACE, {name}, molecule", o3.Irreps(hidden)[0].mul, shape, build, one, hidden)
        for hidden in (LAPTOP, MODERATE):
            shape = f"{3 * int(np.prod(BOX_500))} atoms of water, {hidden}, ℓ 3, ν 3"
            case(f"MACE, {name}, box", o3.Irreps(hidden)[0].mul, shape, build, box, hidden)
    return found
