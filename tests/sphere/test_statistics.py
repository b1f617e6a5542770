import math

import numpy as np
import pytest
import torch

from gaunt_plugin.sphere import coupling_count, coupling_rms, power_rms, quadrature, real_harmonics

from ..e3nn_o3 import o3
from ..tolerances import assert_close

DEGREES = (0, 1, 2, 3)


def normal_features(rng, samples, degrees):
    return {l: rng.standard_normal((samples, 2 * l + 1)) for l in degrees}


def paths(A, correlation):
    """Yield (degree, natural parity?, value) of every orthonormal chain of couplings."""
    states = [(l, (-1) ** l, value) for l, value in A.items()]
    for _ in range(correlation - 1):
        states = [
            (j, p * (-1) ** l, np.einsum("zi,zj,ijk->zk", value, A[l], wigner(k, l, j)))
            for k, p, value in states
            for l in A
            for j in range(abs(k - l), k + l + 1)
        ]
    return states


def wigner(l1, l2, l3):
    return math.sqrt(2 * l3 + 1) * o3.wigner_3j(l1, l2, l3, dtype=torch.float64).numpy()


@pytest.mark.parametrize(("degrees", "correlation"), [(DEGREES, 2), ((0, 1, 2), 3), ((1, 2), 3)])
def test_coupling_rms_is_that_of_clebsch_gordan_chains(degrees, correlation):
    A = normal_features(np.random.default_rng(0), 4000, degrees)
    every = paths(A, correlation)
    for l_out in range(3):
        mine = [v for k, p, v in every if k == l_out and p == (-1) ** l_out]
        assert len(mine) == coupling_count(degrees, correlation, l_out)
        # Weights of variance 1/P^2 on P paths.
        expected = math.sqrt(np.mean([np.mean(v**2) for v in mine]) / len(mine))
        assert_close(coupling_rms(degrees, correlation, l_out), expected, "statistic")


@pytest.mark.parametrize(
    ("degrees", "pseudo", "correlation"), [((0, 1), (0, 1), 2), ((0, 1), (1,), 3), ((), (0, 1), 3)]
)
def test_coupling_rms_with_pseudo_parity(degrees, pseudo, correlation):
    rng = np.random.default_rng(0)
    inputs = [(l, (-1) ** l) for l in degrees] + [(l, -((-1) ** l)) for l in pseudo]
    A = [(l, p, rng.standard_normal((4000, 2 * l + 1))) for l, p in inputs]
    every = A
    for _ in range(correlation - 1):
        every = [
            (j, p * q, np.einsum("zi,zj,ijk->zk", value, a, wigner(k, l, j)))
            for k, p, value in every
            for l, q, a in A
            for j in range(abs(k - l), k + l + 1)
        ]
    for l_out in range(3):
        for pseudo_out in (False, True):
            parity = (-1) ** (l_out + pseudo_out)
            mine = [v for k, p, v in every if k == l_out and p == parity]
            args = (degrees, correlation, l_out, pseudo, pseudo_out)
            assert len(mine) == coupling_count(*args)
            if mine:
                expected = math.sqrt(np.mean([np.mean(v**2) for v in mine]) / len(mine))
                if expected > 1e-10:
                    assert_close(coupling_rms(*args), expected, "statistic")
                else:  # only antisymmetric chains, which vanish
                    assert coupling_rms(*args) == 0
            else:
                assert coupling_rms(*args) == 0


def test_coupling_rms_of_the_input_itself_is_one():
    for l in DEGREES:
        assert coupling_rms(DEGREES, 1, l) == pytest.approx(1, abs=1e-12)
    assert coupling_rms(DEGREES, 1, 4) == 0
    assert coupling_rms((0, 2), 3, 1) == 0


def test_coupling_rms_is_that_of_a_fresh_mace_layer():
    reason = "compares with MACE's SymmetricContraction"
    contraction = pytest.importorskip("mace.modules.symmetric_contraction", reason=reason)
    torch.manual_seed(0)
    layer = contraction.SymmetricContraction(
        o3.Irreps("128x0e+128x1o+128x2e"), o3.Irreps("128x0e+128x1o"), 3, num_elements=1
    )
    x, one = torch.randn(100, 128, 9), torch.ones(100, 1)
    for l_out, part in enumerate(layer.contractions):
        # weights_max belongs to correlation 3, weights to 2, 1
        weights = [part.weights[1], part.weights[0], part.weights_max]
        fresh = [w.detach().clone() for w in weights]
        for order in (1, 2, 3):
            with torch.no_grad():
                for n, (w, value) in enumerate(zip(weights, fresh, strict=True), start=1):
                    w.copy_(value if n == order else torch.zeros_like(w))
                measured = part(x, one).square().mean().sqrt()
            assert_close(measured, coupling_rms((0, 1, 2), order, l_out), "scale")


POWERS = [(DEGREES, 1), (DEGREES, 2), (DEGREES, 3), ((0, 1), 4), ((1, 3), 3), ((2,), 3)]


