"""ElementLinear against the layer of e3nn that it replaces."""

import pytest
import torch

from gaunt_plugin.layers import ElementLinear

from ..e3nn_o3 import o3
from ..tolerances import assert_close

ATTRIBUTES = 4
IRREPS = {
    "equal": ("3x0e+3x1o", "2x0e+2x1o"),
    "missing and repeated": ("3x0e+2x1o+4x0e+5x2e", "2x0e+3x1o+2x0e+3x3o+2x1o"),
    "parities": ("2x0e+2x0o+3x1e", "4x1e+4x1o+2x0o"),
}
WAYS = ["grouped", "node by node"]


def layers(irreps, way):
    torch.manual_seed(0)
    stock = o3.FullyConnectedTensorProduct(irreps[0], f"{ATTRIBUTES}x0e", irreps[1])
    torch.manual_seed(0)
    ours = ElementLinear(irreps[0], f"{ATTRIBUTES}x0e", irreps[1])
    ours.large = 0 if way == "grouped" else 1 << 60
    return stock, ours


def inputs(irreps, nodes=9):
    """Features, attributes that depend on the type, types of which one does not occur."""
    types = torch.tensor([2, 0, 3])[torch.randint(3, (nodes,))]
    return torch.randn(nodes, o3.Irreps(irreps[0]).dim), torch.randn(5, ATTRIBUTES)[types], types


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("irreps", IRREPS.values(), ids=IRREPS)
def test_same_weights_same_result(irreps, way):
    stock, ours = layers(irreps, way)
    assert torch.equal(stock.weight, ours.weight)  # the same random numbers in the same layout
    x, attrs, types = inputs(irreps)
    assert_close(ours(x, attrs, types), stock(x, attrs), "oracle")
    scripted = torch.jit.script(ours)
    for nodes in (9, 5, 1):
        x, attrs, types = inputs(irreps, nodes)
        assert_close(scripted(x, attrs, types), stock(x, attrs), "oracle")
    one_hot = torch.nn.functional.one_hot(types, ATTRIBUTES).to(x.dtype)
    assert_close(ours(x, one_hot), stock(x, one_hot), "oracle")
    assert_close(scripted(x, one_hot), stock(x, one_hot), "oracle")


@pytest.mark.parametrize("way", [*WAYS, "type by type"])
def test_gradients_of_weights_and_attributes(way):
    """Of the embedding too, from which all nodes of a type take their row."""
    irreps = IRREPS["missing and repeated"]
    results = []
    for layer in layers(irreps, way):
        torch.manual_seed(1)
        embedding = torch.randn(5, ATTRIBUTES, requires_grad=True)
        x, _, types = inputs(irreps)
        x.requires_grad_()
        if way == "type by type" and isinstance(layer, ElementLinear):
            y = layer._type_by_type(x, embedding[types], types, 5)
        elif isinstance(layer, ElementLinear):
            y = layer(x, embedding[types], types)
        else:
            y = layer(x, embedding[types])
        y = y.square().sum()
        wanted = (x, embedding, layer.weight)
        first = torch.autograd.grad(y, wanted, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
        results.append([*first, *second])
    for ours, stock in zip(results[1], results[0], strict=True):
        assert_close(ours, stock, "oracle")


@pytest.mark.parametrize("way", WAYS)
def test_no_nodes(way):
    _, ours = layers(IRREPS["equal"], way)
    x, attrs, types = inputs(IRREPS["equal"], 0)
    assert ours(x, attrs, types).shape == (0, 8)


def test_recorded_graphs_hold_no_sizes_of_the_data():
    """Also in make_fx, which NequIP compiles with, where torch.compile's own flag is not set."""
    from torch.fx.experimental.proxy_tensor import make_fx

    torch.compiler.reset()
    irreps = IRREPS["equal"]
    _, ours = layers(irreps, "grouped")
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager", dynamic=True)
    recorded = make_fx(lambda *a: ours(*a), tracing_mode="symbolic", _allow_non_fake_inputs=True)(
        *inputs(irreps, 9)
    )
    for nodes in (9, 7, 12):
        args = inputs(irreps, nodes)
        for graph in (compiled, recorded):
            assert_close(graph(*args), ours(*args), "program")


def test_recorded_graphs_go_type_by_type(monkeypatch):
    """With the number of types known, one of them maybe without nodes."""
    torch.compiler.reset()
    irreps, attributes, num_types = IRREPS["missing and repeated"], 7, 4
    ours = ElementLinear(irreps[0], f"{attributes}x0e", irreps[1])
    embedding = torch.randn(num_types, attributes, requires_grad=True)

    def passes(layer, x, types):
        y = layer(x, embedding[types], types, num_types)
        return [y, *torch.autograd.grad(y.square().sum(), (x, embedding, ours.weight))]

    traced, type_by_type = [], ElementLinear._type_by_type

    def counting(*args):
        traced.append(1)
        return type_by_type(*args)

    monkeypatch.setattr(ElementLinear, "_type_by_type", counting)
    compiled = torch.compile(ours, backend="aot_eager", dynamic=True)
    for nodes in (9, 7, 12):
        x, _, types = inputs(irreps, nodes)
        x.requires_grad_()
        expected = passes(ours, x, types)
        for a, b in zip(passes(compiled, x, types), expected, strict=True):
            assert_close(a, b, "program")
    assert traced


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"2x0e and 2x1o have no irrep in common"):
        ElementLinear("2x0e", "3x0e", "2x1o")
    for wrong in ("3x0o", "3x1o", "3x0e+1x0o", ""):
        with pytest.raises(ValueError, match="even scalars"):
            ElementLinear("2x0e", wrong, "2x0e")


@pytest.mark.parametrize("given", [True, False])
def test_nodes_of_one_type_with_different_attributes(given):
    """Alchemical mixing, an average of elements: the same result for small and large inputs."""
    irreps = IRREPS["missing and repeated"]
    results = []
    for way in WAYS:
        stock, ours = layers(irreps, way)
        x, _, types = inputs(irreps)
        attrs = torch.rand(len(x), ATTRIBUTES).softmax(1).requires_grad_()
        found = ours(x, attrs.detach(), types if given else None)
        assert_close(found, stock(x, attrs.detach()), "oracle")
        results.append(torch.autograd.grad(ours(x, attrs, types).square().sum(), attrs)[0])
    assert_close(results[0], results[1], "oracle")
