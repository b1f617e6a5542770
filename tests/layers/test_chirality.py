"""What the antisymmetric product is for: functions that tell a structure from its mirror image.

Targets are smooth functions of three neighbours' positions that change sign under reflection. No
layer of symmetric products of natural parity has such an output: it gives the same for both images.
"""

import pytest
import torch

from gaunt_plugin.layers import AlignedConvolution, GauntManyBody, GauntTensorProduct

from ..e3nn_o3 import o3
from ..tolerances import assert_close

EDGE = "0e+1o+2e+3o"
CHANNELS = 3  # radial functions
STRUCTURES = 120


def structures():
    """Positions of three equal neighbours, and the mirror images of all of them."""
    positions = 1 + 0.5 * torch.randn(STRUCTURES, 3, 1).tanh()
    positions = positions * torch.nn.functional.normalize(torch.randn(STRUCTURES, 3, 3), dim=2)
    mirrored = positions * torch.tensor([1.0, 1.0, -1.0])
    return torch.cat([positions, mirrored])


def radial(r):
    """Smooth functions of the distance."""
    return torch.stack([torch.exp(-((r - c) ** 2)) for c in (0.6, 1.0, 1.4)], dim=-1)


def triple_product(positions):
    """A . (b x c) of the sums over neighbours with three radial functions: unlabelled atoms."""
    r = positions.norm(dim=2)
    a, b, c = torch.einsum("snk,snx->ksx", radial(r), positions / r[..., None])
    return (a * torch.linalg.cross(b, c)).sum(1)


def chiral_energy(positions):
    """A pseudoscalar with more structure: the triple product times invariants."""
    r = positions.norm(dim=2)
    a, b, c = torch.einsum("snk,snx->ksx", radial(r), positions / r[..., None])
    return triple_product(positions) * (1 + (a * b).sum(1) + 0.5 * (c * c).sum(1))


