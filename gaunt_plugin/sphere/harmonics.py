"""Real spherical harmonics in e3nn's convention."""

from __future__ import annotations

import math

import numpy as np


def degree_of_component(degrees: list[int] | range) -> np.ndarray:
    """Index into ``degrees`` of every component of their concatenated harmonics.

    Example: ``degree_of_component([0, 2])`` is ``[0, 1, 1, 1, 1, 1]``.
    """
    return np.repeat(np.arange(len(degrees)), [2 * l + 1 for l in degrees])


def real_harmonics(degrees: list[int] | range, points: np.ndarray) -> np.ndarray:
    r"""Real spherical harmonics of unit vectors.

    ``Y_lm = sqrt(2l+1) sqrt((2 - delta_m0) (l-|m|)! / (l+|m|)!) P_l^|m|(y) {sin, 1, cos}(|m| phi)``
    with ``sin`` for ``m < 0``, ``cos`` for ``m > 0``, ``phi = atan2(x, z)`` and no Condon-Shortley
    phase: e3nn's ``o3.spherical_harmonics(..., normalization="component")``.

    Args:
        degrees: the degrees ``l`` wanted, in output order.
        points: unit vectors ``[G, 3]``.

    Returns:
        ``[G, sum(2l + 1)]``, each degree's components in order ``m = -l..l``.

    Raises:
        ValueError: a negative degree, or points that are not unit vectors.
    """
    degrees, points = _checked(degrees, points)
    azimuth, legendre = _factors(max(degrees, default=0), points)

    columns = []
    for l in degrees:
        for m in range(-l, l + 1):
            k = abs(m)
            part = azimuth[k].imag if m < 0 else azimuth[k].real
            columns.append(_norm(l, k) * legendre[l][k] * part)
    return np.stack(columns, axis=1) if columns else np.zeros((len(points), 0))


def surface_gradients(degrees: list[int] | range, points: np.ndarray) -> np.ndarray:
    r"""Tangential gradients of :func:`real_harmonics`.

    ``grad f = (1 - s s^T) df/ds``, tangent to the sphere: ``<|grad Y_lm|^2> = l (l + 1)``.

    Args:
        degrees: the degrees ``l`` wanted, in output order.
        points: unit vectors ``[G, 3]``.

    Returns:
        ``[G, 3, sum(2l + 1)]``, Cartesian components x, y, z.

    Raises:
        ValueError: a negative degree, or points that are not unit vectors.
    """
    degrees, points = _checked(degrees, points)
    azimuth, legendre = _factors(max(degrees, default=0), points)
    zero = np.zeros(len(points))
    columns = []
    for l in degrees:
        for m in range(-l, l + 1):
            k = abs(m)
            # Y = norm Q(y) Re or Im (z + i x)^k with Q = d^k P_l / dy^k, so Q' is the next Q.
            below = k * azimuth[k - 1] if k else np.zeros(len(points), dtype=complex)
            along_x, along_z, part = (
                c.imag if m < 0 else c.real for c in (1j * below, below, azimuth[k])
            )
            slope = legendre[l][k + 1] if k < l else zero
            gradient = [legendre[l][k] * along_x, slope * part, legendre[l][k] * along_z]
            columns.append(_norm(l, k) * np.stack(gradient, axis=1))
    out = np.stack(columns, axis=2) if columns else np.zeros((len(points), 3, 0))
    # gi,gic->gc and gi,gc->gic
    return out - points[:, :, None] * np.einsum("gi,gic->gc", points, out)[:, None]


def tangents(points: np.ndarray) -> np.ndarray:
    """Two orthonormal tangents ``t1, t2`` at unit vectors s, with ``t1 x t2 = s``.

    Returns:
        ``[G, 2, 3]``. They depend on the point discontinuously, as they must; products such as
        ``(t1.a)(t2.b) - (t2.a)(t1.b) = s.(a x b)`` do not.
    """
    points = np.asarray(points, dtype=np.float64)
    helper = np.eye(3)[np.argmin(np.abs(points), axis=1)]
    first = np.cross(helper, points)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    return np.stack([first, np.cross(points, first)], axis=1)


def _checked(degrees, points) -> tuple[list[int], np.ndarray]:
    degrees = list(degrees)
    points = np.asarray(points, dtype=np.float64)
    if any(l < 0 for l in degrees):
        raise ValueError(f"degrees must be >= 0, got {degrees}")
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points must have shape [G, 3], got {list(points.shape)}")
    if not np.allclose(np.linalg.norm(points, axis=1), 1.0, atol=1e-9):
        raise ValueError("points must be unit vectors")
    return degrees, points


def _factors(lmax: int, points: np.ndarray) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """``(z + i x)^m`` and ``P_l^m(y) / sin(theta)^m`` for all ``m <= l <= lmax``."""
    x, y, z = points.T
    # (z + i x)^m = sin(theta)^m exp(i m phi): no angle is computed, so the poles are regular.
    azimuth = np.cumprod(np.vstack([np.ones_like(x), np.tile(z + 1j * x, (lmax, 1))]), axis=0)
    # legendre[l][m] = P_l^m(y) / sin(theta)^m by the three-term recursion in l.
    legendre = [[np.zeros_like(y)] * (l + 1) for l in range(lmax + 1)]
    for m in range(lmax + 1):
        legendre[m][m] = np.full_like(y, float(math.prod(range(1, 2 * m, 2))))
        for l in range(m + 1, lmax + 1):
            below = legendre[l - 2][m] if l - 2 >= m else 0.0
            legendre[l][m] = ((2 * l - 1) * y * legendre[l - 1][m] - (l + m - 1) * below) / (l - m)
    return azimuth, legendre


def _norm(l: int, m: int) -> float:
    """Component normalisation of the harmonic of degree l and order +m or -m."""
    norm = (2 * l + 1) * (1 if m == 0 else 2) * math.factorial(l - m)
    return math.sqrt(norm / math.factorial(l + m))
