"""MACE's commands on models trained with ``--plugin gaunt``."""

import functools
import subprocess
import sys
import sysconfig
from pathlib import Path

from mace.calculators import MACECalculator
from mace.data import AtomicData, config_from_atoms
from mace.tools import AtomicNumberTable, torch_geometric

import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator

from gaunt_plugin.mace.models import ScaleShiftMACE

from .conftest import E0S

pytestmark = pytest.mark.training
PAGE = (Path(__file__).parents[2] / "docs" / "mace.md").read_text(encoding="utf-8")
READ_LAMMPS = """
import sys, torch
for path in sys.argv[1:]:
    model = torch.jit.load(path)
    batch = torch.load(path + ".batch")
    n = batch["positions"].shape[0]
    local = torch.ones(n, dtype=batch["positions"].dtype)
    out = model(batch, local, True)
    out = {key: out[key] for key in ("total_energy_local", "forces", "virials")}
    torch.save(out, path + ".out")
loaded = {"gaunt_plugin", "mace", "e3nn"} & set(sys.modules)
assert not loaded, loaded
"""


def make_batch(model, atoms, head="Default"):
    table = AtomicNumberTable([int(z) for z in model.atomic_numbers])
    data = AtomicData.from_config(
        config_from_atoms(atoms, head_name=head),
        z_table=table,
        cutoff=float(model.r_max),
        heads=model.heads,
    )
    return torch_geometric.Batch.from_data_list([data]).to_dict()


def batch_as(dtype, model, atoms, head="Default"):
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return make_batch(model, atoms, head)
    finally:
        torch.set_default_dtype(default)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_training_on_a_gpu_with_and_without_kernels(workshop, load, monkeypatch):
    weights = []
    for on in "10":
        monkeypatch.setenv("GAUNT_KERNELS", on)
        folder = workshop.folder(f"gpu_{on}")
        workshop.train(folder, "--plugin", "gaunt", device="cuda")
        logs = "".join(path.read_text() for path in (folder / "logs").iterdir())
        assert ("GPU kernels: triton" in logs) == (on == "1")
        weights.append([p.detach().cpu() for p in load(folder / "run.model").parameters()])
    for found, expected in zip(*weights, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("stage", ["", "_stagetwo"])
def test_training_leaves_compiled_models_equal_to_the_eager_ones(two_heads, load, stage):
    model = load(two_heads / f"run{stage}.model")
    assert isinstance(model, ScaleShiftMACE)
    compiled = torch.jit.load(two_heads / f"run{stage}_compiled.model")
    batch = batch_as(torch.float64, model, ase.io.read(two_heads / "test.xyz"), "hot")
    eager = model(dict(batch), compute_virials=True)
    script = compiled(dict(batch), compute_virials=True)
    for key in ("energy", "forces", "virials"):
        torch.testing.assert_close(script[key], eager[key], rtol=1e-10, atol=1e-10)


def test_stage_two_and_averaging_happened(two_heads, load):
    output = (two_heads / "training.txt").read_text()
    assert "Changing loss based on Stage Two Weights" in output
    assert "Using Exponential Moving Average" in output
    one, two = load(two_heads / "run.model"), load(two_heads / "run_stagetwo.model")
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))


def test_calculator(two_heads, load):
    atoms = ase.io.read(two_heads / "test.xyz")
    atoms.set_cell([12, 12, 12])
    atoms.set_pbc(True)
    atoms.calc = MACECalculator(two_heads / "run.model", head="hot", default_dtype="float64")
    model = load(two_heads / "run.model")
    batch = batch_as(torch.float64, model, atoms, "hot")
    expected = model(batch, compute_stress=True)
    assert atoms.get_potential_energy() == pytest.approx(expected["energy"].item(), abs=1e-10)
    np.testing.assert_allclose(atoms.get_forces(), expected["forces"].detach(), atol=1e-10)
    stress = expected["stress"][0].detach()
    np.testing.assert_allclose(atoms.get_stress(voigt=False), stress, atol=1e-10)