def density(positions, irreps_out):
    """Sum of the neighbours' harmonics with three radial functions, at the node 0 of each."""
    count, neighbours, _ = positions.shape
    irreps_in = o3.Irreps(f"{CHANNELS}x0e")
    layer = AlignedConvolution(irreps_in, EDGE, irreps_out)
    vectors = positions.reshape(-1, 3)
    attrs = o3.spherical_harmonics(
        o3.Irreps(EDGE), vectors, normalize=True, normalization="component"
    )
    weights = radial(vectors.norm(dim=1)).repeat(1, layer.weight_numel // CHANNELS)
    receivers = torch.arange(count).repeat_interleave(neighbours)
    x = torch.ones(count, CHANNELS)
    return layer(x, attrs, weights, torch.stack([receivers, receivers]))


def relative_error(features, target):
    """Of the best linear readout, fitted to half of the structures, on the other half."""
    pairs = torch.arange(len(target)) % STRUCTURES < STRUCTURES // 2
    solution = torch.linalg.lstsq(features[pairs], target[pairs, None], driver="gelsd").solution
    rest = features[~pairs] @ solution - target[~pairs, None]
    return (rest.norm() / target[~pairs].norm()).item()


NATURAL = "3x0e+3x1o+3x2e+3x3o"
HIDDEN = "24x0e+24x1o+24x1e+24x2e+24x2o"


def products(positions, antisymmetric):
    """Two products of the density; the last gives scalars of all parities that are reached."""
    a = density(positions, NATURAL)
    hidden = o3.Irreps(HIDDEN)
    if not antisymmetric:
        hidden = o3.Irreps([(mul, ir) for mul, ir in hidden if ir.p == (-1) ** ir.l])
    first = GauntTensorProduct(NATURAL, NATURAL, hidden, antisymmetric=antisymmetric)
    out = "60x0o" if antisymmetric else "60x0e"
    second = GauntTensorProduct(hidden, NATURAL, out, antisymmetric=antisymmetric)
    with torch.no_grad():
        return a, second(first(a, a), a)


def test_triple_product_is_fitted():
    positions = structures()
    target = triple_product(positions)
    assert_close(target[:STRUCTURES], -target[STRUCTURES:], "oracle")
    _, plain = products(positions, antisymmetric=False)
    _, complete = products(positions, antisymmetric=True)
    assert relative_error(plain, target) > 0.99
    assert relative_error(complete, target) < 1e-6


def test_plain_products_are_blind_to_mirror_images():
    positions = structures()
    for features in (products(positions, antisymmetric=False)[1], many_body(positions)):
        assert_close(features[:STRUCTURES], features[STRUCTURES:], "equivariance")


def many_body(positions, parametrization="full"):
    """Scalars of the plain many-body product, the host's layer."""
    a = density(positions, NATURAL)
    layer = GauntManyBody(NATURAL, "3x0e", 3, 1, parametrization)
    x = torch.cat([p.view(len(a), CHANNELS, -1) for p in a.split([3, 9, 15, 21], dim=1)], dim=2)
    with torch.no_grad():
        return layer(x, torch.ones(len(a), 1))


def test_chiral_energy_is_fitted():
    """Order five in the density: a bracket once, symmetric products of both parities after."""
    positions = structures()
    target = chiral_energy(positions)
    vectors = "3x0e+3x1o"
    a = density(positions, vectors)
    with torch.no_grad():
        even = GauntTensorProduct(vectors, vectors, "40x0e")(a, a)
        axial = GauntTensorProduct(vectors, vectors, "20x1e")(a, a)
        odd = GauntTensorProduct("20x1e", vectors, "4x0o")(axial, a)
        scalars = torch.cat([even, torch.ones(len(a), 1)], dim=1)
        features = GauntTensorProduct("4x0o", "41x0e", "60x0o", rank=41)(odd, scalars)
    assert relative_error(features, target) < 1e-6
    assert relative_error(even, target) > 0.99
    assert relative_error(odd, target) > 0.01  # it is no multiple of the triple product


def test_powers_of_both_parities_carry_chirality_on():
    """Given one chiral density, the many-body product reaches pseudoscalars, and is not blind."""
    positions = structures()
    a = density(positions, NATURAL)
    irreps = "3x0e+3x1o+3x0o+3x1e+3x2o"
    with torch.no_grad():
        mixed = GauntTensorProduct(NATURAL, NATURAL, "3x1e+3x2o")(a, a)
        natural = a[:, :12]
        x = torch.cat([natural, torch.zeros(len(a), 3), mixed], dim=1)
        dims = [ir.dim for _, ir in o3.Irreps(irreps)]
        parts = x.split([CHANNELS * d for d in dims], dim=1)
        x = torch.cat([p.view(len(a), CHANNELS, -1) for p in parts], dim=2)
        out = GauntManyBody(irreps, "3x0e+3x0o", 3, 1)(x, torch.ones(len(a), 1))
    even, odd = out.split(3, dim=1)
    assert_close(even[:STRUCTURES], even[STRUCTURES:], "equivariance")
    assert_close(odd[:STRUCTURES], -odd[STRUCTURES:], "equivariance")
    assert odd.abs().max() > 1e-3


def test_chains_with_brackets_see_mirror_images_of_one_density():
    """From natural input of one channel: four factors to the first pseudoscalar."""
    positions = structures()
    a = density(positions, NATURAL)
    x = torch.cat([p.view(len(a), CHANNELS, -1) for p in a.split([3, 9, 15, 21], dim=1)], dim=2)
    layer = GauntManyBody(NATURAL, "3x0e+3x0o", 4, 1, "nested", antisymmetric=True)
    with torch.no_grad():
        even, odd = layer(x, torch.ones(len(a), 1)).split(3, dim=1)
    assert_close(even[:STRUCTURES], even[STRUCTURES:], "equivariance")
    assert_close(odd[:STRUCTURES], -odd[STRUCTURES:], "equivariance")
    assert odd.abs().max() > 1e-3


def test_symmetric_product_alone_cannot_build_the_pseudovector():
    with pytest.raises(ValueError, match=r"no symmetric product .* reaches 1e"):
        GauntTensorProduct(NATURAL, NATURAL, HIDDEN, antisymmetric=False)
