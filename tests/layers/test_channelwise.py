"""The convolution whose paths stay apart, against e3nn's tensor product."""

import pytest
import torch

from gaunt_plugin.layers import ChannelwiseConvolution

from ..e3nn_o3 import o3
from ..tolerances import assert_close
from . import cases

ALL = "0e+0o+1o+1e+2e+2o+3o+3e"
IRREPS = {
    "natural parity": ("3x0e+3x1o+3x2e+3x3o", "0e+1o+2e+3o", "0e+1o+2e+3o"),
    "both parities": ("2x0e+2x0o+2x1o+2x1e+2x2e+2x2o", "0e+1o+2e+3o", ALL),
    "pseudo harmonics": ("2x1o+2x2e", "1e+0o+2o", ALL),
    "other multiplicities": ("4x0e+1x1o+3x2e", "2e+0e+1o", "0e+1o+1e+2e+3o"),
    "high degrees": ("1x4e+2x5o", "0e+3o+6e", "2e+4e+5o+9o"),
    "an irrep twice": ("2x1o+3x1o", "0e+2e", "1o+2e"),
}


def graph(layer, nodes=5, edges=12):
    x, _, weights, index = cases.inputs(layer, nodes, edges)
    # any numbers: the product is linear in them
    return x, torch.randn(edges, layer.irreps_edge.dim), weights, index


def expected_of(product, x, attrs, weights, index):
    messages = product(x[index[0]], attrs, weights)
    return torch.zeros(len(x), messages.shape[1]).index_add(0, index[1], messages)


def product_of(layer, instructions):
    arguments = layer.irreps_in, layer.irreps_edge, layer.irreps_out, instructions
    return o3.TensorProduct(*arguments, shared_weights=False, internal_weights=False)


@pytest.mark.parametrize("by_output", [False, True])
@pytest.mark.parametrize("name", IRREPS)
def test_against_e3nn(name, by_output):
    """Weights in the order of the instructions: NequIP's, or MACE's, which sorts by the output."""
    layer = cases.channelwise(*IRREPS[name])
    instructions = [(i, j, k, "uvu", True) for i, j, k in layer.instructions]
    if by_output:
        instructions.sort(key=lambda instruction: instruction[2])
        layer = ChannelwiseConvolution(
            layer.irreps_in, layer.irreps_edge, layer.irreps_out, instructions
        )
    product = product_of(layer, instructions)
    assert layer.weight_numel == product.weight_numel
    arguments = graph(layer)
    assert_close(layer(*arguments), expected_of(product, *arguments), "oracle")
    again = ChannelwiseConvolution.from_tensor_product(product)
    assert_close(again(*arguments), layer(*arguments), "oracle")


def test_weights_of_paths():
    """Those of a finished tensor product are taken over."""
    layer = cases.channelwise("2x0e+2x1o", "0e+1o", "0e+1o")
    instructions = [
        (i, j, k, "uvu", True, 1.0 + n) for n, (i, j, k) in enumerate(layer.instructions)
    ]
    product = product_of(layer, instructions)
    other = ChannelwiseConvolution.from_tensor_product(product)
    arguments = graph(layer)
    assert_close(other(*arguments), expected_of(product, *arguments), "oracle")
    assert (other(*arguments) - layer(*arguments)).abs().max() > 0.1


@pytest.mark.parametrize("name", IRREPS)
def test_channels_last(name):
    """Adjacent equal irreps share their components."""
    layer = cases.channelwise(*IRREPS[name])
    x, *others = graph(layer)
    parts = [
        x[:, s].view(-1, mul, ir.dim).transpose(1, 2).flatten(1)
        for s, (mul, ir) in zip(layer.irreps_in.slices(), layer.irreps_in, strict=True)
    ]
    out = layer.channels_last(torch.cat(parts, dim=1), *others)
    back = [
        out[:, s].view(-1, ir.dim, mul).transpose(1, 2).flatten(1)
        for s, (mul, ir) in zip(layer.irreps_mixed.slices(), layer.irreps_mixed, strict=True)
    ]
    assert torch.equal(torch.cat(back, dim=1), layer(x, *others))


PATHS = [(0, 0, 0), (1, 0, 1)]
WRONG = {
    "multiplicity of an edge": (("2x0e", "2x0e", "2x0e", PATHS[:1]), r"multiplicity 1, got 2x0e"),
    "mode": (("2x0e", "0e", "2x0e", [(0, 0, 0, "uvw", True)]), r"'uvu' with weights, got \(0"),
    "no weight": (("2x0e", "0e", "2x0e", [(0, 0, 0, "uvu", False)]), r"'uvu' with weights"),
    "no such irrep": (("2x0e", "0e", "2x0e", [(0, 1, 0)]), r"no irrep 1 of 1x0e .*\(0, 1, 0\)"),
    "parity": (("2x0e", "1o", "2x1e", PATHS[:1]), r"0e x 1o doesn't couple to 1e"),
    "degree": (("2x1o", "1o", "2x3e", PATHS[:1]), r"1o x 1o doesn't couple to 3e"),
    "multiplicity": (("2x0e", "0e", "3x0e", PATHS[:1]), r"irrep 0 of irreps_out must be 2x0e"),
    "block without a path": (("2x0e", "0e", "2x0e+2x0e", PATHS[:1]), r"one instruction.*\[0\]"),
    "block with two paths": (
        ("2x0e+2x0e", "0e", "2x0e", [(0, 0, 0), (1, 0, 0)]),
        r"one instruction.*\[0, 0\]",
    ),
    "no paths": (("2x0e", "0e", "", []), "one instruction"),
    "number of weights": (
        ("2x0e+2x1o", "0e", "2x0e+2x1o", PATHS, [1.0]),
        r"each of the 2 instructions, got 1",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ChannelwiseConvolution(*arguments)


def test_tensor_product_with_weights_of_its_own():
    product = o3.TensorProduct("2x0e", "0e", "2x0e", [(0, 0, 0, "uvu", True)])
    with pytest.raises(ValueError, match="weights of its own"):
        ChannelwiseConvolution.from_tensor_product(product)
