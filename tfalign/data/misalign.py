"""Misaligned labels with their truth, for controlled studies: draw a move, move the label at full size, corrupt it.

NumPy and SciPy; 1-D, 2-D and 3-D. An image is `(*spatial, channels)`, labels are `(count, *spatial, channels)`.
Transforms are `(count, d+1, d+1)` float64, homogeneous, fixed -> moving, in pixels (plane, row, col) from the centre of
each grid, which is index `size // 2`. The aligned crop is fixed and the misaligned label moving, so the content of a
label with translation +t lies t pixels further down/right, and `tfalign.register(crop, label)` should find the draw.

    transforms = draw_shifts(count, rank=2, max_shift=8, paired=True)
    room = reach(transforms, shape=(84, 84))  # how far from the border a centre must lie
    crop = cut(image, shape=(64, 64), center=center)
    label, truth = misaligned(image, transforms[0], shape=(84, 84), center=center)

Draws compose as matrices: `bias @ draws` adds a bias of any kind. Every `seed` is an int or a `numpy.random.Generator`.
"""

import numpy as np
from scipy import ndimage, special

from tfalign import _checks
from tfalign.ops import geometry

SPLINE_MARGIN = 12  # pixels after which the filter of an order-5 spline has forgotten where its window ends (4e-5)


def make_transforms(translation, *, rotation=None, shear=None, scale=None):
    """Transforms `(count, d+1, d+1)` from their parameters, see `tfalign.ops.geometry`, in float64."""
    return geometry.make(np.asarray(translation, np.float64), rotation=rotation, shear=shear, scale=scale).numpy()


def draw_shifts(count, *, rank, max_shift, mean=0, paired=False, seed=0):
    """Whole-pixel shifts, uniform on -max_shift .. max_shift in each axis.

    Args:
        count, rank: number of draws, and of spatial axes, 1 to 3.
        max_shift: whole pixels, one number or one per axis.
        mean: whole pixels added to every draw, one number or one per axis.
        paired: draws come as t, -t next to each other (an odd last one is 0), so that their mean is exactly `mean`.
    """
    rng = _generator(count, rank, seed)
    bound = np.array(_checks.pixels_per_axis("max_shift", max_shift, rank))
    mean = _per_axis("mean", mean, rank, whole=True)
    return make_transforms(mean + _in_pairs(lambda n: rng.integers(-bound, bound + 1, (n, rank)), count, paired))


def draw_gaussian_shifts(count, *, rank, sigma, cut_at=3.0, mean=0.0, paired=False, seed=0):
    """Sub-pixel shifts, Gaussian in each axis and cut (not clipped) at `cut_at` standard deviations.

    Args:
        count, rank, paired: as in `draw_shifts`.
        sigma: standard deviation before the cut, pixels, one number or one per axis.
        cut_at: no axis of a shift exceeds `cut_at * sigma`.
        mean: pixels added to every draw, one number or one per axis.
    """
    rng = _generator(count, rank, seed)
    sigma = _per_axis("sigma", sigma, rank, at_least=0.0)
    tail = special.ndtr(-_checks.number("cut_at", cut_at, at_least=0.0))
    drawn = _in_pairs(lambda n: special.ndtri(rng.uniform(tail, 1.0 - tail, (n, rank))), count, paired)
    return make_transforms(_per_axis("mean", mean, rank) + sigma * drawn)


def draw_rotations(count, *, rank, max_rotation, paired=False, seed=0):
    """Rotations about the centre, uniform on +-max_rotation degrees, in 3-D about each axis; else as `draw_affine`."""
    return draw_affine(count, rank=rank, max_rotation=max_rotation, paired=paired, seed=seed)


