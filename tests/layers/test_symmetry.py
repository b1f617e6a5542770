import pytest
import torch

from gaunt_plugin.layers import (
    AlignedConvolution,
    GauntConvolution,
    GauntManyBody,
    GauntTensorProduct,
)

from ..e3nn_o3 import o3
from ..tolerances import assert_close
from . import cases
from .cases import both, natural

HIGH = {
    "power, lmax 8": lambda: GauntManyBody(natural(2, 8), natural(2, 8), 2, 3, rank=2),
    "full, lmax 8": lambda: GauntManyBody(natural(2, 8), natural(2, 8), 2, 3, "full"),
    "gaunt, lmax 8": lambda: GauntConvolution(natural(2, 8), natural(1, 8), natural(2, 8)),
    "aligned, lmax 8": lambda: AlignedConvolution(natural(2, 8), natural(1, 1), natural(2, 8)),
    "power, correlation 8": lambda: GauntManyBody(natural(2, 2), natural(2, 2), 8, 3, rank=2),
    "nested, correlation 8": lambda: GauntManyBody(
        both(2, 1), both(2, 2), 8, 3, "nested", 1, antisymmetric=True
    ),
    "nested, lmax 8": lambda: GauntManyBody(natural(2, 8), natural(2, 8), 3, 3, "nested", 2),
    "paper, correlation 8": lambda: GauntManyBody(natural(2, 8), natural(2, 1), 8, 3, "paper"),
    "product, lmax 10": lambda: GauntTensorProduct(both(2, 10), both(2, 10), both(2, 10), "uuu"),
    "product mixed, lmax 6": lambda: GauntTensorProduct(both(1, 6), both(2, 4), both(3, 6)),
    "full, lmax 4": lambda: GauntManyBody(natural(2, 4), natural(2, 2), 3, 3, "full"),
}
EVERY = {**cases.BUILD, **HIGH}

ROTATION = o3.angles_to_matrix(*torch.tensor([0.3, 1.2, -2.0], dtype=torch.float64))
MATRICES = {
    "rotation": ROTATION,
    "half turn": torch.diag(torch.tensor([1.0, -1, -1], dtype=torch.float64)),
    "inversion": -torch.eye(3, dtype=torch.float64),
    "rotation and inversion": -ROTATION,
}


def output_matrix(layer, matrix):
    return layer.irreps_out.D_from_matrix(matrix).T


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
@pytest.mark.parametrize("name", cases.NAMES)
def test_equivariance(name, matrix):
    check(cases.BUILD[name](), matrix)


@pytest.mark.parametrize("name", HIGH)
def test_equivariance_at_high_degrees_and_orders(name):
    layer = HIGH[name]()
    for matrix in (ROTATION, -ROTATION):
        check(layer, matrix)


def check(layer, matrix):
    inputs = cases.inputs(layer)
    expected = cases.run(layer, inputs) @ output_matrix(layer, matrix)
    assert expected.abs().max() > 1e-3
    assert_close(cases.run(layer, cases.rotate(layer, inputs, matrix)), expected, "equivariance")


@pytest.mark.parametrize("name", EVERY)
def test_equivariance_in_float32(name):
    layer = EVERY[name]()
    inputs = cases.inputs(layer)
    turned = cases.rotate(layer, inputs, -ROTATION)
    exact = cases.run(layer, inputs)
    layer.float()
    y, z = (
        cases.run(layer, [t.float() if t.is_floating_point() else t for t in given])
        for given in (inputs, turned)
    )
    assert y.dtype == z.dtype == torch.float32
    assert_close(y, exact, "float32")
    assert_close(z, y.double() @ output_matrix(layer, -ROTATION), "float32")


@pytest.mark.parametrize("name", cases.NAMES)
def test_order_of_nodes_does_not_matter(name):
    layer = cases.BUILD[name]()
    inputs = cases.inputs(layer)
    order = torch.randperm(len(inputs[0]))
    expected = cases.run(layer, inputs)[order]
    if name in cases.CONVOLUTIONS:
        x, vectors, weights, edge_index = inputs
        where = torch.argsort(order)
        shuffled = torch.randperm(len(vectors))
        inputs = (x[order], vectors[shuffled], weights[shuffled], where[edge_index][:, shuffled])
    else:
        inputs = tuple(t[order] if len(t) == len(order) else t for t in inputs)
    assert_close(cases.run(layer, inputs), expected, "oracle")


@pytest.mark.parametrize("name", [name for name in cases.NAMES if name not in cases.MIXING])
def test_order_of_channels_does_not_matter(name):
    """Channels don't mix: a change in channel 0 leaves channel 1 alone."""
    layer = cases.BUILD[name]()
    inputs = cases.inputs(layer)
    x = inputs[0].clone()
    if name not in cases.MANY_BODY:
        start = 0
        for mul, ir in cases.irreps_in(layer)[0]:
            x[:, start : start + ir.dim] += 1
            start += mul * ir.dim
    else:
        x[:, 0] += 1
    change = (cases.run(layer, (x, *inputs[1:])) - cases.run(layer, inputs)).abs().amax(0)
    for part in change.split([mul * ir.dim for mul, ir in layer.irreps_out]):
        assert part.chunk(2)[0].max() > 0
        assert part.chunk(2)[1].max() == 0
