"""Triton kernels of ``gaunt::convolution``, unrolled for a layer.

Per edge from j to i, channel by channel (ops/convolution.py has the formula):
``B = D^T x_j``, ``local_r = n_r sum_p w_p B_source(p)``, ``out_i += D local``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from gaunt_plugin.ops.convolution import EdgeConvolution, sources_of
from gaunt_plugin.ops.cuda import edge_sums, launch
from gaunt_plugin.ops.cuda.expressions import Expressions, Value
from gaunt_plugin.ops.edge_frames import frame_layout


class Edge(edge_sums.Edge):
    """Entries of the frame are ``D`` where features go into it and ``E`` where messages come out.

    There is a block per irrep of the result.
    """

    pauses = True

    def __init__(
        self,
        inputs: Sequence[tuple[int, bool]],
        outputs: Sequence[tuple[int, bool]],
        degrees: Sequence[int],
    ) -> None:
        self.expressions = E = Expressions()
        lmax_in, lmax_out = (max(l for l, _ in irreps) for irreps in (inputs, outputs))
        mmax = min(lmax_in, lmax_out)
        scalar = lmax_in == 0
        if scalar:
            begin, self.entries = {}, 0
            for l in degrees:
                begin[l] = self.entries
                self.entries += 2 * l + 1
        else:
            begin = frame_layout(max(lmax_in, lmax_out), mmax)[1]
            self.entries = begin[-1]
        columns = lambda l: 2 * min(l, mmax) + 1  # noqa: E731
        self.dim_in, self.dim_out = (
            sum(2 * l + 1 for l, _ in irreps) for irreps in (inputs, outputs)
        )
        self.x = E.inputs("x", self.dim_in)
        self.D, self.E = E.inputs("D", self.entries), E.inputs("E", self.entries)
        # Features in the frame: per irrep its columns.
        B, at = [], 0
        for l, _ in inputs:
            x = self.x[at : at + 2 * l + 1]
            at += 2 * l + 1
            if scalar:
                B.append(x)
                continue
            entry = lambda i, c, l=l: self.D[begin[l] + i * columns(l) + c]  # noqa: E731
            B.append([E.sum(entry(i, c) * a for i, a in enumerate(x)) for c in range(columns(l))])
        self.early = [value for columns_of in B for value in columns_of]
        weights_of, self.paths = _weights(inputs, outputs, mmax)
        self.w = E.inputs("w", self.paths)
        self.out: list[Value] = []
        self.blocks: list[tuple[list[int], list[int]]] = []
        for k, (L, kind) in enumerate(outputs):
            couplings = sum(len(sources_of(list(inputs), kind, abs(m))) for m in range(-L, L + 1))
            norm = ((1 if scalar else 2 * L + 1) / max(1, couplings)) ** 0.5
            local = [E.constant(0)] * (1 if scalar else columns(L))
            for m, s, p in weights_of[k]:
                w, b, turned = self.w[p], B[s], inputs[s][1] != kind
                if m == 0:
                    local[0] = local[0] + w * b[0]
                    continue
                plus, minus = 2 * m - 1, 2 * m
                source_plus, source_minus = (b[minus], -b[plus]) if turned else (b[plus], b[minus])
                local[plus] = local[plus] + w * source_plus
                local[minus] = local[minus] + w * source_minus
            local = [norm * value for value in local]
            width = len(local)
            for i in range(2 * L + 1):
                row = begin[L] + i * width
                self.out.append(E.sum(self.E[row + c] * f for c, f in enumerate(local)))
            entries = range(begin[L], begin[L] + (2 * L + 1) * width)
            self.blocks.append(([p for _, _, p in weights_of[k]], list(entries)))
        self.g = E.inputs("g", self.dim_out)
        count = {"x": self.dim_in, "w": self.paths, "g": self.dim_out}
        self.sizes = {letter: f"{n} * C" for letter, n in count.items()}
        self.places = {letter: [f"{k} * C" for k in range(n)] for letter, n in count.items()}


def _weights(inputs, outputs, mmax: int) -> tuple[list[list[tuple[int, int, int]]], int]:
    """Per irrep of the result, order m, irrep of the features and number of each weight; their sum.

    For each m and kind of the result, features of the same kind come first.
    """
    found: list[list[tuple[int, int, int]]] = [[] for _ in outputs]
    paths = 0
    for m in range(mmax + 1):
        for kind in (False, True):
            receivers = [k for k, (L, p) in enumerate(outputs) if L >= m and p == kind]
            senders = [
                k
                for turned in ((False, True) if m else (False,))
                for k, (l, p) in enumerate(inputs)
                if l >= m and (p != kind) == turned
            ]
            for s in senders:
                for k in receivers:
                    found[k].append((m, s, paths))
                    paths += 1
    return found, paths


@functools.lru_cache(maxsize=64)
def layer_of(numbers: tuple[int, ...], values: tuple[float, ...]) -> edge_sums.Layer:
    """What is done for an edge."""
    irreps_in, irreps_out, degrees = EdgeConvolution.arguments(list(numbers), list(values))
    count = 3 + 2 * (len(irreps_in) + len(irreps_out)) + numbers[-len(degrees) - 1]
    if values or len(numbers) != count:
        raise ValueError("too many constants, or too few")
    edge = Edge(irreps_in, irreps_out, degrees)
    sizes = edge.dim_in, edge.paths, edge.dim_out
    return edge_sums.Layer("frames", sizes, [edge], [edge], per_channel=True)


def run(number: int, constants: torch.Tensor, arguments: launch.Arguments) -> None:
    """A pass; the arrays are those of operators.h."""
    layer = launch.constants_of(constants, layer_of)
    edge_sums.run(number, layer, "convolution", arguments)
