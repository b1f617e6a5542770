"""How operators meet the rest of torch: wrong calls, transforms, subclasses, checkpointing."""

import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from gaunt_plugin.layers import AlignedConvolution
from gaunt_plugin.ops import (
    EdgeConvolution,
    EdgeFrames,
    PathConvolution,
    Polynomials,
    Powers,
    edge_sum,
)

from ..layers import cases
from ..layers.test_derivatives import SMALL, function_and_inputs
from ..tolerances import assert_close
from .passes import assert_same

KERNELS = ["aligned", "aligned scalars", "channelwise", "power", "paper", "full"]


def samples():
    """Per operator its arguments, of small sizes, differentiable where they can be."""
    r = lambda *shape: torch.randn(*shape, requires_grad=True)  # noqa: E731
    index = torch.tensor([[0, 1, 2, 2, 0], [1, 0, 0, 1, 2]])
    frames = EdgeFrames(1, 1)
    irreps = ((0, False), (1, False), (1, True))
    convolution = EdgeConvolution(irreps, irreps, (0, 1))
    numel = convolution.paths * 2
    tail = (index, None, convolution.constants, convolution.dim_out)
    rows = torch.tensor([3, 0, 1, 3, 2])
    scalar = EdgeConvolution(((0, False),), ((0, False), (1, False)), (0, 1))
    power = Powers([0, 1], [0, 1], True, [1.0, 0.5], [[1.0, 0.5], [0.25, 2.0]])
    paper = Powers([0, 1], [0], False, [1.0, 0.5], [[1.0]])
    terms = [(0, 0, 0, 1, 0), (0, 0, 1, 2, 1), (1, 1, 1, 1, 1), (1, 0, 1, 1, 2), (1, 0, 1, 1, 0)]
    cubic = Polynomials(2, 2, 3, terms, [1.0, 0.5, -2.0, 0.25, 1.5])
    attrs = torch.eye(2)[[0, 1, 0]]
    D = r(5, frames.entries)
    apart = cases.channelwise("2x0e+3x1o", "0e+1o", "0e+1o+1e").convolution
    assert isinstance(apart, PathConvolution)
    x, Y = r(3, apart.dim_in), r(5, 4)
    behind = apart.constants, apart.dim_out
    return {
        "edge_frames": (r(5, 3), frames.constants, frames.entries),
        "convolution": (r(3, convolution.dim_in, 2), D, r(5, numel), None, *tail),
        "convolution, mixing": (r(3, convolution.dim_in, 2), D, r(5, 4), r(4, numel), *tail),
        "convolution, rows": (r(3, convolution.dim_in, 2), D, r(5, 5), r(8, numel), index, rows)
        + tail[2:],
        "convolution, scalars": (
            *(r(3, 1, 2), r(5, 4), r(5, 2 * scalar.paths), None),
            *(index, None, scalar.constants, scalar.dim_out),
        ),
        "channelwise_convolution": (x, Y, r(5, apart.numel), None, index, None, *behind),
        "channelwise_convolution, mixing": (x, Y, r(5, 4), r(4, apart.numel), index, None, *behind),
        "channelwise_convolution, rows": (x, Y, r(5, 5), r(8, apart.numel), index, rows, *behind),
        "powers": (r(3, 2, 4), r(3, 2, power.terms, 2), r(3, 2, 2, 2), power.constants, 4),
        "polynomials": (r(3, 4, 2), r(2, 4, 3), attrs, cubic.constants, 2),
        "powers, no weights_in": (r(3, 2, 4), r(3, 1, paper.terms, 2), None, paper.constants, 1),
    }


SAMPLES = ["edge_frames", "convolution", "convolution, mixing", "convolution, rows"]
SAMPLES += ["convolution, scalars", "powers", "powers, no weights_in", "polynomials"]
SAMPLES += ["channelwise_convolution" + kind for kind in ("", ", mixing", ", rows")]
COUNTS = {
    "edge_frames": 1,
    "convolution": 4,
    "channelwise_convolution": 4,
    "powers": 3,
    "polynomials": 2,
}


def three_operators(name):
    """The operators of a sample, each with arguments: value, gradient, second derivative."""
    arguments, name = samples()[name], name.split(",")[0]
    operands = arguments[: COUNTS[name]]
    needs = [t is not None for t in operands]
    ops = [getattr(torch.ops.gaunt, name + s) for s in ("", "_backward", "_double_backward")]
    grad = torch.randn_like(ops[0](*arguments)).requires_grad_()
    along = [None if t is None else torch.randn_like(t).requires_grad_() for t in operands]
    return [
        (ops[0].default, arguments),
        (ops[1].default, (grad, *arguments, needs)),
        (ops[2].default, (*along, grad, *arguments, needs)),
    ]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("name", SAMPLES)
