import pytest
import torch

from gaunt_plugin.layers import (
    AlignedConvolution,
    GauntConvolution,
    GauntManyBody,
    GauntSelfmix,
    GauntTensorProduct,
)
from gaunt_plugin.ops import checkpointing

from ..tolerances import assert_close
from . import cases

SMALL = {
    "power": lambda: GauntManyBody("0e+1o+2e", "0e+1o", 3, cases.ELEMENTS, rank=1),
    "paper": lambda: GauntManyBody("0e+1o+2e", "0e+1o", 4, cases.ELEMENTS, "paper"),
    "full": lambda: GauntManyBody("0e+1o+2e", "0e+1o", 3, cases.ELEMENTS, "full"),
    "nested": lambda: GauntManyBody("0e+1o+2e", "0e+1o", 3, cases.ELEMENTS, "nested", 1),
    "nested brackets": lambda: GauntManyBody(
        "0e+1o+2e", "1e+2o", 3, cases.ELEMENTS, "nested", 1, antisymmetric=True
    ),
    "gaps": lambda: GauntManyBody("1o+3o", "0e+2e", 2, cases.ELEMENTS, rank=1),
    "power parities": lambda: GauntManyBody("1e+0e+1o", "0o+1e", 3, cases.ELEMENTS, rank=1),
    "gaunt": lambda: GauntConvolution("0e+1o", "0e+1o+2e", "0e+1o+2e"),
    "aligned": lambda: AlignedConvolution("0e+1o+2e", "1o", "1o+2e"),
    "aligned scalars": lambda: AlignedConvolution("0e", "0e+1o+2e", "0e+2e"),
    "channelwise": lambda: cases.channelwise("2x0e+1o", "0e+1o+2e", "0e+1o+1e"),
    "product": lambda: GauntTensorProduct("1o+1e", "1o+1e", "0e+1o+1e", "uuu"),
    "product mixed": lambda: GauntTensorProduct("2x1o+0o", "1o+1e", "2x1o+1e", rank=2),
    "selfmix": lambda: GauntSelfmix("1o+0e+1e"),
}


def function_and_inputs(name):
    """A function of all that the layer can be differentiated in, and its inputs."""
    layer = SMALL[name]()
    parameters = dict(layer.named_parameters())
    if name in cases.CONVOLUTIONS:
        x, vectors, weights, edge_index = cases.inputs(layer, nodes=2, edges=3)
        # one edge along the polar axis of the harmonics, where frames are singular
        vectors[0] = torch.tensor([0.0, -1.3, 0.0])

        def function(x, vectors, weights):
            return cases.run(layer, (x, vectors, weights, edge_index))

        inputs = [x, vectors, weights]
    elif name in cases.PRODUCTS:
        inputs = [*cases.inputs(layer, nodes=2), layer.weight.detach()]
        function = layer
    elif name in cases.SELFMIX:

        def function(x, *weights):
            new = dict(zip(parameters, weights, strict=True))
            return torch.func.functional_call(layer, new, (x,))

        inputs = [*cases.inputs(layer, nodes=2), *(w.detach() for w in parameters.values())]
    else:
        x, _ = cases.inputs(layer, nodes=2)

        def function(x, node_attrs, *weights):
            new = dict(zip(parameters, weights, strict=True))
            return torch.func.functional_call(layer, new, (x, node_attrs))

        attrs = torch.rand(2, cases.ELEMENTS)
        inputs = [x, attrs, *(w.detach() for w in parameters.values())]
        if name == "full":  # whose kernel has no gradient of node_attrs
            with_attrs = function
            function = lambda x, *weights: with_attrs(x, attrs, *weights)  # noqa: E731
            del inputs[1]
    return function, [t.clone().requires_grad_() for t in inputs]


@pytest.mark.parametrize("name", SMALL)
def test_first_derivatives(name):
    function, inputs = function_and_inputs(name)
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("name", SMALL)
def test_second_derivatives(name):
    function, inputs = function_and_inputs(name)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("name", cases.NAMES)
def test_every_weight_matters(name):
    layer = cases.BUILD[name]()
    arguments = cases.arguments(layer, cases.inputs(layer))
    parameters = dict(layer.named_parameters())
    assert bool(parameters) == (name in cases.WITH_PARAMETERS)
    _, x, *others = cases.value_and_gradients(layer, arguments, parameters.values())
    assert (x != 0).any(dim=-1).any()
    for gradient, parameter in zip(reversed(others), reversed(parameters), strict=False):
        assert (gradient != 0).all(), parameter


