"""Triton kernels of ``gaunt::convolution``, unrolled for a layer.

Per edge from j to i, channel by channel (ops/convolution.py has the formula):
``B = D^T x_j``, ``local_r = n_r sum_p w_p B_source(p)``, ``out_i += D local``. The sum is linear in
x, D and w each, so that its derivatives are sums of the same kind.

* ``forward``, and ``of_nodes`` for the gradient of the features, have a program per node and block
  of channels. It goes through the edges of its node, sorted, and sums in registers: no atomics.
* ``of_edges`` has a program per edge, for the gradients of frame and weights. It goes through the
  channels 32 at a time, so that the sum over channels is always made in the same order.

No message, and no frame but those of the operands, is in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from gaunt_plugin.ops.convolution import EdgeConvolution, sources_of
from gaunt_plugin.ops.cuda import launch, source
from gaunt_plugin.ops.cuda.expressions import Expressions, Value, gradient, statements, tangent
from gaunt_plugin.ops.cuda.groups import groups
from gaunt_plugin.ops.edge_frames import frame_layout

# Weights that are made at a time where they are a product: 64 MiB in float32.
MADE = 1 << 24
LANES = 32  # channels that of_edges sums at a time
# Registers for its sums, by those of a number: what the compile reports (docs/gpu.md) allow.
SUMMED = {1: 70, 2: 50}
# Inputs are loaded again where they were last used more lines before.
AGAIN = 60

_OF_NODES = """

@triton.jit(do_not_specialize=["other", "first", "group"])
def {name}({pointers}, other, order, start, out, first, group, C, ADD: tl.constexpr,
{indent}REAL: tl.constexpr, BLOCK: tl.constexpr):
    node = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m = c < C
    to = out + node * {dim} * C + c
    if ADD:
{load_sums}
    else:
{no_sums}
    begin = tl.load(start + group + node)
    end = tl.load(start + group + node + 1)
    for k in range(begin, end):
        e = tl.load(order + k)
        n = tl.load(other + e)
        of_node = n * {dim_other} * C + c
        of_frame = e * {entries}
        of_weights = (e - first) * {paths} * C + c
{body}
{store}
"""
_OF_EDGES = """

