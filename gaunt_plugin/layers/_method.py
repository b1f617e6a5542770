"""Which way functions on the sphere are multiplied: quadrature or fast Fourier transforms.

Both give the same numbers. The choice is a count of operations with measured constants, nothing is
tried out: a model is built the same everywhere. ``docs/mathematics.md`` has the measurement.
"""

from __future__ import annotations

import math

from gaunt_plugin.layers._torus import torus_size
from gaunt_plugin.sphere import quadrature

METHODS = ("auto", "grid", "fourier")
# Nanoseconds on one CPU core, float32: per multiply-add of a matrix product of the size of a grid's
# and of one of the small ones per order, per number of a field that is touched, and per number and
# log2(numbers) of a 2D FFT of real values.
_GRID, _SERIES, _TOUCH, _FFT = 0.03, 0.1, 1.0, 0.5


def choose_method(method: str, l_in: tuple[int, ...], l_out: int) -> str:
    """The method named, or for ``"auto"`` the cheaper one by count.

    Args:
        method: ``"auto"``, ``"grid"`` or ``"fourier"``.
        l_in: highest degree of each factor.
        l_out: highest degree of the product.

    Raises:
        ValueError: unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; possible: {', '.join(METHODS)}")
    if method != "auto":
        return method
    return min(("grid", "fourier"), key=lambda name: method_cost(name, l_in, l_out))


def method_cost(method: str, l_in: tuple[int, ...], l_out: int) -> float:
    """Expected nanoseconds for one product of functions, of all degrees up to those given.

    ``l_in`` with more than two factors, all equal, is a many-body product of orders 2, 3, ...: one
    function on the grid, and one projection or convolution per order.
    """
    powers = len(l_in) > 2
    if method == "grid":
        nodes = len(quadrature(sum(l_in) + l_out).nodes)
        maps = [l_in[0]] + [l_out] * (len(l_in) - 1) if powers else [*l_in, l_out]
        components = sum((l + 1) ** 2 for l in maps)
        return nodes * (components * _GRID + len(maps) * _TOUCH)
    cost = 0.0
    for l in l_in[:1] if powers else l_in:
        cost += 2 * (l + 1) ** 2 * (2 * l + 1) * _SERIES
    for n in range(2, len(l_in) + 1):
        frequency = sum(l_in[:n])
        numbers = torus_size(frequency) ** 2
        transforms = 2 + n % 2 if powers else 3
        cost += transforms * numbers * (math.log2(numbers) * _FFT + _TOUCH)
        orders = min(l_out, frequency) + 1
        cost += 2 * orders * (frequency + 1) * (l_out + 1) * _SERIES
    return cost


def method_repr(asked: str, used: str) -> str:
    """``method=grid``, or ``method=grid (auto)`` where it was chosen."""
    return f"method={used}{' (auto)' if asked == 'auto' else ''}"
