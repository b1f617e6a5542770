"""What the parametrisations of the many-body product have in common."""

from __future__ import annotations

import torch


class Parametrization(torch.nn.Module):
    """Base of the parametrisations: what is possible, unless a class says otherwise."""

    @classmethod
    def check(cls, correlation: int, antisymmetric: bool) -> None:
        """Raise ValueError unless these options are possible."""
        if antisymmetric:
            raise ValueError(
                f"parametrization {cls.__name__.lower()!r} has no antisymmetric products; use "
                "'nested'"
            )
