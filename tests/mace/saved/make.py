"""Write a small model, and what it computes, with the release that is installed.

    python tests/mace/saved/make.py tests/mace/saved/VERSION

Later releases must load the file and compute the same. Environment: mace.
"""

import sys
from pathlib import Path

from mace import modules  # before e3nn
from mace.calculators import MACECalculator

import ase.build
import numpy as np
import torch
from e3nn import o3

from gaunt_plugin.mace.blocks import INTERACTIONS
from gaunt_plugin.mace.config import GauntConfig
from gaunt_plugin.mace.models import ScaleShiftMACE


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    model = ScaleShiftMACE(
        r_max=3.0,
        num_bessel=4,
        num_polynomial_cutoff=5,
        max_ell=2,
        num_interactions=2,
        num_elements=3,
        hidden_irreps=o3.Irreps("2x0e+2x1o"),
        MLP_irreps=o3.Irreps("2x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.zeros(3),
        avg_num_neighbors=4.0,
        atomic_numbers=[1, 6, 8],
        correlation=3,
        radial_MLP=[4],
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
        interaction_cls_first=INTERACTIONS["GauntInteractionBlock"],
        interaction_cls=INTERACTIONS["GauntResidualInteractionBlock"],
        cueq_config=GauntConfig(  # many classes, since their paths are part of the file
            parametrization=("nested", "power"),
            antisymmetric=(True, False),
            convolution=("aligned", "grid"),
            selfmix_rank=(0, 1),
        ),
    )
    assert isinstance(model, modules.MACE)
    torch.save(model, folder / "model.model")
    atoms = ase.build.molecule("CH3CH2OH")
    atoms.calc = MACECalculator(folder / "model.model", device="cpu", default_dtype="float64")
    np.savez(folder / "results.npz", energy=atoms.get_potential_energy(), forces=atoms.get_forces())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
