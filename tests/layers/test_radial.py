"""Convolutions that apply the last layer of the radial network themselves."""

import functools

import pytest
import torch

from gaunt_plugin.kernels import ops, radial
from gaunt_plugin.layers import aligned

from ..tolerances import assert_close
from . import cases
from .test_edge_blocks import assert_same, derivatives
from .test_kernels import passes


@pytest.fixture
def blocks(kernels, monkeypatch):
    """Kernels, with that many edges per block; the number of edges of each call."""
    monkeypatch.setattr(aligned, "STORED", 0)

    def set_size(layer, edges):
        found, call = [], radial._call.call

        def counting(name, program, sizes, *args):
            if name == "convolution":
                found.append(sizes[1])
            call(name, program, sizes, *args)

        monkeypatch.setattr(radial._call, "call", counting)
        numbers = edges * layer.weight_numel
        monkeypatch.setattr(radial, "_BLOCK", numbers // torch.get_num_threads())
        return found

    return set_size


def layer_and_inputs(name, edges=10, width=3):
    """A layer, arguments that are not indices, and the edges."""
    layer = cases.BUILD[name]()
    x, attrs, weights, index = cases.arguments(layer, cases.inputs(layer, edges=edges))
    hidden, mixing = torch.randn(edges, width), torch.randn(width, weights.shape[1])
    return layer, [x, attrs, hidden, mixing], index


def apply(layer, index, x, attrs, hidden, mixing):
    return layer(x, attrs, hidden, index, mixing)


@pytest.mark.parametrize("name", cases.CONVOLUTIONS)
def test_is_a_product_of_matrices(name):
    layer, (x, attrs, hidden, mixing), index = layer_and_inputs(name)
    expected = layer(x, attrs, hidden @ mixing, index)
    assert_close(layer(x, attrs, hidden, index, mixing), expected, "oracle")
    program = torch.jit.script(layer)
    assert_close(program(x, attrs, hidden, index, mixing), expected, "program")
    assert_close(program(x, attrs, hidden @ mixing, index), expected, "program")


@pytest.mark.parametrize("name", [n for n in cases.CONVOLUTIONS if n.startswith("aligned")])
def test_blocks_of_edges(name, kernels, blocks):
    layer, inputs, index = layer_and_inputs(name)
    calls = blocks(layer, 4)
    run = functools.partial(apply, layer, index)
    found = passes(run, inputs)
    assert calls == 3 * [4, 4, 2]
    third = derivatives(run, [t.requires_grad_() for t in inputs])
    kernels(False)
    assert_same(found, passes(run, inputs))
    assert_same(third, derivatives(run, inputs))


def test_derivatives_by_differences(blocks):
    layer, inputs, index = layer_and_inputs("aligned", edges=5)
    blocks(layer, 2)
    run = functools.partial(apply, layer, index)
    inputs = [t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("leaf", [True, False])
def test_forces_leave_out_the_gradient_of_the_layer(leaf, kernels, blocks, monkeypatch):
    """What isn't asked for costs nothing; what is asked for comes, whatever the other passes."""
    layer, inputs, index = layer_and_inputs("aligned")
    blocks(layer, 4)
    x, attrs, hidden, parameter = [t.requires_grad_() for t in inputs]
    mixing = parameter if leaf else parameter * 2
    needed, gradient = [], radial.gradient
    monkeypatch.setattr(
        radial, "gradient", lambda *args: needed.append(args[-1]) or gradient(*args)
    )

    def all_gradients():
        out = apply(layer, index, x, attrs, hidden, mixing).sin().sum()
        forces = torch.autograd.grad(out, attrs, create_graph=True)[0]
        (forces.square().sum() + out).backward(retain_graph=not leaf)
        found = [forces, *(t.grad for t in (x, attrs, hidden, parameter))]
        x.grad = attrs.grad = hidden.grad = parameter.grad = None
        return found

    found = all_gradients()
    assert needed == [False, True]
    kernels(False)
    assert_same(found, all_gradients())


@pytest.mark.parametrize("edges", [0, 1])
def test_few_edges(edges, kernels, blocks):
    layer, inputs, index = layer_and_inputs("aligned", edges=edges)
    blocks(layer, 1)
    found = passes(functools.partial(apply, layer, index), inputs)
    kernels(False)
    for a, b in zip(found, passes(functools.partial(apply, layer, index), inputs), strict=True):
        assert_close(a, b, "program")


def test_few_weights_are_stored(kernels, monkeypatch):
    layer, inputs, index = layer_and_inputs("aligned")
    monkeypatch.setattr(radial, "forward", None)
    passes(functools.partial(apply, layer, index), inputs)


@pytest.mark.parametrize("name", ["aligned", "aligned scalars"])
def test_programs(name, kernels, blocks):
    layer, inputs, index = layer_and_inputs(name)
    expected = passes(functools.partial(apply, layer, index), inputs)
    calls = blocks(layer, 4)
    ops.put_into_programs(layer)
    program = torch.jit.script(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    out = apply(compiled, index, *inputs)
    assert calls == [4, 4, 2]
    assert_close(out, expected[0], "program")
    assert_same(passes(functools.partial(apply, program, index), inputs), expected)
    assert calls == 4 * [4, 4, 2]


def test_bad_arguments():
    layer, (x, attrs, hidden, mixing), index = layer_and_inputs("aligned")
    with pytest.raises(ValueError, match=rf"mixing must be \[3, {layer.weight_numel}\], got \[3, "):
        layer(x, attrs, hidden, index, mixing[:, 1:])
    with pytest.raises(ValueError, match=r"weights must be \[10, 3\], got \[9, 3\]"):
        layer(x, attrs, hidden[1:], index, mixing)
    with pytest.raises(ValueError, match=r"weights and mixing .*one dtype.*float64 and .*float32"):
        layer(x, attrs, hidden, index, mixing.float())
