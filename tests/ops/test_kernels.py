"""The C++ kernels against the plain forms: values, first, second and third derivatives."""

import copy
import functools
import pickle

import pytest
import torch

from gaunt_plugin.layers import AlignedConvolution, GauntManyBody
from gaunt_plugin.ops import EdgeFrames, edge_sum
from gaunt_plugin.ops import polynomials as ops_polynomials
from gaunt_plugin.ops.cpu import call as cpu_call

from ..layers import cases
from ..layers.test_derivatives import function_and_inputs
from .passes import assert_same, derivatives, passes

CONVOLUTIONS = [name for name in cases.BUILD if name.startswith(("aligned", "channelwise"))]
FORWARD, BACKWARD, DOUBLE_BACKWARD = range(3)


def three_passes(name):
    return [(name, number) for number in range(3)]


def of(calls, name):
    return [call for call in calls if call[0] == name]


def operator_of(name):
    """Of a convolution."""
    return "channelwise_convolution" if "channelwise" in name else "convolution"


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
    assert of(calls, "convolution") == three_passes("convolution")
    kernels(False)
    calls.clear()
    assert_same(found, passes(run, inputs), "program" if dtype == torch.float64 else "program32")
    assert not calls


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "irreps",
    [
        ("0e", "0e+1o+2e", "0e+1o+2e"),
        ("0e+1o+2e+3o", "0e+1o+2e+3o", "0e+1o+2e+3o"),
        ("2e+0o", "1o+0e", "1e+2o+2e+3o"),
        ("4e+5o", "0e+4e", "4e+5e+5o"),  # no own code for as many components
    ],
)
@pytest.mark.parametrize("channels", [[1], [11], [32, 8, 71], [5, 64]])
def test_channelwise_convolution(irreps, channels, dtype, kernels, calls):
    irreps_in, *others = irreps
    # whole vectors of channels and rests, other numbers for each irrep
    irs = irreps_in.split("+")
    many = "+".join(f"{channels[i % len(channels)]}x{ir}" for i, ir in enumerate(irs))
    layer = cases.channelwise(many, *others).to(dtype)
    x, vectors, weights, index = cases.inputs(layer, nodes=6, edges=40)
    index[1, index[1] == 2] = 3  # a node that nothing arrives at
    inputs = [t.to(dtype) for t in (x, vectors, weights)]
    run = lambda *inputs: cases.run(layer, (*inputs, index))  # noqa: E731
    found = passes(run, inputs)
    assert of(calls, "channelwise_convolution") == three_passes("channelwise_convolution")
    kernels(False)
    calls.clear()
    assert_same(found, passes(run, inputs), "program" if dtype == torch.float64 else "program32")
    assert not calls


