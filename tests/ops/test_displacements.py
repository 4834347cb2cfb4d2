import numpy as np
import pytest
import tensorflow as tf

import tfalign
from tests.ops import displacements_reference as reference
from tfalign.data import misalign
from tfalign.ops import displacements, geometry

SIZES = [(13,), (10, 9), (6, 5, 7)]


def smooth(shape, *, rms=1.0, length=4.0, count=2, seed=0):
    """Fields that do not fold, `(count, *shape, d)` float32."""
    return misalign.draw_elastic(count, shape=shape, rms=rms, correlation_length=length, seed=seed).astype(np.float32)


def interior(field, margin):
    return np.asarray(field)[(slice(None), *[slice(margin, -margin)] * (np.ndim(field) - 2))]


@pytest.mark.parametrize("size", SIZES)
def test_composition_equals_the_reference(size, run):
    outer, inner = smooth(tuple(n + 3 for n in size)), smooth(size, seed=1)
    found = run(displacements.compose, outer, inner)
    for one, a, b in zip(found, outer, inner):
        np.testing.assert_allclose(one, reference.compose(a, b), atol=1e-5)


def test_composition_is_warping_twice(rng):
    """A picture read through the inner field after the outer one; linear between pixels, so that only fields differ."""
    ramp = np.stack(np.meshgrid(np.arange(24.0), np.arange(21.0), indexing="ij"), axis=-1)[None].astype(np.float32)
    outer, inner = smooth((24, 21), count=1), smooth((24, 21), count=1, seed=1)
    once, _ = tfalign.warp(ramp, displacements.compose(outer, inner))
    first, _ = tfalign.warp(ramp, outer)
    twice, _ = tfalign.warp(first, inner)
    np.testing.assert_allclose(interior(once, 6), interior(twice, 6), atol=1e-4)


@pytest.mark.parametrize("size", [(15,), (12, 9), (7, 6, 8)])
def test_transforms_and_fields_agree(size):
    """A transform as a field, after a field, and on a grid of another size."""
    rank = len(size)
    turns = {} if rank == 1 else {"rotation": np.full((1, len(geometry.PLANES[rank])), 5.0)}
    transform = geometry.make(np.full((1, rank), 0.7, np.float32), scale=np.full((1, rank), 1.05), **turns)
    other = geometry.make(np.full((1, rank), -0.4, np.float32), scale=np.full((1, rank), 0.97))
    field = displacements.from_transform(transform, size)
    points = geometry.centered_grid(size)
    expected = geometry.transformed_grid(geometry.compose(other, transform), size) - points
    np.testing.assert_allclose(displacements.transformed(field, other), expected, atol=1e-5)
    wide = displacements.from_transform(other, tuple(n + 5 for n in size))
    np.testing.assert_allclose(displacements.compose(wide, field), expected, atol=1e-5)


@pytest.mark.parametrize(("size", "rms"), [((40,), 2.0), ((32, 29), 2.0), ((16, 15, 14), 0.7)])
def test_inverse_round_trip_both_ways(size, rms, run):
    """Exact at the pixels of the inverse; the other way round it is read between them."""
    field = smooth(size, rms=rms, length=8.0 if len(size) < 3 else 5.0)
    inverse = run(displacements.invert, field)
    assert np.max(np.abs(field)) > rms
    assert np.max(np.abs(interior(displacements.compose(field, inverse), 4))) < 1e-5
    other = interior(displacements.compose(inverse, field), 4 if len(size) == 3 else 6)
    assert np.sqrt(np.mean(other**2)) < 0.03


def test_inverse_equals_that_of_splines(rng):
    field = smooth((48, 45), rms=2.0, length=10.0, count=1)
    truth = misalign.inverse_displacement(field[0])
    difference = np.asarray(displacements.invert(field))[0] - truth
    assert np.isfinite(truth).mean() > 0.7
    assert np.nanmax(np.abs(difference)) < 0.1
    assert np.sqrt(np.nanmean(difference**2)) < 0.02


def test_an_inverse_of_a_shift_is_exact():
    field = np.full((1, 9, 8, 2), (2.0, -3.5), np.float32)
    np.testing.assert_allclose(displacements.invert(field), -field, atol=1e-6)


