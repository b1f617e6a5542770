import itertools

import numpy as np
import pytest
import torch

from gaunt_plugin.sphere import (
    antisymmetric,
    coupling_count,
    coupling_norm,
    gaunt,
    monomials,
    nested_polynomials,
    nested_terms,
    of_monomials,
    quadrature,
    real_harmonics,
    surface_gradients,
)

from ..e3nn_o3 import o3
from ..tolerances import assert_close

LMAX = 6
TRIPLES = list(itertools.product(range(LMAX + 1), repeat=3))


def triangle(l1, l2, l3):
    return abs(l1 - l2) <= l3 <= l1 + l2


def test_gaunt_is_proportional_to_wigner_3j():
    allowed = [t for t in TRIPLES if triangle(*t) and sum(t) % 2 == 0]
    assert len(allowed) > 80
    for l1, l2, l3 in allowed:
        g = gaunt(l1, l2, l3)
        w = o3.wigner_3j(l1, l2, l3, dtype=torch.float64).numpy()
        factor = np.sum(g * w) / np.sum(w * w)
        assert abs(factor) > 0.1
        assert_close(g, factor * w, "oracle")


def test_gaunt_vanishes_elsewhere():
    for l1, l2, l3 in TRIPLES:
        if not triangle(l1, l2, l3) or (l1 + l2 + l3) % 2:
            assert np.abs(gaunt(l1, l2, l3)).max() < 1e-14


def test_antisymmetric_is_proportional_to_wigner_3j():
    allowed = [t for t in TRIPLES if triangle(*t) and sum(t) % 2 == 1]
    assert len(allowed) > 50
    for l1, l2, l3 in allowed:
        a = antisymmetric(l1, l2, l3)
        w = o3.wigner_3j(l1, l2, l3, dtype=torch.float64).numpy()
        factor = np.sum(a * w) / np.sum(w * w)
        assert abs(factor) > 1
        assert_close(a, factor * w, "oracle")


def test_antisymmetric_vanishes_elsewhere():
    for l1, l2, l3 in TRIPLES:
        if not triangle(l1, l2, l3) or (l1 + l2 + l3) % 2 == 0:
            assert np.abs(antisymmetric(l1, l2, l3)).max() < 1e-12


def test_antisymmetric_is_the_bracket_of_functions():
    s = quadrature(6).nodes
    for l1, l2 in [(0, 3), (1, 1), (2, 3), (3, 3)]:
        a, b = (surface_gradients([l], s) for l in (l1, l2))
        bracket = np.einsum("gx,gxij->gij", s, np.cross(a[..., None], b[:, :, None], axis=1))
        expanded = sum(
            np.einsum("ijk,gk->gij", antisymmetric(l1, l2, l3), real_harmonics([l3], s))
            for l3 in range(l1 + l2 + 1)
        )
        assert np.abs(expanded - bracket).max() < 1e-12 * max(1, np.abs(bracket).max())


def test_antisymmetric_changes_sign_and_is_read_only():
    a = antisymmetric(2, 3, 4)
    assert_close(a, -antisymmetric(3, 2, 4).transpose(1, 0, 2), "oracle")
    assert_close(a, -antisymmetric(2, 4, 3).transpose(0, 2, 1), "oracle")
    with pytest.raises(ValueError, match="read-only"):
        a[0] = 0


def test_antisymmetric_of_vectors_is_the_cross_product():
    """(x, y, z) are sqrt(3) times degree one; <Y_1 Y_1> = 1."""
    epsilon = np.zeros((3, 3, 3))
    for i, j, k in [(0, 1, 2), (1, 2, 0), (2, 0, 1)]:
        epsilon[i, j, k], epsilon[j, i, k] = 1, -1
    assert_close(antisymmetric(1, 1, 1), np.sqrt(3) * epsilon, "oracle")


def test_norms_of_couplings():
    for l1, l2, l3 in TRIPLES:
        table = (antisymmetric if (l1 + l2 + l3) % 2 else gaunt)(l1, l2, l3)
        assert abs(coupling_norm(l1, l2, l3) - np.linalg.norm(table)) < 1e-12 * (
            1 + np.linalg.norm(table)
        )


def test_gaunt_multiplies_functions():
    s = quadrature(6).nodes
    for l1, l2 in [(0, 3), (1, 1), (2, 3)]:
        a, b = real_harmonics([l1], s), real_harmonics([l2], s)
        product = sum(
            np.einsum("ijk,gk->gij", gaunt(l1, l2, l3), real_harmonics([l3], s))
            for l3 in range(l1 + l2 + 1)
        )
        assert_close(product, np.einsum("gi,gj->gij", a, b), "oracle")


def test_gaunt_is_symmetric_and_read_only():
    assert_close(gaunt(1, 2, 3), gaunt(3, 1, 2).transpose(1, 2, 0), "oracle")
    with pytest.raises(ValueError, match="read-only"):
        gaunt(1, 1, 2)[0] = 0


@pytest.mark.parametrize(
    ("correlation", "l_out", "independent"),
    [(2, 0, 4), (2, 1, 3), (2, 2, 5), (3, 0, 8), (3, 1, 12), (3, 2, 14)],
)
def test_number_of_nested_terms(correlation, l_out, independent):
    functions = functions_of("0e+1o+2e+3o")
    assert len(nested_terms(functions, correlation, (l_out, False))) == independent


def functions_of(irreps):
    """Degree, and whether the parity is pseudo."""
    return tuple((ir.l, ir.p != (-1) ** ir.l) for _, ir in o3.Irreps(irreps))


