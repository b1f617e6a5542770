"""Conversion between spherical harmonics and 2D Fourier series.

A function on the sphere, in the polar angle theta (from y) and the azimuth phi (from z to x), is a
trigonometric polynomial in both, continued to ``0 <= theta < 2 pi``.
"""

from __future__ import annotations

import numpy as np

from gaunt_plugin.sphere.harmonics import real_harmonics


def _points(theta: np.ndarray, phi: np.ndarray) -> np.ndarray:
    sine = np.sin(theta)
    parts = [np.outer(sine, np.sin(phi)), np.outer(np.cos(theta), np.ones_like(phi))]
    points = np.stack([*parts, np.outer(sine, np.cos(phi))], axis=-1).reshape(-1, 3)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def fourier_coefficients(degrees: list[int], lmax: int) -> np.ndarray:
    """Coefficients of ``Y_lm = sum_uv c_uv exp(i (u theta + v phi))``.

    Args:
        degrees: the degrees wanted, none above ``lmax``.
        lmax: highest frequency.

    Returns:
        ``[components, 2 lmax + 1, lmax + 1]``, complex: ``u = 0..lmax, -lmax..-1`` and
        ``v = 0..lmax``; those of negative v follow from the function being real.

    Raises:
        ValueError: a degree above ``lmax``.

    Source: Luo, Chen, Krishnapriyan, ICLR 2024, arXiv 2401.10216.
    """
    if max(degrees, default=0) > lmax:
        raise ValueError(f"degrees must be at most lmax = {lmax}, got {list(degrees)}")
    n = 2 * lmax + 1
    angle = 2 * np.pi * np.arange(n) / n
    values = real_harmonics(degrees, _points(angle, angle)).T.reshape(-1, n, n)
    return np.fft.fft2(values, norm="forward")[:, :, : lmax + 1]


def fourier_projection(
    degrees: list[int], frequencies: np.ndarray, vmax: int, with_measure: bool
) -> np.ndarray:
    """``1/(4 pi) int_0^pi int_0^2pi exp(i (u theta + v phi)) Y_lm [sin theta] dphi dtheta``.

    Args:
        degrees: the degrees wanted.
        frequencies: the values of u.
        vmax: highest v, from 0.
        with_measure: with ``sin theta``: the average over the sphere; without: that of a function
            divided by ``sin theta``, as in ``s . (grad A x grad B) sin theta = dA/dtheta dB/dphi -
            dA/dphi dB/dtheta``.

    Returns:
        ``[len(frequencies), vmax + 1, components]``, complex.
    """
    lmax = max(degrees, default=0)
    # Gauss-Legendre in theta converges beyond rounding for these frequencies.
    nodes, weights = np.polynomial.legendre.leggauss(
        2 * (lmax + int(max(np.abs(frequencies)))) + 40
    )
    theta, weights = np.pi * (nodes + 1) / 2, np.pi * weights / 2
    if with_measure:
        weights = weights * np.sin(theta)
    n = lmax + vmax + 1
    phi = 2 * np.pi * np.arange(n) / n
    values = real_harmonics(degrees, _points(theta, phi)).reshape(len(theta), n, -1)
    # The inverse transform has exp(+i v phi) and divides by n; 2 pi / 4 pi = 1/2.
    along = np.fft.ifft(values, axis=1)[:, : vmax + 1] / 2
    # t,ut,tvc->uvc
    waves = np.exp(1j * np.outer(frequencies, theta)) * weights
    return np.einsum("ut,tvc->uvc", waves, along)
