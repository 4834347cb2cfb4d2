"""Finds the transform that lays `moving` on `fixed`: every shift is scored, the best one is chosen.

With rotation, scale or shear a grid of candidates starts where ranges are large, and Gauss-Newton steps refine.
"""

import math

import numpy as np
import tensorflow as tf

from tfalign import _checks
from tfalign.ops import evidence, geometry, refine, replicas, resample, shifts, spline, start
from tfalign.ops.shifts import Registration
from tfalign.ops.similarity.measures import MEASURES

SIMILARITIES = tuple(MEASURES)
LARGEST_SCALE = 9.0  # f: of tenfold stretches a grid shows too little of the picture


@tf.autograph.experimental.do_not_convert
def register(
    fixed,
    moving,
    *,
    max_shift,
    max_rotation=0.0,
    max_scale=0.0,
    max_shear=0.0,
    similarity="ncc",
    subpixel=True,
    fixed_mask=None,
    moving_mask=None,
    groups=None,
    pool=None,
    min_overlap=0.5,
    return_map=False,
):
    """Registers each `moving` grid to its `fixed` one: exhaustive search over shifts, then what else is searched.

    Every whole-pixel shift of the window is scored over the overlap of the two grids. Of equally good shifts the
    smallest is taken, so where nothing can be told (flat, empty or fully masked data) the result is the identity with
    confidence 0.

    Where rotation, scale or shear are searched, the best shift is refined by Gauss-Newton steps to the transform that
    fits best, first on blurred grids. Ranges that move the border by more than 3 px (of a picture shrunk to 64 px, or a
    signal to 4096) are started from the best of a grid of rotations and scales, each with all its shifts; the time
    grows with their number (some 70 for +-180 degrees, 225 for a scale of 1, 1000 for both). The transform is kept only
    where it gains more than its parameters would on noise (Akaike's information criterion, and the logarithm of the
    number of starts, of which one is best by chance); elsewhere the result is the shift alone.

    Args:
        fixed: `(batch, *spatial, channels)` with 1, 2 or 3 spatial axes, any range.
        moving: as many samples, the same rank and channels; may be larger or smaller; both grids share one centre. A
            map of class numbers or flags (integers or booleans, one channel or none) is taken as one channel for each
            channel of `fixed`, where it has several; other numbers do not count.
        max_shift: int >= 0, or one per spatial axis, pixels.
        max_rotation: degrees, up to 180: of the picture, or about each axis of a volume. Where a grid would hold more
            than 2000 candidates it turns volumes about one axis at a time, and the refinement does the rest.
        max_scale: f, up to 9, of factors `1 / (1 + f) .. 1 + f` for each axis; in such large grids all axes are scaled
            alike.
        max_shear: degrees, up to 45, by refinement alone. Signals have no rotation and no shear.
        similarity: each over the overlap, higher is better. "ncc" (normalised cross-correlation; ignores gain and
            offset), "cc" (covariance), "mse", "mae" (minus the mean squared or absolute difference), "cross_entropy"
            (minus that of the label `moving` under the probabilities `fixed`; one channel: binary), "overlap" (soft
            Dice of values in [0, 1]), "mi", "nmi", "joint_entropy" (mutual information, its normalised form, minus the
            joint entropy, of levels of intensity: for pictures of another kind), "phase" (whitened correlation: sharp
            on textures, less sure on smooth pictures, and not normalised by the overlap).
        subpixel: refine the best shift by a parabola through its neighbours, at most half a pixel per axis. A transform
            that is more than a shift is always refined within pixels.
        fixed_mask, moving_mask: `(batch, *spatial)`, with or without a last axis of 1; weights in [0, 1] (larger ones
            count as 1), 0 = the pixel does not count. Non-finite pixels never count.
        groups: lists of channels, as in `[(0,), (1, 2)]`: each is registered by itself, and all results but
            `fixed_shape` gain an axis of groups after the batch.
        pool: "batch" finds one shift for all samples, from the mean of their score maps; a transform from the sum of
            their equations. Inside the `run` of a `tf.distribute` strategy: for the samples of all replicas.
        min_overlap: a shift counts when its overlap is at least this share of the largest overlap of any shift.
        return_map: also return `score_map` and `posterior_map`.

    Returns:
        A `Registration`.

    Raises:
        TypeError, ValueError: ranks, channels, masks or options do not fit.

    Gradient: none through the choice; through the score exact, but none of "mi", "nmi" and "joint_entropy", which count
        pixels in levels (`similarity.parzen` has a smooth form).
    Source: Padfield (2012), doi:10.1109/TIP.2011.2181402, for masked sums by FFT; the window is computed alone, and
        channels share one gain. Öfverstedt et al. (2022), doi:10.1016/j.patrec.2022.05.022, for joint histograms.
        Akaike (1974), doi:10.1109/TAC.1974.1100705, for what a gain must exceed.

    Example:
        >>> picture = np.random.default_rng(0).random((1, 64, 64, 1), np.float32)
        >>> label = np.roll(picture, (3, -2), axis=(1, 2))  # 3 px down, 2 px left
        >>> found = tfalign.register(picture, label, max_shift=8, subpixel=False)
        >>> found.translation.numpy().tolist()
        [[3.0, -2.0]]
        >>> aligned, mask = found.warp(label)
    """
    fixed = _checks.floating(fixed, "fixed")
    rank = _checks.spatial_rank("fixed", fixed)
    moving = _checks.floating(one_hot_classes(moving, fixed), "moving")
    fixed, moving = same_kind(fixed, moving)
    fixed, fixed_mask = valid_pixels(fixed, fixed_mask, "fixed")
    moving, moving_mask = valid_pixels(moving, moving_mask, "moving")
    return register_valid(
        fixed,
        moving,
        fixed_mask,
        moving_mask,
        bounds=checked_bounds(max_shift, max_rotation, max_scale, max_shear, rank),
        similarity=similarity,
        subpixel=subpixel,
        groups=groups,
        pool=pool,
        min_overlap=min_overlap,
        return_map=return_map,
    )