@pytest.mark.parametrize("size", [(12,), (9, 8), (4, 5, 4)])
def test_the_flow_equals_many_small_steps(size, run):
    velocity = smooth(size, rms=1.5, length=4.0, count=1)
    found = run(lambda v: displacements.integrate(v, squarings=8), velocity)
    for one, v in zip(found, velocity):
        # Fields are read linearly after every squaring, the velocity of the truth only once.
        truth = reference.integrate(v, 100)
        np.testing.assert_allclose(one, truth, atol=0.2)
        assert np.sqrt(np.mean((one - truth) ** 2)) < 0.03


def test_the_flow_of_a_constant_is_the_constant_and_minus_the_velocity_inverts():
    constant = np.full((1, 9, 8, 2), (0.5, -1.25), np.float32)
    np.testing.assert_allclose(displacements.integrate(constant), constant, atol=1e-6)
    velocity = smooth((32, 30), rms=2.0, length=8.0)
    there, back = (displacements.integrate(sign * velocity) for sign in (1, -1))
    left = interior(displacements.compose(there, back), 8)
    assert np.sqrt(np.mean(left**2)) < 0.02
    assert np.max(np.abs(there)) <= np.max(np.abs(velocity)) + 1e-5


def test_a_flow_does_not_fold_where_its_velocity_as_a_displacement_does(rng):
    velocity = displacements.from_control_points(
        rng.uniform(-8, 8, (4, 8, 8, 2)).astype(np.float32), shape=(32, 32), spacing=4
    )
    assert np.min(displacements.fold_share(velocity)) > 0.02
    np.testing.assert_array_equal(displacements.fold_share(displacements.integrate(velocity)), np.zeros(4))


@pytest.mark.parametrize("size", [*SIZES, (1, 6)])
def test_determinants_folds_and_smoothness_equal_the_reference(rng, size, run):
    field = (0.7 * rng.standard_normal((2, *size, len(size)))).astype(np.float32)
    determinant, folds, energy = run(
        lambda f: (
            displacements.jacobian_determinant(f),
            displacements.fold_share(f),
            displacements.smoothness_energy(f),
        ),
        field,
    )
    for sample in range(2):
        if 1 not in size:  # NumPy has no slope along one pixel
            expected = misalign.jacobian_determinant(field[sample].astype(np.float64))
            np.testing.assert_allclose(determinant[sample], expected, atol=1e-5)
        assert folds[sample] == np.float32(np.mean(np.asarray(determinant[sample]) <= 0))
        np.testing.assert_allclose(energy[sample], reference.smoothness_energy(field[sample]), rtol=1e-5)
    assert 0 < np.mean(folds) < 1


def test_slopes_of_a_linear_field():
    """Entry (a, b) is the slope of axis a along axis b."""
    transform = geometry.make(np.float32([[1.0, 2.0]]), rotation=np.float32([[10.0]]), scale=np.float32([[1.1, 0.8]]))
    found = displacements.jacobian(displacements.from_transform(transform, (7, 6)))
    np.testing.assert_allclose(found, np.broadcast_to(transform[:, None, None, :2, :2], found.shape), atol=1e-5)
    np.testing.assert_allclose(
        displacements.smoothness_energy(displacements.from_transform(transform, (7, 6))),
        [np.sum((np.asarray(transform)[0, :2, :2] - np.eye(2)) ** 2)],
        rtol=1e-5,
    )


