"""Exact quadrature on the sphere."""

# No `from __future__ import annotations`: a dataclass would look its text up in sys.modules, where
# the modules of a model packaged by NequIP are not.
import importlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Degrees of the Lebedev rules in SciPy. 13, 25 and 27 have negative weights: they amplify rounding.
_LEBEDEV = (3, 5, 7, 9, 11, 15, 17, 19, 21, 23, 29, 31) + tuple(range(35, 132, 6))
_METHODS = ("auto", "lebedev", "product")


@dataclass(frozen=True)
class Quadrature:
    """Nodes and weights of a rule for averages over the sphere.

    Attributes:
        nodes: unit vectors ``[G, 3]`` (x, y, z); node ``G/2 + i`` is the antipode of node ``i``.
        weights: positive weights ``[G]`` that sum to 1.
        degree: every spherical polynomial up to this degree is integrated exactly.
        method: ``"lebedev"`` or ``"product"``.
    """

    nodes: np.ndarray
    weights: np.ndarray
    degree: int
    method: str


@lru_cache(maxsize=256)
def quadrature(degree: int, method: str = "auto") -> Quadrature:
    """Smallest known rule that is exact for polynomials up to ``degree``.

    Args:
        degree: sum of all degrees in the integrand.
        method: ``"lebedev"`` (fewest nodes, up to degree 131), ``"product"`` (Gauss-Legendre in
            the polar angle times trapezoid in the azimuth, any degree) or ``"auto"``: Lebedev
            where there is one, the product rule beyond.

    Returns:
        A rule exact for at least ``degree``; closed under inversion.

    Raises:
        ValueError: negative degree, unknown method, or no rule of that kind; a weaker rule is
            never returned.

    Source: V. I. Lebedev, D. N. Laikov, Doklady Mathematics 59 (1999) 477 (through SciPy).
    """
    if not isinstance(degree, (int, np.integer)) or degree < 0:
        raise ValueError(f"quadrature degree must be an integer >= 0, got {degree!r}")
    if method not in _METHODS:
        raise ValueError(f"unknown quadrature method {method!r}; possible: {', '.join(_METHODS)}")
    exact = next((d for d in _LEBEDEV if d >= degree), None)
    if method == "lebedev" and exact is None:
        raise ValueError(f"no Lebedev rule of degree {degree}; the highest is {_LEBEDEV[-1]}")
    if method == "product" or exact is None:
        return _product(int(degree))
    return _lebedev(exact)


def _lebedev(degree: int) -> Quadrature:
    # SciPy is slow to import and only needed when a layer is built. A model that NequIP packages
    # carries this module, and every import that can be seen in it would be one of the package's.
    nodes, weights = importlib.import_module("scipy.integrate").lebedev_rule(degree)
    return _paired(nodes.T, weights / weights.sum(), degree, "lebedev")


def _product(degree: int) -> Quadrature:
    polar, polar_weights = np.polynomial.legendre.leggauss(degree // 2 + 1)
    # An even number of azimuths makes the rule closed under inversion.
    n_azimuth = degree + 1 + (degree + 1) % 2
    azimuth = 2 * np.pi * np.arange(n_azimuth) / n_azimuth
    sine = np.sqrt(1 - polar**2)
    nodes = np.stack(
        [
            np.outer(sine, np.sin(azimuth)),
            np.outer(polar, np.ones(n_azimuth)),
            np.outer(sine, np.cos(azimuth)),
        ],
        axis=-1,
    ).reshape(-1, 3)
    weights = np.repeat(polar_weights / 2 / n_azimuth, n_azimuth)
    return _paired(nodes, weights, degree, "product")


def _paired(nodes: np.ndarray, weights: np.ndarray, degree: int, method: str) -> Quadrature:
    """Order the nodes as one hemisphere followed by its antipodes."""
    nodes = nodes / np.linalg.norm(nodes, axis=1, keepdims=True)
    key = np.round(nodes, 9) + 0.0
    first = [i for i, k in enumerate(key) if tuple(k) > tuple(-k + 0.0)]
    half, half_weights = nodes[first], weights[first]
    if 2 * len(half) != len(nodes) or (weights <= 0).any():
        raise ValueError(
            f"the {method} rule of degree {degree} is not positive and inversion-closed"
        )
    nodes = np.concatenate([half, -half])
    weights = np.concatenate([half_weights, half_weights])
    nodes.setflags(write=False)
    weights.setflags(write=False)
    return Quadrature(nodes, weights, degree, method)
