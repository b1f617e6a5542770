"""Radial functions of exported models from tables instead of networks."""

from __future__ import annotations

import copy
from typing import Callable, List, Tuple

import torch
from torch import nn

from gaunt_plugin.layers import AlignedConvolution
from gaunt_plugin.layers.convolution.radial_table import RadialTable

# Å. No structure has such distances; a graph that does is evaluated with the networks.
START = 0.25
# Intervals of a table, from the shortest that is tried.
INTERVALS = (512, 1024, 2048, 4096)
# Numbers in the tables of a model: 1 GB of float32.
MOST = 1 << 28


class NoTables(Exception):
    """Why a model can't have tables."""


class TabulatedModel(nn.Module):
    """A model with tables, which takes its networks where an edge is shorter than the tables.

    Args:
        tabulated: the model behind the contract, with tables.
        exact: with networks.
        start: the shortest distance of the tables, Å.
    """

    def __init__(self, tabulated: nn.Module, exact: nn.Module, start: float) -> None:
        super().__init__()
        self.tabulated, self.exact, self.start = tabulated, exact, start

    def forward(
        self,
        edge_vectors: torch.Tensor,
        edge_index: torch.Tensor,
        types: torch.Tensor,
        owned: torch.Tensor,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        if bool((edge_vectors.detach().square().sum(1) < self.start**2).any()):
            return self.exact(edge_vectors, edge_index, types, owned)
        return self.tabulated(edge_vectors, edge_index, types, owned)


def shared_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules with the same tensors: a file holds each once."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(t): t for t in tensors})


def tables_of(
    table: RadialTable,
    functions: Callable[[torch.Tensor, int], List[torch.Tensor]],
    mixings: List[torch.Tensor],
) -> List[torch.Tensor]:
    """Tables of several sets of functions, each the product of hidden features and a mixing.

    Args:
        table: the basis.
        functions: of lengths and the kind of edge, the hidden features of each set.
        mixings: ``[width, functions]`` of each set.

    Raises:
        NoTables: they would be too large.
    """
    numbers = table.rows * sum(mixing.shape[1] for mixing in mixings)
    if numbers > MOST:
        raise NoTables(
            f"tables for {len(table.cutoffs)} kinds of edges would have {numbers:.1e} numbers"
        )
    widths = [mixing.shape[0] for mixing in mixings]
    fitted = table.fit(lambda r, kind: torch.cat(functions(r, kind), dim=1))
    parts = torch.from_numpy(fitted).split(widths, dim=1)
    return [part @ mixing.double() for part, mixing in zip(parts, mixings)]


def check_convolution(convolution: nn.Module) -> None:
    """Raise NoTables unless it is an AlignedConvolution, which alone takes tables."""
    if not isinstance(convolution, AlignedConvolution):
        raise NoTables(f"its convolution is a {type(convolution).__name__}")
