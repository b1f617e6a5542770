"""Powers of functions on the sphere: the parametrisations ``power`` and ``paper``."""

from __future__ import annotations

import math
from typing import List, Tuple

import numpy as np
import torch

from gaunt_plugin.layers.irreps import Function, of_kinds
from gaunt_plugin.layers.many_body.parametrization import Parametrization
from gaunt_plugin.layers.many_body.weights import GAIN_IN, GAIN_OUT, element_weights
from gaunt_plugin.ops import Powers, ProjectedPowers
from gaunt_plugin.ops.tables import TableModule, repeat_matrix
from gaunt_plugin.sphere import (
    coupling_count,
    coupling_rms,
    degree_of_component,
    power_rms,
)


def power_size(
    functions: List[Function], order: int, output: Function, random_weights: bool
) -> float:
    """:func:`gaunt_plugin.sphere.power_rms` of functions in any order."""
    natural, pseudo = of_kinds(functions)
    return power_rms(natural, order, output[0], random_weights, pseudo, output[1])


def coupling_size(functions: List[Function], order: int, output: Function) -> Tuple[int, float]:
    """``coupling_count`` and ``coupling_rms`` of the sphere, for functions in any order."""
    natural, pseudo = of_kinds(functions)
    arguments = (natural, order, output[0], pseudo, output[1])
    return coupling_count(*arguments), coupling_rms(*arguments)


class Power(Parametrization):
    """``power`` of :class:`~gaunt_plugin.layers.GauntManyBody`.

    Args:
        functions_in, functions_out: irreps of a channel.
        channels, num_elements: one weight per element, channel and term.
        correlation: highest power.
        rank: number of differently weighted copies of the input.
        antisymmetric: False.
        share: root mean square of the result, relative to MACE's contraction.

    Shapes:
        ``x [nodes, channels, sum(2l+1)]``, ``node_attrs [nodes, elements]`` ->
        ``[nodes, channels, sum(2L+1)]``, without the term of order one.
    """

    weighted = True  # whether the copies are

    @classmethod
    def outputs(
        cls,
        functions_in: List[Function],
        functions_out: List[Function],
        correlation: int,
        antisymmetric: bool,
    ) -> List[Function]:
        """Those of ``functions_out`` that products of two or more factors reach."""
        return [
            function
            for function in functions_out
            if any(
                power_size(functions_in, n, function, cls.weighted)
                for n in range(2, correlation + 1)
            )
        ]

    def __init__(
        self,
        functions_in: List[Function],
        functions_out: List[Function],
        channels: int,
        num_elements: int,
        correlation: int,
        rank: int,
        antisymmetric: bool = False,
        share: float = 1.0,
    ) -> None:
        super().__init__()
        parities = any(pseudo for _, pseudo in functions_in + functions_out)
        terms = ParityPowerTerms if parities else PowerTerms
        rank = rank if self.weighted else 0
        self.terms = terms(
            functions_in, functions_out, channels, num_elements, correlation, rank, share
        )

    def forward(self, x: torch.Tensor, node_attrs: torch.Tensor) -> torch.Tensor:
        return self.terms(x, node_attrs)


class Paper(Power):
    """``paper`` of :class:`~gaunt_plugin.layers.GauntManyBody`: one copy without weights."""

    weighted = False


class PowerTerms(torch.nn.Module):
    """``sum_nu sum_r t_nuL w_znurcL <F_r^nu Y_LM>``; rank 0: F is the plain sum."""

    def __init__(
        self, functions_in, functions_out, channels, num_elements, correlation, rank, share
    ) -> None:
        super().__init__()
        degrees_in, degrees_out = (
            [l for l, _ in functions] for functions in (functions_in, functions_out)
        )
        self.channels, self.rank = channels, max(rank, 1)
        self.count_in = len(degrees_in) if rank else 0
        gain = GAIN_IN if rank else 1.0
        self.powers = Powers(
            degrees_in,
            degrees_out,
            rank > 0,
            [gain / math.sqrt(2 * l + 1) for l in degrees_in],
            [
                [
                    GAIN_OUT * _factor(functions_in, n, function, rank, share)
                    for function in functions_out
                ]
                for n in range(2, correlation + 1)
            ],
        )
        self.register_parameter("weight_in", None)
        if rank:
            self.weight_in = element_weights(
                num_elements, rank, channels, self.count_in, std=1 / GAIN_IN
            )
        self.weight_out = element_weights(
            num_elements, self.rank, channels, self.powers.terms, std=1 / GAIN_OUT
        )

    def forward(self, x: torch.Tensor, node_attrs: torch.Tensor) -> torch.Tensor:
        weights_out = self._of_nodes(node_attrs, self.weight_out, self.powers.terms)
        weight_in = self.weight_in
        if weight_in is None:
            return self.powers(x, weights_out, None)
        return self.powers(x, weights_out, self._of_nodes(node_attrs, weight_in, self.count_in))

    def _of_nodes(self, node_attrs: torch.Tensor, weight: torch.Tensor, count: int) -> torch.Tensor:
        """``[nodes, rank, count, channels]`` from ``[elements, rank * channels * count]``."""
        weight = weight.view(-1, self.rank, self.channels, count).transpose(2, 3).flatten(1)
        return (node_attrs @ weight).view(-1, self.rank, count, self.channels)


