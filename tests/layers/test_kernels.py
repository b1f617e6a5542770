"""Compiled kernels against the plain path of the layers that use them."""

import copy
import pickle

import pytest
import torch

from gaunt_plugin.kernels import build, cli, fused
from gaunt_plugin.kernels.convolution import Convolution
from gaunt_plugin.layers import AlignedConvolution
from gaunt_plugin.layers.rotation import EdgeRotation

from ..tolerances import assert_close
from . import cases
from .test_derivatives import function_and_inputs
from .test_edge_blocks import assert_same, derivatives

ALIGNED = [name for name in cases.BUILD if name.startswith("aligned")]


def passes(function, inputs):
    """Value, gradients and their gradients along a direction, as training on forces has them."""
    inputs = [t if t.requires_grad else t.clone().requires_grad_() for t in inputs]
    out = function(*inputs)
    torch.manual_seed(1)
    g = torch.randn_like(out).requires_grad_()
    first = torch.autograd.grad(out, inputs, g, create_graph=True)
    v = [torch.randn_like(t) for t in first]
    return [out, *first, *torch.autograd.grad(first, [g, *inputs], v)]


@pytest.fixture
def calls(monkeypatch):
    """The kernel's passes that were run, in order."""
    found = []
    for name in ("forward", "gradient", "second"):
        inner = getattr(Convolution, name)

        def outer(*args, name=name, inner=inner):
            found.append(name)
            return inner(*args)

        monkeypatch.setattr(Convolution, name, outer)
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("channels", [1, 11, 32, 71])  # whole vectors of channels and rests
@pytest.mark.parametrize(
    ("irreps_in", "irreps_out"),
    [
        ("0e", "0e+1o+2e+3o"),
        ("0e+0o", "0e+1o+1e+2e"),
        ("0e+1o+2e+3o", "0e+1o+2e+3o"),
        ("1o+3o", "0e+2e"),
        ("0e+1o", "0e+1o+2e+3o"),
        ("0e+1o+1e", "0e+0o+1o+1e+2e+3o+3e"),
    ],
)
def test_convolution(irreps_in, irreps_out, channels, dtype, kernels, calls):
    many = lambda irreps: "+".join(f"{channels}x{ir}" for ir in irreps.split("+"))  # noqa: E731
    layer = AlignedConvolution(many(irreps_in), "0e+1o+2e+3o", many(irreps_out)).to(dtype)
    x, vectors, weights, index = cases.inputs(layer, nodes=6, edges=25)
    index[1, index[1] == 2] = 3  # a node that nothing arrives at
    inputs = [t.to(dtype) for t in (x, vectors, weights)]
    run = lambda *inputs: cases.run(layer, (*inputs, index))  # noqa: E731
    found = passes(run, inputs)
    assert calls == ["forward", "gradient", "second"]
    kernels(False)
    for a, b in zip(found, passes(run, inputs), strict=True):
        torch.testing.assert_close(
            a, b, rtol=0, atol=b.abs().max().item() * (1e-12 if dtype == torch.float64 else 1e-5)
        )


@pytest.mark.parametrize(("lmax", "mmax"), [(1, 1), (2, 1), (3, 3), (4, 2), (6, 6)])
def test_rotation(lmax, mmax, kernels):
    layer = EdgeRotation(lmax, mmax)
    directions = torch.nn.functional.normalize(torch.randn(13, 3), dim=1)
    directions[:3] = torch.tensor([[0.0, 1, 0], [0, -1, 0], [0, 0, 0]])  # poles, no direction
    found = passes(layer.entries, [directions])
    kernels(False)
    for a, b in zip(found, passes(layer.entries, [directions]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * b.abs().max().item())


@pytest.mark.parametrize("name", ["aligned", "aligned scalars"])
def test_derivatives_by_differences(name, kernels, calls):
    function, inputs = function_and_inputs(name)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)
    assert {"forward", "gradient", "second"} == set(calls)


def test_third_derivatives(kernels):
    function, inputs = function_and_inputs("aligned")
    found = derivatives(function, inputs)
    kernels(False)
    assert_same(found, derivatives(function, inputs))


def test_transforms_of_functions(kernels, calls):
    """torch.func and vmap over the backward passes, with which MACE makes Hessians."""
    function, inputs = function_and_inputs("aligned")
    hessian = torch.func.hessian(lambda x: function(*inputs[:1], x, *inputs[2:]).pow(2).sum())
    expected = hessian(inputs[1])
    assert not calls
    out = function(*inputs).pow(2).sum()
    forces = torch.autograd.grad(out, inputs[1], create_graph=True)[0].flatten()
    rows = torch.vmap(lambda v: torch.autograd.grad(forces, inputs[1], v, retain_graph=True)[0])(
        torch.eye(len(forces))
    )
    assert calls == ["forward", "gradient"]
    assert_close(rows.view(expected.shape), expected, "program")


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_give_the_same_numbers(threads, kernels):
    function, inputs = function_and_inputs("aligned")
    expected = passes(function, inputs)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = passes(function, inputs)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("nodes", "edges"), [(0, 0), (1, 0), (3, 0), (1, 2)])
