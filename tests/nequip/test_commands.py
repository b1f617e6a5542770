"""NequIP's commands on Gaunt models, from training to the files that other programs read."""

import json
import os
import pickle
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from nequip.data import compute_neighborlist_, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListPruneTransform
from nequip.integrations.ase import NequIPCalculator
from nequip.model.saved_models import load_saved_model

from gaunt_plugin.ops import _operator

from ..once import once
from .conftest import read_metrics, run_command

pytestmark = pytest.mark.training
MODEL = "training_module.model."
TYPES = ["C", "H", "N", "O"]
R_MAX = 4.0
TOLERANCES = {"single": 5e-5, "double": 1e-12}  # the host's, for saved and compiled models
ERRORS = ("total_energy_mae", "per_atom_energy_rmse", "forces_mae", "forces_rmse", "weighted_sum")


@pytest.fixture(params=["single", "double"])
def trained(request):
    """Name and folder of each trained model."""
    return request.param, request.getfixturevalue(request.param)


def frames():
    """A molecule, and a crystal whose cell is smaller than twice the cutoff."""
    crystal = ase.Atoms(
        "CHNO",
        positions=[[0, 0, 0], [1.4, 0.2, 0.3], [0.4, 1.8, 1.6], [2.0, 2.2, 0.4]],
        cell=[[3.6, 0.2, 0.0], [0.1, 3.4, 0.3], [0.0, -0.2, 3.9]],
        pbc=True,
    )
    molecule = ase.io.read(Path(__file__).parents[2] / "examples/3bpa_sample/test_600K.xyz")
    molecule.calc = None
    molecule.set_pbc(False)
    molecule.cell = None
    return [molecule, crystal]


def evaluate(calculator, names=("energy", "forces", "energies", "stress")):
    results = []
    for atoms in frames():
        atoms.calc = calculator
        atoms.get_potential_energy()
        results.append({name: np.array(atoms.calc.results[name]) for name in names})
    del results[0]["stress"]  # no volume
    return results


def assert_same(one, two, tolerance):
    for result, expected in zip(one, two):
        assert result.keys() == expected.keys()
        for key in expected:
            np.testing.assert_allclose(result[key], expected[key], rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="session")
def references(single, double):
    """Results of the checkpoints in this process."""
    results = {}
    for name, folder in (("single", single), ("double", double)):
        calculator = NequIPCalculator._from_saved_model(folder / "out/best.ckpt")
        results[name] = evaluate(calculator)
        assert all(np.abs(result["forces"]).max() > 0.01 for result in results[name])
    return results


@pytest.fixture(scope="session")
def packages(workshop, single, double):
    """model.nequip.zip of each, made in another folder than the training's."""
    running = [
        workshop.start(
            workshop.root,
            "nequip.scripts.package",
            *("build", folder / "out/best.ckpt", folder / "model.nequip.zip"),
            log=f"package_{folder.name}.txt",
        )
        for folder in (single, double)
    ]
    for process in running:
        workshop.finish(process)
    return {"single": single / "model.nequip.zip", "double": double / "model.nequip.zip"}


@pytest.fixture(scope="session")
def torchscript(packages, single, double):
    """model.nequip.pth of each, one from a checkpoint and one from a package."""
    paths = {}
    for name, folder, source in (
        ("single", single, "model.nequip.zip"),
        ("double", double, "out/best.ckpt"),
    ):
        run_command(folder, "gaunt", "nequip-torchscript", source, "model.nequip.pth")
        paths[name] = folder / "model.nequip.pth"
    return paths


@pytest.fixture(scope="session")
def aotinductor(workshop, single):
    """File for pair_nequip. The target for ASE, in both dtypes: test_host_suite.py.

    Made in another folder than the training's.
    """
    arguments = [single / "out/best.ckpt", single / "model.nequip.pt2", "--mode", "aotinductor"]
    arguments += ["--device", "cpu", "--target", "pair_nequip"]
    workshop.run(workshop.root, "nequip.scripts.compile", *arguments)
    return single / "model.nequip.pt2"


