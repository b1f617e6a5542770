"""From e3nn's flat features to rows of weighted functions on the sphere, and back."""

from __future__ import annotations

import math
from typing import List

import torch

from gaunt_plugin.layers.irreps import Irrep, Irreps
from gaunt_plugin.ops.tables import TableModule, repeat_matrix


def _blocks(irreps: Irreps, used: List[Irrep]) -> List[List[int]]:
    """Per entry whose irrep is used: its place in ``used``, first column, channels, components.

    Ordered by the place.
    """
    blocks = [
        [used.index(ir), where.start, mul, ir.dim]
        for (mul, ir), where in zip(irreps, irreps.slices())
        if ir in used and mul > 0
    ]
    return sorted(blocks)


def _places(irreps: Irreps, used: List[Irrep]) -> List[List[int]]:
    """Per entry of the irreps: its place in ``used`` or -1, its first channel there, channels."""
    places, begin = [], dict.fromkeys(used, 0)
    for mul, ir in irreps:
        places.append([used.index(ir) if ir in used else -1, begin.get(ir, 0), mul])
        begin[ir] = begin.get(ir, 0) + mul
    return places


def _norms(used: List[Irrep], norm: bool) -> List[float]:
    return [math.sqrt(ir.dim) if norm else 1.0 for ir in used]


class ChannelMixing(torch.nn.Module):
    """Every row r is a mixture of all channels: ``A_rl = sum_u w_url x_ul / sqrt(U_l)``.

    Args:
        irreps: the features.
        used: their irreps that take part, in the order of the rows' components.
        rows: number of rows.
        shared: one set of weights, or one per node.
        norm: irreps of the features have mean squared norm 1 rather than components.

    Shapes:
        ``x [nodes, irreps.dim]``, ``weight [weight_numel]`` or ``[nodes, weight_numel]`` ->
        ``[nodes, rows, sum(2l+1)]``; :meth:`back` the other way, with ``1/sqrt(rows)``.
    """

    def __init__(
        self, irreps: Irreps, used: List[Irrep], rows: int, shared: bool, norm: bool
    ) -> None:
        super().__init__()
        self.rows, self.shared = rows, shared
        self.blocks = _blocks(irreps, used)
        self.places = _places(irreps, used)
        self.dims = [ir.dim for ir in used]
        channels = [sum(mul for mul, other in irreps if other == ir) for ir in used]
        norms = _norms(used, norm)
        self.scales = [n / math.sqrt(u) for n, u in zip(norms, channels)]
        self.scales_back = [1 / (n * math.sqrt(rows)) for n in norms]
        self.channels = channels
        self.weight_numel = rows * sum(channels)

    def _weights(self, weight: torch.Tensor, start: int, size: int, width: int) -> torch.Tensor:
        part = weight[..., start : start + size * width]
        return part.view(size, width) if self.shared else part.view(-1, size, width)

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        parts: List[torch.Tensor] = []
        start = 0
        for place, scale in enumerate(self.scales):
            # Entries of one irrep are contiguous in the weights: concatenate their channels.
            features: List[torch.Tensor] = []
            for block in self.blocks:
                if block[0] == place:
                    begin, mul, dim = block[1], block[2], block[3]
                    features.append(x[:, begin : begin + mul * dim].view(-1, mul, dim))
            w = self._weights(weight, start, self.channels[place], self.rows)
            start += self.channels[place] * self.rows
            # nui->niu, niu,ur->nir
            parts.append(torch.cat(features, dim=1).transpose(1, 2) @ (w * scale))
        return torch.cat(parts, dim=1).transpose(1, 2).contiguous()

    def back(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        mixed: List[torch.Tensor] = []
        start = 0
        for place, part in enumerate(rows.split(self.dims, dim=2)):
            width = self.channels[place]
            w = self._weights(weight, start, self.rows, width) * self.scales_back[place]
            start += self.rows * width
            # nri->nir, nir,rw->niw->nwi
            mixed.append((part.transpose(1, 2) @ w).transpose(1, 2))
        out: List[torch.Tensor] = []
        for entry in self.places:
            place, begin, mul = entry[0], entry[1], entry[2]
            if mul > 0:
                out.append(mixed[place][:, begin : begin + mul].flatten(1))
        return torch.cat(out, dim=1)


class ChannelWeights(TableModule):
    """Rows are R weighted copies of every channel: ``A_rcl = w_rcl x_cl``.

    Arguments and shapes are those of :class:`ChannelMixing`, for irreps of one multiplicity; there
    are ``rank * channels`` rows, and :meth:`back` sums over copies.
    """

    def __init__(
        self, irreps: Irreps, used: List[Irrep], rank: int, shared: bool, norm: bool
    ) -> None:
        super().__init__()
        self.rank = rank
        self.channels = irreps[0].mul
        self.blocks = _blocks(irreps, used)
        self.dims = [ir.dim for ir in used]
        # where each entry of the irreps is among those used
        self.order = [used.index(ir) for _, ir in irreps if ir in used]
        self.weight_numel = rank * self.channels * len(used)
        degrees, norms = [ir.l for ir in used], _norms(used, norm)
        self.register_table("repeat", repeat_matrix(degrees, norms))
        back = [1 / n / math.sqrt(rank) for n in norms]
        self.register_table("repeat_back", repeat_matrix(degrees, back))

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        parts: List[torch.Tensor] = []
        for block in self.blocks:
            begin, mul, dim = block[1], block[2], block[3]
            parts.append(x[:, begin : begin + mul * dim].view(-1, mul, dim))
        features = torch.cat(parts, dim=2).unsqueeze(1)
        w = weight.view(-1, self.rank, self.channels, len(self.dims))
        # nrcl,li->nrci, n is 1 for shared weights
        return (features * (w @ self.repeat)).flatten(1, 2)

    def back(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        w = weight.view(-1, self.rank, self.channels, len(self.dims)) @ self.repeat_back
        rows = rows.view(-1, self.rank, self.channels, rows.shape[2])
        summed = (rows * w).sum(1).split(self.dims, dim=2)
        return torch.cat([summed[place].flatten(1) for place in self.order], dim=1)
