"""The C++ kernel of the powers in the many-body product against the plain path."""

import copy
import pickle

import pytest
import torch

from gaunt_plugin.kernels import _call
from gaunt_plugin.layers import GauntManyBody
from gaunt_plugin.layers.many_body import _Powers

from ..tolerances import assert_close
from .test_kernels import passes

ELEMENTS = 3
# irreps, correlation, parametrization, views, channels, nodes
CASES = {
    "power": ("0e+1o+2e+3o", "0e+1o+2e", 3, "power", 4, 20, 3),
    "one view": ("0e+1o+2e", "0e+1o", 4, "power", 1, 8, 2),
    "three views, gaps": ("1o+3o", "0e+2e", 2, "power", 3, 9, 3),
    "even only": ("0e+2e", "0e+2e+4e", 3, "power", 2, 3, 5),
    "odd output only": ("0e+1o", "1o", 2, "power", 2, 5, 2),
    "odd input only": ("1o", "1o+3o", 3, "paper", 1, 5, 2),
    "paper": ("0e+1o+2e", "0e+1o", 5, "paper", 1, 13, 2),
    "paper, even only": ("0e+2e", "0e+2e", 3, "paper", 1, 4, 2),
    "nested, many outputs": ("0e+1o+2e", "0e+1o+2e+3o+4e+5o+6e", 3, "nested", 3, 7, 2),
    "correlation 8": ("0e+1o", "0e+1o", 8, "power", 2, 1, 2),
    "one node": ("0e+1o+2e+3o", "0e+1o", 3, "power", 4, 16, 1),
    "no nodes": ("0e+1o", "0e+1o", 3, "power", 4, 8, 0),
}


@pytest.fixture(autouse=True)
def _kernels(kernels):
    pass


@pytest.fixture
def calls(monkeypatch):
    """Names of the kernel's functions that run."""
    names = []
    run = _call.call

    def record(name, *args):
        names.append(name)
        return run(name, *args)

    monkeypatch.setattr(_call, "call", record)
    return names


def layer_of(name):
    irreps_in, irreps_out, correlation, parametrization, views, channels, nodes = CASES[name]
    many = ["+".join(f"{channels}x{ir}" for ir in s.split("+")) for s in (irreps_in, irreps_out)]
    layer = GauntManyBody(*many, correlation, ELEMENTS, parametrization, views, method="grid")
    return layer, torch.randn(nodes, channels, layer.dims_in), torch.rand(nodes, ELEMENTS)


def powers_of(layer):
    (powers,) = [order for order in layer.orders if type(order) is _Powers]
    return powers


def derivatives(layer, x, node_attrs):
    """Value, gradient and second derivatives, in all that the layer depends on."""
    inputs = [x, node_attrs, *layer.parameters()]
    return passes(lambda x, node_attrs, *_: layer(x, node_attrs), inputs)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_kernel_gives_the_plain_numbers(name, dtype, calls, kernels):
    layer, x, node_attrs = layer_of(name)
    case = powers_of(layer).to(dtype), x.to(dtype), node_attrs.to(dtype)
    ours = derivatives(*case)
    assert calls == ["powers"] * 3
    kernels(False)
    plain = derivatives(*case)
    assert len(calls) == 3
    for a, b in zip(ours, plain, strict=True):
        assert_close(a, b, "program" if dtype == torch.float64 else "program32")


@pytest.mark.parametrize("name", ["power", "paper", "nested, many outputs", "three views, gaps"])
def test_second_derivatives_of_the_layer(name, calls):
    layer, x, node_attrs = layer_of(name)
    parameters = dict(layer.named_parameters())

    def function(x, node_attrs, *weights):
        new = dict(zip(parameters, weights, strict=True))
        return torch.func.functional_call(layer, new, (x, node_attrs))

    inputs = [t.clone().requires_grad_() for t in (x[:2], node_attrs[:2])]
    inputs += [p.detach().requires_grad_() for p in parameters.values()]
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)
    assert calls


def test_third_derivatives(kernels):
    layer, x, node_attrs = layer_of("power")

    def third():
        at = x.clone().requires_grad_()
        total = layer(at, node_attrs).pow(3).sum()
        for _ in range(3):
            (at_order,) = torch.autograd.grad(total, at, create_graph=True)
            total = at_order.pow(2).sum()
        return at_order

    ours = third()
    kernels(False)
    assert_close(ours, third(), "program")


@pytest.mark.parametrize("name", ["power", "one node"])
def test_threads_give_the_same_numbers(name):
    layer, x, node_attrs = layer_of(name)
    one = derivatives(powers_of(layer), x, node_attrs)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = derivatives(powers_of(layer), x, node_attrs)
    finally:
        torch.set_num_threads(before)
    # Sums over nodes are torch's: the gradients of the weights.
    weights = {1 + i for i in range(2, 4)} | {len(one) - 1, len(one) - 2}
    for i, (a, b) in enumerate(zip(one, two, strict=True)):
        assert_close(a, b, "program" if i in weights else "exact")


def test_strided_input(kernels):
    layer, x, node_attrs = layer_of("power")
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    ours = derivatives(layer, strided, node_attrs)
    kernels(False)
    for a, b in zip(ours, derivatives(layer, x, node_attrs), strict=True):
        assert_close(a, b, "program")


def test_copies_of_a_layer_have_the_kernel_and_old_ones_do_without(calls):
    layer, x, node_attrs = layer_of("power")
    expected = layer(x, node_attrs)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        calls.clear()
        assert_close(other(x, node_attrs), expected, "exact")
        assert calls
    # as pickled before there were kernels
    del powers_of(layer).__dict__["problem"]
    calls.clear()
    assert_close(layer(x, node_attrs), expected, "program")
    assert_close(torch.jit.script(layer)(x, node_attrs), expected, "program")
    assert not calls


def test_fourier_has_no_kernel(calls):
    layer = GauntManyBody("0e+1o", "0e+1o", 3, ELEMENTS, method="fourier")
    layer(torch.randn(2, 1, 4), torch.rand(2, ELEMENTS))
    assert not calls


def test_a_dtype_that_does_not_fit_takes_the_plain_path(calls):
    layer, x, node_attrs = layer_of("power")
    layer, x, node_attrs = layer.float(), x.float(), node_attrs.float()
    expected = layer(x, node_attrs)
    calls.clear()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x, node_attrs)
    assert (out - expected).norm() < 0.1 * expected.norm()
    assert not calls