def test_are_registered_as_torch_wants_them(name, number, kernels):
    operator, arguments = three_operators(name)[number]
    utils = ["test_schema", "test_autograd_registration", "test_faketensor"]
    # Third derivatives read the constants, which a recorded program doesn't have.
    utils += ["test_aot_dispatch_dynamic"] * (number < 2)
    torch.library.opcheck(operator, arguments, test_utils=utils)


@pytest.mark.parametrize("name", SAMPLES)
def test_only_what_is_needed(name, kernels):
    """Each gradient alone is the same as with all others."""
    for operator, arguments in three_operators(name)[1:]:
        assert_only_what_is_needed(operator, arguments)


def assert_only_what_is_needed(operator, arguments, kind="exact"):
    *rest, needs = arguments
    every = operator(*arguments)
    every = [every] if isinstance(every, torch.Tensor) else every
    first = len(every) - len(needs)
    for k, there in enumerate(needs):
        found = operator(*rest, [i == k and there for i in range(len(needs))])
        found = [found] if isinstance(found, torch.Tensor) else found
        assert_same(found[:first], every[:first])
        for i, part in enumerate(found[first:]):
            if i == k and there:
                assert_close(part, every[first + i], kind)
            else:
                assert part.numel() == 0


def wrong(argument):
    """Other tensors in an argument's place."""
    if not isinstance(argument, torch.Tensor):
        return {}
    found = {"no axis": argument.flatten()[0], "one axis more": argument[None]}
    for axis in range(argument.dim()):
        found[f"axis {axis} short"] = argument.narrow(axis, 0, argument.shape[axis] - 1)
        found[f"axis {axis} long"] = torch.cat([argument, argument], axis)
        found[f"axis {axis} empty"] = argument.narrow(axis, 0, 0)
    if argument.is_floating_point():
        found |= {"float32": argument.float(), "half": argument.half(), "int": argument.long()}
    else:
        found |= {"int32": argument.int(), "float": argument.double()}
    return found


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("name", SAMPLES)
def test_wrong_calls_name_the_operand(name, number, kernels):
    """Before any memory is touched. What happens to fit (as many edges, nodes) is computed."""
    operator, arguments = three_operators(name)[number]
    names = [a.name for a in operator._schema.arguments]
    silent = []
    with torch.no_grad():
        for k, argument in enumerate(arguments):
            for change, other in wrong(argument).items():
                changed = (*arguments[:k], other, *arguments[k + 1 :])
                try:
                    operator(*changed)
                except (ValueError, IndexError) as error:
                    said = str(error)
                    if f"gaunt::{name.split(',')[0]}" not in said and "arrays of" not in said:
                        silent.append(f"{names[k]}: {change}: {said}")
                else:
                    silent.append(f"{names[k]}: {change}")
    # Sizes that are free where nothing else has them.
    free = {
        "edge_frames": "directions: ",
        "powers, no weights_in": "weights_out: axis 1",
    }
    if name.endswith("convolution, rows"):
        free[name] = "node_feats: axis 0 long", "weights: axis 1", "mixing: axis 0 long"
    free = free.get(name, "node_feats: axis 0 long")
    assert [s for s in silent if not s.startswith(free)] == []