def register_valid(
    fixed, moving, fixed_mask, moving_mask, *, bounds, similarity, subpixel, pool, min_overlap, return_map, groups=None
):
    """`register` of grids and masks as `valid_pixels` gives them, of one type, and of checked `Bounds`."""
    _checks.choice("similarity", similarity, SIMILARITIES)
    _checks.choice("pool", pool, (None, "batch"))
    min_overlap = _checks.number("min_overlap", min_overlap, at_least=0.0, at_most=1.0)
    _check_overlap(fixed, moving, bounds.max_shift, min_overlap)
    options = {
        "bounds": bounds,
        "similarity": similarity,
        "subpixel": subpixel,
        "pool": pool,
        "min_overlap": min_overlap,
        "return_map": return_map,
    }
    registered = _registered
    if pool == "batch" and replicas.count() > 1:
        registered = _registered_of_all_replicas
    if groups is None:
        return registered(fixed, moving, fixed_mask, moving_mask, **options)
    found, lists = [], checked_groups(groups, fixed.shape[-1])
    for group in lists:
        left, right = (tf.gather(side, group, axis=-1) for side in (fixed, moving))
        found.append(registered(left, right, fixed_mask, moving_mask, **options))
    stacked = [None if parts[0] is None else tf.stack(parts, axis=1) for parts in zip(*found)]
    of_channel = {channel: number for number, group in enumerate(lists) for channel in group}
    return Registration(*stacked)._replace(
        fixed_shape=found[0].fixed_shape,
        channel_groups=tf.constant([of_channel[channel] for channel in sorted(of_channel)], tf.int32),
    )


def checked_bounds(max_shift, max_rotation, max_scale, max_shear, rank):
    """The bounds, of which signals have no angles."""
    angles = {
        "max_rotation": _checks.number("max_rotation", max_rotation, at_least=0.0, at_most=180.0),
        "max_shear": _checks.number("max_shear", max_shear, at_least=0.0, at_most=45.0),
    }
    if rank == 1 and any(angles.values()):
        raise ValueError(
            _checks.message(
                "`max_rotation` and `max_shear` must be 0 for signals, with one spatial axis.",
                angles,
                "Search `max_shift` and `max_scale`.",
            )
        )
    return refine.Bounds(
        max_shift=_checks.pixels_per_axis(
            "max_shift", max_shift.tolist() if isinstance(max_shift, np.ndarray) else max_shift, rank
        ),
        max_scale=_checks.number("max_scale", max_scale, at_least=0.0, at_most=LARGEST_SCALE),
        **angles,
    )


def _registered_of_all_replicas(*sides, bounds, **options):
    """`_registered` of one batch that is spread over replicas: sums of maps for a shift, all samples for a transform.

    A transform is refined in a loop, where replicas cannot meet.
    """
    if not bounds.limits():
        return _registered(*sides, bounds=bounds, sum_up=replicas.summed, **options)
    everyone, own = replicas.gathered(sides)
    found = _registered(*everyone, bounds=bounds, **options)
    mine = [None if field is None else own(field) for field in found]
    return Registration(*mine)._replace(fixed_shape=found.fixed_shape)


