"""Triton kernels of sums of messages of edges at their receivers, unrolled for a layer.

A message is linear in the features x of the sender, in numbers D of the edge and in weights w
each, so that derivatives of the sum are sums of the same kind.

* ``forward``, and ``of_nodes`` for the gradient of the features, have a program per node and block
  of channels. It goes through the edges of its node, sorted, and sums in registers: no atomics.
* ``of_edges`` has a program per edge, for the gradients of D and w. It goes through the channels
  32 at a time, so that the sum over channels is always made in the same order.

No message, and no number of an edge but those of the operands, is in memory. Weights of a radial
table are read where they are used: a few factors of the edge times rows of the table.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from gaunt_plugin.ops.cuda import launch, source, tuning
from gaunt_plugin.ops.cuda.expressions import Expressions, Value, gradient, statements, tangent
from gaunt_plugin.ops.cuda.groups import check_rows, groups

# Weights that are made at a time where they are a product: 64 MiB in float32.
MADE = 1 << 24
LANES = 32  # channels that of_edges sums at a time
# Numbers that it sums at a time, in float32 and float64: what compile reports (docs/gpu.md) allow.
SUMMED, FEW = 70, 24
# Inputs are loaded again where they were last used more lines before.
AGAIN = 60
# Lines of a kernel per node, at least, between pauses.
PAUSE = 60
# Rows of a table for an edge, above which the weights are made before they are used.
FACTORS = 8

_OF_NODES = """

@triton.jit(do_not_specialize=["other", "first", "group"])
def {name}({pointers}, other, order, start, first, group, out, C: tl.constexpr,
{indent}ADD: tl.constexpr, REAL: tl.constexpr, BLOCK: tl.constexpr):
    node = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m = c < C
    to = out + node * {size} + c
    if ADD:
{load_sums}
    else:
{no_sums}
    begin = tl.load(start + group + node)
    end = tl.load(start + group + node + 1)
    for k in range(begin, end):
        e = tl.load(order + k)
        n = tl.load(other + e)
        of_node = n * {size_other} + c
        of_frame = e * {entries}
{weights}
{body}
{store}
"""
_OF_EDGES = """