def test_training_measures_errors(trained):
    name, folder = trained
    metrics = read_metrics(folder / "out")
    for error in ERRORS:
        assert len(metrics[f"val0_epoch/{error}"]) == 3  # two epochs, and the best model again
        assert len(metrics[f"test0_epoch/{error}"]) == 1
    assert all(np.isfinite(values).all() for values in metrics.values())
    assert len(metrics["train_loss_step/weighted_sum"]) == 6
    losses = metrics["train_loss_epoch/weighted_sum"]
    assert losses[1] < losses[0]
    assert metrics["val0_epoch/weighted_sum"][2] == min(metrics["val0_epoch/weighted_sum"])
    checkpoint = torch.load(folder / "out/last.ckpt", weights_only=False)
    dtypes = {
        value.dtype
        for key, value in checkpoint["state_dict"].items()
        if key.endswith("weight") and key.startswith("model.")
    }
    assert dtypes == {{"single": torch.float32, "double": torch.float64}[name]}


def test_averaged_weights(trained):
    """Validation, calculator and exports use the average over the training (EMA)."""
    _, folder = trained
    state = torch.load(folder / "out/last.ckpt", weights_only=False)["state_dict"]
    model = load_saved_model(folder / "out/last.ckpt")
    prefix = "model.sole_model."
    different = 0
    for number, (name, used) in enumerate(model.named_parameters()):
        average = state[f"ema.ema_weight_{number}"]
        torch.testing.assert_close(used.detach(), average, rtol=0, atol=0, msg=name)
        different += not torch.equal(average, state[prefix + name])
    assert different > number / 2


def test_errors_are_those_of_the_saved_model(references, double):
    metrics = read_metrics(double / "out")
    calculator = NequIPCalculator._from_saved_model(double / "out/best.ckpt")
    errors = []
    for atoms in ase.io.read(double / "examples/3bpa_sample/test_300K.xyz", ":"):
        expected = atoms.get_forces()
        atoms.calc = calculator
        errors.append(atoms.get_forces() - expected)
    found = metrics["test0_epoch/forces_rmse"][0]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(found, rel=1e-6)


MUON = {
    "training_module__optimizer___target_": "gaunt_plugin.optim.Muon",
    "training_module__optimizer__param_groups": "{_target_: gaunt_plugin.optim.param_groups}",
}


@pytest.mark.parametrize("optimizer", [{}, MUON], ids=["adam", "muon"])
def test_restart_goes_on_where_it_stopped(workshop, double, optimizer):
    """Two and two epochs give the weights of four, averages included."""
    options = {
        "training_module__model__model_dtype": "float64",
        "training_module__model__correlation": 2,
        **optimizer,
    }
    name = "muon" if optimizer else "adam"
    whole, parts = workshop.folder(f"whole-{name}"), workshop.folder(f"parts-{name}")
    running = workshop.start(
        whole, "nequip.scripts.train", *workshop.settings(**options, trainer__max_epochs=4)
    )
    workshop.train(parts, **options)
    output = workshop.train(
        parts, **options, trainer__max_epochs=4, ckpt_path="out/last.ckpt", hydra__run__dir="more"
    )
    workshop.finish(running)
    assert "Continuing training with checkpoint file" in output
    states = [
        torch.load(path, weights_only=False)
        for path in (whole / "out/last.ckpt", parts / "more/last.ckpt")
    ]
    assert states[0]["epoch"] == states[1]["epoch"] == 3
    kept = [state["optimizer_states"][0]["state"].values() for state in states]
    assert [sum("momentum" in state for state in of) for of in kept] == 2 * [11 if optimizer else 0]
    one, two = (state["state_dict"] for state in states)
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=1e-14, msg=key)
    assert len(read_metrics(parts / "more")["train_loss_epoch/weighted_sum"]) == 2


