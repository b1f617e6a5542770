"""Triton kernels of ``gaunt::powers``, unrolled for a layer.

A program has one node and a block of channels; a thread has a channel, whose features, weights and
sums stay in registers while it goes through the antipodal pairs of nodes of the quadrature. With
``f = e + o`` at one node of a pair, ``f = e - o`` at the other, and ``f^n = s_n + d_n`` likewise,
outputs of even degree need ``s_n`` and those of odd degree ``d_n`` (cpu/powers.cpp). A result
belongs to one thread, so that it doesn't depend on the launch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from gaunt_plugin.ops.cuda import launch, source
from gaunt_plugin.ops.cuda.expressions import Expressions, Value, statements, tangent
from gaunt_plugin.ops.per_tensor import PerTensor

# Registers of a thread for what is kept through the quadrature, of 255.
KEPT = 160
_KERNEL = """

@triton.jit
def {name}(table, {pointers}, C: tl.constexpr, REAL: tl.constexpr, BLOCK: tl.constexpr):
    node = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m = c < C
    of_x = (node * C + c) * {dim_in}
    of_out = (node * C + c) * {dim_out}
{load}
    for view in range(0, {rank}, {views}):
        of_w = (node * {rank} + view) * {terms} * C + c
        of_u = (node * {rank} + view) * {degrees} * C + c
{load_views}
        for pair in range({pairs}):
            row = table + pair * {row}
{body}
{store_views}
{store}
"""


@dataclass(frozen=True)
class Layout:
    """What the constants say.

    Attributes:
        terms: order n, index of the output's degree and factor t of each weight w.
        functions: per function on the grid, its components; degrees apart where there are weights
            u, else even and odd ones together.
    """

    degrees_in: tuple[int, ...]
    degrees_out: tuple[int, ...]
    correlation: int
    weighted: bool
    pairs: int
    terms: tuple[tuple[int, int, float], ...]
    functions: tuple[tuple[int, ...], ...]

    @property
    def dim_in(self) -> int:
        return sum(2 * l + 1 for l in self.degrees_in)

    @property
    def dim_out(self) -> int:
        return sum(2 * l + 1 for l in self.degrees_out)

    @property
    def weights_in(self) -> int:
        return len(self.degrees_in) if self.weighted else 0

    def is_odd(self, function: int) -> bool:
        degrees = [l for l in self.degrees_in for _ in range(2 * l + 1)]
        return degrees[self.functions[function][0]] % 2 == 1


@functools.lru_cache(maxsize=64)
def layout_of(
    numbers: tuple[int, ...], values: tuple[float, ...]
) -> tuple[Layout, tuple[float, ...]]:
    """The layout, and harmonics and weighted harmonics ``[pairs, dim_in + dim_out]``."""
    count_in = numbers[0]
    degrees_in, rest = numbers[1 : 1 + count_in], numbers[1 + count_in :]
    degrees_out, rest = rest[1 : 1 + rest[0]], rest[1 + rest[0] :]
    correlation, weighted, pairs = rest
    scale, values = values[:count_in], values[count_in:]
    count = (correlation - 1) * len(degrees_out)
    terms = [
        (k // len(degrees_out) + 2, k % len(degrees_out), t) for k, t in enumerate(values[:count])
    ]
    begin = [sum(2 * l + 1 for l in degrees_in[:k]) for k in range(count_in + 1)]
    components = [tuple(range(*begin[k : k + 2])) for k in range(count_in)]
    if weighted:
        functions = components
    else:
        both = [
            sum((c for l, c in zip(degrees_in, components) if l % 2 == parity), ())
            for parity in (0, 1)
        ]
        functions = [c for c in both if c]
    layout = Layout(
        degrees_in,
        degrees_out,
        correlation,
        bool(weighted),
        pairs,
        tuple(term for term in terms if term[2] > 0),
        tuple(functions),
    )
    of_component = [s for s, l in zip(scale, degrees_in) for _ in range(2 * l + 1)]
    harmonics = values[count : count + pairs * layout.dim_in]
    weighted_harmonics = values[count + pairs * layout.dim_in :]
    table: list[float] = []
    for k in range(pairs):
        row = harmonics[k * layout.dim_in : (k + 1) * layout.dim_in]
        table += [y * s for y, s in zip(row, of_component)]
        table += weighted_harmonics[k * layout.dim_out : (k + 1) * layout.dim_out]
    if len(values) != count + pairs * (layout.dim_in + layout.dim_out):
        raise ValueError("too many constants, or too few")
    return layout, tuple(table)


class _Pair:
    """Values of a pair of nodes: parts of the results, to be summed over all pairs."""

    def __init__(self, layout: Layout, views: int) -> None:
        self.expressions = E = Expressions()
        terms, weights_in = len(layout.terms), layout.weights_in
        self.x, self.g = E.inputs("x", layout.dim_in), E.inputs("g", layout.dim_out)
        self.w, self.u = E.inputs("w", views * terms), E.inputs("u", views * weights_in)
        Y, W = E.inputs("Y", layout.dim_in), E.inputs("W", layout.dim_out)
        X = [E.sum(Y[i] * self.x[i] for i in part) for part in layout.functions]
        odd = [layout.is_odd(k) for k in range(len(X))]
        begin = [
            sum(2 * l + 1 for l in layout.degrees_out[:k])
            for k in range(len(layout.degrees_out) + 1)
        ]
        components = [range(*begin[k : k + 2]) for k in range(len(layout.degrees_out))]
        G = [E.sum(W[j] * self.g[j] for j in part) for part in components]
        P = [E.constant(0) for _ in layout.degrees_out]
        gX = [E.constant(0) for _ in X]
        self.of_w, self.of_u = [], []
        for v in range(views):
            u = self.u[v * weights_in : (v + 1) * weights_in] or [E.constant(1)] * len(X)
            e, o = (
                E.sum(a * f for a, f, other in zip(u, X, odd) if other == parity)
                for parity in (False, True)
            )
            s, d = {1: e}, {1: o}
            for n in range(2, layout.correlation + 1):
                s[n] = e * s[n - 1] + o * d[n - 1]
                d[n] = e * d[n - 1] + o * s[n - 1]
            ge = go = E.constant(0)
            for n in range(2, layout.correlation + 1):
                A = B = E.constant(0)
                for k, (order, L, _) in enumerate(layout.terms):
                    if order != n:
                        continue
                    w, is_odd = self.w[v * terms + k], layout.degrees_out[L] % 2
                    power = d[n] if is_odd else s[n]
                    P[L] = P[L] + w * power
                    self.of_w.append(G[L] * power)
                    if is_odd:
                        B = B + w * G[L]
                    else:
                        A = A + w * G[L]
                A, B = n * A, n * B
                ge = ge + A * s[n - 1] + B * d[n - 1]
                go = go + A * d[n - 1] + B * s[n - 1]
            for k, (a, f) in enumerate(zip(u, X)):
                of_function = go if odd[k] else ge
                gX[k] = gX[k] + a * of_function
                if weights_in:
                    self.of_u.append(f * of_function)
        self.out = [W[j] * P[L] for L, part in enumerate(components) for j in part]
        of_x = {i: Y[i] * gX[k] for k, part in enumerate(layout.functions) for i in part}
        self.of_x = [of_x[i] for i in range(layout.dim_in)]

    def along(self, values: list[Value]) -> list[Value]:
        """Derivatives along the directions vx, vw and vu."""
        directions = {
            a: self.expressions.input(f"v{a.arguments[0]}") for a in (*self.x, *self.w, *self.u)
        }
        return tangent(values, directions)


def views_of(layout: Layout, rank: int, number: int, words: int) -> int:
    """How many views are in registers at a time: a divisor of the rank."""
    weights, dims = len(layout.terms) + layout.weights_in, (layout.dim_in, layout.dim_out)
    per_view, rest = (
        (weights, dims[0] + dims[1]),
        (2 * weights, 2 * dims[0] + dims[1]),
        (3 * weights, 3 * dims[0] + 2 * dims[1]),
    )[number]
    fitting = [
        n for n in range(1, rank + 1) if rank % n == 0 and words * (n * per_view + rest) <= KEPT
    ]
    return max(fitting, default=1)


@functools.lru_cache(maxsize=64)
def text_of(layout: Layout, rank: int, words: int) -> str:
    """Source of the three passes, for numbers of so many registers."""
    return source.HEAD + "".join(_kernel(layout, rank, words, number) for number in range(3))


def _kernel(layout: Layout, rank: int, words: int, number: int) -> str:
    views = views_of(layout, rank, number, words)
    pair = _Pair(layout, views)
    terms, weights_in = len(layout.terms), layout.weights_in
    factors = [t for _, _, t in layout.terms] * views
    zeros = "tl.zeros([BLOCK], REAL)"
    if number == launch.FORWARD:
        results = {"out": pair.out}
    else:
        results = {"of_w": pair.of_w, "of_u": pair.of_u, "of_x": pair.of_x}
    if number == launch.DOUBLE_BACKWARD:
        results["out"] = pair.out
        results = {name: pair.along(values) for name, values in results.items() if values}
    sums = [
        (value, f"{name}_{k} += {{}}")
        for name, values in results.items()
        for k, value in enumerate(values)
    ]
    tags = ["", "v"] if number == launch.DOUBLE_BACKWARD else [""]
    at = {
        "x": ("of_x", "+ {}"),
        "g": ("of_out", "+ {}"),
        "w": ("of_w", "+ {} * C"),
        "u": ("of_u", "+ {} * C"),
    }

    def load(name: str, count: int, factors: list[float] | None = None) -> list[str]:
        place, step = at[name[-1]]
        return [
            f"{name}{k} = "
            + (f"{factors[k]!r} * " if factors else "")
            + f"tl.load({name} + {place} {step.format(k)}, mask=m, other=0).to(REAL)"
            for k in range(count)
        ]

    def store(name: str) -> list[str]:
        """Unless the result is left out: then what only it needs isn't computed."""
        place, step = at[name[-1]] if name != "out" else ("of_out", "+ {}")
        count = len(results.get(name, ()))
        scale = [f" * {t!r}" for t in factors] if name == "of_w" else [""] * count
        lines = [
            f"    tl.store(to_{name} + {place} {step.format(k)}, {name}_{k}{scale[k]}, mask=m)"
            for k in range(count)
        ]
        return [f"if to_{name} is not None:", *lines] if lines else []

    def zero(names) -> list[str]:
        return [f"{n}_{k} = {zeros}" for n in names for k in range(len(results.get(n, ())))]

    once = [line for tag in tags for line in load(f"{tag}x", layout.dim_in)]
    if number != launch.FORWARD:
        once += load("g", layout.dim_out)
    of_views = [line for tag in tags for line in load(f"{tag}w", views * terms, factors)]
    of_views += [line for tag in tags for line in load(f"{tag}u", views * weights_in)]
    columns = {"Y": 0, "W": layout.dim_in}
    body = statements(
        sums,
        lambda name: (
            f"tl.load(row + {columns[name[0]] + int(name[1:])})" if name[0] in columns else None
        ),
        again=40,
    )
    return _KERNEL.format(
        name=NAMES[number],
        pointers=", ".join(_pointers(layout, number)),
        load=source.indented(once + zero(["out", "of_x"]), 1),
        load_views=source.indented(of_views + zero(["of_w", "of_u"]), 2),
        body=source.indented(body, 3),
        store_views=source.indented(store("of_w") + store("of_u"), 2),
        store=source.indented(store("out") + store("of_x"), 1),
        rank=rank,
        views=views,
        terms=terms,
        degrees=weights_in,
        pairs=layout.pairs,
        row=layout.dim_in + layout.dim_out,
        dim_in=layout.dim_in,
        dim_out=layout.dim_out,
    )


