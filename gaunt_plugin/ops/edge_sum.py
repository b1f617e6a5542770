"""What the convolutions share: sums of messages at the receivers of edges."""

from __future__ import annotations

from typing import List, Optional

import torch

from gaunt_plugin.ops import checkpointing
from gaunt_plugin.ops._operator import has_kernel
from gaunt_plugin.ops.operation import Operation
from gaunt_plugin.ops.per_tensor import PerTensor
from gaunt_plugin.ops.recording import recording

# Fewer radial weights than these are stored for all edges: making them again takes longer.
STORED = 1 << 20


class EdgeSum(Operation):
    """Base of the operations that sum messages of edges at their receivers.

    They have ``dim_in`` and ``dim_out``, numbers of a node, per channel if nodes have channels, and
    ``messages``. Their ``forward`` calls the operator, or :meth:`plain`, in programs.

    Shapes:
        ``node_feats [nodes, dim_in, ...]``, an array with a row per edge of what the messages
        depend on, ``weights [edges, numel]``, or ``weights [edges, width]`` and
        ``mixing [width, numel]``, whose product they then are, ``edge_index [2, edges]``: senders
        and receivers, ``rows [edges]`` (int64): the weights of an edge are the product with the
        ``width`` rows of a larger ``mixing`` that begin there -> ``[nodes, dim_out, ...]``.
    """

    @torch.jit.unused
    def _python(
        self,
        node_feats: torch.Tensor,
        edge_entries: torch.Tensor,
        weights: torch.Tensor,
        mixing: Optional[torch.Tensor],
        edge_index: torch.Tensor,
        rows: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        edges = edge_index.shape[1]
        behind = rows, self.constants, self.dim_out
        if recording():
            if self.in_programs:
                edge_index = edge_index.to(torch.int64)
                return self.operator(node_feats, edge_entries, weights, mixing, edge_index, *behind)
        elif has_kernel(node_feats, edge_entries, weights, mixing, edge_index, rows):
            if mixing is not None and rows is None and edges * mixing.shape[1] < STORED:
                weights, mixing = weights @ mixing, None
            edge_index = edge_index.to(torch.int64)
            return self.operator.eagerly(
                node_feats, edge_entries, weights, mixing, edge_index, *behind
            )
        channels = node_feats.shape[2:].numel()
        # Autograd would keep about four arrays of a message's size.
        if checkpointing.pays(4 * edges * self.dim_out * channels):
            weights = _product(weights, mixing, rows)
            sum_messages = checkpointing.Checkpoint(
                self.messages, self.dim_in * channels, edges=True
            )
            out = sum_messages(node_feats, edge_entries, weights, *edge_index)
            return self.arranged(out)
        return self.plain(node_feats, edge_entries, weights, mixing, edge_index, rows)

    def plain(
        self,
        node_feats: torch.Tensor,
        edge_entries: torch.Tensor,
        weights: torch.Tensor,
        mixing: Optional[torch.Tensor],
        edge_index: torch.Tensor,
        rows: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        weights = _product(weights, mixing, rows)
        senders = node_feats.index_select(0, edge_index[0])
        messages = self.messages(senders, edge_entries, weights)
        sizes: List[int] = [node_feats.shape[0]]
        out = torch.zeros(
            sizes + list(messages.shape[1:]), dtype=messages.dtype, device=messages.device
        )
        return self.arranged(out.index_add(0, edge_index[1], messages))

    def messages(
        self, sender_feats: torch.Tensor, edge_entries: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Messages of the edges, from the features of their senders."""
        raise NotImplementedError

    def arranged(self, out: torch.Tensor) -> torch.Tensor:
        """The result, from summed messages."""
        return out


def _product(
    weights: torch.Tensor, mixing: Optional[torch.Tensor], rows: Optional[torch.Tensor]
) -> torch.Tensor:
    """The weights of all paths."""
    if mixing is None:
        return weights
    if rows is None:
        return weights @ mixing
    out = weights[:, :1] * mixing.index_select(0, rows)
    for q in range(1, weights.shape[1]):
        out = out + weights[:, q : q + 1] * mixing.index_select(0, rows + q)
    return out


def turned_round(edge_index: torch.Tensor) -> torch.Tensor:
    """The other order of senders and receivers.

    In Python all layers get the same tensor, for which a GPU's kernels sort the edges once.
    """
    if torch.jit.is_scripting():
        return edge_index.flip(0)
    return _turned_round(edge_index)


@torch.jit.unused
def _turned_round(edge_index: torch.Tensor) -> torch.Tensor:
    return edge_index.flip(0) if recording() else _turned(edge_index)


_turned = PerTensor(lambda edge_index: edge_index.flip(0))
