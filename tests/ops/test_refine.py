import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

import tfalign
from tests import reference
from tfalign.ops import geometry, refine, start
from tfalign.ops.similarity import views

SIMILARITIES = ["ncc", "cc", "phase", "mse", "mae", "cross_entropy", "overlap", "mi", "nmi", "joint_entropy"]


def field(rng, rank=2, size=120, width=2.5):
    """A smooth random picture of unit variance."""
    values = scipy.ndimage.gaussian_filter(rng.standard_normal((size,) * rank), width)
    return values / values.std()


def read(picture, matrix, shape):
    """The picture at centred coordinates moved by `matrix`, by splines of order 5: not what the package reads with."""
    grid = np.stack(np.meshgrid(*[np.arange(n) - n // 2 for n in shape], indexing="ij"), axis=-1)
    rank = len(shape)
    at = grid.reshape(-1, rank) @ matrix[:rank, :rank].T + matrix[:rank, rank] + np.array(picture.shape) // 2
    return scipy.ndimage.map_coordinates(picture, at.T, order=5, mode="mirror").reshape(shape)


def pairs(rng, truth, *, fixed=(40, 44), moving=(56, 60), noise=0.0, size=160):
    """Pairs, the moving side with a margin, for transforms fixed -> moving."""
    rank = len(fixed)
    pictures = [field(rng, rank, size=size) for _ in truth]
    left = np.stack([read(picture, np.eye(rank + 1), fixed) for picture in pictures])
    right = np.stack([read(picture, np.linalg.inv(matrix), moving) for picture, matrix in zip(pictures, truth)])
    right += noise * rng.standard_normal(right.shape)
    return left[..., None].astype(np.float32), right[..., None].astype(np.float32)


def transforms(rng, *, count=3, rank=2, shift=3.0, rotation=0.0, scale=0.0, shear=0.0, is_even=False):
    planes = rank * (rank - 1) // 2
    factors = rng.uniform(-1, 1, (count, 1 if is_even else rank)) * np.ones(rank)
    return geometry.make(
        rng.uniform(-shift, shift, (count, rank)),
        rotation=rng.uniform(-rotation, rotation, (count, planes)),
        scale=np.exp(factors * np.log1p(scale)),
        shear=rng.uniform(-shear, shear, (count, planes)),
    ).numpy()


def displaced(found, truth, shape):
    """The largest distance in pixels between where two transforms send the pixels of a grid, for each sample."""
    corners = np.array(np.meshgrid(*[(-n / 2, n / 2) for n in shape])).reshape(len(shape), -1)
    corners = np.concatenate([corners, np.ones_like(corners[:1])])
    return np.max(np.linalg.norm((np.asarray(found) - truth)[:, :-1] @ corners, axis=1), axis=1)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_small_rotation_scale_and_shear_by_every_measure(rng, similarity):
    truth = transforms(rng, rotation=5, scale=0.05, shear=4)
    fixed, moving = pairs(rng, truth)
    if similarity in ("cross_entropy", "overlap"):
        fixed, moving = (1 / (1 + np.exp(-2 * side)) for side in (fixed, moving))
    if similarity in ("mi", "nmi", "joint_entropy"):
        moving = np.cos(1.5 * moving)
    found = tfalign.register(
        fixed, moving, max_shift=5, max_rotation=6, max_scale=0.08, max_shear=5, similarity=similarity
    )
    limit = 0.3 if similarity in ("mi", "nmi", "joint_entropy", "cross_entropy") else 0.1
    assert np.max(displaced(found.transform, truth, (40, 44))) < limit
    np.testing.assert_array_equal(found.translation, found.transform[:, :2, 2])
    assert np.min(found.overlap) > 0.9


@pytest.mark.parametrize(
    ("search", "drawn"),
    [
        ({"max_rotation": 180}, {"rotation": 180}),
        ({"max_rotation": 20, "max_scale": 0.15}, {"rotation": 20, "scale": 0.15}),
        ({"max_scale": 1.0}, {"scale": 0.9, "shift": 1.0}),
    ],
)
def test_large_ranges_in_a_picture(rng, search, drawn):
    truth = transforms(rng, **drawn)
    fixed, moving = pairs(rng, truth, moving=(96, 96), size=260)
    found = tfalign.register(fixed, moving, max_shift=4, **search)
    assert np.max(displaced(found.transform, truth, (40, 44))) < 0.1
    parts, expected = geometry.decompose(found.transform), geometry.decompose(truth)
    np.testing.assert_allclose(parts.scale, expected.scale, rtol=0.005)


def test_stretched_signals(rng):
    truth = transforms(rng, rank=1, scale=0.3, shift=4.0)
    fixed, moving = pairs(rng, truth, fixed=(200,), moving=(300,), size=800)
    found = tfalign.register(fixed, moving, max_shift=6, max_scale=0.35)
    assert np.max(displaced(found.transform, truth, (200,))) < 0.1


def test_long_fine_signals(rng):
    """The average of 64 samples would be all that is left of them."""
    truth = geometry.make(np.array([[3.0]]), scale=np.array([[1.03]])).numpy()
    fixed, moving = pairs(rng, truth, fixed=(4096,), moving=(4400,), size=9000)
    found = tfalign.register(fixed, moving, max_shift=6, max_scale=0.05)
    assert np.max(displaced(found.transform, truth, (4096,))) < 0.1
    assert found.confidence[0] > 0.99


def test_the_confidence_is_that_of_the_transform(rng):
    """A turn of a large picture leaves no good shift, and the turned picture but one."""
    truth = transforms(rng, count=1)
    truth = truth @ geometry.make(np.zeros((1, 2)), rotation=np.array([[2.5]])).numpy()
    fixed, moving = pairs(rng, truth, fixed=(320, 320), moving=(346, 346), size=420)
    options = {"max_shift": 5, "return_map": True}
    found = tfalign.register(fixed, moving, max_rotation=2.6, **options)
    assert tfalign.register(fixed, moving, **options).confidence[0] < 0.7
    assert found.confidence[0] > 0.99
    around = found.posterior_map[0, 4:7, 4:7]
    np.testing.assert_allclose(np.sum(around), found.confidence[0], rtol=1e-4)
    np.testing.assert_allclose(found.score_map[0, 5, 5], found.score[0])


def test_white_noise_is_not_turned_and_smooth_pictures_are(rng):
    """Of many starts one fits noise best; the price counts them."""
    truth = transforms(rng, count=6)
    truth = truth @ geometry.make(np.zeros((6, 2)), rotation=rng.uniform(2, 5, (6, 1))).numpy()
    fixed, moving = pairs(rng, truth, fixed=(48, 48), moving=(64, 64))
    options = {"max_shift": 5, "max_rotation": 180}
    assert np.max(displaced(tfalign.register(fixed, moving, **options).transform, truth, (48, 48))) < 0.3
    noise = tfalign.register(fixed, rng.standard_normal(moving.shape).astype(np.float32), **options)
    np.testing.assert_array_equal(noise.transform[:, :2, :2], np.tile(np.eye(2), (6, 1, 1)))


def test_turned_volumes(rng):
    truth = transforms(rng, rank=3, count=1, rotation=8, scale=0.05, shift=1.0)
    fixed, moving = pairs(rng, truth, fixed=(20, 18, 20), moving=(26, 26, 26), size=48)
    found = tfalign.register(fixed, moving, max_shift=2, max_rotation=8, max_scale=0.08)
    assert np.max(displaced(found.transform, truth, (20, 18, 20))) < 0.1


def test_masks_leave_pixels_out(rng):
    truth = transforms(rng, rotation=5)
    fixed, moving = pairs(rng, truth)
    mask = rng.random(moving.shape[:-1]) > 0.1
    broken = np.where(mask[..., None], moving, 1e3)
    found = tfalign.register(fixed, broken, max_shift=5, max_rotation=6, moving_mask=mask)
    assert np.max(displaced(found.transform, truth, (40, 44))) < 0.3
    holes = tfalign.register(fixed, np.where(mask[..., None], moving, np.nan), max_shift=5, max_rotation=6)
    np.testing.assert_allclose(holes.transform, found.transform, atol=1e-5)


def test_eager_graph_and_xla_agree(rng, run):
    truth = transforms(rng, count=2, rotation=5, scale=0.05)
    fixed, moving = pairs(rng, truth, fixed=(24, 26), moving=(34, 36))
    found = run(lambda a, b: tfalign.register(a, b, max_shift=4, max_rotation=12, max_scale=0.06), fixed, moving)
    assert np.max(displaced(found.transform, truth, (24, 26))) < 0.1
    assert np.min(found.confidence) > 0.5


def test_unknown_sizes(rng):
    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 1])] * 2)
    def register(a, b):
        return tfalign.register(a, b, max_shift=4, max_rotation=12)

    for count, size in ((1, 26), (2, 31)):
        truth = transforms(rng, count=count, rotation=12)
        found = register(*pairs(rng, truth, fixed=(size, size), moving=(size + 12, size + 12)))
        assert np.max(displaced(found.transform, truth, (size, size))) < 0.1


