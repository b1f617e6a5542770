"""All ways of one coupling agree up to degree 12, and how exact they are.

    pytest -s tests/layers/test_degrees.py

prints the tables of docs/mathematics.md.
"""

import numpy as np
import pytest
import torch

from gaunt_plugin import sphere
from gaunt_plugin.layers import (
    AlignedConvolution,
    GauntConvolution,
    GauntManyBody,
    GauntTensorProduct,
)

from ..e3nn_o3 import LMAX, o3
from ..tolerances import TOLERANCES
from . import cases
from .cases import natural


def error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def aligned_weights(lmax, radial):
    """Weights of AlignedConvolution for the filters of GauntConvolution: ``radial [edges, l2]``.

    On the polar axis ``Y_l0 = sqrt(2l+1)`` and the other orders vanish.
    """
    ls = range(lmax + 1)
    parts = []
    for m in ls:
        for l1 in range(m, lmax + 1):
            for l3 in range(m, lmax + 1):
                here = [sphere.gaunt(l1, l2, l3)[l1 + m, l2, l3 + m] for l2 in ls]
                size = sum(
                    np.sum(sphere.gaunt(a, b, l3) ** 2) / ((2 * a + 1) * (2 * b + 1))
                    for a in ls
                    for b in ls
                )
                couplings = sum(2 * min(l, l3) + 1 for l in ls)
                # n_L of one layer over n_L of the other
                factor = (couplings / size / (2 * l1 + 1)) ** 0.5
                parts.append(factor * radial @ torch.tensor(np.array(here)))
    return torch.stack(parts, dim=1)


def by_coefficients(lmax, x, attrs, radial):
    """The convolution of single edges, from Gaunt coefficients."""
    ls = range(lmax + 1)
    slices = [slice(l * l, (l + 1) ** 2) for l in ls]
    out = torch.zeros_like(x)
    for l3 in ls:
        size = 0
        for l1 in ls:
            for l2 in ls:
                table = torch.from_numpy(sphere.gaunt(l1, l2, l3).copy())
                unit = ((2 * l1 + 1) * (2 * l2 + 1)) ** -0.5
                size += (unit * table).square().sum() / (2 * l3 + 1)
                y = attrs[:, slices[l2]] * radial[:, l2, None] * unit
                out[:, slices[l3]] += torch.einsum("ei,ej,ijk->ek", x[:, slices[l1]], y, table)
        out[:, slices[l3]] /= size**0.5
    return out


@pytest.mark.parametrize("lmax", range(1, 13))
def test_grid_aligned_and_coefficients_agree(lmax):
    edges = 5
    irreps = natural(1, lmax)
    grid = GauntConvolution(irreps, irreps, irreps)
    aligned = AlignedConvolution(irreps, irreps, irreps)
    x, radial = torch.randn(edges, irreps.dim), torch.randn(edges, lmax + 1)
    vectors = torch.nn.functional.normalize(torch.randn(edges, 3), dim=1)
    # ours: e3nn's harmonics end at degree 11
    attrs = torch.from_numpy(sphere.real_harmonics(range(lmax + 1), vectors.numpy()))
    pairs = torch.arange(edges).repeat(2, 1)
    expected = grid(x, attrs, radial, pairs)
    errors = (
        error(aligned(x, attrs, aligned_weights(lmax, radial), pairs), expected),
        error(by_coefficients(lmax, x, attrs, radial), expected),
    )
    print(f"| {lmax} | " + " | ".join(f"{e:.0e}" for e in errors) + " |")
    assert max(errors) < TOLERANCES["equivariance"]


@pytest.mark.parametrize("lmax", range(1, LMAX + 1))
def test_float32_error_grows_slowly(lmax):
    """Of equivariance, under one rotation with inversion, relative to the largest entry."""
    irreps, few = natural(4, lmax), natural(4, min(lmax, 2))
    angles = torch.tensor([0.3, 1.2, -2.0], dtype=torch.float64)
    matrix = -o3.angles_to_matrix(*angles)
    layers = (
        GauntTensorProduct(irreps, irreps, irreps, "uuu"),
        GauntManyBody(irreps, few, 3, cases.ELEMENTS),
        GauntManyBody(irreps, few, 3, cases.ELEMENTS, "nested"),
        AlignedConvolution(irreps, "0e+1o", irreps),
    )
    errors = []
    for layer in layers:
        inputs = cases.inputs(layer)
        turned = cases.rotate(layer, inputs, matrix)
        layer.float()
        y, z = (
            cases.run(layer, [t.float() if t.is_floating_point() else t for t in given]).double()
            for given in (inputs, turned)
        )
        errors.append(error(z, y @ layer.irreps_out.D_from_matrix(matrix).T))
    print(f"| {lmax} | " + " | ".join(f"{e:.0e}" for e in errors) + " |")
    assert max(errors) < TOLERANCES["float32"]
