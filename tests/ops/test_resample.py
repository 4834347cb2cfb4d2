import numpy as np
import pytest
import tensorflow as tf

import tfalign
from tests import reference
from tfalign.ops import geometry, resample

SIZES = [((9,), (13,)), ((12,), (7,)), ((6, 9), (9, 8)), ((5, 4), (5, 4)), ((4, 5, 3), (5, 4, 6))]


def batch_of(rng, shape, channels=2, batch=3):
    return rng.standard_normal((batch, *shape, channels)).astype(np.float32)


@pytest.mark.parametrize(("output", "size"), SIZES)
def test_warp_equals_the_reference(rng, run, output, size):
    moving, rank = batch_of(rng, size), len(size)
    matrix = np.tile(np.eye(rank + 1, dtype=np.float32), (3, 1, 1))
    matrix[:, :rank, :rank] += 0.1 * rng.standard_normal((3, rank, rank))
    matrix[:, :rank, -1] = rng.uniform(-4, 4, (3, rank))
    values, mask = run(lambda a, b: tfalign.warp(a, b, output_shape=output, fill_value=-5.0), moving, matrix)
    for sample in range(3):
        expected, expected_mask = reference.warp(moving[sample], matrix[sample], output, fill_value=-5.0)
        np.testing.assert_array_equal(mask[sample], expected_mask)
        np.testing.assert_allclose(values[sample], expected, atol=2e-5)
    assert 0 < np.mean(mask) < 1


@pytest.mark.parametrize(("output", "size"), SIZES)
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_whole_pixel_moves_copy_exactly(rng, run, output, size, interpolation):
    moving, rank = batch_of(rng, size) * 1e6, len(size)
    translation = rng.integers(-2, 3, (3, rank)).astype(np.float32)
    values, mask = run(
        lambda a, b: tfalign.warp(a, geometry.from_translation(b), output_shape=output, interpolation=interpolation),
        moving,
        translation,
    )
    shifted, shifted_mask = run(lambda a, b: resample.shift_by_pixels(a, b, output), moving, translation)
    np.testing.assert_array_equal(mask, shifted_mask)
    np.testing.assert_array_equal(values, np.where(np.asarray(mask)[..., np.newaxis] > 0, shifted, 0.0))
    for index in np.ndindex(*output):
        at = [i + m // 2 - n // 2 for i, m, n in zip(index, size, output)] + translation[0]
        if np.all(at >= 0) and np.all(at < size):
            np.testing.assert_array_equal(values[(0, *index)], moving[(0, *at.astype(int))])


def test_forward_then_inverse_gives_the_inner_part_back(rng):
    moving = batch_of(rng, (20, 20))
    transform = geometry.from_translation(tf.constant([[3.0, -2.0]] * 3))
    there, _ = tfalign.warp(moving, transform)
    back, _ = tfalign.warp(there, geometry.invert(transform))
    np.testing.assert_array_equal(back[:, 4:-4, 4:-4], moving[:, 4:-4, 4:-4])


def test_a_displacement_of_one_vector_equals_the_translation(rng, run):
    moving = batch_of(rng, (7, 9))
    field = np.broadcast_to(np.float32([1.25, -0.5]), (1, 7, 9, 2))
    by_field = run(lambda a, b: tfalign.warp(a, b), moving, field)
    by_transform = tfalign.warp(moving, geometry.from_translation(tf.constant([[1.25, -0.5]])))
    for one, other in zip(by_field, by_transform):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_non_finite_values_touch_only_their_readers(rng):
    moving = batch_of(rng, (8, 8), batch=1)
    moving[0, 3, 3] = np.nan
    values, _ = tfalign.warp(moving, geometry.from_translation(tf.constant([[1.0, 0.0]])))
    assert np.argwhere(np.isnan(values[0, ..., 0])).tolist() == [[2, 3]]


def test_nearest_keeps_class_ids_and_their_type():
    moving = np.arange(16, dtype=np.int32).reshape(1, 4, 4, 1)
    values, _ = tfalign.warp(moving, geometry.from_translation(tf.constant([[0.0, 1.4]])), interpolation="nearest")
    assert values.dtype == tf.int32
    np.testing.assert_array_equal(values[0, 0, :, 0], [1, 2, 0, 0])


@pytest.mark.parametrize("kind", ["values", "transform"])
def test_gradients_equal_finite_differences(rng, kind):
    moving = tf.constant(rng.standard_normal((1, 6, 7, 1)))
    matrix = np.eye(3)[np.newaxis].copy()
    matrix[0, :2] += 0.05 * rng.standard_normal((2, 3)) + [[0, 0, 0.3], [0, 0, 0.4]]
    weights = tf.constant(rng.standard_normal((1, 6, 7, 1)))

    def total(moving, matrix):
        return tf.reduce_sum(weights * tfalign.warp(moving, matrix)[0])

    arguments = [moving, tf.constant(matrix)]
    which = 0 if kind == "values" else 1
    with tf.GradientTape() as tape:
        tape.watch(arguments[which])
        result = total(*arguments)
    gradient = tape.gradient(result, arguments[which]).numpy()
    for index in [(0, 2, 3, 0), (0, 4, 1, 0)] if which == 0 else [(0, 0, 2), (0, 1, 0), (0, 1, 1)]:
        step = np.zeros(arguments[which].shape)
        step[index] = 1e-6
        ends = [total(*(a + s * step if i == which else a for i, a in enumerate(arguments))) for s in (1, -1)]
        np.testing.assert_allclose(gradient[index], (ends[0] - ends[1]) / 2e-6, rtol=1e-4, atol=1e-6)


def test_unknown_sizes(rng):
    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 1]), tf.TensorSpec([None, 2])])
    def move(moving, translation):
        return tfalign.warp(moving, geometry.from_translation(translation))

    moving = batch_of(rng, (5, 6), channels=1)
    translation = np.float32([[1, 0], [0, 1], [0.5, 0]])
    expected = tfalign.warp(moving, geometry.from_translation(tf.constant(translation)))
    np.testing.assert_array_equal(move(moving, translation)[0], expected[0])


@pytest.mark.parametrize(("size", "wanted"), [((7, 8), (4, 5)), ((4, 5), (7, 8)), ((4, 9), (9, 4))])
def test_crop_or_pad_keeps_the_center(rng, size, wanted):
    values = tf.constant(batch_of(rng, size))
    cut = resample.crop_or_pad(values, wanted)
    shifted, mask = resample.shift_by_pixels(values, tf.zeros([3, 2]), wanted)
    np.testing.assert_array_equal(cut, shifted * mask[..., tf.newaxis])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((np.zeros((4, 4)), np.eye(3)[None]), {}, ValueError, r"`moving` must have the shape.*moving.shape=\(4, 4\)"),
        ((np.zeros((1, 4, 4, 1)), np.eye(4)[None]), {}, ValueError, r"`transform_or_displacement`.*\(1, 4, 4\)"),
        ((np.zeros((1, 4, 4, 1)), np.eye(3)[None]), {"interpolation": "cubic"}, ValueError, "interpolation='cubic'"),
        ((np.zeros((1, 4, 4, 1)), np.eye(3)[None]), {"output_shape": (4,)}, ValueError, r"output_shape=\(4,\)"),
        ((np.array(["a"]), np.eye(3)[None]), {}, ValueError, "`moving` must have the shape"),
    ],
)
def test_bad_arguments(arguments, options, error, text):
    with pytest.raises(error, match=text):
        tfalign.warp(*arguments, **options)
