"""Which Clebsch-Gordan paths a product on the sphere reaches."""

from __future__ import annotations

from typing import NamedTuple

from gaunt_plugin.layers._irreps import Irrep, Irreps


class Path(NamedTuple):
    """A coupling of two irreps to a third; ``p`` is +1 or -1."""

    l1: int
    p1: int
    l2: int
    p2: int
    l3: int
    p3: int

    @property
    def irreps(self) -> tuple[Irrep, Irrep, Irrep]:
        """The three irreps."""
        return Irrep(self.l1, self.p1), Irrep(self.l2, self.p2), Irrep(self.l3, self.p3)

    @property
    def antisymmetric(self) -> bool:
        """Whether the path needs the antisymmetric product: ``l1 + l2 + l3`` is odd."""
        return (self.l1 + self.l2 + self.l3) % 2 == 1


def reachable_paths(
    irreps_in1: Irreps | str,
    irreps_in2: Irreps | str,
    irreps_out: Irreps | str,
    antisymmetric: bool = True,
) -> list[Path]:
    """Paths of O(3) that a product on the sphere has, sorted; multiplicities are not read.

    With the antisymmetric product these are all that Clebsch-Gordan has: every triple with
    ``|l1 - l2| <= l3 <= l1 + l2`` and ``p1 p2 = p3``. Without it, those with ``l1 + l2 + l3`` even.
    """
    first, second, third = (
        sorted({(ir.l, ir.p) for mul, ir in Irreps(irreps) if mul > 0})
        for irreps in (irreps_in1, irreps_in2, irreps_out)
    )
    every = [
        Path(*a, *b, *c)
        for a in first
        for b in second
        for c in third
        if abs(a[0] - b[0]) <= c[0] <= a[0] + b[0] and a[1] * b[1] == c[1]
    ]
    return [path for path in every if antisymmetric or not path.antisymmetric]


def paths_with_itself(
    irreps: Irreps | str, irreps_out: Irreps | str, antisymmetric: bool
) -> list[Path]:
    """Paths of a feature with itself: brackets of multiples of one function are zero."""
    return [
        path
        for path in reachable_paths(irreps, irreps, irreps_out, antisymmetric)
        if not path.antisymmetric or path.irreps[0] != path.irreps[1]
    ]
