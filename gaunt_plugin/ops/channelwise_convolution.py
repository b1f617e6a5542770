"""Convolution whose paths stay apart: ``gaunt::channelwise_convolution``."""

from __future__ import annotations

from typing import List, Optional, Tuple

import numpy as np
import torch

from gaunt_plugin.ops._operator import Operator
from gaunt_plugin.ops.edge_sum import EdgeSum
from gaunt_plugin.ops.operation import plain_of
from gaunt_plugin.ops.tables import pack

# Component of the features, of the harmonics and of the result, and the coefficient.
Term = Tuple[int, int, int, float]


class PathConvolution(EdgeSum):
    r"""Features of the senders coupled with harmonics of the edges, summed at the receivers.

    .. math:: M_{i, p, m_3, u} = \sum_j w_{ij, p, u} \sum_{m_1 m_2} C^p_{m_1 m_2 m_3}\,
       Y_{ij, m_2}\, x_{j, m_1, u}

    with a block of the result for each path p, which reads one block of the features. Blocks of
    features may have different numbers of channels; within a block they come last.

    Args:
        blocks: of the features, each its number of components and of channels.
        dim_edge: components of the harmonics.
        dim_out: numbers of the result per node.
        paths: per path its block of the features, where its block of the result begins, the
            distance between components there, and their number. Together they fill the result.
        terms: per path the coefficients that are not zero.

    Shapes:
        As :class:`~gaunt_plugin.ops.edge_sum.EdgeSum`, of ``node_feats [nodes, dim_in]``,
        ``harmonics [edges, dim_edge]`` and ``numel`` weights ordered ``[path, channel]``
        -> ``[nodes, dim_out]``.
    """

    def __init__(
        self,
        blocks: Tuple[Tuple[int, int], ...],
        dim_edge: int,
        dim_out: int,
        paths: Tuple[Tuple[int, int, int, int], ...],
        terms: Tuple[Tuple[Term, ...], ...],
    ) -> None:
        super().__init__()
        self.dims = [dim for dim, _ in blocks]
        self.channels = [channels for _, channels in blocks]
        self.widths = [dim * channels for dim, channels in blocks]
        self.dim_in, self.dim_out = sum(self.widths), dim_out
        self.path_channels = [self.channels[source] for source, *_ in paths]
        self.numel = sum(self.path_channels)
        # Blocks that paths read; for each its paths, the components of their results, and a matrix
        # from the harmonics to [components of the results, components of the block].
        self.read = sorted({source for source, *_ in paths})
        self.paths_of = [[p for p, path in enumerate(paths) if path[0] == b] for b in self.read]
        self.path_dims = [[paths[p][3] for p in of_block] for of_block in self.paths_of]
        self.rows_of = [sum(dims) for dims in self.path_dims]
        self.sizes = [rows * self.dims[b] for rows, b in zip(self.rows_of, self.read)]
        matrices, order, begin = [], np.full(dim_out, -1), 0
        for block, of_block in zip(self.read, self.paths_of):
            channels = np.arange(self.channels[block])
            for p in of_block:
                _, first, stride, dim = paths[p]
                matrix = np.zeros((dim_edge, dim, self.dims[block]))
                for m1, m2, m3, value in terms[p]:
                    matrix[m2, m3, m1] = value
                matrices.append(matrix.reshape(dim_edge, -1))
                for m3 in range(dim):
                    order[first + m3 * stride + channels] = begin + channels
                    begin += len(channels)
        if (order < 0).any() or begin != dim_out:
            raise ValueError("the paths must fill the result, each place once")
        self.register_table("couplings", np.concatenate(matrices, axis=1))
        self.register_table("order", order)
        numbers = [len(blocks), *(int(n) for block in blocks for n in block), dim_edge, dim_out]
        numbers.append(len(paths))
        for path, of_path in zip(paths, terms):
            numbers += [*path, len(of_path), *(int(m) for term in of_path for m in term[:3])]
        values = [term[3] for of_path in terms for term in of_path]
        self.register_table("constants", pack(numbers, values))

    @classmethod
    def arguments(cls, numbers: list[int], values: list[float]) -> tuple:
        rest, coefficients = iter(numbers), iter(values)
        take = lambda count: tuple(next(rest) for _ in range(count))  # noqa: E731
        blocks = tuple(take(2) for _ in range(next(rest)))
        dim_edge, dim_out, count = take(3)
        paths, terms = [], []
        for _ in range(count):
            paths.append(take(4))
            terms.append(tuple((*take(3), next(coefficients)) for _ in range(next(rest))))
        return blocks, dim_edge, dim_out, tuple(paths), tuple(terms)

    def forward(
        self,
        node_feats: torch.Tensor,
        harmonics: torch.Tensor,
        weights: torch.Tensor,
        mixing: Optional[torch.Tensor],
        edge_index: torch.Tensor,
        rows: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        if torch.jit.is_scripting():
            if self.in_programs:
                return torch.ops.gaunt.channelwise_convolution(
                    node_feats,
                    harmonics,
                    weights,
                    mixing,
                    edge_index,
                    rows,
                    self.constants,
                    self.dim_out,
                )
            return self.plain(node_feats, harmonics, weights, mixing, edge_index, rows)
        return self._python(node_feats, harmonics, weights, mixing, edge_index, rows)

    def messages(
        self, sender_feats: torch.Tensor, harmonics: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Messages ``[edges, dim_out]`` of the senders' features, block of these by block."""
        edges = sender_feats.shape[0]
        matrices = (harmonics @ self.couplings).split(self.sizes, dim=1)
        features = sender_feats.split(self.widths, dim=1)
        of_paths = weights.split(self.path_channels, dim=1)
        parts: List[torch.Tensor] = []
        for i, block in enumerate(self.read):
            dim, channels = self.dims[block], self.channels[block]
            matrix = matrices[i].reshape(edges, self.rows_of[i], dim)
            block_feats = features[block].reshape(edges, dim, channels)
            coupled = (matrix @ block_feats).split(self.path_dims[i], dim=1)  # ejm,emu->eju
            for k, p in enumerate(self.paths_of[i]):
                parts.append((coupled[k] * of_paths[p].unsqueeze(1)).flatten(1))
        return torch.cat(parts, dim=1)

    def arranged(self, out: torch.Tensor) -> torch.Tensor:
        return out.index_select(1, self.order)


PathConvolution.operator = Operator(
    "channelwise_convolution",
    ["node_feats", "harmonics", "weights", "mixing?"],
    2,
    lambda node_feats, width: [node_feats.shape[0], width],
    plain_of(PathConvolution),
    indices=["edge_index", "rows?"],
)
