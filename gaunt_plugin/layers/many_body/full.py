"""Free weights on a basis of all couplings: the parametrisation ``full``."""

from __future__ import annotations

import math
from typing import List, Optional

import numpy as np
import torch

from gaunt_plugin.layers.irreps import Function, of_kinds
from gaunt_plugin.layers.many_body.parametrization import Parametrization
from gaunt_plugin.layers.many_body.weights import GAIN_OUT, element_weights
from gaunt_plugin.ops import Polynomials
from gaunt_plugin.sphere import coupling_count, monomials, nested_polynomials, nested_terms


def full_polynomials(functions_in: List[Function], order: int, output: Function) -> np.ndarray:
    """Terms of ``full`` of one order to one function, per unit of their weights.

    Path weights of MACE have variance 1/P^2 and there are P paths; here there are fewer terms.

    Returns:
        ``[terms, 2 l_out + 1, monomials]`` as :func:`gaunt_plugin.sphere.nested_polynomials`.
    """
    polynomials = nested_polynomials(tuple(functions_in), order, output)
    if order == 1:
        return polynomials
    natural, pseudo = of_kinds(functions_in)
    paths = coupling_count(natural, order, output[0], pseudo, output[1])
    return polynomials * GAIN_OUT / math.sqrt(max(1, paths * len(polynomials)))


def functions_of_terms(
    functions_in: List[Function], functions_out: List[Function], order: int
) -> List[Function]:
    """The results of one order's terms, in the order of their weights.

    Those of order 1 are the weights of :class:`~gaunt_plugin.layers.LinearTerm`.
    """
    if order == 1:
        return [function for function in functions_in if function in functions_out]
    return functions_out


class Full(Parametrization):
    r"""``full`` of :class:`~gaunt_plugin.layers.GauntManyBody`, its term of order 1 included.

    Order 2: ``sum_t w_zct P_L[A_l1 A_l2]``; order 3: ``sum_t w_zct P_L[P_k[A_l1 A_l2] A_l3]``, over
    the basis of :func:`gaunt_plugin.sphere.nested_terms`, each product normalised to unit variance
    for independent unit normal factors (MACE's normalisation of a path).

    Arguments and shapes: see :class:`~gaunt_plugin.layers.many_body.power.Power`; there is no rank.
    """

    @classmethod
    def check(cls, correlation: int, antisymmetric: bool) -> None:
        if correlation > 3:
            raise ValueError(
                f"parametrization 'full' takes correlation 1 to 3, got {correlation}; use 'power'"
            )
        if antisymmetric:
            raise ValueError(
                "parametrization 'full' has brackets wherever parity asks for them; leave "
                "antisymmetric out"
            )

    @staticmethod
    def outputs(
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
                nested_terms(tuple(functions_in), n, function) for n in range(2, correlation + 1)
            )
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
        counts = [
            sum(len(nested_terms(tuple(functions_in), n, function)) for function in functions_out)
            for n in range(2, correlation + 1)
        ]
        self.terms = torch.nn.ModuleList(
            FullTerms(channels, num_elements, count) for count in counts if count
        )
        self.complete(functions_in, functions_out, channels, correlation)

    def complete(
        self,
        functions_in: List[Function],
        functions_out: List[Function],
        channels: int,
        correlation: int,
    ) -> None:
        """Make all that isn't a weight, which files of version 0.2.0 don't hold in this form."""
        self.channels = channels
        dim_in = sum(2 * l + 1 for l, _ in functions_in)
        starts, dim_out = {}, 0
        for function in functions_out:
            starts[function] = dim_out
            dim_out += 2 * function[0] + 1
        rows, values, count = [], [], 0
        for n in range(1, correlation + 1):
            # Missing factors are the variable that is 1.
            factors = monomials(dim_in, n)
            factors = np.pad(factors, ((0, 0), (0, 3 - n)), constant_values=dim_in)
            for function in functions_of_terms(functions_in, functions_out, n):
                for polynomial in full_polynomials(functions_in, n, function):
                    o, m = np.nonzero(abs(polynomial) > 1e-12 * abs(polynomial).max())
                    term = np.full(len(o), count)
                    rows.append(np.column_stack([starts[function] + o, factors[m], term]))
                    values.append(polynomial[o, m])
                    count += 1
        self.polynomials = Polynomials(
            dim_in, dim_out, count, np.concatenate(rows), np.concatenate(values)
        ).to(self.terms[0].weight)

    def forward(
        self, x: torch.Tensor, node_attrs: torch.Tensor, linear: Optional[torch.Tensor]
    ) -> torch.Tensor:
        """Terms of order 1, whose weights are ``linear``, are made together with the others."""
        weights: List[torch.Tensor] = []
        if linear is not None:
            weights.append(linear.view(linear.shape[0], self.channels, -1))
        for terms in self.terms:
            weights.append(terms.weight.view(terms.weight.shape[0], self.channels, -1))
        return self.polynomials(x, torch.cat(weights, dim=2), node_attrs)


class FullTerms(torch.nn.Module):
    """Weights of the terms of one order, per element, channel and term."""

    def __init__(self, channels: int, num_elements: int, terms: int) -> None:
        super().__init__()
        self.weight = element_weights(num_elements, channels, terms, std=1 / GAIN_OUT)