WITH_ROWS = {
    "scalars": lambda: AlignedConvolution("5x0e", "0e+1o", "5x0e+5x1o"),
    "parities": lambda: AlignedConvolution("3x0e+3x1o+3x1e", "0e+1o", "3x0e+3x1o+3x1e"),
    "channelwise": lambda: cases.channelwise("5x0e+3x1o", "0e+1o", "0e+1o"),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("factors", [1, 4, 6])  # whole fours and rests
@pytest.mark.parametrize("name", WITH_ROWS)
def test_convolution_with_rows(name, factors, dtype, kernels, calls):
    layer = WITH_ROWS[name]().to(dtype)
    x, vectors, _, index = cases.inputs(layer, nodes=6, edges=25)
    rows = torch.randint(0, 11 - factors, (25,))
    table = torch.randn(10, layer.weight_numel)
    inputs = [t.to(dtype) for t in (x, vectors, torch.randn(25, factors), table)]

    def run(x, vectors, weights, table):
        x, attrs, weights, _ = cases.arguments(layer, (x, vectors, weights, index))
        return layer(x, attrs, weights, index, table, rows)

    found = passes(run, inputs)
    assert of(calls, operator_of(name)) == three_passes(operator_of(name))
    kernels(False)
    calls.clear()
    expected = passes(run, inputs)
    assert_same(found, expected, "program" if dtype == torch.float64 else "program32")
    assert not calls
    # The plain form itself: each edge has its own rows.
    dense = torch.zeros(25, 10, dtype=dtype)
    for q in range(factors):
        dense[torch.arange(25), rows + q] = inputs[2][:, q]
    whole = layer(*cases.arguments(layer, (*inputs[:2], dense, index)), inputs[3])
    assert_same([expected[0]], [whole], "program" if dtype == torch.float64 else "program32")


@pytest.mark.parametrize(("lmax", "mmax"), [(0, 0), (1, 0), (1, 1), (2, 1), (3, 3), (4, 2), (6, 6)])
def test_edge_frames(lmax, mmax, kernels, calls):
    frames = EdgeFrames(lmax, mmax)
    directions = torch.nn.functional.normalize(torch.randn(13, 3), dim=1)
    directions[:3] = torch.tensor([[0.0, 1, 0], [0, -1, 0], [0, 0, 0]])  # poles, no direction
    if lmax == 0:
        found, wanted = [frames(directions)], lambda: [frames(directions)]
    else:
        found, wanted = passes(frames, [directions]), lambda: passes(frames, [directions])
    assert calls
    kernels(False)
    assert_same(found, wanted())


ELEMENTS = 3
# irreps, correlation, parametrization, rank, channels, nodes
POWERS = {
    "power": ("0e+1o+2e+3o", "0e+1o+2e", 3, "power", 4, 20, 3),
    "rank 1": ("0e+1o+2e", "0e+1o", 4, "power", 1, 8, 2),
    "rank 3, gaps": ("1o+3o", "0e+2e", 2, "power", 3, 9, 3),
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


def many_body(name):
    """The terms that are powers, features and attributes."""
    irreps_in, irreps_out, correlation, parametrization, rank, channels, nodes = POWERS[name]
    many = ["+".join(f"{channels}x{ir}" for ir in s.split("+")) for s in (irreps_in, irreps_out)]
    layer = GauntManyBody(*many, correlation, ELEMENTS, parametrization, rank)
    terms = (layer.product.powers if parametrization == "nested" else layer.product).terms
    return terms, torch.randn(nodes, channels, layer.dims_in), torch.rand(nodes, ELEMENTS)


def of_all(module, x, node_attrs, compare=passes):
    """Derivatives in all that a module depends on."""
    inputs = [x, node_attrs, *module.parameters()]
    return compare(lambda x, node_attrs, *_: module(x, node_attrs), inputs)


@pytest.mark.parametrize("name", POWERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_powers(name, dtype, calls, kernels):
    terms, x, node_attrs = (part.to(dtype) for part in many_body(name))
    ours = of_all(terms, x, node_attrs)
    assert calls == three_passes("powers")
    kernels(False)
    plain = of_all(terms, x, node_attrs)
    assert len(calls) == 3
    assert_same(ours, plain, "program" if dtype == torch.float64 else "program32")


# irreps, correlation, channels, nodes
POLYNOMIALS = {
    "all degrees": ("0e+1o+2e+3o", "0e+1o+2e", 3, 20, 3),
    "gaps": ("1o+3o", "0e+2e", 3, 9, 6),
    "order 2": ("0e+1o+2e", "0e+1o+2e+3o", 2, 8, 5),
    "one channel": ("0e+1o", "1o", 3, 1, 5),
    "several jobs": ("0e+1o", "0e+1o", 3, 3, 300),
    "one node": ("0e+1o+2e", "0e+1o", 3, 16, 1),
    "no nodes": ("0e+1o", "0e+1o", 3, 8, 0),
}
ATTRIBUTES = {
    "one-hot": lambda nodes: torch.eye(ELEMENTS)[torch.randint(ELEMENTS, (nodes,))],
    "one element": lambda nodes: torch.eye(ELEMENTS)[torch.ones(nodes, dtype=torch.int64)],
    "soft": lambda nodes: torch.rand(nodes, ELEMENTS),
    "none or several": lambda nodes: torch.randint(-1, 2, (nodes, ELEMENTS)).double(),
}


@pytest.mark.parametrize("attributes", ATTRIBUTES)
@pytest.mark.parametrize("name", POLYNOMIALS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_polynomials(name, attributes, dtype, kernels, calls):
    irreps_in, irreps_out, correlation, channels, nodes = POLYNOMIALS[name]
    many = ["+".join(f"{channels}x{ir}" for ir in s.split("+")) for s in (irreps_in, irreps_out)]
    layer = GauntManyBody(*many, correlation, ELEMENTS, "full").to(dtype)
    x = torch.randn(nodes, channels, layer.dims_in, dtype=dtype)
    attrs = ATTRIBUTES[attributes](nodes).to(dtype)

    def run(x, *_):
        return layer(x, attrs)

    found = passes(run, [x, *layer.parameters()])
    assert calls == three_passes("polynomials")
    kernels(False)
    expected = passes(run, [x, *layer.parameters()])
    assert len(calls) == 3
    assert_same(found, expected, "program" if dtype == torch.float64 else "program32")


def test_gradients_of_attributes_are_those_of_the_plain_form(kernels, calls):
    layer = cases.BUILD["full"]()
    x, attrs = cases.inputs(layer)
    expected = layer(x, attrs)
    assert len(calls) == 1
    out = layer(x, attrs.requires_grad_())
    assert len(calls) == 1
    assert_same([out], [expected])
    (gradient,) = torch.autograd.grad(out.sum(), attrs)
    one = layer(x[:1], torch.tensor([[0.0, 1.0, 0.0]]))
    assert_same([gradient[0, 1]], [one.sum()])
    assert torch.autograd.gradgradcheck(layer, [x.requires_grad_(), attrs], fast_mode=True)


def test_plain_polynomials_in_several_blocks(kernels, monkeypatch):
    layer = cases.BUILD["full"]()
    kernels(False)
    x, attrs = cases.inputs(layer, nodes=11)
    found = []
    for block in (ops_polynomials.BLOCK, 500):
        monkeypatch.setattr(ops_polynomials, "BLOCK", block)
        found.append(passes(lambda x, *_: layer(x, attrs), [x, *layer.parameters()]))
    assert_same(*found)


@pytest.mark.parametrize("elements", [2, 40])  # fewer and more than weights per channel
def test_plain_polynomials_of_few_and_many_elements(elements, kernels, calls):
    layer = GauntManyBody("2x0e+2x1o", "2x0e+2x1o", 3, elements, "full")
    x, attrs = torch.randn(5, 2, 4), torch.rand(5, elements)
    found = layer(x, attrs)
    assert calls
    kernels(False)
    assert_same([found], [layer(x, attrs)])


@pytest.mark.parametrize(
    "name", ["aligned", "aligned scalars", "channelwise", "power", "paper", "full"]
)
def test_derivatives_by_differences(name, kernels, calls):
    function, inputs = function_and_inputs(name)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=name in cases.MANY_BODY)
    assert {number for _, number in calls} == {FORWARD, BACKWARD, DOUBLE_BACKWARD}


@pytest.mark.parametrize(
    "name",
    ["aligned", "aligned scalars", "channelwise", "power", "paper", "nested", "full"],
)
def test_third_derivatives(name, kernels, calls):
    function, inputs = function_and_inputs(name)
    found = derivatives(function, inputs)
    assert calls
    kernels(False)
    assert_same(found, derivatives(function, inputs))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("name", ["aligned", "channelwise", "power", "full"])
def test_threads_give_the_same_numbers(name, threads, kernels):
    function, inputs = function_and_inputs(name)
    expected = passes(function, inputs)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = passes(function, inputs)
    finally:
        torch.set_num_threads(before)
    # Sums over nodes are torch's: those of the weights of elements.
    assert_same(found, expected, "program" if name == "power" else "exact")


@pytest.mark.parametrize(("nodes", "edges"), [(0, 0), (1, 0), (3, 0), (1, 2)])
@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("name", ["aligned", "channelwise"])
def test_few_nodes_and_edges(name, nodes, edges, mixed, kernels, calls, monkeypatch):
    monkeypatch.setattr(edge_sum, "STORED", 0)
    layer = cases.BUILD[name]()
    x, vectors, weights, index = cases.inputs(layer, nodes=max(nodes, 1), edges=edges)
    inputs = [x[:nodes], vectors, weights]
    if mixed:
        inputs = [x[:nodes], vectors, torch.randn(edges, 3), torch.randn(3, weights.shape[1])]

    def run(x, vectors, *factors):
        _, attrs, *_ = cases.arguments(layer, (x, vectors, weights, index))
        return layer(x, attrs, factors[0], index, *factors[1:])

    found = passes(run, inputs)
    assert (operator_of(name), FORWARD) in calls
    kernels(False)
    assert_same(found, passes(run, inputs))


@pytest.mark.parametrize("name", ["aligned", "channelwise", "power", "full"])
def test_memory_layouts(name, kernels, calls):
    layer = cases.BUILD[name]()
    # Not of vectors: e3nn's harmonics of other layouts are rounded differently.
    inputs = cases.arguments(layer, cases.inputs(layer))
    expected = layer(*inputs)
    strided = [t.t().contiguous().t() if t.dim() == 2 else t for t in inputs]
    strided = [t.flip(-1).contiguous().flip(-1) if t.dim() == 3 else t for t in strided]
    assert torch.equal(layer(*strided), expected)
    if name in ("aligned", "channelwise"):
        strided[3] = strided[3].to(torch.int32)
        assert torch.equal(layer(*strided), expected)
    negated = torch.view_as_complex(torch.stack([inputs[0] * 0, -inputs[0]], -1)).conj().imag
    assert negated.is_neg()
    assert torch.equal(layer(negated, *inputs[1:]), expected)
    assert calls


@pytest.mark.parametrize("name", [*CONVOLUTIONS, "power", "paper", "full"])
def test_copies_and_pickles_have_the_kernel(name, kernels, calls):
    layer = cases.BUILD[name]()
    inputs = cases.inputs(layer)
    expected = cases.run(layer, inputs)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        calls.clear()
        assert torch.equal(cases.run(other, inputs), expected)
        assert calls


@pytest.mark.parametrize("name", ["gaunt", "linear", "power parities", "product"])
def test_layers_without_a_kernel(name, kernels, calls):
    layer = cases.BUILD[name]()
    cases.run(layer, cases.inputs(layer))
    assert not calls


def test_other_dtypes_take_the_plain_form(kernels, calls):
    layer = cases.BUILD["aligned"]().to(torch.bfloat16)
    inputs = [t.bfloat16() if t.is_floating_point() else t for t in cases.inputs(layer)]
    assert cases.run(layer, inputs).dtype == torch.bfloat16
    assert not calls


# Convolutions that apply the last layer of the radial network themselves.


def layer_and_inputs(name, edges=10, width=3):
    """A layer, arguments that are not indices, and the edges."""
    layer = cases.BUILD[name]()
    x, attrs, weights, index = cases.arguments(layer, cases.inputs(layer, edges=edges))
    hidden, mixing = torch.randn(edges, width), torch.randn(width, weights.shape[1])
    return layer, [x, attrs, hidden, mixing], index


def apply(layer, index, x, attrs, hidden, mixing):
    return layer(x, attrs, hidden, index, mixing)


@pytest.mark.parametrize("name", cases.CONVOLUTIONS)
def test_mixing_is_a_product_of_matrices(name):
    layer, (x, attrs, hidden, mixing), index = layer_and_inputs(name)
    expected = layer(x, attrs, hidden @ mixing, index)
    found = [layer(x, attrs, hidden, index, mixing)]
    program = torch.jit.script(layer)
    found += [program(x, attrs, hidden, index, mixing), program(x, attrs, hidden @ mixing, index)]
    assert_same(found, [expected] * 3)


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_mixing(name, stored, kernels, calls, monkeypatch):
    if not stored:
        monkeypatch.setattr(edge_sum, "STORED", 0)
    layer, inputs, index = layer_and_inputs(name)
    run = functools.partial(apply, layer, index)
    found = passes(run, inputs)
    third = derivatives(run, [t.requires_grad_() for t in inputs])
    operator = operator_of(name)
    assert of(calls, operator)[:3] == three_passes(operator)
    kernels(False)
    assert_same(found, passes(run, inputs))
    assert_same(third, derivatives(run, inputs))


@pytest.mark.parametrize(
    "build",
    [
        lambda: AlignedConvolution("64x0e+64x1o", "0e+1o", "64x0e+64x1o"),
        lambda: cases.channelwise("64x0e+64x1o", "0e+1o", "0e+1o"),
    ],
    ids=["aligned", "channelwise"],
)
@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_mixing_in_several_blocks_of_edges(build, dtype, onednn, kernels, monkeypatch):
    """The kernel's blocks hold 2^19 weights per thread; either library multiplies them."""
    monkeypatch.setattr(edge_sum, "STORED", 0)
    onednn = onednn and torch.backends.mkldnn.is_available()
    monkeypatch.setattr(cpu_call, "_onednn", lambda: onednn)
    layer = build().to(dtype)
    edges = 2 * (1 << 19) // layer.weight_numel + 100
    x, attrs, _, index = cases.arguments(layer, cases.inputs(layer, nodes=4, edges=edges))
    inputs = [x, attrs, torch.randn(edges, 2), torch.randn(2, layer.weight_numel)]
    inputs = [t.to(dtype) for t in inputs]
    run = functools.partial(apply, layer, index)
    found = passes(run, inputs)
    kernels(False)
    assert_same(found, passes(run, inputs), "program" if dtype == torch.float64 else "program32")


@pytest.mark.parametrize("leaf", [True, False])
def test_forces_leave_out_the_gradient_of_the_radial_layer(leaf, kernels, monkeypatch):
    """What isn't asked for costs nothing; what is asked for comes, whatever the other passes."""
    from gaunt_plugin.ops import _operator

    monkeypatch.setattr(edge_sum, "STORED", 0)
    layer, inputs, index = layer_and_inputs("aligned")
    x, attrs, hidden, parameter = (t.requires_grad_() for t in inputs)
    mixing = parameter if leaf else parameter * 2
    needed, call = [], _operator.call

    def record(name, number, arrays):
        if (name, number) == ("convolution", BACKWARD):
            needed.append(arrays[-1] is not None)
        return call(name, number, arrays)

    monkeypatch.setattr(_operator, "call", record)

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


def test_bad_arguments():
    layer, (x, attrs, hidden, mixing), index = layer_and_inputs("aligned")
    with pytest.raises(ValueError, match=rf"mixing must be \[3, {layer.weight_numel}\], got \[3, "):
        layer(x, attrs, hidden, index, mixing[:, 1:])
    with pytest.raises(ValueError, match=r"weights must be \[10, 3\], got \[9, 3\]"):
        layer(x, attrs, hidden[1:], index, mixing)
    with pytest.raises(ValueError, match=r"weights and mixing .*one dtype.*float64 and .*float32"):
        layer(x, attrs, hidden, index, mixing.float())