def test_two_processes_train_as_one(workshop):
    """Data-parallel training has the loss curve of one process on the summed batch.

    Every step sees all frames: Lightning shuffles them among the processes, whatever is asked for.
    """
    options = {
        "training_module__model__model_dtype": "float64",
        "training_module__model__correlation": 2,
        "training_module__model__parity": True,
        "data__split_dataset__train": 8,
        "data__split_dataset__val": 1,
        "data__val_dataloader__batch_size": 1,
        "trainer__max_epochs": 4,
        "run": "[train]",
    }
    one, two = workshop.folder("one_process"), workshop.folder("two_processes")
    workshop.train(one, **options, data__train_dataloader__batch_size=8)
    parallel = {"trainer__strategy": "ddp", "trainer__devices": 2, "trainer__accelerator": "cpu"}
    settings = workshop.settings(**options, **parallel, data__train_dataloader__batch_size=4)
    output = run_command(two, "nequip-train", *settings)
    assert "MEMBER: 2/2" in output
    assert "distributed_backend=gloo" in output
    assert output.count("CPU kernels: switched off by GAUNT_KERNELS=0") == 1  # by one process
    curves = [read_metrics(folder / "out") for folder in (one, two)]
    for name in ("train_loss_step/weighted_sum", "train_loss_step/forces_mse"):
        expected, found = (curve[name] for curve in curves)
        assert len(expected) == 4
        assert found == pytest.approx(expected, rel=1e-10)
        assert expected[3] != pytest.approx(expected[0], rel=1e-2)
    validation = [curve["val0_epoch/weighted_sum"] for curve in curves]
    assert validation[1] == pytest.approx(validation[0], rel=1e-10)


def test_inspecting_a_package(workshop, packages, single):
    package = packages["single"]
    command = "nequip.scripts.package"
    listed = workshop.run(single, command, "list", package)
    for file in ("nequip/interaction.py", "layers/convolution/aligned.py", "ops/powers.py"):
        assert f"gaunt_plugin/{file}" in listed
    info = workshop.run(single, command, "info", package)
    assert "package_version_id: 2" in info
    assert "gaunt_plugin: 0." in info
    modifiers = workshop.run(single, command, "info", package, "--get-modifiers")
    assert "modify_PerTypeScaleShift" in modifiers
    (path,) = [
        line.split()[1] for line in listed.splitlines() if line.endswith("nequip/interaction.py")
    ]
    assert "(no differences)" in workshop.run(single, command, "diff", package, path)


READ_PACKAGE = """
import importlib.metadata, json, sys
import numpy as np
try:
    import gaunt_plugin
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("gaunt_plugin can be imported")
assert importlib.metadata.version("nequip")
assert not list(importlib.metadata.entry_points(group="nequip.extension"))
import ase.io
from nequip.integrations.ase import NequIPCalculator
calculator = NequIPCalculator._from_saved_model({package!r})
results = []
for atoms in ase.io.read("frames.traj", ":"):
    atoms.calc = calculator
    atoms.get_potential_energy()
    results.append({{k: np.array(v).tolist() for k, v in atoms.calc.results.items()}})
classes = [type(module) for module in calculator.model.modules()]
(block,) = {{c.__module__ for c in classes if c.__name__ == "GauntInteractionBlock"}}
assert block.startswith("<torch_package_") and block.endswith(">.gaunt_plugin.nequip.interaction")
assert not [m for m in sys.modules if m.split(".")[0] in ("gaunt_plugin", "mace")]
with open("results.json", "w") as file:
    json.dump(results, file)
"""


