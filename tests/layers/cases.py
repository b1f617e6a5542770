"""Every kind of layer, with inputs, for the tests that hold for all of them."""

import torch

from gaunt_plugin.layers import (
    AlignedConvolution,
    ChannelwiseConvolution,
    GauntConvolution,
    GauntManyBody,
    GauntSelfmix,
    GauntTensorProduct,
)

from ..e3nn_o3 import o3

ELEMENTS = 3


def channelwise(irreps_in, irreps_edge, irreps_wanted):
    """Every path to the wanted irreps, ordered as in NequIP: not by what they give."""
    irreps_in, irreps_edge = o3.Irreps(irreps_in), o3.Irreps(irreps_edge)
    wanted = {ir for _, ir in o3.Irreps(irreps_wanted)}
    paths = [
        (i, j, mul, ir)
        for i, (mul, ir_in) in enumerate(irreps_in)
        for j, (_, ir_edge) in enumerate(irreps_edge)
        for ir in ir_in * ir_edge
        if ir in wanted
    ]
    irreps_out, places, _ = o3.Irreps([(mul, ir) for _, _, mul, ir in paths]).sort()
    instructions = [(i, j, k, "uvu", True) for (i, j, _, _), k in zip(paths, places)]
    return ChannelwiseConvolution(irreps_in, irreps_edge, irreps_out, instructions)


BUILD = {
    "power": lambda: GauntManyBody("2x0e+2x1o+2x2e", "2x0e+2x1o", 3, ELEMENTS, rank=2),
    "paper": lambda: GauntManyBody("2x0e+2x1o+2x2e", "2x0e+2x1o", 3, ELEMENTS, "paper"),
    "full": lambda: GauntManyBody("2x0e+2x1o+2x2e", "2x0e+2x1o", 3, ELEMENTS, "full"),
    # no term of order one, gaps in the degrees
    "gaps": lambda: GauntManyBody("2x1o+2x3o", "2x0e+2x2e", 4, ELEMENTS, rank=2),
    "gaps full": lambda: GauntManyBody("2x1o+2x3o", "2x0e+2x2e", 2, ELEMENTS, "full"),
    "full parities": lambda: GauntManyBody(
        "2x1e+2x0e+2x1o", "2x0o+2x1o+2x0e+2x1e", 3, ELEMENTS, "full"
    ),
    "linear": lambda: GauntManyBody("2x0e+2x1o", "2x1o", 1, ELEMENTS),
    "power parities": lambda: GauntManyBody(
        "2x1e+2x0e+2x0o+2x1o+2x2e", "2x0o+2x1o+2x0e+2x1e", 3, ELEMENTS, rank=2
    ),
    "paper parities": lambda: GauntManyBody("2x0e+2x1o+2x1e", "2x0o+2x0e", 4, ELEMENTS, "paper"),
    "power pseudo": lambda: GauntManyBody("2x1e+2x0o", "2x0e+2x1e", 3, ELEMENTS, rank=2),
    "nested": lambda: GauntManyBody("2x0e+2x1o+2x2e", "2x0e+2x1o", 3, ELEMENTS, "nested", 2),
    "nested gaps": lambda: GauntManyBody("2x1o+2x3o", "2x0e+2x2e", 4, ELEMENTS, "nested", 1),
    "nested parities": lambda: GauntManyBody(
        "2x1e+2x0e+2x1o+2x2e", "2x0o+2x1o+2x1e", 3, ELEMENTS, "nested", 2
    ),
    "nested brackets": lambda: GauntManyBody(
        "2x0e+2x1o+2x2e", "2x0e+2x1e+2x2o", 3, ELEMENTS, "nested", 2, antisymmetric=True
    ),
    "nested parities and brackets": lambda: GauntManyBody(
        "2x1e+2x0e+2x1o", "2x0o+2x1o+2x1e", 3, ELEMENTS, "nested", 1, antisymmetric=True
    ),
    "gaunt": lambda: GauntConvolution("2x0e+2x1o", "0e+1o+2e", "2x0e+2x1o+2x2e"),
    "aligned": lambda: AlignedConvolution("2x0e+2x1o+2x2e", "0e+1o", "2x0e+2x1o+2x2e"),
    "aligned parities": lambda: AlignedConvolution(
        "2x0e+2x0o+2x1e+2x1o+2x2e", "0e+1o", "2x0o+2x0e+2x1o+2x1e+2x2o"
    ),
    "aligned scalars": lambda: AlignedConvolution("2x0e", "0e+1o+2e", "2x0e+2x2e"),
    "aligned scalar parities": lambda: AlignedConvolution(
        "2x0o+2x0e", "0e+1o+2e", "2x0o+2x0e+2x1e+2x2e"
    ),
    # no path reads 0o
    "channelwise": lambda: channelwise("2x0e+2x0o+2x1o+2x2e", "0e+1o+2e", "0e+1o+2e"),
    "channelwise parities": lambda: channelwise(
        "4x0e+2x0o+2x1e+2x1o", "1o+0e+2e", "0e+0o+1e+1o+2e+2o"
    ),
}
_BOTH = "2x0e+2x0o+2x1o+2x1e+2x2e+2x2o"
BUILD |= {
    "product": lambda: GauntTensorProduct(_BOTH, _BOTH, _BOTH, "uuu", rank=2),
    "product mixed": lambda: GauntTensorProduct(
        "3x1e+2x0e+1x1o+2x1o", "2x1o+1x2e", "2x1o+1x0o+3x2o+1x1o+2x1e"
    ),
    "product natural": lambda: GauntTensorProduct("2x1o+2x2e", "2x0e+2x1o", "2x1o+2x2e", "uuu"),
    "product bracket": lambda: GauntTensorProduct("2x1o+2x2e", "2x1o+2x2e", "2x1e", "uuu"),
    "product external": lambda: GauntTensorProduct(
        "2x1o+2x0o", "2x1e+2x1o", "2x1e+2x0e", "uuu", rank=2, internal_weights=False
    ),
    "product external rows": lambda: GauntTensorProduct(
        "2x1o+1x0o", "2x1e+3x1o", "2x1e+2x0e", shared_weights=False
    ),
    "selfmix": lambda: GauntSelfmix("2x0e+2x1o+2x2e"),
    "selfmix parities": lambda: GauntSelfmix("2x1e+2x0e+2x2o+2x1o+2x0o", rank=2),
    "selfmix gaps": lambda: GauntSelfmix("2x1o+2x0e", rank=2, antisymmetric=False),
}
NAMES = list(BUILD)
CONVOLUTIONS = [name for name in NAMES if name.startswith(("gaunt", "aligned", "channelwise"))]
PRODUCTS = [name for name in NAMES if name.startswith("product")]
SELFMIX = [name for name in NAMES if name.startswith("selfmix")]
MANY_BODY = [name for name in NAMES if name not in CONVOLUTIONS + PRODUCTS + SELFMIX]
# Layers whose weights are parameters, and layers that mix channels.
WITH_PARAMETERS = [name for name in NAMES if name not in CONVOLUTIONS and "external" not in name]
MIXING = ["product mixed", "product external rows"]