@triton.jit(do_not_specialize=["senders", "receivers", "first"])
def {name}({pointers}, senders, receivers, first, {results}, C: tl.constexpr,
{indent}FIRST: tl.constexpr, LAST: tl.constexpr, ADD: tl.constexpr, REAL: tl.constexpr,
{indent}BLOCK: tl.constexpr):
    e = tl.program_id(0).to(tl.int64) + first
    j = tl.load(senders + e)
    i = tl.load(receivers + e)
    of_frame = e * {entries}
{no_sums}
    for block in range(0, C, BLOCK):
        c = block + tl.arange(0, BLOCK)
        m = c < C
        of_sender = j * {size_in} + c
        of_receiver = i * {size_out} + c
{weights}
{body}
{store}
"""
_REAL = ".to(REAL)"
# Keeps the compiler from loading everything at once, which costs registers.
_BARRIER = "tl.debug_barrier()"


class Edge:
    """Values of an edge in one channel, and where its arrays have them.

    Attributes:
        out: the message in the features x, the numbers of the edge and the weights w. Numbers are
            ``D`` where messages of several blocks depend on them together, and ``E`` else: number
            k is both ``Dk`` and every ``E`` that is k modulo ``entries``.
        early: values that are kept rather than their terms.
        blocks: the numbers of w and E that parts of the message depend on.
        entries: numbers of an edge.
        sizes: of a row of x, w and g, as text in the number of channels ``C``.
        places: of each x, w and g in its row, likewise.
        pauses: whether kernels per node keep the compiler from loading much ahead: what takes
            fewer registers.
        channels: of this edge; None: the layer's.
        suffix: of the kernels' names.
    """

    expressions: Expressions
    x: list[Value]
    D: list[Value]
    E: list[Value]
    w: list[Value]
    g: list[Value]
    out: list[Value]
    early: list[Value]
    blocks: list[tuple[Sequence[int], Sequence[int]]]
    entries: int
    sizes: dict[str, str]
    places: dict[str, Sequence[str]]
    pauses = False
    channels: int | None = None
    suffix = ""

    def gradient(self, values: Sequence[Value]) -> list[Value]:
        """Derivatives of ``<g, out>``."""
        return gradient(self.out, self.g, values)

    def along(self, values: Sequence[Value]) -> list[Value]:
        """Derivatives along the directions vx, vD and vw."""
        variables = [*self.x, *self.D, *self.E, *self.w]
        directions = {a: self.expressions.input(f"v{a.arguments[0]}") for a in variables}
        return tangent(values, directions)

    def load(self, name: str, rows: dict[str, str], factors: int | None) -> str:
        """The text of an input; D are one number for all channels, others a number for each."""
        letters = name.rstrip("0123456789")
        k, letter = int(name[len(letters) :]), letters[-1]
        if letter in "DE":
            array = letters.replace("E", "D")
            return f"tl.load({array} + of_frame + {k % self.entries}){_REAL}"
        place = self.places[letter][k]
        if letter == "w" and factors:
            h = letters.replace("w", "h")
            return " + ".join(f"{h}{q} * {self.load_table(k, q)}" for q in range(factors))
        row = "of_weights" if letter == "w" else rows[letter]
        return f"tl.load({letters} + {row} + {place}, mask=m, other=0){_REAL}"

    def load_table(self, weight: int, row: int) -> str:
        place = f"{row} * {self.sizes['w']} + {self.places['w'][weight]}"
        return f"tl.load(T + of_weights + {place}, mask=m, other=0){_REAL}"

    def weights(self, factors: int | None, second: bool) -> list[str]:
        """Lines that say where the weights of an edge are; with a table, its factors."""
        if not factors:
            return [f"of_weights = (e - first) * {self.sizes['w']} + c"]
        lines = [f"of_weights = tl.load(rows + e) * {self.sizes['w']} + c"]
        for h in ("h", "vh") if second else ("h",):
            lines += [f"{h}{q} = tl.load({h} + e * {factors} + {q}){_REAL}" for q in range(factors)]
        return lines


def _pointers(names: str, factors: int | None) -> str:
    """Names of arrays; weights of a table are its factors, itself and rows."""
    if factors:
        names = ", ".join({"w": "h, T, rows", "vw": "vh"}.get(n, n) for n in names.split(", "))
    return names


def _of_nodes(
    edge: Edge,
    name: str,
    pointers: str,
    values: list[Value],
    of_receivers: bool,
    factors: int | None,
) -> str:
    to, other = ("g", "x") if of_receivers else ("x", "g")
    rows = {other: "of_node"}
    sums = [(value, f"s{k} += {{}}") for k, value in enumerate(values)]
    body = statements(sums, lambda n: edge.load(n, rows, factors), AGAIN)
    places = list(enumerate(edge.places[to]))
    name += edge.suffix
    return _OF_NODES.format(
        name=name,
        indent=" " * (len(name) + 5),
        pointers=_pointers(pointers, factors),
        size=edge.sizes[to],
        size_other=edge.sizes[other],
        entries=edge.entries,
        weights=source.indented(edge.weights(factors, name.startswith("second")), 2),
        load_sums=source.indented(
            [f"s{k} = tl.load(to + {p}, mask=m, other=0){_REAL}" for k, p in places], 2
        ),
        no_sums=source.indented([f"s{k} = tl.zeros([BLOCK], REAL)" for k, _ in places], 2),
        body=source.indented(_with_pauses(body) if edge.pauses else body, 2),
        store=source.indented([f"tl.store(to + {p}, s{k}, mask=m)" for k, p in places], 1),
    )


def _with_pauses(lines: list[str]) -> list[str]:
    """Barriers after sums, at about a third and two thirds of long kernels."""
    found, last, part = [], 0, max(PAUSE, len(lines) // 3)
    for number, line in enumerate(lines):
        found.append(line)
        if " += " in line and number - last >= part:
            found.append(_BARRIER)
            last = number
    return found


def _of_edges(edge: Edge, name: str, pointers: str, second: bool, factors: int | None) -> str:
    along = edge.along if second else lambda values: values
    of_w, of_D, of_E = (edge.gradient(values) for values in (edge.w, edge.D, edge.E))
    results = {"of_w": along(of_w)}
    if second and not factors:
        results["first_of_w"] = of_w
    of_D, of_E = along(of_D), along(of_E)
    outputs, summed = [], set()

    def add(k: int, value: Value) -> None:
        if not value.is_constant(0):
            k %= edge.entries
            summed.add(k)
            outputs.append((value, f"{_of_launch(k)} d{k} += {{}}"))

    def use(p: int, to: str, value: Value) -> None:
        """Of a weight's gradient: keep it, or sum its products with the table."""
        if not factors:
            line = f"tl.store({to} + of_weights + {edge.places['w'][p]}, {{}}, mask=m)"
            outputs.append((value, f"if {to} is not None: {line}"))
        for q in range(factors or 0):
            line = f"f{q} += ({{}}) * {edge.load_table(p, q)}"
            outputs.append((value, f"if of_h is not None: {line}"))

    barrier = (edge.expressions.constant(0), _BARRIER)
    # Irreps of one degree share their entries.
    last = {k: b for b, (_, entries) in reversed(list(enumerate(edge.blocks))) for k in entries}
    # In the order in which the gradient of the features in the frame is summed.
    for block, (weights, entries) in reversed(list(enumerate(edge.blocks))):
        for p in weights:
            for to, values in results.items():
                use(p, to, values[p])
        for k in entries:
            if last[k] == block:
                add(k, of_E[k])
        outputs.append(barrier)
    for k, value in enumerate(of_D):
        add(k, value)
    sums, stores = [f"d{k}" for k in sorted(summed)], []
    for k in range(edge.entries):
        to = f"of_D + of_frame + {k}"
        total = f"tl.sum(d{k}, 0)" if k in summed else "0.0"
        stores.append(f"{_of_launch(k)} tl.store({to}, {_added(to, total)})")
    for q in range(factors or 0):
        sums.append(f"f{q}")
        to = f"of_h + e * {factors} + {q}"
        stores.append(f"if of_h is not None: tl.store({to}, {_added(to, f'tl.sum(f{q}, 0)')})")
    rows = {"x": "of_sender", "g": "of_receiver"}
    early = edge.gradient(edge.early)
    load = lambda n: edge.load(n, rows, factors)  # noqa: E731
    body = statements(outputs, load, AGAIN, [*early, *along(early)])
    name += edge.suffix
    return _OF_EDGES.format(
        name=name,
        indent=" " * (len(name) + 5),
        pointers=_pointers(pointers, factors),
        results=", ".join(["of_D", *(["of_h"] if factors else results)]),
        size_in=edge.sizes["x"],
        size_out=edge.sizes["g"],
        entries=edge.entries,
        weights=source.indented(edge.weights(factors, second), 2),
        no_sums=source.indented([f"{s} = tl.zeros([BLOCK], REAL)" for s in sums], 1),
        body=source.indented(body, 2),
        store=source.indented(stores, 1),
    )


