"""Scale of the Clebsch-Gordan couplings that a Gaunt layer stands in for.

Layers start at, and learn at, the scale of the layer they replace; both follow from the
decomposition of the tensor power of O(3) representations, in closed form.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=8192)
def coupling_norm(l1: int, l2: int, l3: int) -> float:
    """Frobenius norm of ``gaunt`` or, where ``l1 + l2 + l3`` is odd, of ``antisymmetric``.

    By the addition theorem ``norm^2 = prod(2l+1) 1/2 int K(t) P_l3(t) dt`` with
    ``K = P_l1 P_l2`` or, for gradients, ``K = a_l1 b_l2 + b_l1 a_l2``,
    ``a_l = t P_l' - (1 - t^2) P_l''`` along the great circle through both points and
    ``b_l = P_l'`` across it.
    """
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        return 0.0
    t, weights = np.polynomial.legendre.leggauss((l1 + l2 + l3) // 2 + 1)
    if (l1 + l2 + l3) % 2 == 0:
        kernel = _legendre(l1, t) * _legendre(l2, t)
    else:
        (a1, b1), (a2, b2) = (_gradient_kernel(l, t) for l in (l1, l2))
        kernel = a1 * b2 + b1 * a2
    mean = 0.5 * float(np.sum(weights * kernel * _legendre(l3, t)))
    return math.sqrt((2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1) * mean)


def _gradient_kernel(l: int, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    series = np.polynomial.legendre.Legendre.basis(l)
    first, second = series.deriv(1)(t), series.deriv(2)(t)
    return t * first - (1 - t**2) * second, first


def coupling_count(
    degrees: tuple[int, ...],
    correlation: int,
    l_out: int,
    pseudo: tuple[int, ...] = (),
    pseudo_out: bool = False,
) -> int:
    """Multiplicity of ``l_out`` in the ``correlation``-fold tensor power.

    ``degrees`` have natural parity ``(-1)^l`` and ``pseudo`` the other one, ``-(-1)^l``, as has
    ``l_out`` if ``pseudo_out``.

    This is the number of paths in MACE's symmetric contraction (23, 51 and 65 for degrees 0..3,
    correlation 3 and l_out 0, 1, 2).
    """
    state = Counter({(0, 1): 1})  # (degree, parity) -> multiplicity
    for _ in range(correlation):
        grown: Counter = Counter()
        for (k, parity), count in state.items():
            for l, p in _with_parity(degrees, pseudo):
                for j in range(abs(k - l), k + l + 1):
                    grown[j, parity * p] += count
        state = grown
    return state[l_out, _parity(l_out, pseudo_out)]


def _parity(l: int, pseudo: bool) -> int:
    return -((-1) ** l) if pseudo else (-1) ** l


def _with_parity(degrees, pseudo) -> list[tuple[int, int]]:
    return [(l, _parity(l, False)) for l in degrees] + [(l, _parity(l, True)) for l in pseudo]


def coupling_rms(
    degrees: tuple[int, ...],
    correlation: int,
    l_out: int,
    pseudo: tuple[int, ...] = (),
    pseudo_out: bool = False,
) -> float:
    """Root mean square of a component of MACE's contraction at initialisation.

    Arguments are those of :func:`coupling_count`.

    ``sqrt(q / P)`` with ``P = coupling_count``, path weights of variance ``1/P^2``, unit normal
    input, and ``q`` the mean square of a path:
    ``q = E|P_L A^(x nu)|^2 / (P (2L+1))``, where the projector on the natural ``L`` is a character
    integral, ``P_L = (2L+1) int_O(3) chi_L(R) R^(x nu) dR``, and ``E<A, R A>^nu`` follows from the
    cumulants ``kappa_n = 2^(n-1) (n-1)! sum_i c_i^n`` of ``sum_i c_i z_i^2``, ``z_i ~ N(0, 1)``.
    """
    count = coupling_count(degrees, correlation, l_out, pseudo, pseudo_out)
    inputs = _with_parity(degrees, pseudo)
    if count == 0:
        return 0.0
    # The integrand is a trigonometric polynomial in the rotation angle: the midpoint rule is exact.
    n = 4 * (correlation * max(l for l, _ in inputs) + l_out + 2)
    angle = 2 * np.pi * (np.arange(n) + 0.5) / n
    haar = (1 - np.cos(angle)) / n
    character = 1 + 2 * sum(np.cos(m * angle) for m in range(1, l_out + 1))
    norm = 0.0
    for inverted in (False, True):
        cumulants = []
        for k in range(1, correlation + 1):
            powers = sum(
                (p**k if inverted else 1) * np.cos(m * angle) ** k
                for l, p in inputs
                for m in range(-l, l + 1)
            )
            cumulants.append(2 ** (k - 1) * math.factorial(k - 1) * powers)
        moments = [np.ones_like(angle)]
        for k in range(1, correlation + 1):
            moments.append(
                sum(
                    math.comb(k - 1, j - 1) * cumulants[j - 1] * moments[k - j]
                    for j in range(1, k + 1)
                )
            )
        sign = _parity(l_out, pseudo_out) if inverted else 1
        norm += 0.5 * sign * float(np.sum(haar * character * moments[-1]))
    if norm < 1e-12 * count:  # antisymmetric chains only: equal factors cancel
        return 0.0
    return math.sqrt(norm / count) / math.sqrt(count)


@lru_cache(maxsize=1024)  # a layer asks whether an order couples, then for its scale
def power_rms(
    degrees: tuple[int, ...],
    correlation: int,
    l_out: int,
    random_weights: bool,
    pseudo: tuple[int, ...] = (),
    pseudo_out: bool = False,
) -> float:
    """Root mean square of a component of ``<F(s)^nu Y_LM(s)>``, in closed form.

    ``F = sum_l u_l (2l+1)^(-1/2) sum_m A_lm Y_lm`` with ``A ~ N(0, 1)`` and ``u ~ N(0, 1)``
    (``random_weights``) or ``u = 1``. Given u, F is a Gaussian field of variance
    ``X = sum_l u_l^2`` and covariance ``Y(t) = sum_l u_l^2 P_l(t)``, hence
    ``E[F(s)^nu F(s')^nu] = sum_j j! (C(nu, j) (nu-j-1)!!)^2 X^(nu-j) Y^j`` (j = nu, nu-2, ...), the
    moments of X and Y follow from their joint cumulants, and the mean square is
    ``1/2 int P_L(t) E[...] dt``.

    With pseudo parity, ``F = A + P`` and ``G = A - P``, the part of natural parity is
    ``(F^nu + G^nu) / 2`` and that of pseudo parity ``(F^nu - G^nu) / 2``; ``E[F^nu G^nu]`` is the
    same with ``Y = sum_l u_l^2 P_l - sum_pseudo u_l^2 P_l``.

    Returns 0 exactly where no such coupling exists.
    """
    lmax = max((*degrees, *pseudo))
    t, weights = np.polynomial.legendre.leggauss((correlation * lmax + l_out) // 2 + 1)
    natural, other = ([_legendre(l, t) for l in ls] for ls in (degrees, pseudo))
    total = _power_covariance(natural + other, correlation, random_weights)
    if pseudo:
        mixed = _power_covariance(natural + [-p for p in other], correlation, random_weights)
        total = (total - mixed) / 2 if pseudo_out else (total + mixed) / 2
    elif pseudo_out:
        return 0.0
    mean_square = 0.5 * float(np.sum(weights * _legendre(l_out, t) * total))
    scale = 0.5 * float(np.sum(weights * np.abs(total)))
    return math.sqrt(mean_square) if mean_square > 1e-12 * scale else 0.0


def _power_covariance(
    covariances: list[np.ndarray], correlation: int, random_weights: bool
) -> np.ndarray:
    """``E[F^nu G^nu]`` of two fields; per degree, their covariance for ``u = 1``."""
    one = np.ones_like(covariances[0])

    def cumulant(a: int, b: int) -> np.ndarray:
        if not random_weights and a + b > 1:
            return 0 * one
        return 2 ** (a + b - 1) * math.factorial(a + b - 1) * sum(p**b for p in covariances)

    moments: dict[tuple[int, int], np.ndarray] = {(0, 0): one}
    for a in range(correlation + 1):
        for b in range(correlation + 1 - a):
            if a:
                moments[a, b] = sum(
                    math.comb(a - 1, i - 1)
                    * math.comb(b, j)
                    * cumulant(i, j)
                    * moments[a - i, b - j]
                    for i in range(1, a + 1)
                    for j in range(b + 1)
                )
            elif b:
                moments[0, b] = sum(
                    math.comb(b - 1, j - 1) * cumulant(0, j) * moments[0, b - j]
                    for j in range(1, b + 1)
                )
    total = 0 * one
    for j in range(correlation, -1, -2):
        pairings = math.comb(correlation, j) * math.prod(range(1, correlation - j, 2))
        total += math.factorial(j) * pairings**2 * moments[correlation - j, j]
    return total


def _legendre(l: int, t: np.ndarray) -> np.ndarray:
    """Legendre polynomial ``P_l(t)``."""
    return np.polynomial.legendre.legval(t, np.eye(l + 1)[l])
