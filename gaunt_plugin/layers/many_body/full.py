"""Free weights on a basis of all couplings: the parametrisation ``full``."""

from __future__ import annotations

import math
from typing import List, Optional, Tuple

import numpy as np
import torch

from gaunt_plugin.layers.irreps import Function, Irreps, is_pseudo
from gaunt_plugin.layers.many_body.parametrization import Parametrization
from gaunt_plugin.layers.many_body.weights import GAIN_OUT, element_weights
from gaunt_plugin.ops.tables import TableModule
from gaunt_plugin.sphere import coupling_count, gaunt, nested_polynomials, nested_terms


def _unit_gaunt(a: int, b: int, k: int) -> np.ndarray:
    """Gaunt coefficients scaled so that unit normal factors give components of variance 1."""
    table = gaunt(a, b, k)
    return table * math.sqrt((2 * k + 1) / np.sum(table**2))


def full_polynomials(degrees_in: Tuple[int, ...], order: int, l_out: int) -> np.ndarray:
    """Terms of ``full`` of one order to one degree, per unit of their weights.

    Path weights of MACE have variance 1/P^2 and there are P paths; here there are fewer terms.

    Returns:
        ``[terms, 2 l_out + 1, monomials]`` as :func:`gaunt_plugin.sphere.nested_polynomials`.
    """
    polynomials = nested_polynomials(degrees_in, order, l_out)
    if order == 1:
        return polynomials
    paths = coupling_count(degrees_in, order, l_out)
    return polynomials * GAIN_OUT / math.sqrt(max(1, paths * len(polynomials)))


def _component_slices(degrees) -> list[slice]:
    degrees = list(degrees)
    ends = np.cumsum([2 * l + 1 for l in degrees]).tolist()
    return [slice(end - 2 * l - 1, end) for l, end in zip(degrees, ends)]


class Full(Parametrization):
    """``full`` of :class:`~gaunt_plugin.layers.GauntManyBody`: its terms of order 2 and 3.

    Arguments and shapes: see :class:`~gaunt_plugin.layers.many_body.power.Power`; there is no rank.
    """

    @classmethod
    def check(cls, correlation: int, antisymmetric: bool) -> None:
        if correlation > 3:
            raise ValueError(
                f"parametrization 'full' takes correlation 1 to 3, got {correlation}; use 'power'"
            )
        super().check(correlation, antisymmetric)

    @classmethod
    def check_irreps(cls, irreps_in: Irreps, irreps_out: Irreps) -> None:
        if any(is_pseudo(ir) for _, ir in irreps_in + irreps_out):
            raise ValueError(
                "parametrization 'full' takes natural parity (0e, 1o, 2e, ...) only, got "
                f"{irreps_in} -> {irreps_out}; use 'power'"
            )

    @staticmethod
    def outputs(
        functions_in: List[Function],
        functions_out: List[Function],
        correlation: int,
        antisymmetric: bool,
    ) -> List[Function]:
        """Those of ``functions_out`` that products of two or more factors reach."""
        degrees = tuple(l for l, _ in functions_in)
        return [
            (L, pseudo)
            for L, pseudo in functions_out
            if any(nested_terms(degrees, n, L) for n in range(2, correlation + 1))
        ]

    def __init__(
        self,
        functions_in: List[Function],
        functions_out: List[Function],
        channels: int,
        num_elements: int,
        correlation: int,
        rank: Optional[int] = None,
        antisymmetric: bool = False,
    ) -> None:
        super().__init__()
        degrees_in, degrees_out = (
            tuple(l for l, _ in functions) for functions in (functions_in, functions_out)
        )
        self.terms = torch.nn.ModuleList(
            FullTerms(degrees_in, degrees_out, channels, num_elements, n)
            for n in range(2, correlation + 1)
            if any(nested_terms(degrees_in, n, L) for L in degrees_out)
        )

    def forward(self, x: torch.Tensor, node_attrs: torch.Tensor) -> torch.Tensor:
        parts: List[torch.Tensor] = []
        for terms in self.terms:
            parts.append(terms(x, node_attrs))
        return parts[0] + parts[1] if len(parts) > 1 else parts[0]


