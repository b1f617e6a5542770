"""Constant tables stay exact, weights travel."""

import copy
import io
import pickle

import pytest
import torch

from . import cases


def tables(layer):
    found = dict(layer.named_buffers())
    assert found
    return found


def assert_same_tables(layer, reference):
    expected = tables(reference)
    assert tables(layer).keys() == expected.keys()
    for name, table in tables(layer).items():
        assert table.dtype == expected[name].dtype, name
        assert torch.equal(table, expected[name]), name


def saved(layer):
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "torch.save": saved,
}


@pytest.mark.parametrize("name", cases.NAMES)
def test_casting_back_and_forth_keeps_tables_exact(name):
    layer, reference = cases.BUILD[name](), cases.BUILD[name]()
    assert_same_tables(layer.float().double(), reference)
    assert_same_tables(layer.half().to(torch.float64), reference)
    assert_same_tables(layer.bfloat16().float(), reference.float())


@pytest.mark.parametrize("name", cases.NAMES)
def test_tables_built_in_float32_are_exact_in_float64(name):
    reference = cases.BUILD[name]()
    torch.set_default_dtype(torch.float32)
    layer = cases.BUILD[name]()
    assert all(w.dtype == torch.float32 for w in layer.parameters())
    assert_same_tables(layer, copy.deepcopy(reference).float())
    assert_same_tables(layer.double(), reference)


def test_casting_a_model_that_contains_layers():
    model = torch.nn.Sequential(*(build() for build in cases.BUILD.values()))
    reference = copy.deepcopy(model)
    assert_same_tables(model.float().double(), reference)


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("name", cases.NAMES)
def test_copies_are_exact_and_stay_so(name, copied):
    layer = cases.BUILD[name]()
    twin = copied(layer)
    inputs = cases.inputs(layer)
    assert torch.equal(cases.run(twin, inputs), cases.run(layer, inputs))
    assert_same_tables(twin, layer)
    assert_same_tables(twin.float().double(), layer)
    assert_same_tables(copied(copied(layer).float()).double(), layer)


@pytest.mark.parametrize("name", cases.NAMES)
def test_state_dict_holds_weights_only(name):
    layer = cases.BUILD[name]()
    state = layer.state_dict()
    assert state.keys() == dict(layer.named_parameters()).keys()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    torch.manual_seed(1)
    other = cases.BUILD[name]()
    inputs = cases.inputs(layer)
    if state:
        assert not torch.equal(cases.run(other, inputs), cases.run(layer, inputs))
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(cases.run(other, inputs), cases.run(layer, inputs))


@pytest.mark.parametrize("name", cases.NAMES)
def test_meta_device(name):
    """Shapes without values, and the values again from the state dict."""
    layer = cases.BUILD[name]()
    inputs = cases.inputs(layer)
    expected, state = cases.run(layer, inputs), copy.deepcopy(layer.state_dict())
    arguments = [t.to("meta") for t in cases.arguments(layer, inputs)]
    layer.to("meta")
    assert all(t.is_meta for t in [*layer.parameters(), *layer.buffers()])
    assert layer(*arguments).shape == expected.shape
    layer.to_empty(device="cpu").load_state_dict(state)
    assert_same_tables(layer, cases.BUILD[name]())
    assert torch.equal(cases.run(layer, inputs), expected)


@pytest.mark.parametrize("name", cases.NAMES)
def test_repr_names_the_irreps(name):
    layer = cases.BUILD[name]()
    assert all(str(irreps) in repr(layer) for irreps in cases.irreps_in(layer))
    assert str(layer.irreps_out) in repr(layer)


@pytest.mark.parametrize("name", cases.NAMES)
def test_pickles_hold_public_paths(name):
    """``gaunt_plugin.layers.X`` and ``gaunt_plugin.ops.X``: files may move."""
    import pickletools

    found = set()
    for opcode, argument, _ in pickletools.genops(pickle.dumps(cases.BUILD[name](), protocol=2)):
        if opcode.name == "GLOBAL" and argument.startswith("gaunt_plugin"):
            found.add(argument.split(" ")[0])
    assert found
    assert found <= {"gaunt_plugin.layers", "gaunt_plugin.ops"}
