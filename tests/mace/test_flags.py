"""Trainings with the flags of ``mace_run_train`` that meet our blocks; docs/mace.md lists them."""

import ast
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

from mace.calculators import MACECalculator
from mace.tools import build_default_arg_parser

import ase.io
import numpy as np
import pytest
import torch

from gaunt_plugin.deploy.export import export
from gaunt_plugin.mace import models

from ..tolerances import assert_close
from .building import make_batch

pytestmark = pytest.mark.training

ATTENTION = "GauntAttResidualInteractionBlock"
NON_LINEAR = "GauntResidualNonLinearInteractionBlock"
EMBEDDING = {
    "total_charge": {
        "type": "categorical",
        "per": "graph",
        "num_classes": 5,
        "offset": 2,
        "emb_dim": 4,
    },
    "total_spin": {"type": "categorical", "per": "graph", "num_classes": 5, "emb_dim": 4},
    "elec_temp": {"type": "continuous", "per": "graph", "in_dim": 1, "emb_dim": 4},
}
# Name of the training: flags beyond those of conftest.py.
TRAININGS = {
    "non_linear": {
        "interaction_first": NON_LINEAR,
        "interaction": ATTENTION,
        "edge_irreps": "2x0e + 2x1o",
        "use_edge_irreps_first": True,
        "apply_cutoff": False,
        "gaunt_convolution_rank": "1, 2",
        "hidden_irreps": None,
        "num_channels": 4,
        "max_L": 1,
        "compute_avg_num_neighbors": False,
        "avg_num_neighbors": 9.0,
    },
    "attention": {
        "model": "MACE",
        "interaction": NON_LINEAR,
        "radial_type": "gaussian",
        "distance_transform": "Agnesi",
        "pair_repulsion": True,
        "use_last_readout_only": True,
        "use_agnostic_product": True,
        "num_interactions": 3,
        "scaling": "no_scaling",
        "save_cpu": True,
    },
    "embedding": {
        "interaction": ATTENTION,
        "embedding_specs": str(EMBEDDING),
        "use_embedding_readout": True,
        "total_charge_key": "charge",
        "total_spin_key": "spin",
        "elec_temp_key": "temperature",
        "mean": -5.0,
        "std": 2.0,
    },
    "dipoles": {
        "model": "AtomicDipolesMACE",
        "interaction": NON_LINEAR,
        "loss": "dipole",
        "error_table": "DipoleRMSE",
        "MLP_irreps": "4x1o",
    },
    "energy_dipoles": {
        "model": "EnergyDipolesMACE",
        "interaction": ATTENTION,
        "loss": "energy_forces_dipole",
        "error_table": "EnergyDipoleRMSE",
        "MLP_irreps": "4x0e + 4x1o",
    },
    "dielectric": {
        "model": "AtomicDielectricMACE",
        "loss": "dipole_polar",
        "error_table": "DipolePolarRMSE",
        "hidden_irreps": "4x0e + 4x1o + 4x2e",
        "MLP_irreps": "4x0e + 4x1o + 4x2e",
    },
    "polar": {
        "model": "PolarMACE",
        "interaction": NON_LINEAR,
        "loss": "energy_forces_dipole",
        "error_table": "EnergyDipoleRMSE",
        "kspace_cutoff_factor": 1.2,
        "atomic_multipoles_max_l": 1,
        "atomic_multipoles_smearing_width": 1.5,
        "field_feature_max_l": 1,
        "field_feature_widths": "[1.0, 2.0]",
        "field_feature_norms": "[2.0, 2.0, 1.0, 1.0]",
        "num_recursion_steps": 2,
        "field_si": True,
        "include_electrostatic_self_interaction": True,
        "add_local_electron_energy": True,
        "quadrupole_feature_corrections": True,
        "return_electrostatic_potentials": True,
        "field_norm_factor": 0.03,
        "fixedpoint_update_config": "{'nonlinearity_cls': 'MLPNonLinearity'}",
        "field_readout_config": "{'type': 'OneBodyMLPFieldReadout'}",
    },
}
CLASSES = {
    name: flags["model"] if flags.get("model", "MACE") != "MACE" else "ScaleShiftMACE"
    for name, flags in TRAININGS.items()
}
FACTORS = ["embedding_lr_factor", "interactions_lr_factor", "products_lr_factor"]
WITH_ENERGY = ["non_linear", "attention", "embedding", "energy_dipoles", "polar"]
CALCULATORS = {
    "dipoles": "DipoleMACE",
    "energy_dipoles": "EnergyDipoleMACE",
    "dielectric": "DipolePolarizabilityMACE",
    "polar": "PolarMACE",
}
# In a process that never heard of --plugin.
READ = """
import sys
from mace.calculators import MACECalculator
import ase.io, torch
for folder, kind in zip(sys.argv[1::2], sys.argv[2::2]):
    atoms = ase.io.read(folder + "/test.xyz")
    torch.set_default_dtype(torch.float64)  # as in training
    calculator = MACECalculator(folder + "/run.model", model_type=kind, default_dtype="float64")
    calculator.calculate(atoms)
    torch.save(calculator.results, folder + "/results.pt")
"""