def test_calculator_with_torch_compile(single, monkeypatch):
    # Tracing and differentiating as usual; generating C++ as well would take a minute.
    compile_eagerly = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", compile_eagerly)
    torch.set_default_dtype(torch.float64)  # MACE rebuilds the model in torch's default dtype
    results = []
    for mode in (None, "default"):
        atoms = ase.io.read(single / "test.xyz")
        atoms.calc = MACECalculator(
            single / "run.model", default_dtype="float64", compile_mode=mode
        )
        results.append((atoms.get_potential_energy(), atoms.get_forces()))
    (eager_energy, eager_forces), (energy, forces) = results
    assert energy == pytest.approx(eager_energy, abs=1e-8)
    np.testing.assert_allclose(forces, eager_forces, atol=1e-8)


def test_eval_configs(workshop, two_heads, load):
    args = ["--configs", "test.xyz", "--model", "run.model", "--output", "evaluated.xyz"]
    workshop.run(two_heads, "mace.cli.eval_configs", *args, "--head", "hot", "--return_descriptors")
    model = load(two_heads / "run.model")
    for atoms in ase.io.read(two_heads / "evaluated.xyz", ":"):
        expected = model(batch_as(torch.float64, model, atoms, "hot"))
        assert atoms.info["MACE_energy"] == pytest.approx(expected["energy"].item(), abs=1e-6)
        forces = expected["forces"].detach()
        np.testing.assert_allclose(atoms.arrays["MACE_forces"], forces, atol=1e-7)
        assert atoms.arrays["MACE_descriptors"].shape == (27, 8)


def test_descriptors_of_both_parities(workshop, load):
    folder = workshop.folder("both_parities")
    workshop.train(
        folder,
        plugin="gaunt",
        hidden_irreps="4x0e + 4x1o + 4x1e",
        gaunt_correlation="3, 2",
        gaunt_parametrization="nested, power",
        gaunt_antisymmetric="true, false",
    )
    assert load(folder / "run.model").cueq_config.correlation == (3, 2)
    command = [Path(sysconfig.get_path("scripts"), "mace_eval_configs"), "--return_descriptors"]
    command += ["--configs", "test.xyz", "--model", "run.model", "--output", "evaluated.xyz"]
    subprocess.run(command, cwd=folder, check=True, timeout=200)
    calculator = MACECalculator(folder / "run.model", default_dtype="float64")
    for atoms in ase.io.read(folder / "evaluated.xyz", ":"):
        found = atoms.arrays["MACE_descriptors"]
        assert found.shape == (27, 8)
        atoms.rotate(50, (1, 2, 3))
        np.testing.assert_allclose(calculator.get_descriptors(atoms), found, atol=1e-7)


def test_lammps_export_needs_neither_mace_nor_us(workshop, two_heads, load, tmp_path):
    atoms = ase.io.read(two_heads / "test.xyz")
    expected, paths = [], []
    for name in ("float32", "float64"):
        dtype = getattr(torch, name)
        path = tmp_path / f"{name}.model"
        path.write_bytes((two_heads / "run.model").read_bytes())
        args = [path, "--head", "hot", "--dtype", name]
        workshop.run(tmp_path, "mace.cli.create_lammps_model", *args)
        model = load(path).to(dtype)
        batch = batch_as(dtype, model, atoms, "hot")
        expected.append(model(dict(batch), compute_virials=True))
        paths.append(f"{path}-lammps.pt")
        torch.save({k: v for k, v in batch.items() if v is not None}, paths[-1] + ".batch")
    subprocess.run([sys.executable, "-c", READ_LAMMPS, *paths], check=True, timeout=200)
    for path, eager, tolerance in zip(paths, expected, (2e-3, 1e-9)):
        out = torch.load(path + ".out", weights_only=True)
        for key, value in (
            ("total_energy_local", eager["energy"]),
            ("forces", eager["forces"]),
            ("virials", eager["virials"]),
        ):
            torch.testing.assert_close(
                out[key].double(), value.detach().double(), rtol=0, atol=tolerance
            )


def test_select_head(workshop, two_heads, load):
    listed = workshop.run(two_heads, "mace.cli.select_head", "--list_heads", "run.model")
    assert "room" in listed
    args = ["--head_name", "hot", "--output_file", "hot.model", "run.model"]
    workshop.run(two_heads, "mace.cli.select_head", *args)
    model, selected = load(two_heads / "run.model"), load(two_heads / "hot.model")
    assert isinstance(selected, ScaleShiftMACE)
    assert selected.heads == ["hot"]
    atoms = ase.io.read(two_heads / "test.xyz")
    expected = model(batch_as(torch.float64, model, atoms, "hot"))
    found = selected(batch_as(torch.float64, selected, atoms, "hot"))
    for key in ("energy", "forces"):
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-10)