@triton.jit(do_not_specialize=["senders", "receivers", "first", "write"])
def {name}({pointers}, senders, receivers, {results}, first, write, C,
{indent}DEGREES: tl.constexpr, REAL: tl.constexpr, BLOCK: tl.constexpr):
    e = tl.program_id(0).to(tl.int64) + first
    j = tl.load(senders + e)
    i = tl.load(receivers + e)
    of_frame = e * {entries}
{no_sums}
    for block in range(0, C, BLOCK):
        c = block + tl.arange(0, BLOCK)
        m = c < C
        stored = m & (tl.full([BLOCK], write, tl.int32) != 0)
        of_sender = j * {dim_in} * C + c
        of_receiver = i * {dim_out} * C + c
        of_weights = (e - first) * {paths} * C + c
{body}
{store}
"""


class Edge:
    """Values of an edge in one channel.

    Attributes:
        out: the message in the features x, the entries of the frame and the weights w. Entries
            are ``D`` where features go into the frame and ``E`` where messages come out of it.
        blocks: per irrep of the result, the numbers of its weights and of its entries.
    """

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
        starts = begin if scalar else dict(enumerate(begin[:-1]))
        self.degree = [
            max(starts, key=lambda l: starts[l] if starts[l] <= k else -1)
            for k in range(self.entries)
        ]
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
        self.in_frame = [value for columns_of in B for value in columns_of]
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

    def gradient(self, values: Sequence[Value]) -> list[Value]:
        """Derivatives of ``<g, out>``."""
        return gradient(self.out, self.g, values)

    def along(self, values: Sequence[Value]) -> list[Value]:
        """Derivatives along the directions vx, vD and vw."""
        variables = [*self.x, *self.D, *self.E, *self.w]
        directions = {a: self.expressions.input(f"v{a.arguments[0]}") for a in variables}
        return tangent(values, directions)


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


_REAL = ".to(REAL)"


def _load(name: str, places: dict[str, str]) -> str:
    """An input: entries are one number for all channels, the others a number per channel."""
    letters = name.rstrip("0123456789")
    k, array = int(name[len(letters) :]), letters.replace("E", "D")
    if letters[-1] in "DE":
        return f"tl.load({array} + of_frame + {k}){_REAL}"
    place = "of_weights" if letters[-1] == "w" else places[letters[-1]]
    return f"tl.load({array} + {place} + {k} * C, mask=m, other=0){_REAL}"


def _of_nodes(edge: Edge, name: str, pointers: str, values: list[Value], of_receivers: bool) -> str:
    dims = (edge.dim_out, edge.dim_in) if of_receivers else (edge.dim_in, edge.dim_out)
    places = {"x": "of_node", "g": "of_node"}
    sums = [(value, f"s{k} += {{}}") for k, value in enumerate(values)]
    count = range(len(values))
    return _OF_NODES.format(
        name=name,
        indent=" " * (len(name) + 5),
        pointers=pointers,
        dim=dims[0],
        dim_other=dims[1],
        entries=edge.entries,
        paths=edge.paths,
        load_sums=source.indented(
            [f"s{k} = tl.load(to + {k} * C, mask=m, other=0){_REAL}" for k in count], 2
        ),
        no_sums=source.indented([f"s{k} = tl.zeros([BLOCK], REAL)" for k in count], 2),
        body=source.indented(statements(sums, lambda n: _load(n, places), AGAIN), 2),
        store=source.indented([f"tl.store(to + {k} * C, s{k}, mask=m)" for k in count], 1),
    )


def _of_edges(edge: Edge, name: str, pointers: str, second: bool) -> str:
    along = edge.along if second else lambda values: values
    of_w, of_D, of_E = (edge.gradient(values) for values in (edge.w, edge.D, edge.E))
    results = {"of_w": along(of_w)}
    if second:
        results["first_of_w"] = of_w
    of_D, of_E = along(of_D), along(of_E)
    outputs, summed = [], set()

    def add(k: int, value: Value) -> None:
        if not value.is_constant(0):
            summed.add(k)
            outputs.append((value, f"if DEGREES & {1 << edge.degree[k]}: d{k} += {{}}"))

    # Keeps the compiler from loading everything at once, which costs registers.
    barrier = (edge.expressions.constant(0), "tl.debug_barrier()")
    # Irreps of one degree share their entries.
    last = {k: b for b, (_, entries) in reversed(list(enumerate(edge.blocks))) for k in entries}
    # In the order in which the gradient of the features in the frame is summed.
    for block, (weights, entries) in reversed(list(enumerate(edge.blocks))):
        for p in weights:
            for to, values in results.items():
                store = f"tl.store({to} + of_weights + {p} * C, {{}}, mask=stored)"
                outputs.append((values[p], f"if {to} is not None: {store}"))
        for k in entries:
            if last[k] == block:
                add(k, of_E[k])
        outputs.append(barrier)
    for k, value in enumerate(of_D):
        add(k, value)
    stores = [
        f"if DEGREES & {1 << l}: tl.store(of_D + of_frame + {k}, "
        + (f"tl.sum(d{k}, 0))" if k in summed else "0.0)")
        for k, l in enumerate(edge.degree)
    ]
    places = {"x": "of_sender", "g": "of_receiver"}
    early = edge.gradient(edge.in_frame)
    body = statements(outputs, lambda n: _load(n, places), AGAIN, [*early, *along(early)])
    return _OF_EDGES.format(
        name=name,
        indent=" " * (len(name) + 5),
        pointers=pointers,
        results=", ".join(["of_D", *results]),
        dim_in=edge.dim_in,
        dim_out=edge.dim_out,
        entries=edge.entries,
        paths=edge.paths,
        no_sums=source.indented([f"d{k} = tl.zeros([BLOCK], REAL)" for k in sorted(summed)], 1),
        body=source.indented(body, 2),
        store=source.indented(stores, 1),
    )


def degrees_of_launches(edge: Edge, words: int) -> list[int]:
    """Degrees, as bits, whose entries each launch of ``of_edges`` sums in registers."""
    found, room = [0], SUMMED[words]
    for l in sorted(set(edge.degree)):
        needed = words * edge.degree.count(l)
        if found[-1] and needed > room:
            found.append(0)
            room = SUMMED[words]
        found[-1] |= 1 << l
        room -= needed
    return found


@functools.lru_cache(maxsize=64)
def text_of(numbers: tuple[int, ...], values: tuple[float, ...]) -> tuple[Edge, str]:
    """What is done for an edge, and source of the kernels of all passes."""
    irreps_in, irreps_out, degrees = EdgeConvolution.arguments(list(numbers), list(values))
    count = 3 + 2 * (len(irreps_in) + len(irreps_out)) + numbers[-len(degrees) - 1]
    if values or len(numbers) != count:
        raise ValueError("too many constants, or too few")
    edge = Edge(irreps_in, irreps_out, degrees)
    of_x = edge.gradient(edge.x)
    text = source.HEAD + "".join(
        [
            _of_nodes(edge, "forward", "x, D, w", edge.out, True),
            _of_nodes(edge, "of_nodes", "g, D, w", of_x, False),
            _of_edges(edge, "of_edges", "x, D, w, g", False),
            _of_nodes(edge, "second_forward", "x, D, w, vx, vD, vw", edge.along(edge.out), True),
            _of_nodes(edge, "second_of_nodes", "g, D, w, vD, vw", edge.along(of_x), False),
            _of_edges(edge, "second_of_edges", "x, D, w, g, vx, vD, vw", True),
        ]
    )
    return edge, text


class _Problem:
    """Arrays of a call, and launches for a part of its edges."""

    def __init__(self, edge: Edge, kernels, x, D, edge_index, rows: int) -> None:
        self.edge, self.kernels = edge, kernels
        self.x, self.D, self.index, self.rows = x, D, edge_index, rows
        self.nodes, self.channels = x.shape[0], x.shape[2]
        self.senders, self.receivers = edge_index
        self.real = launch.real(x)

    def sum(self, name: str, to, begin: int, *arrays) -> None:
        """Add a part's edges at their receivers, or with ``of_nodes`` at their senders."""
        row = 0 if name.endswith("of_nodes") else 1
        found = groups(self.index, row, self.nodes, self.rows)
        lanes, warps = launch.lanes(self.channels)
        launch.start(
            getattr(self.kernels, name),
            (self.nodes, -(-self.channels // lanes)),
            *arrays,
            self.index[1 - row],
            found.order,
            found.start,
            to,
            begin,
            begin // max(1, self.rows) * self.nodes,
            self.channels,
            ADD=begin > 0,
            REAL=self.real,
            BLOCK=lanes,
            num_warps=warps,
        )

    def of_edges(self, name: str, begin: int, count: int, arrays, of_D, results) -> None:
        parts = degrees_of_launches(self.edge, launch.words(self.x))
        if of_D is None:
            parts = [0] if any(result is not None for result in results) else []
        for k, degrees in enumerate(parts):
            launch.start(
                getattr(self.kernels, name),
                (count,),
                *arrays,
                self.senders,
                self.receivers,
                of_D,
                *results,
                begin,
                int(k == 0),
                self.channels,
                DEGREES=degrees,
                REAL=self.real,
                BLOCK=LANES,
                num_warps=1,
            )


def run(number: int, constants: torch.Tensor, arguments: launch.Arguments) -> None:
    """A pass; the arrays are those of operators.h."""
    edge, text = launch.constants_of(constants, text_of)
    take, optional = arguments.take, arguments.take_optional
    x = take("node_feats", (None, edge.dim_in, None))
    nodes, _, channels = x.shape
    D = take("frames", (None, edge.entries))
    edges, numel = D.shape[0], edge.paths * channels
    h = take("weights", (edges, None))
    width = h.shape[1]
    mixing = optional("mixing", (None, numel))
    if mixing is None and width != numel:
        raise ValueError(f"weights must be [{edges}, {numel}], got [{edges}, {width}]")
    index = take("edge_index", (2, edges), torch.int64)
    if arguments.peek() is not None:
        raise ValueError("rows of a table are for the CPU's kernel")
    optional("rows", (edges,))
    if mixing is not None and len(mixing) != width:
        raise ValueError(f"mixing must be [{width}, {numel}], got {list(mixing.shape)}")
    of_result = (nodes, edge.dim_out, channels)
    g = vx = vD = vh = v_mixing = None
    if number != launch.FORWARD:
        g = take("grad", of_result)
    if number == launch.DOUBLE_BACKWARD:
        vx = take("direction of node_feats", x.shape)
        vD = take("direction of frames", D.shape)
        vh = take("direction of weights", h.shape)
        v_mixing = optional("direction of mixing", (width, numel))
    value = of_x = of_D = of_h = of_mixing = None
    if number == launch.FORWARD:
        value = arguments.result("result", of_result)
    if number == launch.DOUBLE_BACKWARD:
        value = arguments.result("gradient of grad", of_result)
    if number != launch.FORWARD:
        result = arguments.result_optional
        of_x = result("gradient of node_feats", x.shape)
        of_D = result("gradient of frames", D.shape)
        of_h = result("gradient of weights", h.shape)
        of_mixing = result("gradient of mixing", (width, numel))
    if mixing is None and (v_mixing is not None or of_mixing is not None):
        raise ValueError("direction or gradient of mixing without mixing")
    arguments.finish()

    rows = edges if mixing is None else max(1, min(edges, MADE // max(1, numel)))
    problem = _Problem(edge, source.module_of("convolution", text), x, D, index, rows)
    # Sums over several parts are kept in their own precision.
    wide = launch.accumulator(x.dtype) != x.dtype and edges > rows
    sums = [t if t is None or not wide else t.float() for t in (value, of_x)]
    if mixing is None:
        _part(problem, number, 0, edges, (h, g, vx, vD, vh), (*sums, of_D, of_h, None))
    else:
        buffers = _Buffers(x, rows, numel)
        for begin in range(0, max(1, edges), rows):
            part = slice(begin, min(edges, begin + rows))
            w = buffers("w", h[part], mixing)
            of_w = first = vw = None
            if number == launch.DOUBLE_BACKWARD:
                vw = buffers("vw", vh[part], mixing)
                if v_mixing is not None:
                    torch.addmm(vw, h[part], v_mixing, out=vw)
                if v_mixing is not None or of_mixing is not None:
                    first = buffers("first")[: len(w)]
            if of_h is not None or of_mixing is not None:
                of_w = buffers("of_w")[: len(w)]
            results = (*sums, of_D, of_w, first)
            _part(problem, number, begin, len(w), (w, g, vx, vD, vw), results)
            if of_h is not None:
                torch.mm(of_w, mixing.t(), out=of_h[part])
                if v_mixing is not None:
                    torch.addmm(of_h[part], first, v_mixing.t(), out=of_h[part])
            if of_mixing is not None:
                beta = int(begin > 0)
                torch.addmm(of_mixing, h[part].t(), of_w, beta=beta, out=of_mixing)
                if first is not None:
                    torch.addmm(of_mixing, vh[part].t(), first, out=of_mixing)
    for result, total in zip((value, of_x), sums):
        if result is not total:
            result.copy_(total)


def _part(problem: _Problem, number: int, begin: int, count: int, arrays, results) -> None:
    """The kernels of a pass on a part of the edges."""
    w, g, vx, vD, vw = arrays
    value, of_x, of_D, of_w, first = results
    x, D = problem.x, problem.D
    if number == launch.FORWARD:
        problem.sum("forward", value, begin, x, D, w)
    elif number == launch.BACKWARD:
        if of_x is not None:
            problem.sum("of_nodes", of_x, begin, g, D, w)
        problem.of_edges("of_edges", begin, count, (x, D, w, g), of_D, (of_w,))
    else:
        problem.sum("second_forward", value, begin, x, D, w, vx, vD, vw)
        if of_x is not None:
            problem.sum("second_of_nodes", of_x, begin, g, D, w, vD, vw)
        operands = (x, D, w, g, vx, vD, vw)
        problem.of_edges("second_of_edges", begin, count, operands, of_D, (of_w, first))


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
