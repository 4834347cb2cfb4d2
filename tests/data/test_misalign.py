import numpy as np
import pytest

import tfalign
from tfalign.data import misalign, stain

SHAPES = {1: (40,), 2: (33, 40), 3: (15, 16, 14)}  # of labels: odd and even sizes
IMAGES = {1: (120,), 2: (112, 120), 3: (56, 56, 56)}


def waves(rng, rank, top, count=24):
    """A band-limited scene: a function of index coordinates `(d, ...)`, in [-1, 1], no axis above `top` cycles/px."""
    frequency = rng.uniform(-top, top, (count, rank))
    phase, weight = rng.uniform(0, 2 * np.pi, count), rng.uniform(0.5, 1.0, count)

    def scene(at):
        angle = 2 * np.pi * np.tensordot(frequency, at, axes=1) + phase.reshape([-1] + [1] * (at.ndim - 1))
        return np.tensordot(weight / weight.sum(), np.cos(angle), axes=1)[..., np.newaxis]

    return scene


def picture(rng, rank, top=0.2):
    """A scene, its full-size image and the middle of the image."""
    scene = waves(rng, rank, top)
    return scene, scene(np.indices(IMAGES[rank], dtype=float)), [size // 2 for size in IMAGES[rank]]


def centered(shape):
    return np.stack(np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij")).astype(float)


def along(values, rank):
    return np.reshape(values, [rank] + [1] * rank)


def psnr(values, truth, mask):
    error = np.mean((np.asarray(values) - truth)[np.asarray(mask) > 0] ** 2)
    return 10 * np.log10((truth.max() - truth.min()) ** 2 / error)


def draws_of_each_kind(rank):
    yield misalign.make_transforms([[2.3, -1.6, 0.7][:rank]])[0]
    yield misalign.draw_affine(1, rank=rank, max_shift=3.0, max_scale=0.1, seed=2)[0]
    if rank > 1:
        yield misalign.draw_rotations(1, rank=rank, max_rotation=15.0, seed=3)[0]
        yield misalign.draw_affine(1, rank=rank, max_shift=3, max_rotation=9, max_scale=0.1, max_shear=5, seed=4)[0]
    yield misalign.draw_elastic(1, shape=SHAPES[rank], rms=2.0, correlation_length=12.0, seed=5)[0]


# Whole-pixel shifts.


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_registration_finds_whole_shifts(rng, rank):
    image = rng.normal(size=(*IMAGES[rank], 2)).astype(np.float32)
    center = [size // 2 - 1 for size in IMAGES[rank]]
    transforms = misalign.draw_shifts(6, rank=rank, max_shift=3, seed=2)
    margin = [size + 2 * 3 + 1 for size in SHAPES[rank]]
    crop = misalign.cut(image, shape=SHAPES[rank], center=center)
    labels = [misalign.misaligned(image, one, shape=margin, center=center)[0] for one in transforms]
    found = tfalign.register(np.stack([crop] * 6), np.stack(labels), max_shift=3, subpixel=False)
    np.testing.assert_array_equal(found.transform, transforms)
    assert np.abs(transforms[:, :-1, -1]).max() == 3


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, bool])
def test_whole_shifts_copy_pixels_up_to_the_border_of_the_image(rng, dtype):
    image = (rng.normal(size=(30, 31, 1)) * 99).astype(dtype)
    image[0, 0] = np.nan if dtype == np.float32 else 1
    transform = misalign.make_transforms([[4, -5]])[0]
    label, truth = misalign.misaligned(image, transform, shape=(20, 21), center=(14, 15))
    assert label.dtype == dtype
    np.testing.assert_array_equal(label, image[0:20, 10:31])
    np.testing.assert_array_equal(truth, transform)
    with pytest.raises(ValueError, match=r"inside the image. Received: center=\(13, 15\).*first=\[-1, 10\]"):
        misalign.misaligned(image, transform, shape=(20, 21), center=(13, 15))


# Moves between pixels.


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_labels_show_the_true_scene_at_moved_coordinates_up_to_their_border(rng, rank):
    scene, image, center = picture(rng, rank)
    grid = centered(SHAPES[rank])
    for move in draws_of_each_kind(rank):
        if move.shape == (rank + 1, rank + 1):
            points = np.concatenate([grid.reshape(rank, -1), np.ones((1, grid[0].size))])
            at = (np.linalg.inv(move) @ points)[:rank].reshape(grid.shape)
        else:
            at = grid + np.moveaxis(move, -1, 0)
        label, _ = misalign.misaligned(image, move, shape=SHAPES[rank], center=center)
        expected = scene(at + along(center, rank))
        np.testing.assert_allclose(label, expected, atol=3e-3)
        single, _ = misalign.misaligned(image.astype(np.float32), move, shape=SHAPES[rank], center=center)
        assert single.dtype == np.float32
        np.testing.assert_allclose(single, label, atol=1e-6)
        assert psnr(label, expected, np.ones(SHAPES[rank])) > 65


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_warp_brings_labels_back_to_the_truth(rng, rank):
    _, image, center = picture(rng, rank, top=0.06)
    crop = misalign.cut(image, shape=SHAPES[rank], center=center)
    for move in draws_of_each_kind(rank):
        label, truth = misalign.misaligned(image, move, shape=SHAPES[rank], center=center)
        aligned, mask = tfalign.warp(label[np.newaxis], truth[np.newaxis])
        assert np.mean(mask) > 0.4
        assert psnr(aligned[0], crop, mask[0]) > 40
        assert psnr(label, crop, mask[0]) < 30


def test_class_maps_take_the_nearest_pixel(rng):
    scene, image, center = picture(rng, 2)
    classes = np.digitize(image, [-0.1, 0.1])
    move = misalign.draw_affine(1, rank=2, max_shift=3, max_rotation=15, seed=4)[0]
    label, _ = misalign.misaligned(classes, move, shape=SHAPES[2], center=center)
    grid = centered(SHAPES[2]) - along(move[:2, 2], 2)
    at = np.tensordot(np.linalg.inv(move[:2, :2]), grid, axes=1) + along(center, 2)
    np.testing.assert_array_equal(label, np.digitize(scene(np.floor(at + 0.5)), [-0.1, 0.1]))
    assert label.dtype == classes.dtype


def test_half_a_pixel_costs_no_sharpness(rng):
    scene = waves(rng, 2, top=0.3, count=80)
    image = scene(np.indices((112, 112), dtype=float))
    move = misalign.make_transforms([[0.5, -0.5]])[0]
    label, _ = misalign.misaligned(image, move, shape=(64, 64), center=(56, 56))
    crop = misalign.cut(image, shape=(64, 64), center=(56, 56))
    window = np.hanning(64)[:, None] * np.hanning(64)
    radius = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64))
    power = [np.sum(np.abs(np.fft.fft2(one[..., 0] * window)[radius > 0.15]) ** 2) for one in (label, crop)]
    # The window lies half a pixel elsewhere on the scene: compare with the scene itself, there.
    exact = scene(np.indices((64, 64)) + 24 + along([-0.5, 0.5], 2))
    truth = np.sum(np.abs(np.fft.fft2(exact[..., 0] * window)[radius > 0.15]) ** 2)
    assert power[0] == pytest.approx(truth, rel=0.01)
    assert power[0] == pytest.approx(power[1], rel=0.1)


