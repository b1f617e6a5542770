"""Gaunt against stock MACE, side by side in one process. Environment: mace.

    python benchmarks/mace_speed.py [--threads 2] [--repeats 7] [--quick]

Prints a Markdown table: many-body products, convolutions, and whole models (training step on
energies and forces of 5 molecules of 3BPA from the sample in the repository), medians of
interleaved runs. Peak memory is that of one training step in a process of its own.
"""

import argparse
import copy
import platform
from importlib.metadata import version
from pathlib import Path

import mace.modules  # before e3nn: MACE prepares its import
from mace import data, modules, tools
from mace.modules.irreps_tools import tp_out_irreps_with_instructions
from mace.tools import torch_geometric
from mace.tools.scatter import scatter_sum

import ase.io
import numpy as np
import torch
from e3nn import o3
from timing import interleaved, memory, resident

from gaunt_plugin.layers import AlignedConvolution, GauntConvolution, GauntManyBody
from gaunt_plugin.mace.blocks import INTERACTIONS
from gaunt_plugin.mace.config import GauntConfig
from gaunt_plugin.mace.models import ScaleShiftMACE

SAMPLE = Path(__file__).resolve().parents[1] / "examples" / "3bpa_sample" / "train_300K.xyz"
ATOMS, EDGES, CHANNELS = 135, 2242, 128


def natural(mul, lmax):
    return o3.Irreps([(mul, (l, (-1) ** l)) for l in range(lmax + 1)])


def row(operation, shape, times, extra=""):
    stock = times["stock"]
    for name, value in times.items():
        if name != "stock":
            print(
                f"| {operation} | {shape} | {name} | {stock:.1f} | {value:.1f} "
                f"| {stock / value:.1f} | {extra} |",
                flush=True,
            )


def products(repeats):
    attrs = torch.nn.functional.one_hot(torch.randint(0, 4, (ATOMS,)), 4).float()
    for lmax, lout, nu in ((3, 2, 3), (3, 1, 3), (2, 1, 4)):
        irreps_in, irreps_out = natural(CHANNELS, lmax), natural(CHANNELS, lout)
        kinds = ("power", "paper", "full") if nu <= 3 else ("power", "paper")
        layers = {"stock": modules.SymmetricContraction(irreps_in, irreps_out, nu, num_elements=4)}
        layers |= {k: GauntManyBody(irreps_in, irreps_out, nu, 4, k) for k in kinds}
        x = torch.randn(ATOMS, CHANNELS, (lmax + 1) ** 2, requires_grad=True)
        calls = {
            name: lambda layer=layer, x=x: layer(x, attrs).square().sum().backward()
            for name, layer in layers.items()
        }
        shape = f"{ATOMS} atoms, {CHANNELS} ch, l<={lmax} -> l<={lout}, nu={nu}"
        row("product, fwd+bwd", shape, interleaved(calls, repeats))


def convolutions(repeats, mul=64, lmax=3):
    harmonics = o3.Irreps.spherical_harmonics(lmax)
    edge_index = torch.randint(0, ATOMS, (2, EDGES))
    edge_attrs = o3.spherical_harmonics(harmonics, torch.randn(EDGES, 3), True, "component")
    for lin in (3, 2, 1):
        irreps_in, target = natural(mul, lin), natural(mul, lmax)
        mid, instructions = tp_out_irreps_with_instructions(irreps_in, harmonics, target)
        tp = o3.TensorProduct(
            irreps_in, harmonics, mid, instructions, shared_weights=False, internal_weights=False
        )
        linear = o3.Linear(mid, target)
        x = torch.randn(ATOMS, irreps_in.dim, requires_grad=True)
        layers = {
            "stock": lambda x, y, w, i, tp=tp, linear=linear: linear(
                scatter_sum(tp(x[i[0]], y, w), i[1], dim=0, dim_size=ATOMS)
            )
        }
        numel = {"stock": tp.weight_numel}
        for name, cls in (("aligned", AlignedConvolution), ("grid", GauntConvolution)):
            layers[name] = cls(irreps_in, harmonics, target)
            numel[name] = layers[name].weight_numel
        calls = {}
        for name, layer in layers.items():
            weights = torch.randn(EDGES, numel[name]).requires_grad_()
            calls[name] = lambda layer=layer, weights=weights, x=x: (
                layer(x, edge_attrs, weights, edge_index).square().sum().backward()
            )
        shape = f"{EDGES} edges, {mul} ch, l<={lin} x l<={lmax} -> l<={lmax}"
        row("convolution, fwd+bwd", shape, interleaved(calls, repeats))


