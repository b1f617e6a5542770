"""Polynomials of degree 3 in the features of a node: ``gaunt::polynomials``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from gaunt_plugin.ops._operator import Operator, has_kernel
from gaunt_plugin.ops.operation import Operation, plain_of
from gaunt_plugin.ops.recording import recording
from gaunt_plugin.ops.tables import pack


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
        rows, values = _in_groups(np.array(rows, dtype=np.int64).reshape(-1, 5), np.array(values))
        numbers = [variables, outputs, terms, len(rows), *rows.ravel().tolist()]
        self.register_table("constants", pack(numbers, values.tolist()))

        entries, entry = np.unique(rows[:, :4], axis=0, return_inverse=True)
        of_terms = np.zeros((terms, len(entries)))
        np.add.at(of_terms, (rows[:, 4], entry.ravel()), values)
        to_output = np.zeros((len(entries), outputs))
        to_output[np.arange(len(entries)), entries[:, 0]] = 1.0
        self.register_table("of_terms", of_terms)
        self.register_table("factors", entries[:, 1:].T)
        self.register_table("to_output", to_output)

    @classmethod
    def arguments(cls, numbers: list[int], values: list[float]) -> tuple:
        variables, outputs, terms, count, *rest = numbers
        rows = tuple(tuple(rest[5 * k : 5 * k + 5]) for k in range(count))
        return variables, outputs, terms, rows, tuple(values)

    def calls_operator(self, node_feats: torch.Tensor, node_attrs: torch.Tensor) -> bool:
        """Whether a call with these is one of the operator."""
        if node_attrs.requires_grad:
            return False
        if torch.jit.is_scripting():
            return self.in_programs
        return self._calls_operator(node_feats, node_attrs)

    @torch.jit.unused
    def _calls_operator(self, node_feats: torch.Tensor, node_attrs: torch.Tensor) -> bool:
        if recording():
            return self.in_programs
        return node_feats.is_cpu and has_kernel(node_feats, node_attrs)

    def forward(
        self, node_feats: torch.Tensor, weights: torch.Tensor, node_attrs: torch.Tensor
    ) -> torch.Tensor:
        if not self.calls_operator(node_feats, node_attrs):
            return self.plain(node_feats, weights, node_attrs)
        if torch.jit.is_scripting():
            return torch.ops.gaunt.polynomials(
                node_feats, weights, node_attrs, self.constants, self.outputs
            )
        return self._operator(node_feats, weights, node_attrs)

    @torch.jit.unused
    def _operator(
        self, node_feats: torch.Tensor, weights: torch.Tensor, node_attrs: torch.Tensor
    ) -> torch.Tensor:
        run = self.operator if recording() else self.operator.eagerly
        return run(node_feats, weights, node_attrs, self.constants, self.outputs)

    def plain(
        self, node_feats: torch.Tensor, weights: torch.Tensor, node_attrs: torch.Tensor
    ) -> torch.Tensor:
        coefficients = (weights @ self.of_terms).flatten(1)  # zct,te->zce
        coefficients = (node_attrs @ coefficients).view(*node_feats.shape[:2], -1)
        x = torch.cat([node_feats, torch.ones_like(node_feats[:, :, :1])], dim=2)
        for i in range(3):
            coefficients = coefficients * x.index_select(2, self.factors[i])
        return coefficients @ self.to_output  # nce,eo->nco


def _in_groups(rows: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same, ``i j k`` of each monomial in an order of few groups ``(i, j, o)``.

    Kernels make each ``x_i x_j`` once, and once per group its product with a sum over k. Groups
    with the most entries left are taken first.
    """
    entries = {(int(o), *sorted(map(int, ijk))) for o, *ijk in rows[:, :4]}
    members = defaultdict(set)
    for entry in entries:
        o, *ijk = entry
        for k in range(3):
            members[(*(ijk[:k] + ijk[k + 1 :]), o)].add(entry)
    place: dict[tuple, tuple] = {}
    for size in range(max(map(len, members.values()), default=0), 0, -1):
        for group in sorted(members):
            left = sorted(e for e in members[group] if e not in place)
            if len(left) == size:
                i, j, o = group
                for entry in left:
                    rest = list(entry[1:])
                    rest.remove(i), rest.remove(j)
                    place[entry] = (i, j, o, rest[0])
    keys = [(*place[int(o), *sorted(map(int, ijk))], int(t)) for o, *ijk, t in rows]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    sorted_rows = [(o, i, j, k, t) for i, j, o, k, t in (keys[q] for q in order)]
    return np.array(sorted_rows, dtype=np.int64).reshape(-1, 5), values[order]


Polynomials.operator = Operator(
    "polynomials",
    ["node_feats", "weights"],
    3,
    lambda node_feats, width: [*node_feats.shape[:2], width],
    plain_of(Polynomials),
    indices=["node_attrs"],
)
