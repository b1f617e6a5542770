"""Calls the kernel of :class:`gaunt_plugin.layers.rotation.EdgeRotation`, see rotation.cpp."""

from __future__ import annotations

import numpy as np

from gaunt_plugin.kernels._call import make_program
from gaunt_plugin.kernels.passes import Kernel


class RotationKernel(Kernel):
    """Entries of all D^l of an edge and their derivatives.

    Args:
        mmax: highest order.
        columns, starts: the layout of the entries.
        coupling, axial, top: tables of ``EdgeRotation``.
    """

    name = "rotation"

    def __init__(
        self,
        mmax: int,
        columns: list[int],
        starts: list[int],
        coupling: np.ndarray,
        axial: np.ndarray,
        top: np.ndarray,
    ) -> None:
        lmax, self.entries = len(columns) - 1, starts[-1]
        numbers, values = [lmax, mmax], []
        for l in range(1, lmax):
            q = coupling[l, : 2 * l + 3, : 3 * (2 * l + 1)].reshape(2 * l + 3, 2 * l + 1, 3)
            places = np.argwhere(q)
            numbers += [len(places), *places.ravel().tolist()]
            values += [*q[q != 0], *axial[l, : columns[l]], top[l]]
        self.program = make_program(numbers, values)

    def shapes(self, directions):
        """``[edges, entries]`` from directions ``[edges, 3]``."""
        return [len(directions)], [len(directions), self.entries]