@pytest.fixture(scope="module")
def trained(workshop):
    """A function that trains once per name and returns the folder of ``run.model``."""
    folders = {}

    def train(name):
        if name == "polar":
            pytest.importorskip("graph_longrange")
        if name not in folders:
            folder = workshop.folder(name)
            rng = np.random.default_rng(0)
            for file in ("train.xyz", "valid.xyz", "test.xyz"):
                frames = ase.io.read(folder / file, ":")
                for k, atoms in enumerate(frames):
                    polarizability = rng.normal(size=(3, 3))
                    atoms.info["REF_dipole"] = rng.normal(size=3)
                    atoms.info["REF_polarizability"] = polarizability + polarizability.T
                    state = k % 3 - 1, 1 + k % 2, 0.1
                    for names in (EMBEDDING, ("charge", "spin", "temperature")):
                        atoms.info.update(zip(names, state))
                    atoms.arrays["REF_charges"] = rng.normal(size=len(atoms)) / 10
                ase.io.write(folder / file, frames)
            flags = TRAININGS[name]
            workshop.train(folder, plugin="gaunt", **flags)
            output = workshop.train(
                folder, plugin="gaunt", max_num_epochs=2, restart_latest=True, **flags
            )
            assert "epoch-0.pt" in output.split("Loading checkpoint")[1]
            assert "Epoch 1" in output
            folders[name] = folder
        return folders[name]

    return train


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)  # set back by the fixture of conftest.py


@pytest.mark.parametrize("name", TRAININGS)
def test_trained_models(trained, load, name):
    """Trained, restarted and trained on, saved; with the blocks that were asked for."""
    model = load(trained(name) / "run.model")
    assert type(model) is models.MODELS[CLASSES[name]]
    flags = TRAININGS[name]
    first = flags.get("interaction_first", "GauntResidualInteractionBlock")
    if flags.get("model", "ScaleShiftMACE") not in ("ScaleShiftMACE", "PolarMACE"):
        first = "GauntInteractionBlock"  # as in MACE, without a self-connection
    then = flags.get("interaction", "GauntResidualInteractionBlock")
    found = [type(block).__name__ for block in model.interactions]
    assert found == [first] + [then] * (flags.get("num_interactions", 2) - 1)
    assert all(type(product).__name__ == "GauntProductBasisBlock" for product in model.products)


def test_a_fresh_process_reads_the_models(trained, load):
    names = ["non_linear", "attention", "dipoles", "energy_dipoles", "dielectric"]
    if importlib.util.find_spec("graph_longrange"):
        names.append("polar")
    folders = {trained(name): CALCULATORS.get(name, "MACE") for name in names}
    arguments = [str(word) for pair in folders.items() for word in pair]
    subprocess.run([sys.executable, "-c", READ, *arguments], check=True, timeout=100)
    for folder, kind in folders.items():
        results = torch.load(folder / "results.pt", weights_only=False)
        model, atoms = load(folder / "run.model"), ase.io.read(folder / "test.xyz")
        calculator = MACECalculator(models=model, model_type=kind, default_dtype="float64")
        calculator.calculate(atoms)
        keys = {"energy", "forces", "dipole", "polarizability"} & results.keys()
        assert keys
        for key in keys:
            assert_close(results[key], calculator.results[key], "program")


