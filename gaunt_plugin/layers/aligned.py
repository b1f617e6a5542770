"""Convolution over edges in the frame in which the filter has only order m = 0."""

from __future__ import annotations

import functools
from typing import List, Optional, Tuple

import numpy as np
import torch

from gaunt_plugin.kernels.convolution import ConvolutionKernel, Part
from gaunt_plugin.kernels.fused import fused
from gaunt_plugin.kernels.radial import STORED
from gaunt_plugin.layers._edge_blocks import LARGE, sum_messages
from gaunt_plugin.layers._edges import (
    channels_last,
    check_edges,
    edge_degrees,
    flat,
)
from gaunt_plugin.layers._irreps import Irreps, check_channels, functions_of
from gaunt_plugin.layers._tables import TableModule
from gaunt_plugin.layers._tracing import calls_kernel, has_kernel, is_traced
from gaunt_plugin.layers.rotation import EdgeRotation, entry_layout


class AlignedConvolution(TableModule):
    r"""Product of node features with harmonics of the edge, in the frame whose polar axis it is.

    Multiplication by a function that is symmetric about the edge keeps the order m. With
    ``B = D(R)^T A_j`` the features in the edge's frame, and ``J`` the quarter turn
    ``(J B)_m = B_-m, (J B)_-m = -B_m`` (m > 0), every coupling to ``l3`` is

    .. math:: M_{i,l_3} = \sum_j D^{l_3}(R) \, \Big[ n_{l_3} \Big( \sum_{l_1}
       w_{ij,l_1 l_3 |m|}\, B_{l_1 m} + \sum_{l_1'} w_{ij,l_1' l_3 |m|}\, (J B_{l_1'})_m
       \Big) \Big]_m

    where ``l1`` runs over the features of the same kind (natural parity ``(-1)^l`` or pseudo
    parity ``-(-1)^l``) as ``l3``: the couplings with ``l1 + l2 + l3`` even; and ``l1'`` over those
    of the other kind: the antisymmetric couplings, ``l1' + l2 + l3`` odd, which m = 0 does not
    have. One radial weight per edge, channel and (l1, l3, ``|m|``) makes these free weights on
    all couplings that Clebsch-Gordan has, for l2 up to ``l1 + l3``. ``n_L`` makes a message of one
    edge have unit variance for unit normal features and weights. Scalar features skip the frame:
    there M is a sum of harmonics.

    Args:
        irreps_in: node features, one multiplicity, each irrep once.
        irreps_edge: harmonics of the edges, multiplicity 1, natural parity; ``1o`` gives the
            direction and, for scalar features, degrees up to those of ``irreps_out`` are needed.
        irreps_out: same multiplicity as ``irreps_in``, each irrep once.

    Attributes:
        weight_numel: weights per edge, ordered ``[|m|, kind of l3, l1, l3, channel]``.

    Shapes:
        As :class:`~gaunt_plugin.layers.GauntConvolution`. Compiled kernels never hold a large
        product ``weights @ mixing`` for all edges.

    Raises:
        ValueError: irreps or shapes that don't fit.

    Source: Luo, Chen, Krishnapriyan, ICLR 2024, arXiv 2401.10216, section on equivariant
    convolutions; Passaro, Zitnick, ICML 2023, arXiv 2302.03655.
    """

    kernel_in_programs, __constants__ = False, ["kernel_in_programs"]

    def __init__(
        self,
        irreps_in: Irreps | str,
        irreps_edge: Irreps | str,
        irreps_out: Irreps | str,
    ) -> None:
        super().__init__()
        self.irreps_in = Irreps(irreps_in)
        self.irreps_edge = Irreps(irreps_edge)
        self.irreps_out = Irreps(irreps_out)
        channels, inputs = functions_of(irreps_in, "irreps_in")
        channels_out, outputs = functions_of(irreps_out, "irreps_out")
        degrees_edge = edge_degrees(irreps_edge)
        check_channels(irreps_in, channels, irreps_out, channels_out)
        self.scalar = all(l == 0 for l, _ in inputs)
        needed = sorted({L for L, _ in outputs}) if self.scalar else [1]
        if not set(needed) <= set(degrees_edge):
            raise ValueError(
                f"irreps_edge must contain degrees {needed} for {self.irreps_in} -> "
                f"{self.irreps_out}, got {self.irreps_edge}"
            )
        self.channels = channels
        self.dim_edge = self.irreps_edge.dim
        self.dims_in = [2 * l + 1 for l, _ in inputs]
        self.dims_out = [2 * L + 1 for L, _ in outputs]
        self.dim_out = sum(self.dims_out)

        norm = _norms(inputs, outputs)
        if 0.0 in norm:
            L, pseudo = outputs[norm.index(0.0)]
            raise ValueError(
                f"no coupling of {self.irreps_in} to {'pseudo ' if pseudo else ''}degree {L} "
                f"in irreps_out {self.irreps_out}"
            )

        self.mmax = min(max(l for l, _ in inputs), max(L for L, _ in outputs))
        # Per |m|: features and outputs of both kinds, natural and pseudo, that have this order.
        self.senders: List[List[int]] = _counts(inputs, self.mmax)
        self.receivers: List[List[int]] = _counts(outputs, self.mmax)
        self.frame_in, self.frame_out = (
            sum(counts[0]) + 2 * sum(map(sum, counts[1:]))
            for counts in (self.senders, self.receivers)
        )
        paths = sum(
            len(sources_of(inputs, pseudo, m))
            for L, pseudo in outputs
            for m in range(min(L, self.mmax) + 1)
        )
        self.weight_numel = paths * channels

        self.direction = 0
        starts = np.cumsum([0] + [2 * l + 1 for l in degrees_edge]).tolist()
        if self.scalar:
            # message[LM, path] = Y_LM / sqrt(2L+1) * n_L on the path's L, natural ones first
            table = np.zeros((starts[-1], self.dim_out, len(outputs)))
            begin = np.cumsum([0] + self.dims_out)
            order = sorted(range(len(outputs)), key=lambda k: outputs[k][1])
            for path, k in enumerate(order):
                L = outputs[k][0]
                for i in range(2 * L + 1):
                    row = starts[degrees_edge.index(L)] + i
                    table[row, begin[k] + i, path] = norm[k] / np.sqrt(2 * L + 1)
            kinds = [pseudo for _, pseudo in inputs]
            self.register_table("sender", np.array([kinds.index(outputs[k][1]) for k in order]))
            self.register_table("to_frame", np.zeros((0, 0)))
            self.register_table("from_frame", table.reshape(starts[-1], -1))
            self.rotation = EdgeRotation(0, 0)
        else:
            self.direction = starts[degrees_edge.index(1)]
            self.rotation = EdgeRotation(max(l for l, _ in inputs + outputs), self.mmax)
            self.register_table("sender", np.zeros(0, dtype=np.int64))
            self.register_table("to_frame", self._frame(inputs, [1.0] * len(inputs)))
            self.register_table("from_frame", self._frame(outputs, norm))

    def __setstate__(self, state):
        super().__setstate__(state)
        if "sender" not in self._buffers:
            # Pickled when only natural parity was known: the same weights, other tables.
            table, training = self.from_frame, self.training
            fresh = AlignedConvolution(self.irreps_in, self.irreps_edge, self.irreps_out)
            self.__dict__ = fresh.to(table.device, table.dtype).train(training).__dict__

    def _frame(self, functions: List[Tuple[int, bool]], factors: List[float]) -> np.ndarray:
        """Table from all entries of D^0, D^1, ... to a matrix ``[components, frame rows]``.

        Rows of the frame are ordered by ``|m|``, kind, irrep, then +m and -m.
        """
        widths, entry = entry_layout(self.rotation.lmax, self.mmax)
        begin = np.cumsum([0] + [2 * l + 1 for l, _ in functions])
        rows = []  # per row: irrep and its column of D
        for m in range(self.mmax + 1):
            for kind in (False, True):
                for k, (l, pseudo) in enumerate(functions):
                    if l >= m and pseudo == kind:
                        rows += [(k, c) for c in ((2 * m - 1, 2 * m) if m else (0,))]
        table = np.zeros((entry[-1], begin[-1], len(rows)))
        for row, (k, column) in enumerate(rows):
            l = functions[k][0]
            for i in range(2 * l + 1):
                table[entry[l] + i * widths[l] + column, begin[k] + i, row] = factors[k]
        return table.reshape(entry[-1], -1)

    def forward(
        self,
        node_feats: torch.Tensor,
        edge_attrs: torch.Tensor,
        weights: torch.Tensor,
        edge_index: torch.Tensor,
        mixing: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        check_edges(
            node_feats,
            edge_attrs,
            weights,
            edge_index,
            self.channels * sum(self.dims_in),
            self.dim_edge,
            self.weight_numel,
            mixing,
        )
        x = channels_last(node_feats, self.channels, self.dims_in)
        if self.scalar:
            entries = edge_attrs
        else:
            # Component-normalised harmonics of degree 1 are sqrt(3) times the direction.
            directions = edge_attrs[:, self.direction : self.direction + 3] / 3**0.5
            entries = self.rotation.entries(directions)
        factors = [weights] if mixing is None else [weights, mixing]
        return flat(self._sum(x, entries, factors, edge_index), self.dims_out)

    def _sum(
        self,
        x: torch.Tensor,
        entries: torch.Tensor,
        factors: List[torch.Tensor],
        edge_index: torch.Tensor,
    ) -> torch.Tensor:
        """The sum over edges with weights that are the product of the factors, one or two."""
        if self.kernel_in_programs:  # noqa: SIM102 (a constant: TorchScript leaves out the rest)
            if calls_kernel(x):
                return torch.ops.gaunt.fused(
                    "convolution" if len(factors) == 1 else "radial_convolution",
                    self.program,
                    [x.shape[0], edge_index.shape[1], self.channels],
                    [x.shape[0], self.dim_out, self.channels],
                    edge_index,
                    [x, entries] + factors,
                )
        if not torch.jit.is_scripting():
            if has_kernel(x, entries, *factors, edge_index):
                return self._run_kernel(x, entries, factors, edge_index)
            if self._is_large(edge_index):
                weights = self._weights(factors)
                return sum_messages(self._messages, x, entries, weights, edge_index)
        return self._sum_plain(x, entries, factors, edge_index)

    def _weights(self, factors: List[torch.Tensor]) -> torch.Tensor:
        weights = factors[0] if len(factors) == 1 else factors[0] @ factors[1]
        return weights.view(-1, self.weight_numel // self.channels, self.channels)

    def _sum_plain(
        self,
        x: torch.Tensor,
        entries: torch.Tensor,
        factors: List[torch.Tensor],
        edge_index: torch.Tensor,
    ) -> torch.Tensor:
        weights = self._weights(factors)
        messages = self._messages(x.index_select(0, edge_index[0]), entries, weights)
        out = torch.zeros([x.shape[0], self.dim_out, self.channels], dtype=x.dtype, device=x.device)
        return out.index_add(0, edge_index[1], messages)

    @torch.jit.unused
    def _run_kernel(
        self,
        x: torch.Tensor,
        entries: torch.Tensor,
        factors: List[torch.Tensor],
        edge_index: torch.Tensor,
    ) -> torch.Tensor:
        if len(factors) == 2 and edge_index.shape[1] * self.weight_numel < STORED:
            factors = [self._weights(factors)]
        kernel = self.make_kernel().on(edge_index, len(factors) == 2)
        plain = lambda x, entries, *w: self._sum_plain(x, entries, w, edge_index)  # noqa: E731
        return fused(plain, kernel, x, entries, *factors)

    @torch.jit.unused
    def make_kernel(self) -> ConvolutionKernel:
        """Of :mod:`gaunt_plugin.kernels`."""
        return _kernel(self.irreps_in, self.irreps_edge, self.irreps_out)

    def _is_large(self, edge_index: torch.Tensor) -> bool:
        if is_traced() or not torch.is_grad_enabled():
            return False
        return edge_index.shape[1] * self.dim_out * self.channels > LARGE

    def _messages(
        self, x: torch.Tensor, entries: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Messages ``[edges, components, channels]`` of features of the senders."""
        edges = x.shape[0]
        from_frame = (entries @ self.from_frame).view(edges, self.dim_out, self.frame_out)
        if self.scalar:
            if x.shape[1] > 1:
                x = x.index_select(1, self.sender)
            return from_frame @ (weights * x)  # ejl,elc->ejc
        to_frame = (entries @ self.to_frame).view(edges, x.shape[1], self.frame_in)
        x = to_frame.transpose(1, 2) @ x  # eir,eic->erc
        # Split and unbind: the backward pass of each slice would fill a tensor for all edges.
        features = x.split(self._frame_rows(), dim=1)
        of_paths = weights.split(self._path_counts(), dim=1)
        parts: List[torch.Tensor] = []
        for m in range(self.mmax + 1):
            signs = 1 if m == 0 else 2
            natural, pseudo = features[2 * m], features[2 * m + 1]
            natural = natural.view(edges, self.senders[m][0], signs, self.channels)
            pseudo = pseudo.view(edges, self.senders[m][1], signs, self.channels)
            for kind, b in enumerate(self.receivers[m]):
                same, other = (natural, pseudo) if kind == 0 else (pseudo, natural)
                if b > 0:
                    sources = same
                    if m > 0 and other.shape[1] > 0:
                        plus, minus = other.unbind(2)
                        sources = torch.cat([same, torch.stack([minus, -plus], dim=2)], dim=1)
                    count = sources.shape[1]
                    w = of_paths[2 * m + kind].view(edges, count, b, 1, self.channels).unbind(1)
                    h = sources.unsqueeze(2).unbind(1)
                    if count > 0:
                        local = h[0] * w[0]
                    else:  # an order that no feature reaches
                        local = x.new_zeros([edges, b, signs, self.channels])
                    for k in range(1, count):
                        local = torch.addcmul(local, h[k], w[k])
                    parts.append(local.flatten(1, 2))
        return from_frame @ torch.cat(parts, dim=1)  # ejr,erc->ejc

    def _frame_rows(self) -> List[int]:
        """Per ``|m|`` and kind, the rows of the frame that features have."""
        rows: List[int] = []
        for m, both in enumerate(self.senders):
            signs = 1 if m == 0 else 2
            rows += [signs * both[0], signs * both[1]]
        return rows

    def _path_counts(self) -> List[int]:
        """Per ``|m|`` and kind of l3, the number of its paths."""
        counts: List[int] = []
        for m, both in enumerate(self.receivers):
            for kind, receivers in enumerate(both):
                turned = self.senders[m][1 - kind] if m > 0 else 0
                counts.append(receivers * (self.senders[m][kind] + turned))
        return counts

    def extra_repr(self) -> str:
        return (
            f"{self.irreps_in} x {self.irreps_edge} -> {self.irreps_out}, "
            f"weights={self.weight_numel}"
        )


def _norms(inputs: List[Tuple[int, bool]], outputs: List[Tuple[int, bool]]) -> List[float]:
    """n_L of each output; 0 if no feature reaches it."""
    norms = []
    for L, pseudo in outputs:
        # Messages of degree L have only the orders that the features have.
        couplings = sum(len(sources_of(inputs, pseudo, abs(m))) for m in range(-L, L + 1))
        norms.append(((2 * L + 1) / couplings) ** 0.5 if couplings else 0.0)
    return norms


@functools.cache
def _kernel(irreps_in: Irreps, irreps_edge: Irreps, irreps_out: Irreps) -> ConvolutionKernel:
    _, inputs = functions_of(irreps_in, "irreps_in")
    _, outputs = functions_of(irreps_out, "irreps_out")
    mmax = min(max(l for l, _ in inputs), max(L for L, _ in outputs))
    norm = _norms(inputs, outputs)
    if all(l == 0 for l, _ in inputs):
        # D has one column: Y_L / sqrt(2L+1)
        degrees = edge_degrees(irreps_edge)
        starts = np.cumsum([0] + [2 * l + 1 for l in degrees]).tolist()
        norm = [n / (2 * L + 1) ** 0.5 for n, (L, _) in zip(norm, outputs)]
        begins = [starts[degrees.index(L)] for L, _ in outputs]
        parts = [Part([1] * len(inputs), [-1] * len(inputs), [1] * len(inputs))]
        parts.append(Part([2 * L + 1 for L, _ in outputs], begins, [1] * len(outputs)))
    else:
        columns, starts = entry_layout(max(l for l, _ in inputs + outputs), mmax)
        parts = [
            Part(
                [2 * l + 1 for l, _ in functions],
                [starts[l] for l, _ in functions],
                [columns[l] for l, _ in functions],
            )
            for functions in (inputs, outputs)
        ]
    paths, weight = [], 0
    for m in range(mmax + 1):
        for kind in (False, True):
            receivers = [k for k, (L, pseudo) in enumerate(outputs) if L >= m and pseudo == kind]
            # Natural and pseudo features of this order: those of the same kind come first.
            sources = [(k, pseudo != kind) for k, (l, pseudo) in enumerate(inputs) if l >= m]
            sources = sorted((s for s in sources if m > 0 or not s[1]), key=lambda s: s[1])
            for i, receiver in enumerate(receivers):
                of_source = range(
                    weight + i, weight + len(receivers) * len(sources), len(receivers)
                )
                paths.append((m, receiver, [(w, *s) for w, s in zip(of_source, sources)]))
            weight += len(receivers) * len(sources)
    return ConvolutionKernel(*parts, norm, starts[-1], paths)


def sources_of(inputs: List[Tuple[int, bool]], pseudo: bool, m: int) -> List[int]:
    """Degrees of the features that reach order m of an output of this kind."""
    return [l for l, kind in inputs if l >= m and (kind == pseudo or m > 0)]


def _counts(functions: List[Tuple[int, bool]], mmax: int) -> List[List[int]]:
    """Per ``|m|``, the number of natural and of pseudo functions that have it."""
    return [
        [sum(l >= m and pseudo == kind for l, pseudo in functions) for kind in (False, True)]
        for m in range(mmax + 1)
    ]