def draw_affine(
    count, *, rank, max_shift=0.0, max_rotation=0.0, max_scale=0.0, max_shear=0.0, isotropic=False, paired=False, seed=0
):
    """Affine moves; every parameter is uniform, the scales in their logarithm.

    Args:
        count, rank, paired: as in `draw_shifts`; the partner in a pair has minus every shift, angle, shear and
            logarithm of a scale.
        max_shift: pixels, sub-pixel draws, one number or one per axis.
        max_rotation, max_shear: degrees; a 1-D grid has neither.
        max_scale: f draws factors from 1 / (1 + f) .. 1 + f, for each axis.
        isotropic: one factor for all axes.
    """
    rng = _generator(count, rank, seed)
    max_shift = _per_axis("max_shift", max_shift, rank, at_least=0.0)
    max_rotation = _checks.number("max_rotation", max_rotation, at_least=0.0, at_most=180.0)
    max_shear = _checks.number("max_shear", max_shear, at_least=0.0, at_most=80.0)
    max_scale = _checks.number("max_scale", max_scale, at_least=0.0)
    if rank == 1 and (max_rotation or max_shear):
        raise ValueError(_checks.message("`rank` must be 2 or 3 to rotate or shear.", {"rank": rank}))
    planes = len(geometry.PLANES[rank])
    unit = _in_pairs(lambda n: rng.uniform(-1.0, 1.0, (n, 2 * rank + 2 * planes)), count, paired)
    shift, log_scale, angle, shear = np.split(unit, [rank, 2 * rank, 2 * rank + planes], axis=1)
    log_scale = np.repeat(log_scale[:, :1], rank, axis=1) if isotropic else log_scale
    scale = np.exp(np.log1p(max_scale) * log_scale)
    return make_transforms(max_shift * shift, rotation=max_rotation * angle, shear=max_shear * shear, scale=scale)


def per_group(draws, groups):
    """Gives all samples of a group (an image, a region, an object) one draw: `(*groups.shape, ...)`.

    Args:
        draws: `(groups, ...)`, transforms or displacements. Paired draws average to 0 over the groups.
        groups: ints of any shape, 0 .. len(draws) - 1. Of names, take `np.unique(names, return_inverse=True)[1]`.
    """
    draws, groups = np.asarray(draws), np.asarray(groups)
    if groups.dtype.kind not in "iu":
        raise TypeError(_checks.message("`groups` must be whole numbers.", {"groups.dtype": groups.dtype.name}))
    if groups.size and not 0 <= groups.min() <= groups.max() < len(draws):
        received = {"groups.min()": int(groups.min()), "groups.max()": int(groups.max()), "len(draws)": len(draws)}
        raise ValueError(_checks.message("`groups` must lie in 0 .. len(draws) - 1.", received, "Draw one per group."))
    return draws[groups]