KINDS = ["constant", "nan", "blank fixed", "masked", "zero", "inf", "both blank", "huge"]


@pytest.mark.parametrize(
    ("similarity", "kind", "size"),
    [("ncc", kind, 12) for kind in KINDS]
    + [(name, "nan", 12) for name in ("mse", "mae", "mi", "phase")]
    + [(name, "blank fixed", 12) for name in ("mae", "mi")]
    + [("ncc", "constant", 1), ("mi", "constant", 1), ("mse", "constant", 2)],
)
def test_where_nothing_can_be_told_the_identity_is_kept(rng, similarity, kind, size):
    fixed, moving = (rng.standard_normal((2, size, size, 2)).astype(np.float32) for _ in range(2))
    mask = np.full((2, size, size), kind != "masked", np.float32)
    fills = {"constant": 0.1, "zero": 0.0, "nan": np.nan, "inf": np.inf, "both blank": 30000.1, "huge": 1e30}
    if kind in fills:
        moving[:] = fills[kind]
    if kind in ("blank fixed", "both blank"):
        fixed[:] = 12345.6
    bound = 1 if size > 2 else 0
    found = tfalign.register(
        fixed,
        moving,
        max_shift=bound,
        max_rotation=5,
        max_scale=0.1,
        max_shear=5,
        similarity=similarity,
        moving_mask=mask,
    )
    np.testing.assert_array_equal(found.transform, np.tile(np.eye(3), (2, 1, 1)))
    np.testing.assert_array_equal(found.confidence, [0, 0])
    assert np.all(np.isfinite(found.score))


