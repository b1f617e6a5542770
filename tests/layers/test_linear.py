"""Linear layers against e3nn's."""

import itertools
import pickle

import pytest
import torch

from gaunt_plugin.layers import LayoutLinear, Linear

from ..e3nn_o3 import o3
from ..tolerances import assert_close

IRREPS = {
    "equal": ("3x0e+3x1o+3x2e", "2x0e+2x1o+2x2e"),
    "several paths": ("3x0e+2x1o+4x0e+5x2e+1x1o", "2x0e+3x1o+2x0e+2x2e"),
    "missing": ("3x0e+2x1o", "2x0o+3x1o+2x3o"),
    "none of a kind": ("0x0e+2x1o", "2x0e+3x1o+0x1o"),
}


def turned(x, irreps, back=False):
    """The same with channels last, or back."""
    parts = []
    for part, (mul, ir) in zip(x.split([mul * ir.dim for mul, ir in irreps], dim=1), irreps):
        shape = (ir.dim, mul) if back else (mul, ir.dim)
        parts.append(part.reshape(len(x), *shape).transpose(1, 2).reshape(len(x), mul * ir.dim))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("last", list(itertools.product((False, True), repeat=2)))
@pytest.mark.parametrize("irreps", IRREPS.values(), ids=IRREPS)
def test_same_weights_same_result(irreps, last):
    torch.manual_seed(0)
    stock = o3.Linear(*irreps)
    torch.manual_seed(0)
    ours = LayoutLinear(*irreps, *last) if any(last) else Linear(*irreps)
    if not any(last):
        assert ours.state_dict().keys() == stock.state_dict().keys()
    assert torch.equal(ours.weight, stock.weight)  # the same random numbers in the same layout
    again = pickle.loads(pickle.dumps(ours))
    for nodes in (5, 1, 0):
        x = torch.randn(nodes, stock.irreps_in.dim)
        expected = stock(x)
        given = turned(x, stock.irreps_in) if last[0] else x
        for layer in (ours, torch.jit.script(ours), again):
            found = layer(given)
            found = turned(found, stock.irreps_out, True) if last[1] else found
            assert_close(found, expected, "oracle")


@pytest.mark.parametrize("irreps", IRREPS.values(), ids=IRREPS)
def test_derivatives(irreps):
    layer = Linear(*irreps)
    x = torch.randn(3, layer.irreps_in.dim, requires_grad=True)

    def function(x, weight):
        return layer.mixing(x, weight)

    assert torch.autograd.gradcheck(function, (x, layer.weight))
    assert torch.autograd.gradgradcheck(function, (x, layer.weight))


def test_a_bias():
    with pytest.raises(ValueError, match="bias"):
        Linear("2x0e", "2x0e", biases=True)


def test_a_layer_of_the_first_models():
    """They have the layout in the layer itself."""
    layer = LayoutLinear("3x0e+2x1o", "2x0e+3x1o", True, False)
    x = torch.randn(4, layer.irreps_in.dim)
    expected = layer(x)
    del layer.mixing
    layer.last_in, layer.last_out = True, False
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)
