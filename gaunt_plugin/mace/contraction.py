"""Weights of MACE's symmetric contraction as weights of ``full``, exactly, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch

from gaunt_plugin.layers import GauntManyBody
from gaunt_plugin.layers.irreps import Irreps, functions_of
from gaunt_plugin.layers.many_body.full import full_polynomials, functions_of_terms
from gaunt_plugin.sphere import nested_terms, of_monomials

# MACE's coefficients may have been rounded to float32.
TOLERANCE = 1e-5


class _Block(NamedTuple):
    """Weights of one order and one irrep of the output, and the map ``full = T stock``."""

    stock: str
    full: str
    columns: slice  # of the terms in full's tensor
    T: np.ndarray  # [terms, paths]


class ContractionMap:
    r"""The linear maps between the weights of a stock contraction and of its rewriting.

    Both are polynomials of the same features, with weights ``w``, per element and channel:

    .. math:: B_{LM} = \sum_{np} w^{stock}_{nLp}\, U_{nLp}(A)
       = \sum_{nt} w^{full}_{nLt}\, Q_{nLt}(A), \qquad w^{full}_{nL} = T_{nL} w^{stock}_{nL}

    The Q are a basis of all symmetric couplings of n features, so T exists and has full row rank;
    it is found from the coefficients of all monomials. U are those in the stock module, whichever
    way they were made (``use_reduced_cg``) and rounded: T is as exact as they are.

    Args:
        stock: a :class:`mace.modules.symmetric_contraction.SymmetricContraction`.
        full: a :class:`~gaunt_plugin.layers.GauntManyBody` of the same irreps, correlation and
            elements, parametrisation ``full``.

    Raises:
        ValueError: the two are not such a pair, or U are not symmetric couplings.
    """

    def __init__(self, stock: torch.nn.Module, full: GauntManyBody) -> None:
        _check_pair(stock, full)
        self.channels, self.elements = full.channels, full.num_elements
        self._blocks = list(_blocks(stock, full))

    def to_full(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """State dict of the rewriting, from that of the stock contraction; differentiable."""
        parts: dict[str, list[torch.Tensor]] = {}
        for block in self._blocks:
            w = weights[block.stock]  # epc, tp -> ect
            T = torch.as_tensor(block.T, dtype=w.dtype, device=w.device)
            parts.setdefault(block.full, []).append((T @ w).transpose(1, 2))
        return {name: torch.cat(found, dim=2).flatten(1) for name, found in parts.items()}

    def to_stock(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """State dict of the stock contraction, of smallest norm: its paths depend on each other.

        Differentiable. What is no weight, in the stock contraction's own state dict, stays.
        """
        found = {}
        for block in self._blocks:
            if block.full in weights:
                w = weights[block.full]
                w = w.view(self.elements, self.channels, -1)[:, :, block.columns]
                T = torch.as_tensor(np.linalg.pinv(block.T), dtype=w.dtype, device=w.device)
                found[block.stock] = T @ w.transpose(1, 2)  # pt, ect -> epc
        return found


def _check_pair(stock, full) -> None:
    if not isinstance(full, GauntManyBody) or full.parametrization != "full":
        raise ValueError(f"expected a GauntManyBody of parametrization 'full', got {full}")
    irreps = [str(Irreps(x)) for x in (stock.irreps_in, stock.irreps_out)]
    own = [str(full.irreps_in), str(full.irreps_out)]
    orders = {c.correlation for c in stock.contractions}
    if irreps != own or orders != {full.contraction_degree}:
        raise ValueError(
            f"the stock contraction is {irreps[0]} -> {irreps[1]}, correlation "
            f"{', '.join(map(str, sorted(orders)))}; the rewriting {own[0]} -> {own[1]}, "
            f"correlation {full.contraction_degree}"
        )
    elements = stock.contractions[0].weights_max.shape[0]
    if elements != full.num_elements:
        raise ValueError(
            f"the stock contraction has weights of {elements} elements, the rewriting of "
            f"{full.num_elements}"
        )


def _blocks(stock, full: GauntManyBody) -> Iterator[_Block]:
    correlation = full.contraction_degree
    _, functions_in = functions_of(full.irreps_in, "irreps_in")
    _, functions_out = functions_of(full.irreps_out, "irreps_out")
    names = {1: "linear.weight"}
    for n in range(2, correlation + 1):
        if any(nested_terms(tuple(functions_in), n, function) for function in functions_out):
            names[n] = f"product.terms.{len(names) - 1}.weight"
    for n, name in names.items():
        end = 0
        weights = "weights_max" if n == correlation else f"weights.{correlation - n - 1}"
        for function in functions_of_terms(functions_in, functions_out, n):
            k = functions_out.index(function)
            Q = full_polynomials(functions_in, n, function)
            U = stock.contractions[k].U_tensors(n).detach().cpu().double().numpy()
            begin, end = end, end + len(Q)
            if abs(U).max() > 0:  # else MACE has no weights
                T = _solve(Q, U, n)
                yield _Block(f"contractions.{k}.{weights}", name, slice(begin, end), T)


def _solve(Q: np.ndarray, U: np.ndarray, order: int) -> np.ndarray:
    """T of ``U = Q T``, for polynomials ``[terms, components, monomials]`` and MACE's U."""
    components, variables = Q.shape[1], Q.shape[2]
    U = U.reshape(components, -1, U.shape[-1])
    size = round(U.shape[1] ** (1 / order))
    U = of_monomials(np.moveaxis(U.reshape(components, *[size] * order, -1), 0, -1), order)
    U = np.moveaxis(U, -1, 0).reshape(components * variables, -1)  # of components and monomials
    Q = Q.reshape(len(Q), len(U)).T
    T = np.linalg.lstsq(Q, U, rcond=None)[0]
    rest = abs(Q @ T - U).max()
    if rest > TOLERANCE * max(1.0, abs(U).max()):
        raise ValueError(
            f"MACE's couplings of {order} factors to degree {components // 2} are not those of "
            f"symmetric products: off by {rest:.1e}"
        )
    return T