@pytest.mark.parametrize("similarity", ["ncc", "mse", "mi"])
def test_nothing_gained_leaves_the_shift_alone(rng, similarity):
    """Shifted labels with noise: a turn could follow the noise, and must not."""
    truth = transforms(rng, count=6, shift=0.0)
    truth[:, :2, 2] = rng.integers(-3, 4, (6, 2))
    fixed, moving = pairs(rng, truth, noise=0.5)
    options = {"max_shift": 5, "similarity": similarity, "return_map": True}
    plain = tfalign.register(fixed, moving, **options)
    found = tfalign.register(fixed, moving, max_rotation=4, max_scale=0.05, max_shear=4, **options)
    for one, other in zip(found, plain):
        if one is not None:
            np.testing.assert_array_equal(one, other)


def test_no_bounds_are_bit_equal_to_shifts(rng):
    truth = transforms(rng)
    fixed, moving = pairs(rng, truth)
    plain = tfalign.register(fixed, moving, max_shift=5, return_map=True)
    found = tfalign.register(
        fixed, moving, max_shift=5, max_rotation=0, max_scale=0, max_shear=0, similarity="ncc", return_map=True
    )
    for one, other in zip(found, plain):
        if one is not None:
            np.testing.assert_array_equal(one, other)


def test_bounds_are_kept(rng):
    truth = transforms(rng, count=4, rotation=0, shift=1.0)
    turned = geometry.make(np.zeros((4, 2)), rotation=np.full((4, 1), 5.0), scale=np.full((4, 2), 1.1)).numpy()
    fixed, moving = pairs(rng, truth @ turned)
    found = tfalign.register(fixed, moving, max_shift=2, max_rotation=3, max_scale=0.05)
    parts = geometry.decompose(found.transform)
    assert np.max(np.abs(parts.rotation)) < 3.001
    assert np.max(np.abs(np.log(parts.scale))) < np.log(1.05) + 1e-5
    assert np.max(np.abs(parts.rotation)) > 2.9
    assert np.max(np.abs(found.translation)) <= 2.5


