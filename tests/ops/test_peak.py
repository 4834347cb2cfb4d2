import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tfalign.ops import peak


def gaussians(rng, window, count=6, reach=0.45):
    """Maps with one skewed peak up to `reach` pixels from the middle, one number or one per axis, and their truth."""
    away = np.stack(np.meshgrid(*(np.arange(n) - n // 2 for n in window), indexing="ij"), axis=-1)
    truth = np.array(reach) * rng.uniform(-1, 1, (count, len(window)))
    skew = np.eye(len(window)) + 0.2 * rng.standard_normal((count, len(window), len(window)))
    bent = np.einsum("nij,n...j->n...i", skew, away - truth[:, *[np.newaxis] * len(window)])
    return np.exp(-0.5 * np.sum(bent**2, axis=-1) / 3.5**2), truth


@pytest.mark.parametrize("window", [(13,), (11, 13), (9, 9, 11)])
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-12, 0.0), (1e12, -3e12)])
def test_the_fraction_of_a_smooth_peak(rng, run, window, scale, offset):
    maps, truth = gaussians(rng, window)
    best = np.argmax(maps.reshape(len(maps), -1), axis=1).astype(np.int32)
    whole = np.stack(np.unravel_index(best, window), axis=-1) - np.array(window) // 2
    flat = (maps * scale + offset).reshape(len(maps), -1).astype(np.float32)
    found = run(lambda values, index: peak.fraction(values, index, window), flat, best)
    assert np.max(np.abs(truth)) > 0.3
    np.testing.assert_allclose(found, np.clip(truth - whole, -0.499, 0.499), atol=3e-3)


@pytest.mark.parametrize("window", [(9,), (9, 5), (5, 3, 7)])
@pytest.mark.parametrize("missing", [False, True])
def test_the_fraction_is_that_of_the_polynomial(rng, run, window, missing):
    maps = gaussians(rng, window, count=12, reach=np.array(window) / 2)[0]
    best = np.argmax(maps.reshape(len(maps), -1), axis=1).astype(np.int32)
    at = np.stack(np.unravel_index(best, window), axis=-1)
    if missing:
        far = np.max(np.abs(np.stack(np.indices(window), axis=-1) - at[:, *[np.newaxis] * len(window)]), axis=-1) > 2
        far &= rng.random(far.shape) < 0.8
        maps = np.where(far, -np.inf, maps)
    flat = maps.reshape(len(maps), -1).astype(np.float32)
    found = run(lambda values, index: peak.fraction(values, index, window), flat, best)
    expected = np.stack([reference.fraction(*pair, reach=4) for pair in zip(maps, at)])
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert np.mean(np.abs(expected)) > 0.05


def test_no_fraction_where_neighbours_are_missing_or_nothing_bends(run):
    flat, ramp = np.zeros((1, 49), np.float32), np.arange(49, dtype=np.float32)[np.newaxis]
    alone = np.full((1, 49), -np.inf, np.float32)
    alone[0, 24] = 1.0
    for values in (flat, ramp, alone):
        found = run(lambda values: peak.fraction(values, tf.constant([24]), (7, 7)), values)
        np.testing.assert_array_equal(found, [[0.0, 0.0]])


def test_a_window_of_one_shift_has_no_fraction(run):
    found = run(lambda values: peak.fraction(values, tf.constant([1]), (1, 3)), np.float32([[0.8, 1.0, 0.9]]))
    assert found[0, 0] == 0.0
    np.testing.assert_allclose(found[0, 1], 1 / 6, atol=1e-5)


def test_the_fraction_at_the_border_points_inwards(run):
    values = np.float32([[0.9, 1.0, 1.05]])
    assert run(lambda one: peak.fraction(one, tf.constant([2]), (3,)), values)[0, 0] == 0.0
    assert run(lambda one: peak.fraction(one, tf.constant([0]), (3,)), values[:, ::-1])[0, 0] == 0.0
