import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

import tfalign
from tests import reference
from tests.conftest import in_modes
from tfalign.ops import geometry, resample, spline

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


@pytest.mark.parametrize(
    ("run", "interpolation", "output", "size"),
    in_modes([(name, *sizes) for name in ("linear", "nearest", "cubic") for sizes in SIZES]),
    indirect=["run"],
)
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


@pytest.mark.parametrize("lowest", [1.0, 0.0])
def test_weights_move_with_their_values(rng, run, lowest):
    """Also where all weights are 1, which is done without a gather."""
    output = (6, 9)
    moving, mask = batch_of(rng, (7, 8)), rng.uniform(lowest, 1.0, (3, 7, 8, 1)).astype(np.float32)
    translation = rng.integers(-3, 4, (3, 2)).astype(np.float32)
    values, weights = run(lambda *all: resample.shift_masked(*all, output), moving, mask, translation)
    matrix = geometry.from_translation(translation).numpy()
    for sample in range(3):
        expected, inside = reference.warp(moving[sample], matrix[sample], output)
        moved, _ = reference.warp(mask[sample], matrix[sample], output)
        np.testing.assert_allclose(weights[sample], moved * inside[..., np.newaxis], atol=1e-6)
        np.testing.assert_allclose(values[sample][inside > 0], expected[inside > 0], atol=1e-6)


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


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@pytest.mark.parametrize("kind", ["values", "transform", "displacement"])
@pytest.mark.parametrize("size", [(6, 7), (4, 5, 4)])
def test_gradients_equal_finite_differences(rng, kind, interpolation, size):
    rank = len(size)
    moving = tf.constant(rng.standard_normal((1, *size, 1)))
    matrix = np.eye(rank + 1)[np.newaxis].copy()
    matrix[0, :rank] += 0.05 * rng.standard_normal((rank, rank + 1))
    matrix[0, :rank, -1] += 0.35
    field = rng.uniform(0.1, 0.9, (1, *size, rank))
    weights = tf.constant(rng.standard_normal((1, *size, 1)))

    def total(moving, pull):
        return tf.reduce_sum(weights * tfalign.warp(moving, pull, interpolation=interpolation)[0])

    arguments = [moving, tf.constant(field if kind == "displacement" else matrix)]
    which = 0 if kind == "values" else 1
    with tf.GradientTape() as tape:
        tape.watch(arguments[which])
        result = total(*arguments)
    gradient = tape.gradient(result, arguments[which]).numpy()
    step = rng.standard_normal(arguments[which].shape)
    ends = [total(*(a + s * 1e-7 * step if i == which else a for i, a in enumerate(arguments))) for s in (1, -1)]
    np.testing.assert_allclose(np.sum(gradient * step), (ends[0] - ends[1]) / 2e-7, rtol=1e-4)


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_at_whole_pixels_the_gradient_is_the_slope(rng, run, interpolation):
    """Where a warp network starts: zero displacement."""
    moving = (3.0 * np.arange(25) + 100.0)[None, :, None].astype(np.float32)

    def slope(moving, field):
        with tf.GradientTape() as tape:
            tape.watch(field)
            values = tfalign.warp(moving, field, interpolation=interpolation)[0]
        return tape.gradient(values, field)

    found = run(slope, moving, np.zeros((1, 25, 1), np.float32))
    np.testing.assert_allclose(found[0, 10:15, 0], 3.0, rtol=1e-4)


@pytest.mark.parametrize("size", [(40,), (17, 22), (9, 8, 11), (1,), (2, 1), (3, 5)])
def test_cubic_equals_scipy(rng, run, size):
    moving, rank = batch_of(rng, size, channels=1, batch=1), len(size)
    field = rng.uniform(-2, 2, (1, *size, rank)).astype(np.float32)
    values, mask = run(lambda a, b: tfalign.warp(a, b, interpolation="cubic"), moving, field)
    at = np.moveaxis(np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1) + field[0], -1, 0)
    # SciPy's own mirror is wrong on an axis of one pixel: there nothing but its value can be read.
    single = tuple(0 if n == 1 else slice(None) for n in size)
    at = np.stack([line for line, n in zip(at, size) if n > 1]) if max(size) > 1 else at
    flat = moving[0, ..., 0][single]
    expected = scipy.ndimage.map_coordinates(flat, at, order=3, mode="mirror") if flat.ndim else np.full(size, flat)
    inside = np.asarray(mask[0]) > 0
    np.testing.assert_allclose(values[0, ..., 0] * mask[0], np.where(inside, expected, 0), atol=1e-5 * np.ptp(moving))
    assert inside.any() or max(size) < 4


