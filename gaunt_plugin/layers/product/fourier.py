"""Products of functions on the sphere through 2D Fourier series, as published.

No layer uses them: exact quadrature is faster at every degree measured (docs/mathematics.md). They
are the paper's own way, for comparison, and must give the same numbers.

A harmonic ``Y_lm`` has the frequencies ``v = |m|`` in the azimuth and ``u = -l..l`` in the polar
angle only, with coefficients that are one real vector times 1, -1, i or -i. So each conversion is
one small matrix per v: ``O(L^3)`` numbers, in place of the ``O(L^4)`` of a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import List

import numpy as np
import torch

from gaunt_plugin.layers.irreps import Path, is_pseudo, ordered
from gaunt_plugin.layers.product.sphere_product import input_scales, output_scale
from gaunt_plugin.ops.tables import TableModule
from gaunt_plugin.sphere import degree_of_component, fourier_coefficients, fourier_projection


def torus_size(frequency: int) -> int:
    """Smallest size above twice the frequency that the FFT likes: factors 2, 3 and 5."""
    size = 2 * frequency + 1
    while True:
        rest = size
        for p in (2, 3, 5):
            while rest % p == 0:
                rest //= p
        if rest == 1:
            return size
        size += 1


def to_torus(series: torch.Tensor, size: int) -> torch.Tensor:
    """Values ``[rows, size, size]`` of series ``[rows, 2 U + 1, U + 1]``, u = 0..U, -U..-1."""
    rows, top = series.shape[0], series.shape[2]
    if rows == 0:  # which the FFT refuses
        return series.real[:, :1, :1].expand(rows, size, size)
    gap = series.new_zeros([rows, size + 1 - 2 * top, top])
    padded = torch.cat([series[:, :top], gap, series[:, top:]], dim=1)
    return torch.fft.irfft2(padded, s=[size, size], norm="forward")


def to_series(field: torch.Tensor, frequency: int) -> torch.Tensor:
    """Inverse of :func:`to_torus`: the series up to a frequency of values on the torus."""
    if field.shape[0] == 0:
        zero = field[:, :1, :1].expand(0, 2 * frequency + 1, frequency + 1)
        return torch.complex(zero, zero)
    series = torch.fft.rfft2(field, norm="forward")[:, :, : frequency + 1]
    return torch.cat([series[:, : frequency + 1], series[:, series.shape[1] - frequency :]], dim=1)


class FourierProduct(torch.nn.Module):
    r"""Product of functions on the sphere, projected: ``<prod_k (A^k . Y) Y_LM>``.

    Harmonics become 2D Fourier series; a product of two is the convolution of their series, made
    by fast Fourier transforms of the size that it needs; more factors by divide and conquer, where
    equal factors (the same tensor) are multiplied once; the last series is projected on harmonics.

    Args:
        degrees_in: per factor its degrees, in order.
        degrees_out: degrees of the product, in order.
        scales_in: per factor, a number for each component; default: 1.
        scale_out: a number for each component of the product; default: 1.

    Shapes:
        per factor ``[rows, sum(2l+1)]`` -> ``[rows, sum(2L+1)]``.

    Source: Luo, Chen, Krishnapriyan, ICLR 2024, arXiv 2401.10216, section on the 2D Fourier basis.
    """

    def __init__(
        self,
        degrees_in: Sequence[Sequence[int]],
        degrees_out: Sequence[int],
        scales_in: Sequence[np.ndarray] | None = None,
        scale_out: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        if scales_in is None:
            scales_in = [np.ones(sum(2 * l + 1 for l in ls)) for ls in degrees_in]
        if scale_out is None:
            scale_out = np.ones(sum(2 * L + 1 for L in degrees_out))
        self.lmax = [max(ls) for ls in degrees_in]
        self.series = torch.nn.ModuleList(
            ToSeries(list(ls), max(ls), scale) for ls, scale in zip(degrees_in, scales_in)
        )
        self.project = FromSeries(list(degrees_out), sum(self.lmax), scale_out)

    @classmethod
    def of_paths(cls, paths: List[Path]) -> FourierProduct:
        """What :class:`~gaunt_plugin.layers.product.sphere_product.SphereProduct` computes.

        Raises:
            ValueError: paths with pseudo parity or antisymmetric ones.
        """
        irreps = [ordered(path.irreps[i] for path in paths) for i in range(3)]
        if any(path.antisymmetric for path in paths) or any(
            is_pseudo(ir) for irs in irreps for ir in irs
        ):
            raise ValueError("Fourier series multiply functions of natural parity only")
        degrees = [[ir.l for ir in irs] for irs in irreps]
        scale = np.array([output_scale(paths, ir, False, False) for ir in irreps[2]])
        return cls(
            degrees[:2],
            degrees[2],
            [input_scales(ls, False) for ls in degrees[:2]],
            scale[degree_of_component(degrees[2])],
        )

    def forward(self, *factors: torch.Tensor) -> torch.Tensor:
        series = [to_series(c) for to_series, c in zip(self.series, factors)]
        return self.project(self._multiply(series, self.lmax, [id(c) for c in factors]))

    def _multiply(self, series, lmax, names):
        if len(series) == 1:
            return series[0]
        half = (len(series) + 1) // 2
        frequency = sum(lmax)
        size = torus_size(frequency)
        first = self._multiply(series[:half], lmax[:half], names[:half])
        same = names[:half] == names[half:]
        second = first if same else self._multiply(series[half:], lmax[half:], names[half:])
        field = to_torus(first, size)
        return to_series(field * (field if same else to_torus(second, size)), frequency)


class ToSeries(TableModule):
    """Coefficients of harmonics to those of a Fourier series.

    Args:
        ls: degrees, in order.
        lmax: highest frequency, at least the highest degree.
        scales: one factor per component.

    Shapes:
        ``[rows, sum(2l+1)]`` -> complex ``[rows, 2 lmax + 1, lmax + 1]``.
    """

    def __init__(self, ls: List[int], lmax: int, scales: np.ndarray) -> None:
        super().__init__()
        self.lmax = lmax
        series = fourier_coefficients(ls, lmax) * np.asarray(scales)[:, None, None]
        # cuv -> vcu
        vectors, take, sign = _one_vector_each(ls, lmax, series.transpose(2, 0, 1))
        self.register_table("vectors", vectors)  # vlu
        self.register_table("take", take.ravel())  # vpl: components that give parts p, re and im
        self.register_table("sign", sign.ravel())

    def forward(self, c: torch.Tensor) -> torch.Tensor:
        rows = c.shape[0]
        orders, degrees, frequencies = self.vectors.shape
        parts = (c.index_select(1, self.take) * self.sign).view(rows, orders, 2, degrees)
        parts = parts.transpose(0, 1).reshape(orders, rows * 2, degrees) @ self.vectors
        parts = parts.view(orders, rows, 2, frequencies)
        return torch.complex(parts[:, :, 0], parts[:, :, 1]).permute(1, 2, 0)  # vru->ruv


class FromSeries(TableModule):
    """Projection of a Fourier series on harmonics, the average over the sphere.

    Args:
        ls: degrees, in order.
        frequency: U, the highest of the series.
        factors: one factor per component.

    Shapes:
        complex ``[rows, 2 U + 1, U + 1]`` -> ``[rows, sum(2l+1)]``.
    """

    def __init__(self, ls: List[int], frequency: int, factors: np.ndarray) -> None:
        super().__init__()
        self.frequency = frequency
        self.vmax = min(max(ls), frequency)
        u = np.arange(frequency + 1)
        table = fourier_projection(ls, u, self.vmax, True) * np.asarray(factors)
        # Functions on the sphere have s_-u = (-1)^v s_u: of each pair the part of the table that
        # the sum keeps, twice. Negative v are complex conjugates: twice.
        even = np.arange(self.vmax + 1) % 2 == 0
        sines = np.concatenate([np.arange(-l, l + 1) < 0 for l in ls])  # i sin for negative m
        table = np.where(even[:, None] != sines, table.real, 1j * table.imag)
        table = table * np.where(u > 0, 2, 1)[:, None, None]
        table = table * np.where(np.arange(self.vmax + 1) > 0, 2, 1)[:, None]
        vectors, take, sign = _one_vector_each(ls, self.vmax, table.transpose(1, 2, 0))
        self.register_table("vectors", vectors.transpose(0, 2, 1))  # vul
        # A component is the part p of degree l at order v: Re(z (a + ib)) = Re(z) a - Im(z) b.
        order, part, degree = np.nonzero(sign)
        components = take[order, part, degree]
        where = np.zeros(len(factors), dtype=np.int64)
        where[components] = np.ravel_multi_index((order, part, degree), sign.shape)
        signs = np.zeros(len(factors))
        signs[components] = sign[order, part, degree] * np.where(part == 1, -1, 1)
        self.register_table("where", where)
        self.register_table("sign", signs)

    def forward(self, series: torch.Tensor) -> torch.Tensor:
        rows = series.shape[0]
        orders, frequencies, degrees = self.vectors.shape
        # ruv->vru
        used = series[:, : self.frequency + 1, : self.vmax + 1].permute(2, 0, 1)
        parts = torch.stack([used.real, used.imag], dim=2)
        parts = parts.view(orders, rows * 2, frequencies) @ self.vectors
        parts = parts.view(orders, rows, 2 * degrees).transpose(0, 1)
        return parts.reshape(rows, orders * 2 * degrees).index_select(1, self.where) * self.sign


def _one_vector_each(
    ls: List[int], vmax: int, table: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split ``table [v, components, u]`` into real vectors and units 1, -1, i, -i.

    Returns:
        ``vectors [v, l, u]``; and, of shape ``[v, 2, l]``, the component whose unit is real, that
        whose unit is imaginary, and the units' signs (0: there is none).
    """
    starts = np.cumsum([0] + [2 * l + 1 for l in ls])
    vectors = np.zeros((vmax + 1, len(ls), table.shape[2]))
    take = np.zeros((vmax + 1, 2, len(ls)), dtype=np.int64)
    sign = np.zeros((vmax + 1, 2, len(ls)))
    for k, l in enumerate(ls):
        for v in range(min(l, vmax) + 1):
            for m in {v, -v}:
                component = starts[k] + l + m
                row = table[v, component]
                part = int(np.abs(row.imag).max() > np.abs(row.real).max())
                own = row.imag if part else row.real
                if np.abs(own).max() < 1e-13:
                    continue
                if not vectors[v, k].any():
                    vectors[v, k] = own
                take[v, part, k] = component
                sign[v, part, k] = np.sign(own @ vectors[v, k])
    return vectors, take, sign