def test_few_nodes_and_edges(nodes, edges, kernels, calls):
    layer = cases.BUILD["aligned"]()
    x, vectors, weights, index = cases.inputs(layer, nodes=max(nodes, 1), edges=edges)
    inputs = [x[:nodes], vectors, weights]
    found = passes(lambda *inputs: cases.run(layer, (*inputs, index)), inputs)
    assert "forward" in calls
    kernels(False)
    expected = passes(lambda *inputs: cases.run(layer, (*inputs, index)), inputs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrong", [-1, 4])
def test_an_index_out_of_range(wrong, kernels):
    layer = cases.BUILD["aligned"]()
    x, vectors, weights, index = cases.inputs(layer, nodes=4, edges=3)
    index[1, 1] = wrong
    with pytest.raises(IndexError, match="for 4 nodes"):
        cases.run(layer, (x, vectors, weights, index))


def test_other_index_and_memory_layouts(kernels, calls):
    layer = cases.BUILD["aligned"]()
    x, vectors, weights, index = cases.inputs(layer, nodes=4, edges=9)
    expected = cases.run(layer, (x, vectors, weights, index))
    strided = weights.t().contiguous().t()
    reversed_twice = index.flip(1).contiguous().flip(1)
    found = cases.run(layer, (x, vectors, strided, reversed_twice.to(torch.int32)))
    assert calls == ["forward", "forward"]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ALIGNED)
def test_programs_and_copies(name, kernels, calls):
    """Programs hold the plain path; copies and pickles need nothing of the kernel."""
    layer = cases.BUILD[name]()
    arguments = cases.arguments(layer, cases.inputs(layer))
    expected = layer(*arguments)
    assert calls == ["forward"]
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(*arguments), expected)
    calls.clear()
    for program in (
        torch.jit.script(layer),
        torch.compile(layer, backend="eager", fullgraph=True),
    ):
        assert_close(program(*arguments), expected, "program")
    assert not calls


def test_other_dtypes_take_the_plain_path(kernels, calls):
    layer = cases.BUILD["aligned"]().to(torch.bfloat16)
    inputs = [t.bfloat16() if t.is_floating_point() else t for t in cases.inputs(layer)]
    assert cases.run(layer, inputs).dtype == torch.bfloat16
    assert not calls


def test_command(tmp_path, monkeypatch, capsys, kernels):
    monkeypatch.setenv("CXX", "no-compiler")
    assert cli.main(["build"]) == 0
    assert "built already" in capsys.readouterr().out
    assert cli.main(["info"]) == 0
    assert str(build.path()) in capsys.readouterr().out
    monkeypatch.setenv("GAUNT_PLUGIN_CACHE", str(tmp_path))
    build.library.cache_clear()
    assert cli.main(["build"]) == 1
    assert "no-compiler" in capsys.readouterr().err
    assert cli.main(["info"]) == 0
    assert "not built" in capsys.readouterr().out
    build.path().parent.mkdir()
    build.path().write_text("no library")
    build.library.cache_clear()
    with pytest.raises(RuntimeError, match="gaunt-kernels build --force"):
        build.library()
    monkeypatch.setenv("GAUNT_KERNELS", "0")
    build.library.cache_clear()
    assert build.library() is None
    assert cli.main(["info"]) == 0
    assert "switched off" in capsys.readouterr().out


def test_a_failing_compiler_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GAUNT_PLUGIN_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    assert cli.main(["build"]) == 1
    assert "compiling failed: false" in capsys.readouterr().err
    assert not list((tmp_path / "kernels").iterdir())


def test_gradients_of_a_plain_function():
    """The derivatives that :func:`fused` takes from the kernel and from autograd fit together."""

    class Cube:
        def forward(self, x):
            return x**3

        def gradient(self, needed, g, x):
            return [3 * g * x**2]

        def second(self, g, x, v):
            return [3 * v[0] * x**2, 6 * g * x * v[0]]

    x = torch.randn(5, requires_grad=True)
    function = lambda x: fused.fused(lambda x: x**3, Cube(), x)  # noqa: E731
    assert torch.autograd.gradgradcheck(function, [x])
    assert_same(derivatives(function, [x]), derivatives(lambda x: x**3, [x]))
