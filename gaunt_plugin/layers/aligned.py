"""Convolution over edges in the frame in which the filter has only order m = 0."""

from __future__ import annotations

from typing import List

import numpy as np
import torch

from gaunt_plugin.layers._edge_blocks import LARGE, sum_messages
from gaunt_plugin.layers._edges import channels_last, check_edges, convolution_degrees, flat
from gaunt_plugin.layers._irreps import o3
from gaunt_plugin.layers._tables import TableModule
from gaunt_plugin.layers.rotation import EdgeRotation


class AlignedConvolution(TableModule):
    r"""Product of node features with a zonal filter, in the frame whose polar axis is the edge.

    Multiplication by a function that is symmetric about the edge keeps the order m, so with
    ``B = D(R)^T A_j`` the features in the edge's frame, every natural-parity coupling is

    .. math:: M_{i,l_3} = \sum_j D^{l_3}(R) \, \Big[ n_{l_3} \sum_{l_1}
       w_{ij,l_1 l_3 |m|}\, B_{l_1 m} \Big]_m

    with one radial weight per edge, channel and (l1, l3, ``|m|``): free weights on all couplings
    ``(l1, l2, l3)`` with ``l1 + l2 + l3`` even that Clebsch-Gordan has, for l2 up to ``l1 + l3``.
    ``n_L`` makes a message of one edge have unit variance for unit normal features and weights.
    Scalar features skip the frame: there M is a sum of harmonics.

    Args:
        irreps_in: node features, one multiplicity, natural parity.
        irreps_edge: harmonics of the edges, multiplicity 1; ``1o`` gives the direction and, for
            scalar features, degrees up to those of ``irreps_out`` are needed.
        irreps_out: same multiplicity as ``irreps_in``, natural parity.

    Attributes:
        weight_numel: weights per edge, ordered ``[|m|, l1, l3, channel]``.

    Shapes:
        As :class:`~gaunt_plugin.layers.GauntConvolution`.

    Raises:
        ValueError: irreps or shapes that don't fit.

    Source: Luo, Chen, Krishnapriyan, ICLR 2024, arXiv 2401.10216, section on equivariant
    convolutions; Passaro, Zitnick, ICML 2023, arXiv 2302.03655.
    """

    def __init__(
        self,
        irreps_in: o3.Irreps | str,
        irreps_edge: o3.Irreps | str,
        irreps_out: o3.Irreps | str,
    ) -> None:
        super().__init__()
        self.irreps_in = o3.Irreps(irreps_in)
        self.irreps_edge = o3.Irreps(irreps_edge)
        self.irreps_out = o3.Irreps(irreps_out)
        channels, degrees_in, degrees_edge, degrees_out = convolution_degrees(
            irreps_in, irreps_edge, irreps_out
        )
        self.scalar = max(degrees_in) == 0
        self.dim_out = sum(2 * L + 1 for L in degrees_out)
        needed = degrees_out if self.scalar else (1,)
        if not set(needed) <= set(degrees_edge):
            raise ValueError(
                f"irreps_edge must contain degrees {list(needed)} for {self.irreps_in} -> "
                f"{self.irreps_out}, got {self.irreps_edge}"
            )
        self.channels = channels
        self.dim_edge = self.irreps_edge.dim
        self.dims_in = [2 * l + 1 for l in degrees_in]
        self.dims_out = [2 * L + 1 for L in degrees_out]
        self.mmax = min(max(degrees_in), max(degrees_out))
        # Degrees that have an order |m|, on either side.
        self.senders = [sum(l >= m for l in degrees_in) for m in range(self.mmax + 1)]
        self.receivers = [sum(L >= m for L in degrees_out) for m in range(self.mmax + 1)]
        self.frame_in, self.frame_out = (
            n[0] + 2 * sum(n[1:]) for n in (self.senders, self.receivers)
        )
        paths = sum(a * b for a, b in zip(self.senders, self.receivers))
        self.weight_numel = paths * channels

        # Messages of degree L have only the orders that the features have.
        norm = []
        for L in degrees_out:
            couplings = sum(l >= abs(m) for l in degrees_in for m in range(-L, L + 1))
            if couplings == 0:
                raise ValueError(
                    f"no coupling of {self.irreps_in} to degree {L} in irreps_out {self.irreps_out}"
                )
            norm.append(((2 * L + 1) / couplings) ** 0.5)

        self.direction = 0
        starts = np.cumsum([0] + [2 * l + 1 for l in degrees_edge]).tolist()
        if self.scalar:
            # message[LM, L'] = delta_LL' Y_LM / sqrt(2L+1) * n_L
            table = np.zeros((starts[-1], self.dim_out, len(degrees_out)))
            row = 0
            for k, L in enumerate(degrees_out):
                begin = starts[degrees_edge.index(L)]
                for i in range(2 * L + 1):
                    table[begin + i, row + i, k] = norm[k] / np.sqrt(2 * L + 1)
                row += 2 * L + 1
            self.register_table("to_frame", np.zeros((0, 0)))
            self.register_table("from_frame", table.reshape(starts[-1], -1))
            self.rotation = EdgeRotation(0, 0)
        else:
            self.direction = starts[degrees_edge.index(1)]
            self.rotation = EdgeRotation(max(degrees_in + degrees_out), self.mmax)
            self.register_table(
                "to_frame", self._frame(degrees_in, [1.0] * len(degrees_in), self.senders)
            )
            self.register_table("from_frame", self._frame(degrees_out, norm, self.receivers))

    def _frame(self, degrees, factors, counts) -> np.ndarray:
        """Table from all entries of D^0, D^1, ... to a matrix ``[components, frame rows]``.

        Rows of the frame are ordered by ``|m|``, then by degree, then +m and -m.
        """
        widths = [2 * min(l, self.mmax) + 1 for l in range(self.rotation.lmax + 1)]
        entry = np.cumsum([0] + [(2 * l + 1) * k for l, k in enumerate(widths)])
        begin = np.cumsum([0] + [2 * l + 1 for l in degrees])
        table = np.zeros((entry[-1], begin[-1], counts[0] + 2 * sum(counts[1:])))
        row = 0
        for m in range(self.mmax + 1):
            for l, start, factor in zip(degrees, begin, factors):
                if l < m:
                    continue
                for column in range(2 * m - 1, 2 * m + 1) if m else (0,):
                    for i in range(2 * l + 1):
                        table[entry[l] + i * widths[l] + column, start + i, row] = factor
                    row += 1
        return table.reshape(entry[-1], -1)

    def forward(
        self,
        node_feats: torch.Tensor,
        edge_attrs: torch.Tensor,
        weights: torch.Tensor,
        edge_index: torch.Tensor,
    ) -> torch.Tensor:
        check_edges(
            node_feats,
            edge_attrs,
            weights,
            edge_index,
            self.channels * sum(self.dims_in),
            self.dim_edge,
            self.weight_numel,
        )
        x = channels_last(node_feats, self.channels, self.dims_in)
        weights = weights.view(-1, self.weight_numel // self.channels, self.channels)
        if self.scalar:
            entries = edge_attrs
        else:
            # Component-normalised harmonics of degree 1 are sqrt(3) times the direction.
            directions = edge_attrs[:, self.direction : self.direction + 3] / 3**0.5
            entries = torch.cat([d.flatten(1) for d in self.rotation(directions)], dim=-1)
        return flat(self._sum(x, entries, weights, edge_index), self.dims_out)

    def _sum(
        self,
        x: torch.Tensor,
        entries: torch.Tensor,
        weights: torch.Tensor,
        edge_index: torch.Tensor,
    ) -> torch.Tensor:
        # Not one condition: TorchScript compiles the right-hand side of `and`.
        if not torch.jit.is_scripting():  # noqa: SIM102
            if self._is_large(weights):
                return self._sum_blocks(x, entries, weights, edge_index)
        messages = self._messages(x.index_select(0, edge_index[0]), entries, weights)
        out = torch.zeros([x.shape[0], self.dim_out, self.channels], dtype=x.dtype, device=x.device)
        return out.index_add(0, edge_index[1], messages)

    @torch.jit.unused
    def _is_large(self, weights: torch.Tensor) -> bool:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return False
        return weights.shape[0] * self.dim_out * self.channels > LARGE

    @torch.jit.unused
    def _sum_blocks(
        self,
        x: torch.Tensor,
        entries: torch.Tensor,
        weights: torch.Tensor,
        edge_index: torch.Tensor,
    ) -> torch.Tensor:
        return sum_messages(self._messages, x, entries, weights, edge_index)

    def _messages(
        self, x: torch.Tensor, entries: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Messages ``[edges, components, channels]`` of features of the senders."""
        edges = x.shape[0]
        from_frame = (entries @ self.from_frame).view(edges, self.dim_out, self.frame_out)
        if self.scalar:
            return from_frame @ (weights * x)  # ejl,elc->ejc
        to_frame = (entries @ self.to_frame).view(edges, x.shape[1], self.frame_in)
        x = to_frame.transpose(1, 2) @ x  # eir,eic->erc
        parts: List[torch.Tensor] = []
        row, path = 0, 0
        for m in range(self.mmax + 1):
            a, b, signs = self.senders[m], self.receivers[m], 1 if m == 0 else 2
            h = x[:, row : row + a * signs].view(edges, a, 1, signs, self.channels)
            w = weights[:, path : path + a * b].view(edges, a, b, 1, self.channels)
            local = h[:, 0] * w[:, 0]
            for k in range(1, a):
                local = torch.addcmul(local, h[:, k], w[:, k])
            parts.append(local.flatten(1, 2))
            row += a * signs
            path += a * b
        return from_frame @ torch.cat(parts, dim=1)  # ejr,erc->ejc

    def extra_repr(self) -> str:
        return (
            f"{self.irreps_in} x {self.irreps_edge} -> {self.irreps_out}, "
            f"weights={self.weight_numel}"
        )
