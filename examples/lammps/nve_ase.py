"""The same as ``molecule.in`` with ASE.

    python examples/lammps/nve_ase.py runs/quickstart/quickstart.model

Writes the total energy over time in the same form; ``plot_drift.py`` compares.
"""

import argparse
from pathlib import Path

from mace.calculators import MACECalculator

from ase import units
from ase.md.verlet import VelocityVerlet
from make_data import start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="a model file written by mace_run_train")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="", help="default: own")
    parser.add_argument("--output", type=Path, help="default: molecule_ase.energy by the model")
    args = parser.parse_args()
    output = args.output or args.model.with_name("molecule_ase.energy")

    atoms = start()
    atoms.calc = MACECalculator(str(args.model), device="cpu", default_dtype=args.dtype)
    dynamics = VelocityVerlet(atoms, timestep=0.5 * units.fs)
    lines = ["# ps, eV/atom"]

    def record() -> None:
        energy = atoms.get_total_energy() / len(atoms)
        lines.append(f"{dynamics.nsteps * 0.0005:.4f} {energy:.12g}")

    dynamics.attach(record, interval=10)
    dynamics.run(args.steps)
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
