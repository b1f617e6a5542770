"""Compiled kernels in programs: operators that TorchScript, torch.compile and make_fx keep."""

import copy
import io

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from gaunt_plugin.kernels import _call, ops

from ..tolerances import assert_close
from . import cases
from .test_kernels import ALIGNED, passes

NAMES = [*ALIGNED, "power", "paper", "gaps", "nested"]


def prepared(name):
    """A layer, a copy prepared for programs, arguments, and those that are not indices."""
    layer = cases.BUILD[name]()
    copied = copy.deepcopy(layer)
    assert ops.put_into_programs(copied) > 0
    arguments = cases.arguments(layer, cases.inputs(layer))
    return layer, copied, arguments, [a for a in arguments if a.is_floating_point()]


def of_floats(module, arguments):
    """The module as a function of its floating-point arguments."""

    def function(*floats):
        floats = iter(floats)
        return module(*(next(floats) if a.is_floating_point() else a for a in arguments))

    return function


def reloaded(program):
    buffer = io.BytesIO()
    torch.jit.save(program, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def calls_of(program):
    """Calls of the operators in a TorchScript program."""
    return len(program.inlined_graph.findAllNodes("gaunt::fused"))


@pytest.mark.parametrize("name", NAMES)
def test_torchscript(name, kernels):
    layer, layer_with_ops, arguments, floats = prepared(name)
    program = reloaded(torch.jit.script(layer_with_ops))
    assert calls_of(program) >= 1
    assert calls_of(torch.jit.script(layer)) == 0
    found = passes(of_floats(program, arguments), floats)
    kernels(False)
    for a, b in zip(found, passes(of_floats(layer, arguments), floats), strict=True):
        assert_close(a, b, "program")


@pytest.mark.parametrize("name", ["aligned", "aligned scalars", "power"])
def test_derivatives_by_differences(name, kernels):
    _, layer, arguments, floats = prepared(name)
    function = of_floats(torch.jit.script(layer), arguments)
    floats = [a.requires_grad_() for a in floats]
    assert torch.autograd.gradcheck(function, floats)
    assert torch.autograd.gradgradcheck(function, floats, fast_mode=True)


@pytest.mark.parametrize("name", ["aligned", "aligned scalar parities", "power", "paper"])
def test_compiled_and_traced(name, kernels):
    """Whole graphs, the gradient's kernels in them."""
    layer, layer_with_ops, arguments, floats = prepared(name)

    def gradients(*floats):
        floats = [a.detach().requires_grad_() for a in floats]
        out = of_floats(layer_with_ops, arguments)(*floats)
        return torch.autograd.grad(out.sin().sum(), floats)

    compiled = torch.compile(layer_with_ops, fullgraph=True, backend="aot_eager", dynamic=True)
    graph = make_fx(gradients, tracing_mode="fake", _allow_non_fake_inputs=True)(*floats)
    targets = [str(node.target) for node in graph.graph.nodes]
    assert targets.count("gaunt.fused_gradient.default") == targets.count("gaunt.fused.default") > 0
    found = [*cases.value_and_gradients(compiled, arguments, []), *graph(*floats)]
    kernels(False)
    expected = [*cases.value_and_gradients(layer, arguments, []), *gradients(*floats)]
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, "program")


@pytest.mark.parametrize("name", ["aligned", "power"])
def test_operators_are_registered_as_torch_wants_them(name, kernels, monkeypatch):
    found, call = [], _call.call
    _, layer, arguments, _ = prepared(name)
    monkeypatch.setattr(_call, "call", lambda *args: (found.append(args), call(*args)))
    torch.jit.script(layer)(*arguments)
    kernel, program, sizes, index, inputs, (out,) = found[-1]
    inputs = [a.detach().requires_grad_() for a in inputs]
    g = torch.randn_like(out).requires_grad_()
    torch.library.opcheck(
        torch.ops.gaunt.fused.default, (kernel, program, sizes, list(out.shape), index, inputs)
    )
    torch.library.opcheck(
        torch.ops.gaunt.fused_gradient.default, (kernel, program, sizes, index, inputs, g)
    )


def test_eager_and_other_dtypes_do_as_before(kernels):
    layer, layer_with_ops, arguments, _ = prepared("aligned")
    assert_close(layer_with_ops(*arguments), layer(*arguments), "exact")
    half = [a.bfloat16() if a.is_floating_point() else a for a in arguments]
    found = torch.jit.script(layer_with_ops.bfloat16())(*half)
    assert_close(found.double(), layer.bfloat16()(*half).double(), "exact")


def test_tables_survive_changes_of_dtype(kernels):
    layer, layer_with_ops, arguments, _ = prepared("power")
    program = torch.jit.script(layer_with_ops.float().double())
    assert calls_of(program) == 1
    assert_close(program(*arguments), layer.float().double()(*arguments), "program")
    assert layer.state_dict().keys() == layer_with_ops.state_dict().keys()


def test_without_built_kernels_there_is_a_clear_error(kernels):
    _, layer, arguments, _ = prepared("aligned")
    program = torch.jit.script(layer)
    kernels(False)
    with pytest.raises(RuntimeError, match="run gaunt-kernels build"):
        program(*arguments)


def test_wrong_index_and_mixed_dtypes(kernels):
    _, layer, (x, attrs, weights, index), _ = prepared("aligned")
    program = torch.jit.script(layer)
    with pytest.raises(RuntimeError, match="for 6 nodes"):
        program(x, attrs, weights, index + 100)
    kernel = layer.rotation.program
    with pytest.raises(TypeError, match="one dtype"):
        torch.ops.gaunt.fused("convolution", kernel, [1], [1], None, [x, x.float()])


@pytest.mark.parametrize("name", ["power fourier", "full", "gaunt", "linear"])
def test_layers_without_a_kernel_stay_as_they_are(name):
    layer = cases.BUILD[name]()
    assert ops.put_into_programs(layer) == 0
    assert calls_of(torch.jit.script(layer)) == 0
