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


@pytest.mark.parametrize("size", [1, 2, 3])
def test_cramers_rule_solves(rng, size):
    matrix, vector = rng.standard_normal((4, size, size)), rng.standard_normal((4, size))
    rows = [[tf.constant(matrix[:, row, column]) for column in range(size)] for row in range(size)]
    numerators, determinant = geometry.cramer(rows, [tf.constant(vector[:, row]) for row in range(size)])
    np.testing.assert_allclose(determinant, np.linalg.det(matrix))
    found = np.stack(numerators, axis=-1) / determinant[:, np.newaxis]
    np.testing.assert_allclose(found, np.linalg.solve(matrix, vector[..., np.newaxis])[..., 0])


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


def parameters(rng, rank, batch=6):
    """Angles that name one rotation only, any factors."""
    planes = rank * (rank - 1) // 2
    return geometry.Parameters(
        translation=rng.uniform(-9, 9, (batch, rank)),
        rotation=rng.uniform(-170, 170, (batch, planes)) * [1.0, 0.5, 1.0][: max(planes, 0)],
        shear=rng.uniform(-40, 40, (batch, planes)),
        scale=rng.uniform(0.4, 2.5, (batch, rank)),
    )


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_decompose_gives_back_what_made_a_transform(rng, run, rank):
    made = parameters(rng, rank)

    def there_and_back(*parts):
        translation, rotation, shear, scale = parts
        return geometry.decompose(geometry.make(translation, rotation=rotation, shear=shear, scale=scale))

    for found, expected in zip(run(there_and_back, *made), made):
        np.testing.assert_allclose(found, expected, atol=1e-8)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_any_transform_is_made_of_its_parameters(rng, rank):
    matrix = transforms(rng, rank, batch=20).astype(float)
    matrix[:, :rank, :rank] += rng.standard_normal((20, rank, rank))  # mirrored ones too
    translation, rotation, shear, scale = geometry.decompose(matrix)
    assert np.any(np.linalg.det(matrix) < 0)
    assert np.all(scale[:, :-1] > 0)
    np.testing.assert_allclose(
        geometry.make(translation, rotation=rotation, shear=shear, scale=scale), matrix, atol=1e-9
    )


def test_make_is_translation_after_rotation_after_shear_after_scale():
    """By hand, for one point: scaled, sheared along the rows, turned by a quarter, moved."""
    transform = geometry.make([[10.0, 20.0]], rotation=[[90.0]], shear=[[45.0]], scale=[[2.0, 3.0]])
    moved = geometry.apply_to_points(transform, tf.constant([[[1.0, 1.0]]]))
    # (1, 1) -> (2, 3) -> (2 + 3, 3) -> (-3, 5) -> (7, 25)
    np.testing.assert_allclose(moved, [[[7.0, 25.0]]], atol=1e-5)


def test_rotations_of_a_volume_are_about_plane_row_and_col():
    """Each angle alone turns the two other axes, first to second."""
    for number, (first, second) in enumerate(geometry.PLANES[3]):
        angles = np.zeros((1, 3))
        angles[0, number] = 90.0
        turn = geometry.make(np.zeros((1, 3)), rotation=angles)[0, :3, :3].numpy()
        axis = ({0, 1, 2} - {first, second}).pop()
        np.testing.assert_allclose(turn[:, axis], np.eye(3)[axis], atol=1e-12)
        np.testing.assert_allclose(turn[:, first], np.eye(3)[second], atol=1e-12)


@pytest.mark.parametrize("middle", [90.0, -90.0])
def test_a_locked_rotation_is_still_given_back(middle):
    turn = geometry.make(np.zeros((1, 3)), rotation=[[20.0, middle, 35.0]])
    found = geometry.decompose(turn)
    np.testing.assert_allclose(geometry.make(np.zeros((1, 3)), rotation=found.rotation), turn, atol=1e-5)


def test_every_parameter_has_a_gradient(rng):
    parts = [tf.constant(part) for part in parameters(rng, 3)]
    with tf.GradientTape() as tape:
        tape.watch(parts)
        translation, rotation, shear, scale = parts
        total = tf.reduce_sum(geometry.make(translation, rotation=rotation, shear=shear, scale=scale) ** 3)
    for gradient in tape.gradient(total, parts):
        assert np.all(np.isfinite(gradient))
        assert np.all(gradient != 0)
