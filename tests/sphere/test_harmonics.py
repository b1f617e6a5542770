import numpy as np
import pytest
import torch

from gaunt_plugin.sphere import (
    degree_of_component,
    quadrature,
    real_harmonics,
    surface_gradients,
    tangents,
)

from ..e3nn_o3 import o3
from ..tolerances import assert_close

AXES = np.concatenate([np.eye(3), -np.eye(3)])


def points():
    rng = np.random.default_rng(0)
    random = rng.standard_normal((50, 3))
    near_poles = np.array([0, 1, 0]) * [[1], [-1]] + 1e-7 * rng.standard_normal((2, 3))
    every = np.concatenate([random, near_poles, AXES])
    return every / np.linalg.norm(every, axis=1, keepdims=True)


@pytest.mark.parametrize("l", range(11))
def test_equal_to_e3nn(l):
    s = points()
    expected = o3.spherical_harmonics(
        l, torch.from_numpy(s), normalize=False, normalization="component"
    )
    assert_close(real_harmonics([l], s), expected, "oracle")


@pytest.mark.parametrize("l", [0, 1, 5, 12, 20, 40])
def test_component_normalisation(l):
    y = real_harmonics([l], points())
    assert_close((y**2).sum(1), np.full(len(y), 2 * l + 1.0), "oracle")


@pytest.mark.parametrize("l", [1, 4, 15])
def test_parity_and_poles(l):
    s = points()
    assert_close(real_harmonics([l], -s), (-1) ** l * real_harmonics([l], s), "oracle")
    pole = np.zeros((1, 2 * l + 1))
    pole[0, l] = np.sqrt(2 * l + 1)
    assert_close(real_harmonics([l], np.array([[0.0, 1.0, 0.0]])), pole, "oracle")


def test_addition_theorem():
    s = points()
    for l in (1, 3, 7):
        y = real_harmonics([l], s)
        legendre = np.polynomial.legendre.legval(s @ s.T, np.eye(l + 1)[l])
        assert_close(y @ y.T, (2 * l + 1) * legendre, "oracle")


def test_degrees_are_concatenated_in_the_order_given():
    s = points()
    parts = [real_harmonics([l], s) for l in (3, 0, 2)]
    np.testing.assert_array_equal(real_harmonics([3, 0, 2], s), np.concatenate(parts, axis=1))
    assert real_harmonics([], s).shape == (len(s), 0)
    assert real_harmonics([2], np.zeros((0, 3))).shape == (0, 5)
    assert degree_of_component([3, 0, 2]).tolist() == [0] * 7 + [1] + [2] * 5


@pytest.mark.parametrize("l", range(1, 11))
def test_surface_gradients_are_those_of_e3nn(l):
    s = points()
    x = torch.from_numpy(s).requires_grad_()
    # of the function without its dependence on the length
    y = o3.spherical_harmonics(l, x, normalize=True, normalization="component")
    expected = torch.stack(
        [torch.autograd.grad(c.sum(), x, retain_graph=True)[0] for c in y.unbind(1)], dim=2
    )
    actual = surface_gradients([l], s)
    assert actual.shape == (len(s), 3, 2 * l + 1)
    assert np.abs(actual - expected.numpy()).max() < 1e-11 * (l + 1) ** 2


@pytest.mark.parametrize("l", [0, 1, 5, 12])
def test_surface_gradients_are_tangent_and_of_known_size(l):
    rule = quadrature(2 * l)
    g = surface_gradients([l], rule.nodes)
    assert np.abs(np.einsum("gx,gxi->gi", rule.nodes, g)).max() < 1e-11
    overlap = np.einsum("g,gxi,gxj->ij", rule.weights, g, g)
    assert np.abs(overlap - l * (l + 1) * np.eye(2 * l + 1)).max() < 1e-12 * (l + 1) ** 2


def test_surface_gradients_are_concatenated_in_the_order_given():
    s = points()
    parts = [surface_gradients([l], s) for l in (3, 0, 2)]
    np.testing.assert_array_equal(surface_gradients([3, 0, 2], s), np.concatenate(parts, axis=2))
    assert surface_gradients([], s).shape == (len(s), 3, 0)


def test_tangents_are_a_right_handed_frame():
    s = points()
    frame = np.concatenate([tangents(s), s[:, None]], axis=1)
    assert_close(frame @ frame.transpose(0, 2, 1), np.tile(np.eye(3), (len(s), 1, 1)), "oracle")
    assert_close(np.linalg.det(frame), np.ones(len(s)), "oracle")


@pytest.mark.parametrize("function", [real_harmonics, surface_gradients])
@pytest.mark.parametrize(
    ("degrees", "s", "message"),
    [
        ([1, -1], AXES, r">= 0, got \[1, -1\]"),
        ([1], AXES[0], r"\[G, 3\], got \[3\]"),
        ([1], AXES[:, :2], r"\[G, 3\], got \[6, 2\]"),
        ([1], 1.001 * AXES, "unit vectors"),
        ([1], np.full((1, 3), np.nan), "unit vectors"),
    ],
)
def test_bad_input(function, degrees, s, message):
    with pytest.raises(ValueError, match=message):
        function(degrees, s)