def test_messages_of_wrong_calls(kernels):
    x, D, w, mixing, index, _, constants, width = samples()["convolution, mixing"]
    call = torch.ops.gaunt.convolution
    for arguments, message in (
        (
            (x, D[1:], w, mixing, index, None, constants, width),
            r"weights must be \[4, 4\], got \[5, 4\]",
        ),
        (
            (x, D, w, None, index, None, constants, width),
            r"weights must be \[5, \d+\], got \[5, 4\]",
        ),
        (
            (x, D, w, mixing[:, 1:], index, None, constants, width),
            r"mixing must be \[4, \d+\], got",
        ),
        ((x, D.float(), w, mixing, index, None, constants, width), "frames has the wrong dtype"),
        (
            (x, D, w, mixing, index[:, 1:], None, constants, width),
            r"edge_index must be \[2, 5\], got",
        ),
        ((x, D, w, mixing, index, None, constants, width + 1), r"result must be \[3, 7, 2\], got"),
        (
            (x, D, w, mixing, index, None, constants[1:], width),
            "constants are not those of a layer",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call(*arguments)
    for index_wrong in (index - 1, index + 2):
        with pytest.raises(IndexError, match=r"edge_index has the index (-1|3) for 3 nodes"):
            call(x, D, w, mixing, index_wrong, None, constants, width)


def test_messages_of_wrong_rows(kernels):
    x, D, w, mixing, index, rows, constants, width = samples()["convolution, rows"]
    call = torch.ops.gaunt.convolution
    for wrong, message in ((rows - 1, r"index -1 for 5 of 8 rows"), (rows + 1, "index 4 for 5 of")):
        with pytest.raises(IndexError, match=message):
            call(x, D, w, mixing, index, wrong, constants, width)
    with pytest.raises(ValueError, match="rows without mixing"):
        call(x, D, w @ mixing[:5], None, index, rows, constants, width)


@pytest.mark.parametrize("name", SAMPLES)
def test_wrong_constants(name, kernels):
    """Whatever the constants say, memory outside of the arrays is never touched."""
    generator = torch.Generator().manual_seed(0)
    operator, arguments = three_operators(name)[0]
    k = next(k for k, a in enumerate(operator._schema.arguments) if a.name == "constants")
    constants = arguments[k]
    with torch.no_grad():
        for _ in range(300):
            other = constants.clone()
            place = torch.randint(min(len(other), 40), (1,), generator=generator)
            other[place] = torch.randint(-3, 70, (1,), generator=generator)
            try:
                operator(*arguments[:k], other, *arguments[k + 1 :])
            except ValueError as error:
                assert "gaunt::" in str(error)  # noqa: PT017


@pytest.mark.skipif(
    "-fsanitize" in os.environ.get("GAUNT_CXXFLAGS", ""),
    reason="sanitizers' own allocator ends the process",
)
def test_out_of_memory_is_an_exception(kernels):
    """Not the end of the process: buffers are made before threads start."""
    code = """
import resource, torch
from gaunt_plugin.ops import EdgeConvolution
layer = EdgeConvolution(((0, False), (1, False)), ((0, False), (1, False)), (0, 1))
channels, edges = 4096, 600
numel = layer.paths * channels
x, D, hidden = torch.randn(2, 4, channels), torch.randn(edges, 10), torch.randn(edges, 1)
mixing, index = torch.randn(1, numel), torch.zeros(2, edges, dtype=torch.int64)
out = torch.empty(2, 4, channels)
torch.set_num_threads(2)
arguments = x, D, hidden, mixing, index, None, layer.constants, layer.dim_out
torch.ops.gaunt.convolution(*arguments)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 20), resource.RLIM_INFINITY))
grad = torch.ones_like(out)
try:
    torch.ops.gaunt.convolution_double_backward(
        torch.ones_like(x), D, hidden, mixing, grad, *arguments, [True] * 4)
except (MemoryError, RuntimeError) as error:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print("caught", type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "caught" in done.stdout
    assert "memory" in done.stdout


# Transforms and other kinds of tensors: the plain form, or the same numbers.


def test_dispatch_modes_see_the_operators(kernels, calls):
    """Without one kernels are called directly; the numbers are the same."""
    layer = AlignedConvolution("2x0e+2x1o", "0e+1o", "2x0e+2x1o")
    inputs = cases.arguments(layer, cases.inputs(layer))

    def passes():
        x = inputs[0].clone().requires_grad_()
        out = layer(x, *inputs[1:])
        return out, torch.autograd.grad(out.square().sum(), x)[0]

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    seen, expected = [], passes()
    direct = list(calls)
    with Seen():
        found = passes()
    assert {"gaunt.convolution.default", "gaunt.convolution_backward.default"} <= set(seen)
    assert calls == 2 * direct
    assert_same(found, expected)


@pytest.mark.parametrize("name", [*KERNELS, "frames"])
def test_transforms_of_functions(name, kernels, calls):
    """Not of vectors: e3nn's compiled harmonics are wrong in forward mode once they are warm."""
    if name == "frames":
        function, inputs = EdgeFrames(3, 2), [torch.randn(2, 3, requires_grad=True)]
    else:
        function, inputs = function_and_inputs(name)

    def energy(x):
        return function(x, *inputs[1:]).pow(3).sum()

    hessian = torch.func.hessian(energy)(inputs[0])
    gradient = torch.func.grad(energy)(inputs[0])
    _, tangent = torch.func.jvp(energy, (inputs[0],), (torch.ones_like(inputs[0]),))
    used = dict(calls)
    assert ("edge_frames" if name == "frames" else "convolution") not in used
    assert not {"channelwise_convolution", "powers", "polynomials"} & used.keys()
    (expected,) = torch.autograd.grad(energy(inputs[0]), inputs[0])
    assert calls
    assert_close(gradient, expected, "program")
    assert_close(tangent, expected.sum(), "program")
    rows = torch.autograd.functional.hessian(energy, inputs[0].detach())
    assert_close(hessian, rows, "program")


def test_forward_mode(kernels, calls):
    function, inputs = function_and_inputs("aligned")
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(inputs[0].detach(), torch.ones_like(inputs[0]))
        out = function(dual, *(t.detach() for t in inputs[1:]))
        tangent = torch.autograd.forward_ad.unpack_dual(out).tangent
    assert not calls
    expected = function(torch.ones_like(inputs[0]), *inputs[1:])  # it is linear
    assert_close(tangent, expected, "program")


@pytest.mark.parametrize("name", KERNELS)
def test_vmap_over_backward_passes(name, kernels, calls):
    """With which MACE makes Hessians: one call of an operator per row."""
    function, inputs = function_and_inputs(name)
    variable = inputs[1 if name in cases.CONVOLUTIONS else 0]
    out = function(*inputs).pow(2).sum()
    forces = torch.autograd.grad(out, variable, create_graph=True)[0].flatten()
    calls.clear()
    row = lambda v: torch.autograd.grad(forces, variable, v, retain_graph=True)[0]  # noqa: E731
    rows = torch.vmap(row)(torch.eye(len(forces)))
    assert calls
    expected = torch.stack([row(v) for v in torch.eye(len(forces))])
    assert_close(rows, expected, "program")
    assert_close(rows.flatten(1), rows.flatten(1).T, "program")


@pytest.mark.parametrize("name", KERNELS)
def test_tensors_without_memory(name, kernels, calls):
    layer = cases.BUILD[name]()
    inputs = cases.arguments(layer, cases.inputs(layer))
    expected = layer(*inputs)
    calls.clear()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(t) for t in inputs]
        assert layer(*fake).shape == expected.shape
    meta = cases.BUILD[name]().to("meta")
    assert meta(*(t.to("meta") for t in inputs)).shape == expected.shape
    assert not calls


class Wrapped(torch.Tensor):
    """A subclass that torch doesn't know."""


def test_subclasses_and_inference(kernels, calls):
    layer = cases.BUILD["power"]()
    x, node_attrs = cases.inputs(layer)
    expected = layer(x, node_attrs)
    calls.clear()
    assert_close(layer(x.as_subclass(Wrapped), node_attrs), expected, "program")
    assert not calls
    with torch.inference_mode():
        assert_close(layer(x.clone(), node_attrs.clone()), expected, "program")
    assert calls
    with torch.no_grad():
        assert_close(layer(x, node_attrs), expected, "exact")


# What autograd promises.


@pytest.mark.parametrize("name", KERNELS)
def test_activation_checkpointing(name, kernels, calls):
    layer = cases.BUILD[name]()
    arguments = [
        a.clone().requires_grad_() if a.is_floating_point() else a
        for a in cases.arguments(layer, cases.inputs(layer))
    ]
    if name == "full":  # whose kernel has no gradient of node_attrs
        arguments[1].requires_grad_(False)
    wanted = [a for a in arguments if a.requires_grad] + list(layer.parameters())

    def gradients(function):
        return torch.autograd.grad(function(*arguments).pow(2).sum(), wanted)

    expected = gradients(layer)
    calls.clear()
    found = gradients(lambda *a: checkpoint(layer, *a, use_reentrant=False))
    assert calls
    assert_same(found, expected)

    def forces(*a):
        out = layer(*a).pow(2).sum()
        return torch.autograd.grad(out, wanted[0], create_graph=True)[0]

    expected = gradients(forces)
    assert_same(gradients(lambda *a: checkpoint(forces, *a, use_reentrant=False)), expected)


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("changed", ["edge_index", "weights"])
def test_changes_in_place_are_noticed(changed, large, on, kernels, monkeypatch):
    from gaunt_plugin.ops import checkpointing

    kernels(on)
    monkeypatch.setattr(checkpointing, "LARGE", 0 if large else 1 << 60)
    layer = cases.BUILD["aligned"]()
    x, attrs, weights, index = cases.arguments(layer, cases.inputs(layer))
    x.requires_grad_()
    out = layer(x, attrs, weights, index).sum()
    if changed == "edge_index":
        index.copy_(index.flip(1))
    else:
        weights.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


@pytest.mark.parametrize("name", KERNELS)
def test_retained_and_freed_graphs(name, kernels):
    function, inputs = function_and_inputs(name)
    out = function(*inputs).pow(2).sum()
    first = torch.autograd.grad(out, inputs, retain_graph=True)
    assert_same(torch.autograd.grad(out, inputs), first, "exact")
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out, inputs)


