"""Triton kernels of ``gaunt::polynomials``, unrolled for a layer.

A program has one node and a block of channels; a thread has a channel, whose features and sums
stay in registers. Weights are mixed for the elements of a node before, by a product of matrices:
``W_t = sum_z a_z w_zt``. The polynomial of a weight and an output is computed as
``sum_i x_i sum_j x_j sum_k Q_ijk x_k``, its derivatives for one i at a time. Weights are shared
out over several kernels that each add to the results, one after the other, so that results don't
depend on the launch.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import torch

from gaunt_plugin.ops.cuda import launch, source
from gaunt_plugin.ops.cuda.expressions import Expressions, Value, gradient, statements, tangent
from gaunt_plugin.ops.polynomials import Polynomials

# Mixed weights that are made at a time: 64 MiB in float32.
MADE = 1 << 24
# Coefficients Q of a kernel, about, per pass: compilers take long for many.
ROWS = (800, 300, 200)
AGAIN = 40
NAMES = ("forward", "backward", "double_backward")
_KERNEL = """

@triton.jit
def {name}({pointers}, C: tl.constexpr, REAL: tl.constexpr, BLOCK: tl.constexpr):
    node = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m = c < C
    of_x = (node * C + c) * {variables}
    of_out = (node * C + c) * {outputs}
    of_w = node * {terms} * C + c
{load}
{body}
{store}
"""

# Output, three variables, weight, Q.
Row = tuple[int, int, int, int, int, float]


class Layer:
    """What the constants say, see :class:`~gaunt_plugin.ops.Polynomials`.

    Attributes:
        weights: the rows of each weight.
    """

    def __init__(self, variables: int, outputs: int, terms: int, rows: list[Row]) -> None:
        self.variables, self.outputs, self.terms = variables, outputs, terms
        self.weights: list[list[Row]] = [[] for _ in range(terms)]
        for row in rows:
            self.weights[row[4]].append(row)

    def parts(self, number: int) -> list[list[int]]:
        """The weights of each kernel of a pass."""
        found, room = [], 0
        for t, rows in enumerate(self.weights):
            if room < len(rows) or not found:
                found.append([])
                room = ROWS[number]
            found[-1].append(t)
            room -= len(rows)
        return found

    @functools.cached_property
    def text(self) -> str:
        """Source of the kernels of all passes."""
        kernels = [
            _kernel(self, number, k, weights)
            for number in range(3)
            for k, weights in enumerate(self.parts(number))
        ]
        return source.HEAD + "".join(kernels)


@functools.lru_cache(maxsize=64)
def layer_of(numbers: tuple[int, ...], values: tuple[float, ...]) -> Layer:
    """What is done for a node."""
    variables, outputs, terms, rows, _ = Polynomials.arguments(list(numbers), list(values))
    good = min(variables, outputs, terms) > 0 and len(numbers) == 4 + 5 * len(rows)
    limits = outputs, variables + 1, variables + 1, variables + 1, terms
    if not good or any(not 0 <= n < limit for row in rows for n, limit in zip(row, limits)):
        raise ValueError("numbers out of range")
    return Layer(variables, outputs, terms, [(*r, v) for r, v in zip(rows, values, strict=True)])


def _pieces(
    layer: Layer, x: list[Value], weights: list[int]
) -> Iterator[tuple[int, int, list[Value]]]:
    """Weight, output, and parts of the polynomial that is their coefficient, one per ``x_i``."""
    E = x[0].owner
    x = [*x, E.constant(1)]
    for t in weights:
        for o, rows in itertools.groupby(sorted(layer.weights[t]), key=lambda row: row[0]):
            found = []
            for i, of_i in itertools.groupby(rows, key=lambda row: row[1]):
                inner = [
                    x[j] * E.sum(row[5] * x[row[3]] for row in of_j)
                    for j, of_j in itertools.groupby(of_i, key=lambda row: row[2])
                ]
                found.append(x[i] * E.sum(inner))
            yield t, o, found


def _kernel(layer: Layer, number: int, part: int, weights: list[int]) -> str:
    E = Expressions()
    second = number == launch.DOUBLE_BACKWARD
    x, vx = E.inputs("x", layer.variables), E.inputs("vx", layer.variables)
    results = _results(number)
    lines: list[tuple[Value, str]] = []
    reached: set[int] = set()
    nothing = E.constant(0)
    of_weights = itertools.groupby(_pieces(layer, x, weights), key=lambda piece: piece[0])
    for t, polynomials in of_weights:
        w, vw = E.input(f"w{t}"), E.input(f"vw{t}")
        lines.append((nothing, f"w_{t} = tl.zeros([BLOCK], REAL)"))
        for _, o, pieces in polynomials:
            reached.add(o)
            g = E.input(f"g{o}")
            for piece in pieces:
                values = {f"out_{o}": w * piece}
                if "of_x" in results:
                    of_x = gradient([piece], [g * w], x)
                    values |= {f"x_{k}": value for k, value in enumerate(of_x)}
                    values[f"w_{t}"] = g * piece
                if number == launch.BACKWARD:
                    del values[f"out_{o}"]
                for name, value in values.items():
                    if second:
                        value = tangent([value], {**dict(zip(x, vx)), w: vw})[0]
                    if not value.is_constant(0):
                        to = name.split("_")[0]
                        to = "out" if to == "out" else f"of_{to}"
                        lines.append((value, f"if to_{to} is not None: {name} += {{}}"))
        if "of_w" in results:
            store = f"tl.store(to_of_w + of_w + {t} * C, w_{t}, mask=m)"
            lines.append((nothing, f"if to_of_w is not None: {store}"))

    places = {"x": "of_x + {}", "g": "of_out + {}", "w": "of_w + {} * C"}

    def load(name: str) -> str | None:
        letters = name.rstrip("0123456789")
        if letters[-1] == "x":
            return None
        place = places[letters[-1]].format(name[len(letters) :])
        return f"tl.load({letters} + {place}, mask=m, other=0).to(REAL)"

    before, after = [], []
    for letters in ["x"] + ["vx"] * second:
        before += [
            f"{letters}{k} = tl.load({letters} + of_x + {k}, mask=m, other=0).to(REAL)"
            for k in range(layer.variables)
        ]
    sums = {
        "out": [(f"out_{o}", f"to_out + of_out + {o}") for o in sorted(reached)],
        "of_x": [(f"x_{k}", f"to_of_x + of_x + {k}") for k in range(layer.variables)],
    }
    for to in results[:-1] if number != launch.FORWARD else results:
        for name, place in sums[to]:
            ready = f"if to_{to} is not None: "
            before.append(f"{ready}{name} = tl.load({place}, mask=m, other=0).to(REAL)")
            after.append(f"{ready}tl.store({place}, {name}, mask=m)")
    return _KERNEL.format(
        name=f"{NAMES[number]}_{part}",
        pointers=", ".join([*_operands(number), *(f"to_{name}" for name in results)]),
        variables=layer.variables,
        outputs=layer.outputs,
        terms=layer.terms,
        load=source.indented(before, 1),
        body=source.indented(statements(lines, load, AGAIN), 1),
        store=source.indented(after, 1),
    )


def _operands(number: int) -> list[str]:
    return ["x", "w", *["g"] * (number != launch.FORWARD), *["vx", "vw"] * (number == 2)]


def _results(number: int) -> list[str]:
    """Those of a pass; that of the weights is last."""
    return ["out"] * (number != launch.BACKWARD) + ["of_x", "of_w"] * (number != launch.FORWARD)


def run(number: int, constants: torch.Tensor, arguments: launch.Arguments) -> None:
    """A pass; the arrays are those of operators.h."""
    layer = launch.constants_of(constants, layer_of)
    x = arguments.take("node_feats", (None, None, layer.variables))
    nodes, channels = x.shape[:2]
    weights = arguments.take("weights", (None, channels, layer.terms))
    attrs = arguments.take("node_attrs", (nodes, len(weights)))
    of_result = nodes, channels, layer.outputs
    g = vx = v_weights = out = of_x = of_weights = None
    if number != launch.FORWARD:
        g = arguments.take("grad", of_result)
    if number == launch.DOUBLE_BACKWARD:
        vx = arguments.take("direction of node_feats", x.shape)
        v_weights = arguments.take_optional("direction of weights", weights.shape)
    if number != launch.BACKWARD:
        name = "result" if number == launch.FORWARD else "gradient of grad"
        out = arguments.result(name, of_result)
    if number != launch.FORWARD:
        of_x = arguments.result_optional("gradient of node_feats", x.shape)
        of_weights = arguments.result_optional("gradient of weights", weights.shape)
    arguments.finish()

    kernels = source.module_of("polynomials", layer.text)
    # Channels last; of all elements one matrix.
    matrix, v_matrix = (
        None if t is None else t.transpose(1, 2).reshape(len(weights), -1)
        for t in (weights, v_weights)
    )
    total = None if of_weights is None else torch.zeros_like(matrix)
    # Sums over several launches are kept in their own precision.
    sums = [
        t if t is None else t.new_zeros(t.shape, dtype=launch.accumulator(t.dtype))
        for t in (out, of_x)
    ]
    count = max(1, min(nodes, MADE // (layer.terms * channels)))
    for begin in range(0, nodes, count):
        part = slice(begin, begin + count)
        w = attrs[part] @ matrix
        arrays = [x[part], w]
        if number != launch.FORWARD:
            arrays.append(g[part])
        if number == launch.DOUBLE_BACKWARD:
            vw = torch.zeros_like(w) if v_matrix is None else attrs[part] @ v_matrix
            arrays += [vx[part], vw]
        of_w = None if total is None else torch.empty_like(w)
        parts = {"out": sums[0], "of_x": sums[1]}
        parts = {name: None if t is None else t[part] for name, t in parts.items()}
        _launch(layer, kernels, number, arrays, parts | {"of_w": of_w})
        if total is not None:
            total.addmm_(attrs[part].t(), of_w)
    for result, made in zip((out, of_x), sums):
        if result is not None:
            result.copy_(made)
    if of_weights is not None:
        of_weights.copy_(total.view(len(weights), layer.terms, channels).transpose(1, 2))


def _launch(layer: Layer, kernels, number: int, arrays, results: dict) -> None:
    nodes, channels = arrays[0].shape[:2]
    names = _results(number)
    # In float64 the sums of all second derivatives need more registers.
    together = [names]
    if number == launch.DOUBLE_BACKWARD and launch.words(arrays[0]) == 2:
        together = [[name] for name in names]
    for group in together:
        wanted = [results[name] if name in group else None for name in names]
        for k in range(len(layer.parts(number))):
            launch.over_channels(
                getattr(kernels, f"{NAMES[number]}_{k}"),
                nodes,
                channels,
                arrays,
                wanted,
                REAL=launch.real(arrays[0]),
            )
