"""The product of functions on the sphere through 2D Fourier series, as published."""

from __future__ import annotations

from typing import List

import numpy as np
import torch

from gaunt_plugin.layers._sphere_product import SphereProduct, input_scales
from gaunt_plugin.sphere import fourier_coefficients, fourier_projection


class FourierProduct(SphereProduct):
    r"""The same product as :class:`SphereProduct`, by fast Fourier transforms.

    Coefficients of harmonics become those of a 2D Fourier series, their convolution is a product
    on a torus between two FFTs, and the result is projected on harmonics. With
    ``s . (grad A x grad B) sin(theta) = dA/dtheta dB/dphi - dA/dphi dB/dtheta``, the measure of
    the sphere cancels the sine, and gradients are factors iu and iv.

    Source: Luo, Chen, Krishnapriyan, ICLR 2024, arXiv 2401.10216, section on the 2D Fourier basis.
    """

    def _prepare(self) -> None:
        # Frequencies up to lmax1 + lmax2 lie below that of Nyquist.
        self.size = 2 * (self.lmax1 + self.lmax2) + 2
        self.vmax = min(max(ir.l for ir in self.irreps3), self.lmax1 + self.lmax2)

    def _values(self, ls: List[int], lmax: int) -> np.ndarray:
        series = fourier_coefficients(ls, lmax) * input_scales(ls, False)[:, None, None]
        return _pairs(series).reshape(len(series), -1)

    def _gradients(self, ls: List[int], lmax: int) -> np.ndarray:
        series = fourier_coefficients(ls, lmax) * input_scales(ls, True)[:, None, None]
        u = np.concatenate([np.arange(lmax + 1), np.arange(-lmax, 0)])
        v = np.arange(lmax + 1)
        both = np.stack([1j * u[:, None] * series, 1j * v * series], axis=1)
        return _pairs(both).reshape(len(series), -1)

    def _projection(self, ls: List[int], antisymmetric: bool) -> np.ndarray:
        frequencies = np.fft.fftfreq(self.size, 1 / self.size)
        table = fourier_projection(ls, frequencies, self.vmax, not antisymmetric)
        # Negative v are the complex conjugates: Re(c W) twice for v > 0.
        table = table * np.where(np.arange(self.vmax + 1) > 0, 2, 1)[:, None]
        parts = np.stack([table.real, -table.imag], axis=2)  # uvpc
        return parts.reshape(-1, parts.shape[-1])

    def _evaluate(self, c: torch.Tensor, table: torch.Tensor, lmax: int) -> torch.Tensor:
        if table.shape[0] == 0:
            return table
        # ri,if->rf, one or two fields of 2 (2 lmax + 1) (lmax + 1) real numbers
        flat = c @ table
        if flat.shape[0] == 0:  # which the FFT refuses
            fields = flat.shape[1] // (2 * (2 * lmax + 1) * (lmax + 1))
            return flat[:, :1].expand(0, fields * self.size * self.size)
        series = torch.view_as_complex(flat.view(-1, 2 * lmax + 1, lmax + 1, 2))
        gap = series.new_zeros([series.shape[0], self.size - 2 * lmax - 1, lmax + 1])
        series = torch.cat([series[:, : lmax + 1], gap, series[:, lmax + 1 :]], dim=1)
        field = torch.fft.irfft2(series, s=[self.size, self.size], norm="forward")
        return field.reshape(c.shape[0], -1)

    def _project(self, field: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        if field.shape[0] == 0:
            return field[:, :1].expand(0, table.shape[0]) @ table
        torus = field.view(-1, self.size, self.size)
        series = torch.fft.rfft2(torus, norm="forward")[:, :, : self.vmax + 1]
        # rf,fk->rk
        return torch.view_as_real(series).reshape(field.shape[0], table.shape[0]) @ table


def _pairs(z: np.ndarray) -> np.ndarray:
    """Complex numbers as pairs of real ones, on a new last axis."""
    return np.stack([z.real, z.imag], axis=-1)
