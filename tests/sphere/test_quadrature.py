import math

import numpy as np
import pytest

from gaunt_plugin.sphere import quadrature, real_harmonics

from ..tolerances import assert_close

DEGREES = [*range(32), 34, 35, 36, 47, 64, 131]
NEGATIVE_LEBEDEV = (13, 25, 27)


def monomial_average(powers):
    """Average of x^a y^b z^c over the sphere."""
    if any(p % 2 for p in powers):
        return 0.0
    top = math.prod(math.prod(range(1, p, 2)) for p in powers)
    return top / math.prod(range(1, sum(powers) + 2, 2))


@pytest.mark.parametrize("method", ["lebedev", "product"])
@pytest.mark.parametrize("degree", DEGREES)
def test_harmonics_are_orthonormal(degree, method):
    rule = quadrature(degree, method)
    half = degree // 2
    degrees = range(half + 1) if degree < 32 else [0, 1, half // 3, half - 1, half]
    a = real_harmonics(degrees, rule.nodes)
    assert_close(a.T @ (rule.weights[:, None] * a), np.eye(a.shape[1]), "oracle")
    # The highest degree that may stand beside these; for odd degrees of the rule a new one.
    b = real_harmonics([degree - half], rule.nodes)
    overlap = a.T @ (rule.weights[:, None] * b)
    expected = np.zeros(overlap.shape)
    if degree % 2 == 0:
        expected[-b.shape[1] :] = np.eye(b.shape[1])
    assert np.abs(overlap - expected).max() < 1e-12


@pytest.mark.parametrize("method", ["lebedev", "product"])
@pytest.mark.parametrize("degree", [0, 1, 2, 3, 8, 13, 25, 27, 40])
def test_monomials_are_integrated_exactly(degree, method):
    rule = quadrature(degree, method)
    for total in (degree, max(degree - 1, 0)):
        for a in range(total + 1):
            powers = (a, (total - a) // 2, total - a - (total - a) // 2)
            value = rule.weights @ np.prod(rule.nodes**powers, axis=1)
            assert abs(value - monomial_average(powers)) < 1e-14


@pytest.mark.parametrize(("degree", "method"), [(d, "auto") for d in DEGREES] + [(132, "auto")])
def test_rules_are_positive_and_ordered_in_antipodal_pairs(degree, method):
    rule = quadrature(degree, method)
    half = len(rule.nodes) // 2
    assert rule.degree >= degree
    assert rule.nodes.shape == (2 * half, 3)
    assert (rule.weights > 0).all()
    assert rule.weights.sum() == pytest.approx(1, abs=1e-14)
    np.testing.assert_array_equal(rule.nodes[half:], -rule.nodes[:half])
    np.testing.assert_array_equal(rule.weights[half:], rule.weights[:half])
    np.testing.assert_allclose(np.linalg.norm(rule.nodes, axis=1), 1, atol=1e-15)


def test_nodes_are_distinct():
    for rule in (quadrature(11), quadrature(10, "product")):
        gaps = np.linalg.norm(rule.nodes[:, None] - rule.nodes, axis=-1)
        assert gaps[~np.eye(len(gaps), dtype=bool)].min() > 1e-3


@pytest.mark.parametrize("degree", [*NEGATIVE_LEBEDEV, *(d - 1 for d in NEGATIVE_LEBEDEV)])
def test_lebedev_rules_with_negative_weights_are_not_used(degree):
    assert quadrature(degree).degree not in NEGATIVE_LEBEDEV


def test_auto_takes_the_fewest_nodes():
    assert len(quadrature(11).nodes) == 50
    assert len(quadrature(11, "product").nodes) == 72
    assert quadrature(131).method == "lebedev"


def test_product_rule_continues_beyond_lebedev():
    rule = quadrature(140)
    assert rule.method == "product"
    assert rule.degree == 140
    y = real_harmonics([0, 70], rule.nodes)
    assert_close(y.T @ (rule.weights[:, None] * y), np.eye(y.shape[1]), "oracle")


def test_rules_are_read_only():
    rule = quadrature(5)
    with pytest.raises(ValueError, match="read-only"):
        rule.nodes[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        rule.weights[0] = 0


@pytest.mark.parametrize("degree", [-1, 2.5, 3.0, "3", None])
def test_bad_degree(degree):
    with pytest.raises(ValueError, match="integer >= 0"):
        quadrature(degree)


def test_bad_method():
    with pytest.raises(ValueError, match=r"'fibonacci'.*lebedev, product"):
        quadrature(3, "fibonacci")


def test_lebedev_never_weakens():
    with pytest.raises(ValueError, match=r"132.*131"):
        quadrature(132, "lebedev")
