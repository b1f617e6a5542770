"""Radial functions from a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import List, Optional, Tuple

import numpy as np
import torch
from scipy.interpolate import make_lsq_spline

from gaunt_plugin.layers.convolution.grouped import GroupedConvolution
from gaunt_plugin.ops.tables import TableModule

# Cubic B-splines that are not zero on an interval.
SPLINES = 4
# Columns of what join_radial makes.
RADIAL = SPLINES + 1


class RadialTable(TableModule):
    r"""Functions of a distance as cubic splines: which rows of a table, and their factors.

    .. math:: R(r) = \sum_{q=0}^{3} b_q(t)\, c_{i+q}, \qquad
       i + t = n \, \frac{r - r_0}{r_k - r_0}, \quad 0 \le t < 1

    with the uniform cubic B-splines ``b_q`` and rows ``c`` of coefficients, which
    :meth:`fit` makes. Values, first and second derivatives are continuous. There is a table per
    kind k of edge, up to its own cutoff, from which on R is zero.

    Args:
        start: ``r_0``, Å; shorter distances have no table.
        cutoffs: ``r_k`` of every kind of edge, Å.
        intervals: ``n``.

    Attributes:
        rows: of the table, ``kinds * (n + 3)``.

    Shapes:
        ``lengths [edges]`` in Å, ``kinds [edges]`` (int64) -> factors ``[edges, 4]`` and the first
        of the four rows ``[edges]`` (int64).
    """

    def __init__(self, start: float, cutoffs: Sequence[float], intervals: int) -> None:
        super().__init__()
        if not 0 < start < min(cutoffs):
            raise ValueError(f"start must lie between 0 and the cutoffs, got {start}")
        self.start, self.cutoffs, self.intervals = start, list(cutoffs), intervals
        self.per_kind = intervals + SPLINES - 1
        self.rows = len(self.cutoffs) * self.per_kind
        self.register_table("scale", intervals / (np.array(self.cutoffs) - start))
        # powers of t -> 6 b_q
        splines = np.array([[1, 4, 1, 0], [-3, 0, 3, 0], [3, -6, 3, 0], [-1, 3, -3, 1]])
        self.register_table("splines", splines)

    def forward(
        self, lengths: torch.Tensor, kinds: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        place = (lengths - self.start) * self.scale.index_select(0, kinds).to(lengths.dtype)
        interval = place.detach().floor().clamp(0, self.intervals - 1)
        t = (place - interval).unsqueeze(1)
        inside = (place < self.intervals).unsqueeze(1)
        powers = torch.cat([torch.ones_like(t), t, t * t, t * t * t], dim=1)
        factors = (powers @ self.splines.to(powers.dtype) / 6) * inside.to(powers.dtype)
        return factors, kinds * self.per_kind + interval.to(torch.int64)

    def fit(self, function: Callable[[torch.Tensor, int], torch.Tensor]) -> np.ndarray:
        """Coefficients ``[rows, functions]`` of the splines that fit best, in float64.

        Args:
            function: of lengths ``[number]``, float64, and the kind of edge
                -> ``[number, functions]``.
        """
        tables = []
        for kind, cutoff in enumerate(self.cutoffs):
            r = np.linspace(self.start, cutoff, 2 * self.intervals + 1)
            step = (cutoff - self.start) / self.intervals
            knots = self.start + step * np.arange(1 - SPLINES, self.intervals + SPLINES)
            values = function(torch.from_numpy(r), kind).detach().numpy()
            ends = np.ones_like(r)
            ends[[0, -1]] = 1e3  # no jump at the cutoff
            tables.append(make_lsq_spline(r, values, knots, k=SPLINES - 1, w=ends).c)
        return np.concatenate(tables)


class TabulatedConvolution(TableModule):
    """A convolution whose radial weights come from a table.

    Args:
        convolution: an :class:`~gaunt_plugin.layers.AlignedConvolution`, or another one that takes
            rows of ``mixing``.
        table: coefficients ``[rows, weight_numel]``, see :class:`RadialTable`.
        channels_last: calls the convolution's method of this name.

    Shapes:
        As the convolution, with ``radial [edges, 5]``, the factors and the first row, in the place
        of its weights: hosts hand one array on. ``mixing`` is not read.
    """

    def __init__(
        self, convolution: torch.nn.Module, table: np.ndarray, channels_last: bool = False
    ) -> None:
        super().__init__()
        self.convolution, self.channels_last = convolution, channels_last
        self.register_table("table", table)

    def forward(
        self,
        node_feats: torch.Tensor,
        edge_attrs: torch.Tensor,
        radial: torch.Tensor,
        edge_index: torch.Tensor,
        mixing: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        factors, rows = split_radial(radial)
        if self.channels_last:
            out = self.convolution.channels_last(
                node_feats, edge_attrs, factors, edge_index, self.table, rows
            )
            return out.flatten(1)
        return self.convolution(node_feats, edge_attrs, factors, edge_index, self.table, rows)


class TabulatedGroups(torch.nn.Module):
    """A :class:`GroupedConvolution` whose radial weights come from a table.

    Args:
        convolution: the convolution.
        table: coefficients ``[rows, weight_numel]``.

    Shapes:
        As the convolution, with ``radial [edges, 5]`` in the place of hidden features; ``mixing``
        is not read.
    """

    def __init__(self, convolution: GroupedConvolution, table: np.ndarray) -> None:
        super().__init__()
        self.slices = convolution.slices
        bounds = np.cumsum(convolution.weight_numels)[:-1]
        self.groups = torch.nn.ModuleList(
            TabulatedConvolution(group, part)
            for group, part in zip(convolution.groups, np.split(table, bounds, axis=1))
        )

    def forward(
        self,
        node_feats: torch.Tensor,
        edge_attrs: torch.Tensor,
        radial: torch.Tensor,
        edge_index: torch.Tensor,
        mixing: torch.Tensor,
    ) -> torch.Tensor:
        parts: List[torch.Tensor] = []
        for i, group in enumerate(self.groups):
            x = torch.cat([node_feats[:, a:b] for a, b in self.slices[i]], dim=1)
            parts.append(group(x, edge_attrs, radial, edge_index))
        return torch.cat(parts, dim=1)


class TabulatedFunctions(TableModule):
    """A few functions of the distance from a table ``[rows, functions]``.

    Shapes:
        ``radial [edges, 5]`` -> ``[edges, functions]``.
    """

    def __init__(self, table: np.ndarray) -> None:
        super().__init__()
        self.register_table("table", table)

    def forward(self, radial: torch.Tensor) -> torch.Tensor:
        factors, rows = split_radial(radial)
        out = factors[:, :1] * self.table.index_select(0, rows)
        for q in range(1, factors.shape[1]):
            out = out + factors[:, q : q + 1] * self.table.index_select(0, rows + q)
        return out


def join_radial(factors: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """One array of both, ``[edges, 5]``; every row up to 2^24 is a number of float32."""
    return torch.cat([factors, rows.to(factors.dtype).unsqueeze(1)], dim=1)


def split_radial(radial: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Inverse of :func:`join_radial`."""
    return radial[:, :-1], radial[:, -1].detach().to(torch.int64)
