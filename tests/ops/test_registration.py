import inspect
import itertools

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import tensorflow as tf
from skimage.registration import phase_cross_correlation

import tfalign
from benchmarks.registration import scenes
from tests import reference
from tests.conftest import in_modes
from tfalign.data import misalign
from tfalign.ops import registration, spectral
from tfalign.ops.similarity import information, sums

SIMILARITIES = ["ncc", "cc", "mse", "mae", "cross_entropy", "overlap", "mi", "nmi", "joint_entropy"]
MOMENTS = ("ncc", "cc", "mse")  # in all cases below; the others in some
PROBABILITIES = ("cross_entropy", "overlap")
LEVELS = ("mi", "nmi", "joint_entropy")
SIZES = [((10,), (14,)), ((12,), (9,)), ((7, 6), (7, 6)), ((6, 7), (9, 12)), ((8, 9), (5, 6)), ((6, 5, 6), (7, 6, 5))]


def pair(rng, fixed_size, moving_size, channels=2, batch=2):
    return (
        rng.standard_normal((batch, *fixed_size, channels)).astype(np.float32),
        rng.standard_normal((batch, *moving_size, channels)).astype(np.float32),
    )


def pair_for(measure, rng, fixed_size, moving_size, **options):
    """`pair`, as probabilities where the measure takes those."""
    fixed, moving = pair(rng, fixed_size, moving_size, **options)
    if measure not in PROBABILITIES:
        return fixed, moving
    fixed, moving = (1 / (1 + np.exp(-2 * side)) for side in (fixed, moving))
    if measure == "cross_entropy" and fixed.shape[-1] > 1:
        fixed /= fixed.sum(axis=-1, keepdims=True)
    return fixed.astype(np.float32), moving.astype(np.float32)


def level_count(fixed, moving, max_shift):
    """The number of levels that the information measures take for these sizes."""
    sides = [tf.convert_to_tensor(side) for side in (fixed, moving)]
    ones = [tf.ones([*side.shape[:-1], 1]) for side in sides]
    return information.level_count(sums.Grids.windowed(*sides, *ones, max_shift))


def scene(rng, rank, size=None, channels=2):
    """One larger random field, from which patches with a known shift are cut."""
    return rng.standard_normal((size or {1: 120, 2: 90, 3: 30}[rank],) * rank + (channels,)).astype(np.float32)