@pytest.mark.parametrize(("shape", "spacing"), [((13,), 4), ((9, 10), 2), ((4, 3, 2), 2), ((6, 5), 1)])
def test_control_points_equal_the_reference(rng, shape, spacing, run):
    coarse = tuple(-(-size // spacing) for size in shape)
    values = rng.standard_normal((2, *coarse, 2)).astype(np.float32)
    found = run(lambda v: displacements.from_control_points(v, shape=shape, spacing=spacing), values)
    for one, v in zip(found, values):
        expected = v if spacing == 1 else reference.from_control_points(v, shape, spacing)
        np.testing.assert_allclose(one, expected, atol=1e-5)


def test_control_points_keep_constants_and_order(rng):
    constant = np.full((1, 4, 3, 2), 2.5, np.float32)
    np.testing.assert_allclose(
        displacements.from_control_points(constant, shape=(14, 11), spacing=4), np.full((1, 14, 11, 2), 2.5), rtol=1e-6
    )
    # A signal's map that rises at the control points by next to nothing still rises in between.
    steps = rng.uniform(-0.999, 2.0, 8) * 4
    field = np.cumsum(steps)[None, :, None].astype(np.float32)
    fine = displacements.from_control_points(field, shape=(32,), spacing=4)
    assert np.min(displacements.jacobian_determinant(fine)) > 0


FUNCTIONS = {
    "compose": lambda f: displacements.compose(f, 0.7 * f),
    "invert": displacements.invert,
    "integrate": lambda f: displacements.integrate(f, squarings=3),
    "determinant": displacements.jacobian_determinant,
    "energy": displacements.smoothness_energy,
}


@pytest.mark.parametrize("name", list(FUNCTIONS))
@pytest.mark.parametrize("size", [(11,), (7, 6), (4, 5, 4)])
def test_gradients_equal_finite_differences(rng, name, size):
    """Along a random direction, of a random weighting of the result; in float64."""
    field = tf.constant(smooth(size, rms=0.6, length=3.0).astype(np.float64))
    weights = rng.standard_normal(FUNCTIONS[name](field).shape)
    along = rng.standard_normal(field.shape)

    def value(step):
        return float(tf.reduce_sum(weights * FUNCTIONS[name](field + step * along)))

    with tf.GradientTape() as tape:
        tape.watch(field)
        total = tf.reduce_sum(weights * FUNCTIONS[name](field))
    found = float(tf.reduce_sum(tape.gradient(total, field) * along))
    expected = (value(1e-6) - value(-1e-6)) / 2e-6
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("name", list(FUNCTIONS))
@pytest.mark.parametrize("kind", ["zero", "folded", "far"])
def test_values_and_gradients_are_finite(rng, name, kind):
    scale = {"zero": 0.0, "folded": 5.0, "far": 1000.0}[kind]
    field = tf.constant((scale * rng.standard_normal((2, 6, 7, 2))).astype(np.float32))
    with tf.GradientTape() as tape:
        tape.watch(field)
        result = FUNCTIONS[name](field)
    assert np.all(np.isfinite(result))
    assert np.all(np.isfinite(tape.gradient(result, field)))


@pytest.mark.parametrize("size", [(12,), (9, 14), (5, 6, 7)])
def test_bending_is_what_an_affine_fit_leaves(run, rng, size):
    fields = (3.0 * rng.standard_normal((2, *size, len(size)))).astype(np.float32)
    grid = np.moveaxis(np.indices(size), 0, -1).reshape(-1, len(size))
    fitted = np.concatenate([grid, np.ones((len(grid), 1))], axis=1)
    affine = (fitted @ rng.standard_normal((len(size) + 1, len(size)))).reshape(1, *size, len(size))
    wanted = []
    for field in fields.reshape(2, -1, len(size)):
        rest = field - fitted @ np.linalg.lstsq(fitted, field, rcond=None)[0]
        wanted.append(np.sqrt(np.mean(np.sum(rest**2, axis=-1))))
    np.testing.assert_allclose(run(displacements.bending, fields), wanted, rtol=1e-4)
    np.testing.assert_allclose(displacements.bending(fields + affine.astype(np.float32)), wanted, rtol=1e-4)
    np.testing.assert_allclose(displacements.bending(affine.astype(np.float32)), [0.0], atol=1e-4)


def test_unknown_sizes():
    """One traced function for every size."""
    traced = tf.function(
        lambda f: (
            displacements.invert(displacements.integrate(f)),
            displacements.from_control_points(f, shape=[2 * tf.shape(f)[1], 2 * tf.shape(f)[2]], spacing=2),
            displacements.smoothness_energy(f),
        ),
        input_signature=[tf.TensorSpec([None, None, None, 2])],
    )
    for size in ((8, 9), (5, 1)):
        field = smooth((9, 9), count=1)[:, : size[0], : size[1]]
        inverse, fine, energy = traced(field)
        np.testing.assert_allclose(inverse, displacements.invert(displacements.integrate(field)), atol=1e-5)
        assert fine.shape == (1, 2 * size[0], 2 * size[1], 2)
        np.testing.assert_allclose(energy[0], reference.smoothness_energy(field[0]), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: displacements.invert(np.zeros((1, 4, 4, 3))),
            ValueError,
            r"`displacement` must .*\(1, 4, 4, 3\)",
        ),
        (lambda: displacements.invert(np.zeros((1, 4, 1)), iterations=1.5), TypeError, "`iterations`.*1.5"),
        (lambda: displacements.integrate(tf.zeros((1, 4, 1)), squarings=-1), ValueError, "`squarings`.*squarings=-1"),
    ],
)
def test_bad_options(call, error, text):
    with pytest.raises(error, match=text):
        call()
