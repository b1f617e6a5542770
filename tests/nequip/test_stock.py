"""NequIP's own models with our kernels in the place of their convolutions."""

import copy
import functools
import sys
from unittest import mock

import ase
import pytest
import torch
from e3nn.util.jit import script
from nequip.data import AtomicDataDict
from nequip.integrations.ase import NequIPCalculator
from nequip.model import NequIPGNNModel
from nequip.model.modify_utils import get_all_modifiers, modify
from nequip.nn import InteractionBlock
from omegaconf import OmegaConf

from gaunt_plugin.deploy.program import run_as_written
from gaunt_plugin.nequip import GauntNequIPGNNModel
from gaunt_plugin.nequip.interaction import GauntInteractionBlock
from gaunt_plugin.nequip.stock import StockInteractionBlock
from gaunt_plugin.ops import PathConvolution, _operator

from .conftest import CONFIGS, SMALL, read_metrics, run_command
from .test_models import (
    OPTIONS,
    assert_same,
    crystal,
    evaluate,
    make_graph,
    make_model,
    molecule,
    named_gradients,
)

KERNELS = [{"modifier": "enable_GauntKernels"}]
MODELS = {
    f"l_max {l_max}, {parities}": {"l_max": l_max, "parity": parities == "both"}
    for l_max in (1, 2, 3)
    for parities in ("natural", "both")
}
MODELS |= {
    "features per degree": {"num_features": [5, 1, 3], "parity": True, "num_layers": 3},
    "scalars": {"l_max": 0},
    "neighbours of each type": {"avg_num_neighbors": {"H": 4.0, "C": 7.0, "O": 5.0}},
    "cutoff of each pair": {"per_edge_type_cutoff": {"H": 2.0, "C": {"H": 2.5, "C": 3.0}}},
    "deep radial network": {"radial_mlp_depth": 3},
    "linear radial network": {"radial_mlp_depth": 0},
}


def with_kernels(model):
    return modify(copy.deepcopy(model), KERNELS)


def structures():
    alone = ase.Atoms("H", positions=[[0, 0, 0]])
    return molecule(), crystal(), alone


@pytest.mark.parametrize("name", MODELS)
def test_same_numbers(name, kernels):
    """Energies, forces, stress and the gradients of a training step; the same state dict."""
    stock = make_model(NequIPGNNModel, **MODELS[name])
    model = with_kernels(stock)
    assert not any(isinstance(module, InteractionBlock) for module in model.modules())
    state, expected = model.state_dict(), stock.state_dict()
    assert list(state) == list(expected)
    stock.load_state_dict(state)
    model.load_state_dict(expected)
    operator = PathConvolution.operator
    with mock.patch.object(operator, "eagerly", side_effect=operator.eagerly) as calls:
        for atoms in structures():
            one, two = evaluate(model, atoms), evaluate(stock, atoms)
            for key, values in two.items():
                error, size = (one[key] - values).abs().max(), values.abs().max()
                assert error <= 1e-10 * size, key
        found = named_gradients(model, molecule(), crystal())
    assert calls.call_count
    gradients = named_gradients(stock, molecule(), crystal())
    assert found.keys() == gradients.keys()
    for key, values in gradients.items():
        assert (found[key] - values).abs().max() <= 1e-10 * values.abs().max(), key


def test_float32(kernels):
    stock = make_model(NequIPGNNModel, l_max=3, parity=True, model_dtype="float32")
    model = with_kernels(stock)
    for atoms in structures()[:2]:
        one, two = evaluate(model, atoms), evaluate(stock, atoms)
        for key in two:
            assert (one[key] - two[key]).abs().max() <= 1e-5 * two[key].abs().max(), key


def test_without_built_kernels_there_is_an_error(kernels):
    kernels(False)
    model = make_model(NequIPGNNModel)
    with pytest.raises(ValueError, match="run gaunt build kernels"):
        modify(model, KERNELS)
    assert sum(isinstance(module, InteractionBlock) for module in model.modules()) == 2


def test_kernels_of_a_gpu_are_enough(monkeypatch):
    """The model is on the CPU while it is modified; there it takes the plain form."""
    stock = make_model(NequIPGNNModel)
    of_gpu = _operator.KERNELS["cuda"]._replace(ready=lambda device: True)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setitem(_operator.KERNELS, "cuda", of_gpu)
        model = with_kernels(stock)
    assert sum(isinstance(module, StockInteractionBlock) for module in model.modules()) == 2
    assert_same(evaluate(model, molecule()), evaluate(stock, molecule()))


def test_stock_and_gaunt_layers_together(kernels):
    """NequIP wants one function of a name in a model."""
    mixed = make_model(GauntNequIPGNNModel, num_layers=3, gaunt_layers=[1])
    assert "enable_GauntKernels" in get_all_modifiers(mixed)
    model = with_kernels(mixed)
    blocks = [m for m in model.modules() if isinstance(m, GauntInteractionBlock)]
    stock = [type(block) is StockInteractionBlock for block in blocks]
    assert stock == [True, False, True]
    assert_same(evaluate(model, molecule()), evaluate(mixed, molecule()))
    again = with_kernels(model)
    assert_same(evaluate(again, molecule()), evaluate(mixed, molecule()))


