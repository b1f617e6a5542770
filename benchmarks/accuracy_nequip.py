"""NequIP's side of accuracy.py: its command, its record of validations, its trained models."""

import csv
import os
import sys
from pathlib import Path

import ase.io
import torch
import yaml
from nequip.data import AtomicDataDict, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.model.saved_models import load_saved_model
from nequip.utils.global_state import set_global_state

CUTOFF = 5.0  # Å
CHECKPOINTS = "checkpoints/best*.ckpt"  # of the best epoch so far
OPTIMIZERS = {
    "adam": {"_target_": "torch.optim.Adam"},
    "muon": {
        "_target_": "gaunt_plugin.optim.Muon",
        "param_groups": {"_target_": "gaunt_plugin.optim.param_groups"},
    },
}


def prepare(folder, options, plan, seed, isolated):
    """Write the configuration; returns the command, which also goes on after an interruption."""
    types = sorted(atoms.get_chemical_symbols()[0] for atoms in ase.io.read(isolated, ":"))
    options = dict(options)
    gaunt = options.pop("gaunt", None)
    optimizer = OPTIMIZERS[options.pop("optimizer", "adam")]
    loader = {"_target_": "torch.utils.data.DataLoader"}
    config = {
        "run": ["train"],
        "seed": seed,
        "data": {
            "_target_": "nequip.data.datamodule.ASEDataModule",
            "seed": seed,
            "train_file_path": str(folder / "train.xyz"),
            "val_file_path": str(folder / "valid.xyz"),
            "transforms": [
                {
                    "_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper",
                    "model_type_names": types,
                    "chemical_species_to_atom_type_map": {name: name for name in types},
                },
                {
                    "_target_": "nequip.data.transforms.NeighborListTransform",
                    "r_max": CUTOFF,
                },
            ],
            "train_dataloader": {**loader, "batch_size": 5, "shuffle": True},
            "val_dataloader": {**loader, "batch_size": 10},
            "stats_manager": {
                "_target_": "nequip.data.CommonDataStatisticsManager",
                "type_names": types,
            },
        },
        "trainer": {
            "_target_": "lightning.Trainer",
            "accelerator": "cpu",
            "max_epochs": plan.epochs,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1000,
            "enable_progress_bar": False,
            "logger": {
                "_target_": "lightning.pytorch.loggers.CSVLogger",
                "save_dir": str(folder),
                "name": "log",
                "flush_logs_every_n_steps": 1,
            },
            "callbacks": [
                {
                    "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "monitor": "val0_epoch/weighted_sum",
                    "dirpath": str(folder / "checkpoints"),
                    "filename": "best",
                    "save_last": True,
                }
            ],
        },
        "training_module": {
            "_target_": "nequip.train.EMALightningModule",
            "ema_decay": 0.99,
            "loss": {
                "_target_": "nequip.train.EnergyForceLoss",
                "per_atom_energy": True,
                "coeffs": {"total_energy": 1.0, "forces": 1.0},
            },
            "val_metrics": {
                "_target_": "nequip.train.EnergyForceMetrics",
                "coeffs": {
                    "total_energy_rmse": None,
                    "per_atom_energy_rmse": 1.0,
                    "forces_rmse": 1.0,
                },
            },
            "optimizer": {**optimizer, "lr": plan.lr, "amsgrad": True},
            "lr_scheduler": {
                "scheduler": {
                    "_target_": "torch.optim.lr_scheduler.ExponentialLR",
                    "gamma": plan.gamma,
                },
                "interval": "epoch",
                "frequency": 1,
            },
            "model": {
                "_target_": "nequip.model.NequIPGNNModel"
                if gaunt is None
                else "gaunt_plugin.nequip.GauntNequIPGNNModel",
                "seed": seed,
                "model_dtype": "float32",
                "type_names": types,
                "r_max": CUTOFF,
                "avg_num_neighbors": "${training_data_stats:num_neighbors_mean}",
                "per_type_energy_shifts": "${training_data_stats:per_atom_energy_mean}",
                "per_type_energy_scales": "${training_data_stats:forces_rms}",
                **options,
                **(gaunt or {}),
            },
        },
        "hydra": {"run": {"dir": str(folder)}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [Path(sys.executable).with_name("nequip-train"), "-cp", folder, "-cn", "config"]
    last = folder / "checkpoints" / "last.ckpt"
    return [*command, *([f"++ckpt_path={last}"] if last.exists() else [])]


class Validations:
    """Reads Lightning's record of the validations of one attempt as it grows."""

    def __init__(self, folder):
        self.earlier = set(folder.glob("log/version_*"))
        self.folder, self.size, self.seen = folder, 0, 0

    def new(self):
        """The validations since the last call."""
        files = [
            p / "metrics.csv" for p in self.folder.glob("log/version_*") if p not in self.earlier
        ]
        if not files or not files[0].exists() or files[0].stat().st_size == self.size:
            return []
        self.size = files[0].stat().st_size
        with files[0].open() as file:
            rows = [row for row in csv.DictReader(file) if row.get("val0_epoch/forces_rmse")]
        new, self.seen = rows[self.seen :], len(rows)
        return [
            {
                "epoch": int(row["epoch"]),
                "loss": float(row["val0_epoch/weighted_sum"]),
                "energy": round(1000 * float(row["val0_epoch/total_energy_rmse"]), 2),
                "forces": round(1000 * float(row["val0_epoch/forces_rmse"]), 2),
            }
            for row in new
        ]


class Trained:
    """The best model of a training."""

    def __init__(self, folder):
        torch.set_num_threads(1)
        set_global_state()
        self.load(max(folder.glob(CHECKPOINTS), key=os.path.getmtime))
        self.parameters = sum(p.numel() for p in self.model.parameters())

    def load(self, kept):
        """Take the weights of a checkpoint."""
        self.model = load_saved_model(kept).eval()

    def predict(self, structures):
        """Energies (eV) and forces (eV/Å) of all atoms."""
        types = list(self.model.type_names)
        transforms = [
            ChemicalSpeciesToAtomTypeMapper(types, {name: name for name in types}),
            NeighborListTransform(CUTOFF),
        ]
        energies, forces = [], []
        for start in range(0, len(structures), 10):
            batch = []
            for structure in structures[start : start + 10]:
                bare = structure.copy()  # without reference energies
                data = from_ase(bare)
                for transform in transforms:
                    data = transform(data)
                batch.append(data)
            output = self.model(AtomicDataDict.batched_from_list(batch))
            energies.append(output[AtomicDataDict.TOTAL_ENERGY_KEY].detach().flatten())
            forces.append(output[AtomicDataDict.FORCE_KEY].detach())
        return torch.cat(energies).double().numpy(), torch.cat(forces).double().numpy()
