"""Muon: which weights are matrices, its step against plain formulas, and its state."""

import copy
import pickle

import pytest
import torch

from gaunt_plugin.layers import ElementLinear, GauntManyBody, LayoutLinear, Linear
from gaunt_plugin.optim import Muon, grouped, matrices_of, orthogonal, param_groups

from .e3nn_o3 import o3

IRREPS_IN, IRREPS_OUT = "6x0e + 5x1o + 4x0e", "3x0e + 8x1o"


def element_layers():
    return (
        o3.FullyConnectedTensorProduct(IRREPS_IN, "3x0e", IRREPS_OUT),
        ElementLinear(IRREPS_IN, "3x0e", IRREPS_OUT),
    )


def linear_layers():
    simple = "6x0e + 5x1o", "3x0e + 8x1o"
    return o3.Linear(*simple), Linear(*simple), LayoutLinear(*simple, False, True)


def gradient_of(parameter, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)


def step_of(matrix, gradients, lr):
    """Muon's step of one matrix after these gradients, the reference."""
    momentum = torch.zeros_like(matrix)
    for gradient in gradients:
        momentum = 0.95 * momentum + 0.05 * gradient
        update = 0.95 * momentum + 0.05 * gradient
        matrix = matrix - 0.2 * lr * max(matrix.shape) ** 0.5 * orthogonal(update.float())
    return matrix


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (4, 64, 64)])
def test_orthogonal_keeps_singular_vectors_and_equals_values(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = orthogonal(x)
    assert found.shape == x.shape
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    values = torch.einsum("...ui,...uv,...iv->...i", u, found, vh)
    # The smallest values of a large random matrix need more than five iterations.
    assert values[s > 0.02 * s.amax(-1, keepdim=True)].min() > 0.6
    assert values.max() < 1.25
    torch.testing.assert_close((u * values.unsqueeze(-2)) @ vh, found, rtol=0, atol=1e-4)


def test_orthogonal_of_zero_is_zero():
    assert torch.equal(orthogonal(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


@pytest.mark.parametrize("layers", [linear_layers, element_layers])
def test_stock_and_gaunt_layers_have_the_same_matrices(layers):
    first, *others = layers()
    (expected,) = matrices_of(first).values()
    assert len(expected) == len(first.instructions)
    assert sum(u * elements * v for u, elements, v in expected) == first.weight.numel()
    for other in others:
        assert list(matrices_of(other).values()) == [expected]


def test_a_bias_is_no_matrix():
    layer = o3.Linear("4x0e", "3x0e", biases=True)
    assert matrices_of(layer) == {layer.weight: [(4, 1, 3)]}


def test_the_step_is_that_of_each_matrix():
    layer = Linear("6x0e + 5x1o", "3x0e + 8x1o")
    first, second = (w.clone() for w in layer.weight.detach().split([18, 40]))
    optimizer = Muon(param_groups(layer), lr=0.02)
    gradients = [gradient_of(layer.weight, seed) for seed in range(3)]
    for gradient in gradients:
        layer.weight.grad = gradient.clone()
        optimizer.step()
        assert torch.equal(layer.weight.grad, gradient)
    parts = [gradient.split([18, 40]) for gradient in gradients]
    for start, k, shape in ((first, 0, (6, 3)), (second, 1, (5, 8))):
        expected = step_of(start.view(shape), [part[k].view(shape) for part in parts], 0.02)
        found = layer.weight.detach().split([18, 40])[k].view(shape)
        torch.testing.assert_close(found, expected.to(found), rtol=0, atol=1e-5)


def test_each_element_has_a_matrix():
    layer = ElementLinear("4x0e", "3x0e", "5x0e")
    start, gradient = layer.weight.detach().view(4, 3, 5).clone(), gradient_of(layer.weight, 0)
    layer.weight.grad = gradient
    Muon(param_groups(layer), lr=0.02).step()
    for element in range(3):
        expected = step_of(start[:, element], [gradient.view(4, 3, 5)[:, element]], 0.02)
        found = layer.weight.detach().view(4, 3, 5)[:, element]
        torch.testing.assert_close(found, expected.to(found), rtol=0, atol=1e-5)


def test_large_matrices_are_cut():
    layer = torch.nn.Linear(96, 128, bias=False)  # into parts of 48 x 64
    start, gradient = layer.weight.detach().clone(), gradient_of(layer.weight, 0)
    layer.weight.grad = gradient
    Muon(param_groups(layer), lr=0.02).step()
    for rows in (slice(0, 64), slice(64, 128)):
        for columns in (slice(0, 48), slice(48, 96)):
            expected = step_of(start[rows, columns], [gradient[rows, columns]], 0.02)
            found = layer.weight.detach()[rows, columns]
            torch.testing.assert_close(found, expected.to(found), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("parametrization", "factor"), [("full", 20), ("power", 1)])
def test_everything_else_is_adams(parametrization, factor):
    """Weights of a full product with the given part of the learning rate."""
    model = torch.nn.ModuleList(
        [
            torch.nn.Embedding(3, 8),
            GauntManyBody("2x0e+2x1o", "2x0e+2x1o", 3, 2, parametrization),
            torch.nn.Linear(8, 1),
        ]
    )
    assert matrices_of(model) == {}
    twin = copy.deepcopy(model)
    options = {"betas": (0.8, 0.99), "weight_decay": 0.1, "amsgrad": True}
    ours = Muon(grouped(model, [{"params": model.parameters()}], 20), lr=0.03, **options)
    groups = [
        {"params": [*twin[0].parameters(), *twin[2].parameters()], "lr": 0.03},
        {"params": twin[1].parameters(), "lr": factor * 0.03},
    ]
    adam = torch.optim.Adam(groups, **options)
    for seed in range(3):
        for module in (model, twin):
            for k, parameter in enumerate(module.parameters()):
                parameter.grad = gradient_of(parameter, 10 * seed + k)
        ours.step()
        adam.step()
    assert {group["lr"] for group in ours.param_groups} == {0.03}
    total = sum(parameter.numel() for parameter in model.parameters())
    assert ours.summary() == f"Muon for the 0 weights in matrices, Adam for {total} others"
    for found, expected in zip(model.parameters(), twin.parameters()):
        assert torch.equal(found, expected)


def test_weight_decay_of_matrices():
    layer = torch.nn.Linear(4, 4, bias=False)
    start = layer.weight.detach().clone()
    layer.weight.grad = torch.zeros_like(layer.weight)
    Muon(param_groups(layer), lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(layer.weight.detach(), 0.95 * start)


def trained(layers, optimizer, steps):
    for seed in steps:
        for k, parameter in enumerate(layers.parameters()):
            parameter.grad = gradient_of(parameter, 10 * seed + k)
        optimizer.step()
    return [parameter.detach().clone() for parameter in layers.parameters()]


@pytest.mark.parametrize("through", [lambda state: state, lambda s: pickle.loads(pickle.dumps(s))])
def test_training_goes_on_from_a_saved_state(through):
    layers = torch.nn.ModuleList([Linear("6x0e", "3x0e"), torch.nn.Linear(4, 3)])
    twin = copy.deepcopy(layers)
    whole = trained(layers, Muon(param_groups(layers)), range(4))
    first = Muon(param_groups(twin))
    trained(twin, first, range(2))
    second = Muon(param_groups(twin))
    second.load_state_dict(through(copy.deepcopy(first.state_dict())))
    for found, expected in zip(trained(twin, second, range(2, 4)), whole):
        torch.testing.assert_close(found, expected)


def test_a_closure_gives_the_loss():
    layer = torch.nn.Linear(4, 3)
    optimizer = Muon(param_groups(layer))

    def closure():
        optimizer.zero_grad()
        loss = layer(torch.ones(2, 4)).square().sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    for _ in range(30):
        last = optimizer.step(closure)
    assert last < 0.8 * first


def test_hooks_of_a_step_run_once():
    layer = torch.nn.Linear(3, 2)
    torch.optim.Adam(layer.parameters())  # with the first one torch puts hooks around Adam's step
    optimizer, calls = Muon(param_groups(layer)), []
    optimizer.register_step_post_hook(lambda *_: calls.append("hook"))
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert calls == ["hook"]


def test_parameters_without_their_matrices_are_refused():
    layer = torch.nn.Linear(4, 3)
    for parameters in (layer.parameters(), [{"params": layer.parameters()}]):
        with pytest.raises(ValueError, match=r"gaunt_plugin\.optim\.param_groups\(model\)"):
            Muon(parameters)
