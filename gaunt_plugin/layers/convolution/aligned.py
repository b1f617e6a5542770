"""Convolution over edges in the frame in which the filter has only order m = 0."""

from __future__ import annotations

from typing import Optional

import numpy as np
import torch

from gaunt_plugin.layers.convolution.edges import Convolution, edge_degrees
from gaunt_plugin.layers.irreps import (
    Irreps,
    channels_last,
    check_channels,
    flat,
    functions_of,
)
from gaunt_plugin.ops import EdgeConvolution, EdgeFrames


class AlignedConvolution(Convolution):
    r"""Product of node features with harmonics of the edge, in the frame whose polar axis it is.

    Multiplication by a function that is symmetric about the edge keeps the order m. With
    ``B = D(R)^T A_j`` the features in the edge's frame, and ``J`` the quarter turn
    ``(J B)_m = B_-m, (J B)_-m = -B_m`` (m > 0), every coupling to ``l3`` is

    .. math:: M_{i,l_3} = \sum_j D^{l_3}(R) \, \Big[ n_{l_3} \Big( \sum_{l_1}
       w_{ij,l_1 l_3 |m|}\, B_{l_1 m} + \sum_{l_1'} w_{ij,l_1' l_3 |m|}\, (J B_{l_1'})_m
       \Big) \Big]_m

    where ``l1`` runs over the features of the same kind (natural parity ``(-1)^l`` or pseudo
    parity ``-(-1)^l``) as ``l3``: the couplings with ``l1 + l2 + l3`` even; and ``l1'`` over those
    of the other kind: the antisymmetric couplings, ``l1' + l2 + l3`` odd, which m = 0 does not
    have. One radial weight per edge, channel and (l1, l3, ``|m|``) makes these free weights on
    all couplings that Clebsch-Gordan has, for l2 up to ``l1 + l3``. ``n_L`` makes a message of one
    edge have unit variance for unit normal features and weights. Scalar features need no frame:
    there M is a sum of harmonics.

    Args:
        irreps_in: node features, one multiplicity, each irrep once.
        irreps_edge: harmonics of the edges, multiplicity 1, natural parity; ``1o`` gives the
            direction and, for scalar features, degrees up to those of ``irreps_out`` are needed.
        irreps_out: same multiplicity as ``irreps_in``, each irrep once.

    Attributes:
        weight_numel: weights per edge, ordered ``[|m|, kind of l3, l1, l3, channel]``.

    Shapes:
        As :class:`~gaunt_plugin.layers.GauntConvolution`. Compiled kernels never hold a large
        product ``weights @ mixing`` for all edges. With ``rows [edges]`` (int64) ``mixing`` may
        have more rows than ``weights`` has columns: an edge takes as many of them as there are
        columns, from ``rows[edge]`` on (see :class:`RadialTable`).

    Raises:
        ValueError: irreps or shapes that don't fit.

    Source: Luo, Chen, Krishnapriyan, ICLR 2024, arXiv 2401.10216, section on equivariant
    convolutions; Passaro, Zitnick, ICML 2023, arXiv 2302.03655.
    """

    def __init__(
        self,
        irreps_in: Irreps | str,
        irreps_edge: Irreps | str,
        irreps_out: Irreps | str,
    ) -> None:
        super().__init__()
        self.irreps_in = Irreps(irreps_in)
        self.irreps_edge = Irreps(irreps_edge)
        self.irreps_out = Irreps(irreps_out)
        channels, inputs = functions_of(irreps_in, "irreps_in")
        channels_out, outputs = functions_of(irreps_out, "irreps_out")
        degrees = edge_degrees(irreps_edge)
        check_channels(irreps_in, channels, irreps_out, channels_out)
        self.scalar = all(l == 0 for l, _ in inputs)
        needed = sorted({L for L, _ in outputs}) if self.scalar else [1]
        if not set(needed) <= set(degrees):
            raise ValueError(
                f"irreps_edge must contain degrees {needed} for {self.irreps_in} -> "
                f"{self.irreps_out}, got {self.irreps_edge}"
            )
        self.convolution = EdgeConvolution(tuple(inputs), tuple(outputs), degrees)
        if 0.0 in self.convolution.norm:
            L, pseudo = outputs[self.convolution.norm.index(0.0)]
            raise ValueError(
                f"no coupling of {self.irreps_in} to {'pseudo ' if pseudo else ''}degree {L} "
                f"in irreps_out {self.irreps_out}"
            )
        self.channels = channels
        self.dim_edge = self.irreps_edge.dim
        self.dims_in = [2 * l + 1 for l, _ in inputs]
        self.dims_out = [2 * L + 1 for L, _ in outputs]
        self.weight_numel = self.convolution.paths * channels
        # Where the direction is among the harmonics.
        starts = np.cumsum([0] + [2 * l + 1 for l in degrees]).tolist()
        self.direction = 0 if self.scalar else starts[degrees.index(1)]
        lmax, mmax = self.convolution.lmax, self.convolution.mmax
        self.frames = EdgeFrames(0, 0) if self.scalar else EdgeFrames(lmax, mmax)

    def forward(
        self,
        node_feats: torch.Tensor,
        edge_attrs: torch.Tensor,
        weights: torch.Tensor,
        edge_index: torch.Tensor,
        mixing: Optional[torch.Tensor] = None,
        rows: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        out = self.channels_last(node_feats, edge_attrs, weights, edge_index, mixing, rows)
        return flat(out, self.dims_out)

    def channels_last(
        self,
        node_feats: torch.Tensor,
        edge_attrs: torch.Tensor,
        weights: torch.Tensor,
        edge_index: torch.Tensor,
        mixing: Optional[torch.Tensor] = None,
        rows: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """The result as ``[nodes, components, channels]``."""
        self.check_edges(node_feats, edge_attrs, weights, edge_index, mixing, rows)
        if self.scalar:
            frames = edge_attrs
        else:
            # Component-normalised harmonics of degree 1 are sqrt(3) times the direction.
            frames = self.frames(edge_attrs[:, self.direction : self.direction + 3] / 3**0.5)
        return self.convolution(
            channels_last(node_feats, self.channels, self.dims_in),
            frames,
            weights,
            mixing,
            edge_index,
            rows,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.irreps_in} x {self.irreps_edge} -> {self.irreps_out}, "
            f"weights={self.weight_numel}"
        )
