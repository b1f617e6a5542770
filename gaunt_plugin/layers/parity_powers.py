"""Powers of functions of both parities."""

from __future__ import annotations

import math
from typing import List, Tuple

import numpy as np
import torch

from gaunt_plugin.layers._fourier_powers import FourierPowers
from gaunt_plugin.layers._grid_powers import GridPowers
from gaunt_plugin.layers._tables import (
    GAIN_IN,
    GAIN_OUT,
    element_weights,
    repeat_matrix,
)
from gaunt_plugin.sphere import (
    coupling_count,
    coupling_rms,
    degree_of_component,
    power_rms,
)

# A function of one degree: the degree, and whether its parity is pseudo, -(-1)^l.
Functions = List[Tuple[int, bool]]


def parity_power_rms(
    functions: Functions, order: int, l_out: int, pseudo_out: bool, random_weights: bool
) -> float:
    """:func:`gaunt_plugin.sphere.power_rms` of functions in any order."""
    return power_rms(
        _of(functions, False), order, l_out, random_weights, *_tail(functions, pseudo_out)
    )


def parity_coupling(
    functions: Functions, order: int, l_out: int, pseudo_out: bool
) -> Tuple[int, float]:
    """``coupling_count`` and ``coupling_rms`` of the sphere, for functions in any order."""
    arguments = (_of(functions, False), order, l_out, *_tail(functions, pseudo_out))
    return coupling_count(*arguments), coupling_rms(*arguments)


def _of(functions: Functions, pseudo: bool) -> tuple[int, ...]:
    return tuple(sorted(l for l, kind in functions if kind == pseudo))


def _tail(functions: Functions, pseudo_out: bool) -> tuple[tuple[int, ...], bool]:
    return _of(functions, True), pseudo_out


class ParityPowers(GridPowers):
    r"""Powers 2 to ``correlation`` of ``U = A + P`` and ``V = A - P``: half sum, half difference.

    Natural outputs are ``(f(U) + f(V)) / 2`` and pseudo outputs ``(f(U) - f(V)) / 2``, f being the
    projected powers of :class:`~gaunt_plugin.layers.GauntManyBody`, its weights and its scales. If
    there is no A, f(U) alone is made: even orders are natural, odd ones pseudo.

    Args:
        functions_in, functions_out: irreps of a channel as (degree, pseudo), in order.
        channels, num_elements: one weight per element, channel and term.
        correlation: highest power.
        copies: differently weighted copies of (A, P); 0: the plain sum.
        share: root mean square of the result, relative to MACE's contraction.

    Shapes:
        ``x [nodes, channels, sum(2l+1)]``, ``node_attrs [nodes, elements]`` ->
        ``[nodes, channels, sum(2L+1)]``.
    """

    def __init__(
        self,
        functions_in: Functions,
        functions_out: Functions,
        channels: int,
        num_elements: int,
        correlation: int,
        copies: int,
        share: float = 1.0,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.copies = max(copies, 1)
        ls_in, ls_out = (
            sorted({l for l, _ in functions}) for functions in (functions_in, functions_out)
        )
        dim_in, dim_out = (sum(2 * l + 1 for l in ls) for ls in (ls_in, ls_out))
        self._make_tables(ls_in, ls_out, np.ones(dim_in), np.ones((correlation - 1, dim_out)))

        # combine[i, side * degrees + component]: U and V from the components of x.
        kinds = [pseudo for _, pseudo in functions_in]
        self.sides = 2 if len(set(kinds)) == 2 else 1
        plus = _selection(functions_in, ls_in)
        degrees = [l for l, _ in functions_in]
        sign = np.where(kinds, -1.0, 1.0)[degree_of_component(degrees)]
        both = [plus, sign[:, None] * plus][: self.sides]
        self.register_table("combine", np.stack(both))
        repeat_in = repeat_matrix(degrees, [1 / math.sqrt(2 * l + 1) for l in degrees])
        if copies:
            self.weight_in = element_weights(
                num_elements, copies, channels, len(degrees), std=1 / GAIN_IN
            )
            self.register_table("repeat_in", GAIN_IN * repeat_in)
        else:
            self.register_buffer("weight_in", None)
            self.register_table("repeat_in", repeat_in.sum(0))

        # Components of the output among those of [half sum, half difference].
        pick = _selection(functions_out, ls_out)
        offset = np.array([pseudo for _, pseudo in functions_out]) * pick.shape[1]
        offset = offset[degree_of_component([L for L, _ in functions_out])]
        offset = offset if self.sides == 2 else np.zeros_like(offset)
        self.register_table("pick", np.argmax(pick, axis=1) + offset)
        # [weights, orders * components]: one weight per order and reached irrep, with its scale.
        random_weights = copies > 0
        rows = []
        for i, n in enumerate(range(2, correlation + 1)):
            begin = i * len(pick)
            for L, pseudo in functions_out:
                own = parity_power_rms(functions_in, n, L, pseudo, random_weights)
                if own > 0:
                    target = share * parity_coupling(functions_in, n, L, pseudo)[1]
                    row = np.zeros((correlation - 1) * len(pick))
                    row[begin : begin + 2 * L + 1] = (
                        GAIN_OUT * target / own / math.sqrt(self.copies)
                    )
                    rows.append(row)
                begin += 2 * L + 1
        self.register_table("repeat_out", np.stack(rows))
        self.weight_out = element_weights(
            num_elements, self.copies, channels, len(rows), std=1 / GAIN_OUT
        )

    def forward(self, x: torch.Tensor, node_attrs: torch.Tensor) -> torch.Tensor:
        nodes = x.shape[0]
        weight_in = self.weight_in
        if weight_in is None:
            x = (x * self.repeat_in).unsqueeze(1)
        else:
            weight = (node_attrs @ weight_in).view(
                nodes, self.copies, self.channels, self.repeat_in.shape[0]
            )
            # zci,zvcl,li->zvci
            x = x.unsqueeze(1) * (weight @ self.repeat_in)
        rows = nodes * self.copies * self.channels
        # ri,sid->srd, powers, srd,dg->srg, srg,gj->srnj
        fields = x.reshape(rows, x.shape[3]) @ self.combine
        powers = self._projected(fields.flatten(0, 1))
        orders = powers.shape[1]
        if self.sides == 2:
            u, v = powers.view(2, rows, orders, powers.shape[2]).unbind(0)
            powers = torch.cat([u + v, u - v], dim=-1) * 0.5
        powers = powers.index_select(-1, self.pick).view(
            nodes, self.copies, self.channels, orders, self.pick.shape[0]
        )
        weight = (node_attrs @ self.weight_out).view(
            nodes, self.copies, self.channels, self.repeat_out.shape[0]
        )
        spread = (weight @ self.repeat_out).view_as(powers)  # one weight per reached irrep
        return (powers * spread).sum([1, 3])


class FourierParityPowers(FourierPowers, ParityPowers):
    """The same by fast Fourier transforms."""


def _selection(functions: Functions, ls: List[int]) -> np.ndarray:
    """``[components of the functions, components of the degrees]``, ones where they are equal."""
    labels = [(l, m) for l, _ in functions for m in range(2 * l + 1)]
    columns = {(l, m): i for i, (l, m) in enumerate((l, m) for l in ls for m in range(2 * l + 1))}
    table = np.zeros((len(labels), len(columns)))
    for row, label in enumerate(labels):
        table[row, columns[label]] = 1.0
    return table