def _registered(fixed, moving, fixed_mask, moving_mask, *, bounds, similarity, subpixel, sum_up=list, **options):
    """One transform for all channels, of checked arguments; `sum_up` as of `shifts.best_shift`."""
    masks = fixed_mask, moving_mask
    given = {"max_shift": bounds.max_shift, "similarity": similarity, "sum_up": sum_up, **options}
    shift, least = shifts.best_shift(fixed, moving, *masks, subpixel=subpixel, **given)
    if not bounds.limits():
        return shift
    textured = shift.confidence > 0.0
    common = {"bounds": bounds, "similarity": similarity, "textured": textured, "pool": options["pool"]}
    plain = bounds.of_translation(shift.translation)
    begin, filled = plain, spline.fill_holes(moving, moving_mask)
    shape = geometry.spatial_shape(fixed)
    window = [size + 2 * bound for size, bound in zip(shape, bounds.max_shift)]  # as much as all shifts read
    tried = len(start.candidates(bounds, shape))
    if tried > 1:
        linear = start.best_linear(fixed, moving, masks, min_overlap=options["min_overlap"], **common)
        turn = bounds.transform(linear)
        turned = resample.sample_masked(filled, moving_mask, turn, window, interpolation="linear")  # only a start
        on_start, _ = shifts.best_shift(fixed, turned[0], fixed_mask, turned[1], subpixel=True, **given)
        # T u = A (u + s)
        begin = linear + bounds.of_translation(tf.linalg.matvec(turn[:, :-1, :-1], on_start.translation))
    found = refine.refined(fixed, moving, masks, begin, plain, least=least, **common)
    transform = bounds.transform(found.parameters)
    price = float(begin.shape[-1] - len(bounds.max_shift)) + math.log(tried)
    gains = textured & (found.gain > price)
    # Whether a shift of the aligned grid would be as good: what the shifts of the turned one say is of another grid.
    aligned, mask = resample.sample_masked(filled, moving_mask, transform, window)
    around, _ = shifts.best_shift(fixed, aligned, fixed_mask, mask, subpixel=False, **{**given, "return_map": True})
    size = math.prod(2 * bound + 1 for bound in bounds.max_shift)
    score, posterior = (tf.reshape(one, [-1, size]) for one in (around.score_map, around.posterior_map))
    score = score[:, size // 2]
    near = evidence.mass_within_one_pixel(posterior, tf.zeros_like(shift.translation), bounds.max_shift)
    near *= tf.where(found.settled, tf.ones_like(near), 0.5)
    met = fixed_mask * resample.crop_or_pad(mask, shape)
    refined = around._replace(
        transform=transform,
        translation=geometry.translation_of(transform),
        score=tf.where(tf.math.is_finite(score), score, 0.0),
        confidence=tf.where(around.confidence > 0.0, near, 0.0),
        overlap=tf.reduce_sum(met, axis=list(range(1, met.shape.rank))) / tf.cast(tf.reduce_prod(shape), met.dtype),
        **({} if options["return_map"] else {"score_map": None, "posterior_map": None}),
    )

    def chosen(more, less):
        return None if less is None else tf.where(tf.reshape(gains, [-1] + [1] * (less.shape.rank - 1)), more, less)

    fields = [chosen(*both) for both in zip(refined, shift._replace(fixed_shape=None))]
    return Registration(*fields)._replace(fixed_shape=shift.fixed_shape)


def checked_groups(groups, channels):
    """`groups` as lists of channels, each channel in one."""
    lists = [np.ravel(group).tolist() for group in groups] if isinstance(groups, (list, tuple, np.ndarray)) else []
    named = [channel for group in lists for channel in group]
    is_known = all(isinstance(channel, int) for channel in named) and sorted(named) == list(range(channels))
    if not lists or not is_known or not all(lists):
        raise ValueError(
            _checks.message(
                "`groups` must name each channel once, as in [(0,), (1, 2)].", {"groups": groups, "channels": channels}
            )
        )
    return lists


def one_hot_classes(moving, fixed):
    """A moving map of class numbers or flags, of one channel or none, as one channel for each channel of `fixed`."""
    moving = tf.convert_to_tensor(moving)
    classes = fixed.shape[-1]
    is_map = (moving.dtype.is_integer or moving.dtype.is_bool) and classes is not None
    if is_map and moving.shape.rank == fixed.shape.rank - 1:
        moving = moving[..., tf.newaxis]
    if not is_map or classes == 1 or moving.shape.rank != fixed.shape.rank or moving.shape[-1] != 1:
        return moving
    one_hot = tf.one_hot(tf.cast(moving[..., 0], tf.int64), classes, dtype=fixed.dtype)
    return tf.where(tf.reduce_any(one_hot > 0.0, axis=-1, keepdims=True), one_hot, np.nan)


def same_kind(fixed, moving):
    """Both sides with one dtype, and `moving` with the rank and channels of `fixed`."""
    if moving.shape.rank is not None and moving.shape.rank != fixed.shape.rank:
        raise ValueError(
            _checks.message(
                "`moving` must have the rank of `fixed`.",
                {"moving.shape": _checks.shape_of(moving), "fixed.shape": _checks.shape_of(fixed)},
                "Add the missing batch or channel axis.",
            )
        )
    if None not in (fixed.shape[0], moving.shape[0]) and fixed.shape[0] != moving.shape[0]:
        raise ValueError(
            _checks.message(
                "`fixed` and `moving` must hold as many samples.",
                {"moving.shape": _checks.shape_of(moving), "fixed.shape": _checks.shape_of(fixed)},
                "Repeat the one that is the same for all, as in tf.repeat(fixed, samples, axis=0).",
            )
        )
    channels = fixed.shape[-1]
    if channels is None or (moving.shape.rank is not None and moving.shape[-1] not in (None, channels)):
        raise ValueError(
            _checks.message(
                "`fixed` and `moving` must have the same, known number of channels.",
                {"moving.shape": _checks.shape_of(moving), "fixed.shape": _checks.shape_of(fixed)},
            )
        )
    dtype = tf.float64 if tf.float64 in (fixed.dtype, moving.dtype) else tf.float32
    moving = tf.ensure_shape(moving, [None] * (fixed.shape.rank - 1) + [channels])
    return tf.cast(fixed, dtype), tf.cast(moving, dtype)


def valid_pixels(values, mask, name, *, largest=math.inf):
    """`values`, 0 where not finite or beyond `largest`, and the mask `(batch, *spatial, 1)` of pixels that count."""
    known = tf.abs(values) <= min(largest, float(values.dtype.max))  # not so of what is no number
    counts = tf.cast(tf.reduce_all(known, axis=-1, keepdims=True), values.dtype)
    if mask is not None:
        mask = _checks.floating(mask, f"{name}_mask")
        if mask.shape.rank == values.shape.rank - 1:
            mask = mask[..., tf.newaxis]
        if not mask.shape.is_compatible_with([*values.shape[:-1], 1]):
            raise ValueError(
                _checks.message(
                    f"`{name}_mask` must have the shape (batch, *spatial) of `{name}`.",
                    {f"{name}_mask.shape": _checks.shape_of(mask), f"{name}.shape": _checks.shape_of(values)},
                )
            )
        mask = tf.cast(mask, values.dtype)
        counts *= tf.clip_by_value(tf.where(tf.math.is_finite(mask), mask, 0.0), 0.0, 1.0)
    return tf.math.multiply_no_nan(values, tf.cast(known, values.dtype)), counts  # faster than `tf.where`


def _check_overlap(fixed, moving, max_shift, min_overlap):
    """Refuses bounds whose farthest shift leaves too little overlap, where the sizes are known."""
    least = overlap_at_bound(fixed.shape[1:-1], moving.shape[1:-1], max_shift)
    if least is not None and least < min_overlap:
        raise ValueError(
            _checks.message(
                "`max_shift` must leave an overlap of at least `min_overlap`.",
                {
                    "max_shift": max_shift,
                    "min_overlap": min_overlap,
                    "fixed.shape": _checks.shape_of(fixed),
                    "moving.shape": _checks.shape_of(moving),
                },
                f"The farthest shift leaves {least:.2f}: use larger patches, labels with a margin, or smaller bounds.",
            )
        )


def overlap_at_bound(fixed_sizes, moving_sizes, max_shift):
    """Overlap at the farthest shift as a share of the largest overlap, or None where sizes are unknown."""
    share = 1.0
    for size, moving_size, bound in zip(fixed_sizes, moving_sizes, max_shift):
        if size is None or moving_size is None:
            return None
        offset = geometry.center_offset(size, moving_size)
        counts = [
            max(min(size, moving_size - offset - shift) - max(0, -offset - shift), 0)
            for shift in range(-bound, bound + 1)
        ]
        share *= min(counts[0], counts[-1]) / max(max(counts), 1)
    return share
