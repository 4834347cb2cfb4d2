"""Finds the transform that lays `moving` on `fixed`: every shift is scored, the best one is chosen."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfalign import _checks
from tfalign.ops import geometry, resample
from tfalign.ops.similarity.measures import MEASURES
from tfalign.ops.similarity.sums import Grids, has_texture, overlap_sums

SIMILARITIES = tuple(MEASURES)


class Registration(NamedTuple):
    """What `register` found. All tensors; passes through `tf.function` and `tf.data`.

    Attributes:
        transform: `(batch, d+1, d+1)`, maps fixed -> moving coordinates, both counted from their grid's centre.
        translation: `(batch, d)` pixels: how far down/right of the fixed content the moving content lies.
        score: `(batch,)`, the similarity at the best whole-pixel shift; higher is better.
        confidence: `(batch,)` in [0, 1]: the posterior probability that the best shift is within 1 px of the true one.
        overlap: `(batch,)` in [0, 1], share of the fixed pixels that have a counterpart.
        fixed_shape: `(d,)` int32, sizes of the fixed grid.
        score_map: `(batch, *(2 * max_shift + 1))`, the score of every shift, index `max_shift` is no shift;
            -inf where the overlap is below `min_overlap`. None unless asked for.
        posterior_map: the same shape, sums to 1. None unless asked for.
        channel_groups: `(channels,)` int32, which of the `groups` each channel belongs to. None without groups; with
            them all the others but `fixed_shape` have an axis of groups after the batch.
    """

    transform: tf.Tensor
    translation: tf.Tensor
    score: tf.Tensor
    confidence: tf.Tensor
    overlap: tf.Tensor
    fixed_shape: tf.Tensor
    score_map: tf.Tensor | None = None
    posterior_map: tf.Tensor | None = None
    channel_groups: tf.Tensor | None = None

    def warp(self, moving, *, interpolation="linear", fill_value=0.0):
        """Lays `moving` on the fixed grid: `(aligned, mask)`, see `tfalign.warp`.

        With `groups` each channel moves with its group, and the mask is `(batch, *output_shape, channels)`.
        """
        static = tf.get_static_value(self.fixed_shape)
        shape = self.fixed_shape if static is None else [int(size) for size in static]
        options = {"output_shape": shape, "interpolation": interpolation, "fill_value": fill_value}
        if self.channel_groups is None:
            return resample.warp(moving, self.transform, **options)
        moving = tf.convert_to_tensor(moving)
        rank = moving.shape.rank - 2
        transforms = tf.gather(self.transform, self.channel_groups, axis=1)
        channels_first = tf.transpose(moving, [0, rank + 1, *range(1, rank + 1)])
        flat = tf.reshape(channels_first, tf.concat([[-1], tf.shape(moving)[1:-1], [1]], axis=0))
        values, mask = resample.warp(flat, tf.reshape(transforms, [-1, rank + 1, rank + 1]), **options)

        def channels_last(flat):
            parts = tf.reshape(flat, tf.concat([tf.shape(channels_first)[:2], tf.stack(shape)], axis=0))
            return tf.transpose(parts, [0, *range(2, rank + 2), 1])

        return channels_last(values[..., 0]), channels_last(mask)

    def inverse(self):
        """The transforms `(batch, d+1, d+1)` the other way, moving -> fixed."""
        return geometry.invert(self.transform)


def register(
    fixed,
    moving,
    *,
    max_shift,
    similarity="ncc",
    subpixel=True,
    fixed_mask=None,
    moving_mask=None,
    groups=None,
    pool=None,
    min_overlap=0.5,
    return_map=False,
):
    """Registers each `moving` grid to its `fixed` one by exhaustive search over shifts.

    Every whole-pixel shift of the window is scored over the overlap of the two grids. Of equally good shifts the
    smallest is taken, so where nothing can be told (flat, empty or fully masked data) the result is the identity with
    confidence 0.

    Args:
        fixed: `(batch, *spatial, channels)` with 1, 2 or 3 spatial axes, any range.
        moving: the same rank and channels; may be larger or smaller; both grids share one centre. A map of class
            numbers (integers, one channel or none) is taken as one channel for each channel of `fixed`; other numbers
            do not count.
        max_shift: int >= 0, or one per spatial axis, pixels.
        similarity: each over the overlap, higher is better. "ncc" (normalised cross-correlation; ignores gain and
            offset), "cc" (covariance), "mse", "mae" (minus the mean squared or absolute difference), "cross_entropy"
            (minus that of the label `moving` under the probabilities `fixed`; one channel: binary), "overlap" (soft
            Dice of values in [0, 1]), "mi", "nmi", "joint_entropy" (mutual information, its normalised form, minus the
            joint entropy, of levels of intensity: for pictures of another kind), "phase" (whitened correlation: sharp
            on textures, unreliable on smooth pictures, and not normalised by the overlap).
        subpixel: refine the best shift by a parabola through its neighbours, at most half a pixel per axis.
        fixed_mask, moving_mask: `(batch, *spatial)`, with or without a last axis of 1; weights in [0, 1] (larger ones
            count as 1), 0 = the pixel does not count. Non-finite pixels never count.
        groups: lists of channels, as in `[(0,), (1, 2)]`: each is registered by itself, and all results but
            `fixed_shape` gain an axis of groups after the batch.
        pool: "batch" finds one shift for all samples, from the mean of their score maps.
        min_overlap: a shift counts when its overlap is at least this share of the largest overlap of any shift.
        return_map: also return `score_map` and `posterior_map`.

    Returns:
        A `Registration`.

    Raises:
        TypeError, ValueError: ranks, channels, masks or options do not fit.

    Gradient: none through the choice; exact through the score.
    Source: Padfield (2012), doi:10.1109/TIP.2011.2181402, for masked sums by FFT; the window is computed alone, and
        channels share one gain. Öfverstedt et al. (2022), doi:10.1016/j.patrec.2022.05.022, for joint histograms.
    """
    fixed = _checks.floating(fixed, "fixed")
    rank = _checks.spatial_rank("fixed", fixed)
    moving = _checks.floating(one_hot_classes(moving, fixed), "moving")
    fixed, moving = _same_kind(fixed, moving)
    max_shift = _checks.pixels_per_axis("max_shift", max_shift, rank)
    _checks.choice("similarity", similarity, SIMILARITIES)
    _checks.choice("pool", pool, (None, "batch"))
    min_overlap = _checks.number("min_overlap", min_overlap, at_least=0.0, at_most=1.0)
    fixed, fixed_mask = valid_pixels(fixed, fixed_mask, "fixed")
    moving, moving_mask = valid_pixels(moving, moving_mask, "moving")
    _check_overlap(fixed, moving, max_shift, min_overlap)

    options = {
        "max_shift": max_shift,
        "similarity": similarity,
        "subpixel": subpixel,
        "pool": pool,
        "min_overlap": min_overlap,
        "return_map": return_map,
    }
    if groups is None:
        return _registered(fixed, moving, fixed_mask, moving_mask, **options)
    found, lists = [], _checked_groups(groups, fixed.shape[-1])
    for group in lists:
        left, right = (tf.gather(side, group, axis=-1) for side in (fixed, moving))
        found.append(_registered(left, right, fixed_mask, moving_mask, **options))
    stacked = [None if parts[0] is None else tf.stack(parts, axis=1) for parts in zip(*found)]
    of_channel = {channel: number for number, group in enumerate(lists) for channel in group}
    return Registration(*stacked)._replace(
        fixed_shape=found[0].fixed_shape,
        channel_groups=tf.constant([of_channel[channel] for channel in sorted(of_channel)], tf.int32),
    )


def _registered(
    fixed, moving, fixed_mask, moving_mask, *, max_shift, similarity, subpixel, pool, min_overlap, return_map
):
    """One transform for all channels, of checked arguments."""
    grids = Grids.windowed(fixed, moving, fixed_mask, moving_mask, max_shift)
    sums = overlap_sums(grids)
    count = sums.count[:, 0]
    measure = MEASURES[similarity]
    # A little less than the share: the sums of graded weights are rounded.
    enough = (count >= 0.9999 * min_overlap * _max_over_window(count)) & (count > 0.5)
    scores = measure.score_map(grids, sums)[:, 0]
    fit = scores if measure.evidence_map is measure.score_map else measure.evidence_map(grids, sums)[:, 0]

    window = scores.shape[1:].as_list()
    size = int(np.prod(window))
    scores, fit, enough, count = (tf.reshape(one, [-1, size]) for one in (scores, fit, enough, count))
    textured = has_texture(sums)
    if pool == "batch":
        # Samples without texture say nothing; a shift counts where it counts for every other sample.
        everywhere = tf.reduce_all(enough | ~textured[:, tf.newaxis], axis=0, keepdims=True)
        enough = tf.broadcast_to(everywhere, tf.shape(enough))
    flat = tf.where(textured[:, tf.newaxis], scores, 0.0)
    scores = tf.where(enough, _pooled(flat, textured) if pool == "batch" else flat, -np.inf)
    best, is_known = _best_index(scores, window)
    shift = tf.gather(_window_shifts(max_shift, fixed.dtype), best)
    score = tf.gather(scores, best, batch_dims=1)

    effective = _effective_pixels(fixed, moving, fixed_mask, moving_mask, shift)
    # Shifts that do not count take the sample's best value: whatever stands there must not set the scale.
    top = tf.reduce_max(tf.where(enough, fit, fit.dtype.min), axis=-1, keepdims=True)
    evidence = effective[:, tf.newaxis] * measure.log_likelihood(
        tf.where(enough, fit, tf.where(top > fit.dtype.min, top, 0.0))
    )
    if pool == "batch":
        evidence = tf.reduce_sum(tf.where(textured[:, tf.newaxis], evidence, 0.0), axis=0) + tf.zeros_like(evidence)
    posterior = tf.stop_gradient(tf.nn.softmax(tf.where(enough, evidence, evidence.dtype.min), axis=-1))
    confidence = tf.where(is_known, _mass_within_one_pixel(posterior, shift, max_shift), 0.0)
    translation = tf.stop_gradient(shift + _parabola_offset(scores, best, window) if subpixel else shift)
    return Registration(
        transform=geometry.from_translation(translation),
        translation=translation,
        score=tf.where(tf.math.is_finite(score), score, 0.0),
        confidence=tf.stop_gradient(confidence),
        overlap=tf.gather(count, best, batch_dims=1)
        / tf.cast(tf.reduce_prod(geometry.spatial_shape(fixed)), fixed.dtype),
        fixed_shape=tf.stack(geometry.spatial_shape(fixed)),
        score_map=tf.reshape(scores, [-1, *window]) if return_map else None,
        posterior_map=tf.reshape(posterior, [-1, *window]) if return_map else None,
    )


def _pooled(scores, textured):
    """The mean over the samples that have texture, for every sample."""
    weight = tf.cast(textured, scores.dtype)[:, tf.newaxis]
    mean = tf.math.divide_no_nan(tf.reduce_sum(scores * weight, axis=0), tf.reduce_sum(weight, axis=0))
    return mean + tf.zeros_like(scores)


def _checked_groups(groups, channels):
    """`groups` as lists of channels, each channel in one."""
    lists = [[group] if isinstance(group, int) else list(group) for group in groups]
    if not lists or sorted(channel for group in lists for channel in group) != list(range(channels)) or not all(lists):
        raise ValueError(
            _checks.message(
                "`groups` must name each channel once, as in [(0,), (1, 2)].", {"groups": groups, "channels": channels}
            )
        )
    return lists


def one_hot_classes(moving, fixed):
    """A moving map of class numbers, integers in one channel, as one channel for each channel of `fixed`."""
    moving = tf.convert_to_tensor(moving)
    classes = fixed.shape[-1]
    is_map = moving.dtype.is_integer and classes is not None and classes > 1
    if is_map and moving.shape.rank == fixed.shape.rank and moving.shape[-1] == 1:
        moving = moving[..., 0]
    if not is_map or moving.shape.rank != fixed.shape.rank - 1:
        return moving
    one_hot = tf.one_hot(moving, classes, dtype=fixed.dtype)
    return tf.where(tf.reduce_any(one_hot > 0.0, axis=-1, keepdims=True), one_hot, np.nan)


def _same_kind(fixed, moving):
    """Both sides with one dtype, and `moving` with the rank and channels of `fixed`."""
    if moving.shape.rank is not None and moving.shape.rank != fixed.shape.rank:
        raise ValueError(
            _checks.message(
                "`moving` must have the rank of `fixed`.",
                {"moving.shape": _checks.shape_of(moving), "fixed.shape": _checks.shape_of(fixed)},
                "Add the missing batch or channel axis.",
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


def valid_pixels(values, mask, name):
    """`values` with non-finite pixels set to 0, and the mask `(batch, *spatial, 1)` of those that count."""
    finite = tf.reduce_all(tf.math.is_finite(values), axis=-1, keepdims=True)
    counts = tf.cast(finite, values.dtype)
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
    return tf.where(finite, values, 0.0), counts


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


def _max_over_window(values):
    return tf.reduce_max(values, axis=list(range(1, values.shape.rank)), keepdims=True)


def _window_shifts(max_shift, dtype):
    """`(shifts, d)`: the shift of every entry of a flattened window."""
    axes = [np.arange(-bound, bound + 1) for bound in max_shift]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    return tf.constant(grid.reshape(-1, len(max_shift)), dtype=dtype)


def _best_index(scores, window):
    """Index of the best shift, of ties the smallest; and whether the map tells anything at all."""
    finite = tf.math.is_finite(scores)
    top = tf.reduce_max(tf.where(finite, scores, scores.dtype.min), axis=-1, keepdims=True)
    lowest = tf.reduce_min(tf.where(finite, scores, scores.dtype.max), axis=-1, keepdims=True)
    rounding = 2e-6 * tf.reduce_max(tf.where(finite, tf.abs(scores), 0.0), axis=-1, keepdims=True)
    ties = finite & (scores >= top - rounding)
    distance = sum(np.square(axis) for axis in np.meshgrid(*(np.arange(n) - n // 2 for n in window), indexing="ij"))
    outward = np.argsort(distance.ravel(), kind="stable")
    first = tf.argmax(tf.cast(tf.gather(ties, outward, axis=1), tf.int32), axis=-1, output_type=tf.int32)
    return tf.gather(tf.constant(outward, tf.int32), first), (top - lowest > rounding)[:, 0]


def _effective_pixels(fixed, moving, fixed_mask, moving_mask, shift):
    """Number of independent pixels behind a score, `(batch,)`.

    The variance of a correlation of two stationary fields grows by `sum_k r_residual(k) r_moving(k)`; with a
    first-order autoregressive field along each axis that is (1 + p) / (1 - p), p the product of the two lag-1
    autocorrelations.
    Source: Bartlett (1946), doi:10.2307/2983611, applied per axis.
    """
    shape = geometry.spatial_shape(fixed)
    aligned, inside = resample.shift_by_pixels(moving, shift, shape)
    aligned_mask, _ = resample.shift_by_pixels(moving_mask, shift, shape)
    weight = fixed_mask * aligned_mask * inside[..., tf.newaxis]
    axes = list(range(1, fixed.shape.rank - 1))
    count = tf.reduce_sum(weight, axis=axes, keepdims=True)
    safe = tf.maximum(count, 1.0)
    fixed = (fixed - tf.reduce_sum(fixed * weight, axis=axes, keepdims=True) / safe) * weight
    aligned = (aligned - tf.reduce_sum(aligned * weight, axis=axes, keepdims=True) / safe) * weight
    energy = tf.reduce_sum(tf.square(aligned), axis=axes + [fixed.shape.rank - 1], keepdims=True)
    product = tf.reduce_sum(fixed * aligned, axis=axes + [fixed.shape.rank - 1], keepdims=True)
    residual = fixed - aligned * tf.math.divide_no_nan(product, energy)
    effective = tf.reshape(count, [-1])
    for axis in axes:
        together = _lag_one(residual, axis) * _lag_one(aligned, axis)
        effective *= (1.0 - together) / (1.0 + together)
    return tf.stop_gradient(effective)


def _lag_one(values, axis):
    """Lag-1 autocorrelation along one axis, `(batch,)` in [0, 0.999]."""
    size = tf.shape(values)[axis]
    first = tf.gather(values, tf.range(size - 1), axis=axis)
    second = tf.gather(values, tf.range(1, size), axis=axis)
    others = list(range(1, values.shape.rank))
    energy = tf.reduce_sum(tf.square(values), axis=others)
    return tf.clip_by_value(tf.math.divide_no_nan(tf.reduce_sum(first * second, axis=others), energy), 0.0, 0.999)


def _mass_within_one_pixel(posterior, shift, max_shift):
    """Posterior mass of the shifts at most 1 px from `shift` on every axis, `(batch,)`."""
    shifts = _window_shifts(max_shift, posterior.dtype)
    near = tf.reduce_all(tf.abs(shifts[tf.newaxis] - shift[:, tf.newaxis]) < 1.5, axis=-1)
    return tf.minimum(tf.reduce_sum(tf.where(near, posterior, 0.0), axis=-1), 1.0)


def _parabola_offset(scores, best, window):
    """Vertex of the parabola through the best score and its two neighbours on each axis, within half a pixel."""
    middle = tf.gather(scores, best, batch_dims=1)
    offsets = []
    stride = int(np.prod(window))
    for length in window:
        stride //= length
        at = (best // stride) % length
        inner = (at > 0) & (at < length - 1)
        before = tf.gather(scores, tf.where(inner, best - stride, best), batch_dims=1)
        after = tf.gather(scores, tf.where(inner, best + stride, best), batch_dims=1)
        curvature = before - 2.0 * middle + after
        usable = inner & tf.math.is_finite(curvature) & (curvature < 0)
        vertex = tf.where(usable, 0.5 * (before - after), 0.0) / tf.where(usable, curvature, -1.0)
        # Short of the half, so that rounding gives the whole-pixel shift back.
        offsets.append(tf.clip_by_value(vertex, -0.499, 0.499))
    return tf.stack(offsets, axis=-1)
