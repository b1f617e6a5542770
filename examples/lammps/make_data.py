"""Write the data files of the inputs in this folder from the sample's first test molecule.

    python examples/lammps/make_data.py

`molecule.data`: one molecule of 3BPA (27 atoms) in a box of 50 Å; `box.data`: the same molecule
in a periodic cell of 14 x 12 x 9 Å, which in.box repeats. Types are C, H, N, O.
"""

from pathlib import Path

from ase.io import read, write

HERE = Path(__file__).resolve().parent
SAMPLE = HERE.parent / "3bpa_sample" / "test_300K.xyz"
CELLS = {"molecule": (50.0, 50.0, 50.0), "box": (14.0, 12.0, 9.0)}


def main() -> None:
    atoms = read(SAMPLE, 0)
    for name, cell in CELLS.items():
        atoms.set_cell(cell)
        atoms.center()
        atoms.pbc = True
        extent = atoms.positions.max(0) - atoms.positions.min(0)
        if (extent + 1.5 > cell).any():
            raise SystemExit(f"the molecule, {extent} A, does not fit into {name}")
        write(
            HERE / f"{name}.data",
            atoms,
            format="lammps-data",
            specorder=["C", "H", "N", "O"],
            masses=True,
        )


if __name__ == "__main__":
    main()