def chains(irreps, correlation, ir_out):
    """All Clebsch-Gordan chains to one irrep: factors, and what the products in between are."""
    irreps, ir_out = [ir for _, ir in o3.Irreps(irreps)], o3.Irrep(ir_out)
    states = [((ir,), ir) for ir in irreps]
    for _ in range(correlation - 1):
        states = [((*path, ir, j), j) for path, k in states for ir in irreps for j in k * ir]
    return [functions_of(path) for path, k in states if k == ir_out]


def evaluate(chain, A, coefficients):
    value = A[chain[0]]
    l, _ = chain[0]
    for factor, (j, _) in zip(chain[1::2], chain[2::2], strict=True):
        value = np.einsum("zi,zj,ijk->zk", value, A[factor], coefficients(l, factor[0], j))
        l = j
    return value


def symmetric_or_bracket(l1, l2, l3):
    return (antisymmetric if (l1 + l2 + l3) % 2 else gaunt)(l1, l2, l3)


def wigner(l1, l2, l3):
    return np.sqrt(2 * l3 + 1) * o3.wigner_3j(l1, l2, l3, dtype=torch.float64).numpy()


def rank(columns):
    scaled = columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-300)
    return int(np.sum(np.linalg.svd(scaled, compute_uv=False) > 1e-8))


@pytest.mark.parametrize(
    "irreps", ["0e+1o+2e+3o", "0e+1o", "1o+3o", "2e", "1e+0e+1o", "2o+0o", "1e+2e"]
)
@pytest.mark.parametrize("ir_out", ["0e", "0o", "1o", "1e", "2e", "2o", "3o"])
@pytest.mark.parametrize("correlation", [1, 2, 3])
def test_nested_terms_are_a_basis_of_all_couplings(irreps, correlation, ir_out):
    """They are independent, and adding every Clebsch-Gordan chain raises the rank no further."""
    rng = np.random.default_rng(correlation)
    functions, (output,) = functions_of(irreps), functions_of(ir_out)
    A = {f: rng.standard_normal((40, 2 * f[0] + 1)) for f in functions}
    nested = [
        evaluate((*t, output) if len(t) > 1 else t, A, symmetric_or_bracket).ravel()
        for t in nested_terms(functions, correlation, output)
    ]
    every = [evaluate(c, A, wigner).ravel() for c in chains(irreps, correlation, ir_out)]
    nonzero = [c for c in every if np.abs(c).max() > 1e-10]  # antisymmetric chains vanish
    assert len(nested) == (rank(np.stack(nonzero, axis=1)) if nonzero else 0)
    if nested:
        assert rank(np.stack(nested, axis=1)) == len(nested)
        assert rank(np.stack(nested + nonzero, axis=1)) == len(nested)


def test_nested_terms_stop_at_correlation_three():
    with pytest.raises(ValueError, match="1 to 3, got 4"):
        nested_terms(functions_of("0e+1o"), 4, (0, False))


@pytest.mark.parametrize(
    ("correlation", "counts"), [(1, (1, 1, 1)), (2, (4, 6, 7)), (3, (23, 51, 65))]
)
def test_coupling_count(correlation, counts):
    for l_out, count in enumerate(counts):
        assert coupling_count((0, 1, 2, 3), correlation, l_out) == count


@pytest.mark.parametrize("degrees", [(0, 1, 2), (1, 3), (2,)])
@pytest.mark.parametrize("correlation", [1, 2, 3])
def test_coupling_count_is_the_number_of_chains(degrees, correlation):
    irreps = [o3.Irrep(l, (-1) ** l) for l in degrees]
    for l_out in range(4):
        expected = len(chains(irreps, correlation, o3.Irrep(l_out, (-1) ** l_out)))
        assert coupling_count(degrees, correlation, l_out) == expected


@pytest.mark.parametrize("order", [1, 2, 3])
def test_polynomials_of_a_tensor(order):
    """The same values, of a tensor without symmetry."""
    rng = np.random.default_rng(0)
    tensor, x = rng.standard_normal((*[4] * order, 2)), rng.standard_normal(4)
    value = tensor
    for _ in range(order):
        value = np.tensordot(x, value, 1)
    rows = monomials(4, order)
    assert len(rows) == {1: 4, 2: 10, 3: 20}[order]
    assert_close(x[rows].prod(1) @ of_monomials(tensor, order), value, "oracle")


@pytest.mark.parametrize("ir_out", ["0e", "1o", "2e", "1e"])
@pytest.mark.parametrize("irreps", ["0e+1o+3o", "1e+0e+2e"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_nested_polynomials_are_the_nested_terms(order, irreps, ir_out):
    functions, (output,) = functions_of(irreps), functions_of(ir_out)
    rng = np.random.default_rng(0)
    parts = {f: rng.standard_normal((1, 2 * f[0] + 1)) for f in functions}
    x = np.concatenate(list(parts.values()), axis=1)[0]
    values = x[monomials(len(x), order)].prod(1)
    terms = nested_terms(functions, order, output)
    polynomials = nested_polynomials(functions, order, output)
    assert len(polynomials) == len(terms)

    def unit(l1, l2, l3):
        table = symmetric_or_bracket(l1, l2, l3)
        return table * np.sqrt((2 * l3 + 1) / (table**2).sum())

    for term, polynomial in zip(terms, polynomials, strict=True):
        (expected,) = evaluate((*term, output) if order > 1 else term, parts, unit)
        assert_close(polynomial @ values, expected, "oracle")