def test_convert_device(workshop, single, load):
    args = ["--target_device", "cpu", "--output_file", "cpu.model", "run.model"]
    workshop.run(single, "mace.cli.convert_device", *args)
    one, two = load(single / "run.model"), load(single / "cpu.model")
    assert isinstance(two, ScaleShiftMACE)
    torch.testing.assert_close(two.state_dict(), one.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_restart_goes_on_where_it_stopped(workshop, optimizer):
    folder = workshop.folder(f"restart-{optimizer}")
    options = {"plugin": "gaunt", "ema": True, "correlation": 3, "optimizer": optimizer}
    workshop.train(folder, **options, max_num_epochs=2)
    output = workshop.train(folder, **options, max_num_epochs=3, restart_latest=True)
    assert "Loading checkpoint: ./checkpoints/run_run-1_epoch-1.pt" in output
    assert "Epoch 2:" in output
    assert "Epoch 0:" not in output
    checkpoint = torch.load(folder / "checkpoints/run_run-1_epoch-2.pt", weights_only=False)
    states = checkpoint["optimizer"]["state"].values()
    steps = [state["momentum"] for state in states if "momentum" in state]
    assert ("INFO: Muon for the " in output) == (optimizer == "muon")
    assert len(steps) == (13 if optimizer == "muon" else 0)
    assert all(step.abs().max() > 0 for step in steps)


def label(source, target, calculator, symbols="CHNO"):
    """Write the frames with the foundation model's own energies and forces."""
    frames = []
    for atoms in ase.io.read(source, ":"):
        atoms = atoms[[atom.symbol in symbols for atom in atoms]]
        results = {"forces": calculator.get_forces(atoms)}
        results["energy"] = calculator.get_potential_energy(atoms)
        atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    ase.io.write(target, frames)


E0S_CH = "{1: -10.707211, 6: -48.798080}"


@pytest.mark.parametrize(
    ("symbols", "e0s", "elements", "flags"),
    [
        ("CHNO", E0S, 4, {}),
        ("CH", E0S_CH, 2, {}),
        ("CH", E0S_CH, 4, {"foundation_model_elements": True}),
    ],
    ids=["same_elements", "fewer_elements", "all_elements"],
)
def test_fine_tuning_starts_at_the_foundation(
    workshop, request, single, load, errors, symbols, e0s, elements, flags
):
    folder = workshop.folder(request.node.callspec.id)
    calculator = MACECalculator(single / "run.model", default_dtype="float64")
    for name in ("train.xyz", "valid.xyz"):
        label(single / name, folder / name, calculator, symbols)
    output = workshop.train(
        folder,
        plugin="gaunt",
        foundation_model=str(single / "run.model"),
        multiheads_finetuning=False,
        E0s=e0s,
        lr=1e-4,
        **flags,
    )
    assert errors(output) == {"Default": 0.0}  # the labels are the foundation's own
    model = load(folder / "run.model")
    assert isinstance(model, ScaleShiftMACE)
    assert len(model.atomic_numbers) == elements


@pytest.mark.parametrize("load_readout", [True, False])
def test_fine_tuning_of_one_head(workshop, two_heads, load, errors, load_readout):
    """It starts at that head; ``--foundation_filter_elements=False`` leaves the readouts out."""
    folder = workshop.folder(f"from_hot_{load_readout}")
    calculator = MACECalculator(two_heads / "run.model", default_dtype="float64", head="hot")
    for name in ("train.xyz", "valid.xyz"):
        label(two_heads / name, folder / name, calculator)
    output = workshop.train(
        folder,
        plugin="gaunt",
        foundation_model=str(two_heads / "run.model"),
        foundation_head="hot",
        foundation_filter_elements=load_readout,
        multiheads_finetuning=False,
        lr=0.0,
    )
    assert (errors(output)["Default"] == 0.0) == load_readout
    model, foundation = load(folder / "run.model"), load(two_heads / "run.model")
    assert model.heads == ["Default"]
    torch.testing.assert_close(model.products.state_dict(), foundation.products.state_dict())


def test_multihead_fine_tuning(workshop, single, load, errors):
    folder = workshop.folder("multihead")
    calculator = MACECalculator(single / "run.model", default_dtype="float64")
    for name in ("train.xyz", "valid.xyz"):
        label(single / name, folder / name, calculator)
    output = workshop.train(
        folder,
        plugin="gaunt",
        foundation_model=str(single / "run.model"),
        multiheads_finetuning=True,
        pt_train_file="train.xyz",
        pt_valid_file="valid.xyz",
        num_samples_pt=6,
        filter_type_pt="none",
        subselect_pt="random",
        lr=1e-4,
    )
    assert errors(output) == {"pt_head": 0.0, "Default": 0.0}
    model = load(folder / "run.model")
    assert isinstance(model, ScaleShiftMACE)
    assert sorted(model.heads) == ["Default", "pt_head"]


def test_fine_tuning_a_gaunt_model_needs_the_plugin(workshop, single):
    folder = workshop.folder("no_plugin")
    output = workshop.train(
        folder,
        foundation_model=str(single / "run.model"),
        multiheads_finetuning=False,
        fails=True,
    )
    assert "--plugin gaunt" in output
    assert "Initial:" not in output


def test_plugin_with_stock_blocks_is_the_stock_model(workshop, load):
    models = []
    for name, options in (
        ("without", {}),
        ("with", {"plugin": "gaunt", "gaunt_parametrization": "stock"}),
    ):
        folder = workshop.folder(name)
        workshop.train(
            folder,
            **options,
            interaction="RealAgnosticResidualInteractionBlock",
            interaction_first="RealAgnosticResidualInteractionBlock",
        )
        models.append(load(folder / "run.model"))
    one, two = models
    assert type(one) is type(two)
    assert not isinstance(two, ScaleShiftMACE)
    torch.testing.assert_close(two.state_dict(), one.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("symbols", ["CHNO", "CH"])
def test_a_stock_foundation_is_rewritten(workshop, load, errors, symbols):
    """A training starts at its energies and forces, and leaves a Gaunt model."""
    folder = workshop.folder(f"stock_{symbols}")
    workshop.train(folder, model="MACE")
    stock = folder / "run.model"
    calculator = MACECalculator(stock, default_dtype="float64")
    tuned = workshop.folder(f"from_stock_{symbols}")
    for name in ("train.xyz", "valid.xyz"):
        label(folder / name, tuned / name, calculator, symbols)
    output = workshop.train(
        tuned,
        plugin="gaunt",
        foundation_model=str(stock),
        multiheads_finetuning=False,
        E0s="foundation",
        lr=1e-4,
    )
    assert errors(output) == {"Default": 0.0}
    assert "Stock foundation model, rewritten on layers gaunt:" in output
    model = load(tuned / "run.model")
    assert isinstance(model, ScaleShiftMACE)
    assert set(model.cueq_config.convolution) == {"channelwise"}
    # MACE's own fine-tuning from it goes on as ever
    assert not isinstance(load(stock), ScaleShiftMACE)


def test_a_foundation_without_counterpart_is_refused(workshop):
    folder = workshop.folder("dipoles_stock")
    workshop.train(folder, correlation=4, max_ell=1, max_num_epochs=1)
    output = workshop.train(
        workshop.folder("from_four"),
        plugin="gaunt",
        foundation_model=str(folder / "run.model"),
        multiheads_finetuning=False,
        fails=True,
    )
    assert "its correlation is 4, and the product 'full' takes 1 to 3" in output
    assert "Initial:" not in output


# What docs/mace.md quotes.
REFUSED = [
    ("enable_cueq", True, "can't convert Gaunt layers"),
    ("only_cueq", True, "can't convert Gaunt layers"),
    ("enable_oeq", True, "can't convert Gaunt layers"),
    ("use_so3", True, "gives up parity, which Gaunt layers need"),
    ("radial_type", "chebyshev", "has no derivative in MACE: forces would be wrong"),
    ("model", "MACELES", "needs the package les, which is not on PyPI"),
]


@pytest.mark.parametrize(("option", "value", "message"), REFUSED)
def test_what_cannot_work_is_said_before_training(workshop, option, value, message):
    folder = workshop.folder(option)
    output = workshop.train(folder, plugin="gaunt", fails=True, **{option: value})
    assert message in output
    assert output.count("\n") <= 2  # a word about cuEquivariance, and the sentence
    assert not (folder / "checkpoints").exists()
    assert message in PAGE


def test_wrong_options_are_said_before_training(workshop):
    folder = workshop.folder("wrong")
    for options, message in [
        ({"gaunt_parametrization": "cg"}, "unknown gaunt parametrization 'cg'"),
        ({"gaunt_antisymmetric": "maybe"}, "--gaunt_antisymmetric: expected true or false or"),
        ({"gaunt_convolution_rank": [1, 1.5]}, "expected a whole number or a list of one per"),
        ({"gaunt_antisymmetric": "true"}, "has no antisymmetric products; use 'nested'"),
        ({"gaunt_convolution_rank": "1, 1, 1"}, "got 3 entries for 2 interactions"),
        ({"gaunt_product_rank": 0}, "gaunt product_rank must be a whole number"),
        ({"model": "BOTNet"}, "--plugin gaunt builds --model MACE, ScaleShiftMACE, PolarMACE, "),
        (
            {"model": "AtomicDipolesMACE", "foundation_model": "run.model"},
            "--model AtomicDipolesMACE can't start from a --foundation_model in MACE",
        ),
        ({"hidden_irreps": "4x0e + 4x1e"}, "reaches pseudo degree 1 in irreps_out 4x0e+4x1e"),
    ]:
        output = workshop.train(folder, plugin="gaunt", fails=True, **options)
        assert message in output
        assert "Initial:" not in output


OPTIONS = {
    "parametrization": ["nested", "power"],
    "antisymmetric": [True, False],
    "convolution_rank": [1, 2],
    "convolution": ["aligned"],
}


def _texts(join):
    return {name: join(", ".join(map(str, entries))) for name, entries in OPTIONS.items()}


@pytest.mark.parametrize(
    ("in_file", "on_command_line"),
    [
        (OPTIONS, {}),
        (_texts(str.lower), {}),
        (_texts("[{}]".format), {}),
        ({"convolution_rank": 2, "antisymmetric": False}, _texts("[{}]".format)),
        ({"convolution_rank": [3, 3]}, _texts(lambda text: text.replace(" ", ""))),
    ],
    ids=["lists", "commas", "brackets", "brackets_over_file", "commas_over_list"],
)
def test_options_per_layer(workshop, request, in_file, on_command_line):
    """One entry per layer, as the list of a YAML file or as text, there or on the command line."""
    folder = workshop.folder(request.node.callspec.id)
    settings = {f"gaunt_{name}": value for name, value in in_file.items()}
    words = [w for name, text in on_command_line.items() for w in (f"--gaunt_{name}", text)]
    output = workshop.train(folder, *words, "--dry_run", plugin="gaunt", **settings)
    for name, entries in OPTIONS.items():
        assert f"Gaunt {name}: {', '.join(map(str, (entries * 2)[:2]))}\n" in output


@pytest.mark.parametrize(
    "arguments",
    [
        ("mace.cli.create_lammps_model", "--format", "mliap"),
        ("mace.cli.eval_configs", "--enable_cueq", "--configs=test.xyz", "--output=x", "--model"),
        ("mace.cli.convert_e3nn_cueq",),
        ("mace.cli.convert_cueq_e3nn",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_conversion_to_another_backend_is_refused(workshop, single, arguments):
    output = workshop.run(single, *arguments, "run.model", fails=True)
    assert "Gaunt layers have no cuEquivariance" in output


def test_active_learning(workshop, single, load):
    """MD of MACE's own command, by a committee of two."""
    folder = workshop.folder("active_learning")
    model = load(single / "run.model")
    for name in ("one", "two"):
        torch.save(model, folder / f"{name}.model")
        with torch.no_grad():
            next(model.readouts[0].parameters()).mul_(1.1)
    options = ["--config=test.xyz", "--model=*.model", "--output=md.xyz", "--device=cpu"]
    options += ["--nsteps=2", "--nsave=1", "--error_threshold=1000"]
    workshop.run(folder, "mace.cli.active_learning_md", *options)
    frames = ase.io.read(folder / "md.xyz", ":")
    assert len(frames) == 3
    assert all(atoms.info["mlff_energy_var"] > 0 for atoms in frames)
    assert not np.array_equal(frames[2].positions, frames[0].positions)