@pytest.mark.parametrize("frequency", [0.1, 0.2, 0.3])
def test_cubic_keeps_what_linear_blurs(frequency):
    """The share of a wave that is left half a pixel further: cos(pi f) of linear, nearly all of cubic."""
    wave = np.cos(2 * np.pi * frequency * np.arange(200)).astype(np.float32)[None, :, None]
    kept = {}
    for interpolation in ("linear", "cubic"):
        values, _ = tfalign.warp(wave, geometry.from_translation(tf.constant([[0.5]])), interpolation=interpolation)
        kept[interpolation] = np.std(values[0, 50:150]) / np.std(wave[0, 50:150])
    assert kept["linear"] == pytest.approx(np.cos(np.pi * frequency), abs=0.01)
    assert 1 - kept["cubic"] < 0.35 * (1 - kept["linear"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_cubic_keeps_away_from_non_finite_pixels(rng, run, bad):
    moving = batch_of(rng, (16, 16), channels=1, batch=1)
    hole = moving.copy()
    hole[0, 8, 8] = bad
    move = geometry.from_translation(tf.constant([[0.5, 0.0], [1.0, 0.0]]))
    values, _ = run(lambda a, b: tfalign.warp(a, b, interpolation="cubic"), np.repeat(hole, 2, axis=0), move)
    assert np.argwhere(~np.isfinite(values[1, ..., 0])).tolist() == [[7, 8]]
    touched = np.argwhere(~np.isfinite(values[0, ..., 0]))
    assert touched.min(axis=0).tolist() == [6, 7 - 1]
    assert touched.max(axis=0).tolist() == [9, 9]
    plain = tfalign.warp(moving, move[:1], interpolation="cubic")[0][0, ..., 0]
    far = np.maximum(*np.abs(np.indices((16, 16)) - 8)) > 5
    np.testing.assert_allclose(np.where(far, values[0, ..., 0], 0), np.where(far, plain, 0), atol=0.02)


def test_holes_are_filled_from_their_surroundings(rng, run):
    values = np.full((1, 30, 30, 1), np.nan, np.float32)
    values[0, :, :10] = 2.0
    values[0, :, 20] = 5.0
    mask = np.isfinite(values).astype(np.float32)
    filled = run(spline.fill_holes, values, mask)
    np.testing.assert_array_equal(filled[0, :, :10], values[0, :, :10])
    np.testing.assert_allclose(filled[0, :, 10:14], 2.0, rtol=1e-6)
    np.testing.assert_allclose(filled[0, :, 25:], (10 * 2.0 + 5.0) / 11, rtol=1e-5)
    np.testing.assert_array_equal(run(spline.fill_holes, values, np.zeros_like(mask)), np.zeros_like(mask))


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
@pytest.mark.parametrize(("output", "size"), [((9, 12), (12, 9)), ((8, 8), (5, 6))])
def test_engines_agree(rng, interpolation, output, size):
    moving = batch_of(rng, size)
    matrix = geometry.make(
        rng.uniform(-2, 2, (3, 2)).astype(np.float32),
        rotation=[[0.0], [25.0], [170.0]],
        scale=[[1.0, 1.0], [0.7, 1.3], [2, 1]],
    )
    options = {"output_shape": output, "interpolation": interpolation, "fill_value": -3.0}
    gathered = tfalign.warp(moving, matrix, **options)
    projected = tf.function(lambda a, b: tfalign.warp(a, b, engine="projective", **options))(moving, matrix)
    for one, other in zip(gathered, projected):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert 0 < np.mean(gathered[1]) < 1


@pytest.mark.parametrize("angle", [90.0, 180.0, -90.0, 270.0])
@pytest.mark.parametrize("interpolation", ["linear", "nearest", "cubic"])
def test_right_angles_keep_the_border(rng, angle, interpolation):
    """An odd square lies on itself; sines and cosines of single precision would put border pixels outside."""
    moving = batch_of(rng, (65, 65), channels=1, batch=1)
    turn = geometry.make(tf.zeros([1, 2]), rotation=tf.constant([[angle]]))
    values, mask = tfalign.warp(moving, turn, interpolation=interpolation, fill_value=np.nan)
    np.testing.assert_array_equal(mask, np.ones((1, 65, 65)))
    # Reads points turned counter-clockwise, so the picture turns clockwise.
    np.testing.assert_allclose(values[0, ..., 0], np.rot90(moving[0, ..., 0], -round(angle / 90)), atol=1e-3)


def test_what_lies_outside_by_more_than_rounding_stays_outside():
    for beyond, inside in ((1e-4, 0.0), (0.0, 1.0)):
        _, mask = tfalign.warp(np.ones((1, 65, 1), np.float32), np.full((1, 65, 1), beyond, np.float32))
        assert mask[0, -1] == inside


def test_unknown_channels(rng):
    @tf.function(input_signature=[tf.TensorSpec([None] * 4)])
    def move(moving):
        return tfalign.warp(moving, geometry.from_translation(tf.constant([[0.5, 0.0]])), interpolation="cubic")

    moving = batch_of(rng, (5, 6), channels=2, batch=1)
    expected = tfalign.warp(moving, geometry.from_translation(tf.constant([[0.5, 0.0]])), interpolation="cubic")
    np.testing.assert_allclose(move(moving)[0], expected[0], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, bool, np.int8, np.int16, np.uint16, np.uint32, np.uint64])
def test_the_projective_engine_keeps_types(rng, dtype):
    moving = rng.integers(0, 2, (2, 6, 7, 1)).astype(dtype)
    move = geometry.from_translation(tf.constant([[1.0, -2.0]] * 2))
    options = {"interpolation": "nearest"}
    found, expected = (tfalign.warp(moving, move, engine=engine, **options)[0] for engine in ("projective", "gather"))
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_the_projective_engine_says_what_to_use_under_xla(rng):
    moving = batch_of(rng, (6, 6))

    @tf.function(jit_compile=True)
    def move(moving):
        return tfalign.warp(moving, geometry.identity(3, 2), engine="projective")

    with pytest.raises(tf.errors.InvalidArgumentError, match="engine_projective_does_not_compile_use_engine_gather"):
        move(moving)


@pytest.mark.parametrize(
    ("moving", "pull", "interpolation"),
    [
        (np.zeros((1, 4, 1)), np.eye(2)[None], "linear"),
        (np.zeros((1, 4, 4, 1)), np.eye(3)[None], "cubic"),
        (np.zeros((1, 4, 4, 1)), np.zeros((1, 4, 4, 2)), "linear"),
    ],
)
def test_the_projective_engine_refuses_what_it_cannot(moving, pull, interpolation):
    with pytest.raises(
        ValueError, match=r"`engine=\"projective\"` must be given pictures.*Received: engine='projective'"
    ):
        tfalign.warp(moving, pull, interpolation=interpolation, engine="projective")


@pytest.mark.parametrize("interpolation", ["linear", "nearest", "cubic"])
def test_unknown_sizes(rng, interpolation):
    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 1]), tf.TensorSpec([None, 2])])
    def move(moving, translation):
        return tfalign.warp(moving, geometry.from_translation(translation), interpolation=interpolation)

    moving = batch_of(rng, (5, 6), channels=1)
    translation = np.float32([[1, 0], [0, 1], [0.5, 0]])
    expected = tfalign.warp(moving, geometry.from_translation(tf.constant(translation)), interpolation=interpolation)
    np.testing.assert_allclose(move(moving, translation)[0], expected[0], atol=1e-6)


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
        ((np.zeros((1, 4, 4, 1)), np.eye(3)[None]), {"interpolation": "best"}, ValueError, "interpolation='best'"),
        ((np.zeros((1, 4, 4, 1)), np.eye(3)[None]), {"engine": "best"}, ValueError, "engine='best'"),
        ((np.zeros((1, 4, 4, 1)), np.eye(3)[None, :2]), {}, ValueError, r"`transform_or_displacement`.*\(1, 2, 3\)"),
        (
            (np.zeros((3, 4, 4, 1)), np.stack([np.eye(3)] * 2)),
            {},
            ValueError,
            r"one sample, or one for each.*\(2, 3, 3\)",
        ),
        ((np.zeros((1, 0, 4, 1)), np.eye(3)[None]), {}, ValueError, r"`moving` must have pixels.*\(1, 0, 4, 1\)"),
        ((np.zeros((1, 4, 4, 1)), np.eye(3)[None]), {"output_shape": (4,)}, ValueError, r"output_shape=\(4,\)"),
        ((np.zeros((1, 4, 4, 1)), np.eye(3)[None]), {"output_shape": 5}, ValueError, "hold 2 sizes.*output_shape=5"),
        ((np.zeros((1, 4, 4, 1)), np.eye(3)[None]), {"output_shape": (4, 2.0)}, TypeError, "output_shape=2.0"),
        ((np.zeros((1, 4, 4, 1)), np.eye(3)[None]), {"output_shape": (4, -2)}, ValueError, ">= 1.*output_shape=-2"),
        ((np.zeros((1, 4, 4, 1)), np.eye(3)[None]), {"output_shape": (0, 2)}, ValueError, ">= 1.*output_shape=0"),
        (
            (np.zeros((1, 4, 4, 1)), np.zeros((1, 4, 4, 2))),
            {"output_shape": (4, 5)},
            ValueError,
            r"that of the displacement.*output_shape=\(4, 5\)",
        ),
        ((np.array(["a"]), np.eye(3)[None]), {}, ValueError, "`moving` must have the shape"),
    ],
)
def test_bad_arguments(arguments, options, error, text):
    with pytest.raises(error, match=text):
        tfalign.warp(*arguments, **options)
