"""Symmetric and antisymmetric products of functions of both parities on one exact grid."""

from __future__ import annotations

import math
from typing import List, Tuple

import numpy as np
import torch

from gaunt_plugin.layers.irreps import Irrep, Path, is_pseudo, ordered
from gaunt_plugin.ops import checkpointing
from gaunt_plugin.ops.tables import TableModule
from gaunt_plugin.sphere import (
    Quadrature,
    coupling_norm,
    degree_of_component,
    quadrature,
    real_harmonics,
    surface_gradients,
    tangents,
)

NATURAL, PSEUDO = 0, 1


class SphereProduct(torch.nn.Module):
    r"""Product of two rows of coefficients, row by row, without weights.

    With natural and pseudo functions ``A_n, A_p`` and ``B_n, B_p``, and the bracket
    ``{A, B} = s . (grad A x grad B)`` on the unit sphere,

    .. math:: C_n = A_n B_n + A_p B_p + \{A_n, B_p\} + \{A_p, B_n\}, \qquad
       C_p = A_n B_p + A_p B_n + \{A_n, B_n\} + \{A_p, B_p\}

    where only the products that ``paths`` need are made. Inputs are scaled by ``(2l+1)^(-1/2)``,
    in brackets also by ``(l (l+1))^(-1/2)``; outputs so that independent unit normal inputs give
    unit normal components, of which each kind of product has a part proportional to its number of
    paths.

    Args:
        paths: what to reach; nothing else is formed, except that a product made for one path
            serves all paths of its kinds.
        same: the two arguments are the same coefficients, times independent random weights of
            mean 0 and variance 1 per irrep: sets the scale. Brackets of an irrep with itself
            vanish and are not among the paths.

    Attributes:
        irreps1, irreps2, irreps3: irreps of the rows, natural ones first, in increasing degree.

    Shapes:
        ``a [rows, dim1]``, ``b [rows, dim2]`` -> ``[rows, dim3]``.

    Source: Luo et al., arXiv 2401.10216; Xie et al., arXiv 2602.21466; Heyraud et al., arXiv
    2603.08630; Bochkarev et al., arXiv 2605.15073.
    """

    def __init__(self, paths: List[Path], same: bool = False) -> None:
        super().__init__()
        triples = [path.irreps for path in paths]
        self.irreps1, self.irreps2, self.irreps3 = (
            ordered(t[i] for t in triples) for i in range(3)
        )
        sides = (self.irreps1, self.irreps2, self.irreps3)
        rule = quadrature(sum(max(ir.l for ir in irreps) for irreps in sides))
        self.nodes = len(rule.nodes)
        # Per product: its target (2 * antisymmetric + kind) and the kinds of its factors.
        self.products: List[Tuple[int, int, int]] = sorted(
            {
                (2 * path.antisymmetric + is_pseudo(c), int(is_pseudo(a)), int(is_pseudo(b)))
                for path, (a, b, c) in zip(paths, triples)
            }
        )
        self.natural1 = _dim(self.irreps1, NATURAL)
        self.natural2 = _dim(self.irreps2, NATURAL)
        self.values1n, self.gradients1n = self._side(1, NATURAL, rule)
        self.values1p, self.gradients1p = self._side(1, PSEUDO, rule)
        self.values2n, self.gradients2n = self._side(2, NATURAL, rule)
        self.values2p, self.gradients2p = self._side(2, PSEUDO, rule)
        self.project0 = self._target(paths, 0, same, rule)
        self.project1 = self._target(paths, 1, same, rule)
        self.project2 = self._target(paths, 2, same, rule)
        self.project3 = self._target(paths, 3, same, rule)

    def _side(
        self, side: int, kind: int, rule: Quadrature
    ) -> Tuple[torch.nn.Module, torch.nn.Module]:
        """Maps from coefficients of one kind to values, and to gradients, where needed."""
        irreps = self.irreps1 if side == 1 else self.irreps2
        used = {product[0] > 1 for product in self.products if product[side] == kind}
        ls = [ir.l for ir in irreps if is_pseudo(ir) == kind]
        nodes = rule.nodes
        values, gradients = Nothing(), Nothing()
        if False in used:
            values = Dense((real_harmonics(ls, nodes) * input_scales(ls, False)).T)
        if True in used:
            # along the first tangent of all nodes, then along the second: gtx,gxi->tgi
            along = np.einsum("gtx,gxi->tgi", tangents(nodes), surface_gradients(ls, nodes))
            scale = input_scales(ls, True)
            gradients = Dense((along * scale).reshape(-1, len(scale)).T)
        return values, gradients

    def _target(
        self, paths: List[Path], target: int, same: bool, rule: Quadrature
    ) -> torch.nn.Module:
        """Map from a field to coefficients, with their scales."""
        wanted = [ir for ir in self.irreps3 if is_pseudo(ir) == target % 2]
        factors = [output_scale(paths, ir, target > 1, same) for ir in wanted]
        if not any(factors):
            return Nothing()
        ls = [ir.l for ir in wanted]
        factors = np.asarray(factors)[degree_of_component(ls)]
        weights = rule.weights[:, None]
        return Dense(real_harmonics(ls, rule.nodes) * weights * factors)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return self.plain(a, b)
        return self._python(a, b)

    @torch.jit.unused
    def _python(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if checkpointing.pays(a.shape[0] * self.nodes):
            return checkpointing.Checkpoint(self.plain, self.nodes)(a, b)
        return self.plain(a, b)

    def plain(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        an, ap = a[:, : self.natural1], a[:, self.natural1 :]
        bn, bp = b[:, : self.natural2], b[:, self.natural2 :]
        fields = (self.values1n(an), self.values1p(ap), self.values2n(bn), self.values2p(bp))
        gradients = (
            self.gradients1n(an),
            self.gradients1p(ap),
            self.gradients2n(bn),
            self.gradients2p(bp),
        )
        totals: List[List[torch.Tensor]] = [[], [], [], []]
        for target, ka, kb in self.products:
            if target < 2:
                term = fields[ka] * fields[2 + kb]
            else:
                # the two tangential components at a node stand in the two halves
                a1, a2 = gradients[ka].chunk(2, dim=1)
                b1, b2 = gradients[2 + kb].chunk(2, dim=1)
                term = a1 * b2 - a2 * b1
            total = totals[target]
            totals[target] = [total[0] + term] if len(total) > 0 else [term]
        parts: List[torch.Tensor] = []
        even = [self.project0(t) for t in totals[0]], [self.project1(t) for t in totals[1]]
        odd = [self.project2(t) for t in totals[2]], [self.project3(t) for t in totals[3]]
        for kind in range(2):
            both = even[kind] + odd[kind]
            if len(both) > 0:
                parts.append(both[0] + both[1] if len(both) > 1 else both[0])
        return torch.cat(parts, dim=1)


class Dense(TableModule):
    """Product with a constant matrix."""

    def __init__(self, table: np.ndarray) -> None:
        super().__init__()
        self.register_table("table", table)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.table


class Nothing(torch.nn.Module):
    """Stands where no path needs a map."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :0]


def _dim(irreps: List[Irrep], kind: int) -> int:
    return sum(ir.dim for ir in irreps if is_pseudo(ir) == kind)


def _scale(l: int, gradient: bool) -> float:
    """Scale of an input of degree l; constants have no gradient."""
    return 1 / math.sqrt((2 * l + 1) * (max(l * (l + 1), 1) if gradient else 1))


def input_scales(ls: List[int], gradient: bool) -> np.ndarray:
    """Scale of every component of inputs of these degrees."""
    return np.array([_scale(l, gradient) for l in ls])[degree_of_component(ls)]


def output_scale(paths: List[Path], ir: Irrep, antisymmetric: bool, same: bool) -> float:
    """Scale of the antisymmetric or symmetric part of an output."""
    every = [path for path in paths if path.irreps[2] == ir]
    own = [path for path in every if path.antisymmetric == antisymmetric]
    if not own:
        return 0.0
    mean_square = sum(_mean_square(path, same) for path in own) / ir.dim
    return math.sqrt(len(own) / len(every) / mean_square)


def _mean_square(path: Path, same: bool) -> float:
    """Expected squared norm of a path's output, for scaled unit normal inputs."""
    l1, l2, l3 = path.l1, path.l2, path.l3
    scale = _scale(l1, path.antisymmetric) * _scale(l2, path.antisymmetric)
    square = (scale * coupling_norm(l1, l2, l3)) ** 2
    if same and (l1, path.p1) == (l2, path.p2):
        # E[x_i x_j x_k x_l] has three pairings: exchange, and the trace for scalars.
        square *= 2 + (2 * l1 + 1) * (l3 == 0)
    return square