@pytest.mark.parametrize("random_weights", [True, False])
@pytest.mark.parametrize(("degrees", "correlation"), POWERS[:3])
def test_power_rms_is_that_of_sampled_powers(degrees, correlation, random_weights):
    rng = np.random.default_rng(1)
    samples = 40_000
    rule = quadrature(correlation * max(degrees) + 2)
    field = np.zeros((samples, len(rule.nodes)))
    for l, a in normal_features(rng, samples, degrees).items():
        u = rng.standard_normal((samples, 1)) if random_weights else 1.0
        field += u * (a / math.sqrt(2 * l + 1)) @ real_harmonics([l], rule.nodes).T
    power = field**correlation * rule.weights
    for l_out in range(3):
        expected = math.sqrt(np.mean((power @ real_harmonics([l_out], rule.nodes)) ** 2))
        assert_close(power_rms(degrees, correlation, l_out, random_weights), expected, "statistic")


@pytest.mark.parametrize("random_weights", [True, False])
@pytest.mark.parametrize(
    ("degrees", "pseudo", "correlation"),
    [((0, 1), (0, 1), 2), ((1, 2), (0, 1), 3), ((), (1, 0), 3)],
)
def test_power_rms_with_pseudo_parity(degrees, pseudo, correlation, random_weights):
    """Natural and pseudo parts have an even and an odd number of pseudo factors."""
    rng = np.random.default_rng(1)
    samples = 40_000
    rule = quadrature(correlation * max(degrees + pseudo) + 2)
    fields = np.zeros((2, samples, len(rule.nodes)))
    for field, ls in zip(fields, (degrees, pseudo), strict=True):
        for l, a in normal_features(rng, samples, ls).items():
            u = rng.standard_normal((samples, 1)) if random_weights else 1.0
            field += u * (a / math.sqrt(2 * l + 1)) @ real_harmonics([l], rule.nodes).T
    for pseudo_out in (False, True):
        power = sum(
            math.comb(correlation, k) * fields[0] ** (correlation - k) * fields[1] ** k
            for k in range(int(pseudo_out), correlation + 1, 2)
        )
        for l_out in range(3):
            value = (power * rule.weights) @ real_harmonics([l_out], rule.nodes)
            expected = math.sqrt(np.mean(value**2))
            actual = power_rms(degrees, correlation, l_out, random_weights, pseudo, pseudo_out)
            if expected < 1e-10:
                assert actual == 0.0
            else:
                assert_close(actual, expected, "scale")  # products of many normals: slow


@pytest.mark.parametrize("random_weights", [True, False])
@pytest.mark.parametrize(("degrees", "correlation"), POWERS)
def test_power_rms_is_that_of_gaussian_integrals(degrees, correlation, random_weights):
    """All expectations by Gauss-Hermite rules, exact for these polynomials."""
    t, t_weights = np.polynomial.legendre.leggauss(correlation * max(degrees) + 4)
    z, z_weights = np.polynomial.hermite_e.hermegauss(2 * correlation + 1)
    z_weights = z_weights / z_weights.sum()
    # u2[k, i]: squared weight of the i-th degree at the k-th node of the rule over all weights
    n = len(degrees)
    if random_weights:
        u2 = np.stack(np.meshgrid(*[z**2] * n), axis=-1).reshape(-1, n)
        u_weights = np.prod(np.stack(np.meshgrid(*[z_weights] * n), axis=-1), -1).ravel()
    else:
        u2, u_weights = np.ones((1, n)), np.ones(1)
    legendre = np.stack([np.polynomial.legendre.legval(t, np.eye(l + 1)[l]) for l in degrees])
    variance, covariance = u2.sum(1)[:, None], u2 @ legendre  # of the field at two points
    along = covariance / np.sqrt(np.maximum(variance, 1e-300))
    across = np.sqrt(np.maximum(variance - along**2, 0))
    expected = np.zeros_like(t)
    for a, wa in zip(z, z_weights, strict=True):
        for b, wb in zip(z, z_weights, strict=True):
            product = (np.sqrt(variance) * a * (along * a + across * b)) ** correlation
            expected += wa * wb * (u_weights @ product)
    for l_out in range(5):
        kernel = np.polynomial.legendre.legval(t, np.eye(l_out + 1)[l_out])
        mean_square = 0.5 * np.sum(t_weights * kernel * expected)
        value = power_rms(degrees, correlation, l_out, random_weights)
        assert abs(value**2 - mean_square) < 1e-10 * np.abs(expected).max()
        assert (value == 0) == (mean_square < 1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("random_weights", [True, False])
def test_power_rms_vanishes_exactly_where_nothing_couples(random_weights):
    assert power_rms((0, 2), 3, 1, random_weights) == 0.0
    assert power_rms((1,), 2, 1, random_weights) == 0.0
    assert power_rms((1,), 8, 9, random_weights) == 0.0
    assert power_rms((1,), 8, 8, random_weights) > 0.0