class ParityPowerTerms(TableModule):
    r"""Powers 2 to ``correlation`` of ``U = A + P`` and ``V = A - P``: half sum, half difference.

    Natural outputs are ``(f(U) + f(V)) / 2`` and pseudo outputs ``(f(U) - f(V)) / 2``, f being the
    projected powers of :class:`~gaunt_plugin.layers.GauntManyBody`, its weights and its scales. If
    there is no A, f(U) alone is made: even orders are natural, odd ones pseudo.

    Arguments and shapes: see :class:`Power`; rank 0: the plain sum.
    """

    def __init__(
        self, functions_in, functions_out, channels, num_elements, correlation, rank, share
    ) -> None:
        super().__init__()
        self.channels = channels
        self.rank = max(rank, 1)
        ls_in, ls_out = (
            sorted({l for l, _ in functions}) for functions in (functions_in, functions_out)
        )
        dim_in, dim_out = (sum(2 * l + 1 for l in ls) for ls in (ls_in, ls_out))
        self.powers = ProjectedPowers(
            ls_in, ls_out, np.ones(dim_in), np.ones((correlation - 1, dim_out))
        )

        # combine[i, side * degrees + component]: U and V from the components of x.
        kinds = [pseudo for _, pseudo in functions_in]
        self.sides = 2 if len(set(kinds)) == 2 else 1
        plus = _selection(functions_in, ls_in)
        degrees = [l for l, _ in functions_in]
        sign = np.where(kinds, -1.0, 1.0)[degree_of_component(degrees)]
        both = [plus, sign[:, None] * plus][: self.sides]
        self.register_table("combine", np.stack(both))
        repeat_in = repeat_matrix(degrees, [1 / math.sqrt(2 * l + 1) for l in degrees])
        self.register_parameter("weight_in", None)
        if rank:
            self.weight_in = element_weights(
                num_elements, rank, channels, len(degrees), std=1 / GAIN_IN
            )
            self.register_table("repeat_in", GAIN_IN * repeat_in)
        else:
            self.register_table("repeat_in", repeat_in.sum(0))

        # Components of the output among those of [half sum, half difference].
        pick = _selection(functions_out, ls_out)
        offset = np.array([pseudo for _, pseudo in functions_out]) * pick.shape[1]
        offset = offset[degree_of_component([L for L, _ in functions_out])]
        offset = offset if self.sides == 2 else np.zeros_like(offset)
        self.register_table("pick", np.argmax(pick, axis=1) + offset)
        # [weights, orders * components]: one weight per order and reached irrep, with its scale.
        rows = []
        for i, n in enumerate(range(2, correlation + 1)):
            begin = i * len(pick)
            for function in functions_out:
                factor = _factor(functions_in, n, function, rank, share)
                if factor > 0:
                    row = np.zeros((correlation - 1) * len(pick))
                    row[begin : begin + 2 * function[0] + 1] = GAIN_OUT * factor
                    rows.append(row)
                begin += 2 * function[0] + 1
        self.register_table("repeat_out", np.stack(rows))
        self.weight_out = element_weights(
            num_elements, self.rank, channels, len(rows), std=1 / GAIN_OUT
        )

    def forward(self, x: torch.Tensor, node_attrs: torch.Tensor) -> torch.Tensor:
        nodes = x.shape[0]
        weight_in = self.weight_in
        if weight_in is None:
            x = (x * self.repeat_in).unsqueeze(1)
        else:
            weight = (node_attrs @ weight_in).view(
                nodes, self.rank, self.channels, self.repeat_in.shape[0]
            )
            # zci,zvcl,li->zvci
            x = x.unsqueeze(1) * (weight @ self.repeat_in)
        rows = nodes * self.rank * self.channels
        # ri,sid->srd, powers, srd,dg->srg, srg,gj->srnj
        fields = x.reshape(rows, x.shape[3]) @ self.combine
        powers = self.powers(fields.flatten(0, 1))
        orders = powers.shape[1]
        if self.sides == 2:
            u, v = powers.view(2, rows, orders, powers.shape[2]).unbind(0)
            powers = torch.cat([u + v, u - v], dim=-1) * 0.5
        powers = powers.index_select(-1, self.pick).view(
            nodes, self.rank, self.channels, orders, self.pick.shape[0]
        )
        weight = (node_attrs @ self.weight_out).view(
            nodes, self.rank, self.channels, self.repeat_out.shape[0]
        )
        spread = (weight @ self.repeat_out).view_as(powers)  # one weight per reached irrep
        return (powers * spread).sum([1, 3])


def _factor(functions_in, order: int, function: Function, rank: int, share: float) -> float:
    """Factor t of an order and an output; 0 where the order doesn't reach it."""
    own = power_size(functions_in, order, function, rank > 0)
    if own <= 0:
        return 0.0
    target = share * coupling_size(functions_in, order, function)[1]
    return target / own / math.sqrt(max(rank, 1))


def _selection(functions: List[Function], ls: List[int]) -> np.ndarray:
    """``[components of the functions, components of the degrees]``, ones where they are equal."""
    labels = [(l, m) for l, _ in functions for m in range(2 * l + 1)]
    columns = {(l, m): i for i, (l, m) in enumerate((l, m) for l in ls for m in range(2 * l + 1))}
    table = np.zeros((len(labels), len(columns)))
    for row, label in enumerate(labels):
        table[row, columns[label]] = 1.0
    return table
