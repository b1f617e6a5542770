"""What convolutions check."""

from __future__ import annotations

from typing import Optional

import torch

from gaunt_plugin.layers.irreps import Irreps, degrees_of


def edge_degrees(irreps_edge: Irreps | str) -> tuple[int, ...]:
    """Degrees of the harmonics of the edges, natural parity, one channel; else ValueError."""
    channels, degrees = degrees_of(irreps_edge, "irreps_edge")
    if channels != 1:
        raise ValueError(f"irreps_edge must have multiplicity 1, got {Irreps(irreps_edge)}")
    return degrees


def check_edges(
    x: torch.Tensor,
    edge_attrs: torch.Tensor,
    weights: torch.Tensor,
    edge_index: torch.Tensor,
    dim_in: int,
    dim_edge: int,
    numel: int,
    mixing: Optional[torch.Tensor] = None,
    rows: Optional[torch.Tensor] = None,
) -> None:
    """Raise ValueError unless shapes and dtypes of a convolution's arguments fit."""
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"edge_index must be [2, edges], got {list(edge_index.shape)}")
    edges = edge_index.shape[1]
    if x.dim() != 2 or x.shape[1] != dim_in:
        raise ValueError(f"node features must be [nodes, {dim_in}], got {list(x.shape)}")
    if edge_attrs.dim() != 2 or list(edge_attrs.shape) != [edges, dim_edge]:
        raise ValueError(f"edge_attrs must be [{edges}, {dim_edge}], got {list(edge_attrs.shape)}")
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
                f"weights and mixing must be of one dtype, got {weights.dtype} and {mixing.dtype}"
            )
        numel = width
    if weights.dim() != 2 or list(weights.shape) != [edges, numel]:
        raise ValueError(f"weights must be [{edges}, {numel}], got {list(weights.shape)}")
    if x.dtype != edge_attrs.dtype or x.dtype != weights.dtype:
        raise ValueError(
            "node features, edge_attrs and weights must be of one dtype, got "
            f"{x.dtype}, {edge_attrs.dtype} and {weights.dtype}"
        )
