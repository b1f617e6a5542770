import pytest
import torch

from gaunt_plugin.layers import AlignedConvolution, GauntConvolution, GauntManyBody

from . import cases

SMALL = {
    "power": lambda: GauntManyBody("0e+1o+2e", "0e+1o", 3, cases.ELEMENTS, views=1),
    "paper": lambda: GauntManyBody("0e+1o+2e", "0e+1o", 4, cases.ELEMENTS, "paper"),
    "full": lambda: GauntManyBody("0e+1o+2e", "0e+1o", 3, cases.ELEMENTS, "full"),
    "gaps": lambda: GauntManyBody("1o+3o", "0e+2e", 2, cases.ELEMENTS, views=1),
    "gaunt": lambda: GauntConvolution("0e+1o", "0e+1o+2e", "0e+1o+2e"),
    "aligned": lambda: AlignedConvolution("0e+1o+2e", "1o", "1o+2e"),
    "aligned scalars": lambda: AlignedConvolution("0e", "0e+1o+2e", "0e+2e"),
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
    else:
        x, _ = cases.inputs(layer, nodes=2)

        def function(x, node_attrs, *weights):
            new = dict(zip(parameters, weights, strict=True))
            return torch.func.functional_call(layer, new, (x, node_attrs))

        inputs = [x, torch.rand(2, cases.ELEMENTS), *(w.detach() for w in parameters.values())]
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
    assert bool(parameters) == (name in cases.MANY_BODY)
    _, x, *others = cases.value_and_gradients(layer, arguments, parameters.values())
    assert (x != 0).any(dim=-1).any()
    for gradient, parameter in zip(others[1:], parameters, strict=False):
        assert (gradient != 0).all(), parameter
