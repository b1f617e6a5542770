"""From an xyz file of one's own to molecular dynamics in LAMMPS, with every step explained.

    python examples/tutorial.py                          # with the sample in the repository
    python examples/tutorial.py --data my_frames.xyz     # extended XYZ with energies and forces

needs Python 3.10 or newer and pip. It creates the environment ``.venv-mace`` (``--installed``:
takes this Python's as it is), trains a small Gaunt model with MACE, exports it, tests it on frames
that it has not seen, runs it at constant energy and draws what came out. Without LAMMPS, or without
a compiler for its pair style, ASE runs the dynamics. All files lie in ``runs/tutorial``.
"""

import argparse
import os
import shlex
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import environment

ROOT = environment.ROOT
SAMPLE = ROOT / "examples" / "3bpa_sample"
TIMESTEP = 0.5  # fs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=SAMPLE / "train_300K.xyz")
    parser.add_argument("--energy-key", default="energy", help="its name in the file")
    parser.add_argument("--forces-key", default="forces", help="their name in the file")
    parser.add_argument("--e0s", help="MACE's --E0s; default: isolated atoms of the file")
    parser.add_argument("--cutoff", type=float, default=4.0, help="of the model, Å")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--steps", type=int, default=4000, help=f"of dynamics, {TIMESTEP} fs each")
    parser.add_argument("--temperature", type=float, default=300.0, help="of the velocities, K")
    parser.add_argument("--engine", choices=["auto", "lammps", "ase"], default="auto")
    parser.add_argument("--device", default="cpu", help="that trains")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "tutorial")
    parser.add_argument("--installed", action="store_true", help="use this Python's environment")
    args = parser.parse_args()
    if not args.data.is_file():
        parser.error(f"--data: there is no file {args.data}")
    for name in ("cutoff", "epochs", "steps", "temperature"):
        if not getattr(args, name) > 0:  # nor NaN
            parser.error(f"--{name} must be positive")
    if not args.installed:
        title(1, "environment")
        say("""MACE, ASE and LAMMPS go into an environment of their own, .venv-mace: MACE and NequIP
            need different releases of e3nn, so that one environment can't hold both.""")
        extras = "mace,ase" + ",lammps" * (args.engine != "ase")
        python = environment.ensure(ROOT / ".venv-mace", extras)
        arguments = [str(python), __file__, *sys.argv[1:], "--installed"]
        sys.exit(subprocess.run(arguments, check=False).returncode)
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    engine = choose_engine(args.engine)
    test, e0s = split(args)
    model = export(train(args, e0s), args.out / "model.pt")
    errors = evaluate(model, test)
    trajectory = simulate(engine, model, test[0], args)
    plot(errors, trajectory, test, args.out / "tutorial.png")
    print(f"== Done in {time.monotonic() - start:.0f} s; look at {args.out / 'tutorial.png'}")


def title(number: int, text: str) -> None:
    print(f"\n== {number}/7 {text}", flush=True)


def say(text: str) -> None:
    """Explain something."""
    print(textwrap.indent(textwrap.fill(" ".join(text.split()), 96), "   "), flush=True)