def cut(field, size, shift):
    """The patch whose content lies `shift` pixels further down/right, around the field's centre."""
    begin = [n // 2 - s // 2 - t for n, s, t in zip(field.shape, size, shift)]
    return field[tuple(slice(b, b + s) for b, s in zip(begin, size))]


TRACED = ["ncc", "mse", "mi"]  # and compiled, where that is not asked of all; all score maps are


def map_error(actual, expected):
    """Largest difference over the range of the expected map; infinite where other shifts count."""
    finite = np.isfinite(expected)
    if not np.array_equal(np.isfinite(actual), finite) or not np.ptp(expected[finite]) > 0:
        return np.inf
    return np.max(np.abs(np.asarray(actual)[finite] - expected[finite])) / np.ptp(expected[finite])


@pytest.mark.parametrize(
    ("run", "measure", "fixed_size", "moving_size"),
    in_modes([(name, *sizes) for name in SIMILARITIES for sizes in (SIZES if name in MOMENTS else SIZES[1::2])]),
    indirect=["run"],
)
def test_score_map_equals_the_reference(rng, run, measure, fixed_size, moving_size):
    fixed, moving = pair_for(measure, rng, fixed_size, moving_size)
    bounds = (2,) * len(fixed_size)
    found = run(
        lambda a, b: tfalign.register(a, b, max_shift=2, similarity=measure, min_overlap=0.2, return_map=True),
        fixed,
        moving,
    )
    for sample in range(2):
        levels = level_count(fixed, moving, bounds)
        expected = reference.score_map(fixed[sample], moving[sample], bounds, measure, min_overlap=0.2, levels=levels)
        assert map_error(found.score_map[sample], expected) < 3e-5


@pytest.mark.parametrize(
    ("run", "measure", "graded"),
    in_modes(list(itertools.product(SIMILARITIES, [False, True])), TRACED),
    indirect=["run"],
)
def test_masked_score_map_equals_the_reference(rng, run, measure, graded):
    fixed, moving = pair_for(measure, rng, (8, 9), (10, 9))
    fixed_mask = rng.random((2, 8, 9)) * (rng.random((2, 8, 9)) > 0.3)
    moving_mask = rng.random((2, 10, 9, 1)) * (rng.random((2, 10, 9, 1)) > 0.3)
    if not graded:
        fixed_mask, moving_mask = np.ceil(fixed_mask), np.ceil(moving_mask)
    masks = fixed_mask.astype(np.float32), moving_mask.astype(np.float32)

    def register(a, b, c, d):
        return tfalign.register(
            a, b, max_shift=(3, 1), similarity=measure, fixed_mask=c, moving_mask=d, min_overlap=0.5, return_map=True
        )

    found = run(register, fixed, moving, *masks)
    for sample in range(2):
        expected = reference.score_map(
            fixed[sample], moving[sample], (3, 1), measure, masks[0][sample], masks[1][sample, ..., 0], 0.5,
            levels=level_count(fixed, moving, (3, 1)),
        )  # fmt: skip
        assert map_error(found.score_map[sample], expected) < 1e-4


@pytest.mark.parametrize("measure", ["ncc", "mse", "mae", "mi"])
@pytest.mark.parametrize(("fixed_size", "moving_size"), [((14,), (17,)), ((4, 3, 4), (5, 5, 4))])
def test_masked_score_maps_of_signals_and_volumes_equal_the_reference(rng, measure, fixed_size, moving_size):
    fixed, moving = pair_for(measure, rng, fixed_size, moving_size, batch=1)
    masks = [(rng.random((1, *size)) * (rng.random((1, *size)) > 0.2)) for size in (fixed_size, moving_size)]
    options = {"max_shift": 1, "similarity": measure, "return_map": True}
    found = tfalign.register(fixed, moving, fixed_mask=masks[0], moving_mask=masks[1], **options)
    bounds = (1,) * len(fixed_size)
    expected = reference.score_map(
        fixed[0], moving[0], bounds, measure, np.float32(masks[0][0]), np.float32(masks[1][0]), 0.5,
        levels=level_count(fixed, moving, bounds),
    )  # fmt: skip
    assert map_error(found.score_map[0], expected) < 1e-4


@pytest.mark.parametrize(("size", "bound", "min_overlap"), [((40, 40), (2, 2), 0.5), ((64, 64), (20, 20), 0.3)])
def test_every_cell_of_the_histogram_has_its_pixels(size, bound, min_overlap):
    fixed = np.zeros((1, *size, 1), np.float32)
    levels = level_count(fixed, fixed, bound)
    least = np.prod([one - reach for one, reach in zip(size, bound)])
    assert least >= min_overlap * np.prod(size)
    assert 50 * levels**2 <= least < 50 * (levels + 1) ** 2


@pytest.mark.parametrize("measure", LEVELS)
def test_more_levels_on_larger_grids(rng, measure):
    fixed, moving = pair(rng, (40, 38), (42, 40), channels=1, batch=1)
    moving[:, 2:, 1:39] += 2 * fixed
    assert level_count(fixed, moving, (2, 1)) >= 5
    found = tfalign.register(fixed, moving, max_shift=(2, 1), similarity=measure, return_map=True)
    expected = reference.score_map(fixed[0], moving[0], (2, 1), measure, min_overlap=0.5, levels=5)
    assert map_error(found.score_map[0], expected) < 1e-4


@pytest.mark.parametrize(
    ("run", "fixed_size", "moving_size"),
    in_modes([((16,), (20,)), ((12, 10), (12, 10)), ((8, 6, 6), (10, 6, 8))], [(12, 10)]),
    indirect=["run"],
)
def test_phase_correlation_equals_the_reference(rng, run, fixed_size, moving_size):
    fixed, moving = pair(rng, fixed_size, moving_size)
    bounds = (2,) * len(fixed_size)
    found = run(
        lambda a, b: tfalign.register(a, b, max_shift=2, similarity="phase", min_overlap=0, return_map=True),
        fixed,
        moving,
    )
    fft_sizes = [spectral.fast_size(size + 4) for size in fixed_size]
    for sample in range(2):
        expected = reference.phase_map(fixed[sample], moving[sample], bounds, fft_sizes)
        assert map_error(found.score_map[sample], expected) < 1e-4


def test_phase_correlation_finds_the_shift_of_a_texture(rng, run):
    field = scene(rng, 2)
    fixed, moving = cut(field, (40, 40), (0, 0))[None], cut(field, (52, 52), (-4, 3))[None]
    found = run(lambda a, b: tfalign.register(a, b, max_shift=6, similarity="phase", subpixel=False), fixed, moving)
    np.testing.assert_array_equal(found.translation, [[-4, 3]])


@pytest.mark.parametrize(("rank", "size"), [(1, 256), (2, 64), (3, 24)])
def test_phase_correlation_finds_the_shift_of_a_smooth_picture(rank, size):
    """Most of its frequencies hold nothing but what leaks from the border."""
    pairs = scenes.pairs(12, rank=rank, size=size, bound=3, margin=5, cut=0.08)
    found = tfalign.register(pairs.fixed, pairs.moving, max_shift=5, similarity="phase")
    np.testing.assert_allclose(found.translation, pairs.shifts, atol=0.25)


@pytest.mark.parametrize("remap", ["invert", "nonmonotone", "random"])
def test_mutual_information_finds_what_correlation_cannot(rng, remap):
    field = scipy.ndimage.gaussian_filter(rng.standard_normal((90, 90)), 1.5)
    field = (field - field.min()) / np.ptp(field)
    shifted = misalign.remap_intensity(field.astype(np.float32), kind=remap, levels=6)
    fixed, moving = cut(field[..., None], (56, 56), (0, 0)), cut(shifted[..., None], (72, 72), (5, -7))
    found = tfalign.register(fixed[None].astype(np.float32), moving[None], max_shift=8, similarity="mi", subpixel=False)
    np.testing.assert_array_equal(found.translation, [[5, -7]])


@pytest.mark.parametrize("measure", LEVELS)
def test_information_ignores_a_swap_of_levels(rng, measure):
    fixed, moving = (rng.integers(0, 4, (2, 30, 30, 1)).astype(np.float32) for _ in range(2))
    moving[:, 3:, 2:] = fixed[:, :-3, :-2]
    table = np.array([2.0, 0.0, 3.0, 1.0], np.float32)
    assert level_count(fixed, moving, (4, 4)) == 3
    options = {"max_shift": 1, "similarity": measure, "return_map": True}
    assert level_count(fixed, moving, (1, 1)) == 4
    plain = tfalign.register(fixed, moving, **options).score_map
    swapped = tfalign.register(fixed, table[moving.astype(int)], **options).score_map
    np.testing.assert_allclose(swapped, plain, atol=1e-5)


@pytest.mark.parametrize("measure", LEVELS)
def test_information_ignores_gain_and_offset(rng, measure):
    """Steps of powers of two and values of few bits, so that the ends of levels move exactly as the values do."""
    fixed, moving = (np.round(16 * side) / 16 for side in pair(rng, (24, 24), (28, 28), channels=1))
    options = {"max_shift": 2, "similarity": measure, "return_map": True}
    plain = tfalign.register(fixed, moving, **options).score_map
    other = tfalign.register(4.0 * fixed - 32.0, 0.125 * moving + 2.0, **options).score_map
    np.testing.assert_allclose(other, plain, atol=1e-5)
    assert np.ptp(plain) > 1e-3


def test_mutual_information_is_symmetric(rng):
    fixed, moving = pair(rng, (24, 24), (24, 24), channels=1)
    options = {"max_shift": 3, "similarity": "mi", "return_map": True}
    forward = tfalign.register(fixed, moving, **options).score_map
    backward = tfalign.register(moving, fixed, **options).score_map
    np.testing.assert_allclose(forward, backward[:, ::-1, ::-1], atol=1e-5)


def test_masked_ncc_equals_scikit_image(rng):
    field = scene(rng, 2, channels=1)
    for truth in ((3, -2), (-4, 1), (0, 4)):
        fixed, moving = cut(field, (20, 22), (0, 0)), cut(field, (20, 22), truth)
        masks = [rng.random((20, 22)) > 0.2 for _ in range(2)]
        found = tfalign.register(
            np.where(masks[0][..., None], fixed, 9)[None], np.where(masks[1][..., None], moving, -9)[None], max_shift=4,
            fixed_mask=masks[0][None], moving_mask=masks[1][None], min_overlap=0.3, subpixel=False,
        )  # fmt: skip
        theirs, _, _ = phase_cross_correlation(
            moving[..., 0], fixed[..., 0], reference_mask=masks[1], moving_mask=masks[0], overlap_ratio=0.3
        )
        np.testing.assert_array_equal(theirs, truth)
        np.testing.assert_array_equal(found.translation, [truth])


@pytest.mark.parametrize(("run", "measure"), in_modes([("ncc",), ("mae",), ("mi",)], ["mi"]), indirect=["run"])
def test_groups_of_channels_are_registered_apart(rng, run, measure):
    field = scene(rng, 2, channels=3)
    fixed = cut(field, (40, 40), (0, 0))[None]
    parts = [cut(field, (52, 52), shift)[None] for shift in ((2, -3), (-1, 4))]
    moving = np.concatenate([parts[0][..., :1], parts[1][..., 1:]], axis=-1)

    def register(a, b):
        options = {"max_shift": 5, "similarity": measure, "subpixel": False, "return_map": True}
        return tfalign.register(a, b, groups=[(0,), (1, 2)], **options)

    found = run(register, fixed, moving)
    np.testing.assert_array_equal(found.translation, [[[2, -3], [-1, 4]]])
    assert found.transform.shape == (1, 2, 3, 3)
    assert found.score.shape == found.confidence.shape == found.overlap.shape == (1, 2)
    assert found.score_map.shape == found.posterior_map.shape == (1, 2, 11, 11)
    aligned, mask = found.warp(moving)
    np.testing.assert_array_equal(mask, np.ones((1, 40, 40, 3)))
    np.testing.assert_array_equal(aligned, fixed)
    np.testing.assert_array_equal(found.inverse()[..., :2, 2], -found.translation)


def test_arrays_are_taken_for_lists(rng):
    fixed, moving = pair(rng, (8, 8), (12, 12))
    lists = tfalign.register(fixed, moving, max_shift=(2, 1), groups=[(1,), (0,)])
    arrays = tfalign.register(fixed, moving, max_shift=np.array([2, 1]), groups=np.array([1, 0]))
    np.testing.assert_array_equal(arrays.translation, lists.translation)
    np.testing.assert_array_equal(arrays.channel_groups, lists.channel_groups)


@pytest.mark.parametrize("groups", [[], [(0,)], [(0,), (0, 1)], [(0,), (1,), ()], [(0, 1, 2)], 2, "01", [0.0, 1.0]])
def test_bad_groups(rng, groups):
    fixed, moving = pair(rng, (8, 8), (8, 8))
    with pytest.raises(ValueError, match="`groups` must name each channel once"):
        tfalign.register(fixed, moving, max_shift=1, groups=groups)


def test_a_pooled_batch_shares_its_best_shift(rng, run):
    fields = [scene(rng, 2, channels=1) for _ in range(6)]
    fixed = np.stack([cut(field, (24, 24), (0, 0)) for field in fields])
    moving = np.stack([cut(field, (32, 32), (3, -2)) for field in fields])
    moving += 4 * rng.standard_normal(moving.shape).astype(np.float32)
    moving[0] = 7.0
    moving[1] = np.nan
    alone = tfalign.register(fixed, moving, max_shift=4, subpixel=False)
    assert np.any(alone.translation != [3, -2])

    def register(a, b):
        return tfalign.register(a, b, max_shift=4, subpixel=False, pool="batch", return_map=True)

    found = run(register, fixed, moving)
    np.testing.assert_array_equal(found.translation, [[3, -2]] * 6)
    np.testing.assert_allclose(found.score_map, np.broadcast_to(found.score_map[:1], found.score_map.shape), rtol=1e-5)
    assert np.min(found.confidence) > 0.99 > np.min(alone.confidence)


@pytest.mark.parametrize("has_channel", [False, True])
def test_class_numbers_are_compared_with_probabilities(rng, run, has_channel):
    classes = rng.integers(0, 3, (2, 40, 40))
    one_hot = np.eye(3, dtype=np.float32)[classes]
    prediction = 0.7 * one_hot[:, 8:32, 8:32] + 0.1
    labels = classes[:, 5:35, 10:40].astype(np.int32)
    options = {"max_shift": 6, "similarity": "cross_entropy", "subpixel": False}
    found = run(
        lambda a, b: tfalign.register(a, b, **options), prediction, labels[..., None] if has_channel else labels
    )
    np.testing.assert_array_equal(found.translation, [[0, -5]] * 2)
    expected = tfalign.register(prediction, one_hot[:, 5:35, 10:40], **options)
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-4)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
@pytest.mark.parametrize("has_channel", [False, True])
@pytest.mark.parametrize("channels", [1, 2])
def test_flags_are_compared_with_one_probability_or_two(rng, dtype, has_channel, channels):
    flags = rng.integers(0, 2, (1, 40, 40))
    prediction = 0.8 * np.eye(2, dtype=np.float32)[flags][:, 8:32, 8:32, -channels:] + 0.1
    label = flags[:, 5:35, 10:40].astype(dtype)
    label = label[..., None] if has_channel else label
    found = tfalign.register(prediction, label, max_shift=6, similarity="cross_entropy", subpixel=False)
    np.testing.assert_array_equal(found.translation, [[0, -5]])
    np.testing.assert_allclose(found.score, [np.log(0.9)], rtol=1e-3)


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, bool])
def test_class_maps_without_channels_move_as_they_are(rng, dtype):
    classes = rng.integers(0, 2, (1, 40, 40))
    fixed, labels = np.eye(2, dtype=np.float32)[classes[:, 8:32, 8:32]], classes[:, 5:35, 10:40].astype(dtype)
    found = tfalign.register(fixed, labels, max_shift=6, similarity="overlap", subpixel=False)
    aligned, mask = found.warp(labels)
    assert aligned.dtype == dtype
    inside = np.asarray(mask) > 0
    assert inside.mean() > 0.8
    np.testing.assert_array_equal(np.asarray(aligned)[inside], classes[:, 8:32, 8:32].astype(dtype)[inside])


