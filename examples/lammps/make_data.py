"""Write the structures that the inputs beside this file read.

    python examples/lammps/make_data.py

``molecule.data`` is the first frame of the sample's ``test_300K.xyz`` at 300 K. ``cell.data`` is
the same in a periodic cell of its own, for ``box.in`` to repeat. Both have velocities.
"""

from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.data import atomic_masses, atomic_numbers
from ase.io import read
from ase.md.velocitydistribution import Stationary, ZeroRotation

HERE = Path(__file__).parent
SAMPLE = HERE.parent / "3bpa_sample" / "test_300K.xyz"
SYMBOLS = ("H", "C", "N", "O")


def start(temperature: float = 300.0) -> Atoms:
    """The molecule with its velocities; ``nve_ase.py`` starts from it, too."""
    atoms = read(SAMPLE, 0)
    thermal = np.sqrt(atoms.get_masses() * units.kB * temperature)[:, None]
    atoms.set_momenta(thermal * np.random.default_rng(0).standard_normal((len(atoms), 3)))
    Stationary(atoms)
    ZeroRotation(atoms)
    return atoms


def write(path: Path, atoms: Atoms, margin: float) -> None:
    """Write a data file for atom_style atomic and units metal.

    Args:
        path: the file.
        atoms: a molecule.
        margin: of the box around it, Å.
    """
    low, high = atoms.positions.min(0) - margin, atoms.positions.max(0) + margin
    lines = [
        "3BPA, written by make_data.py",
        "",
        f"{len(atoms)} atoms",
        f"{len(SYMBOLS)} atom types",
    ]
    lines += [f"{a:.6f} {b:.6f} {x}lo {x}hi" for a, b, x in zip(low, high, "xyz")]
    lines += ["", "Masses", ""]
    for kind, symbol in enumerate(SYMBOLS, 1):
        lines.append(f"{kind} {atomic_masses[atomic_numbers[symbol]]} # {symbol}")
    lines += ["", "Atoms # atomic", ""]
    for i, (symbol, r) in enumerate(zip(atoms.symbols, atoms.positions), 1):
        lines.append(f"{i} {SYMBOLS.index(symbol) + 1} " + " ".join(f"{x:.10f}" for x in r))
    lines += ["", "Velocities", ""]
    for i, v in enumerate(atoms.get_velocities() * 1000 * units.fs, 1):  # Å/ps
        lines.append(f"{i} " + " ".join(f"{x:.10f}" for x in v))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(HERE / "molecule.data", start(), margin=20.0)
    write(HERE / "cell.data", start(), margin=1.6)
