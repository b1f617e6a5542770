"""Triton kernels of ``gaunt::edge_frames``, the recursion of ops/edge_frames.py unrolled.

A program has a block of edges; a thread has one of them. Derivatives are those of the unrolled
expressions, in reverse, so that each pass writes only its results.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from gaunt_plugin.ops.cuda import launch, source
from gaunt_plugin.ops.cuda.expressions import Expressions, Value, gradient, statements, tangent

BLOCK = 128  # edges of a program
_KERNEL = """

@triton.jit(do_not_specialize=["edges"])
def {name}({pointers}, edges, REAL: tl.constexpr, BLOCK: tl.constexpr):
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m = e < edges
{body}
"""


def rotations(
    expressions: Expressions, numbers: Iterator[int], values: Iterator[float]
) -> list[Value]:
    """The entries of an edge, from the inputs x0, x1, x2 and ``sign``, that of x1."""
    lmax, mmax = next(numbers), next(numbers)
    one, sign = expressions.constant(1), expressions.input("sign")
    out = [one]
    if lmax == 0:
        return out
    axis = x, y, z = expressions.inputs("x", 3)
    w = expressions.inverse(one + sign * y)
    cos = [-(sign * x * z * w), -z, sign * (one - z * z * w)]
    sin = [one - x * x * w, -(sign * x), -(x * z * w)]
    # Per row i the columns of D^l.
    old = [[axis[i], cos[i], sin[i]] if mmax > 0 else [axis[i]] for i in range(3)]
    out += [entry for row in old for entry in row]
    for l in range(1, lmax):
        columns = 2 * min(l, mmax) + 1
        places = [[next(numbers) for _ in range(3)] for _ in range(next(numbers))]
        coupling = [next(values) for _ in places]
        axial, top = [next(values) for _ in range(columns)], next(values)
        grown: list[list[list[Value]]] = [
            [[] for _ in range(2 * min(l + 1, mmax) + 1)] for _ in range(2 * l + 3)
        ]
        for (row, component, direction), q in zip(places, coupling):
            for k in range(columns):
                grown[row][k].append(q * axial[k] * (old[component][k] * axis[direction]))
            if l < mmax:
                c, t = old[component][-2:]
                pair = (
                    c * cos[direction] - t * sin[direction],
                    c * sin[direction] + t * cos[direction],
                )
                for k, part in enumerate(pair):
                    grown[row][columns + k].append(q * top * part)
        old = [[expressions.sum(parts) for parts in row] for row in grown]
        out += [entry for row in old for entry in row]
    return out


@functools.lru_cache(maxsize=64)
def text_of(numbers: tuple[int, ...], values: tuple[float, ...]) -> tuple[int, str]:
    """Number of entries of an edge, and source of the three passes."""
    expressions = Expressions()
    numbers_left, values_left = iter(numbers), iter(values)
    out = rotations(expressions, numbers_left, values_left)
    if [*numbers_left, *values_left]:
        raise ValueError("too many constants")
    n = len(out)
    x, v, g = (expressions.inputs(k, c) for k, c in (("x", 3), ("v", 3), ("g", n)))
    first = gradient(out, g, x)
    along = dict(zip(x, v))
    head = ["directions"]
    kernels = {
        "forward": (head + ["value"], _stores("value", n, out)),
        "backward": (head + ["g", "of_x"], _stores("of_x", 3, first)),
        "double_backward": (
            head + ["g", "v", "of_g", "of_x"],
            _stores("of_x", 3, tangent(first, along)) + _stores("of_g", n, tangent(out, along)),
        ),
    }
    text = source.HEAD
    for name, (pointers, outputs) in kernels.items():
        body = [
            f"x{k} = tl.load(directions + e * 3 + {k}, mask=m, other=0).to(REAL)" for k in range(3)
        ]
        body += ["sign = tl.where(x1 < 0, -1.0, 1.0).to(REAL)"]
        body += statements(outputs, functools.partial(_load, n), again=40)
        text += _KERNEL.format(
            name=name, pointers=", ".join(pointers), body=source.indented(body, 1)
        )
    return n, text


def _load(entries: int, name: str) -> str | None:
    if name[0] not in "gv":
        return None
    width = entries if name[0] == "g" else 3
    return f"tl.load({name[0]} + e * {width} + {name[1:]}, mask=m, other=0).to(REAL)"


def _stores(to: str, width: int, values: list[Value]) -> list[tuple[Value, str]]:
    return [
        (value, f"if {to} is not None: tl.store({to} + e * {width} + {k}, {{}}, mask=m)")
        for k, value in enumerate(values)
    ]


def run(number: int, constants: torch.Tensor, arguments: launch.Arguments) -> None:
    """A pass; the arrays are those of operators.h."""
    entries, text = launch.constants_of(constants, text_of)
    kernels = source.module_of("edge_frames", text)
    directions = arguments.take("directions", (None, 3))
    edges = directions.shape[0]
    arrays, results = [directions], []
    if number != launch.FORWARD:
        arrays.append(arguments.take("grad", (edges, entries)))
    if number == launch.DOUBLE_BACKWARD:
        arrays.append(arguments.take("direction of directions", (edges, 3)))
    if number == launch.FORWARD:
        results.append(arguments.result("result", (edges, entries)))
    if number == launch.DOUBLE_BACKWARD:
        results.append(arguments.result("gradient of grad", (edges, entries)))
    if number != launch.FORWARD:
        results.append(arguments.result_optional("gradient of directions", (edges, 3)))
    arguments.finish()
    # A launch per result: together they need more registers.
    for k, result in enumerate(results):
        if result is None:
            continue
        launch.start(
            getattr(kernels, ("forward", "backward", "double_backward")[number]),
            (-(-edges // BLOCK),),
            *arrays,
            *(result if i == k else None for i in range(len(results))),
            edges,
            REAL=launch.real(directions),
            BLOCK=BLOCK,
            num_warps=BLOCK // 32,
            # Triton 3.9 for sm_100 ends the process over fused operations of second derivatives.
            enable_fp_fusion=False,
        )