def test_mutual_information_is_that_of_scipy(rng):
    """Entropies of NumPy's histograms of each overlap, by SciPy."""
    fixed = rng.uniform(-3.0, 5.0, (40, 40))
    moving = np.cos(2 * fixed) + 0.1 * rng.standard_normal((40, 40))
    moving = np.clip(moving, *(moving.mean() + np.array([-2.9, 2.9]) * moving.std()))
    found = tfalign.register(
        fixed[None, ..., None], moving[None, ..., None], max_shift=2, similarity="mi", return_map=True
    )
    levels = 5  # floor of the root of 38 x 38 / 50
    edges = [np.linspace(side.min(), side.max(), levels + 1) for side in (fixed, moving)]
    for y, x in itertools.product(range(-2, 3), repeat=2):
        left = fixed[max(-y, 0) : 40 - max(y, 0), max(-x, 0) : 40 - max(x, 0)]
        right = moving[max(y, 0) : 40 - max(-y, 0), max(x, 0) : 40 - max(-x, 0)]
        joint = np.histogram2d(left.ravel(), right.ravel(), bins=edges)[0]
        marginals = (scipy.stats.entropy(joint.sum(axis=axis)) for axis in (0, 1))
        np.testing.assert_allclose(
            found.score_map[0, y + 2, x + 2], sum(marginals) - scipy.stats.entropy(joint.ravel()), rtol=1e-5
        )


