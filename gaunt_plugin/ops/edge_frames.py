"""Rotations into the frames of edges: ``gaunt::edge_frames``."""

from __future__ import annotations

from typing import List, Tuple

import numpy as np
import torch

from gaunt_plugin.ops._operator import Operator, has_kernel
from gaunt_plugin.ops.operation import Operation, plain_of
from gaunt_plugin.ops.recording import recording
from gaunt_plugin.ops.tables import pack
from gaunt_plugin.sphere import gaunt


class EdgeFrames(Operation):
    r"""Columns of ``D^l(R)``, R a rotation that takes the polar axis y to each direction n.

    ``Y_l(R s) = D^l(R) Y_l(s)`` in e3nn's component order. R turns about ``y x n``; where
    ``n_y < 0`` a half turn about x comes first, so that no denominator falls below 1. Across the
    equator R therefore jumps by a turn about y. Operations that commute with such turns, and no
    others may be applied in this frame, don't see the jump, nor do their derivatives.

    Column m of D^l is the harmonic Y_lm of the rotated frame. Multiplying it by the rotated axis,
    which is n, and projecting on degree l+1 gives column m of D^(l+1); the columns of highest
    order come from ``(z + i x)^m`` in the rotated frame. Only columns with ``|m| <= mmax`` are
    formed.

    Args:
        lmax: highest degree, inclusive.
        mmax: highest order, inclusive, at most ``lmax``.

    Shapes:
        ``directions [edges, 3]`` (x, y, z), unit vectors -> ``[edges, entries]``: per degree
        ``l = 0..lmax`` the matrix ``[2l+1, columns]``, row by row, with columns in the order
        ``m = 0, 1, -1, 2, -2, ...`` (see :func:`frame_layout`). A zero vector gives finite
        numbers, not a rotation.
    """

    def __init__(self, lmax: int, mmax: int) -> None:
        super().__init__()
        self.lmax, self.mmax = lmax, mmax
        self.entries = frame_layout(lmax, mmax)[1][-1]
        # Padded tables keep the loop scriptable. coupling[l] is [2l+3, 3 (2l+1)] for l -> l+1.
        coupling = np.zeros((max(lmax, 1), 2 * lmax + 1, 3 * (2 * lmax + 1)))
        axial = np.ones((max(lmax, 1), 2 * mmax + 1))
        top = np.ones(max(lmax, 1))
        numbers, values = [lmax, mmax], []
        for l in range(1, lmax):
            q = gaunt(l, 1, l + 1)
            coupling[l, : 2 * l + 3, : 3 * (2 * l + 1)] = q.reshape(-1, 2 * l + 3).T
            # <Y_lm Y_10 Y_l+1m> for each m, and the coefficient of the product of top orders.
            orders = [0] + [s * m for m in range(1, min(l, mmax) + 1) for s in (1, -1)]
            axial[l, : len(orders)] = [1 / q[l + m, 1, l + 1 + m] for m in orders]
            top[l] = 1 / (q[2 * l, 2, 2 * l + 2] - q[0, 0, 2 * l + 2])
            places = np.argwhere(q.transpose(2, 0, 1))
            numbers += [len(places), *places.ravel().tolist()]
            values += [q[i, j, k] for k, i, j in places]
            values += [*axial[l, : len(orders)], top[l]]
        self.register_table("coupling", coupling)
        self.register_table("axial", axial)
        self.register_table("top", top)
        self.register_table("constants", pack(numbers, values))

    @classmethod
    def arguments(cls, numbers: list[int], values: list[float]) -> tuple:
        return tuple(numbers[:2])

    def forward(self, directions: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            if self.in_programs:
                return torch.ops.gaunt.edge_frames(directions, self.constants, self.entries)
            return self.plain(directions)
        return self._python(directions)

    @torch.jit.unused
    def _python(self, directions: torch.Tensor) -> torch.Tensor:
        if recording():
            if self.in_programs:
                return self.operator(directions, self.constants, self.entries)
        elif has_kernel(directions):
            return self.operator.eagerly(directions, self.constants, self.entries)
        return self.plain(directions)

    def plain(self, directions: torch.Tensor) -> torch.Tensor:
        edges = directions.shape[0]
        x, y, z = directions.unbind(-1)
        out = [torch.ones_like(directions[:, :1])]
        if self.lmax == 0:
            return out[0]
        columns = directions.unsqueeze(-1)
        # R's images of z and x (orders +1 and -1); s = +1 or -1, w = 1 / (1 + |n_y|)
        s = torch.where(y < 0, -torch.ones_like(y), torch.ones_like(y)).detach()
        w = 1 / (1 + s * y)
        cos = torch.stack([-s * x * z * w, -z, s * (1 - z * z * w)], dim=-1)
        sin = torch.stack([1 - x * x * w, -s * x, -x * z * w], dim=-1)
        if self.mmax > 0:
            columns = torch.stack([directions, cos, sin], dim=-1)
        out.append(columns.flatten(1))
        axis = directions[:, None, :, None]
        cos, sin = cos[:, None, :], sin[:, None, :]
        for l in range(1, self.lmax):
            d, k = 2 * l + 1, columns.shape[2]
            q = self.coupling[l, : d + 2, : 3 * d]
            # eik,ej->eijk, projected on l+1
            grown = q @ (columns.unsqueeze(2) * axis).view(edges, 3 * d, k) * self.axial[l, :k]
            if l < self.mmax:
                c, t = columns[:, :, k - 2, None], columns[:, :, k - 1, None]
                pair = torch.stack([c * cos - t * sin, c * sin + t * cos], dim=-1)
                grown = torch.cat([grown, q @ pair.view(edges, 3 * d, 2) * self.top[l]], dim=-1)
            columns = grown
            out.append(columns.flatten(1))
        return torch.cat(out, dim=1)


def frame_layout(lmax: int, mmax: int) -> Tuple[List[int], List[int]]:
    """Columns of each D^l, and where each begins among the entries of an edge; then the end."""
    columns = [2 * min(l, mmax) + 1 for l in range(lmax + 1)]
    starts = [0]
    for l, k in enumerate(columns):
        starts.append(starts[-1] + (2 * l + 1) * k)
    return columns, starts


EdgeFrames.operator = Operator(
    "edge_frames",
    ["directions"],
    2,
    lambda directions, width: [directions.shape[0], width],
    plain_of(EdgeFrames),
)
