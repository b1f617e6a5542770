"""Coupling coefficients (the oracle of every layer) and bases of nested products."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import numpy as np

from gaunt_plugin.sphere.harmonics import real_harmonics, surface_gradients
from gaunt_plugin.sphere.quadrature import quadrature


@lru_cache(maxsize=4096)
def gaunt(l1: int, l2: int, l3: int) -> np.ndarray:
    """Gaunt coefficients ``<Y_l1m1 Y_l2m2 Y_l3m3>`` (component normalisation, average over s).

    Non-zero only if ``l1 + l2 + l3`` is even and the triangle rule holds; then proportional to
    ``wigner_3j(l1, l2, l3)``.

    Returns:
        Read-only array ``[2 l1 + 1, 2 l2 + 1, 2 l3 + 1]``, float64.
    """
    rule = quadrature(l1 + l2 + l3)
    a, b, c = (real_harmonics([l], rule.nodes) for l in (l1, l2, l3))
    # g,gi,gj,gk->ijk
    out = np.einsum("g,gi,gj,gk->ijk", rule.weights, a, b, c, optimize=True)
    out.setflags(write=False)
    return out


@lru_cache(maxsize=4096)
def antisymmetric(l1: int, l2: int, l3: int) -> np.ndarray:
    """Coefficients ``<s . (grad Y_l1m1 x grad Y_l2m2) Y_l3m3>`` of the antisymmetric product.

    Non-zero only if ``l1 + l2 + l3`` is odd and the triangle rule holds; then proportional to
    ``wigner_3j(l1, l2, l3)``. Antisymmetric under exchange of any two indices. The bracket is a
    polynomial of degree ``l1 + l2 - 1``, so the quadrature is exact.

    Returns:
        Read-only array ``[2 l1 + 1, 2 l2 + 1, 2 l3 + 1]``, float64.

    Source: Xie et al., arXiv 2602.21466; Heyraud et al., arXiv 2603.08630; Bochkarev et al.,
    arXiv 2605.15073.
    """
    rule = quadrature(l1 + l2 + l3)
    a, b = (surface_gradients([l], rule.nodes) for l in (l1, l2))
    c = real_harmonics([l3], rule.nodes) * rule.weights[:, None]
    # s . (a x b) = b . (s x a)
    turned = np.cross(rule.nodes[:, :, None], a, axis=1)
    # gxi,gxj,gk->ijk
    out = np.einsum("gxi,gxj,gk->ijk", turned, b, c, optimize=True)
    out.setflags(write=False)
    return out


def _couples(l1: int, l2: int, l3: int) -> bool:
    return abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 == 0


@lru_cache(maxsize=256)
def nested_terms(degrees: tuple[int, ...], correlation: int, l_out: int) -> tuple:
    """A basis of the symmetric couplings of ``correlation`` equal factors to degree ``l_out``.

    A term is a nested product of single-degree parts A_l of one function A, each product on the
    sphere projected on one degree: ``(l1,)`` is ``A_l1`` itself, ``(l1, l2)`` is
    ``P_lout[A_l1 A_l2]`` and ``(l1, l2, k, l3)`` is ``P_lout[P_k[A_l1 A_l2] A_l3]``.
    Of all candidates, in order, those independent of the earlier ones are kept; they span every
    coupling that Clebsch-Gordan chains reach (tested against MACE up to l = 3).

    Args:
        degrees: degrees of A, natural parity.
        correlation: number of factors, 1 to 3.
        l_out: degree of the result.

    Raises:
        ValueError: correlation out of range.
    """
    if correlation == 1:
        return ((l_out,),) if l_out in degrees else ()
    pairs = [(a, b) for i, a in enumerate(degrees) for b in degrees[i:]]
    if correlation == 2:
        return tuple(p for p in pairs if _couples(*p, l_out))
    if correlation != 3:
        raise ValueError(
            f"the basis of nested products is built for correlation 1 to 3, got {correlation}; "
            "use parametrization 'power' beyond"
        )
    candidates = [
        (a, b, k, c)
        for a, b in pairs
        for k in range(b - a, a + b + 1, 2)
        for c in degrees
        if _couples(k, c, l_out)
    ]
    if not candidates:
        return ()
    # Whether a term depends on those before it does not depend on the random samples, so the
    # basis, which is part of the meaning of saved weights, is the same everywhere.
    rng = np.random.default_rng(0)
    n = len(candidates) + 16
    A = {l: rng.standard_normal((n, 2 * l + 1)) for l in degrees}
    kept, basis = [], np.zeros((n * (2 * l_out + 1), 0))
    for a, b, k, c in candidates:
        inner = np.einsum("zi,zj,ijk->zk", A[a], A[b], gaunt(a, b, k), optimize=True)
        term = np.einsum("zi,zj,ijk->zk", inner, A[c], gaunt(k, c, l_out), optimize=True).ravel()
        rest = term
        for _ in range(2):  # twice is enough for orthogonality to rounding
            rest = rest - basis @ (basis.T @ rest)
        if np.linalg.norm(rest) > 1e-7 * np.linalg.norm(term):
            kept.append((a, b, k, c))
            basis = np.column_stack([basis, rest / np.linalg.norm(rest)])
    return tuple(kept)


def monomials(variables: int, order: int) -> np.ndarray:
    """Products of ``order`` of the variables: their indices, in increasing order, a row each."""
    rows = list(itertools.combinations_with_replacement(range(variables), order))
    return np.array(rows, dtype=np.int64).reshape(-1, order)


def of_monomials(tensor: np.ndarray, order: int) -> np.ndarray:
    """Coefficients of :func:`monomials`, from those of all products in any order of the factors.

    ``[variables, ..., variables, *rest] -> [monomials, *rest]``, with ``order`` first axes.
    """
    rows = monomials(tensor.shape[0], order)
    permutations = list(itertools.permutations(range(order)))
    total = sum(tensor[tuple(rows[:, p].T)] for p in permutations)
    # x_i x_i x_j has 3 permutations that differ, not 6.
    same = sum((rows[:, p] == rows).all(1) for p in permutations)
    return total / same.reshape(-1, *[1] * (tensor.ndim - order))


def nested_polynomials(degrees: tuple[int, ...], correlation: int, l_out: int) -> np.ndarray:
    """The terms of :func:`nested_terms` as polynomials of the components of A.

    Each product is scaled so that independent unit normal factors give components of variance 1.

    Returns:
        Array ``[terms, 2 l_out + 1, monomials]``, float64, of :func:`monomials` of the components
        of all degrees, in their order.
    """
    ends = np.cumsum([2 * l + 1 for l in degrees])
    where = {l: slice(end - 2 * l - 1, end) for l, end in zip(degrees, ends)}
    out = []
    for term in nested_terms(degrees, correlation, l_out):
        tensor = np.zeros((*[ends[-1]] * correlation, 2 * l_out + 1))
        if correlation == 1:
            tensor[where[l_out]] = np.eye(2 * l_out + 1)
        elif correlation == 2:
            tensor[where[term[0]], where[term[1]]] = _unit_gaunt(*term, l_out)
        else:
            a, b, k, c = term
            inner, outer = _unit_gaunt(a, b, k), _unit_gaunt(k, c, l_out)
            tensor[where[a], where[b], where[c]] = np.tensordot(inner, outer, 1)
        out.append(of_monomials(tensor, correlation).T)
    count = len(monomials(ends[-1], correlation))
    return np.array(out).reshape(-1, 2 * l_out + 1, count)


def _unit_gaunt(a: int, b: int, k: int) -> np.ndarray:
    """Gaunt coefficients scaled so that unit normal factors give components of variance 1."""
    table = gaunt(a, b, k)
    return table * math.sqrt((2 * k + 1) / np.sum(table**2))
