"""Mathematics of functions on the sphere: float64 NumPy, no torch, no e3nn, no host.

Convention of the whole package: a real function on the sphere is ``f(s) = sum_lm f_lm Y_lm(s)``
with e3nn's real spherical harmonics in *component* normalisation (``|Y_l(s)|^2 = 2l + 1``) and
e3nn's component order (``m = -l..l``, polar axis y). Integrals are averages over the sphere,
``<f> = (1 / 4 pi) int f ds``, under which these harmonics are orthonormal.
"""

from gaunt_plugin.sphere.coupling import (
    antisymmetric,
    gaunt,
    monomials,
    nested_polynomials,
    nested_terms,
    of_monomials,
)
from gaunt_plugin.sphere.fourier import fourier_coefficients, fourier_projection
from gaunt_plugin.sphere.harmonics import (
    degree_of_component,
    real_harmonics,
    surface_gradients,
    tangents,
)
from gaunt_plugin.sphere.quadrature import Quadrature, quadrature
from gaunt_plugin.sphere.statistics import coupling_count, coupling_norm, coupling_rms, power_rms

__all__ = [
    "Quadrature",
    "antisymmetric",
    "coupling_count",
    "coupling_norm",
    "coupling_rms",
    "degree_of_component",
    "fourier_coefficients",
    "fourier_projection",
    "gaunt",
    "monomials",
    "nested_polynomials",
    "nested_terms",
    "of_monomials",
    "power_rms",
    "quadrature",
    "real_harmonics",
    "surface_gradients",
    "tangents",
]
