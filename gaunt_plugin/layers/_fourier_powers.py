"""Powers of functions on the sphere through 2D Fourier series, as published."""

from __future__ import annotations

from typing import List

import numpy as np
import torch

from gaunt_plugin.layers._torus import FromSeries, ToSeries, to_series, to_torus, torus_size


class FourierPowers:
    """Powers by divide and conquer, for a module that makes them on a grid.

    ``F^2 = F F``, ``F^3 = F F^2``, ``F^4 = F^2 F^2``, ...: each is one convolution of series by
    fast Fourier transforms of the size that it needs.
    """

    def _make_tables(
        self, ls_in: List[int], ls_out: List[int], scale: np.ndarray, factors: np.ndarray
    ) -> None:
        lmax = max(ls_in)
        self.frequencies = [n * lmax for n in range(2, len(factors) + 2)]
        self.sizes = [torus_size(frequency) for frequency in self.frequencies]
        self.to_series = ToSeries(ls_in, lmax, scale)
        self.project = torch.nn.ModuleList(
            FromSeries(ls_out, frequency, row) for frequency, row in zip(self.frequencies, factors)
        )

    def _projected(self, c: torch.Tensor) -> torch.Tensor:
        powers = [self.to_series(c)]
        out: List[torch.Tensor] = []
        for i, project in enumerate(self.project):
            half = (i + 2) // 2
            small, large = powers[half - 1], powers[i + 1 - half]
            first = to_torus(small, self.sizes[i])
            second = first if 2 * half == i + 2 else to_torus(large, self.sizes[i])
            powers.append(to_series(first * second, self.frequencies[i]))
            out.append(project(powers[-1]))
        return torch.stack(out, dim=1)