def test_numbers_that_are_no_class_do_not_count(rng):
    classes = rng.integers(0, 3, (2, 40, 40))
    prediction = 0.7 * np.eye(3, dtype=np.float32)[classes][:, 8:32, 8:32] + 0.1
    labels = classes[:, 5:35, 10:40].astype(np.int32)
    unknown = rng.random(labels.shape) < 0.3
    options = {"max_shift": 6, "similarity": "cross_entropy", "subpixel": False}
    found = tfalign.register(prediction, np.where(unknown, 255, labels), **options)
    expected = tfalign.register(prediction, labels, moving_mask=~unknown, **options)
    np.testing.assert_array_equal(found.translation, [[0, -5]] * 2)
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-5)


@pytest.mark.parametrize("measure", [name for name in SIMILARITIES if name not in PROBABILITIES])
def test_sixteen_bit_values_lose_no_precision(rng, measure):
    fixed = 30000.0 + 40.0 * rng.standard_normal((1, 12, 12, 1)).astype(np.float32)
    moving = fixed + 5.0 * rng.standard_normal((1, 12, 12, 1)).astype(np.float32)
    found = tfalign.register(fixed, moving, max_shift=2, similarity=measure, return_map=True)
    expected = reference.score_map(
        fixed[0].astype(float), moving[0].astype(float), (2, 2), measure, min_overlap=0.5, levels=2
    )
    assert map_error(found.score_map[0], expected) < 1e-4


