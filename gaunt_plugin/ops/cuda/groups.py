"""Edges sorted by a node of each, once per graph."""

from __future__ import annotations

from typing import NamedTuple

import torch

from gaunt_plugin.ops.per_tensor import PerTensor


class Groups(NamedTuple):
    """Edges of part k and node i are ``order[start[k nodes + i] : start[k nodes + i + 1]]``."""

    start: torch.Tensor
    order: torch.Tensor


def _sorted(edge_index: torch.Tensor, row: int, nodes: int, rows: int) -> Groups:
    index = edge_index[row]
    edges = index.shape[0]
    numbers = torch.arange(edges, device=index.device)
    parts = max(1, -(-edges // max(1, rows)))
    key = index if parts == 1 else index + nodes * (numbers // rows)
    key, order = torch.sort(key, stable=True)
    bounds = torch.arange(parts * nodes + 1, device=index.device)
    return Groups(torch.searchsorted(key, bounds), order)


def _check(edge_index: torch.Tensor, nodes: int) -> None:
    """Indices out of range end the program on the device, as those of torch's own kernels do."""
    good = (edge_index >= 0).logical_and_(edge_index < nodes).all()
    torch._assert_async(good, f"edge_index has an index out of range for {nodes} nodes")


def _check_rows(rows: torch.Tensor, width: int, height: int) -> None:
    good = (rows >= 0).logical_and_(rows <= height - width).all()
    torch._assert_async(good, f"rows has an index out of range for {width} of {height} rows")


_rows_checked = PerTensor(_check_rows)
_groups, _checked = PerTensor(_sorted), PerTensor(_check)


def groups(edge_index: torch.Tensor, row: int, nodes: int, rows: int) -> Groups:
    """Edges by their sender (row 0) or receiver (row 1), stable, in parts of so many edges.

    Layers and passes of a graph share them: they are kept as long as ``edge_index`` lives and isn't
    changed in place. While a CUDA graph is captured they are made again each time: a replay would
    not sort what lies in ``edge_index`` by then.
    """
    arguments = (edge_index, row, nodes, rows)
    if edge_index.is_cuda and torch.cuda.is_current_stream_capturing():
        return _sorted(*arguments)
    _checked(edge_index, nodes)
    return _groups(*arguments)


def check_rows(rows: torch.Tensor, width: int, height: int) -> None:
    """Whether an edge's rows of a table are there; not while a CUDA graph is captured."""
    if not (rows.is_cuda and torch.cuda.is_current_stream_capturing()):
        _rows_checked(rows, width, height)