@pytest.mark.parametrize("in_program", [False, True])
def test_graph_field_reaches_the_self_connection(in_program, kernels):
    """Atoms of one type have other attributes in another graph."""
    embed = [{"field": "charge", "num_features": 3, "min": -1, "max": 1}]
    stock = make_model(NequIPGNNModel, categorical_graph_field_embed=embed, num_layers=3)
    model = with_kernels(stock)
    if in_program:
        model = script(model)
    graphs = []
    for charge in (0, 1):
        graph = make_graph(molecule())
        graph["charge"] = torch.tensor([[charge]])
        graphs.append(graph)
    batch = AtomicDataDict.batched_from_list(graphs)
    expected = stock(batch.copy())["total_energy"]
    assert (expected[0] - expected[1]).abs() > 1e-3
    with run_as_written():
        found = model(batch.copy())["total_energy"]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["l_max 2, both", "features per degree"])
def test_torchscript(name, kernels):
    stock = make_model(NequIPGNNModel, **MODELS[name])
    changed = with_kernels(stock)
    assert "gaunt_plugin.ops" in changed.metadata["nequip_custom_ops_libs"]
    program = script(changed)
    code = [module.code for module in program.modules() if hasattr(module, "code")]
    assert sum(text.count("ops.gaunt.channelwise_convolution(") for text in code) >= 2
    with run_as_written():
        for atoms in structures():
            assert_same(evaluate(program, atoms), evaluate(stock, atoms))


def test_train_time_compile(kernels, monkeypatch):
    """NequIP's ``compile_mode: compile``: every parameter's gradient, as in eager training."""
    compiler = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", compiler)
    small = {"num_features": 2, "radial_mlp_width": 4, "num_bessels": 3}
    config = {"_target_": "nequip.model.NequIPGNNModel", **OPTIONS, **small}
    molecules = (molecule(), molecule()[:5])  # with one, NequIP compiles nothing
    expected = named_gradients(make_model(NequIPGNNModel, **small), *molecules)
    model = modify({**config, "compile_mode": "compile"}, KERNELS)  # as a configuration has it
    for _ in range(2):
        found = named_gradients(model, *molecules)
    assert len(model._compiled_cache[0]) == 1
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert (found[name] - values).abs().max() <= 1e-8 * values.abs().max(), name


def train(workshop, folder, modified):
    """Two epochs of the small quickstart with NequIP's model."""
    config = OmegaConf.load(CONFIGS / "quickstart.yaml")
    for key, value in SMALL.items():
        OmegaConf.update(config, key, value, merge=False)
    config.training_module.model["_target_"] = "nequip.model.NequIPGNNModel"
    config.training_module.model.model_dtype = "float64"
    config.training_module.model.parity = True
    if modified:
        config.training_module.model = {
            "_target_": "nequip.model.modify",
            "modifiers": KERNELS,
            "model": config.training_module.model,
        }
    OmegaConf.save(config, folder / "stock.yaml")
    workshop.run(folder, "nequip.scripts.train", "-cp", folder, "-cn", "stock")
    return read_metrics(folder / "out"), folder / "out" / "best.ckpt"


PACKAGE = """
import sys
import torch
from nequip.model.modify_utils import modify
from nequip.model.saved_models import load_saved_model
from nequip.model.saved_models.package import data_dict_from_package
from nequip.utils.global_state import set_global_state
set_global_state()
data = data_dict_from_package(sys.argv[1])
model = load_saved_model(sys.argv[1]).eval()
expected = model(data.copy())
names = {type(m).__module__ for m in model.modules() if type(m).__name__ == "InteractionBlock"}
assert len(names) == 1 and names.pop().startswith("<torch_package_")
keys = list(model.state_dict())
model = modify(model, [{"modifier": "enable_GauntKernels"}])
assert list(model.state_dict()) == keys
blocks = [type(m).__module__ for m in model.modules() if "InteractionBlock" in type(m).__name__]
assert blocks == 2 * ["gaunt_plugin.nequip.stock"], blocks
found = model(data.copy())
for key in ("total_energy", "forces"):
    torch.testing.assert_close(found[key], expected[key], rtol=1e-10, atol=1e-10)
"""


@pytest.mark.training
def test_training_checkpoint_and_package(workshop, kernels):
    """As a configuration asks for it; the checkpoint is one of a stock model, its package too."""
    folders = [workshop.folder(name) for name in ("stock", "stock_with_kernels")]
    (curve, path), (found, modified) = (
        train(workshop, folder, modified) for folder, modified in zip(folders, (False, True))
    )
    assert found.keys() == curve.keys()
    for name, values in curve.items():
        assert found[name] == pytest.approx(values, rel=1e-8), name
    states = [torch.load(p, weights_only=False)["state_dict"] for p in (path, modified)]
    assert list(states[0]) == list(states[1])
    # NequIP leaves such modifiers out when it loads a checkpoint: they are asked for anew.
    atoms, energies = molecule(), []
    for checkpoint in (path, modified):
        atoms.calc = NequIPCalculator._from_saved_model(checkpoint)
        energies.append(atoms.get_potential_energy())
        modify(atoms.calc.model, KERNELS)
        blocks = [type(m).__name__ for m in atoms.calc.model.modules()]
        assert blocks.count("StockInteractionBlock") == 2
        atoms.calc.reset()
        energies.append(atoms.get_potential_energy())
    assert energies == pytest.approx([energies[0]] * 4, rel=1e-10)

    command = "nequip.scripts.package"
    workshop.run(folders[1], command, "build", modified, "model.nequip.zip")
    run_command(folders[1], sys.executable, "-c", PACKAGE, "model.nequip.zip")
    listed = workshop.run(folders[1], command, "info", "model.nequip.zip", "--get-modifiers")
    assert "enable_GauntKernels" in listed
