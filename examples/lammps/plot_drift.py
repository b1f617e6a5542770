"""Plot the total energy of LAMMPS logs and print its fitted slope per atom.

    python examples/lammps/plot_drift.py runs/lammps-molecule.log [more.log ...]

Needs matplotlib (``pip install "gaunt-plugin[benchmarks]"``); without it only prints.
"""

import sys
from pathlib import Path

import numpy as np


def energies(log: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Steps, total energies in eV and the number of atoms of a run's first table."""
    rows, atoms, columns = [], 0, None
    for line in log.read_text().splitlines():
        words = line.split()
        if words[:1] == ["Step"]:
            columns = words
        elif line.startswith("Loop time"):
            atoms = int(words[words.index("atoms") - 1])
            break
        elif columns and len(words) == len(columns):
            rows.append([float(words[columns.index(name)]) for name in ("Step", "TotEng")])
    if not rows or not atoms:
        raise SystemExit(f"{log} holds no finished run with the columns Step and TotEng")
    steps, total = np.array(rows).T
    return steps, total, atoms


def main() -> None:
    runs = {Path(name).stem: energies(Path(name)) for name in sys.argv[1:]}
    if not runs:
        raise SystemExit(__doc__)
    for name, (steps, total, atoms) in runs.items():
        change = 1000 * (total - total[0]) / atoms
        slope = np.polyfit(steps, change, 1)[0]
        print(
            f"{name}: {slope * 1000:+.4f} meV/atom per 1000 steps, "
            f"largest change {np.abs(change).max():.4f} meV/atom"
        )
    try:
        from matplotlib import pyplot
    except ImportError:
        return
    for name, (steps, total, atoms) in runs.items():
        pyplot.plot(steps, 1000 * (total - total[0]) / atoms, label=name)
    pyplot.xlabel("step")
    pyplot.ylabel("change of the total energy, meV/atom")
    pyplot.legend()
    pyplot.savefig("runs/lammps-drift.png", dpi=150)
    print("runs/lammps-drift.png")


if __name__ == "__main__":
    main()
