"""Convolution in the frames of the edges: ``gaunt::convolution``."""

from __future__ import annotations

from typing import List, Optional, Tuple

import numpy as np
import torch

from gaunt_plugin.ops._operator import Operator
from gaunt_plugin.ops.edge_frames import frame_layout
from gaunt_plugin.ops.edge_sum import EdgeSum
from gaunt_plugin.ops.operation import plain_of
from gaunt_plugin.ops.tables import pack


class EdgeConvolution(EdgeSum):
    r"""Messages of all edges, made in the frame of each, summed at the receivers.

    .. math:: M_{i,l_3} = \sum_j D^{l_3} \, \Big[ n_{l_3} \Big( \sum_{l_1}
       w_{ij,l_1 l_3 |m|}\, B_{l_1 m} + \sum_{l_1'} w_{ij,l_1' l_3 |m|}\, (J B_{l_1'})_m
       \Big) \Big]_m, \qquad B = D^T A_j

    as in :class:`gaunt_plugin.layers.AlignedConvolution`, whose formula and weights these are.
    Features of degree 0 alone have no frame: there the messages are sums of harmonics.

    Args:
        irreps_in: of the features, each as its degree and whether its parity is pseudo.
        irreps_out: of the result.
        degrees: of the harmonics of the edges; used where all features are scalars.

    Attributes:
        paths: number of weights per edge and channel, ordered
            ``[|m|, kind of l3, l1, l3]``; for each kind those of the same kind come first.
        norm: ``n`` per irrep of the result; 0 if no feature reaches it.

    Shapes:
        As :class:`~gaunt_plugin.ops.edge_sum.EdgeSum`, of ``node_feats [nodes, components,
        channels]``, ``frames [edges, entries]`` (of :class:`~gaunt_plugin.ops.EdgeFrames`;
        harmonics where all features are scalars) and ``paths * channels`` weights
        -> ``[nodes, components, channels]``.
    """

    def __init__(
        self,
        irreps_in: Tuple[Tuple[int, bool], ...],
        irreps_out: Tuple[Tuple[int, bool], ...],
        degrees: Tuple[int, ...],
    ) -> None:
        super().__init__()
        inputs, outputs = list(irreps_in), list(irreps_out)
        self.scalar = all(l == 0 for l, _ in inputs)
        self.mmax = min(max(l for l, _ in inputs), max(L for L, _ in outputs))
        self.lmax = max(l for l, _ in inputs + outputs)
        self.dim_in, self.dim_out = (sum(2 * l + 1 for l, _ in f) for f in (inputs, outputs))
        self.norm = _norms(inputs, outputs)
        # Per |m|: features and outputs of both kinds, natural and pseudo, that have this order.
        self.senders: List[List[int]] = _counts(inputs, self.mmax)
        self.receivers: List[List[int]] = _counts(outputs, self.mmax)
        self.frame_in, self.frame_out = (
            sum(counts[0]) + 2 * sum(map(sum, counts[1:]))
            for counts in (self.senders, self.receivers)
        )
        self.paths = sum(
            len(sources_of(inputs, pseudo, m))
            for L, pseudo in outputs
            for m in range(min(L, self.mmax) + 1)
        )
        if self.scalar:
            self._scalar_tables(inputs, outputs, list(degrees))
        else:
            self.register_table("sender", np.zeros(0, dtype=np.int64))
            self.register_table("to_frame", self._frame(inputs, [1.0] * len(inputs)))
            self.register_table("from_frame", self._frame(outputs, self.norm))
        numbers = []
        for functions in (inputs, outputs):
            numbers += [len(functions), *(int(n) for f in functions for n in f)]
        self.register_table("constants", pack([*numbers, len(degrees), *degrees], []))

    @classmethod
    def arguments(cls, numbers: list[int], values: list[float]) -> tuple:
        rest, irreps = numbers, []
        for _ in range(2):
            count, *rest = rest
            pairs, rest = rest[: 2 * count], rest[2 * count :]
            irreps.append(tuple((l, bool(p)) for l, p in zip(pairs[::2], pairs[1::2])))
        return *irreps, tuple(rest[1:])

    def _scalar_tables(self, inputs, outputs, degrees: List[int]) -> None:
        # message[LM, path] = Y_LM / sqrt(2L+1) * n_L on the path's L, natural ones first
        starts = np.cumsum([0] + [2 * l + 1 for l in degrees]).tolist()
        begin = np.cumsum([0] + [2 * L + 1 for L, _ in outputs]).tolist()
        table = np.zeros((starts[-1], self.dim_out, len(outputs)))
        order = sorted(range(len(outputs)), key=lambda k: outputs[k][1])
        for path, k in enumerate(order):
            L = outputs[k][0]
            for i in range(2 * L + 1):
                row = starts[degrees.index(L)] + i
                table[row, begin[k] + i, path] = self.norm[k] / np.sqrt(2 * L + 1)
        kinds = [pseudo for _, pseudo in inputs]
        senders = [kinds.index(outputs[k][1]) if outputs[k][1] in kinds else 0 for k in order]
        self.register_table("sender", np.array(senders))
        self.register_table("to_frame", np.zeros((0, 0)))
        self.register_table("from_frame", table.reshape(starts[-1], -1))

    def _frame(self, functions: List[Tuple[int, bool]], factors: List[float]) -> np.ndarray:
        """Table from all entries of D^0, D^1, ... to a matrix ``[components, frame rows]``.

        Rows of the frame are ordered by ``|m|``, kind, irrep, then +m and -m.
        """
        widths, entry = frame_layout(self.lmax, self.mmax)
        begin = np.cumsum([0] + [2 * l + 1 for l, _ in functions])
        rows = []  # per row: irrep and its column of D
        for m in range(self.mmax + 1):
            for kind in (False, True):
                for k, (l, pseudo) in enumerate(functions):
                    if l >= m and pseudo == kind:
                        rows += [(k, c) for c in ((2 * m - 1, 2 * m) if m else (0,))]
        table = np.zeros((entry[-1], begin[-1], len(rows)))
        for row, (k, column) in enumerate(rows):
            l = functions[k][0]
            for i in range(2 * l + 1):
                table[entry[l] + i * widths[l] + column, begin[k] + i, row] = factors[k]
        return table.reshape(entry[-1], -1)

    def forward(
        self,
        node_feats: torch.Tensor,
        frames: torch.Tensor,
        weights: torch.Tensor,
        mixing: Optional[torch.Tensor],
        edge_index: torch.Tensor,
        rows: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        if torch.jit.is_scripting():
            if self.in_programs:
                return torch.ops.gaunt.convolution(
                    node_feats,
                    frames,
                    weights,
                    mixing,
                    edge_index,
                    rows,
                    self.constants,
                    self.dim_out,
                )
            return self.plain(node_feats, frames, weights, mixing, edge_index, rows)
        return self._python(node_feats, frames, weights, mixing, edge_index, rows)

    def messages(
        self, sender_feats: torch.Tensor, frames: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Messages ``[edges, components, channels]`` of the senders' features."""
        edges, channels = sender_feats.shape[0], sender_feats.shape[2]
        weights = weights.view(edges, self.paths, channels)
        from_frame = (frames @ self.from_frame).view(edges, self.dim_out, self.frame_out)
        if self.scalar:
            if self.dim_in > 1:
                sender_feats = sender_feats.index_select(1, self.sender)
            return from_frame @ (weights * sender_feats)  # ejl,elc->ejc
        to_frame = (frames @ self.to_frame).view(edges, self.dim_in, self.frame_in)
        in_frame = to_frame.transpose(1, 2) @ sender_feats  # eir,eic->erc
        # Split and unbind: the backward pass of each slice would fill a tensor for all edges.
        features = in_frame.split(self._frame_rows(), dim=1)
        of_paths = weights.split(self._path_counts(), dim=1)
        parts: List[torch.Tensor] = []
        for m in range(self.mmax + 1):
            signs = 1 if m == 0 else 2
            natural, pseudo = features[2 * m], features[2 * m + 1]
            natural = natural.view(edges, self.senders[m][0], signs, channels)
            pseudo = pseudo.view(edges, self.senders[m][1], signs, channels)
            for kind, b in enumerate(self.receivers[m]):
                same, other = (natural, pseudo) if kind == 0 else (pseudo, natural)
                if b > 0:
                    sources = same
                    if m > 0 and other.shape[1] > 0:
                        plus, minus = other.unbind(2)
                        sources = torch.cat([same, torch.stack([minus, -plus], dim=2)], dim=1)
                    count = sources.shape[1]
                    w = of_paths[2 * m + kind].view(edges, count, b, 1, channels).unbind(1)
                    h = sources.unsqueeze(2).unbind(1)
                    if count > 0:
                        local = h[0] * w[0]
                    else:  # an order that no feature reaches
                        local = sender_feats.new_zeros([edges, b, signs, channels])
                    for k in range(1, count):
                        local = torch.addcmul(local, h[k], w[k])
                    parts.append(local.flatten(1, 2))
        return from_frame @ torch.cat(parts, dim=1)  # ejr,erc->ejc

    def _frame_rows(self) -> List[int]:
        """Per ``|m|`` and kind, the rows of the frame that features have."""
        rows: List[int] = []
        for m, both in enumerate(self.senders):
            for count in both:
                rows.append(count if m == 0 else 2 * count)
        return rows

    def _path_counts(self) -> List[int]:
        """Per ``|m|`` and kind of the output, the number of weights."""
        counts: List[int] = []
        for m, both in enumerate(self.receivers):
            for kind, receivers in enumerate(both):
                turned = self.senders[m][1 - kind] if m > 0 else 0
                counts.append(receivers * (self.senders[m][kind] + turned))
        return counts


def sources_of(inputs: List[Tuple[int, bool]], pseudo: bool, m: int) -> List[int]:
    """Degrees of the features that reach order m of an output of this kind."""
    return [l for l, kind in inputs if l >= m and (kind == pseudo or m > 0)]


def _norms(inputs: List[Tuple[int, bool]], outputs: List[Tuple[int, bool]]) -> List[float]:
    norms = []
    for L, pseudo in outputs:
        # Messages of degree L have only the orders that the features have.
        couplings = sum(len(sources_of(inputs, pseudo, abs(m))) for m in range(-L, L + 1))
        norms.append(((2 * L + 1) / couplings) ** 0.5 if couplings else 0.0)
    return norms


def _counts(functions: List[Tuple[int, bool]], mmax: int) -> List[List[int]]:
    """Per ``|m|``, the number of natural and of pseudo functions that have it."""
    return [
        [sum(l >= m and pseudo == kind for l, pseudo in functions) for kind in (False, True)]
        for m in range(mmax + 1)
    ]


EdgeConvolution.operator = Operator(
    "convolution",
    ["node_feats", "frames", "weights", "mixing?"],
    3,
    lambda node_feats, width: [node_feats.shape[0], width, node_feats.shape[2]],
    plain_of(EdgeConvolution),
    indices=["edge_index", "rows?"],
)
