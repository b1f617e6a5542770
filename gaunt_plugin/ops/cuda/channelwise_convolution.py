"""Triton kernels of ``gaunt::channelwise_convolution``, unrolled for a layer.

Per edge, channel by channel (ops/channelwise_convolution.py has the formula): features are
coupled by the matrix ``A = sum_m2 C_m2 Y_m2`` of a path, which is one for all channels. Blocks of
features may have different numbers of channels: each has kernels of its own.
"""

from __future__ import annotations

import functools
import itertools

import torch

from gaunt_plugin.ops.channelwise_convolution import PathConvolution, Term
from gaunt_plugin.ops.cuda import edge_sums, launch
from gaunt_plugin.ops.cuda.expressions import Expressions

# Numbers of the result that kernels sum at a time.
SUMMED = 48


class Edge(edge_sums.Edge):
    """Some paths of a block of features; every path has harmonics ``E`` of its own."""

    def __init__(self, layer: Paths, block: int, paths: list[int], suffix: str) -> None:
        self.expressions = E = Expressions()
        dim, self.channels = layer.blocks[block]
        self.entries, self.suffix = layer.dim_edge, suffix
        self.x, self.w = E.inputs("x", dim), E.inputs("w", len(paths))
        self.D, self.early = [], []
        self.E = E.inputs("E", self.entries * len(paths))
        self.out, self.blocks, results = [], [], []
        for i, p in enumerate(paths):
            _, first, stride, count = layer.paths[p]
            own = range(self.entries * i, self.entries * (i + 1))
            message = [E.constant(0)] * count
            # The coefficients of a pair of components together.
            for (m3, m1), terms in itertools.groupby(
                sorted(layer.terms[p], key=lambda t: (t[2], t[0])), key=lambda t: (t[2], t[0])
            ):
                A = E.sum(value * self.E[own[m2]] for _, m2, _, value in terms)
                message[m3] = message[m3] + A * self.x[m1]
            self.out += [self.w[i] * value for value in message]
            self.blocks.append(([i], own))
            results += [first + m3 * stride for m3 in range(count)]
        self.g = E.inputs("g", len(self.out))
        begin = sum(d * c for d, c in layer.blocks[:block])
        self.sizes = {"x": str(layer.dim_in), "w": str(layer.numel), "g": str(layer.dim_out)}
        self.places = {
            "x": [str(begin + m * self.channels) for m in range(dim)],
            "w": [str(layer.weights[p]) for p in paths],
            "g": [str(place) for place in results],
        }


class Paths:
    """What the constants say, see :class:`~gaunt_plugin.ops.PathConvolution`."""

    def __init__(
        self,
        blocks: tuple[tuple[int, int], ...],
        dim_edge: int,
        dim_out: int,
        paths: tuple[tuple[int, int, int, int], ...],
        terms: tuple[tuple[Term, ...], ...],
    ) -> None:
        self.blocks, self.dim_edge, self.dim_out = blocks, dim_edge, dim_out
        self.paths, self.terms = paths, terms
        self.dim_in = sum(dim * channels for dim, channels in blocks)
        *self.weights, self.numel = itertools.accumulate(
            (blocks[source][1] for source, *_ in paths), initial=0
        )

    def receivers(self) -> list[Edge]:
        """Of each block its paths, so many at a time that sums fit into registers."""
        found: list[tuple[int, list[int]]] = []
        for block, paths in self._of_blocks():
            room = 0
            for p in paths:
                count = self.paths[p][3]
                if room < count:
                    found.append((block, []))
                    room = SUMMED
                found[-1][1].append(p)
                room -= count
        return [Edge(self, *part, f"_{k}") for k, part in enumerate(found)]

    def senders(self) -> list[Edge]:
        return [Edge(self, *part, f"_{k}") for k, part in enumerate(self._of_blocks())]

    def _of_blocks(self) -> list[tuple[int, list[int]]]:
        found: dict[int, list[int]] = {}
        for p, (source, *_) in enumerate(self.paths):
            found.setdefault(source, []).append(p)
        return sorted(found.items())


@functools.lru_cache(maxsize=64)
def layer_of(numbers: tuple[int, ...], values: tuple[float, ...]) -> edge_sums.Layer:
    """What is done for an edge."""
    paths = Paths(*PathConvolution.arguments(list(numbers), list(values)))
    _check(paths, len(numbers), len(values))
    sizes = paths.dim_in, paths.numel, paths.dim_out
    return edge_sums.Layer("harmonics", sizes, paths.receivers(), paths.senders(), False)


def _check(layer: Paths, numbers: int, values: int) -> None:
    """Whether the constants are a layer's: kernels would use other memory than the arrays'."""
    terms = sum(map(len, layer.terms))
    expected = 4 + 2 * len(layer.blocks) + 5 * len(layer.paths) + 3 * terms
    if (numbers, values) != (expected, terms):
        raise ValueError("too many constants, or too few")
    if min(layer.dim_edge, layer.dim_out, *itertools.chain(*layer.blocks)) < 1:
        raise ValueError("sizes must be at least 1")
    results: list[int] = []
    for (source, first, stride, count), of_path in zip(layer.paths, layer.terms):
        dim, channels = layer.blocks[source]
        limits = dim, layer.dim_edge, count
        if source < 0 or any(not 0 <= m < n for t in of_path for m, n in zip(t, limits)):
            raise ValueError("a coefficient of no component")
        if count * channels > layer.dim_out:
            break
        for m in range(count):
            results += range(first + m * stride, first + m * stride + channels)
    if sorted(results) != list(range(layer.dim_out)):
        raise ValueError("the paths must fill the result, each place once")


def run(number: int, constants: torch.Tensor, arguments: launch.Arguments) -> None:
    """A pass; the arrays are those of operators.h."""
    layer = launch.constants_of(constants, layer_of)
    edge_sums.run(number, layer, "channelwise_convolution", arguments)
