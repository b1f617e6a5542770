"""Radial functions of exported models from tables instead of networks."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Callable, List, Tuple

import torch
from torch import nn

from gaunt_plugin.deploy.contract import Tables, forces_of
from gaunt_plugin.layers import AlignedConvolution, ChannelwiseConvolution
from gaunt_plugin.layers.convolution.radial_table import RadialTable

# Å. No structure has such distances; a graph that does is evaluated with the networks.
START = 0.25
# Intervals of a table, from the shortest that is tried.
INTERVALS = (512, 1024, 2048, 4096)
# Numbers in the tables of a model: 1 GB of float32.
MOST = 1 << 28
# By how much energies (eV per atom) and forces (eV/Å) may differ from those of the networks.
ENERGY_BOUND, FORCE_BOUND = 1e-6, 1e-5
# And for an atom with a large force F by F times this more: float32 rounds F and distances by it.
# Networks are steep where no data were.
OF_FORCE = 1e-7


class NoTablesError(Exception):
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
        self.dtype: torch.dtype = exact.dtype

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


def tabulate(
    adapter: ModuleType, model: nn.Module, graphs: List[Tuple[torch.Tensor, ...]]
) -> Tuple[nn.Module, Tables]:
    """A model with the smallest tables that keep the bounds on all graphs, and what is known.

    Args:
        adapter: of the model's host.
        model: behind the contract, with networks; stays as it is.
        graphs: arguments of the model.

    Raises:
        NoTablesError: the model can't have any, or the largest don't keep the bounds.
    """
    precise = adapter.in_float64(model)
    expected = []
    for graph in graphs:
        energies, gradients = precise(*graph)
        expected.append((graph, energies, forces_of(gradients, graph[1], len(graph[2]))))
    # What rounding hides, where a model can't be had in float64.
    rounding = 0.0 if precise.dtype == torch.float64 else 16 * torch.finfo(precise.dtype).eps
    for intervals in INTERVALS:
        candidate = adapter.tabulated(precise, intervals)
        errors, good = [0.0, 0.0], True
        for graph, energies, forces in expected:
            found, gradients = candidate(*graph)
            nodes = len(forces)
            large = OF_FORCE * forces.norm(dim=1)
            compared = (
                (found - energies, energies, ENERGY_BOUND),
                (forces_of(gradients, graph[1], nodes) - forces, forces, FORCE_BOUND),
            )
            for k, (differences, values, bound) in enumerate(compared):
                # As a share of what the atom's force allows
                differences = differences.abs().view(nodes, -1).amax(1) / (1 + large / bound)
                error = differences.max().item()
                good = good and error <= bound + rounding * values.abs().max().item()
                errors[k] = max(errors[k], error)
        tables = Tables(intervals, START, *errors)
        if good:
            return adapter.tabulated(model, intervals), tables
    raise NoTablesError(tables.summary())


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
        NoTablesError: they would be too large.
    """
    numbers = table.rows * sum(mixing.shape[1] for mixing in mixings)
    if numbers > MOST:
        raise NoTablesError(
            f"tables for {len(table.cutoffs)} kinds of edges would have {numbers:.1e} numbers"
        )
    widths = [mixing.shape[0] for mixing in mixings]
    fitted = table.fit(lambda r, kind: torch.cat(functions(r, kind), dim=1))
    parts = torch.from_numpy(fitted).split(widths, dim=1)
    return [part @ mixing.double() for part, mixing in zip(parts, mixings)]


def check_convolution(convolution: nn.Module) -> None:
    """Raise NoTablesError unless it is a convolution that takes rows of a table."""
    if not isinstance(convolution, (AlignedConvolution, ChannelwiseConvolution)):
        raise NoTablesError(f"its convolution is a {type(convolution).__name__}")
