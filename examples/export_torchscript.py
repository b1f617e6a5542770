"""Export a trained model to TorchScript and check that the files stand alone.

    python examples/export_torchscript.py runs/quickstart/quickstart.model

Two files hold the model without its Python code: ``*_compiled.model``, which `mace_run_train`
writes, and ``*.model-lammps.pt``, written here by `mace_create_lammps_model`. Both are loaded in
a fresh process that imports torch and neither MACE, e3nn nor gaunt_plugin, as LAMMPS would, and
their energy and forces are compared with those of the model in Python.
"""

import argparse
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch

SAMPLE = Path(__file__).parent / "3bpa_sample" / "test_300K.xyz"
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # eV/atom and eV/Å
MUST_NOT_BE_IMPORTED = ("gaunt_plugin", "mace", "e3nn")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="a model file written by mace_run_train")
    parser.add_argument("--frame", default=SAMPLE, help="extended XYZ; its first frame is used")
    parser.add_argument("--reload", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.reload is not None:
        return reload(args.model, args.reload)

    compiled = args.model.with_name(f"{args.model.stem}_compiled.model")
    if not compiled.exists() or compiled.stat().st_mtime < args.model.stat().st_mtime:
        # mace_run_train hides the reason
        sys.exit(f"{compiled} is missing or old: the model did not compile to TorchScript")

    frame, dtype = evaluate_in_python(args.model, args.frame)
    lammps = args.model.with_name(f"{args.model.name}-lammps.pt")
    lammps.unlink(missing_ok=True)
    command = [Path(sysconfig.get_path("scripts")) / "mace_create_lammps_model", args.model]
    subprocess.run([*command, "--dtype", str(dtype).removeprefix("torch.")], check=True)

    with tempfile.TemporaryDirectory() as folder:
        torch.save(frame, Path(folder) / "frame.pt")
        codes = [
            subprocess.run(
                [sys.executable, __file__, file, "--reload", f"{folder}/frame.pt"], check=False
            ).returncode
            for file in (compiled, lammps)
        ]
    return max(codes)


def evaluate_in_python(model: Path, xyz: str) -> tuple[dict, torch.dtype]:
    """Evaluate a frame with the model as Python code; return its inputs and its results."""
    from mace.calculators import MACECalculator

    from ase.io import read

    calculator = MACECalculator(str(model), device="cpu", default_dtype="")
    (eager,) = calculator.models
    dtype = next(eager.parameters()).dtype
    atoms = read(xyz, 0)
    atoms.calc = calculator
    inputs = calculator._atoms_to_batch(atoms).to_dict()
    frame = {
        "inputs": {key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)},
        "energy": float(atoms.get_potential_energy()),
        "forces": torch.from_numpy(atoms.get_forces()),
    }
    return frame, dtype


def reload(model: Path, frame_file: str) -> int:
    """Compare a TorchScript file with the stored results, in a process that has only torch."""
    script = torch.jit.load(model, map_location="cpu")
    dtype = next(script.parameters()).dtype
    frame = torch.load(frame_file, weights_only=True)
    inputs = frame["inputs"]
    inputs["positions"].requires_grad_(True)
    if model.name.endswith("-lammps.pt"):
        everywhere = torch.ones(len(inputs["positions"]), dtype=dtype)
        output = script(inputs, everywhere, False)
        energy = output["total_energy_local"]
    else:
        output = script(inputs, compute_force=True)
        energy = output["energy"]

    imported = [name for name in MUST_NOT_BE_IMPORTED if name in sys.modules]
    if imported:
        print(f"{model.name}: needed {', '.join(imported)}", file=sys.stderr)
        return 1
    atoms = len(inputs["positions"])
    energy_error = abs(energy.item() - frame["energy"]) / atoms
    force_error = (output["forces"].double() - frame["forces"]).abs().max().item()
    tolerance = TOLERANCE[dtype]
    fine = max(energy_error, force_error) <= tolerance
    print(
        f"{model.name}: {dtype}, fresh process, largest differences from Python: "
        f"energy {energy_error:.1e} eV/atom, forces {force_error:.1e} eV/Å "
        f"({'at most' if fine else 'NOT at most'} {tolerance:g})"
    )
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