def test_a_pooled_batch_shares_its_transform(rng):
    truth = np.tile(transforms(rng, count=1, rotation=5), (4, 1, 1))
    fixed, moving = pairs(rng, truth, noise=0.7)
    moving[0] = 3.0
    moving[1] = np.nan
    found = tfalign.register(fixed, moving, max_shift=5, max_rotation=12, pool="batch")
    np.testing.assert_allclose(found.transform, np.tile(found.transform[:1], (4, 1, 1)), atol=1e-6)
    pooled = displaced(found.transform, truth, (40, 44))
    alone = tfalign.register(fixed, moving, max_shift=5, max_rotation=12)
    assert np.max(pooled) < 0.5
    assert pooled[0] < np.max(displaced(alone.transform, truth, (40, 44)))


def test_groups_of_channels_are_turned_apart(rng):
    truth = transforms(rng, count=2, rotation=5)
    fixed, moving = pairs(rng, truth)
    both = (np.concatenate([side[:1], side[1:]], axis=-1) for side in (fixed, moving))
    found = tfalign.register(*both, max_shift=5, max_rotation=6, groups=[(0,), (1,)])
    assert found.transform.shape == (1, 2, 3, 3)
    assert np.max(displaced(found.transform[0], truth, (40, 44))) < 0.1
    aligned, mask = found.warp(np.concatenate([moving[:1], moving[1:]], axis=-1), interpolation="cubic")
    expected = np.concatenate([fixed[:1], fixed[1:]], axis=-1)
    np.testing.assert_allclose(np.where(mask, aligned, 0), np.where(mask, expected, 0), atol=0.05)


def test_gradient_flows_through_the_score_alone(rng):
    truth = transforms(rng, count=1, rotation=5)
    fixed, moving = (tf.constant(side) for side in pairs(rng, truth, fixed=(24, 24), moving=(32, 32)))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(moving)
        found = tfalign.register(fixed, moving, max_shift=4, max_rotation=6)
    assert tape.gradient(found.transform, moving) is None
    gradient = tape.gradient(found.score, moving).numpy()
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient != 0)


def test_unsettled_means_less_confidence(rng, monkeypatch):
    truth = transforms(rng, rotation=5, shear=4)
    fixed, moving = pairs(rng, truth)
    options = {"max_shift": 5, "max_rotation": 6, "max_shear": 5}
    sure = tfalign.register(fixed, moving, **options)
    monkeypatch.setattr(refine, "_STEPS", 0)
    hasty = tfalign.register(fixed, moving, **options)
    shares = np.asarray(hasty.confidence) / sure.confidence
    np.testing.assert_allclose(shares, np.where(shares < 0.75, 0.5, 1.0), rtol=1e-5)
    assert np.min(shares) < 0.75
    assert np.max(displaced(hasty.transform, truth, (40, 44))) < 3.0


def test_a_transform_keeps_the_least_overlap(rng):
    truth = transforms(rng, count=1, rotation=5)
    fixed, moving = (tf.constant(side) for side in pairs(rng, truth))
    masks = [tf.ones_like(side) for side in (fixed, moving)]
    nothing = tf.zeros([1, 3])
    bounds = refine.Bounds((5, 5), max_rotation=6.0)
    for least, gains in ((40.0 * 44.0 * 0.9, True), (40.0 * 44.0 + 1.0, False)):
        found = refine.refined(
            fixed, moving, masks, nothing, nothing, bounds=bounds, similarity="ncc", least=tf.constant([least]),
            textured=tf.constant([True]), pool=None,
        )  # fmt: skip
        assert (found.gain[0] > 0) == gains
        assert np.any(found.parameters != 0) == gains


