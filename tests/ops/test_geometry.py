import numpy as np
import pytest
import tensorflow as tf

from tfalign.ops import geometry


def transforms(rng, rank, batch=4):
    matrix = np.tile(np.eye(rank + 1, dtype=np.float32), (batch, 1, 1))
    matrix[:, :rank, :rank] += 0.2 * rng.standard_normal((batch, rank, rank))
    matrix[:, :rank, -1] = 3.0 * rng.standard_normal((batch, rank))
    return matrix


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_inverse_undoes(rng, rank, run):
    matrix = transforms(rng, rank)
    points = rng.uniform(-20, 20, (4, 7, rank)).astype(np.float32)
    back = run(
        lambda m, p: geometry.apply_to_points(geometry.invert(m), geometry.apply_to_points(m, p)), matrix, points
    )
    np.testing.assert_allclose(back, points, atol=1e-3)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_compose_applies_the_inner_first(rng, rank):
    outer, inner = transforms(rng, rank), transforms(rng, rank)
    points = rng.uniform(-20, 20, (4, 7, rank)).astype(np.float32)
    one_by_one = geometry.apply_to_points(outer, geometry.apply_to_points(inner, points))
    at_once = geometry.apply_to_points(geometry.compose(outer, inner), points)
    np.testing.assert_allclose(at_once, one_by_one, atol=1e-3)


def test_a_translation_inverts_exactly():
    translation = tf.constant([[3.25, -7.5], [0.0, 8.0]])
    inverse = geometry.invert(geometry.from_translation(translation))
    np.testing.assert_array_equal(geometry.translation_of(inverse), -translation)


def test_from_translation_moves_every_point_alike():
    transform = geometry.from_translation(tf.constant([[2.0, -1.0]]))
    moved = geometry.apply_to_points(transform, tf.constant([[[0.0, 0.0], [5.0, 4.0]]]))
    np.testing.assert_array_equal(moved, [[[2.0, -1.0], [7.0, 3.0]]])


def test_a_singular_transform_has_no_inverse():
    with pytest.raises(tf.errors.InvalidArgumentError):
        geometry.invert(tf.zeros([1, 3, 3]))


@pytest.mark.parametrize(("fixed", "moving"), [(5, 8), (8, 5), (7, 7), (6, 9)])
def test_center_offsets_are_antisymmetric_and_additive(fixed, moving):
    assert geometry.center_offset(fixed, moving) == -geometry.center_offset(moving, fixed)
    assert geometry.center_offset(fixed, 4) + geometry.center_offset(4, moving) == geometry.center_offset(fixed, moving)


def test_centered_grid_counts_from_the_middle():
    np.testing.assert_array_equal(geometry.centered_grid([4])[:, 0], [-2, -1, 0, 1])
    np.testing.assert_array_equal(geometry.centered_grid([3, 5])[0, 0], [-1, -2])


def test_spatial_shape_mixes_static_and_dynamic_sizes():
    seen = []

    @tf.function(input_signature=[tf.TensorSpec([None, 6, None, 2])])
    def measure(values):
        shape = geometry.spatial_shape(values)
        seen.append(shape[0])
        return tf.stack(shape)

    np.testing.assert_array_equal(measure(tf.zeros([1, 6, 9, 2])), [6, 9])
    assert seen == [6]