@pytest.mark.parametrize("name", ["aligned", "power", "nested", "full"])
@pytest.mark.parametrize("on", [True, False])
def test_autocast(name, on, kernels):
    """Layers compute in float32, whatever the layers before them give."""
    kernels(on)
    layer = cases.BUILD[name]().float()
    inputs = [t.float() if t.is_floating_point() else t for t in cases.inputs(layer)]
    arguments = cases.arguments(layer, inputs)
    before = torch.nn.Linear(arguments[0].shape[-1], arguments[0].shape[-1]).float()

    def run(x):
        return layer(before(x), *arguments[1:])

    expected = run(arguments[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert before(arguments[0]).dtype == torch.bfloat16
        out = run(arguments[0])
    assert out.dtype == torch.float32
    assert (out - expected).norm() < 0.05 * expected.norm()
    x = arguments[0].clone().requires_grad_()
    for whole in (True, False):  # the backward pass inside of autocast, too, or outside of it
        with torch.autocast("cpu", torch.bfloat16):
            (force,) = torch.autograd.grad(run(x).square().sum(), x, create_graph=True)
            if whole:
                force.square().sum().backward()
        if not whole:
            force.square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in layer.parameters())
    assert before.weight.grad.any()


def test_operators_under_autocast(kernels):
    """Called by a program: in float32, too."""
    arguments = [
        t.detach().bfloat16() if isinstance(t, torch.Tensor) and t.is_floating_point() else t
        for t in samples()["powers"]
    ]
    with torch.autocast("cpu", torch.bfloat16):
        out = torch.ops.gaunt.powers(*arguments)
    assert out.dtype == torch.float32


def test_fork_after_a_kernel_ran(kernels):
    """As workers of a DataLoader: their kernels have one thread each, and run."""
    code = """
import os, torch
from gaunt_plugin.ops import EdgeFrames
frames = EdgeFrames(3, 3)
n = torch.nn.functional.normalize(torch.randn(500, 3), dim=1)
torch.set_num_threads(2)
expected = frames(n)
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    os._exit(0 if torch.equal(frames(n), expected) else 1)
import time
end = time.time() + 20
while time.time() < end:
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        print("child", os.waitstatus_to_exitcode(status)); break
    time.sleep(0.1)
else:
    os.kill(child, 9); print("child hangs")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "child 0", done.stdout + done.stderr


@pytest.mark.parametrize("name", SMALL)
def test_kernels_and_small_limits_together(name, kernels, monkeypatch):
    """Small inputs take the ways of large ones: the same second derivatives."""
    from gaunt_plugin.ops import checkpointing

    function, inputs = function_and_inputs(name)
    out = function(*inputs)
    monkeypatch.setattr(edge_sum, "STORED", 0)
    monkeypatch.setattr(checkpointing, "LARGE", 0)
    monkeypatch.setitem(checkpointing.BLOCK, "cpu", 1)
    for on in (True, False):
        kernels(on)
        assert_close(function(*inputs), out, "program")
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_large_graphs_in_functional_transforms(monkeypatch):
    """Without kernels and above the limit of checkpointing."""
    from gaunt_plugin.ops import checkpointing

    monkeypatch.setattr(checkpointing, "LARGE", 0)
    layer = AlignedConvolution("2x0e+2x1o", "0e+1o", "2x0e+2x1o")
    arguments = cases.arguments(layer, cases.inputs(layer, nodes=3, edges=6))
    energy = lambda a: layer(arguments[0], a, *arguments[2:]).pow(2).sum()  # noqa: E731
    attrs = arguments[1]
    hessian = torch.func.hessian(energy)(attrs)
    attrs.requires_grad_()
    (forces,) = torch.autograd.grad(energy(attrs), attrs, create_graph=True)
    rows = torch.vmap(
        lambda v: torch.autograd.grad(forces.flatten(), attrs, v, retain_graph=True)[0]
    )(torch.eye(attrs.numel()))
    assert_close(rows.view_as(hessian), hessian, "program")