@pytest.mark.parametrize("name", WITH_ENERGY)
def test_eval_configs(trained, workshop, name):
    folder = trained(name)
    args = ["--configs", "test.xyz", "--model", "run.model", "--output", "out.xyz"]
    if name == "energy_dipoles":
        args.append("--return_contributions")
    elif name != "polar":
        args += ["--return_descriptors", "--return_node_energies"]
    workshop.run(folder, "mace.cli.eval_configs", *args)
    for atoms in ase.io.read(folder / "out.xyz", ":"):
        energy = atoms.info["MACE_energy"]
        assert np.isfinite(atoms.arrays["MACE_forces"]).all()
        if name == "energy_dipoles":  # atomic energies and two layers
            contributions = atoms.info["MACE_BO_contributions"]
            assert contributions.shape == (3,)
            assert contributions.sum() == pytest.approx(energy, abs=1e-6)
        elif name in ("non_linear", "attention"):
            assert atoms.arrays["MACE_node_energies"].sum() == pytest.approx(energy, abs=1e-5)
            columns = 4 * (3 if name == "attention" else 2)
            assert atoms.arrays["MACE_descriptors"].shape == (27, columns)


@pytest.mark.parametrize("name", ["non_linear", "attention"])
def test_programs(trained, load, workshop, name):
    """The compiled model of the training, MACE's file for LAMMPS, and ours."""
    folder = trained(name)
    model = load(folder / "run.model")
    batch = make_batch(model, ase.io.read(folder / "test.xyz"))
    eager = model(dict(batch))
    script = torch.jit.load(folder / "run_compiled.model")(dict(batch))
    for key in ("energy", "forces"):
        torch.testing.assert_close(script[key], eager[key], rtol=1e-10, atol=1e-10)
    workshop.run(folder, "mace.cli.create_lammps_model", "run.model")
    lammps = torch.jit.load(folder / "run.model-lammps.pt")
    out = lammps(dict(batch), torch.ones(27), False)
    torch.testing.assert_close(out["total_energy_local"], eager["energy"], rtol=0, atol=1e-9)
    export(folder / "run.model", folder / "run.pt")  # compares energies and gradients itself


def test_embeddings_are_used(trained, load):
    """Charge, spin and temperature change the energy; LAMMPS has none of them."""
    folder = trained("embedding")
    model = load(folder / "run.model")
    batch = make_batch(model, ase.io.read(folder / "test.xyz"))
    batch.update(total_charge=torch.zeros(1), total_spin=torch.ones(1), elec_temp=torch.ones(1))
    expected = model(dict(batch))["energy"]
    for name in EMBEDDING:
        changed = model({**batch, name: batch[name] + 1})["energy"]
        assert (changed - expected).abs() > 1e-8
    with pytest.raises(ValueError, match="charge, spin or other inputs"):
        export(model, folder / "x.pt")