class FullTerms(TableModule):
    r"""Terms of one order of a many-body product, with one free weight per term.

    Order 2: ``sum_t w_zct P_L[A_l1 A_l2]``; order 3: ``sum_t w_zct P_L[P_k[A_l1 A_l2] A_l3]``, over
    the basis of :func:`gaunt_plugin.sphere.nested_terms`, each product normalised to unit variance
    for independent unit normal factors (MACE's normalisation of a path).

    Args:
        degrees_in, degrees_out: natural-parity degrees of the input and the output.
        channels, num_elements: one weight per element, channel and term.
        correlation: 2 or 3.

    Shapes:
        ``x [nodes, channels, sum(2l+1)]``, ``node_attrs [nodes, elements]`` ->
        ``[nodes, channels, sum(2L+1)]``.

    Raises:
        ValueError: correlation out of range.
    """

    def __init__(self, degrees_in, degrees_out, channels, num_elements, correlation: int) -> None:
        super().__init__()
        self.channels = channels
        self.triple = correlation == 3
        terms = [(L, t) for L in degrees_out for t in nested_terms(degrees_in, correlation, L)]
        slices_in = dict(zip(degrees_in, _component_slices(degrees_in)))
        slices_out = dict(zip(degrees_out, _component_slices(degrees_out)))
        dim_in = sum(2 * l + 1 for l in degrees_in)
        dim_out = sum(2 * L + 1 for L in degrees_out)

        # pairs[ij, d]: all P_k[A_l1 A_l2] that are needed, as components d, from A_i A_j.
        inner = sorted({(*t[:2], t[2] if self.triple else L) for L, t in terms})
        slices_inner = dict(zip(inner, _component_slices(k for _, _, k in inner)))
        pairs = np.zeros((dim_in, dim_in, sum(2 * k + 1 for _, _, k in inner)))
        for (a, b, k), where in slices_inner.items():
            pairs[slices_in[a], slices_in[b], where] = _unit_gaunt(a, b, k)
        # Only products i <= j are formed.
        i, j = np.triu_indices(dim_in)
        off_diagonal = 1 - np.eye(dim_in)[:, :, None]
        symmetric = pairs + off_diagonal * pairs.transpose(1, 0, 2)
        self.register_table("pair_i", i)
        self.register_table("pair_j", j)
        self.register_table("pairs", symmetric[i, j])

        # A term's weight multiplies its inner components; they are summed per target: the output
        # itself (order 2) or the outer product k x l3 -> L that they share (order 3).
        targets = sorted({(t[2], t[3], L) for L, t in terms}) if self.triple else []
        slices_target = dict(zip(targets, _component_slices(k for k, _, _ in targets)))
        take, weight_of, into = [], [], []
        for index, (L, t) in enumerate(terms):
            source = slices_inner[(*t[:2], t[2] if self.triple else L)]
            target = slices_target[t[2], t[3], L] if self.triple else slices_out[L]
            take += range(source.start, source.stop)
            into += range(target.start, target.stop)
            weight_of += [index] * (source.stop - source.start)
        dim_target = sum(2 * k + 1 for k, _, _ in targets) if self.triple else dim_out
        scale = [self._scale(degrees_in, correlation, L, terms) for L, _ in terms]
        repeat = np.zeros((len(terms), len(take)))
        repeat[weight_of, range(len(take))] = np.asarray(scale)[weight_of]
        gather = np.zeros((len(take), dim_target))
        gather[range(len(take)), into] = 1.0
        self.register_table("take", np.array(take, dtype=np.int64))
        self.register_table("repeat", repeat)
        self.register_table("gather", gather)

        # outer[kl, L]: products of a target's components with those of A_l3.
        outer_k, outer_l, outer = [], [], []
        for k, c, L in targets:
            for ik in range(2 * k + 1):
                for ic in range(2 * c + 1):
                    outer_k.append(slices_target[k, c, L].start + ik)
                    outer_l.append(slices_in[c].start + ic)
                    row = np.zeros(dim_out)
                    row[slices_out[L]] = _unit_gaunt(k, c, L)[ik, ic]
                    outer.append(row)
        self.register_table("outer_k", np.array(outer_k, dtype=np.int64))
        self.register_table("outer_l", np.array(outer_l, dtype=np.int64))
        self.register_table("outer", np.asarray(outer).reshape(-1, dim_out))
        self.weight = element_weights(num_elements, channels, len(terms), std=1 / GAIN_OUT)

    @staticmethod
    def _scale(degrees_in, correlation: int, l_out: int, terms) -> float:
        """Path weights of MACE have variance 1/P^2 and there are P; here there are fewer terms."""
        paths = coupling_count(degrees_in, correlation, l_out)
        own = sum(L == l_out for L, _ in terms)
        return GAIN_OUT / math.sqrt(paths * own)

    def forward(self, x: torch.Tensor, node_attrs: torch.Tensor) -> torch.Tensor:
        weight = (node_attrs @ self.weight).view(x.shape[0], self.channels, self.repeat.shape[0])
        weight = weight @ self.repeat
        products = x.index_select(-1, self.pair_i) * x.index_select(-1, self.pair_j)
        inner = products @ self.pairs  # zcp,pd->zcd
        target = (inner.index_select(-1, self.take) * weight) @ self.gather  # zct,tk->zck
        if not self.triple:
            return target
        products = target.index_select(-1, self.outer_k) * x.index_select(-1, self.outer_l)
        return products @ self.outer  # zco,oj->zcj
