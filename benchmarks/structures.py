"""Structures that both hosts' models are timed on, and exported models."""

import re
import tempfile
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import torch
from timing import Work, device

from gaunt_plugin.deploy import contract
from gaunt_plugin.deploy.export import export
from gaunt_plugin.deploy.program import run_as_written
from gaunt_plugin.ops.cpu.build import is_built

SAMPLE = Path(__file__).resolve().parents[1] / "examples" / "3bpa_sample" / "train_300K.xyz"


def molecules(number):
    """Frames of 3BPA, 27 atoms each, as they come in the sample and again from the start."""
    frames = ase.io.read(SAMPLE, f":{min(number, 50)}")
    return [frames[i % len(frames)].copy() for i in range(number)]


def water(*cells):
    """Molecules of water at the density of the liquid, turned at random: a periodic box."""
    rng = np.random.default_rng(0)
    spacing = 3.104  # Å, one molecule per cube
    box = ase.Atoms(cell=spacing * np.array(cells), pbc=True)
    for place in np.ndindex(*cells):
        molecule = ase.build.molecule("H2O")
        molecule.euler_rotate(*rng.uniform(0, 360, 3))
        molecule.translate(spacing * (np.array(place) + 0.5))
        box += molecule
    return box


# 108 to 5184 atoms
BOXES = ((3, 3, 4), (5, 6, 6), (8, 8, 8), (12, 12, 12))
BOX_500 = BOXES[1]


def program(net, graphs, types):
    """An exported model, run as ``pair_style gaunt`` does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt")
        export(net, path)
        kernels = device() == "cpu" and is_built()
        script = contract.load(path, kernels=kernels)[0].to(device())
    index, types = graphs["edge_index"].to(device()), types.to(device())
    positions = graphs["positions"].double()
    sender, receiver = graphs["edge_index"]
    vectors = positions[receiver] - positions[sender] + graphs["shifts"].double()
    vectors, owned = vectors.to(device()), torch.ones_like(types, dtype=torch.bool)

    def call():
        with run_as_written():
            return script(vectors, index, types, owned)

    return Work({"exported, TorchScript": call})


def available():
    """Bytes of memory that are free."""
    text = Path("/proc/meminfo").read_text()
    return 1024 * int(re.search(r"MemAvailable:\s*(\d+)", text)[1])