def batch(size=5, cutoff=5.0):
    keys = data.KeySpecification(info_keys={"energy": "energy"}, arrays_keys={"forces": "forces"})
    graphs = []
    for atoms in ase.io.read(SAMPLE, f":{size}"):
        atoms.info["energy"], atoms.arrays["forces"] = (
            atoms.get_potential_energy(),
            atoms.get_forces(),
        )
        atoms.calc = None
        config = data.config_from_atoms(atoms, key_specification=keys)
        table = tools.AtomicNumberTable([1, 6, 7, 8])
        graphs.append(data.AtomicData.from_config(config, z_table=table, cutoff=cutoff))
    return next(iter(torch_geometric.dataloader.DataLoader(graphs, batch_size=size)))


def model(kind, hidden):
    first, later = ("Interaction", "ResidualInteraction")
    stock = {n: modules.interaction_classes[f"RealAgnostic{n}Block"] for n in (first, later)}
    own = {n: INTERACTIONS[f"Gaunt{n}Block"] for n in (first, later)}
    blocks = stock if kind in ("stock", "paper") else own
    kwargs = dict(  # noqa: C408
        r_max=5.0,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        num_interactions=2,
        num_elements=4,
        hidden_irreps=o3.Irreps(hidden),
        MLP_irreps=o3.Irreps("16x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.zeros(4),
        avg_num_neighbors=16.6,
        atomic_numbers=[1, 6, 7, 8],
        correlation=3,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
        interaction_cls_first=blocks[first],
        interaction_cls=blocks[later],
    )
    if kind == "stock":
        return modules.ScaleShiftMACE(**kwargs)
    options = {"default": {}, "paper": {"product": ("paper",)}, "grid": {"convolution": ("grid",)}}
    return ScaleShiftMACE(cueq_config=GauntConfig(**options[kind]), **kwargs)


def training_step(net, graphs):
    out = net(copy.copy(graphs).to_dict(), training=True)
    loss = (out["forces"] - graphs.forces).square().mean() + out["energy"].square().mean()
    net.zero_grad()
    loss.backward()


def models(repeats, sizes, kinds, threads):
    graphs = batch()
    for hidden in sizes:
        nets = {kind: model(kind, hidden) for kind in kinds}
        steps = {kind: lambda net=net: training_step(net, graphs) for kind, net in nets.items()}
        peak = {
            kind: memory(__file__, ["--threads", str(threads), "--memory", kind, hidden])
            for kind in kinds
        }
        extra = "; ".join(
            f"{k}: {sum(p.numel() for p in nets[k].parameters()) / 1e3:.0f} k parameters, "
            f"peak {peak[k][1]:.2f} GB ({peak[k][0]:.2f} before)"
            for k in kinds
        )
        row("training step", f"5 x 3BPA, {hidden}, ell 3, nu 3", interleaved(steps, repeats), extra)
        forces = {
            kind: lambda net=net: net(copy.copy(graphs).to_dict()) for kind, net in nets.items()
        }
        row("energy + forces", f"5 x 3BPA, {hidden}, ell 3, nu 3", interleaved(forces, repeats))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="layers and the small model only")
    parser.add_argument("--memory", nargs=2, metavar=("KIND", "HIDDEN"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.memory:
        net, graphs = model(*args.memory), batch()
        before = resident()
        training_step(net, graphs)
        print(before, resident())
        return
    print(
        f"float32, {args.threads} threads, {platform.machine()}, torch {torch.__version__}, "
        f"mace {mace.__version__}, e3nn {version('e3nn')}, medians of {args.repeats}\n"
    )
    print("| operation | shape | Gaunt variant | stock ms | Gaunt ms | ratio | memory |")
    print("|---|---|---|---|---|---|---|")
    products(args.repeats)
    convolutions(args.repeats)
    models(args.repeats, ["16x0e+16x1o"], ["stock", "default", "paper", "grid"], args.threads)
    if not args.quick:
        models(
            max(args.repeats // 3, 1), ["256x0e+256x1o+256x2e"], ["stock", "default"], args.threads
        )


if __name__ == "__main__":
    main()