def region_ids(shape, *, size):
    """Numbers from 0 the blocks of `size` pixels (one number or one per axis) that tile a grid: int `shape`.

    `-per_group(transforms[:, :-1, -1], ids)` is the displacement `(*shape, d)` that shifts each region by its own
    transform: `cut` it where a label is cut. Beside the seams, content is doubled or missing.
    """
    sizes = _per_axis("size", size, len(shape), at_least=1, whole=True)
    return np.ravel_multi_index(tuple(np.indices(shape) // _column(sizes)), -(-np.array(shape) // sizes))


def draw_elastic(count, *, shape, rms, correlation_length, paired=False, seed=0, max_tries=1000):
    """Smooth random displacements of the grid of a label that do not fold.

    Each axis is a stationary Gaussian random field with the correlation `exp(-r^2 / (2 correlation_length^2))`, so its
    slope has the RMS `rms / correlation_length`. A field is drawn again, up to `max_tries` times, where the Jacobian
    determinant of the moved grid is <= 0 at any pixel; where many are, the RMS of those kept is a little lower.

    Args:
        shape: sizes of the label.
        rms: RMS of each axis over all draws, pixels, the common shift of a draw included.
        correlation_length: pixels.
        paired: draws come as u, -u next to each other (an odd last one is 0), and neither folds. The mean of these
            fields is exactly 0; that of their inverses only to first order.

    Returns:
        `(count, *shape, d)` float64, pixels: label(v) = truth(v + displacement(v)).
    """
    shape = _per_axis("shape", shape, np.size(shape), at_least=2, whole=True)
    rng = _generator(count, len(shape), seed)
    rms = _checks.number("rms", rms, at_least=0.0)
    length = _checks.number("correlation_length", correlation_length, at_least=1e-3)
    roots = [_correlation_root(size, length) for size in shape]

    def draw():
        for _ in range(max_tries):
            field = rms * rng.standard_normal((*shape, len(shape)))
            for axis, root in enumerate(roots):
                field = np.moveaxis(np.tensordot(root, field, axes=(1, axis)), 0, axis)
            if all((jacobian_determinant(sign * field) > 0).all() for sign in ((1, -1) if paired else (1,))):
                return field
        received = {"rms": rms, "correlation_length": length}
        raise ValueError(_checks.message(f"`rms` must be smaller: {max_tries} draws folded.", received))

    return _in_pairs(lambda n: np.reshape([draw() for _ in range(n)], (n, *shape, len(shape))), count, paired)


def jacobian_determinant(displacement):
    """Determinant `(*shape,)` of the Jacobian of u + displacement(u), `(*shape, d)`: 1 keeps the volume, <= 0 folds."""
    rank = displacement.shape[-1]
    slopes = [np.gradient(displacement, axis=axis) for axis in range(rank)]
    return np.linalg.det(np.stack(slopes, axis=-1) + np.eye(rank))


def inverse_displacement(displacement):
    """The pull on the fixed grid that undoes a displacement of the label's grid: g(u) = -displacement(u + g(u)).

    Both `(*shape, d)`, pixels. By fixed-point iteration, each step three quarters of the way, to 1e-6 px, on a cubic
    spline of the displacement. NaN where the label's grid holds no counterpart: the content has left the grid, or no
    point was found to 1e-3 px (tears and folds; where content is doubled, one of its places is given).
    """
    field = np.moveaxis(np.asarray(displacement, dtype=np.float64), -1, 0)
    # Continued past its border with the slope it has there: a spline of the bare field would flatten it.
    wide = np.pad(field, [(0, 0)] + [(SPLINE_MARGIN,) * 2] * len(field), mode="reflect", reflect_type="odd")
    splines = [ndimage.spline_filter(axis, order=3, mode="mirror") for axis in wide]
    grid = np.indices(field.shape[1:], dtype=np.float64)
    last = _column(field.shape[1:]) - 1
    pull = -field
    for _ in range(100):
        at = np.clip(grid + pull, -SPLINE_MARGIN, last + SPLINE_MARGIN) + SPLINE_MARGIN
        read = [ndimage.map_coordinates(axis, at, order=3, mode="mirror", prefilter=False) for axis in splines]
        step = -np.stack(read) - pull
        error = np.abs(step).max(axis=0)
        if error.max() <= 1e-6:
            break
        pull += 0.75 * step
    at = grid + pull
    known = (error <= 1e-3) & ((at >= 0) & (at <= last)).all(axis=0)
    return np.moveaxis(np.where(known, pull, np.nan), 0, -1)


def cut(image, *, shape, center):
    """The crop `(*shape, channels)` of an image `(*spatial, channels)` with its centre at the pixel `center`."""
    shape = _per_axis("shape", shape, image.ndim - 1, at_least=1, whole=True)
    first = _per_axis("center", center, image.ndim - 1, whole=True) - shape // 2
    _check_inside(image, first, first + shape - 1, center)
    return image[tuple(slice(start, start + size) for start, size in zip(first, shape))]


def reach(transforms_or_displacements, *, shape):
    """Pixels `(d,)` around a centre that suffice to `cut` and to misalign labels of `shape`, for all given draws.

    Every centre with `reach <= center <= size - 1 - reach` on each axis is then far enough inside an image.
    """
    farthest = np.array(shape) // 2
    for move in transforms_or_displacements:
        points = _truth_coordinates(move, shape).reshape(len(shape), -1)
        margin = 0 if (points == np.rint(points)).all() else SPLINE_MARGIN
        farthest = np.maximum(farthest, np.ceil(np.abs(points).max(axis=1)).astype(int) + margin)
    return farthest


def misaligned(image, transform_or_displacement, *, shape, center):
    """Cuts a label out of a full-size image, its content moved away from where it belongs.

    All pixels come from the real surroundings, so nothing in a label tells its move. Whole-pixel moves copy; otherwise
    integers and booleans (class maps) take the nearest pixel, ties going up, and floating images an order-5 spline of
    a window with 12 px more on each side. Give intensities as floats and binary masks as booleans: splines overshoot.

    Args:
        image: `(*spatial, channels)` with 1, 2 or 3 spatial axes, any range.
        transform_or_displacement: `(d+1, d+1)`, fixed -> moving, about the label's centre: label(v) = image(T^-1 v); or
            `(*shape, d)` pixels on the label's grid: label(v) = image(v + displacement(v)).
        shape: sizes of the label; larger than those of the aligned crop gives it a margin.
        center: pixel of the image where the label's centre, index `size // 2`, belongs.

    Returns:
        `(label, truth)`: the label `(*shape, channels)` in the type of the image, and what lays it back, for
        `tfalign.warp(label[None], truth[None])`: the transform, or the `inverse_displacement` on the fixed grid.

    Raises:
        ValueError: ranks do not fit, the label reaches out of the image, or a spline would meet non-finite values.
    """
    image, move = np.asarray(image), np.asarray(transform_or_displacement, dtype=np.float64)
    rank = image.ndim - 1
    shape = _per_axis("shape", shape, rank, at_least=1, whole=True)
    at = _truth_coordinates(move, shape) + _column(_per_axis("center", center, rank, whole=True))
    truth = inverse_displacement(move) if move.ndim == rank + 1 and move.shape[-1] == rank else move
    nearest = np.floor(at + 0.5).astype(int)
    interpolates = image.dtype.kind not in "iub" and (at != nearest).any()
    first, last = (np.floor(at) - SPLINE_MARGIN, np.ceil(at) + SPLINE_MARGIN) if interpolates else (nearest, nearest)
    first = first.reshape(rank, -1).min(axis=1).astype(int)
    last = last.reshape(rank, -1).max(axis=1).astype(int)
    _check_inside(image, first, last, center)
    if not interpolates:
        return image[tuple(nearest)], truth
    window = image[tuple(slice(low, high + 1) for low, high in zip(first, last))].astype(np.float64)
    if not np.isfinite(window).all():
        remedy = "Fill it, and move a mask of the rest as a label of its own."
        raise ValueError(_checks.message("`image` must be finite where interpolated.", {"center": center}, remedy))
    at -= _column(first)
    read = [ndimage.map_coordinates(one, at, order=5, mode="mirror") for one in np.moveaxis(window, -1, 0)]
    return np.stack(read, axis=-1).astype(image.dtype), truth


def add_noise(labels, *, snr_db, seed=0):
    """Adds white Gaussian noise to each label.

    Args:
        labels: `(count, *spatial, channels)`, floating.
        snr_db: 10 log10(signal variance / noise variance); the signal variance is that of each label about the mean of
            its channels, averaged over the channels. A flat label has none and gets no noise.
    """
    labels = _floating(labels)
    snr = 10.0 ** (_checks.number("snr_db", snr_db) / 10.0)
    variance = labels.var(axis=tuple(range(1, labels.ndim - 1)), keepdims=True, dtype=np.float64)
    sigma = np.sqrt(variance.mean(axis=-1, keepdims=True) / snr)
    return (labels + sigma * np.random.default_rng(seed).standard_normal(labels.shape)).astype(labels.dtype)


def swap_scenes(labels, *, share, seed=0):
    """Gives a share of the samples, chosen at random, the labels of one another, none its own.

    Args:
        labels: `(count, ...)`.
        share: in [0, 1], rounded to a whole number of samples, which must not be 1.

    Returns:
        `(labels, is_wrong, source)`: `(count,)` bool, the label is another sample's; `(count,)` int, whose it is.
    """
    labels = np.asarray(labels)
    wrong = round(_checks.number("share", share, at_least=0.0, at_most=1.0) * len(labels))
    if wrong == 1:
        raise ValueError(_checks.message("`share` must not be one sample.", {"share": share, "samples": len(labels)}))
    source = np.arange(len(labels))
    chosen = np.random.default_rng(seed).permutation(source)[:wrong]
    source[chosen] = np.roll(chosen, 1)  # one random cycle, so no label stays
    return labels[source], source != np.arange(len(labels)), source


def remap_intensity(labels, *, kind, levels=32, seed=0):
    """Replaces intensities in [0, 1] as another kind of picture would show them.

    Args:
        labels: floating, in [0, 1], any shape.
        kind: "invert": 1 - x. "nonmonotone": (1 - cos(4 pi x)) / 2, smooth, with two crests, so that it keeps hardly
            any correlation. "random": `levels` equal steps of intensity, each given the place of another at random, by
            one table for all labels.
        levels, seed: for "random".
    """
    labels = _floating(labels)
    _checks.choice("kind", kind, ("invert", "nonmonotone", "random"))
    if not ((labels >= 0) & (labels <= 1)).all():
        received = {"min": float(labels.min()), "max": float(labels.max())}
        raise ValueError(_checks.message("`labels` must lie in [0, 1].", received, "Rescale them first."))
    if kind != "random":
        return 1 - labels if kind == "invert" else (1 - np.cos(4 * np.pi * labels)) / 2
    levels = _checks.whole_number("levels", levels, at_least=2)
    table = np.random.default_rng(seed).permutation(levels) / (levels - 1)
    return table[np.minimum((labels * levels).astype(int), levels - 1)].astype(labels.dtype)


def _generator(count, rank, seed):
    """The generator of `seed`, once the number of draws and of axes are checked."""
    _checks.whole_number("count", count, at_least=0)
    _checks.choice("rank", rank, tuple(geometry.PLANES))
    return np.random.default_rng(seed)


def _in_pairs(draw, count, paired):
    """`draw(count)`, or `draw(count // 2)` with each draw followed by its negative and an odd last one of 0."""
    if not paired:
        return draw(count)
    half = draw(count // 2)
    both = np.stack([half, -half], axis=1).reshape(2 * len(half), *half.shape[1:])
    return np.concatenate([both, np.zeros((count % 2, *half.shape[1:]), half.dtype)])


def _correlation_root(size, length):
    """The symmetric square root `(size, size)` of a Gaussian correlation; unlike other roots it is unique."""
    at = np.arange(size)
    values, vectors = np.linalg.eigh(np.exp(-0.5 * ((at[:, np.newaxis] - at) / length) ** 2))
    return vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T


def _truth_coordinates(move, shape):
    """Where in the truth each pixel of a label reads, `(d, *shape)`, pixels from the label's centre."""
    rank = len(shape)
    grid = np.indices(shape, dtype=np.float64) - _column(np.array(shape) // 2)
    if move.shape == (*shape, rank):
        return grid + np.moveaxis(move, -1, 0)
    if move.shape != (rank + 1, rank + 1):
        requirement = f"`transform_or_displacement` must be one ({rank + 1}, {rank + 1}) or (*shape, {rank})."
        raise ValueError(_checks.message(requirement, {"its shape": move.shape, "shape": tuple(shape)}))
    linear, shift = move[:rank, :rank], move[:rank, rank:]
    return (np.linalg.inv(linear) @ (grid.reshape(rank, -1) - shift)).reshape(grid.shape)


def _column(values):
    """`(d,)` values as `(d, 1, ...)`, against coordinates `(d, *shape)`."""
    return np.reshape(values, [-1] + [1] * len(values))


def _check_inside(image, first, last, center):
    """Refuses pixels `first` .. `last` `(d,)` that leave the image."""
    if (first < 0).any() or (last >= image.shape[: len(first)]).any():
        received = {"center": center, "image.shape": image.shape, "first": first.tolist(), "last": last.tolist()}
        raise ValueError(_checks.message("The pixels read must lie inside the image.", received, "See `reach`."))


def _floating(labels):
    """`labels` as an array, which must hold floats."""
    if np.asarray(labels).dtype.kind != "f":
        raise TypeError(_checks.message("`labels` must be floating.", {"labels.dtype": np.asarray(labels).dtype.name}))
    return np.asarray(labels)


def _per_axis(name, value, rank, *, at_least=-np.inf, whole=False):
    """A number, or one per axis, as `(rank,)` floats or ints."""
    values = tuple(value) if isinstance(value, (list, tuple, np.ndarray)) else (value,) * rank
    if len(values) != rank:
        raise ValueError(_checks.message(f"`{name}` must be one number or one for each of {rank} axes.", {name: value}))
    check = _checks.whole_number if whole else _checks.number
    return np.array([check(name, item, at_least=at_least) for item in values])