@pytest.mark.parametrize("name", ["ncc", "mse", "mae", "mi"])
def test_the_pull_is_the_slope_of_the_nats(rng, name):
    """Up to a positive factor for each sample, and for ncc to what its gain and offset undo."""
    fixed = rng.standard_normal((2, 9, 8, 2))
    moved, weight = fixed + 0.5 * rng.standard_normal(fixed.shape), rng.random((2, 9, 8, 1))
    view = views.VIEWS[name]
    moved = tf.constant(moved)
    with tf.GradientTape() as tape:
        tape.watch(moved)
        nats = view(tf.constant(fixed), moved, tf.constant(weight)).nats
    slope = tape.gradient(nats, moved).numpy().reshape(2, -1)
    pull = view(tf.constant(fixed), moved, tf.constant(weight)).pull.numpy().reshape(2, -1)
    if name == "mae":  # near 0 the reweighting softens the sign
        slope, pull = (
            np.where(np.abs(pull) > 0.99 * weight.repeat(2, -1).reshape(2, -1), part, 0) for part in (slope, pull)
        )
    cosine = np.sum(slope * pull, axis=1) / np.linalg.norm(slope, axis=1) / np.linalg.norm(pull, axis=1)
    np.testing.assert_allclose(cosine, 1.0, atol=1e-6)


