"""Polynomials of degree 3 in the features of a node: ``gaunt::polynomials``."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from gaunt_plugin.ops._operator import Operator, has_kernel
from gaunt_plugin.ops.operation import Operation, plain_of
from gaunt_plugin.ops.recording import recording
from gaunt_plugin.ops.tables import pack

# Numbers per node, channel and coefficient that the plain form has at a time: they fit the cache.
BLOCK = 1 << 20


class Polynomials(Operation):
    r"""Weighted sums of polynomials of the features, channel by channel.

    Per node n and channel c, with the element's share ``a`` of the node and ``x_V = 1``,

    .. math:: B_{no} = \sum_z a_{nz} \sum_t w_{zt} \sum_{ijk} Q_{toijk}\, x_{ni} x_{nj} x_{nk}

    Args:
        variables: V, components of the features.
        outputs: components of the result.
        terms: weights per element and channel.
        rows: ``(o, i, j, k, t)`` of each Q that isn't zero, ``i, j, k`` at most V.
        values: of these Q.

    Shapes:
        ``node_feats [nodes, channels, variables]``, ``weights [elements, channels, terms]``,
        ``node_attrs [nodes, elements]`` -> ``[nodes, channels, outputs]``. The operator has no
        gradient with respect to ``node_attrs``.
    """

    def __init__(
        self,
        variables: int,
        outputs: int,
        terms: int,
        rows: Sequence[Sequence[int]],
        values: Sequence[float],
    ) -> None:
        super().__init__()
        self.outputs = outputs
        rows, values = _in_groups(rows, values)
        numbers = [variables, outputs, terms, len(rows), *rows.ravel().tolist()]
        self.register_table("constants", pack(numbers, values.tolist()))

        entries, entry = np.unique(rows[:, :4], axis=0, return_inverse=True)
        pairs, pair = np.unique(entries[:, 1:3], axis=0, return_inverse=True)
        of_terms = np.zeros((len(entries), terms))
        np.add.at(of_terms, (entry.ravel(), rows[:, 4]), values)
        to_output = np.zeros((outputs, len(entries)))
        to_output[entries[:, 0], np.arange(len(entries))] = 1.0
        self.register_table("of_terms", of_terms)
        self.register_table("pairs", pairs.T)
        self.register_table("pair", pair.ravel())
        self.register_table("k", entries[:, 3])
        self.register_table("to_output", to_output)

    @classmethod
    def arguments(cls, numbers: list[int], values: list[float]) -> tuple:
        variables, outputs, terms, count, *rest = numbers
        rows = tuple(tuple(rest[5 * k : 5 * k + 5]) for k in range(count))
        return variables, outputs, terms, rows, tuple(values)

    def forward(
        self, node_feats: torch.Tensor, weights: torch.Tensor, node_attrs: torch.Tensor
    ) -> torch.Tensor:
        if torch.jit.is_scripting():
            if self.in_programs and not node_attrs.requires_grad:
                return torch.ops.gaunt.polynomials(
                    node_feats, weights, node_attrs, self.constants, self.outputs
                )
            return self.plain(node_feats, weights, node_attrs)
        return self._python(node_feats, weights, node_attrs)

    @torch.jit.unused
    def _python(
        self, node_feats: torch.Tensor, weights: torch.Tensor, node_attrs: torch.Tensor
    ) -> torch.Tensor:
        arguments = node_feats, weights, node_attrs, self.constants, self.outputs
        if recording():
            if self.in_programs and not node_attrs.requires_grad:
                return self.operator(*arguments)
        elif has_kernel(*arguments[:3]) and not node_attrs.requires_grad:
            return self.operator.eagerly(*arguments)
        elif node_feats.is_cpu:
            rows = max(1, BLOCK // max(1, node_feats.shape[1] * len(self.k)))
            blocks = zip(node_feats.split(rows), node_attrs.split(rows))
            return torch.cat([self.plain(x, weights, attrs) for x, attrs in blocks])
        return self.plain(node_feats, weights, node_attrs)

    def plain(
        self, node_feats: torch.Tensor, weights: torch.Tensor, node_attrs: torch.Tensor
    ) -> torch.Tensor:
        nodes, channels = node_feats.shape[0], node_feats.shape[1]
        elements, terms, count = weights.shape[0], weights.shape[2], self.k.shape[0]
        # Rows of nodes and channels behind each other are gathered faster than single numbers.
        x = node_feats.permute(2, 0, 1)
        x = torch.cat([x, torch.ones_like(x[:1])])
        if elements <= terms:
            C = self.of_terms @ weights.flatten(0, 1).t()  # et,zct->ezc
            C = node_attrs @ C.view(count, elements, channels)  # nz,ezc->enc
        else:
            w = (node_attrs @ weights.flatten(1)).view(nodes * channels, terms)  # nz,zct->nct
            C = (self.of_terms @ w.t()).view(count, nodes, channels)  # et,nct->enc
        product = x.index_select(0, self.pairs[0]) * x.index_select(0, self.pairs[1])
        entries = C * x.index_select(0, self.k) * product.index_select(0, self.pair)
        out = self.to_output @ entries.flatten(1)  # oe,enc->onc
        return out.view(self.outputs, nodes, channels).permute(1, 2, 0)


def _in_groups(rows, values) -> tuple[np.ndarray, np.ndarray]:
    """The same, ``i j k`` of each monomial in an order of few groups ``(i, j, o)``.

    Kernels make each ``x_i x_j`` once, and once per group its product with a sum over k. Groups
    with the most monomials left are taken first.
    """
    rows = np.array(rows, dtype=np.int64).reshape(-1, 5).tolist()
    rows = [(o, *sorted(factors), t) for o, *factors, t in rows]
    members = defaultdict(dict)
    for o, a, b, c in sorted({row[:4] for row in rows}):
        for i, j, k in ((a, b, c), (a, c, b), (b, c, a)):
            members[i, j, o][o, a, b, c] = k
    place: dict[tuple, tuple] = {}
    largest = [(-len(found), group) for group, found in members.items()]
    heapq.heapify(largest)
    while largest:
        size, group = heapq.heappop(largest)
        left = {m: (*group, k) for m, k in members[group].items() if m not in place}
        if len(left) == -size:
            place.update(left)
        elif left:
            heapq.heappush(largest, (-len(left), group))
    ordered = sorted(((*place[row[:4]], row[4]), value) for row, value in zip(rows, values))
    sorted_rows = [(o, i, j, k, t) for (i, j, o, k, t), _ in ordered]
    return np.array(sorted_rows, dtype=np.int64).reshape(-1, 5), np.array([v for _, v in ordered])


Polynomials.operator = Operator(
    "polynomials",
    ["node_feats", "weights"],
    3,
    lambda node_feats, width: [*node_feats.shape[:2], width],
    plain_of(Polynomials),
    indices=["node_attrs"],
)