KNOWN = [
    ((40,), (56,), 8),
    ((41,), (41,), 8),
    ((32, 33), (48, 49), 8),
    ((32, 32), (32, 32), 7),
    ((20, 25), (45, 40), 9),
    ((40, 41), (21, 20), 6),
    ((10, 12, 11), (16, 16, 17), 3),
    ((12, 12, 12), (12, 12, 12), 2),
]


@pytest.mark.parametrize(
    ("run", "measure", "fixed_size", "moving_size", "bound"),
    in_modes([(name, *case) for name in SIMILARITIES for case in (KNOWN if name in MOMENTS else KNOWN[2::2])], TRACED),
    indirect=["run"],
)
def test_known_shifts_are_recovered_exactly(rng, run, measure, fixed_size, moving_size, bound):
    rank = len(fixed_size)
    truth = rng.integers(-bound, bound + 1, (6, rank))
    fields = [scene(rng, rank) for _ in truth]
    if measure in PROBABILITIES:
        fields = [(np.eye(2)[(field[..., 0] > 0).astype(int)] * 0.9 + 0.05).astype(np.float32) for field in fields]
    fixed = np.stack([cut(field, fixed_size, [0] * rank) for field in fields])
    moving = np.stack([cut(field, moving_size, shift) for field, shift in zip(fields, truth)])
    found = run(
        lambda a, b: tfalign.register(a, b, max_shift=bound, similarity=measure, subpixel=False, min_overlap=0.3),
        fixed,
        moving,
    )
    np.testing.assert_array_equal(found.translation, truth)
    np.testing.assert_array_equal(found.transform[:, :-1, -1], truth)
    assert np.min(found.confidence) > 0.99
    aligned, mask = found.warp(moving)
    assert aligned.shape == fixed.shape
    np.testing.assert_allclose(np.mean(mask, axis=tuple(range(1, rank + 1))), found.overlap, atol=1e-6)
    np.testing.assert_array_equal(aligned, fixed * np.asarray(mask)[..., np.newaxis])


def test_the_best_crop_of_a_large_label(rng):
    label = rng.standard_normal((1, 256, 256, 1)).astype(np.float32)
    found = tfalign.register(label[:, :100, :100], label, max_shift=78, subpixel=False)
    np.testing.assert_array_equal(found.translation, [[-78, -78]])
    aligned, _ = found.warp(label)
    np.testing.assert_array_equal(aligned, label[:, :100, :100])


@pytest.mark.parametrize("measure", ["ncc", "mse"])
def test_subpixel_shifts(run, measure):
    grid = np.arange(64) - 32.0
    truth = np.array([[0.3, -1.4], [2.75, 0.5], [-3.2, 3.9]])

    def blob(shift):
        return np.exp(-((grid[:, None] - shift[0]) ** 2 + (grid[None] - shift[1]) ** 2) / 50.0)

    fixed = np.stack([blob((0.0, 0.0))] * 3)[..., np.newaxis].astype(np.float32)
    moving = np.stack([blob(shift) for shift in truth])[..., np.newaxis].astype(np.float32)
    found = run(lambda a, b: tfalign.register(a, b, max_shift=6, similarity=measure), fixed, moving)
    np.testing.assert_allclose(found.translation, truth, atol=0.06)
    independent = phase_cross_correlation(moving[0, ..., 0], fixed[0, ..., 0], upsample_factor=50, normalization=None)[
        0
    ]
    np.testing.assert_allclose(found.translation[0], independent, atol=0.06)


def test_rounding_gives_the_whole_pixel_shift_back(rng):
    fixed, moving = pair(rng, (16, 16), (24, 24), batch=40)
    exact = tfalign.register(fixed, moving, max_shift=4, subpixel=False).translation
    refined = tfalign.register(fixed, moving, max_shift=4).translation
    assert np.any(refined != exact)
    np.testing.assert_array_equal(np.round(refined), exact)