@pytest.mark.parametrize(("name", "score"), [("ncc", "ncc"), ("mse", "mse"), ("mae", "mae")])
def test_nats_follow_the_measure(rng, name, score):
    fixed, moved, weight = (
        rng.standard_normal((1, 8, 9, 2)),
        rng.standard_normal((1, 8, 9, 2)),
        rng.random((1, 8, 9, 1)),
    )
    moved += fixed
    flat = fixed.reshape(-1, 2), moved.reshape(-1, 2), weight.ravel()
    value = reference.score(*flat, score)
    expected = {"ncc": lambda: -0.5 * np.log(1 - value**2), "mse": lambda: -0.5 * np.log(-2 * value)}
    expected["mae"] = lambda: -np.log(-2 * value)
    found = views.VIEWS[name](*(tf.constant(one) for one in (fixed, moved, weight)))
    np.testing.assert_allclose(found.nats[0], expected[score](), rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_rates_are_those_of_the_transform(rng, rank):
    bounds = refine.Bounds((3,) * rank, *((20.0, 0.3, 10.0) if rank > 1 else (0.0, 0.3, 0.0)))
    number = rank + sum(limit.size for limit in bounds.limits().values())
    at, step = rng.uniform(-0.3, 0.3, (2, 4, number))
    step *= 1e-4
    change = bounds.transform(tf.constant(at + step)) - bounds.transform(tf.constant(at - step))
    expected = np.einsum("bk,bkij->bij", 2 * step, bounds.rates(tf.constant(at)))
    np.testing.assert_allclose(change[:, :-1], expected, atol=1e-8)


@pytest.mark.parametrize(("make", "size", "width"), [(refine.Level.fine, 40, 4.0), (refine.Level.blurred, 121, 16.0)])
def test_equations_are_those_of_finite_differences(rng, make, size, width):
    """A step's normal equations from the slopes of the moved picture, against moving the picture itself."""
    bounds = refine.Bounds((3, 3), 10.0, 0.2, 10.0)
    picture = tf.constant(field(rng, size=size, width=width)[None, ..., None])
    ones = tf.ones_like(picture)
    seen = make(picture, picture, ones, ones)
    at = np.array([[0.4, -0.3, 0.05, 0.04, -0.03, 0.06]])
    moved, weight = seen.moved(bounds.transform(tf.constant(at)))
    inner = scipy.ndimage.binary_erosion(weight.numpy()[0, ..., 0] > 0)
    columns = []
    for number in range(6):
        step = 1e-4 * np.eye(6)[number]
        ends = [seen.moved(bounds.transform(tf.constant(at + sign * step)))[0] for sign in (1, -1)]
        columns.append(((ends[0] - ends[1]) / 2e-4).numpy()[0, ..., 0][inner])
    columns = np.stack(columns, axis=-1)
    transform = bounds.transform(tf.constant(at))
    velocities = tf.linalg.matmul(geometry.invert(transform)[:, None, :-1, :-1], bounds.rates(tf.constant(at)))
    squares = views.VIEWS["mse"](seen.fixed, moved, weight)
    normal, _ = refine._equations(squares, moved, weight, velocities, seen)
    expected = columns.T @ columns
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    np.testing.assert_allclose(normal[0] / scale, expected / scale, atol=0.04)


def test_blurred_grids_see_farther_than_a_line_is_wide(rng):
    """Lines of a few pixels that a shear moves by 13 px at the corners."""
    at = np.stack(np.mgrid[-200:200, -200:200])
    lines = [
        np.abs(at[0] * np.cos(angle) + at[1] * np.sin(angle) - offset) < 0.8
        for angle, offset in zip(rng.uniform(0, np.pi, 40), rng.uniform(-180, 180, 40))
    ]
    picture = scipy.ndimage.gaussian_filter(np.any(lines, axis=0).astype(float), 0.7)
    truth = geometry.make(tf.constant([[3.0, -2.0]]), shear=[[7.0]]).numpy()
    fixed = read(picture, np.eye(3), (220, 220))[None, ..., None].astype(np.float32)
    moving = read(picture, np.linalg.inv(truth[0]), (232, 232))[None, ..., None].astype(np.float32)
    found = tfalign.register(fixed, moving, max_shift=6, max_shear=8)
    assert displaced(found.transform, truth, (220, 220)) < 0.1


def test_singular_equations_give_no_step_and_no_error(run):
    normal = np.zeros((4, 3, 3), np.float32)
    normal[1] = np.nan
    normal[2] = 1.0  # of rank 1
    normal[3] = np.diag([1e-30, 1.0, 1e30])
    steps = run(refine._solved, normal, np.ones((4, 3), np.float32)).numpy()
    assert np.all(np.isfinite(steps))
    np.testing.assert_array_equal(steps[:2], 0.0)
    np.testing.assert_allclose(steps[2].sum(), 1.0, rtol=1e-3)


@pytest.mark.parametrize(
    ("bounds", "shape", "count"),
    [
        (refine.Bounds((4, 4), max_rotation=1.0), (64, 64), 1),
        (refine.Bounds((4, 4), max_rotation=7.0, max_scale=0.15), (64, 64), 9),
        (refine.Bounds((4, 4), max_rotation=180.0), (64, 64), 69),
        (refine.Bounds((4, 4), max_rotation=180.0), (256, 256), 69),
        (refine.Bounds((4, 4), max_rotation=180.0), (None, None), 69),
        (refine.Bounds((4, 4), max_scale=1.0), (64, 64), 15**2),
        (refine.Bounds((4, 4), max_rotation=180.0, max_scale=1.0), (64, 64), 69 * 15),
        (refine.Bounds((2, 2, 2), max_rotation=20.0), (24, 24, 24), 27),
        (refine.Bounds((2, 2, 2), max_rotation=180.0), (24, 24, 24), 3 * 26 + 1),
        (refine.Bounds((4, 4), max_shear=30.0), (64, 64), 1),
        (refine.Bounds((4,), max_scale=0.05), (4096,), 67),
    ],
)
def test_candidates_leave_no_gap(bounds, shape, count):
    shape = [tf.constant(100) if size is None else size for size in shape]
    found = start.candidates(bounds, shape)
    assert np.all(found[0] == 0)
    assert len(np.unique(found, axis=0)) == len(found)
    assert abs(len(found) - count) <= 8 if count > 60 else len(found) == count
    limits = np.concatenate(list(bounds.limits().values()))
    assert np.all(np.abs(found[:, len(shape) :]) <= limits)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"max_rotation": -1.0}, ValueError, "`max_rotation` must be >= 0.0 and <= 180.0.*max_rotation=-1.0"),
        ({"max_rotation": 200}, ValueError, "`max_rotation` must be .*max_rotation=200"),
        ({"max_shear": 60}, ValueError, "`max_shear` must be .*max_shear=60"),
        ({"max_scale": -0.1}, ValueError, "`max_scale` must be >= 0.0.*max_scale=-0.1"),
        ({"max_scale": np.inf}, ValueError, "`max_scale` must be >= 0.0 and <= 9.0.*max_scale=inf"),
        ({"max_scale": "big"}, TypeError, "`max_scale` must be a number.*'big'"),
    ],
)
def test_bad_bounds(change, error, text):
    with pytest.raises(error, match=text):
        tfalign.register(np.zeros((1, 8, 8, 1)), np.zeros((1, 8, 8, 1)), max_shift=1, **change)


@pytest.mark.parametrize("change", [{"max_rotation": 5.0}, {"max_shear": 5.0}])
def test_signals_have_no_angles(change):
    with pytest.raises(ValueError, match=r"must be 0 for signals.*Received: max_rotation=.*Search `max_shift`"):
        tfalign.register(np.zeros((1, 8, 1)), np.zeros((1, 8, 1)), max_shift=1, **change)
