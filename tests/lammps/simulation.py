"""A structure in LAMMPS: the input, and what came out."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.data import atomic_masses, atomic_numbers

SYMBOLS = ("H", "C", "O")
_PRESSURE = 1.6021765e6  # bar Å^3 per eV, LAMMPS's constant for units metal


def write_data(path: Path, atoms: Atoms, symbols=SYMBOLS) -> None:
    """Write a data file with all digits.

    The cell must be LAMMPS's: lower triangular. Without one, the box is drawn around the atoms.
    """
    if atoms.pbc.any():
        cell = np.asarray(atoms.cell)
        assert np.allclose(np.triu(cell, 1), 0)
        low, high = np.zeros(3), np.diag(cell)
        tilt = cell[1, 0], cell[2, 0], cell[2, 1]
    else:
        low, high = atoms.positions.min(0) - 3, atoms.positions.max(0) + 3
        tilt = (0.0, 0.0, 0.0)
    lines = ["", f"{len(atoms)} atoms", f"{len(symbols)} atom types"]
    lines += [f"{a:.17g} {b:.17g} {x}lo {x}hi" for a, b, x in zip(low, high, "xyz")]
    if any(tilt):
        lines.append("{:.17g} {:.17g} {:.17g} xy xz yz".format(*tilt))
    masses = [f"{k + 1} {atomic_masses[atomic_numbers[s]]:.17g}" for k, s in enumerate(symbols)]
    lines += ["", "Masses", "", *masses, "", "Atoms # atomic", ""]
    for i, (symbol, r) in enumerate(zip(atoms.symbols, atoms.positions)):
        kind = symbols.index(symbol) + 1
        lines.append(f"{i + 1} {kind} " + " ".join(f"{value:.17g}" for value in r))
    velocities = atoms.get_velocities() * 1000 * units.fs  # Å/ps
    lines += ["", "Velocities", ""]
    lines += [f"{i + 1} " + " ".join(f"{x:.17g}" for x in v) for i, v in enumerate(velocities)]
    path.write_text("\n".join(lines) + "\n")


def header(atoms: Atoms, model: Path, style: str = "gaunt", elements=SYMBOLS) -> str:
    """The input up to the pair style."""
    return f"""
units metal
atom_style atomic
atom_modify map yes
boundary {" ".join("p" if periodic else "f" for periodic in atoms.pbc)}
box tilt large
read_data data.lammps
pair_style {style}
pair_coeff * * {model} {" ".join(elements)}
neighbor 0.7 bin
"""


@dataclass
class Case:
    """What to simulate.

    Attributes:
        atoms: the structure, with velocities.
        model: an exported file.
        commands: what runs; the default evaluates the structure.
        before: commands before the run.
        after: commands after the results are taken; more positions are taken then.
        style, elements: the pair style with its arguments, and what pair_coeff maps types to.
    """

    atoms: Atoms
    model: Path
    commands: str = "run 0"
    before: str = ""
    after: str = ""
    style: str = "gaunt"
    elements: tuple = SYMBOLS

    def script(self, number: int, folder: Path) -> str:
        """The input of this case; it writes the data file."""
        write_data(folder / "data.lammps", self.atoms)
        (folder / "data.lammps").rename(folder / f"data{number}.lammps")
        begin = header(self.atoms, self.model, self.style, self.elements)
        return f"""
clear
{begin.replace("data.lammps", f"data{number}.lammps")}
{self.before}
compute e all pe/atom pair
compute v all stress/atom NULL pair
compute p all pressure NULL virial
compute sum all reduce sum c_e
thermo_style custom step pe c_sum c_p[*]
thermo 1
{self.commands}
write_dump all custom atoms{number}.txt id type x y z fx fy fz c_e c_v[*] &
    modify sort id format float %.17g
print "RESULT $(vol:%.17g) $(pe:%.17g) $(c_p[1]:%.17g) $(c_p[2]:%.17g) $(c_p[3]:%.17g) &
$(c_p[4]:%.17g) $(c_p[5]:%.17g) $(c_p[6]:%.17g) $(lx:%.17g) $(ly:%.17g) $(lz:%.17g) &
$(xy:%.17g) $(xz:%.17g) $(yz:%.17g)"
{self.after}
write_dump all custom moved{number}.txt id x y z modify sort id format float %.17g
"""


class Result:
    """What came out at the last step of a case.

    Attributes:
        atoms: the structure as it was then, in the order of IDs.
        energy: eV. energies: of each atom.
        forces: [atoms, 3] in eV/Å.
        moved_positions: after the commands in ``after``.
        virial: [6] xx, yy, zz, xy, xz, yz in eV; virials: of each atom, [atoms, 6].
    """

    def __init__(self, case: Case, line: str, folder: Path, number: int) -> None:
        volume, self.energy, *values = map(float, line.split()[1:])
        self.virial = np.array(values[:6]) * volume / _PRESSURE
        x, y, z, xy, xz, yz = values[6:]
        rows = np.loadtxt(folder / f"atoms{number}.txt", skiprows=9, ndmin=2)
        self.atoms = Atoms(
            [case.elements[int(kind) - 1] for kind in rows[:, 1]], positions=rows[:, 2:5]
        )
        self.atoms.pbc = case.atoms.pbc
        if self.atoms.pbc.any():
            self.atoms.cell = [[x, 0, 0], [xy, y, 0], [xz, yz, z]]
        self.forces, self.energies = rows[:, 5:8], rows[:, 8]
        self.virials = -rows[:, 9:15] / _PRESSURE
        moved = np.loadtxt(folder / f"moved{number}.txt", skiprows=9, ndmin=2)
        self.moved_positions = moved[:, 1:4]


def simulate(lammps, cases: list[Case], ranks: int = 1) -> list[Result]:
    """Run cases one after the other in one process."""
    folder = lammps.folder()
    script = "".join(case.script(number, folder) for number, case in enumerate(cases))
    output = lammps.run(script, folder, ranks)
    lines = [line for line in output.splitlines() if line.startswith("RESULT")]
    assert len(lines) == len(cases), output
    return [Result(cases[n], line, folder, n) for n, line in enumerate(lines)]


def virial_of(atoms) -> np.ndarray:
    """By ASE: xx, yy, zz, xy, xz, yz in eV."""
    if atoms.pbc.all():
        w = -atoms.get_volume() * atoms.get_stress(voigt=False)
    else:
        w = atoms.positions.T @ atoms.get_forces()
    return w[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]


def assert_like_ase(result: Result, calculator) -> None:
    """Compare energy, forces, and in a periodic cell the virial, with ASE's of the same atoms."""
    atoms = result.atoms
    atoms.calc = calculator
    assert result.energy == pytest.approx(atoms.get_potential_energy(), rel=0, abs=1e-8)
    assert result.energies.sum() == pytest.approx(result.energy, rel=0, abs=1e-8)
    np.testing.assert_allclose(result.forces, atoms.get_forces(), rtol=0, atol=1e-10)
    if atoms.pbc.all():
        expected = virial_of(atoms)
        size = np.abs(expected).max()
        np.testing.assert_allclose(result.virial, expected, rtol=0, atol=1e-8 * size)
