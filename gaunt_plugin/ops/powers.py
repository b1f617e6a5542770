"""Powers of functions on the sphere: ``gaunt::powers``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import List, Optional

import numpy as np
import torch

from gaunt_plugin.ops import checkpointing
from gaunt_plugin.ops._operator import Operator, has_kernel
from gaunt_plugin.ops.operation import Operation, plain_of
from gaunt_plugin.ops.recording import recording
from gaunt_plugin.ops.tables import TableModule, pack, repeat_matrix
from gaunt_plugin.sphere import quadrature, real_harmonics


class ProjectedPowers(TableModule):
    r"""Powers 2, 3, ... of functions on the sphere, projected: ``<(c . Y)^n Y_LM>``.

    The values on the grid are made again in every pass, in blocks that fit the cache: autograd
    would keep each power at each node. The grid is exact.

    Args:
        degrees_in: of the functions.
        degrees_out: of the result.
        scale_in: factor per component of ``c``.
        factors: ``[orders, components]``, of the results of order 2, 3, ...

    Shapes:
        ``[rows, components]`` -> ``[rows, orders, components]``.
    """

    def __init__(
        self,
        degrees_in: Sequence[int],
        degrees_out: Sequence[int],
        scale_in: np.ndarray,
        factors: np.ndarray,
    ) -> None:
        super().__init__()
        rule = quadrature((len(factors) + 1) * max(degrees_in) + max(degrees_out))
        self.register_table("to_grid", (real_harmonics(degrees_in, rule.nodes) * scale_in).T)
        project = real_harmonics(degrees_out, rule.nodes) * rule.weights[:, None]
        self.register_table("from_grid", project * factors[:, None])

    def forward(self, c: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return self.plain(c)
        return self._python(c)

    @torch.jit.unused
    def _python(self, c: torch.Tensor) -> torch.Tensor:
        if recording() or not checkpointing.works():
            return self.plain(c)
        return _CheckpointedPowers(self)(c)

    def plain(self, c: torch.Tensor) -> torch.Tensor:
        field = c @ self.to_grid  # ri,ig->rg
        power = field
        out: List[torch.Tensor] = []
        for n in range(self.from_grid.shape[0]):
            power = power * field
            out.append(power @ self.from_grid[n])  # rg,gj->rj
        return torch.stack(out, dim=1)


class _CheckpointedPowers(checkpointing.Checkpoint):
    """With derivatives that don't make the powers' projections again, as autograd would."""

    def __init__(self, powers: ProjectedPowers) -> None:
        super().__init__(powers.plain, powers.to_grid.shape[1])
        self.to_grid, self.from_grid = powers.to_grid, powers.from_grid

    def gradient(self, needs, grad, c):
        """``sum_n n (grad_n W_n^T) F^(n-1) Y^T``."""
        field = c @ self.to_grid
        power = field
        total = 2 * (grad[:, 0] @ self.from_grid[0].t()) * field
        for n in range(1, self.from_grid.shape[0]):
            power = power * field
            total = total + (n + 2) * (grad[:, n] @ self.from_grid[n].t()) * power
        return [total @ self.to_grid.t()]

    def second(self, needs, directions, grad, c):
        field = c @ self.to_grid
        direction = directions[0] @ self.to_grid
        below = direction  # F^n times the direction
        total = torch.zeros_like(field)
        orders = []
        for n in range(self.from_grid.shape[0]):
            spread = grad[:, n] @ self.from_grid[n].t()
            total = total + (n + 2) * (n + 1) * spread * below
            below = below * field
            orders.append((n + 2) * below @ self.from_grid[n])
        return [torch.stack(orders, dim=1), total @ self.to_grid.t()]


class Powers(Operation):
    r"""Weighted powers of weighted functions on the sphere, projected.

    Per node and channel, with ``F_v = sum_l u_vl s_l A_l``, or ``F_v = sum_l s_l A_l``,

    .. math:: B_{LM} = \sum_{n=2}^{N} t_{nL} \sum_v w_{vnL}\, \langle F_v(s)^n\, Y_{LM}(s) \rangle

    Args:
        degrees_in: of the features, natural parity, in their order.
        degrees_out: of the result.
        weighted: whether there are weights u.
        scale_in: ``s`` per degree of the features.
        factors: ``t [orders, degrees_out]``, orders 2, 3, ...; 0 where there is no weight w.

    Attributes:
        terms: weights w per v and channel, ordered ``[n, L]`` without those of factor 0.

    Shapes:
        ``node_feats [nodes, channels, components]``, ``weights_out [nodes, rank, terms, channels]``
        (w), ``weights_in [nodes, rank, degrees, channels]`` (u, only if ``weighted``) ->
        ``[nodes, channels, components]``.
    """

    def __init__(
        self,
        degrees_in: Sequence[int],
        degrees_out: Sequence[int],
        weighted: bool,
        scale_in: Sequence[float],
        factors: Sequence[Sequence[float]],
    ) -> None:
        super().__init__()
        factors = np.asarray(factors, dtype=np.float64)
        self.dim_out = sum(2 * L + 1 for L in degrees_out)
        scale = repeat_matrix(degrees_in, list(scale_in))
        # Plain form: the scale is in the weights u, if there are some, or in the grid.
        ones = np.ones(scale.shape[1])
        self.grid = ProjectedPowers(
            degrees_in,
            degrees_out,
            ones if weighted else scale.sum(0),
            np.repeat(factors, [2 * L + 1 for L in degrees_out], axis=1),
        )
        self.register_table("repeat_in", scale if weighted else np.zeros((0, 0)))
        # [terms, orders * components]: one weight per order and reached degree.
        repeat = [repeat_matrix(degrees_out)[row > 0] for row in factors]
        self.register_table("repeat_out", torch.block_diag(*map(torch.from_numpy, repeat)).numpy())
        self.terms = len(self.repeat_out)

        correlation = len(factors) + 1
        rule = quadrature(correlation * max(degrees_in) + max(degrees_out))
        # Node G/2 + i is the antipode of node i: kernels take one of each pair.
        half = slice(len(rule.nodes) // 2)
        numbers = [len(degrees_in), *degrees_in, len(degrees_out), *degrees_out]
        numbers += [correlation, int(weighted), half.stop]
        to_grid = real_harmonics(degrees_in, rule.nodes[half])
        from_grid = real_harmonics(degrees_out, rule.nodes[half]) * 2 * rule.weights[half, None]
        values = [*scale_in, *factors.ravel(), *to_grid.ravel(), *from_grid.ravel()]
        self.register_table("constants", pack(numbers, values))

    @classmethod
    def arguments(cls, numbers: list[int], values: list[float]) -> tuple:
        count_in = numbers[0]
        degrees_in, rest = numbers[1 : 1 + count_in], numbers[1 + count_in :]
        count_out = rest[0]
        degrees_out, (correlation, weighted, _) = rest[1 : 1 + count_out], rest[1 + count_out :]
        scale, values = values[:count_in], values[count_in:]
        factors = tuple(
            tuple(values[n * count_out : (n + 1) * count_out]) for n in range(correlation - 1)
        )
        return tuple(degrees_in), tuple(degrees_out), bool(weighted), tuple(scale), factors

    def forward(
        self,
        node_feats: torch.Tensor,
        weights_out: torch.Tensor,
        weights_in: Optional[torch.Tensor],
    ) -> torch.Tensor:
        if torch.jit.is_scripting():
            if self.in_programs:
                return torch.ops.gaunt.powers(
                    node_feats, weights_out, weights_in, self.constants, self.dim_out
                )
            return self.plain(node_feats, weights_out, weights_in)
        return self._python(node_feats, weights_out, weights_in)

    @torch.jit.unused
    def _python(
        self,
        node_feats: torch.Tensor,
        weights_out: torch.Tensor,
        weights_in: Optional[torch.Tensor],
    ) -> torch.Tensor:
        arguments = node_feats, weights_out, weights_in, self.constants, self.dim_out
        if recording():
            if self.in_programs:
                return self.operator(*arguments)
        elif has_kernel(node_feats, weights_out, weights_in):
            return self.operator.eagerly(*arguments)
        return self.plain(node_feats, weights_out, weights_in)

    def plain(
        self,
        node_feats: torch.Tensor,
        weights_out: torch.Tensor,
        weights_in: Optional[torch.Tensor],
    ) -> torch.Tensor:
        nodes, channels, rank = node_feats.shape[0], node_feats.shape[1], weights_out.shape[1]
        functions = node_feats.unsqueeze(1)
        if weights_in is not None:
            functions = functions * (weights_in.transpose(2, 3) @ self.repeat_in)  # zvcl,li->zvci
        functions = functions.expand(nodes, rank, channels, functions.shape[3])
        powers = self.grid(functions.reshape(nodes * rank * channels, functions.shape[3]))
        powers = powers.view(nodes, rank, channels, powers.shape[1], powers.shape[2])
        spread = (weights_out.transpose(2, 3) @ self.repeat_out).view_as(powers)
        return (powers * spread).sum([1, 3])  # zvcnj,zvcnj->zcj


Powers.operator = Operator(
    "powers",
    ["node_feats", "weights_out", "weights_in?"],
    3,
    lambda node_feats, width: [*node_feats.shape[:2], width],
    plain_of(Powers),
)
