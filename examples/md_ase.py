"""Run a short molecular dynamics at constant energy with a trained model.

    python examples/md_ase.py runs/quickstart/quickstart.model         # MACE
    python examples/md_ase.py runs/nequip/quickstart/best.ckpt         # NequIP; or a package or a
                                                                       # compiled file of it
    python examples/md_ase.py runs/quickstart/quickstart.pt            # of gaunt export
    python examples/md_ase.py 3bpa-small                               # comes with the package

Prints the drift of the total energy per atom, which the model's forces decide, and the speed.
"""

import argparse
import sys
import time
from pathlib import Path

try:
    import numpy as np
    from ase import units
    from ase.io import read
    from ase.md.velocitydistribution import Stationary, ZeroRotation
    from ase.md.verlet import VelocityVerlet
except ModuleNotFoundError as error:
    sys.exit(
        f"{sys.executable} has no {error.name}. After examples/quickstart.py this command runs as\n"
        f".venv-mace/bin/python {' '.join(sys.argv)}"
    )

SAMPLE = Path(__file__).parent / "3bpa_sample" / "test_300K.xyz"


def make_calculator(model: str, device: str, dtype: str):
    """The calculator for the file; imports no host but the one that wrote it."""
    if model.endswith(".pt") or not Path(model).suffix:
        from gaunt_plugin.calculator import GauntCalculator

        return GauntCalculator(model, device)
    if model.endswith((".ckpt", ".nequip.zip", ".nequip.pth", ".nequip.pt2")):
        from nequip.integrations.ase import NequIPCalculator

        if model.endswith((".pth", ".pt2")):
            return NequIPCalculator.from_compiled_model(model, device=device)
        return NequIPCalculator._from_saved_model(model, device=device)
    from mace.calculators import MACECalculator

    return MACECalculator(model, device=device, default_dtype=dtype)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a model file, or a name: 3bpa-small")
    parser.add_argument("--start", default=SAMPLE, help="extended XYZ; its first frame is used")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="of the velocities, K")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype",
        choices=["float32", "float64"],
        default="",
        help="for MACE (default: the model's own)",
    )
    parser.add_argument(
        "--tolerance", type=float, default=5.0, help="largest drift that is no failure, meV/atom"
    )
    args = parser.parse_args()
    if Path(args.model).suffix and not Path(args.model).exists():
        parser.error(f"there is no file {args.model}")
    if not Path(args.start).exists():
        parser.error(f"--start: there is no file {args.start}")
    for name in ("steps", "timestep", "temperature"):
        if not getattr(args, name) > 0:  # nor NaN
            parser.error(f"--{name} must be positive")

    calculator = make_calculator(args.model, args.device, args.dtype)
    atoms = read(args.start, 0)
    atoms.calc = calculator
    thermal = np.sqrt(atoms.get_masses() * units.kB * args.temperature)[:, None]
    atoms.set_momenta(thermal * np.random.default_rng(0).standard_normal((len(atoms), 3)))
    Stationary(atoms)
    ZeroRotation(atoms)

    dynamics = VelocityVerlet(atoms, timestep=args.timestep * units.fs)
    energies = []  # kinetic + potential, meV/atom
    report = max(1, args.steps // 10)

    def record():
        energies.append(1000 * atoms.get_total_energy() / len(atoms))
        if dynamics.nsteps % report == 0:
            print(
                f"  step {dynamics.nsteps:5d}  {dynamics.nsteps * args.timestep:7.1f} fs  "
                f"{atoms.get_temperature():6.1f} K  "
                f"total energy {energies[-1] - energies[0]:+.4f} meV/atom",
                flush=True,
            )

    dynamics.attach(record)
    atoms.get_forces()  # the first evaluation is slower and not timed
    start = time.perf_counter()
    dynamics.run(args.steps)
    seconds = time.perf_counter() - start

    change = np.array(energies) - energies[0]
    drift = np.polyfit(np.arange(len(change)), change, 1)[0] * (len(change) - 1)
    print(f"energy drift over {args.steps * args.timestep / 1000:g} ps: {drift:+.4f} meV/atom")
    print(f"largest change of the total energy: {np.abs(change).max():.4f} meV/atom")
    print(f"speed: {args.steps / seconds:.1f} steps/s for {len(atoms)} atoms")
    if not abs(drift) <= args.tolerance:  # not-a-number fails too
        print(f"the drift is above {args.tolerance:g} meV/atom", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