@pytest.fixture(scope="session")
def without_plugin(tmp_path_factory):
    """Runs ``python *arguments`` in an environment with everything but this package."""

    def link(site: Path) -> None:
        for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for entry in Path(folder).iterdir():
                name = entry.name.lower().replace("-", "_")
                ours = name.startswith(("gaunt_plugin", "_gaunt_plugin"))
                if not ours and entry.suffix != ".pth":
                    (site / entry.name).symlink_to(entry)

    site = once(tmp_path_factory, "without_plugin", link)

    def run(folder, *arguments) -> str:
        # -S: no .pth files, which is how an editable install is found.
        done = subprocess.run(
            [sys.executable, "-S", *map(str, arguments)],
            cwd=folder,
            env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def read_without_plugin(without_plugin, package, folder):
    """Results of a package, as those of :func:`evaluate`."""
    ase.io.write(folder / "frames.traj", frames())
    without_plugin(folder, "-c", READ_PACKAGE.format(package=str(package)))
    results = json.loads((folder / "results.json").read_text())
    return [
        {name: np.array(result[name]) for name in ("energy", "forces", "energies", "stress")}
        for result in results
    ]


def test_package_needs_no_plugin(packages, references, trained, without_plugin, tmp_path):
    """In an environment with everything but this package, the results are the same."""
    name, _ = trained
    results = read_without_plugin(without_plugin, packages[name], tmp_path)
    del results[0]["stress"]
    assert_same(results, references[name], 1e-12)


def test_packages_of_packages(workshop, packages, without_plugin):
    """A package fine-tuned, packaged, and that again: with this package installed or not."""
    folder = workshop.folder("fine_tuned")
    package = packages["double"]
    for number, installed in enumerate((False, True)):
        arguments = workshop.settings(trainer__max_epochs=1, hydra__run__dir=f"out{number}")
        arguments = [entry for entry in arguments if not entry.startswith(f"++{MODEL}")]
        model = f"{{_target_: nequip.model.ModelFromPackage, package_path: {package}}}"
        arguments += [f"~{MODEL[:-1]}", f"+{MODEL[:-1]}={model}"]
        build = ["build", f"out{number}/best.ckpt", f"model{number}.nequip.zip"]
        if installed:
            workshop.run(folder, "nequip.scripts.train", *arguments)
            workshop.run(folder, "nequip.scripts.package", *build)
        else:
            without_plugin(folder, "-m", "nequip.scripts.train", *arguments)
            without_plugin(folder, "-m", "nequip.scripts.package", *build)
        checkpoint = evaluate(NequIPCalculator._from_saved_model(folder / build[1]))
        before = evaluate(NequIPCalculator._from_saved_model(package))
        assert np.abs(checkpoint[0]["forces"] - before[0]["forces"]).max() > 1e-4  # it has learned
        package = folder / build[2]
        found = read_without_plugin(without_plugin, package, folder)
        del found[0]["stress"]
        assert_same(found, checkpoint, 1e-12)


def test_content_of_a_package(packages):
    """Our code that the model calls, and no library that stock NequIP does without."""
    with zipfile.ZipFile(packages["double"]) as package:
        names = [name.partition("/")[2] for name in package.namelist()]
        external = package.read(f"{package.namelist()[0].split('/')[0]}/.data/extern_modules")
    ours = {name.split("/")[1] for name in names if name.startswith("gaunt_plugin/")}
    assert {"layers", "nequip", "ops", "sphere"} < ours
    assert not ours & {"mace", "lammps"}
    # Kernels are the installed package's.
    assert not [name for name in names if name.endswith(".cpp")]
    assert sorted(n for n in names if n.startswith("gaunt_plugin/nequip/")) == [
        "gaunt_plugin/nequip/interaction.py",
        "gaunt_plugin/nequip/stock.py",
    ]
    libraries = {name.split(".")[0] for name in external.decode().split()}
    assert libraries - set(sys.stdlib_module_names) == {
        "numpy",
        "opt_einsum_fx",
        "packaging",
        "torch",
    }


def test_calculator_from_a_package(packages, references, trained):
    name, _ = trained
    calculator = NequIPCalculator._from_saved_model(packages[name])
    assert_same(evaluate(calculator), references[name], TOLERANCES[name])


def test_calculator_from_torchscript(torchscript, references, trained, tmp_path):
    """In a fresh process, as a user's: TorchScript keeps all classes of a process in one place."""
    name, _ = trained
    code = f"""
import pickle
from nequip.integrations.ase import NequIPCalculator
from tests.nequip.test_commands import evaluate
calculator = NequIPCalculator.from_compiled_model({str(torchscript[name])!r}, device="cpu")
with open("results", "wb") as file:
    pickle.dump(evaluate(calculator), file)
"""
    root = Path(__file__).parents[2]
    code = f"import sys; sys.path.insert(0, {str(root)!r})\n" + code
    run_command(tmp_path, sys.executable, "-c", code)
    with (tmp_path / "results").open("rb") as file:
        assert_same(pickle.load(file), references[name], TOLERANCES[name])


def lammps_inputs(atoms, cutoffs):
    """What pair_nequip hands over."""
    to_types = ChemicalSpeciesToAtomTypeMapper(TYPES, {name: name for name in TYPES})
    graph = compute_neighborlist_(to_types(from_ase(atoms)), r_max=R_MAX)
    if cutoffs is not None:
        graph = NeighborListPruneTransform(R_MAX, cutoffs, TYPES)(graph)
    shifts = graph.get("edge_cell_shift", torch.zeros(graph["edge_index"].shape[1], 3))
    if not atoms.pbc.any():
        shifts = torch.zeros_like(shifts)  # matscipy 1.1 counts cells here, too
    cell = graph["cell"].view(1, 3, 3) if atoms.pbc.any() else 100 * torch.eye(3).view(1, 3, 3)
    return {
        "pos": graph["pos"].double(),
        "edge_index": graph["edge_index"],
        "atom_types": graph["atom_types"].view(-1),
        "edge_cell_shift": shifts.double(),
        "cell": cell.double(),
    }


READ_FILE = """
import sys, torch
path, file = sys.argv[1:]
inputs = torch.load(file)
if path.endswith(".pth"):
    extra = dict.fromkeys(
        ["r_max", "num_types", "type_names", "allow_tf32", "per_edge_type_cutoff"], ""
    )
    model = torch.jit.load(path, map_location="cpu", _extra_files=extra)
    model.eval()
    results = [model(frame) for frame in inputs]
else:
    import torch._inductor
    model = torch._inductor.aoti_load_package(path)
    extra = model.loader.get_metadata()
    order = ("pos", "edge_index", "atom_types", "cell", "edge_cell_shift")
    names = ("atomic_energy", "forces", "virial")
    results = [dict(zip(names, model([frame[k] for k in order]))) for frame in inputs]
loaded = {"gaunt_plugin", "nequip", "e3nn", "mace", "scipy", "ase"} & set(sys.modules)
assert not loaded, loaded
names = ("atomic_energy", "forces", "virial")
results = [{key: result[key].detach() for key in names} for result in results]
torch.save((dict(extra), results), file + ".out")
"""


def assert_contract(path, folder, cutoffs, tolerance):
    """What `pair_nequip` relies on, in a process that knows only torch; returns the metadata."""
    inputs = [lammps_inputs(atoms, cutoffs) for atoms in frames()]
    expected = []
    model = load_saved_model(folder / "out/best.ckpt").eval()
    for frame in inputs:
        out = model({key: value.clone() for key, value in frame.items()})
        expected.append({key: out[key].detach() for key in ("atomic_energy", "forces", "virial")})
    file = folder / f"{path.name}.inputs"
    torch.save(inputs, file)
    command = [sys.executable, "-I", "-c", READ_FILE, str(path), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    extra, results = torch.load(f"{file}.out", weights_only=False)
    for frame, result, eager in zip(inputs, results, expected):
        atoms = len(frame["pos"])
        shapes = {"atomic_energy": (atoms, 1), "forces": (atoms, 3), "virial": (1, 3, 3)}
        for key, shape in shapes.items():
            assert result[key].shape == shape
            assert result[key].dtype == torch.float64
            torch.testing.assert_close(result[key], eager[key], rtol=tolerance, atol=tolerance)
        assert result["forces"].abs().max() > 0.01
    assert float(extra["r_max"]) == R_MAX
    return {key: v.decode() if isinstance(v, bytes) else v for key, v in extra.items()}


def test_torchscript_file(torchscript, trained):
    name, folder = trained
    cutoffs = {"H": 3.0, "C": {"H": 3.5, "O": 3.8}} if name == "double" else None
    tolerance = {"single": 5e-5, "double": 1e-10}[name]
    extra = assert_contract(torchscript[name], folder, cutoffs, tolerance)
    assert extra["num_types"] == "4"
    assert extra["type_names"] == "C H N O"
    assert extra["allow_tf32"] == "0"
    of_pairs = extra["per_edge_type_cutoff"].split()
    if cutoffs is None:
        assert of_pairs == []
    else:  # [type of the centre, type of the neighbour]
        table = np.array(of_pairs, dtype=float).reshape(4, 4)
        expected = [[4.0, 3.5, 4.0, 3.8], [3.0] * 4, [4.0] * 4, [4.0] * 4]
        np.testing.assert_array_equal(table, expected)


@pytest.mark.skipif(
    torch.__version__.startswith("2.7."),
    reason="AOTInductor of torch 2.7 fixes the number of atoms, of NequIP's own models too",
)
def test_aotinductor_file_for_lammps(aotinductor):
    extra = assert_contract(aotinductor, aotinductor.parent, None, 5e-5)
    assert extra["num_types"] == "4"
    assert extra["type_names"] == "C H N O"


@pytest.mark.skipif(
    os.environ.get("GAUNT_TEST_ALL") != "1", reason="two minutes of a compiler: GAUNT_TEST_ALL=1"
)
@pytest.mark.parametrize("source", ["out/best.ckpt", "model.nequip.zip"])
def test_aotinductor_file_with_kernels(
    workshop, single, packages, source, references, kernels, monkeypatch
):
    """NequIP imports the operators when it loads the file."""
    file = single / f"kernels_{Path(source).suffix[1:]}.nequip.pt2"
    arguments = [source, file.name, "--mode", "aotinductor", "--target", "ase"]
    arguments += ["--device", "cpu", "--modifiers", "enable_GauntKernels"]
    workshop.run(single, "nequip.scripts.compile", *arguments)
    calculator = NequIPCalculator.from_compiled_model(file, device="cpu")
    calls, call = [], _operator.call
    monkeypatch.setattr(_operator, "call", lambda *args: (calls.append(args[0]), call(*args)))
    assert_same(evaluate(calculator), references["single"], TOLERANCES["single"])
    assert {"convolution", "edge_frames"} <= set(calls)


KERNELS_OF_BOTH = """
import sys
import torch
from e3nn.util.jit import script
from nequip.model.modify_utils import modify
from nequip.model.saved_models import load_saved_model
from nequip.model.saved_models.package import data_dict_from_package
from nequip.utils.global_state import set_global_state
set_global_state()
data = data_dict_from_package(sys.argv[1])
for path in sys.argv[1:]:
    model = load_saved_model(path).eval()
    expected = model(data.copy())
    program = script(modify(model, [{"modifier": "enable_GauntKernels"}]))
    assert "gaunt::" in str(program.inlined_graph)
    found = program(data.copy())
    for key in ("total_energy", "forces"):
        torch.testing.assert_close(found[key], expected[key], rtol=5e-5, atol=5e-5)
"""


def test_kernels_of_a_package(packages, single, kernels):
    """Its programs call the installed kernels, and so do those of a checkpoint afterwards.

    In a process of its own, where nothing has registered the operators before.
    """
    run_command(single, sys.executable, "-c", KERNELS_OF_BOTH, packages["single"], "out/best.ckpt")


def test_torchscript_command_refuses_mode(workshop, single):
    arguments = "nequip-torchscript", "out/best.ckpt", "x.nequip.pth", "--mode", "aotinductor"
    output = workshop.run(single, "gaunt_plugin.cli", *arguments, fails=True)
    assert "leave out --mode" in output


class Exchange:
    """LAMMPS' side of ML-IAP: local atoms, ghosts that copy them, and edges between these."""

    def __init__(self, atoms) -> None:
        inputs = lammps_inputs(atoms, None)
        centre, neighbour = inputs["edge_index"]
        images = {}  # ghost of each neighbour in another cell
        owner = list(range(len(atoms)))
        index = []
        for j, shift in zip(neighbour.tolist(), inputs["edge_cell_shift"].tolist()):
            if not any(shift):
                index.append(j)
                continue
            if (j, *shift) not in images:
                images[(j, *shift)] = len(owner)
                owner.append(j)
            index.append(images[(j, *shift)])
        self.owner = torch.tensor(owner)
        self.nlocal, self.ntotal = len(atoms), len(owner)
        self.pair_i, self.pair_j = centre.numpy(), np.array(index)
        self.npairs = len(index)
        x, moved = inputs["pos"], inputs["edge_cell_shift"] @ inputs["cell"][0]
        self.rij = (x[neighbour] + moved - x[centre]).numpy()
        self.elems = inputs["atom_types"][self.owner].numpy()
        self.eatoms = np.zeros(self.nlocal)
        self.exchanged = []

    def forward_exchange(self, source, target, width) -> None:
        self.exchanged.append(width)
        target.copy_(source[self.owner])

    def reverse_exchange(self, source, target, width) -> None:
        target.zero_()
        target.index_add_(0, self.owner, source)

    def update_pair_forces_gpu(self, pairs) -> None:
        forces = torch.zeros(self.ntotal, 3, dtype=pairs.dtype)
        forces.index_add_(0, torch.as_tensor(self.pair_i), pairs)
        forces.index_add_(0, torch.as_tensor(self.pair_j), -pairs)
        self.forces = torch.zeros(self.nlocal, 3, dtype=pairs.dtype)
        self.forces.index_add_(0, self.owner, forces)


MLIAP = '''
"""The class that the package `lammps` brings, where it is not installed."""


class MLIAPUnified:
    def __init__(self, interface=None, element_types=None, ndescriptors=None, nparams=None,
                 rcutfac=None):
        self.interface = interface
        self.element_types = element_types
        self.ndescriptors = ndescriptors
        self.nparams = nparams
        self.rcutfac = rcutfac
'''


def test_file_for_mliap(single, references, tmp_path, monkeypatch):
    """`nequip-prepare-lmp-mliap`, then LAMMPS' calls of the model with ghosts in Python."""
    try:
        import lammps.mliap.mliap_unified_abc  # noqa: F401
    except ModuleNotFoundError:
        package = tmp_path / "lammps" / "mliap"
        package.mkdir(parents=True)
        for folder in (package, package.parent):
            (folder / "__init__.py").touch()
        (package / "mliap_unified_abc.py").write_text(MLIAP)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run_command(
        single, "nequip-prepare-lmp-mliap", "out/best.ckpt", "model.nequip.lmp.pt", "--no-compile"
    )
    model = torch.load(single / "model.nequip.lmp.pt", weights_only=False)
    assert model.element_types == TYPES
    assert model.rcutfac == R_MAX / 2
    for atoms, expected in zip(frames(), references["single"]):
        data = Exchange(atoms)
        model.compute_forces(data)
        np.testing.assert_allclose(data.energy.item(), expected["energy"], rtol=5e-5)
        np.testing.assert_allclose(data.eatoms, expected["energies"], rtol=5e-5, atol=5e-5)
        np.testing.assert_allclose(data.forces, expected["forces"], rtol=5e-5, atol=5e-5)
    assert data.ntotal > data.nlocal
    assert data.exchanged == [16]  # before the second layer: 4x0e+4x1o


def test_wrong_options_are_said_in_one_sentence(workshop):
    folder = workshop.folder("wrong")
    for options, message in [
        ({"parametrization": "cg"}, "ValueError: unknown parametrization 'cg'; possible:"),
        (
            {"convolution_rank": 0},
            "ValueError: convolution_rank must be a whole number, at least 1, got 0",
        ),
        ({"correlation": "[2]"}, "ValueError: correlation must have one entry for each of the 2"),
    ]:
        options = {f"training_module__model__{key}": value for key, value in options.items()}
        output = workshop.train(folder, **options, fails=True)
        assert message in output
        assert "TRAIN RUN START" not in output
