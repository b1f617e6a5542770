"""Export a model trained with NequIP and check that the files stand alone.

    python examples/export_nequip.py runs/nequip/quickstart/best.ckpt

Two files are written beside it. ``*.nequip.zip``, by `nequip-package`, holds the model with its
Python code: it needs NequIP and not gaunt_plugin. ``*.nequip.pth``, by `gaunt nequip-torchscript`,
is what `pair_nequip` of LAMMPS reads: it needs libtorch only. Each is loaded in a fresh process,
the first where gaunt_plugin can't be imported and the second where only torch is, and their energy
and forces are compared with those of the checkpoint.
"""

import argparse
import importlib.metadata
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

SAMPLE = Path(__file__).parent / "3bpa_sample" / "test_300K.xyz"
TOLERANCE = {"float32": 5e-5, "float64": 1e-9}  # eV/atom and eV/Å


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="a checkpoint written by nequip-train")
    parser.add_argument(
        "--frame", default=str(SAMPLE), help="extended XYZ; its first frame is used"
    )
    parser.add_argument("--reload", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.reload is not None:
        return reload(args.model, args.reload)

    stem = args.model.name.removesuffix(".ckpt")
    package = args.model.with_name(f"{stem}.nequip.zip")
    script = args.model.with_name(f"{stem}.nequip.pth")
    commands = Path(sysconfig.get_path("scripts"))
    for command in (
        [commands / "nequip-package", "build", args.model, package],
        [commands / "gaunt", "nequip-torchscript", args.model, script],
    ):
        Path(command[-1]).unlink(missing_ok=True)
        print("$", " ".join(map(str, command)), flush=True)
        subprocess.run(command, check=True)

    frame = evaluate(args.model, args.frame)
    import torch

    with tempfile.TemporaryDirectory() as folder:
        torch.save(frame, Path(folder) / "frame.pt")
        codes = [
            subprocess.run(
                [sys.executable, __file__, file, "--reload", f"{folder}/frame.pt"], check=False
            ).returncode
            for file in (package, script)
        ]
    return max(codes)


def evaluate(model: Path, xyz: str) -> dict:
    """Evaluate a frame with the checkpoint; return the model's inputs and its results."""
    from ase.io import read
    from nequip.integrations.ase import NequIPCalculator

    atoms = read(xyz, 0)
    atoms.set_pbc(False)
    atoms.cell = None
    calculator = NequIPCalculator._from_saved_model(model)
    atoms.calc = calculator
    return {
        "symbols": atoms.get_chemical_symbols(),
        "inputs": calculator.atoms_to_data(atoms),
        "energies": calculator.get_property("energies", atoms),
        "forces": atoms.get_forces(),
        "dtype": str(calculator.model.model_dtype).removeprefix("torch."),
    }


def reload(file: Path, frame_file: str) -> int:
    """Compare a file with the stored results, in a process that hasn't imported gaunt_plugin."""
    if file.name.endswith(".zip"):
        hide_gaunt_plugin()
    import torch

    frame = torch.load(frame_file, weights_only=False)
    inputs = frame["inputs"]
    if file.name.endswith(".zip"):
        from nequip.model.saved_models import load_saved_model
        from nequip.utils.global_state import set_global_state

        set_global_state()
        model = load_saved_model(str(file)).eval()
    else:
        model = torch.jit.load(file, map_location="cpu")
        # pair_nequip hands over a cell, always
        inputs.setdefault("cell", 100 * torch.eye(3, dtype=torch.float64).view(1, 3, 3))
        shifts = torch.zeros(inputs["edge_index"].shape[1], 3, dtype=torch.float64)
        inputs.setdefault("edge_cell_shift", shifts)
        names = ("pos", "edge_index", "atom_types", "edge_cell_shift", "cell")
        inputs = {name: inputs[name] for name in names}
    output = model(inputs)

    unwanted = (
        ["gaunt_plugin"] if file.name.endswith(".zip") else ["gaunt_plugin", "nequip", "e3nn"]
    )
    imported = [name for name in unwanted if name in sys.modules]
    if imported:
        print(f"{file.name}: needed {', '.join(imported)}", file=sys.stderr)
        return 1
    errors = [
        abs(output[key].detach().numpy().reshape(frame[name].shape) - frame[name]).max()
        for key, name in (("atomic_energy", "energies"), ("forces", "forces"))
    ]
    tolerance = TOLERANCE[frame["dtype"]]
    fine = max(errors) <= tolerance
    print(
        f"{file.name}: {frame['dtype']}, fresh process, largest differences from the checkpoint: "
        f"energy {errors[0]:.1e} eV/atom, forces {errors[1]:.1e} eV/Å "
        f"({'at most' if fine else 'NOT at most'} {tolerance:g})"
    )
    return 0 if fine else 1


def hide_gaunt_plugin() -> None:
    """Make this process one in which gaunt_plugin isn't installed."""

    class Hidden:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name.split(".")[0] == "gaunt_plugin":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Hidden)
    sys.modules.pop("gaunt_plugin", None)
    entry_points = importlib.metadata.entry_points

    def without_ours(**kwargs):
        found = entry_points(**kwargs)
        if kwargs != {"group": "nequip.extension"}:
            return found
        return [entry for entry in found if entry.value != "gaunt_plugin"]

    importlib.metadata.entry_points = without_ours


if __name__ == "__main__":
    sys.exit(main())
