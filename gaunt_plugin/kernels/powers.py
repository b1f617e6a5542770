"""Calls the kernel of the powers in :class:`gaunt_plugin.layers.GauntManyBody`, see powers.cpp."""

from __future__ import annotations

import numpy as np

from gaunt_plugin.kernels._call import make_program
from gaunt_plugin.kernels.passes import Kernel


class PowersKernel(Kernel):
    """Weighted powers of functions on the sphere, projected, float32 or float64 on the CPU.

    Nodes of the quadrature are one of each antipodal pair.

    Args:
        degrees_in, degrees_out: of input and output, in order.
        copies: whether weights u multiply the degrees of the input, view by view.
        to_grid: ``[nodes, dim_in]``, harmonics with their factors.
        from_grid: ``[nodes, dim_out]``, harmonics times weights of pairs.
        factors: ``t``, ``[orders, degrees_out]``; 0 where there is no weight w.
    """

    name = "powers"

    def __init__(
        self,
        degrees_in: tuple[int, ...],
        degrees_out: tuple[int, ...],
        copies: bool,
        to_grid: np.ndarray,
        from_grid: np.ndarray,
        factors: np.ndarray,
    ) -> None:
        inputs, outputs = _groups(degrees_in), _groups(degrees_out)
        if not copies:
            # one function of each parity
            merged = [[i for l, _, rows in inputs for i in rows if l % 2 == odd] for odd in (0, 1)]
            inputs = [(odd, odd, rows) for odd, rows in enumerate(merged) if rows]
        self.dim_out = from_grid.shape[1]
        weight = np.where(factors > 0, np.cumsum(factors > 0).reshape(factors.shape) - 1, -1)
        order = [label for _, label, _ in outputs]
        numbers = [len(factors) + 1, len(to_grid), int(copies), weight.max() + 1]
        values = []
        for groups, table in ((inputs, to_grid), (outputs, from_grid)):
            odd = sum(l % 2 for l, *_ in groups)
            numbers += [len(groups) - odd, odd]
            for _, label, rows in groups:
                numbers += [label, len(rows), *rows]
            values += table[:, [i for *_, rows in groups for i in rows]].ravel().tolist()
        numbers += weight[:, order].ravel().tolist()
        values += factors[:, order].ravel().tolist()
        self.program = make_program(numbers, values)

    def shapes(self, x, w, *u):
        """``[atoms, channels, dim_out]``.

        Args:
            x: ``[atoms, channels, dim_in]``.
            w: ``[atoms, views, weights, channels]``.
            u: with copies, ``[atoms, views, degrees_in, channels]``.
        """
        atoms, channels, _ = x.shape
        return [atoms, channels, w.shape[1]], [atoms, channels, self.dim_out]


def _groups(degrees: tuple[int, ...]) -> list[tuple[int, int, list[int]]]:
    """Degree, place and components of each, even degrees first."""
    ends = np.cumsum([2 * l + 1 for l in degrees]).tolist()
    groups = [(l, k, list(range(e - 2 * l - 1, e))) for k, (l, e) in enumerate(zip(degrees, ends))]
    return sorted(groups, key=lambda group: group[0] % 2)
