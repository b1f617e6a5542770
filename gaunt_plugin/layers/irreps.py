"""Irreps: their checks, the paths between them, and the layouts of features.

Features of one multiplicity come in three layouts, all in the order of the irreps:

* flat, ``[nodes, channels * sum(2l+1)]``: e3nn's and the hosts', per irrep ``[channels, 2l+1]``
* channels first, ``[nodes, channels, sum(2l+1)]``: of many-body products (MACE's messages)
* channels last, ``[nodes, sum(2l+1), channels]``: of convolutions
"""

from __future__ import annotations

from typing import List, NamedTuple, Tuple

import torch

from gaunt_plugin.sphere.coupling import Function

# e3nn 0.4.4 (pinned by MACE) unpickles a `slice` at import, which torch >= 2.6 refuses by default.
with torch.serialization.safe_globals([slice]):
    # Submodules, as in NequIP: what a packaged model imports goes into the package, and e3nn.o3
    # as a whole does not fit in.
    from e3nn.o3._irreps import Irrep, Irreps
    from e3nn.o3._linear import Linear as E3nnLinear
    from e3nn.o3._wigner import wigner_3j

__all__ = [
    "E3nnLinear",
    "Function",
    "Irrep",
    "Irreps",
    "Path",
    "channels_first",
    "channels_last",
    "check_channels",
    "degrees_of",
    "flat",
    "flat_first",
    "functions_of",
    "irrep_of",
    "is_pseudo",
    "of_kinds",
    "ordered",
    "paths_with_itself",
    "reachable_paths",
    "sum_of",
    "wigner_3j",
]


def is_pseudo(ir: Irrep) -> bool:
    """Whether the parity is pseudo, ``-(-1)^l``, rather than natural, ``(-1)^l``."""
    return ir.p != (-1) ** ir.l


def irrep_of(l: int, pseudo: bool) -> Irrep:
    """Irrep of a degree and a kind of parity."""
    return Irrep(l, (-1) ** (l + pseudo))


def ordered(irreps) -> List[Irrep]:
    """Distinct irreps, natural ones first, by degree."""
    return sorted(set(irreps), key=lambda ir: (is_pseudo(ir), ir.l))


def degrees_of(irreps: Irreps | str, name: str) -> tuple[int, tuple[int, ...]]:
    """Multiplicity and degrees of irreps with one multiplicity and natural parity.

    Raises:
        ValueError: different multiplicities, pseudo parity, or degrees not strictly increasing.
    """
    irreps = Irreps(irreps)
    if not irreps or len({mul for mul, _ in irreps}) != 1:
        raise ValueError(f"{name} must have one multiplicity for all degrees, got {irreps}")
    wrong = [str(ir) for _, ir in irreps if ir.p != (-1) ** ir.l]
    if wrong:
        raise ValueError(
            f"{name} must have natural parity (0e, 1o, 2e, ...), got {', '.join(wrong)} in {irreps}"
        )
    degrees = tuple(ir.l for _, ir in irreps)
    if list(degrees) != sorted(set(degrees)):
        raise ValueError(f"{name} must list each degree once, in increasing order, got {irreps}")
    return irreps[0].mul, degrees


def functions_of(irreps: Irreps | str, name: str) -> tuple[int, list[tuple[int, bool]]]:
    """Multiplicity and, per irrep, its degree and whether its parity is pseudo, ``-(-1)^l``.

    Raises:
        ValueError: different multiplicities, or an irrep listed twice.
    """
    irreps = Irreps(irreps)
    if not irreps or len({mul for mul, _ in irreps}) != 1 or irreps[0].mul < 1:
        raise ValueError(f"{name} must have one multiplicity for all irreps, got {irreps}")
    if len({ir for _, ir in irreps}) != len(irreps):
        raise ValueError(f"{name} must list each irrep once, got {irreps}")
    return irreps[0].mul, [(ir.l, ir.p != (-1) ** ir.l) for _, ir in irreps]


def of_kinds(functions: List[Function]) -> List[Tuple[int, ...]]:
    """Degrees of natural and of pseudo parity, each in increasing order."""
    return [tuple(sorted(l for l, kind in functions if kind == k)) for k in (False, True)]


def check_channels(irreps_in, channels: int, irreps_out, channels_out: int) -> None:
    """Raise ValueError unless both sides have the same multiplicity."""
    if channels != channels_out:
        raise ValueError(
            "irreps_in and irreps_out must have the same multiplicity, got "
            f"{Irreps(irreps_in)} and {Irreps(irreps_out)}"
        )


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


def channels_first(x: torch.Tensor, channels: int, dims: List[int]) -> torch.Tensor:
    """e3nn's flat layout ``[nodes, channels * sum(2l+1)]`` -> ``[nodes, channels, sum(2l+1)]``."""
    parts = x.split([channels * d for d in dims], dim=-1)
    return torch.cat([part.view(-1, channels, d) for part, d in zip(parts, dims)], dim=-1)


def channels_last(x: torch.Tensor, channels: int, dims: List[int]) -> torch.Tensor:
    """:func:`channels_first` with the axes exchanged, ``[nodes, sum(2l+1), channels]``."""
    return channels_first(x, channels, dims).transpose(1, 2).contiguous()


def flat(x: torch.Tensor, dims: List[int]) -> torch.Tensor:
    """Inverse of :func:`channels_last`."""
    return flat_first(x.transpose(1, 2), dims)


def flat_first(x: torch.Tensor, dims: List[int]) -> torch.Tensor:
    """Inverse of :func:`channels_first`."""
    return torch.cat([part.flatten(1) for part in x.split(dims, dim=-1)], dim=-1)


def sum_of(parts: List[torch.Tensor]) -> torch.Tensor:
    """The sum of one or more tensors."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
