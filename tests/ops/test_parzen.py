import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

import tfalign
from tests import reference
from tfalign.ops.similarity import parzen


def test_equals_the_reference(rng, run):
    fixed = rng.standard_normal((2, 7, 9, 2)).astype(np.float32)
    moving = (fixed**2 + 0.3 * rng.standard_normal(fixed.shape)).astype(np.float32)
    moving[0, 0, 0] = 1e4  # beyond three standard deviations
    weight = rng.choice([0.0, 0.5, 1.0], (2, 7, 9, 1)).astype(np.float32)
    found = run(lambda f, m, w: parzen.mutual_information(f, m, w, levels=6), fixed, moving, weight)
    for sample in range(2):
        each = [
            reference.parzen_information(
                fixed[sample, ..., channel].ravel(), moving[sample, ..., channel].ravel(), weight[sample].ravel(), 6
            )
            for channel in range(2)
        ]
        np.testing.assert_allclose(found[sample], np.mean(each), rtol=1e-4)


def test_levels_foretell_a_function_of_them(rng, run):
    fixed = rng.uniform(-1, 1, (2, 40, 41, 2)).astype(np.float32)
    moving = (np.cos(2 * fixed) + 0.1 * rng.standard_normal(fixed.shape)).astype(np.float32)
    weight = (rng.random((2, 40, 41, 1)) > 0.2).astype(np.float32)
    moving = np.where(weight > 0, moving, 1e6)
    found = run(parzen.foretold, fixed, moving, weight)
    np.testing.assert_allclose(found, np.cos(2 * fixed), atol=0.2)  # its windows round the ends off
    assert np.mean(np.abs(found - np.cos(2 * fixed))) < 0.03
    np.testing.assert_array_equal(run(parzen.foretold, fixed, moving, np.zeros_like(weight)), np.zeros_like(fixed))


@pytest.mark.parametrize("shape", [(40,), (12, 13), (6, 7, 8)])
def test_any_rank_and_any_gain(rng, shape):
    fixed, moving = rng.standard_normal((2, 3, *shape, 1)).astype(np.float32)
    weight = np.ones((3, *shape, 1), np.float32)
    value = parzen.mutual_information(fixed, moving, weight)
    assert value.shape == (3,)
    np.testing.assert_allclose(parzen.mutual_information(moving, fixed, weight), value, rtol=1e-4)
    np.testing.assert_allclose(parzen.mutual_information(fixed, 5.0 - 3.0 * moving, weight), value, rtol=1e-3)


def test_gradient_is_that_of_the_value(rng, run):
    fixed = rng.standard_normal((1, 6, 6, 1))
    moving = fixed + 0.5 * rng.standard_normal(fixed.shape)
    weight = np.ones((1, 6, 6, 1))

    def value_and_gradient(f, m, w):
        with tf.GradientTape() as tape:
            tape.watch(m)
            value = parzen.mutual_information(f, m, w, levels=8)
        return value, tape.gradient(value, m)

    _, gradient = run(value_and_gradient, fixed, moving, weight)
    # A change that leaves both ends of the range where they are.
    step = rng.standard_normal(moving.shape) * (moving > moving.min()) * (moving < moving.max())
    values = [
        run(lambda f, m, w: parzen.mutual_information(f, m, w, levels=8), fixed, moving + sign * 1e-5 * step, weight)[0]
        for sign in (1, -1)
    ]
    np.testing.assert_allclose(np.sum(gradient * step), (values[0] - values[1]) / 2e-5, rtol=1e-3)


@pytest.mark.parametrize("fill", [0.0, 7.0])
def test_nothing_to_tell_is_zero_and_finite(rng, run, fill):
    flat, picture = np.full((2, 8, 8, 1), fill, np.float32), rng.standard_normal((2, 8, 8, 1)).astype(np.float32)
    weight = np.ones((2, 8, 8, 1), np.float32)
    weight[1] = 0.0

    def value_and_gradient(f, m, w):
        with tf.GradientTape() as tape:
            tape.watch(m)
            value = parzen.mutual_information(f, m, w)
        return value, tape.gradient(value, m)

    for left, right in ((flat, picture), (picture, flat), (picture, picture)):
        value, gradient = run(value_and_gradient, left, right, weight)
        assert np.all(np.isfinite(gradient))
        np.testing.assert_allclose(value[1], 0.0, atol=1e-5)
        assert value[0] < 1e-5 or (left is picture and right is picture)


def test_its_gradient_finds_a_fraction_of_a_pixel(rng):
    """A remapped picture, off by (0.3, -0.4) px: gradient ascent over the warp's shift ends there."""
    field = scipy.ndimage.gaussian_filter(rng.standard_normal((80, 80)), 2.5)
    field /= field.std()
    fixed = field[16:64, 16:64].astype(np.float32)[None, ..., None]
    moved = scipy.ndimage.shift(field, (0.3, -0.4), order=5)[10:70, 10:70]
    moving = np.cos(2.0 * moved).astype(np.float32)[None, ..., None]

    @tf.function
    def value_and_gradient(shift):
        with tf.GradientTape() as tape:
            tape.watch(shift)
            aligned, mask = tfalign.warp(
                moving, tfalign.ops.geometry.from_translation(shift), output_shape=(48, 48), interpolation="linear"
            )
            value = parzen.mutual_information(fixed, aligned, mask[..., tf.newaxis], levels=24)
        return value, tape.gradient(value, shift)

    shift = tf.zeros([1, 2])
    for _ in range(60):
        _, gradient = value_and_gradient(shift)
        shift += 0.05 * gradient / tf.maximum(tf.norm(gradient), 1.0)
    np.testing.assert_allclose(shift, [[0.3, -0.4]], atol=0.1)