def test_labels_of_a_tight_window_equal_those_of_the_whole_image(rng):
    image = rng.normal(size=(200, 64, 1))
    move = misalign.make_transforms([[0.5, 0.0]], rotation=[[3.0]])[0]
    label, _ = misalign.misaligned(image, move, shape=(24, 24), center=(100, 32))
    wide = misalign.misaligned(image, move, shape=(140, 24), center=(100, 32))[0][58:82]
    np.testing.assert_allclose(label, wide, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_reach_is_enough_and_not_more(rng, rank):
    shape = SHAPES[rank]
    for move in draws_of_each_kind(rank):
        room = misalign.reach(move[np.newaxis], shape=shape)
        image = rng.normal(size=(*(2 * room + 1), 1))
        misalign.misaligned(image, move, shape=shape, center=tuple(room))
        with pytest.raises(ValueError, match="inside the image"):
            misalign.misaligned(image[2:-2], move, shape=shape, center=(room[0] - 2, *room[1:]))
    transforms = misalign.make_transforms([[2] * rank, [-3] * rank])
    size = np.array(shape)
    expected = np.maximum(size // 2 + 2, (size - 1) // 2 + 3)
    np.testing.assert_array_equal(misalign.reach(transforms, shape=shape), expected)


def test_interpolation_refuses_non_finite_images(rng):
    image = rng.normal(size=(80, 80, 1))
    image[40, 40] = np.nan
    with pytest.raises(ValueError, match=r"`image` must be finite where interpolated. Received: center=\(40, 40\)"):
        misalign.misaligned(image, misalign.make_transforms([[0.5, 0]])[0], shape=(8, 8), center=(40, 40))


# Draws of transforms.


def test_conventions_of_a_transform():
    turned = misalign.make_transforms([[5.0, 7.0]], rotation=[[90.0]], scale=[[2.0, 3.0]])[0]
    np.testing.assert_allclose(turned @ [1, 0, 1], [5, 9, 1], atol=1e-12)  # down -> right: counter-clockwise
    np.testing.assert_allclose(turned @ [0, 1, 1], [2, 7, 1], atol=1e-12)
    sheared = misalign.make_transforms([[0.0, 0.0]], shear=[[45.0]])[0]
    np.testing.assert_allclose(sheared @ [0, 1, 1], [1, 1, 1], atol=1e-12)
    for column, axis in enumerate(np.eye(3)):
        angles = np.eye(3)[[column]] * 30.0
        linear = misalign.make_transforms(np.zeros((1, 3)), rotation=angles)[0, :3, :3]
        np.testing.assert_allclose(linear @ axis, axis, atol=1e-12)
        assert np.trace(linear) == pytest.approx(1 + 2 * np.cos(np.pi / 6))


def parameters(transforms):
    """Angles, shear slopes and logarithms of scale of 2-D transforms, by A = Q R."""
    found = []
    for linear in transforms[:, :2, :2]:
        turn, upper = np.linalg.qr(linear)
        sign = np.sign(np.diag(upper))
        turn, upper = turn * sign, upper * sign[:, None]
        found.append([np.arctan2(turn[1, 0], turn[0, 0]), upper[0, 1] / upper[1, 1], *np.log(np.diag(upper))])
    return np.array(found)


@pytest.mark.parametrize("count", [40, 41])
def test_pairs_average_to_zero(count):
    options = {"rank": 2, "paired": True, "seed": 3}
    whole = misalign.draw_shifts(count, max_shift=8, **options)
    smooth = misalign.draw_gaussian_shifts(count, sigma=(4.0, 2.0), **options)
    affine = misalign.draw_affine(count, max_shift=8, max_rotation=5, max_scale=0.1, max_shear=5, **options)
    for transforms in (whole, smooth, affine):
        assert len(transforms) == count
        assert (transforms[:, :2, 2].mean(axis=0) == 0).all()
        assert (transforms[0, :2, 2] == -transforms[1, :2, 2]).all()
        assert (transforms[:40, :2, 2] != 0).any(axis=1).mean() > 0.9
    np.testing.assert_allclose(parameters(affine).mean(axis=0), 0.0, atol=1e-15)
    if count % 2:
        np.testing.assert_array_equal(affine[-1], np.eye(3))
    fields = misalign.draw_elastic(count, shape=(9, 8), rms=1.0, correlation_length=6.0, paired=True)
    assert fields.shape == (count, 9, 8, 2)
    assert (fields.mean(axis=0) == 0).all()
    assert (fields[0] == -fields[1]).all()


def test_a_mean_is_added():
    biased = misalign.draw_shifts(10, rank=2, max_shift=8, mean=(3, 0), paired=True)
    assert biased[:, :2, 2].mean(axis=0).tolist() == [3, 0]
    np.testing.assert_array_equal(
        biased, misalign.make_transforms([[3, 0]]) @ misalign.draw_shifts(10, rank=2, max_shift=8, paired=True)
    )
    smooth = misalign.draw_gaussian_shifts(10, rank=2, sigma=1.0, mean=0.5, paired=True)
    np.testing.assert_allclose(smooth[:, :2, 2].mean(axis=0), 0.5)


def test_distributions():
    whole = misalign.draw_shifts(4000, rank=2, max_shift=(3, 0), seed=1)[:, :2, 2]
    values, counts = np.unique(whole[:, 0], return_counts=True)
    assert values.tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert counts.min() > 450
    assert not whole[:, 1].any()
    smooth = misalign.draw_gaussian_shifts(4000, rank=3, sigma=4.0, seed=1)[:, :3, 3]
    assert 11 < np.abs(smooth).max() <= 12
    assert smooth.std() == pytest.approx(4 * 0.9866, rel=0.03)  # of a Gaussian cut at 3 s.d.
    affine = misalign.draw_affine(4000, rank=2, max_shift=8, max_rotation=5, max_scale=0.1, max_shear=7, seed=1)
    shift = affine[:, :2, 2]
    angle, slope, *log_scale = parameters(affine).T
    assert 7.9 < np.abs(shift).max() <= 8
    bounds = np.deg2rad(5), np.tan(np.deg2rad(7)), np.log(1.1), np.log(1.1)
    for drawn, bound in zip((angle, slope, *log_scale), bounds):
        assert 0.98 * bound < np.abs(drawn).max() <= bound * (1 + 1e-9)
        assert drawn.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)
    assert np.abs(np.corrcoef(log_scale)[0, 1]) < 0.1
    one = misalign.draw_affine(50, rank=2, max_scale=0.1, isotropic=True)
    np.testing.assert_array_equal(one[:, 0, 0], one[:, 1, 1])


def test_groups_share_a_draw():
    transforms = misalign.draw_shifts(3, rank=2, max_shift=8, seed=5)
    groups = np.array([2, 0, 2, 1, 0])
    shared = misalign.per_group(transforms, groups)
    assert shared.shape == (5, 3, 3)
    np.testing.assert_array_equal(shared[0], shared[2])
    np.testing.assert_array_equal(shared[[1, 3, 0]], transforms)
    with pytest.raises(ValueError, match=r"`groups` must lie in .* Received: groups.min\(\)=0, groups.max\(\)=3"):
        misalign.per_group(transforms, np.array([0, 3]))
    with pytest.raises(TypeError, match=r"`groups` must be whole numbers. Received: groups.dtype='float64'"):
        misalign.per_group(transforms, np.array([0.0]))


def test_regions_move_on_their_own(rng):
    ids = misalign.region_ids((64, 80), size=(32, 40))
    assert ids.shape == (64, 80)
    assert np.unique(ids).tolist() == [0, 1, 2, 3]
    assert ids[31, 39] == 0
    assert ids[31, 40] == 1
    assert ids[32, 0] == 2
    assert misalign.region_ids((5,), size=2).tolist() == [0, 0, 1, 1, 2]
    image = rng.normal(size=(64, 80, 1))
    transforms = misalign.make_transforms([[0, 0], [0, 0], [2, -3], [1, 0]])
    displacement = -misalign.per_group(transforms[:, :2, 2], ids)
    center = (44, 36)  # the left half of the patch lies in region 2, the right one in region 3
    local = misalign.cut(displacement, shape=(16, 12), center=center)
    label, truth = misalign.misaligned(image, local, shape=(16, 12), center=center)
    np.testing.assert_array_equal(label[:, :10], image[34:50, 33:43])
    np.testing.assert_array_equal(label[:, 10:], image[35:51, 40:42])
    np.testing.assert_array_equal(truth[:14, 3:9], np.broadcast_to([2.0, -3.0], (14, 6, 2)))


def test_seeds_reproduce():
    for draw in (
        lambda seed: misalign.draw_shifts(9, rank=2, max_shift=8, seed=seed),
        lambda seed: misalign.draw_gaussian_shifts(9, rank=2, sigma=2.0, seed=seed),
        lambda seed: misalign.draw_rotations(9, rank=3, max_rotation=9, seed=seed),
        lambda seed: misalign.draw_elastic(3, shape=(9, 8), rms=1.0, correlation_length=6.0, seed=seed),
        lambda seed: misalign.add_noise(np.ones((2, 9, 1)) * np.arange(9)[:, None], snr_db=0.0, seed=seed),
        lambda seed: misalign.swap_scenes(np.arange(40), share=0.5, seed=seed)[2],
        lambda seed: misalign.remap_intensity(np.linspace(0, 1, 99), kind="random", seed=seed),
    ):
        np.testing.assert_array_equal(draw(4), draw(4))
        np.testing.assert_array_equal(draw(4), draw(np.random.default_rng(4)))
        assert (draw(4) != draw(5)).any()


# Displacements.


def test_elastic_draws_have_their_size_and_correlation():
    fields = misalign.draw_elastic(400, shape=(25, 30), rms=2.0, correlation_length=16.0, seed=6)
    assert fields.shape == (400, 25, 30, 2)
    np.testing.assert_allclose(np.sqrt(np.mean(fields**2, axis=(0, 1, 2))), 2.0, rtol=0.06)
    np.testing.assert_allclose(np.mean(fields, axis=(0, 1, 2)), 0.0, atol=0.3)
    for axis, lag in ((1, 8), (1, 16), (2, 16)):
        near, far = np.take(fields, 4, axis=axis), np.take(fields, 4 + lag, axis=axis)
        assert np.corrcoef(near.ravel(), far.ravel())[0, 1] == pytest.approx(np.exp(-0.5 * (lag / 16) ** 2), abs=0.05)
    diagonal = np.corrcoef(fields[:, 0, 0].ravel(), fields[:, 12, 12].ravel())[0, 1]
    assert diagonal == pytest.approx(np.exp(-((12 / 16) ** 2)), abs=0.08)
    assert abs(np.mean(fields[..., 0] * fields[..., 1])) / 4.0 < 0.1
    line = misalign.draw_elastic(300, shape=(50,), rms=3.0, correlation_length=20.0)
    assert np.sqrt(np.mean(line**2)) == pytest.approx(3.0, rel=0.08)


def determinant(field):
    """Of the Jacobian of a 2-D moved grid, written out."""
    (a, b), (c, d) = ([np.gradient(field[..., i], axis=j) for j in (0, 1)] for i in (0, 1))
    return (1 + a) * (1 + d) - b * c


def test_elastic_draws_do_not_fold(rng):
    any_field = rng.normal(size=(9, 8, 2))
    np.testing.assert_allclose(misalign.jacobian_determinant(any_field), determinant(any_field))
    unpaired = misalign.draw_elastic(60, shape=(20, 20), rms=1.4, correlation_length=5.0, seed=1)
    assert all((determinant(field) > 0).all() for field in unpaired)
    assert any((determinant(-field) <= 0).any() for field in unpaired)
    paired = misalign.draw_elastic(60, shape=(20, 20), rms=1.4, correlation_length=5.0, seed=1, paired=True)
    assert all((determinant(field) > 0).all() for field in paired)
    with pytest.raises(ValueError, match=r"`rms` must be smaller: 5 draws folded. Received: rms=9.0, corr"):
        misalign.draw_elastic(1, shape=(20, 20), rms=9.0, correlation_length=5.0, max_tries=5)


@pytest.mark.parametrize(("rms", "length"), [(2.0, 16.0), (4.0, 24.0), (8.0, 32.0), (2.0, 7.0)])
def test_the_inverse_undoes_an_elastic_displacement(rms, length):
    field = misalign.draw_elastic(1, shape=(68, 60), rms=rms, correlation_length=length, seed=8)[0]
    pull = misalign.inverse_displacement(field)
    known = np.isfinite(pull).all(axis=-1)
    inside = (slice(20, -20), slice(20, -20))
    assert known.mean() > 0.6
    assert known[inside].mean() > 0.95
    # There and back, by another interpolation: linear, whose error is about rms / length^2 / 8 px.
    there = tfalign.warp(field[np.newaxis], np.where(known[..., np.newaxis], pull, 999.0)[np.newaxis])
    np.testing.assert_array_equal(there[1][0], known)
    np.testing.assert_allclose((pull + there[0][0])[known], 0.0, atol=12 * rms / length**2 / 8)


def test_the_inverse_meets_a_formula_up_to_the_border():
    def formula(at):
        return np.stack([2 * np.sin(0.1 * at[0] + 0.05 * at[1]), 3 * np.cos(0.08 * at[1]) - 0.1 * at[0]], axis=-1)

    grid = np.indices((50, 60), dtype=float)
    pull = misalign.inverse_displacement(formula(grid))
    back = formula(grid + np.moveaxis(pull, -1, 0))
    known = np.isfinite(pull).all(axis=-1)
    assert known.mean() > 0.8
    np.testing.assert_allclose((pull + back)[known], 0.0, atol=1e-3)
    at = np.moveaxis(grid, 0, -1) + pull
    assert at[known].min() < 0.2
    # What is unknown has no counterpart: a dense search finds none.
    fine = np.stack(np.meshgrid(np.arange(0, 49.1, 0.25), np.arange(0, 59.1, 0.25), indexing="ij"))
    landed = (np.moveaxis(fine, 0, -1) + formula(fine)).reshape(-1, 2)
    for point in np.argwhere(~known)[::40]:
        assert np.abs(landed - point).max(axis=1).min() > 1e-3


def test_the_inverse_of_a_shift_is_exact():
    pull = misalign.inverse_displacement(np.full((8, 9, 2), [2.0, -3.0]))
    assert (pull[2:, :-3] == [-2.0, 3.0]).all()
    assert np.isnan(pull[:2]).all()
    assert np.isnan(pull[:, -3:]).all()


# Content.


@pytest.mark.parametrize("snr_db", [20.0, 0.0, -10.0])
def test_noise_has_the_ratio_asked_for(rng, snr_db):
    labels = (rng.normal(size=(3, 64, 64, 3)) * np.array([1.0, 3.0, 0.0]).reshape(3, 1, 1, 1)).astype(np.float32)
    labels[..., 1] = 7 * labels[..., 1] + 100
    noisy = misalign.add_noise(labels, snr_db=snr_db, seed=1)
    noise = (noisy - labels).var(axis=(1, 2)).mean(axis=-1)
    np.testing.assert_allclose((noisy - labels).var(axis=(1, 2)), np.repeat(noise[:, None], 3, axis=1), rtol=0.1)
    assert noisy.dtype == np.float32
    signal = labels.var(axis=(1, 2)).mean(axis=-1)
    np.testing.assert_allclose(10 * np.log10(signal[:2] / noise[:2]), snr_db, atol=0.2)
    assert noise[2] == 0


@pytest.mark.parametrize(
    ("count", "share", "wrong"), [(50, 0.2, 10), (15, 0.2, 3), (9, 1.0, 9), (50, 0.0, 0), (2, 1.0, 2)]
)
def test_wrong_scenes_are_flagged_and_never_the_own(rng, count, share, wrong):
    labels = rng.normal(size=(count, 4, 1))
    for seed in range(20):
        swapped, is_wrong, source = misalign.swap_scenes(labels, share=share, seed=seed)
        assert is_wrong.sum() == wrong
        np.testing.assert_array_equal((swapped != labels).all(axis=(1, 2)), is_wrong)
        np.testing.assert_array_equal(swapped, labels[source])
        assert sorted(source) == list(range(count))


def test_remaps_defeat_correlation_but_keep_the_scene():
    gray, _ = stain.tissue()
    crops = np.stack([gray[y : y + 64, x : x + 64] for y in (40, 240) for x in (40, 140, 340)])
    inverted = misalign.remap_intensity(crops, kind="invert")
    np.testing.assert_allclose(inverted, 1 - crops)
    folded = misalign.remap_intensity(crops, kind="nonmonotone")
    assert folded.dtype == np.float32
    assert folded.min() >= 0
    assert folded.max() <= 1
    x = np.linspace(0, 1, 10001)
    assert np.abs(np.diff(misalign.remap_intensity(x, kind="nonmonotone"))).max() < 1e-3
    for remapped in (inverted, folded):
        found = tfalign.register(crops, remapped, max_shift=10, min_overlap=0.3)
        assert (np.abs(found.translation).max(axis=-1) > 2).mean() > 0.5
        assert np.mean(found.score) < 0.5


def test_a_random_table_is_one_to_one():
    x = np.linspace(0, 1, 1000)
    mapped = misalign.remap_intensity(x, kind="random", levels=8, seed=2)
    level = np.minimum((x * 8).astype(int), 7)
    pairs = np.unique(np.stack([level, mapped]), axis=1)
    assert pairs.shape == (2, 8)
    np.testing.assert_allclose(np.sort(pairs[1]), np.arange(8) / 7)


# Arguments.


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: misalign.draw_shifts(3, rank=4, max_shift=2), ValueError, r"`rank` must be one of .*rank=4"),
        (lambda: misalign.draw_shifts(-1, rank=2, max_shift=2), ValueError, r"`count` must be >= 0.*count=-1"),
        (lambda: misalign.draw_shifts(3, rank=2, max_shift=2.5), TypeError, r"`max_shift` .*max_shift=2.5"),
        (
            lambda: misalign.draw_shifts(3, rank=2, max_shift=2, mean=0.5),
            TypeError,
            r"`mean` must be a whole.*mean=0.5",
        ),
        (lambda: misalign.draw_gaussian_shifts(3, rank=2, sigma=-1.0), ValueError, r"`sigma` must be >= 0.*sigma=-1.0"),
        (
            lambda: misalign.draw_gaussian_shifts(3, rank=2, sigma=(1, 2, 3)),
            ValueError,
            r"`sigma` .*2 axes.*\(1, 2, 3\)",
        ),
        (lambda: misalign.draw_rotations(3, rank=1, max_rotation=5), ValueError, r"`rank` must be 2 or 3.*rank=1"),
        (lambda: misalign.draw_affine(3, rank=2, max_scale=-0.1), ValueError, r"`max_scale` must be >= 0.*=-0.1"),
        (lambda: misalign.draw_affine(3, rank=2, max_shear=90), ValueError, r"`max_shear` must be .*<= 80.*=90"),
        (lambda: misalign.draw_elastic(1, shape=(1, 9), rms=1, correlation_length=9), ValueError, r"`shape` .*=1"),
        (
            lambda: misalign.draw_elastic(1, shape=(9, 9), rms=1, correlation_length=0),
            ValueError,
            r"`correlation_l.*=0",
        ),
        (lambda: misalign.region_ids((9, 9), size=0), ValueError, r"`size` must be >= 1.*size=0"),
        (lambda: misalign.add_noise(np.ones((1, 4, 1), int), snr_db=0), TypeError, r"`labels` must be floating.*int64"),
        (lambda: misalign.swap_scenes(np.ones(9), share=1.5), ValueError, r"`share` must be >= 0.*share=1.5"),
        (lambda: misalign.swap_scenes(np.ones(9), share=0.1), ValueError, r"`share` must not be one.*share=0.1"),
        (lambda: misalign.remap_intensity(np.ones(3), kind="log"), ValueError, r"`kind` must be one of.*kind='log'"),
        (lambda: misalign.remap_intensity(2 * np.ones(3), kind="invert"), ValueError, r"\[0, 1\].*max=2.0"),
        (lambda: misalign.remap_intensity(np.ones(3), kind="random", levels=1), ValueError, r"`levels` .*levels=1"),
        (lambda: misalign.cut(np.ones((9, 9, 1)), shape=(4, 4), center=(1, 4)), ValueError, r"center=\(1, 4\)"),
        (lambda: misalign.cut(np.ones((9, 9, 1)), shape=(4, 4), center=(4,)), ValueError, r"`center` .*2 axes.*\(4,\)"),
        (lambda: misalign.cut(np.ones((9, 9, 1)), shape=(4, 0), center=(4, 4)), ValueError, r"`shape` must be >= 1"),
        (
            lambda: misalign.misaligned(np.ones((9, 9, 1)), np.eye(4), shape=(4, 4), center=(4, 4)),
            ValueError,
            r"`transform_or_displacement` must be one \(3, 3\) or \(\*shape, 2\). Received: its shape=\(4, 4\)",
        ),
    ],
)
def test_bad_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_zero_draws():
    assert misalign.draw_shifts(0, rank=2, max_shift=2).shape == (0, 3, 3)
    assert misalign.draw_affine(0, rank=3, max_rotation=2, paired=True).shape == (0, 4, 4)
    assert misalign.draw_elastic(0, shape=(4, 5), rms=1, correlation_length=9, paired=True).shape == (0, 4, 5, 2)
