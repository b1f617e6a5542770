"""Coupling coefficients (the oracle of every layer) and bases of nested products."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import numpy as np

from gaunt_plugin.sphere.harmonics import real_harmonics, surface_gradients
from gaunt_plugin.sphere.quadrature import quadrature

# A function of a channel: its degree, and whether its parity is pseudo, -(-1)^l.
Function = tuple[int, bool]


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


def _products(a: Function, b: Function) -> list[Function]:
    """What a product of two functions gives."""
    degrees = range(abs(a[0] - b[0]), a[0] + b[0] + 1)
    return [(l, (a[1] + b[1] + a[0] + b[0] + l) % 2 == 1) for l in degrees]


def _is_bracket(*functions: Function) -> bool:
    return sum(l for l, _ in functions) % 2 == 1


@lru_cache(maxsize=256)
def nested_terms(functions: tuple[Function, ...], correlation: int, output: Function) -> tuple:
    """A basis of the symmetric couplings of ``correlation`` equal factors to one function.

    A term is a nested product of single functions of one channel, each product on the sphere
    projected on one degree: ``(a,)`` is ``A_a`` itself, ``(a, b)`` is ``P_out[A_a A_b]`` and
    ``(a, b, k, c)`` is ``P_out[P_k[A_a A_b] A_c]``. A product whose degrees have an odd sum is the
    bracket (:func:`antisymmetric`). Of all candidates, in order, those independent of the earlier
    ones are kept; they span every coupling that Clebsch-Gordan chains reach. Where all is of
    natural parity, symmetric products alone do (both tested up to l = 3).

    Args:
        functions: those of the channel, degree and whether the parity is pseudo, ``-(-1)^l``.
        correlation: number of factors, 1 to 3.
        output: degree and parity of the result.

    Raises:
        ValueError: correlation out of range.
    """
    if correlation == 1:
        return ((output,),) if output in functions else ()
    pairs = [
        (a, b, k)
        for i, a in enumerate(functions)
        for b in functions[i:]
        for k in _products(a, b)
        if a != b or not _is_bracket(a, b, k)  # the bracket of a function with itself is zero
    ]
    if correlation == 2:
        return tuple((a, b) for a, b, k in pairs if k == output)
    if correlation != 3:
        raise ValueError(
            f"the basis of nested products is built for correlation 1 to 3, got {correlation}; "
            "use parametrization 'power' beyond"
        )

    def brackets(term: tuple) -> int:
        a, b, k, c = term
        return _is_bracket(a, b, k) + _is_bracket(k, c, output)

    candidates = [(a, b, k, c) for a, b, k in pairs for c in functions if output in _products(k, c)]
    candidates.sort(key=brackets)
    if not any(pseudo for _, pseudo in (*functions, output)):
        candidates = [term for term in candidates if not brackets(term)]
    if not candidates:
        return ()
    # Whether a term depends on those before it does not depend on the random samples, so the
    # basis, which is part of the meaning of saved weights, is the same everywhere.
    rng = np.random.default_rng(0)
    n = len(candidates) + 16
    A = {f: rng.standard_normal((n, 2 * f[0] + 1)) for f in functions}
    kept, basis = [], np.zeros((n * (2 * output[0] + 1), 0))
    for a, b, k, c in candidates:
        inner = np.einsum("zi,zj,ijk->zk", A[a], A[b], _unit_table(a, b, k), optimize=True)
        term = np.einsum("zi,zj,ijk->zk", inner, A[c], _unit_table(k, c, output), optimize=True)
        rest = term.ravel()
        for _ in range(2):  # twice is enough for orthogonality to rounding
            rest = rest - basis @ (basis.T @ rest)
        if np.linalg.norm(rest) > 1e-7 * math.sqrt(rest.size):  # some brackets are zero
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


def nested_polynomials(
    functions: tuple[Function, ...], correlation: int, output: Function
) -> np.ndarray:
    """The terms of :func:`nested_terms` as polynomials of the components of the functions.

    Each product is scaled so that independent unit normal factors give components of variance 1.

    Returns:
        Array ``[terms, 2 l_out + 1, monomials]``, float64, of :func:`monomials` of the components
        of all functions, in their order.
    """
    ends = np.cumsum([2 * l + 1 for l, _ in functions])
    where = {f: slice(end - 2 * f[0] - 1, end) for f, end in zip(functions, ends)}
    dim_out = 2 * output[0] + 1
    out = []
    for term in nested_terms(functions, correlation, output):
        tensor = np.zeros((*[ends[-1]] * correlation, dim_out))
        if correlation == 1:
            tensor[where[output]] = np.eye(dim_out)
        elif correlation == 2:
            tensor[where[term[0]], where[term[1]]] = _unit_table(*term, output)
        else:
            a, b, k, c = term
            inner, outer = _unit_table(a, b, k), _unit_table(k, c, output)
            tensor[where[a], where[b], where[c]] = np.tensordot(inner, outer, 1)
        out.append(of_monomials(tensor, correlation).T)
    count = len(monomials(ends[-1], correlation))
    return np.array(out).reshape(-1, dim_out, count)


def _unit_table(a: Function, b: Function, c: Function) -> np.ndarray:
    """Coefficients scaled so that unit normal factors give components of variance 1."""
    table = (antisymmetric if _is_bracket(a, b, c) else gaunt)(a[0], b[0], c[0])
    return table * math.sqrt((2 * c[0] + 1) / np.sum(table**2))
