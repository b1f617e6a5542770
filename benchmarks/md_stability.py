"""MD of a trained model at given temperatures: do molecules stay whole, and look as they should?

    python benchmarks/md_stability.py MODEL.pt --start FILE.xyz --ps 50 --copies 10
        --reference 300=test_MD_300K.xyz --reference 600=test_MD_600K.xyz --work FOLDER

MODEL.pt is a file of ``gaunt export``. Copies of a molecule start from frames of FILE.xyz, far from
one another, with Langevin dynamics. A molecule is whole while each of its atoms reaches every other
by steps below 2 Å. Distances of all pairs in a molecule are compared with those of the reference, a
sample at the same temperature: half of the integral of the difference of both distributions, 0 if
they are equal and 1 if they don't overlap. Half of the reference against the other half shows
what chance gives. A reference that was sampled with other forces than it has (published frames
often are, with a cheaper method) differs from MD of a perfect model, too: then its virial isn't 1.
Run the command again to go on after an interruption.
"""

import argparse
from pathlib import Path

import numpy as np
from arguments import positive
from ase import Atoms, units
from ase.io import Trajectory, read
from ase.md.langevin import Langevin
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import pdist, squareform

from gaunt_plugin.calculator import GauntCalculator

APART = 100.0  # Å, of copies at the start
BOND = 2.0  # Å
BINS = np.arange(0.5, 20, 0.05)  # Å
FRICTION = 0.01  # 1 / fs
EVERY = 0.1  # ps, between frames that are kept


def run(model, molecules, temperature, ps, timestep, path):
    """Go on with a trajectory until it has its length; returns its frames."""
    wanted = round(ps / EVERY)
    kept = Trajectory(path) if path.exists() else []
    done = len(kept)
    if done:
        atoms = kept[-1]
    else:
        atoms = Atoms()
        for number, molecule in enumerate(molecules):
            atoms += Atoms(molecule.symbols, molecule.positions + [number * APART, 0, 0])
        thermal = np.sqrt(atoms.get_masses() * units.kB * temperature)[:, None]
        atoms.set_momenta(thermal * np.random.default_rng(0).standard_normal((len(atoms), 3)))
    atoms.calc = GauntCalculator(model)
    dynamics = Langevin(
        atoms,
        timestep * units.fs,
        temperature_K=temperature,
        friction=FRICTION / units.fs,
        fixcm=False,
        rng=np.random.default_rng(done),
    )
    with Trajectory(path, "a") as trajectory:
        for _ in range(wanted - done):
            dynamics.run(round(1000 * EVERY / timestep))
            trajectory.write(atoms)
    return Trajectory(path)[:wanted]


def distances(frames, size):
    """``[molecules, pairs]`` in Å: of all frames, each of which has molecules of ``size`` atoms."""
    molecules = [p for frame in frames for p in frame.positions.reshape(-1, size, 3)]
    return np.array([pdist(positions) for positions in molecules])


def whole(pairs):
    """Whether a molecule with these distances is in one piece."""
    return connected_components(squareform(pairs < BOND), directed=False)[0] == 1


def difference(a, b):
    """Half of the integral of the difference of two distributions of distances."""
    share = [np.histogram(pairs, BINS)[0] / pairs.size for pairs in (a, b)]
    return np.abs(share[0] - share[1]).sum() / 2


def virial(frames, temperature):
    """``-<sum r . F> / ((3 atoms - 3) kT)``, r from the centre: 1 if F sampled the frames."""
    work = [
        -((frame.positions - frame.positions.mean(axis=0)) * frame.get_forces()).sum()
        for frame in frames
    ]
    return np.mean(work) / (3 * len(frames[0]) - 3) / (units.kB * temperature)


def sampled(text):
    temperature, _, path = text.partition("=")
    if not path:
        raise argparse.ArgumentTypeError(f"{text} is not K=FILE")
    return positive(float)(temperature), Path(path)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a file of gaunt export, or a name: 3bpa-small")
    parser.add_argument("--start", type=Path, required=True, help="extended XYZ of one molecule")
    parser.add_argument(
        "--reference",
        type=sampled,
        action="append",
        required=True,
        metavar="K=FILE",
        help="a temperature, and frames sampled at it: 300=test_MD_300K.xyz",
    )
    parser.add_argument("--copies", type=positive(int), default=10)
    parser.add_argument("--ps", type=positive(float), default=50, help="of each copy")
    parser.add_argument("--timestep", type=positive(float), default=0.5, help="fs")
    parser.add_argument("--work", type=Path, default=Path("runs/md"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    molecules = read(args.start, f":{args.copies}")
    size = len(molecules[0])
    for temperature, reference in args.reference:
        path = args.work / f"{args.model.stem}-{temperature:g}K.traj"
        sample = read(reference, ":")
        frames = run(args.model, molecules, temperature, args.ps, args.timestep, path)
        found = distances(frames, size)
        right = distances(sample, size)
        forces = "forces" in getattr(sample[0].calc, "results", ())
        pieces = sum(not whole(pairs) for pairs in found)
        kelvin = np.mean([frame.get_temperature() for frame in frames[len(frames) // 10 :]])
        print(
            f"{temperature:g} K: {len(molecules)} x {args.ps:g} ps, {kelvin:.0f} K, "
            f"{pieces} of {len(found)} molecules in pieces, distances {found.min():.2f} Å or more "
            f"(reference {right.min():.2f}), difference of distributions "
            f"{difference(found, right):.3f}, by chance {difference(right[::2], right[1::2]):.3f}"
            + (f", virial of the reference {virial(sample, temperature):.2f}" if forces else ""),
            flush=True,
        )


if __name__ == "__main__":
    main()
