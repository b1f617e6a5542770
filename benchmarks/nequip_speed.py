"""Gaunt against stock NequIP, side by side in one process. Environment: nequip.

    python benchmarks/nequip_speed.py [--threads 2] [--repeats 7] [--lmax 1 2 3 4]

Prints a Markdown table: training step on energies and forces, and energy + forces, of 5 molecules
of 3BPA from the sample in the repository; medians of interleaved runs. Peak memory is that of one
training step in a process of its own.
"""

import argparse
import platform
from importlib.metadata import version
from pathlib import Path

import ase.io
import torch
from nequip.data import AtomicDataDict, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.model import NequIPGNNModel
from nequip.utils.global_state import set_global_state
from timing import interleaved, memory, resident

from gaunt_plugin.nequip import GauntNequIPGNNModel

SAMPLE = Path(__file__).resolve().parents[1] / "examples" / "3bpa_sample" / "train_300K.xyz"
TYPES = ["C", "H", "N", "O"]
BUILDERS = {"stock": NequIPGNNModel, "gaunt": GauntNequIPGNNModel, "product": GauntNequIPGNNModel}


def batch(size=5, cutoff=5.0):
    transforms = [
        ChemicalSpeciesToAtomTypeMapper(TYPES, {t: t for t in TYPES}),
        NeighborListTransform(r_max=cutoff),
    ]
    frames = []
    for atoms in ase.io.read(SAMPLE, f":{size}"):
        frame = from_ase(atoms)
        for transform in transforms:
            frame = transform(frame)
        frames.append(frame)
    data = AtomicDataDict.batched_from_list(frames)
    return {k: v.float() if v.is_floating_point() else v for k, v in data.items()}


def model(kind, lmax, features, layers):
    options = {"correlation": 3} if kind == "product" else {}
    return BUILDERS[kind](
        seed=0,
        model_dtype="float32",
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
        **options,
    )


def training_step(net, data):
    net.train()
    out = net(data.copy())
    loss = (out["forces"] - data["forces"]).square().mean() + out["total_energy"].square().mean()
    net.zero_grad()
    loss.backward()


def energy_forces(net, data):
    net.eval()
    net(data.copy())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--lmax", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--kinds", nargs="+", default=["stock", "gaunt", "product"])
    parser.add_argument("--memory", nargs=2, metavar=("KIND", "LMAX"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    set_global_state()
    data = batch()
    if args.memory:
        kind, lmax = args.memory[0], int(args.memory[1])
        net = model(kind, lmax, args.features, args.layers)
        before = resident()
        training_step(net, data)
        print(before, resident())
        return
    edges = data["edge_index"].shape[1]
    print(
        f"float32, {args.threads} threads, {platform.machine()}, torch {torch.__version__}, "
        f"nequip {version('nequip')}, e3nn {version('e3nn')}, medians of {args.repeats}; "
        f"5 x 3BPA, {edges} edges, {args.features} features, {args.layers} layers, no parity; "
        "product: a many-body product of 3 factors after each convolution\n"
    )
    print("| l_max | operation | model | stock ms | Gaunt ms | ratio | peak GB, stock / Gaunt |")
    print("|---|---|---|---|---|---|---|")
    for lmax in args.lmax:
        nets = {kind: model(kind, lmax, args.features, args.layers) for kind in args.kinds}
        peak = {}
        for kind in args.kinds:
            own = ["--memory", kind, str(lmax), "--threads", str(args.threads)]
            own += ["--features", str(args.features), "--layers", str(args.layers)]
            peak[kind] = memory(__file__, own)[1]
        for name, call in (("training step", training_step), ("energy + forces", energy_forces)):
            times = interleaved(
                {kind: lambda net=net, call=call: call(net, data) for kind, net in nets.items()},
                args.repeats,
            )
            for kind in args.kinds[1:]:
                print(
                    f"| {lmax} | {name} | {kind} | {times['stock']:.0f} | {times[kind]:.0f} "
                    f"| {times['stock'] / times[kind]:.2f} "
                    f"| {peak['stock']:.2f} / {peak[kind]:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
