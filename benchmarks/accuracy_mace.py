"""MACE's side of accuracy.py: its command, its record of validations, its trained models."""

import json
import sys
from pathlib import Path

import ase.io
import torch
import yaml

CHECKPOINTS = "checkpoints/*.pt"  # of the latest epoch, that is of the best so far


def prepare(folder, options, plan, seed, isolated):
    """Write the configuration; returns the command, which also goes on after an interruption."""
    atoms = ase.io.read(isolated, ":")
    energies = {int(atom.numbers[0]): float(atom.get_potential_energy()) for atom in atoms}
    config = {
        **options,
        "name": "model",
        "seed": seed,
        "work_dir": str(folder),
        "train_file": str(folder / "train.xyz"),
        "valid_file": str(folder / "valid.xyz"),
        "energy_key": "energy",
        "forces_key": "forces",
        "E0s": str(energies),
        "scheduler": "ExponentialLR",
        "lr": plan.lr,
        "lr_scheduler_gamma": plan.gamma,
        "max_num_epochs": plan.epochs,
        "restart_latest": True,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = Path(sys.executable).with_name("mace_run_train")
    return [command, "--config", folder / "config.yaml"]


class Validations:
    """Reads MACE's record of its validations as it grows."""

    def __init__(self, folder):
        self.folder, self.files = folder / "results", None
        # what an earlier attempt wrote
        self.position = sum(path.stat().st_size for path in self.folder.glob("*.txt"))

    def new(self):
        """The validations since the last call."""
        rows = []
        for path in self.folder.glob("*.txt"):
            with path.open("rb") as file:
                file.seek(self.position)
                lines = file.read().split(b"\n")
            self.position += sum(len(line) + 1 for line in lines[:-1])
            for line in lines[:-1]:
                entry = json.loads(line)
                if entry["mode"] == "eval" and entry["epoch"] is not None:
                    rows.append(
                        {
                            "epoch": entry["epoch"],
                            "loss": entry["loss"],
                            "energy": round(1000 * entry["rmse_e"], 2),
                            "forces": round(1000 * entry["rmse_f"], 2),
                        }
                    )
        return rows


class Trained:
    """The model at the end of a training, which is the best of its epochs."""

    def __init__(self, folder):
        torch.set_num_threads(1)
        self.model = torch.load(folder / "model.model", weights_only=False, map_location="cpu")
        self.parameters = sum(p.numel() for p in self.model.parameters())

    def load(self, kept):
        """Go back to the weights of a checkpoint."""
        self.model.load_state_dict(torch.load(kept, weights_only=False)["model"])

    def predict(self, structures):
        """Energies (eV) and forces (eV/Å) of all atoms."""
        from mace import data, tools

        table = tools.AtomicNumberTable([int(z) for z in self.model.atomic_numbers])
        dtype = next(self.model.parameters()).dtype
        previous = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            loader = tools.torch_geometric.dataloader.DataLoader(
                [
                    data.AtomicData.from_config(
                        data.config_from_atoms(structure), table, float(self.model.r_max)
                    )
                    for structure in structures
                ],
                batch_size=10,
            )
            energies, forces = [], []
            for batch in loader:
                output = self.model(batch.to_dict())
                energies.append(output["energy"].detach())  # outputs themselves hold graphs
                forces.append(output["forces"].detach())
        finally:
            torch.set_default_dtype(previous)
        return torch.cat(energies).double().numpy(), torch.cat(forces).double().numpy()