def inputs(layer, nodes=6, edges=10):
    """Random inputs that can be rotated.

    Node features and one-hot elements; features; two features and weights, if external; or node
    features, edge vectors, weights and edges.
    """
    if isinstance(layer, GauntManyBody):
        elements = torch.arange(nodes) % ELEMENTS
        one_hot = torch.nn.functional.one_hot(elements, ELEMENTS).to(torch.get_default_dtype())
        return torch.randn(nodes, layer.irreps_in[0].mul, single(layer.irreps_in).dim), one_hot
    if isinstance(layer, GauntSelfmix):
        return (torch.randn(nodes, layer.irreps_in.dim),)
    if isinstance(layer, GauntTensorProduct):
        x, y = (torch.randn(nodes, i.dim) for i in (layer.irreps_in1, layer.irreps_in2))
        if layer.internal_weights:
            return x, y
        rows = () if layer.shared_weights else (nodes,)
        return x, y, torch.randn(*rows, layer.weight_numel)
    return (
        torch.randn(nodes, layer.irreps_in.dim),
        torch.randn(edges, 3),
        torch.randn(edges, layer.weight_numel),
        torch.randint(nodes, (2, edges)) if edges else torch.zeros(2, 0, dtype=torch.long),
    )


def natural(mul, lmax):
    return o3.Irreps([(mul, (l, (-1) ** l)) for l in range(lmax + 1)])


def both(mul, lmax):
    return o3.Irreps([(mul, (l, p)) for l in range(lmax + 1) for p in (1, -1)])


def irreps_in(layer):
    """Irreps of the inputs that are features."""
    if isinstance(layer, GauntTensorProduct):
        return [layer.irreps_in1, layer.irreps_in2]
    return [layer.irreps_in]


def single(irreps):
    """One channel of the irreps."""
    return o3.Irreps([(1, ir) for _, ir in o3.Irreps(irreps)])


def arguments(layer, inputs):
    """Arguments of the layer's forward."""
    if isinstance(layer, (GauntManyBody, GauntSelfmix, GauntTensorProduct)):
        return inputs
    x, vectors, weights, edge_index = inputs
    attrs = o3.spherical_harmonics(
        layer.irreps_edge, vectors, normalize=True, normalization="component"
    )
    return x, attrs, weights, edge_index


def run(layer, inputs):
    return layer(*arguments(layer, inputs))


def rotate(layer, inputs, matrix):
    """Apply an orthogonal matrix, proper or not, to the inputs."""
    if isinstance(layer, GauntManyBody):
        x, one_hot = inputs
        return x @ single(layer.irreps_in).D_from_matrix(matrix).T, one_hot
    if isinstance(layer, GauntSelfmix):
        return (inputs[0] @ layer.irreps_in.D_from_matrix(matrix).T,)
    if isinstance(layer, GauntTensorProduct):
        x, y, *weights = inputs
        first, second = (i.D_from_matrix(matrix).T for i in irreps_in(layer))
        return x @ first, y @ second, *weights
    x, vectors, weights, edge_index = inputs
    x = x @ layer.irreps_in.D_from_matrix(matrix).T
    return x, vectors @ matrix.T, weights, edge_index


def value_and_gradients(module, arguments, parameters):
    """Output, and gradients of a fixed mixture of it in all float arguments and parameters."""
    arguments = [
        a.detach().clone().requires_grad_() if a.is_floating_point() else a for a in arguments
    ]
    out = module(*arguments)
    mixture = torch.cos(torch.arange(out.numel(), dtype=out.dtype)).view_as(out)
    wanted = [a for a in arguments if a.is_floating_point()] + list(parameters)
    return [out.detach(), *torch.autograd.grad((out * mixture).sum(), wanted)]
