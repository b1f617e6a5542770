"""What convolutions have in common."""

from __future__ import annotations

from typing import Optional

import torch

from gaunt_plugin.layers.irreps import Irreps, degrees_of
from gaunt_plugin.layers.layer import Layer


def edge_degrees(irreps_edge: Irreps | str) -> tuple[int, ...]:
    """Degrees of the harmonics of the edges, natural parity, one channel; else ValueError."""
    channels, degrees = degrees_of(irreps_edge, "irreps_edge")
    if channels != 1:
        raise ValueError(f"irreps_edge must have multiplicity 1, got {Irreps(irreps_edge)}")
    return degrees


class Convolution(Layer):
    """Base of the convolutions.

    They have ``channels``, ``dims_in``, ``dim_edge`` and ``weight_numel``.
    """

    def check_edges(
        self,
        node_feats: torch.Tensor,
        edge_attrs: torch.Tensor,
        weights: torch.Tensor,
        edge_index: torch.Tensor,
        mixing: Optional[torch.Tensor],
        rows: Optional[torch.Tensor] = None,
    ) -> None:
        """Raise ValueError unless shapes and dtypes of the arguments fit."""
        dim_in, numel = self.channels * sum(self.dims_in), self.weight_numel
        if edge_index.dim() != 2 or edge_index.shape[0] != 2:
            raise ValueError(f"edge_index must be [2, edges], got {list(edge_index.shape)}")
        edges = edge_index.shape[1]
        if node_feats.dim() != 2 or node_feats.shape[1] != dim_in:
            raise ValueError(
                f"node features must be [nodes, {dim_in}], got {list(node_feats.shape)}"
            )
        if edge_attrs.dim() != 2 or list(edge_attrs.shape) != [edges, self.dim_edge]:
            raise ValueError(
                f"edge_attrs must be [{edges}, {self.dim_edge}], got {list(edge_attrs.shape)}"
            )
        if rows is not None:
            if mixing is None:
                raise ValueError("rows are those of mixing, which is None")
            if list(rows.shape) != [edges] or rows.dtype != torch.int64:
                raise ValueError(
                    f"rows must be [{edges}] of int64, got {list(rows.shape)} {rows.dtype}"
                )
        if mixing is not None:
            width = weights.shape[-1]
            size = width if rows is None else max(width, mixing.shape[0])
            if mixing.dim() != 2 or list(mixing.shape) != [size, numel]:
                raise ValueError(f"mixing must be [{size}, {numel}], got {list(mixing.shape)}")
            if mixing.dtype != weights.dtype:
                raise ValueError(
                    "weights and mixing must be of one dtype, got "
                    f"{weights.dtype} and {mixing.dtype}"
                )
            numel = width
        if weights.dim() != 2 or list(weights.shape) != [edges, numel]:
            raise ValueError(f"weights must be [{edges}, {numel}], got {list(weights.shape)}")
        if node_feats.dtype != edge_attrs.dtype or node_feats.dtype != weights.dtype:
            raise ValueError(
                "node features, edge_attrs and weights must be of one dtype, got "
                f"{node_feats.dtype}, {edge_attrs.dtype} and {weights.dtype}"
            )