def _added(to: str, total: str) -> str:
    """A sum, and what an earlier launch left."""
    return f"{total} + (tl.load({to}){_REAL} if ADD else 0.0)"


def _of_launch(entry: int) -> str:
    """The condition for what only launches do that sum a number's gradient."""
    return f"if (FIRST <= {entry}) & ({entry} < LAST):"


def launches(entries: int, room: int) -> list[tuple[int, int]]:
    """First and last numbers of an edge, about as many each time, whose gradients are summed."""
    count = -(-entries // room)
    bounds = [entries * k // count for k in range(count + 1)]
    return list(itertools.pairwise(bounds))


class Layer:
    """What the constants of a layer say.

    Args:
        edge_array: the name of the array of the edges' numbers.
        sizes: numbers of x, w and g, of each channel if ``per_channel``.
        by_receiver: edges that together have every weight and every number of the result once.
        by_sender: edges that together have every weight and every number of the features once, or
            every number that is read.
        per_channel: nodes have channels, in a last axis.
    """

    def __init__(
        self,
        edge_array: str,
        sizes: tuple[int, int, int],
        by_receiver: Sequence[Edge],
        by_sender: Sequence[Edge],
        per_channel: bool,
    ) -> None:
        self.edge_array, self.per_channel = edge_array, per_channel
        self.dim_in, self.paths, self.dim_out = sizes
        self.by_receiver, self.by_sender = by_receiver, by_sender
        self.entries = by_receiver[0].entries
        self.whole = per_channel or self.dim_in == sum(
            len(edge.x) * edge.channels for edge in by_sender
        )
        self.texts: dict[int | None, str] = {}

    def text(self, factors: int | None) -> str:
        """Source of the kernels of all passes, for weights from a table if there are factors."""
        if factors not in self.texts:
            self.texts[factors] = source.HEAD + "".join(self._kernels(factors))
        return self.texts[factors]

    def _kernels(self, factors: int | None):
        for edge in self.by_receiver:
            yield _of_nodes(edge, "forward", "x, D, w", edge.out, True, factors)
            yield _of_edges(edge, "of_edges", "x, D, w, g", False, factors)
            out = edge.along(edge.out)
            yield _of_nodes(edge, "second_forward", "x, D, w, vx, vD, vw", out, True, factors)
            pointers = "x, D, w, g, vx, vD, vw"
            yield _of_edges(edge, "second_of_edges", pointers, True, factors)
        for edge in self.by_sender:
            of_x = edge.gradient(edge.x)
            yield _of_nodes(edge, "of_nodes", "g, D, w", of_x, False, factors)
            of_x = edge.along(of_x)
            yield _of_nodes(edge, "second_of_nodes", "g, D, w, vD, vw", of_x, False, factors)


class _Problem:
    """Arrays of a call, and launches for a part of its edges."""

    def __init__(self, layer: Layer, kernels, x, D, edge_index, rows: int, table: bool) -> None:
        self.layer, self.kernels, self.table = layer, kernels, table
        self.x, self.D, self.index, self.rows = x, D, edge_index, rows
        self.nodes = x.shape[0]
        self.channels = x.shape[2] if layer.per_channel else None
        self.senders, self.receivers = edge_index
        self.real = launch.real(x)

    def sum(self, name: str, to, begin: int, *arrays) -> None:
        """Add a part's edges at their receivers, or with ``of_nodes`` at their senders."""
        at_senders = name.endswith("of_nodes")
        row = 0 if at_senders else 1
        found = groups(self.index, row, self.nodes, self.rows)
        for edge in self.layer.by_sender if at_senders else self.layer.by_receiver:
            part = begin // max(1, self.rows) * self.nodes
            index = self.index[1 - row], found.order, found.start
            launch.over_channels(
                getattr(self.kernels, name + edge.suffix),
                self.nodes,
                edge.channels or self.channels,
                (*arrays, *index, begin, part),
                [to],
                ADD=begin > 0,
                REAL=self.real,
            )

    def of_edges(self, name: str, begin: int, count: int, arrays, of_D, results) -> None:
        wide = launch.words(self.x) > 1
        operands = *arrays, self.senders, self.receivers, begin
        for number, edge in enumerate(self.layer.by_receiver):
            kernel = getattr(self.kernels, name + edge.suffix)
            options = {
                "C": edge.channels or self.channels,
                "ADD": number > 0,
                "REAL": self.real,
                "BLOCK": LANES,
            }

            def run(room: int, of_D, *of_weights, edge=edge, kernel=kernel, options=options):
                parts = launches(edge.entries, room) if of_D is not None else []
                # Gradients of weights come with the first sums, or alone if registers are scarce.
                alone = wide or self.table or not parts
                if alone and any(result is not None for result in of_weights):
                    parts = [(0, 0), *parts]
                for k, (first, last) in enumerate(parts):
                    now = of_weights if k == 0 else [None] * len(of_weights)
                    launch.start(
                        kernel,
                        (count,),
                        *operands,
                        of_D,
                        *now,
                        FIRST=first,
                        LAST=last,
                        num_warps=1,
                        **options,
                    )

            # Second derivatives of a table take registers, too.
            half = self.table and name.startswith("second")
            rooms = (FEW,) if wide else (SUMMED // 2 if half else SUMMED, FEW)
            tuning.run_fastest(kernel, count, rooms, run, (of_D, *results), options)


def run(number: int, layer: Layer, kind: str, arguments: launch.Arguments) -> None:
    """A pass; the arrays are those of operators.h, the kernels' file is named after ``kind``."""
    take, optional = arguments.take, arguments.take_optional
    x = take("node_feats", (None, layer.dim_in) + (None,) * layer.per_channel)
    nodes, channels = x.shape[0], x.shape[2] if layer.per_channel else 1
    D = take(layer.edge_array, (None, layer.entries))
    edges, numel = D.shape[0], layer.paths * channels
    h = take("weights", (edges, None))
    width = h.shape[1]
    mixing = optional("mixing", (None, numel))
    if mixing is None and width != numel:
        raise ValueError(f"weights must be [{edges}, {numel}], got [{edges}, {width}]")
    index = take("edge_index", (2, edges), torch.int64)
    rows = optional("rows", (edges,), torch.int64)
    if rows is not None and mixing is None:
        raise ValueError("rows without mixing")
    height = width if mixing is None else len(mixing)
    if height < width or (rows is None and height != width):
        raise ValueError(f"mixing must be [{width}, {numel}], got {list(mixing.shape)}")
    of_result = (nodes, layer.dim_out) + (channels,) * layer.per_channel
    g = vx = vD = vh = v_mixing = None
    if number != launch.FORWARD:
        g = take("grad", of_result)
    if number == launch.DOUBLE_BACKWARD:
        vx = take("direction of node_feats", x.shape)
        vD = take(f"direction of {layer.edge_array}", D.shape)
        vh = take("direction of weights", h.shape)
        v_mixing = optional("direction of mixing", (height, numel))
    value = of_x = of_D = of_h = of_mixing = None
    if number == launch.FORWARD:
        value = arguments.result("result", of_result)
    if number == launch.DOUBLE_BACKWARD:
        value = arguments.result("gradient of grad", of_result)
    if number != launch.FORWARD:
        result = arguments.result_optional
        of_x = result("gradient of node_feats", x.shape)
        of_D = result(f"gradient of {layer.edge_array}", D.shape)
        of_h = result("gradient of weights", h.shape)
        of_mixing = result("gradient of mixing", (height, numel))
    if mixing is None and (v_mixing is not None or of_mixing is not None):
        raise ValueError("direction or gradient of mixing without mixing")
    arguments.finish()
    if rows is not None:
        check_rows(rows, width, height)

    # A table that nothing is asked of is read by the kernels.
    constant = of_mixing is None and v_mixing is None
    table = rows is not None and constant and 0 < width <= FACTORS
    made = mixing is not None and not table
    count = max(1, min(edges, MADE // max(1, numel, height))) if made else edges
    module = source.module_of(kind, layer.text(width if table else None))
    problem = _Problem(layer, module, x, D, index, count, table)
    # Sums over several launches are kept in their own precision.
    short = launch.accumulator(x.dtype) != x.dtype
    several = len(layer.by_receiver) > 1

    def total(result, summed: bool):
        return result.float() if result is not None and short and summed else result

    results = value, of_x, of_D, of_h
    totals = [
        total(value, edges > count),
        total(of_x, edges > count),
        total(of_D, several),
        total(of_h, several and table),
    ]
    if of_x is not None and not layer.whole:
        totals[1].zero_()
    if table:
        w, vw = (h, mixing, rows), (vh,)
        _part(problem, number, 0, edges, (w, g, vx, vD, vw), (*totals[:3], totals[3:]))
    elif not made:
        of_w = (of_h, None) if number == launch.DOUBLE_BACKWARD else (of_h,)
        _part(problem, number, 0, edges, ((h,), g, vx, vD, (vh,)), (*totals[:3], of_w))
    else:
        factors = _Factors(rows, width, height)
        buffers = _Buffers(x, count, numel)
        for begin in range(0, max(1, edges), count):
            part = slice(begin, min(edges, begin + count))
            a, va = factors(h, part), factors(vh, part)
            w = buffers("w", a, mixing)
            of_w = first = vw = None
            if number == launch.DOUBLE_BACKWARD:
                vw = buffers("vw", va, mixing)
                if v_mixing is not None:
                    torch.addmm(vw, a, v_mixing, out=vw)
                if v_mixing is not None or of_mixing is not None:
                    first = buffers("first")[: len(w)]
            if of_h is not None or of_mixing is not None:
                of_w = buffers("of_w")[: len(w)]
            of_weights = (of_w, first) if number == launch.DOUBLE_BACKWARD else (of_w,)
            arrays = (w,), g, vx, vD, (vw,)
            _part(problem, number, begin, len(w), arrays, (*totals[:3], of_weights))
            if of_h is not None:
                of_a = of_w @ mixing.t()
                if v_mixing is not None:
                    of_a.addmm_(first, v_mixing.t())
                factors.take_back(of_a, of_h, part)
            if of_mixing is not None:
                beta = int(begin > 0)
                torch.addmm(of_mixing, a.t(), of_w, beta=beta, out=of_mixing)
                if first is not None:
                    torch.addmm(of_mixing, va.t(), first, out=of_mixing)
    for result, made_of in zip(results, totals):
        if result is not made_of:
            result.copy_(made_of)


def _part(problem: _Problem, number: int, begin: int, count: int, arrays, results) -> None:
    """The kernels of a pass on a part of the edges."""
    w, g, vx, vD, vw = arrays
    value, of_x, of_D, of_w = results
    x, D = problem.x, problem.D
    if number == launch.FORWARD:
        problem.sum("forward", value, begin, x, D, *w)
    elif number == launch.BACKWARD:
        if of_x is not None:
            problem.sum("of_nodes", of_x, begin, g, D, *w)
        problem.of_edges("of_edges", begin, count, (x, D, *w, g), of_D, of_w)
    else:
        problem.sum("second_forward", value, begin, x, D, *w, vx, vD, *vw)
        if of_x is not None:
            problem.sum("second_of_nodes", of_x, begin, g, D, *w, vD, *vw)
        operands = (x, D, *w, g, vx, vD, *vw)
        problem.of_edges("second_of_edges", begin, count, operands, of_D, of_w)


class _Factors:
    """Factors whose product with all of ``mixing`` are the weights.

    With rows of a table most of them are 0: this is for gradients of the table, which layers don't
    train.
    """

    def __init__(self, rows: torch.Tensor | None, width: int, height: int) -> None:
        self.columns = None
        if rows is not None:
            self.columns = rows.unsqueeze(1) + torch.arange(width, device=rows.device)
        self.height = height

    def __call__(self, h: torch.Tensor | None, part: slice) -> torch.Tensor | None:
        if h is None or self.columns is None:
            return None if h is None else h[part]
        columns = self.columns[part]
        return h.new_zeros(len(columns), self.height).scatter_(1, columns, h[part])

    def take_back(self, gradient: torch.Tensor, to: torch.Tensor, part: slice) -> None:
        """Keep a gradient of the factors."""
        if self.columns is not None:
            gradient = gradient.gather(1, self.columns[part])
        to[part] = gradient


class _Buffers:
    """Arrays for the weights of a part, each made when it is first needed."""

    def __init__(self, like: torch.Tensor, rows: int, numel: int) -> None:
        self.like, self.sizes, self.kept = like, (rows, numel), {}

    def __call__(self, name: str, *factors: torch.Tensor) -> torch.Tensor:
        """The whole array, or rows that hold a product of matrices."""
        if name not in self.kept:
            self.kept[name] = self.like.new_empty(self.sizes)
        buffer = self.kept[name]
        return torch.mm(*factors, out=buffer[: len(factors[0])]) if factors else buffer