def test_two_equal_neighbours_stay_short_of_the_half(rng):
    field = np.stack([scene(rng, 1, channels=1) for _ in range(20)])
    moving = (field[:, 38:82] + field[:, 39:83]) / 2
    exact = tfalign.register(field[:, 44:76], moving, max_shift=6, subpixel=False).translation
    refined = tfalign.register(field[:, 44:76], moving, max_shift=6).translation
    assert np.max(np.abs(refined - exact)) > 0.4
    assert np.max(np.abs(refined - exact)) < 0.5


def test_ncc_ignores_gain_and_offset_and_stays_in_bounds(rng):
    fixed, moving = pair(rng, (9, 9), (13, 13))
    one = tfalign.register(fixed, moving, max_shift=2, return_map=True).score_map
    other = tfalign.register(7.0 * fixed - 100.0, 0.01 * moving + 3.0, max_shift=2, return_map=True).score_map
    np.testing.assert_allclose(one, other, atol=2e-5)
    assert np.max(np.abs(one)) <= 1.0


@pytest.mark.parametrize(
    ("fixed", "moving", "bound"), [((5, 7), (11, 4), 9), ((12,), (2,), 6), ((3,), (30,), 3), ((40,), (44,), 2)]
)
def test_overlaps_of_all_kinds_equal_the_reference(rng, fixed, moving, bound):
    fixed, moving = (rng.random((1, *sizes, 2)).astype(np.float32) for sizes in (fixed, moving))
    options = {"similarity": "mse", "min_overlap": 0.0}
    found = tfalign.register(fixed, moving, max_shift=bound, return_map=True, **options).score_map[0]
    truth = reference.score_map(fixed[0], moving[0], [bound] * (fixed.ndim - 2), **options)
    np.testing.assert_allclose(found, truth, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1e10])
def test_tiny_and_huge_values(rng, scale):
    image = rng.random((1, 64, 64, 1)).astype(np.float32)
    found = tfalign.register(np.roll(image, 2, axis=1) * scale, image * scale, max_shift=3, subpixel=False)
    np.testing.assert_array_equal(found.translation, [[-2, 0]])
    assert found.confidence[0] > 0.99


@pytest.mark.parametrize("scale", [1e-30, 1e18, 1e30])
@pytest.mark.parametrize("measure", [*SIMILARITIES, "phase"])
def test_values_whose_squares_are_no_numbers_leave_results_finite(rng, measure, scale):
    image = scale * rng.random((1, 20, 20, 1)).astype(np.float32)
    found = tfalign.register(np.roll(image, 2, axis=1), image, max_shift=3, similarity=measure)
    for values in (found.transform, found.score, found.confidence, found.overlap):
        assert np.all(np.isfinite(values))
    assert 0 <= found.confidence[0] <= 1
    if measure in LEVELS and scale > 1:
        np.testing.assert_array_equal(np.round(found.translation), [[-2, 0]])
        assert found.confidence[0] > 0.9


@pytest.mark.parametrize("measure", ["ncc", "mse", "mae", "overlap", "cross_entropy", "mi", "phase"])
def test_moving_both_grids_alike_changes_nothing(rng, measure):
    field = scene(rng, 2)
    if measure in PROBABILITIES:
        field = (np.eye(2)[(field[..., 0] > 0).astype(int)] * 0.9 + 0.05).astype(np.float32)
    options = {"max_shift": 4, "similarity": measure}
    one = tfalign.register(cut(field, (24, 24), (0, 0))[None], cut(field, (32, 32), (2, 1))[None], **options)
    other = tfalign.register(cut(field, (24, 24), (5, 6))[None], cut(field, (32, 32), (7, 7))[None], **options)
    np.testing.assert_allclose(np.round(one.translation), [[2, 1]])
    np.testing.assert_array_equal(np.round(one.translation), np.round(other.translation))


def test_swapping_the_sides_inverts_the_result(rng):
    field = scene(rng, 2)
    one, two = cut(field, (20, 20), (0, 0))[None], cut(field, (20, 20), (3, -2))[None]
    forward = tfalign.register(one, two, max_shift=5, subpixel=False)
    backward = tfalign.register(two, one, max_shift=5, subpixel=False)
    np.testing.assert_array_equal(forward.inverse(), backward.transform)
    assert np.any(forward.translation != 0)


@pytest.mark.parametrize("measure", SIMILARITIES)
def test_a_mask_of_ones_equals_no_mask(rng, measure):
    fixed, moving = pair_for(measure, rng, (8, 8), (10, 10))
    options = {"max_shift": 2, "similarity": measure, "return_map": True}
    plain = tfalign.register(fixed, moving, **options)
    masked = tfalign.register(
        fixed, moving, fixed_mask=np.ones((2, 8, 8)), moving_mask=np.ones((2, 10, 10), bool), **options
    )
    np.testing.assert_array_equal(plain.score_map, masked.score_map)
    np.testing.assert_array_equal(plain.translation, masked.translation)


