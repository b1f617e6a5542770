"""Fit and plot the drift of the total energy.

    cd runs/quickstart
    python ../../examples/lammps/plot_drift.py molecule.energy molecule_ase.energy

Prints the slope of a line through each file's energies; the plot needs matplotlib
(``pip install "gaunt-plugin[benchmarks]"``).
"""

import argparse
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", type=Path, nargs="+", help="written by molecule.in or nve_ase.py")
    parser.add_argument("--plot", type=Path, help="an image to write, for example drift.png")
    args = parser.parse_args()

    curves = {}
    for path in args.files:
        time, energy = np.loadtxt(path, unpack=True)
        curves[path.stem] = time, 1000 * (energy - energy[0])  # ps, meV/atom
        slope, _ = np.polyfit(*curves[path.stem], 1)
        spread = curves[path.stem][1].std()
        print(f"{path.name}: {slope:+.4f} meV/atom/ps, standard deviation {spread:.4f} meV/atom")
    if args.plot:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
        for k, (name, (time, energy)) in enumerate(curves.items()):
            dashes = "-" if k == 0 else (3 * k, (3, 3 * len(curves) - 3))  # others show between
            axes.plot(time, energy, label=name, linewidth=1, linestyle=dashes)
        axes.set(xlabel="time (ps)", ylabel="total energy - start (meV/atom)")
        figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize="small")
        figure.savefig(args.plot, dpi=100)


if __name__ == "__main__":
    main()
