"""The product of functions on the sphere through 2D Fourier series, as published."""

from __future__ import annotations

from typing import List

import numpy as np
import torch

from gaunt_plugin.layers._method import choose_method
from gaunt_plugin.layers._sphere_product import SphereProduct, input_scales
from gaunt_plugin.layers._torus import FromSeries, ToSeries, to_series, to_torus, torus_size
from gaunt_plugin.layers.paths import Path


class FourierProduct(SphereProduct):
    r"""The same product as :class:`SphereProduct`, by fast Fourier transforms.

    Coefficients of harmonics become those of a 2D Fourier series, their convolution is a product
    on a torus between two FFTs, and the result is projected on harmonics. With
    ``s . (grad A x grad B) sin(theta) = dA/dtheta dB/dphi - dA/dphi dB/dtheta``, the measure of
    the sphere cancels the sine, and gradients are factors iu and iv.

    Source: Luo, Chen, Krishnapriyan, ICLR 2024, arXiv 2401.10216, section on the 2D Fourier basis.
    """

    method = "fourier"

    def _prepare(self) -> None:
        self.frequency = self.lmax1 + self.lmax2
        self.nodes = torus_size(self.frequency) ** 2

    def _values(self, ls: List[int], lmax: int) -> torch.nn.Module:
        return _ToTorus(ls, lmax, self.frequency, [""])

    def _gradients(self, ls: List[int], lmax: int) -> torch.nn.Module:
        return _ToTorus(ls, lmax, self.frequency, ["theta", "phi"])

    def _projection(self, ls: List[int], factors: np.ndarray, odd: bool) -> torch.nn.Module:
        return _FromTorus(ls, self.frequency, factors, odd)


def make_product(paths: List[Path], method: str, same: bool = False) -> SphereProduct:
    """The product of these paths by a method, or the one that ``"auto"`` chooses."""
    l1, l2, l3 = (max(path.irreps[i].l for path in paths) for i in range(3))
    cls = FourierProduct if choose_method(method, (l1, l2), l3) == "fourier" else SphereProduct
    return cls(paths, same)


class _ToTorus(torch.nn.Module):
    """Coefficients to one field, or both derivatives, on the torus, ``[rows, nodes]``."""

    def __init__(self, ls: List[int], lmax: int, frequency: int, kinds: List[str]) -> None:
        super().__init__()
        scales = input_scales(ls, len(kinds) > 1)
        self.size = torus_size(frequency)
        self.series = torch.nn.ModuleList(ToSeries(ls, lmax, scales, kind) for kind in kinds)

    def forward(self, c: torch.Tensor) -> torch.Tensor:
        fields: List[torch.Tensor] = []
        for series in self.series:
            fields.append(to_torus(series(c), self.size).reshape(c.shape[0], self.size * self.size))
        return torch.cat(fields, dim=1) if len(fields) > 1 else fields[0]


class _FromTorus(torch.nn.Module):
    """Values on the torus to coefficients."""

    def __init__(self, ls: List[int], frequency: int, factors: np.ndarray, odd: bool) -> None:
        super().__init__()
        self.size, self.frequency = torus_size(frequency), frequency
        self.project = FromSeries(ls, frequency, factors, odd)

    def forward(self, field: torch.Tensor) -> torch.Tensor:
        field = field.view(field.shape[0], self.size, self.size)
        return self.project(to_series(field, self.frequency))
