"""e3nn's irreps, importable on every supported pair of e3nn and torch, and their checks."""

from __future__ import annotations

import torch

# e3nn 0.4.4 (pinned by MACE) unpickles a `slice` at import, which torch >= 2.6 refuses by default.
with torch.serialization.safe_globals([slice]):
    # Submodules, as in NequIP: what a packaged model imports goes into the package, and e3nn.o3
    # as a whole does not fit in.
    from e3nn.o3._irreps import Irrep, Irreps

__all__ = ["Irrep", "Irreps", "check_channels", "degrees_of", "functions_of"]


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


def check_channels(irreps_in, channels: int, irreps_out, channels_out: int) -> None:
    """Raise ValueError unless both sides have the same multiplicity."""
    if channels != channels_out:
        raise ValueError(
            "irreps_in and irreps_out must have the same multiplicity, got "
            f"{Irreps(irreps_in)} and {Irreps(irreps_out)}"
        )
