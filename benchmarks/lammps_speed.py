"""Steps per second in LAMMPS, Gaunt against stock models of the host that is installed.

    gaunt build lammps
    python benchmarks/lammps_speed.py [--ranks 1] [--repeats 3] [--sizes NUMBER ...]

Environment: mace or nequip, with the lammps extra. ``pair_style gaunt`` runs both, from files
written by ``gaunt export``, so that only the layers differ. Models have random weights;
steps are so short that atoms stay where they are. Each figure is the median of interleaved runs in
processes of their own, without the first evaluation.
"""

import argparse
import importlib.util
import re
import statistics
import subprocess
import sysconfig
import tempfile
from pathlib import Path

if importlib.util.find_spec("mace"):
    import mace.modules  # noqa: F401 (before e3nn: MACE prepares its import)

    import mace_speed
else:
    import nequip_speed

import torch
from arguments import positive

from gaunt_plugin.deploy.export import export

MACE = importlib.util.find_spec("mace") is not None
SCRIPTS = Path(sysconfig.get_path("scripts"))
STRUCTURES = Path(__file__).resolve().parents[1] / "examples" / "lammps"
# Steps of a run by structure.
SIZES = {
    "mace": {
        "16x0e+16x1o": {"molecule": 60, "box": 4},
        "64x0e+64x1o+64x2e": {"molecule": 20, "box": 1},
        "256x0e+256x1o+256x2e": {"molecule": 4},
    },
    "nequip": {  # features, layers, l_max
        "16 features, 3 layers, l_max 2": {"molecule": 60, "box": 4},
        "64 features, 4 layers, l_max 2": {"molecule": 20, "box": 2},
        "64 features, 4 layers, l_max 3": {"molecule": 10, "box": 1},
    },
}["mace" if MACE else "nequip"]
INPUT = """
units metal
atom_style atomic
boundary {boundary}
read_data {data}
{replicate}
pair_style gaunt
pair_coeff * * "{model}" H C N O
timestep 1e-7
fix 1 all nve
thermo 100000
run 0
run {steps} pre no post no
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


def model(kind: str, size: str) -> torch.nn.Module:
    """A float32 model, ``"stock"`` or ``"gaunt"``, with a cutoff of 5 Å."""
    torch.manual_seed(0)
    if MACE:
        return mace_speed.model(kind == "gaunt", size)
    features, layers, l_max = map(int, re.findall(r"\d+", size))
    return nequip_speed.model(int(kind == "gaunt"), l_max, features, layers).eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=positive(int), default=1)
    parser.add_argument("--repeats", type=positive(int), default=3)
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        choices=range(len(SIZES)),
        default=range(len(SIZES)),
        help="0 is the smallest",
    )
    parser.add_argument("--files", type=Path, help="a folder for the exported models, to use again")
    args = parser.parse_args()

    print("| model (float32) | structure | stock, steps/s | Gaunt, steps/s | ratio |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for size in [list(SIZES)[number] for number in args.sizes]:
            folder = args.files or Path(scratch)
            paths = {kind: folder / f"{kind} {size}.pt" for kind in ("stock", "gaunt")}
            for kind, path in paths.items():
                if not path.exists():
                    export(model(kind, size), path)
            for structure, steps in SIZES[size].items():
                times = {kind: [] for kind in paths}
                for _ in range(args.repeats):
                    for kind, path in paths.items():
                        seconds, atoms = seconds_per_step(path, structure, steps, args.ranks)
                        times[kind].append(seconds)
                stock, own = (statistics.median(times[kind]) for kind in paths)
                print(
                    f"| {size} | {structure}, {atoms} atoms | {1 / stock:.3g} | {1 / own:.3g} "
                    f"| {stock / own:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
