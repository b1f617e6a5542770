"""What the parametrisations of the many-body product have in common."""

from __future__ import annotations

import torch

from gaunt_plugin.layers.irreps import Irreps


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

    @classmethod
    def check_irreps(cls, irreps_in: Irreps, irreps_out: Irreps) -> None:
        """Raise ValueError unless these irreps are possible."""