@pytest.mark.parametrize(("run", "bad"), in_modes([(np.nan,), (np.inf,), (-np.inf,)], [np.inf]), indirect=["run"])
def test_non_finite_pixels_count_as_masked(rng, run, bad):
    fixed, moving = pair(rng, (10, 10), (12, 12))
    holes = rng.random((2, 12, 12)) > 0.8
    broken = np.where(holes[..., None], np.float32(bad), moving)
    found = run(lambda a, b: tfalign.register(a, b, max_shift=2, return_map=True), fixed, broken)
    expected = tfalign.register(fixed, moving, max_shift=2, moving_mask=~holes, return_map=True)
    np.testing.assert_allclose(found.score_map, expected.score_map, atol=1e-5)


@pytest.mark.parametrize(
    ("run", "measure"), in_modes([(name,) for name in [*SIMILARITIES, "phase"]], [*TRACED, "phase"]), indirect=["run"]
)
def test_where_nothing_can_be_told_the_identity_is_kept(rng, run, measure):
    fills = {"constant": 0.1, "zero": 0.0, "nan": np.nan, "inf": np.inf, "both blank": 30000.1, "huge": 1e30}
    kinds = [*fills, "blank fixed", "masked"]
    fixed, moving = pair(rng, (12, 12), (16, 16), batch=len(kinds))
    mask = np.ones((len(kinds), 16, 16), np.float32)
    for sample, kind in enumerate(kinds):
        if kind in fills:
            moving[sample] = fills[kind]
        if kind in ("blank fixed", "both blank"):
            fixed[sample] = 12345.6
        if kind == "masked":
            mask[sample] = 0.0
    found = run(
        lambda a, b, c: tfalign.register(a, b, max_shift=3, similarity=measure, moving_mask=c), fixed, moving, mask
    )
    np.testing.assert_array_equal(found.translation, np.zeros((len(kinds), 2)), err_msg=str(kinds))
    np.testing.assert_array_equal(found.confidence, np.zeros(len(kinds)), err_msg=str(kinds))
    assert np.all(np.isfinite(found.score))


def test_confidence_is_high_on_a_clear_peak_and_low_on_noise(rng):
    field = np.stack([scene(rng, 2, channels=1) for _ in range(8)])
    clear = tfalign.register(field[:, 10:42, 10:42], field[:, 4:48, 4:48], max_shift=6)
    noise = tfalign.register(field[:, 10:42, 10:42], rng.standard_normal((8, 44, 44, 1)), max_shift=6)
    assert np.min(clear.confidence) > 0.99
    assert np.mean(noise.confidence) < 0.3


@pytest.mark.parametrize("measure", ["ncc", "mse", "mae"])
def test_other_samples_and_shifts_that_do_not_count_leave_the_confidence_alone(rng, measure):
    field = scene(rng, 2, channels=1)
    fixed, moving = cut(field, (24, 24), (0, 0))[None], cut(field, (24, 24), (2, -1))[None]
    options = {"max_shift": 8, "similarity": measure, "min_overlap": 0.8, "return_map": True}
    with pytest.raises(ValueError, match="overlap"):
        tfalign.register(fixed, moving, **options)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 1])] * 2)
    def register(a, b):
        return tfalign.register(a, b, **options)

    alone = register(fixed, moving)
    assert not np.all(np.isfinite(alone.score_map))
    assert alone.confidence[0] > 0.99
    beside = register(*(np.concatenate([side, 1e6 * side[:, ::-1]]) for side in (fixed, moving)))
    np.testing.assert_allclose(beside.posterior_map[0], alone.posterior_map[0], atol=1e-5)


def test_the_posterior_sums_to_one(rng):
    fixed, moving = pair(rng, (12, 12), (12, 12))
    posterior = tfalign.register(fixed, moving, max_shift=3, return_map=True).posterior_map
    assert posterior.shape == (2, 7, 7)
    np.testing.assert_allclose(np.sum(posterior, axis=(1, 2)), 1.0, atol=1e-5)


def test_overlap_under_the_minimum_is_not_searched(rng):
    fixed, moving = pair(rng, (8, 8), (8, 8))
    score_map = registration.register(fixed, moving, max_shift=2, min_overlap=0.5, return_map=True).score_map
    assert np.all(np.isfinite(score_map))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 2])] * 2)
    def unknown_sizes(a, b):
        return tfalign.register(a, b, max_shift=6, min_overlap=0.5, return_map=True)

    found = unknown_sizes(fixed, moving)
    overlap = np.outer(8 - np.abs(np.arange(-6, 7)), 8 - np.abs(np.arange(-6, 7))) / 64
    np.testing.assert_array_equal(np.isfinite(found.score_map[0]), overlap >= 0.5)


def test_gradient_flows_through_the_score_alone_and_is_finite(rng):
    fixed, moving = (tf.constant(side) for side in pair(rng, (8, 8), (10, 10)))
    flat = tf.zeros_like(fixed)
    for left in (fixed, flat):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(left)
            found = tfalign.register(left, moving, max_shift=1)
        assert tape.gradient(found.translation, left) is None
        assert np.all(np.isfinite(tape.gradient(found.score, left)))