LARGE = {
    # More numbers on the grid, or in messages, than the layers treat at once.
    "power": lambda: GauntManyBody("32x0e+32x1o", "32x0e+32x1o", 3, cases.ELEMENTS),
    "paper": lambda: GauntManyBody("64x0e+64x1o", "64x0e+64x1o", 4, cases.ELEMENTS, "paper"),
    "nested": lambda: GauntManyBody("16x0e+16x1o", "16x0e+16x1o", 3, cases.ELEMENTS, "nested"),
    "full": lambda: GauntManyBody("16x0e+16x1o", "16x0e+16x1o", 3, cases.ELEMENTS, "full"),
    "gaunt": lambda: GauntConvolution("8x0e+8x1o", "0e+1o", "8x0e+8x1o"),
    "aligned": lambda: AlignedConvolution("256x1o", "1o", "256x1o"),
    "aligned scalars": lambda: AlignedConvolution("256x0e", "0e+1o", "256x0e+256x1o"),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_inputs_are_the_sum_of_small_ones(name):
    """Value, first and second derivatives, as training on forces takes them."""
    layer = LARGE[name]()
    inputs = cases.inputs(layer, nodes=200, edges=5_500)
    whole = force_training(layer, inputs, [slice(None)])
    count = len(inputs[1])
    step = -(-count // 8)
    pieces = force_training(layer, inputs, [slice(i, i + step) for i in range(0, count, step)])
    for a, b in zip(whole, pieces, strict=True):
        assert_close(a, b, "oracle")


def force_training(layer, inputs, pieces):
    """Energy, its gradients in the inputs, and the gradients of the sum of their squares."""
    inputs = [t.clone().requires_grad_() if t.is_floating_point() else t for t in inputs]
    leaves = [t for t in inputs if t.requires_grad]
    energy = 0
    for piece in pieces:
        if isinstance(layer, GauntManyBody):
            rows = [t[piece] for t in inputs]
        else:
            x, vectors, weights, edge_index = inputs
            rows = [x, vectors[piece], weights[piece], edge_index[:, piece]]
        out = cases.run(layer, rows)
        energy = energy + (out * torch.cos(torch.arange(out.shape[1], dtype=out.dtype))).sum()
    first = torch.autograd.grad(energy, leaves, create_graph=True)
    loss = sum(g.square().sum() for g in first)
    second = torch.autograd.grad(loss, [*leaves, *layer.parameters()], materialize_grads=True)
    return [energy, *first, *second]


@pytest.mark.parametrize("name", SMALL)
def test_hessians_in_one_sweep(name):
    """As MACE computes them: the second backward pass under vmap."""
    function, inputs = function_and_inputs(name)
    variable = inputs[1 if name in cases.CONVOLUTIONS else 0]
    # Squared: products are linear in each of their arguments.
    energy = function(*inputs).square().sum()
    (first,) = torch.autograd.grad(energy, variable, create_graph=True)

    def row(direction):
        return torch.autograd.grad(first.flatten(), variable, direction, retain_graph=True)[0]

    directions = torch.eye(variable.numel())
    expected = torch.stack([row(v) for v in directions])
    assert expected.abs().max() > 0
    assert_close(torch.vmap(row)(directions), expected, "oracle")
    matrix = expected.view(variable.numel(), -1)
    assert_close(matrix, matrix.T, "oracle")


def test_products_of_many_rows(monkeypatch):
    """Made again block by block: the same values and derivatives, under vmap too."""
    layer = GauntTensorProduct("1o+1e", "1o+1e", "0e+1o+1e", "uuu")
    x, y = (torch.randn(3, 6, requires_grad=True) for _ in range(2))

    def results():
        energy = layer(x, layer(x, y).repeat(1, 2)[:, :6]).pow(3).sum()
        first = torch.autograd.grad(energy, (x, y, layer.weight), create_graph=True)
        second = torch.autograd.grad(first[0].pow(3).sum(), (x, y, layer.weight), create_graph=True)
        third = torch.autograd.grad(
            second[0].square().sum(), (x, y, layer.weight), retain_graph=True
        )
        row = torch.vmap(lambda v: torch.autograd.grad(first[0], x, v, retain_graph=True)[0])
        return [energy, *first, *second, *third, row(torch.eye(18).view(18, 3, 6))]

    expected = results()
    monkeypatch.setattr(checkpointing, "LARGE", 0)
    monkeypatch.setitem(checkpointing.BLOCK, "cpu", 2 * layer.product.nodes)
    for actual, value in zip(results(), expected, strict=True):
        assert_close(actual, value, "oracle")
    inputs = [x, y, layer.weight.detach().clone().requires_grad_()]
    assert torch.autograd.gradgradcheck(layer, inputs)