def test_lora(workshop, single, load):
    """Weights of low rank are trained and merged; products and self-connections stay."""
    folder = workshop.folder("lora")
    options = {"foundation_model": str(single / "run.model"), "multiheads_finetuning": False}
    options.update(lora=True, lora_rank=2, lora_alpha=2.0)
    workshop.train(folder, plugin="gaunt", lr=0.01, **options)
    foundation, model = load(single / "run.model"), load(folder / "run.model")
    assert type(model) is models.ScaleShiftMACE
    before, after = foundation.state_dict(), model.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    for part in ("linear_up.weight", "conv_tp_weights.layer0.weight", "linear.weight"):
        assert f"interactions.0.{part}" in changed
    for part in ("skip_tp.", "conv_tp.", "symmetric_contractions."):
        assert not any(part in name for name in changed)
    assert torch.jit.load(folder / "run_compiled.model")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("freeze", 6),
        ("lr_params_factors", json.dumps(dict.fromkeys(FACTORS, 0.0))),
    ],
)
def test_freeze(workshop, single, load, flag, value):
    folder = workshop.folder(flag)
    options = {"foundation_model": str(single / "run.model"), "multiheads_finetuning": False}
    workshop.train(folder, plugin="gaunt", **{flag: value}, **options)
    foundation, model = load(single / "run.model"), load(folder / "run.model")
    for part in ("node_embedding", "interactions", "products"):
        before, after = getattr(foundation, part), getattr(model, part)
        torch.testing.assert_close(after.state_dict(), before.state_dict(), rtol=0, atol=0)
    assert not torch.equal(model.readouts[0].linear.weight, foundation.readouts[0].linear.weight)


def test_selection_for_fine_tuning(workshop, single):
    """``mace_finetuning_select`` by the descriptors of a Gaunt model."""
    args = ["--configs_pt", "train.xyz", "--configs_ft", "test.xyz", "--num_samples", "3"]
    args += ["--model", "run.model", "--output", "selected.xyz", "--subselect", "fps"]
    args += ["--filtering_type", "none"]
    workshop.run(single, "mace.cli.fine_tuning_select", *args)
    assert len(ase.io.read(single / "selected.xyz", ":")) == 3


# What the page says


ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "mace.md").read_text(encoding="utf-8")


def names_of(path):
    """The names of a file's tests."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def test_the_page_names_every_flag():
    """A new flag of MACE must be tried and find its place there."""
    actions = build_default_arg_parser()._actions
    flags = {action.option_strings[0] for action in actions if action.dest != "help"}
    named = set(re.findall(r"(?<![\w-])--\w+", PAGE))
    ours = {"--plugin", "--format"} | {flag for flag in named if flag.startswith("--gaunt_")}
    assert flags - named == set(), "not in docs/mace.md"
    evaluation = {"--return_contributions", "--return_descriptors", "--return_node_energies"}
    assert named - flags - ours - evaluation == set(), "no flags of MACE"


def test_flags_that_meet_the_blocks_are_tried():
    """Each stands in the file of a test that is named for it, or in a configuration."""
    folder = Path(__file__).parent
    configs = (ROOT / "configs" / "mace").glob("*.yaml")
    shared = [folder / "conftest.py", folder / "building.py", *configs]
    files = {test: path for path in folder.glob("test_*.py") for test in names_of(path)}
    table = PAGE.split("## Flags that meet the blocks")[1].split("## Commands")[0]
    count = 0
    for row in table.splitlines():
        flags = set(re.findall(r"(?<![\w-])--(\w+)", row.split(" | ")[0]))
        named = {files[test] for test in re.findall(r"`(test_\w+)`", row)}
        assert bool(flags) == bool(named), row
        text = " ".join(file.read_text(encoding="utf-8") for file in [*named, *shared])
        # Two are for several GPUs in MACE; test_weights_of_a_distributed_model does what they do.
        assert flags - set(re.findall(r"\w+", text)) - {"distributed", "launcher"} == set(), row
        count += len(flags)
    assert count > 60


def test_the_page_names_every_command():
    scripts = importlib.metadata.distribution("mace-torch").entry_points
    table = PAGE.split("## Commands")[1].split("## MACE's own test suite")[0]
    named = {*re.findall(r"`(mace_\w+)", table), "mace_run_train"}
    assert {script.name for script in scripts} <= named


def test_the_page_names_tests_that_exist():
    tests = {test for path in Path(__file__).parent.glob("test_*.py") for test in names_of(path)}
    before, suite, after = re.split(r"## (?=MACE's own test suite|Flags that meet no block)", PAGE)
    assert "`test_run_train`" in suite  # MACE's tests, not ours
    named = set(re.findall(r"`(test_\w+)`", before + after))
    assert len(named) > 10
    assert named <= tests