def run(command: list, show=None, env: dict | None = None) -> None:
    """Run a command, showing the lines that ``show`` returns; end the program if it fails."""
    print("   $", " ".join(str(part) for part in command), flush=True)
    lines = []

    def take(line: str) -> None:
        lines.append(line)
        text = show(line) if show else line.rstrip()
        if text:
            print(f"   {text}", flush=True)

    env = {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore", **os.environ, **(env or {})}
    code = environment.stream([str(part) for part in command], take, env)
    if code != 0:
        print("".join(lines[-20:]))
        sys.exit(f"exit code {code}: {command[0]}")


def program(name: str) -> Path:
    """A program of this environment."""
    return Path(sys.executable).with_name(name)


def quoted(path: Path) -> str:
    return shlex.quote(str(path))


def choose_engine(wanted: str) -> str:
    """Build kernels and pair style; ``"lammps"`` if that can run the dynamics, else ``"ase"``."""
    from gaunt_plugin._compiler import BuildError
    from gaunt_plugin.lammps.build import build
    from gaunt_plugin.ops.cpu import build as kernels

    title(2, "kernels and LAMMPS")
    say("""Compiled kernels make CPUs two to three times as fast and change no result. Wheels carry
        them; from a source tree they are built once, and so is the pair style that runs exported
        models in LAMMPS. It is tied to the installed releases of LAMMPS and torch.""")
    if not kernels.is_built() and not kernels.switched_off():
        try:
            kernels.build(report=say)
        except BuildError as error:
            say(f"Going on without: {error}")
    if wanted == "ase":
        return "ase"
    try:
        build(report=say)
    except BuildError as error:
        if wanted == "lammps":
            sys.exit(f"LAMMPS can't be used: {error}")
        say(f"NOTE: ASE will run the dynamics instead of LAMMPS: {error}")
        return "ase"
    return "lammps"


def split(args: argparse.Namespace) -> tuple[list, str]:
    """Write train.xyz; return test frames, with energies and forces, and MACE's ``--E0s``."""
    import numpy as np
    from ase.io import read, write

    title(3, "data")
    frames = read(args.data, ":")
    alone = {frame.numbers[0]: value(frame, args.energy_key) for frame in frames if len(frame) == 1}
    frames = [frame for frame in frames if len(frame) > 1]
    if len(frames) < 10:
        sys.exit(f"{args.data} has {len(frames)} frames of several atoms; 10 are the least")
    for frame in frames:
        energy, forces = value(frame, args.energy_key), array(frame, args.forces_key)
        frame.calc = None
        frame.info, frame.arrays = (
            {"REF_energy": energy},
            {
                "numbers": frame.arrays["numbers"],
                "positions": frame.arrays["positions"],
                "REF_forces": forces,
            },
        )
    elements = sorted({symbol for frame in frames for symbol in frame.symbols})
    energies = np.array([frame.info["REF_energy"] / len(frame) for frame in frames])
    say(f"""{args.data.name}: {len(frames)} frames of {min(map(len, frames))} to
        {max(map(len, frames))} atoms, elements {" ".join(elements)}; energies spread by
        {1000 * energies.std():.1f} meV per atom.""")
    order = np.random.default_rng(0).permutation(len(frames))
    held = max(5, len(frames) // 5)
    test, rest = [frames[i] for i in order[:held]], [frames[i] for i in order[held:]]
    write(args.out / "train.xyz", rest)
    write(args.out / "test.xyz", test)
    say(f"""{held} frames, drawn at random, are kept for the test; of the others MACE takes a tenth
        to choose the best epoch. Frames of one trajectory resemble each other: an honest test of
        your model has frames of another run.""")
    e0s = args.e0s
    if e0s is None and args.data.parent == SAMPLE:
        atoms = read(SAMPLE / "iso_atoms.xyz", ":")
        alone = {atom.numbers[0]: value(atom, "energy") for atom in atoms}
    if e0s is None:
        known = all(number in alone for frame in frames for number in frame.numbers)
        e0s = str({int(n): float(e) for n, e in alone.items()}) if known else "average"
    say(f"""The model learns what is left of the energy after that of isolated atoms, E0s: {e0s}.
        They come from frames of one atom in your file, or from --e0s. "average" fits them to the
        frames, which is worse as soon as bonds break.""")
    return test, e0s


def value(frame, key: str) -> float:
    """An energy, where ASE has put it."""
    if key in frame.info:
        return float(frame.info[key])
    if key == "energy" and frame.calc is not None:
        return float(frame.get_potential_energy())
    sys.exit(f"a frame has no {key}; it has {', '.join(frame.info) or 'nothing'}: see --energy-key")


def array(frame, key: str):
    """Forces, where ASE has put them."""
    if key in frame.arrays:
        return frame.arrays[key]
    if key == "forces" and frame.calc is not None:
        return frame.get_forces()
    sys.exit(f"a frame has no {key}; it has {', '.join(frame.arrays)}: see --forces-key")


def train(args: argparse.Namespace, e0s: str) -> Path:
    """Train with MACE's own command; return the model."""
    title(4, "training")
    say("""This is MACE's own command. --plugin gaunt puts Gaunt blocks in place of its
        Clebsch-Gordan ones; all other options mean what they always mean. 16 channels of scalars
        and vectors are a small model, for minutes on a CPU: 64x0e + 64x1o and hundreds of epochs
        are usual for results to publish.""")
    command = [program("mace_run_train"), "--plugin", "gaunt", "--name", "tutorial"]
    options = {
        "train_file": args.out / "train.xyz",
        "test_file": args.out / "test.xyz",
        "work_dir": args.out,
        "energy_key": "REF_energy",
        "forces_key": "REF_forces",
        "E0s": e0s,
        "valid_fraction": 0.1,
        "model": "ScaleShiftMACE",
        "hidden_irreps": "16x0e + 16x1o",
        "num_interactions": 2,
        "r_max": args.cutoff,
        "max_ell": 3,
        "correlation": 3,
        "batch_size": 5,
        "valid_batch_size": 10,
        "lr": 0.01,
        "scheduler": "ExponentialLR",
        "lr_scheduler_gamma": round(0.04 ** (1 / max(args.epochs, 1)), 4),
        "energy_weight": 40,
        "forces_weight": 1000,
        "max_num_epochs": args.epochs,
        "eval_interval": 1,
        "ema_decay": 0.99,
        "error_table": "TotalRMSE",
        "default_dtype": "float32",
        "device": args.device,
        "seed": 0,
        "plot": "False",
    }
    command += [part for name, setting in options.items() for part in (f"--{name}", setting)]
    starts = []

    def show(line: str) -> str:
        _, found, rest = line.partition(" INFO: Epoch ")
        if not found or not rest[:1].isdigit():
            return ""
        starts.append(time.monotonic())
        left = args.epochs - len(starts)
        seconds = (starts[-1] - starts[0]) / max(len(starts) - 1, 1) * left
        energy, forces = (part.split("=")[1].strip() for part in rest.split("RMSE_")[1:])
        text = f"epoch {len(starts)} of {args.epochs}: errors of energies {energy} forces {forces}"
        return text + f", {seconds:.0f} s left" * (left > 0 and len(starts) > 1)

    run([*command, "--ema", "--amsgrad"], show)
    return args.out / "tutorial.model"


def export(model: Path, target: Path) -> Path:
    """Write the file for ASE and LAMMPS."""
    title(5, "export")
    say("""gaunt export writes one file that runs without MACE: in ASE through GauntCalculator, in
        LAMMPS through pair_style gaunt. Its radial networks become splines, within the differences
        that it states. It takes some seconds.""")
    run([program("gaunt"), "export", model, target], lambda line: line.rstrip())
    return target


def evaluate(model: Path, test: list) -> tuple:
    """Energies per atom of the test frames: reference and model, eV; print all errors."""
    import numpy as np

    from gaunt_plugin.calculator import GauntCalculator

    title(6, "test")
    say("""The exported file itself is tested, on the frames that training has not seen.""")
    calculator = GauntCalculator(model)
    expected, found, misses = [], [], []
    for frame in test:
        frame.calc = calculator
        expected.append(frame.info["REF_energy"] / len(frame))
        found.append(frame.get_potential_energy() / len(frame))
        misses.append((frame.get_forces() - frame.arrays["REF_forces"]).ravel())
        frame.calc = None
    expected, found = np.array(expected), np.array(found)
    forces = 1000 * rms(np.concatenate(misses))
    size = 1000 * rms(np.concatenate([frame.arrays["REF_forces"] for frame in test]))
    energies = 1000 * rms(found - expected)
    say(f"""Root mean square errors: energies {energies:.2f} meV per atom, forces {forces:.0f}
        meV/Å, which is {100 * forces / size:.1f} % of the forces.""")
    return expected, found


def rms(values) -> float:
    return float((values**2).mean() ** 0.5)


def simulate(engine: str, model: Path, start, args: argparse.Namespace) -> tuple:
    """Constant energy from a test frame; times in ps, total energies in eV, and frames."""
    import numpy as np
    from ase import units
    from ase.md.velocitydistribution import Stationary

    title(7, f"molecular dynamics with {engine.upper()}")
    say(f"""{args.steps} steps of {TIMESTEP} fs at constant energy. The forces are the derivative of
        the energy, so the total energy may fluctuate but must not drift. A model that has seen too
        little shows it here first: bonds break or the temperature runs away.""")
    atoms = start.copy()
    if not atoms.pbc.any():
        atoms.center(vacuum=20.0)
    thermal = np.sqrt(atoms.get_masses() * units.kB * args.temperature)[:, None]
    atoms.set_momenta(thermal * np.random.default_rng(0).standard_normal((len(atoms), 3)))
    Stationary(atoms)
    times, energies, frames = (in_lammps if engine == "lammps" else in_ase)(atoms, model, args)
    change = 1000 * (energies - energies[0]) / len(atoms)
    drift = np.polyfit(times, change, 1)[0]
    say(f"""The total energy drifts by {drift:+.4f} meV per atom and ps, and fluctuates by
        {change.std():.4f} meV per atom.""")
    return times, change, frames


def in_lammps(atoms, model: Path, args: argparse.Namespace) -> tuple:
    import numpy as np
    from ase.io import read, write

    elements = sorted(set(atoms.symbols))
    write(
        args.out / "start.data",
        atoms,
        format="lammps-data",
        specorder=elements,
        atom_style="atomic",
        units="metal",
        masses=True,
        velocities=True,
    )
    every, shown = max(1, args.steps // 400), max(1, args.steps // 10)
    boundary = " ".join("p" if periodic else "f" for periodic in atoms.pbc)
    (args.out / "in.lammps").write_text(
        f"""\
units           metal
atom_style      atomic
boundary        {boundary}
read_data       start.data

pair_style      gaunt
pair_coeff      * * {model.name} {" ".join(elements)}

timestep        {TIMESTEP / 1000}
fix             1 all nve
fix             2 all print {every} "$(step*dt:%.6f) $(etotal:%.10f)" screen no file energy.txt
dump            1 all custom {every} trajectory.dump id element x y z
dump_modify     1 element {" ".join(elements)} sort id
thermo_style    custom step temp pe etotal
thermo          {shown}
run             {args.steps}
""",
        encoding="utf-8",
    )
    words = {"Step", *map(str, range(0, args.steps + 1, shown))}
    run(
        # The input names files in its own folder.
        ["sh", "-c", f"cd {quoted(args.out)} && {quoted(program('lmp'))} -in in.lammps"],
        lambda line: line.rstrip() if line.split()[:1] and line.split()[0] in words else "",
        {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
    )
    times, energies = np.loadtxt(args.out / "energy.txt", unpack=True)
    return times, energies, read(args.out / "trajectory.dump", ":", format="lammps-dump-text")


def in_ase(atoms, model: Path, args: argparse.Namespace) -> tuple:
    import numpy as np
    from ase import units
    from ase.md.verlet import VelocityVerlet

    from gaunt_plugin.calculator import GauntCalculator

    atoms.calc = GauntCalculator(model)
    dynamics = VelocityVerlet(atoms, timestep=TIMESTEP * units.fs)
    every, shown = max(1, args.steps // 400), max(1, args.steps // 10)
    times, energies, frames = [], [], []

    def record() -> None:
        if dynamics.nsteps % every == 0:
            times.append(dynamics.nsteps * TIMESTEP / 1000)
            energies.append(atoms.get_total_energy())
            frames.append(atoms.copy())
        if dynamics.nsteps % shown == 0:
            print(
                f"   step {dynamics.nsteps:6d}  {atoms.get_temperature():6.1f} K  "
                f"total energy {atoms.get_total_energy():.4f} eV",
                flush=True,
            )

    dynamics.attach(record)
    dynamics.run(args.steps)
    return np.array(times), np.array(energies), frames


def distances(frames: list, longest: float):
    """All distances between two atoms that are shorter."""
    import numpy as np
    from ase.neighborlist import neighbor_list

    return np.concatenate([neighbor_list("d", frame, longest) for frame in frames])


def plot(errors: tuple, trajectory: tuple, test: list, path: Path) -> None:
    """Energies of the test, drift of the total energy, and distances in the dynamics."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    expected, found = (1000 * (energy - errors[0].mean()) for energy in errors)
    times, change, frames = trajectory
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    ends = [min(expected.min(), found.min()), max(expected.max(), found.max())]
    left.plot(ends, ends, color="0.7", linewidth=1)
    left.plot(expected, found, "o", markersize=4)
    left.set(title="Energies of test frames", xlabel="reference (meV/atom)", aspect="equal")
    left.set_ylabel("model (meV/atom)")
    middle.plot(times, change, linewidth=1)
    middle.set(title="Total energy in the dynamics", xlabel="time (ps)")
    middle.set_ylabel("change (meV/atom)")
    bins = np.linspace(0.8, 6.0, 131)
    for label, some in (("data", test), ("dynamics", frames)):
        found = distances(some, bins[-1])
        right.hist(found, bins, density=True, histtype="step", linewidth=1.2, label=label)
    right.set(title="Distances between atoms", xlabel="distance (Å)", ylabel="density (1/Å)")
    right.legend(frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted")