NAMES = ("forward", "backward", "double_backward")


def _pointers(layout: Layout, number: int) -> list[str]:
    operands = ["x", "w"] + ["u"] * layout.weighted
    names = list(operands)
    if number != launch.FORWARD:
        names.append("g")
    if number == launch.DOUBLE_BACKWARD:
        names += [f"v{o}" for o in operands]
    return names + [f"to_{name}" for name in _results(layout, number)]


def _results(layout: Layout, number: int) -> list[str]:
    gradients = ["of_x", "of_w"] + ["of_u"] * layout.weighted
    return (["out"] if number != launch.BACKWARD else []) + gradients * (number != launch.FORWARD)


def _table(constants: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    _, table = launch.constants_of(constants, layout_of)
    return torch.tensor(table, dtype=dtype, device=constants.device)


_table_of = PerTensor(_table)


def run(number: int, constants: torch.Tensor, arguments: launch.Arguments) -> None:
    """A pass; the arrays are those of operators.h."""
    layout, _ = launch.constants_of(constants, layout_of)
    x = arguments.take("node_feats", (None, None, layout.dim_in))
    nodes, channels = x.shape[:2]
    second = arguments.peek()
    rank = second.shape[1] if second is not None and second.dim() == 4 else None
    sizes = {
        "node_feats": (nodes, channels, layout.dim_in),
        "weights_out": (nodes, rank, len(layout.terms), channels),
        "weights_in": (nodes, rank, layout.weights_in, channels),
    }
    of_result = (nodes, channels, layout.dim_out)

    def operands(what: str, take, take_last, names=tuple(sizes)):
        arrays = [take(what + name, sizes[name]) for name in names if name != "weights_in"]
        if layout.weighted:
            arrays.append(take_last(what + "weights_in", sizes["weights_in"]))
        elif arguments.peek() is not None:
            raise ValueError("this layer has no weights_in")
        else:
            arguments.take_optional("", ())
        return arrays

    arrays = [x, *operands("", arguments.take, arguments.take, ("weights_out", "weights_in"))]
    if number != launch.FORWARD:
        arrays.append(arguments.take("grad", of_result))
    if number == launch.DOUBLE_BACKWARD:
        along = operands("direction of ", arguments.take, arguments.take_optional)
        if layout.weighted and along[2] is None:
            along[2] = torch.zeros_like(arrays[2])
        arrays += along
    if number == launch.FORWARD:
        arrays.append(arguments.result("result", of_result))
    if number == launch.DOUBLE_BACKWARD:
        arrays.append(arguments.result("gradient of grad", of_result))
    if number != launch.FORWARD:
        result = arguments.result_optional
        arrays += operands("gradient of ", result, result)
    arguments.finish()
    kernels = source.module_of("powers", text_of(layout, rank, launch.words(x)))
    table = _table_of(constants, launch.accumulator(x.dtype))
    first = len(arrays) - len(_results(layout, number))
    for part in _parts(number, launch.words(x)):
        named = zip(_results(layout, number), arrays[first:])
        results = [array if name in part else None for name, array in named]
        launch.over_channels(
            getattr(kernels, NAMES[number]),
            nodes,
            channels,
            (table, *arrays[:first]),
            results,
            REAL=launch.real(x),
        )


def _parts(number: int, words: int) -> list[tuple[str, ...]]:
    """Results of each launch: in float64 the sums of all second derivatives need more registers."""
    everything = ("out", "of_x", "of_w", "of_u")
    if number == launch.DOUBLE_BACKWARD and words == 2:
        return [everything[:1], everything[1:2], everything[2:]]
    return [everything]
