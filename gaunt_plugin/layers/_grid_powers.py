"""Powers of functions on the sphere on an exact grid."""

from __future__ import annotations

from typing import List

import numpy as np
import torch

from gaunt_plugin.layers._recompute import projected_powers
from gaunt_plugin.layers._tables import TableModule
from gaunt_plugin.sphere import quadrature, real_harmonics


class GridPowers(TableModule):
    """Base of modules that need the powers 2, 3, ... of functions, projected."""

    def _make_tables(
        self, ls_in: List[int], ls_out: List[int], scale: np.ndarray, factors: np.ndarray
    ) -> None:
        """Tables for inputs scaled per component and results scaled per order and component."""
        rule = quadrature((len(factors) + 1) * max(ls_in) + max(ls_out))
        self.register_table("to_grid", (real_harmonics(ls_in, rule.nodes) * scale).T)
        project = real_harmonics(ls_out, rule.nodes) * rule.weights[:, None]
        self.register_table("from_grid", project * factors[:, None])

    def _projected(self, c: torch.Tensor) -> torch.Tensor:
        """``[rows, components]`` -> ``[rows, orders, components_out]``."""
        return projected_powers(c, self.to_grid, self.from_grid)