@pytest.mark.parametrize("measure", LEVELS)
def test_counts_in_levels_have_no_gradient(rng, measure):
    fixed, moving = (tf.constant(side) for side in pair(rng, (8, 8), (10, 10)))
    with tf.GradientTape() as tape:
        tape.watch(fixed)
        score = tfalign.register(fixed, moving, max_shift=1, similarity=measure).score
    assert tape.gradient(score, fixed) is None


def test_results_pass_through_tf_data(rng):
    fixed, moving = pair(rng, (8, 8), (12, 12), batch=4)
    dataset = tf.data.Dataset.from_tensor_slices((fixed, moving)).batch(2)
    found = list(dataset.map(lambda a, b: tfalign.register(a, b, max_shift=2)))
    whole = tfalign.register(fixed, moving, max_shift=2)
    np.testing.assert_allclose(np.concatenate([part.translation for part in found]), whole.translation, atol=1e-5)


def test_float64_stays(rng):
    fixed, moving = (side.astype(np.float64) for side in pair(rng, (8, 8), (8, 8)))
    assert tfalign.register(fixed, moving, max_shift=1).translation.dtype == tf.float64


@pytest.mark.parametrize(
    ("measure", "bounds"),
    [*((name, {}) for name in SIMILARITIES), *((name, {"max_rotation": 4.0}) for name in ("ncc", "mae", "mi"))],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "shift",
)
def test_float64_stays_in_a_graph(measure, bounds):
    """There a plain number is float32 where it is the first of two branches."""

    def found(fixed, moving):
        options = {"fixed_mask": moving[..., 0] > 0.1, **bounds}
        return tfalign.register(fixed, moving, max_shift=1, similarity=measure, **options)

    side = tf.TensorSpec([2, 8, 8, 2], tf.float64)
    traced = tf.function(found).get_concrete_function(side, side)
    assert traced.structured_outputs.translation.dtype == tf.float64


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"max_shift": -1}, ValueError, "`max_shift` must be >= 0. Received: max_shift=-1"),
        ({"max_shift": 1.5}, TypeError, "`max_shift` must be a whole number.*max_shift=1.5"),
        ({"max_shift": (1, 2, 3)}, ValueError, r"one for each of the 2 spatial axes.*max_shift=\(1, 2, 3\)"),
        ({"max_shift": 5}, ValueError, r"overlap of at least `min_overlap`.*max_shift=\(5, 5\)"),
        ({"similarity": "best"}, ValueError, "`similarity` must be one of 'ncc'.*similarity='best'"),
        ({"min_overlap": 1.5}, ValueError, "`min_overlap` must be >= 0.0 and <= 1.0.*min_overlap=1.5"),
        ({"min_overlap": "half"}, TypeError, "`min_overlap` must be a number.*'half'"),
        ({"moving": np.zeros((2, 8, 2))}, ValueError, r"rank of `fixed`.*moving.shape=\(2, 8, 2\)"),
        ({"moving": np.zeros((3, 8, 8, 2))}, ValueError, r"as many samples.*moving.shape=\(3, 8, 8, 2\)"),
        ({"fixed": np.zeros((1, 8, 8, 2))}, ValueError, r"as many samples.*fixed.shape=\(1, 8, 8, 2\)"),
        ({"max_shift": np.array([1.5, 1.0])}, TypeError, r"whole number of pixels.*max_shift=\[1.5, 1.0\]"),
        ({"moving": np.zeros((2, 8, 8, 3))}, ValueError, r"number of channels.*moving.shape=\(2, 8, 8, 3\)"),
        ({"fixed": np.zeros((8, 8))}, ValueError, r"`fixed` must have the shape.*fixed.shape=\(8, 8\)"),
        ({"fixed_mask": np.ones((2, 7, 8))}, ValueError, r"`fixed_mask` must have.*fixed_mask.shape=\(2, 7, 8, 1\)"),
        ({"fixed": np.zeros((2, 8, 8, 2), complex)}, TypeError, "`fixed` must be real.*complex128"),
    ],
)
def test_bad_arguments(change, error, text):
    arguments = {"fixed": np.zeros((2, 8, 8, 2)), "moving": np.zeros((2, 8, 8, 2)), "max_shift": 1, **change}
    fixed, moving = arguments.pop("fixed"), arguments.pop("moving")
    with pytest.raises(error, match=text):
        tfalign.register(fixed, moving, **arguments)


@pytest.mark.parametrize("size", [1, 2, 7, 80, 81, 127, 1000])
def test_fast_sizes_are_even_smooth_and_the_same_for_tensors(size):
    fast = spectral.fast_size(size)
    assert fast >= size
    assert fast % 2 == 0
    for prime in (2, 3, 5):
        while fast % prime == 0:
            fast //= prime
    assert fast == 1
    assert spectral.fast_size(size) == int(spectral.fast_size(tf.constant(size)))


def test_every_option_is_keyword_only():
    first, second, *options = inspect.signature(tfalign.register).parameters.values()
    assert (first.name, second.name) == ("fixed", "moving")
    assert {option.kind for option in options} == {inspect.Parameter.KEYWORD_ONLY}
