"""Straight-line arithmetic, its derivatives, and its text.

A layer's kernels are unrolled from such expressions: what is done for one edge or one node of the
quadrature, in one channel. Derivatives are those of the expressions, so that only values are
written by hand. Equal expressions are one object; products with 0 and 1 disappear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence


class Value:
    """A number of the arithmetic. ``kind`` is input, constant, add, sub, mul, neg or inverse."""

    __slots__ = ("arguments", "kind", "number", "owner")

    def __init__(self, owner: Expressions, kind: str, arguments: tuple, number: int) -> None:
        self.owner, self.kind, self.arguments, self.number = owner, kind, arguments, number

    def __add__(self, other: Value) -> Value:
        return self.owner.add(self, other)

    def __sub__(self, other: Value) -> Value:
        return self.owner.add(self, -other)

    def __mul__(self, other: Value | float) -> Value:
        if not isinstance(other, Value):
            other = self.owner.constant(other)
        return self.owner.multiply(self, other)

    __rmul__ = __mul__

    def __neg__(self) -> Value:
        return self.owner.negate(self)

    def is_constant(self, number: float) -> bool:
        return self.kind == "constant" and self.arguments[0] == number


class Expressions:
    """All values of a kernel, each once, in an order in which they can be computed."""

    def __init__(self) -> None:
        self.values: dict[tuple, Value] = {}

    def _value(self, kind: str, *arguments) -> Value:
        key = (kind, *(a.number if isinstance(a, Value) else a for a in arguments))
        if key not in self.values:
            self.values[key] = Value(self, kind, arguments, len(self.values))
        return self.values[key]

    def input(self, name: str) -> Value:
        return self._value("input", name)

    def inputs(self, name: str, count: int) -> list[Value]:
        return [self.input(f"{name}{k}") for k in range(count)]

    def constant(self, number: float) -> Value:
        return self._value("constant", float(number))

    def sum(self, values: Iterable[Value]) -> Value:
        total = self.constant(0)
        for value in values:
            total = total + value
        return total

    def negate(self, a: Value) -> Value:
        if a.kind == "constant":
            return self.constant(-a.arguments[0])
        if a.kind == "neg":
            return a.arguments[0]
        if a.kind == "sub":
            return self._value("sub", *a.arguments[::-1])
        return self._value("neg", a)

    def add(self, a: Value, b: Value) -> Value:
        if a.kind == b.kind == "constant":
            return self.constant(a.arguments[0] + b.arguments[0])
        if a.is_constant(0):
            return b
        if b.is_constant(0):
            return a
        if b.kind == "neg":
            return (
                self.constant(0) if a is b.arguments[0] else self._value("sub", a, b.arguments[0])
            )
        if a.kind == "neg":
            return self._value("sub", b, a.arguments[0])
        return self._value("add", a, b)

    def multiply(self, a: Value, b: Value) -> Value:
        if b.kind == "constant":
            a, b = b, a
        if a.kind == "constant":
            number = a.arguments[0]
            if b.kind == "constant":
                return self.constant(number * b.arguments[0])
            if number in (0, 1):
                return b if number else a
            if number == -1:
                return -b
            if b.kind == "mul" and b.arguments[0].kind == "constant":
                return self.multiply(
                    self.constant(number * b.arguments[0].arguments[0]), b.arguments[1]
                )
        if a.kind == "neg" or b.kind == "neg":
            product = self.multiply(*(v.arguments[0] if v.kind == "neg" else v for v in (a, b)))
            return product if a.kind == b.kind else -product
        return self._value("mul", *sorted((a, b), key=lambda value: value.number))

    def inverse(self, a: Value) -> Value:
        return self._value("inverse", a)


def gradient(
    outputs: Sequence[Value], weights: Sequence[Value], inputs: Sequence[Value]
) -> list[Value]:
    """Derivatives of ``sum_k weights_k outputs_k`` with respect to each input."""
    owner = outputs[0].owner
    zero = owner.constant(0)
    adjoint: dict[Value, Value] = {}

    def give(to: Value, value: Value) -> None:
        adjoint[to] = adjoint.get(to, zero) + value

    for output, weight in zip(outputs, weights):
        give(output, weight)
    for value in reversed(_in_order(outputs)):
        if value not in adjoint or value.kind in ("input", "constant"):
            continue
        given, arguments = adjoint[value], value.arguments
        if value.kind == "add":
            give(arguments[0], given), give(arguments[1], given)
        elif value.kind == "sub":
            give(arguments[0], given), give(arguments[1], -given)
        elif value.kind == "mul":
            a, b = arguments
            give(a, given * b), give(b, given * a)
        elif value.kind == "neg":
            give(arguments[0], -given)
        else:  # inverse
            give(arguments[0], -(given * value * value))
    return [adjoint.get(value, zero) for value in inputs]


def tangent(outputs: Sequence[Value], directions: dict[Value, Value]) -> list[Value]:
    """Derivatives of the outputs along a direction, given per input; 0 for all others."""
    if not outputs:
        return []
    zero = outputs[0].owner.constant(0)
    along: dict[Value, Value] = {}
    for value in _in_order(outputs):
        parts = [along[a] for a in value.arguments if isinstance(a, Value)]
        if value.kind == "input":
            along[value] = directions.get(value, zero)
        elif value.kind == "constant":
            along[value] = zero
        elif value.kind == "add":
            along[value] = parts[0] + parts[1]
        elif value.kind == "sub":
            along[value] = parts[0] - parts[1]
        elif value.kind == "mul":
            a, b = value.arguments
            along[value] = parts[0] * b + a * parts[1]
        elif value.kind == "neg":
            along[value] = -parts[0]
        else:  # inverse
            along[value] = -(parts[0] * value * value)
    return [along[value] for value in outputs]


def _in_order(outputs: Iterable[Value]) -> list[Value]:
    """All values that the outputs depend on, arguments first."""
    found: set[Value] = set()
    waiting = list(outputs)
    while waiting:
        value = waiting.pop()
        if value not in found:
            found.add(value)
            waiting += [a for a in value.arguments if isinstance(a, Value)]
    return sorted(found, key=lambda value: value.number)


def statements(
    outputs: Sequence[tuple[Value, str]],
    load: Callable[[str], str | None],
    again: int = 0,
    early: Sequence[Value] = (),
    terms: int = 6,
) -> list[str]:
    """Lines of Python that compute the outputs one after the other.

    Args:
        outputs: each with the line that uses it, ``{}`` in its place.
        load: the text that gives an input its value; None where it has one, under its own name.
        again: inputs are loaded once more where they were last used more than so many lines
            before; 0: never. Registers are scarcer than loads from the cache.
        early: values that are computed as soon as what they depend on is: sums that are cheaper
            to keep than their terms.
        terms: of a line, about.
    """
    order = _in_order(value for value, _ in outputs)
    uses: dict[Value, int] = dict.fromkeys(order, 0)
    for value in order:
        for a in value.arguments:
            if isinstance(a, Value):
                uses[a] += 1
    for value, _ in outputs:
        uses[value] += 1
    lines: list[str] = []
    names: dict[Value, str] = {}  # of those that have a variable
    last: dict[Value, int] = {}  # the line that used an input last
    kept: set[Value] = set()  # computed before they are used
    open_texts: dict[Value, tuple[str, int]] = {}  # of those that are written where they are used

    def text_of(value: Value) -> tuple[str, int]:
        if value.kind == "constant":
            return repr(value.arguments[0]), 0
        if value.kind == "input":
            name = value.arguments[0]
            source = load(name)
            if source is not None:
                old = last.get(value)
                if old is None or (again and len(lines) - old > again):
                    lines.append(f"{name} = {source}")
                last[value] = len(lines)
            return name, 1
        return (names[value], 1) if value in names else open_texts.pop(value)

    def compute(value: Value) -> None:
        texts = [text_of(a) for a in value.arguments]
        kind, size = value.kind, sum(count for _, count in texts)
        bare = [t for t, _ in texts]
        parenthesised = [
            f"({t})" if a.kind in ("add", "sub", "neg") and a not in names else t
            for t, a in zip(bare, value.arguments)
        ]
        if kind == "add":
            text = f"{bare[0]} + {bare[1]}"
        elif kind == "sub":
            text = f"{bare[0]} - {parenthesised[1]}"
        elif kind == "mul":
            right = value.arguments[1]
            inner = right.kind in ("mul", "inverse") and right not in names
            text = f"{parenthesised[0]} * {f'({bare[1]})' if inner else parenthesised[1]}"
        elif kind == "neg":
            text = f"-{parenthesised[0]}"
        else:
            text = f"1.0 / ({bare[0]})"
        if uses[value] > 1 or size >= terms or kind == "inverse" or value in kept:
            names[value] = f"t{len(names)}"
            lines.append(f"{names[value]} = {text}")
        else:
            open_texts[value] = text, size

    done: set[Value] = set()

    def evaluate(output: Value) -> None:
        stack = [(output, False)]
        while stack:
            value, ready = stack.pop()
            if value in done or value.kind in ("input", "constant"):
                continue
            if ready:
                done.add(value)
                compute(value)
            else:
                stack.append((value, True))
                stack += [(a, False) for a in reversed(value.arguments)]

    def nearly_done(value: Value, depth: int) -> bool:
        if value in done or value.kind in ("input", "constant"):
            return True
        return depth > 0 and all(nearly_done(a, depth - 1) for a in value.arguments)

    sums = sorted(partial_sums(early) & uses.keys(), key=lambda value: value.number)
    for output, line in outputs:
        evaluate(output)
        lines.append(line.format(text_of(output)[0]))
        for value in sums:
            if value not in done and nearly_done(value, 4):
                kept.add(value)
                evaluate(value)
        sums = [value for value in sums if value not in done]
    return lines


def partial_sums(values: Iterable[Value]) -> set[Value]:
    """The sums that are made on the way to sums, ``a + b`` on that to ``a + b + c``."""
    found = set()
    for value in values:
        while value.kind in ("add", "sub"):
            found.add(value)
            value = value.arguments[0]
    return found
