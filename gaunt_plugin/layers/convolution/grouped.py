"""Convolution of features whose irreps have different multiplicities."""

from __future__ import annotations

import itertools
from typing import List

import torch

from gaunt_plugin.layers.convolution.aligned import AlignedConvolution
from gaunt_plugin.layers.convolution.edges import edge_degrees
from gaunt_plugin.layers.irreps import Irrep, Irreps, functions_of
from gaunt_plugin.ops.convolution import sources_of


class GroupedConvolution(torch.nn.Module):
    """One :class:`AlignedConvolution` per group of channels that have the same irreps.

    With ``8x0e+4x1o``, channels 0 to 3 have degrees 0 and 1 and channels 4 to 7 only degree 0.
    Each group gives every irrep of ``irreps_wanted`` that it reaches.

    Args:
        irreps_in: node features, each irrep once.
        irreps_edge: harmonics of the edges, multiplicity 1, natural parity.
        irreps_wanted: irreps of the messages; multiplicities are not read.

    Attributes:
        irreps_out: the groups' outputs, one after the other.
        weight_numel: weights per edge, group by group.

    Shapes:
        As :class:`AlignedConvolution`, always with the last layer of a radial network.

    Raises:
        ValueError: an irrep twice, or irreps of the edges that don't fit.
    """

    def __init__(
        self,
        irreps_in: Irreps | str,
        irreps_edge: Irreps | str,
        irreps_wanted: Irreps | str,
    ) -> None:
        super().__init__()
        self.irreps_in = Irreps(irreps_in)
        wanted = sorted({ir for _, ir in Irreps(irreps_wanted)})
        if len({ir for _, ir in self.irreps_in}) != len(self.irreps_in):
            raise ValueError(f"irreps_in must list each irrep once, got {self.irreps_in}")
        degrees_edge = edge_degrees(irreps_edge)
        starts = [s.start for s in self.irreps_in.slices()]
        bounds = sorted({0} | {mul for mul, _ in self.irreps_in})
        self.groups = torch.nn.ModuleList()
        self.slices = []  # per group and irrep: begin and end in x
        irreps_out = Irreps("")
        for low, high in itertools.pairwise(bounds):
            irs = [ir for mul, ir in self.irreps_in if mul >= high]
            reached = [ir for ir in wanted if _reaches(irs, degrees_edge, ir)]
            if not reached:
                continue
            group = AlignedConvolution(
                [(high - low, ir) for ir in irs], irreps_edge, [(high - low, ir) for ir in reached]
            )
            self.groups.append(group)
            self.slices.append(
                [
                    [start + low * ir.dim, start + high * ir.dim]
                    for start, (mul, ir) in zip(starts, self.irreps_in)
                    if mul >= high
                ]
            )
            irreps_out = irreps_out + group.irreps_out
        self.irreps_out = irreps_out
        self.weight_numels: List[int] = [group.weight_numel for group in self.groups]
        self.weight_numel = sum(self.weight_numels)

    def forward(
        self,
        node_feats: torch.Tensor,
        edge_attrs: torch.Tensor,
        hidden: torch.Tensor,
        edge_index: torch.Tensor,
        mixing: torch.Tensor,
    ) -> torch.Tensor:
        parts: List[torch.Tensor] = []
        split = mixing.split(self.weight_numels, dim=1)
        for i, group in enumerate(self.groups):
            x = torch.cat([node_feats[:, a:b] for a, b in self.slices[i]], dim=1)
            parts.append(group(x, edge_attrs, hidden, edge_index, split[i]))
        return torch.cat(parts, dim=1)


def _reaches(irs: list[Irrep], degrees_edge: tuple[int, ...], wanted: Irrep) -> bool:
    """Whether a message of features ``irs`` can have the irrep ``wanted``."""
    _, features = functions_of([(1, ir) for ir in irs], "irreps_in")
    _, [(l, pseudo)] = functions_of([(1, wanted)], "irreps_wanted")
    if all(ir.l == 0 for ir in irs) and l not in degrees_edge:
        return False
    return any(sources_of(features, pseudo, m) for m in range(l + 1))
