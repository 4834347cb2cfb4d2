"""The best shift: every whole-pixel one of a window is scored, the best one is chosen and refined within a pixel."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfalign.ops import evidence, geometry, peak, resample
from tfalign.ops.similarity import information, parzen
from tfalign.ops.similarity.measures import MEASURES
from tfalign.ops.similarity.sums import Grids, has_texture, overlap_sums

_FINE_LEVELS = 4  # fewer, and an exact histogram is too coarse to tell fractions of a pixel


class Registration(NamedTuple):
    """What `register` found. All tensors; passes through `tf.function` and `tf.data`.

    Attributes:
        transform: `(batch, d+1, d+1)`, maps fixed -> moving coordinates, both counted from their grid's centre.
        translation: `(batch, d)` pixels: how far down/right of the fixed content the moving content lies at the centre.
        score: `(batch,)`, the similarity at the best whole-pixel shift, or at a transform that is more than a shift;
            higher is better.
        confidence: `(batch,)` in [0, 1]: the posterior probability that the best shift is within 1 px of the true one.
            Of a transform that is more than a shift: that no other shift of the grid it aligned is; halved where its
            refinement did not settle.
        overlap: `(batch,)` in [0, 1], share of the fixed pixels that have a counterpart.
        fixed_shape: `(d,)` int32, sizes of the fixed grid.
        score_map: `(batch, *(2 * max_shift + 1))`, the score of every shift, index `max_shift` is no shift;
            -inf where the overlap is below `min_overlap`. Where the transform is more than a shift these are the
            shifts of the grid it aligned, and the index `max_shift` is the transform itself. None unless asked for.
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

        A map of class numbers or flags without a channel axis keeps its type: it is always read by "nearest". With
        `groups` each channel moves with its group, and the mask is `(batch, *output_shape, channels)`.
        """
        moving = tf.convert_to_tensor(moving)
        is_map = moving.dtype.is_integer or moving.dtype.is_bool
        if is_map and self.channel_groups is None and moving.shape.rank == self.transform.shape[-1]:
            aligned, mask = self.warp(moving[..., tf.newaxis], interpolation="nearest", fill_value=fill_value)
            return aligned[..., 0], mask
        static = tf.get_static_value(self.fixed_shape)
        shape = self.fixed_shape if static is None else [int(size) for size in static]
        options = {"output_shape": shape, "interpolation": interpolation, "fill_value": fill_value}
        if self.channel_groups is None:
            return resample.warp(moving, self.transform, **options)
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


def best_shift(
    fixed, moving, fixed_mask, moving_mask, *, max_shift, similarity, subpixel, pool, min_overlap, return_map, sum_up
):
    """The best shift for all channels, and the least pixels of overlap `(batch,)`.

    `sum_up` makes sums over all samples of a list of sums over these: `tfalign.ops.replicas.summed`, or `list`.
    """
    grids = Grids.windowed(fixed, moving, fixed_mask, moving_mask, max_shift)
    sums = overlap_sums(grids)
    count = sums.count[:, 0]
    measure = MEASURES[similarity]
    # A little less than the share: the sums of graded weights are rounded.
    least = 0.9999 * min_overlap * _max_over_window(count)
    enough = (count >= least) & (count > 0.5)
    scores = measure.score_map(grids, sums)[:, 0]
    telling = scores if measure.telling_map is measure.score_map else measure.telling_map(grids, sums)[:, 0]

    window = scores.shape[1:].as_list()
    size = int(np.prod(window))
    scores, telling, enough, count = (tf.reshape(one, [-1, size]) for one in (scores, telling, enough, count))
    textured = has_texture(sums)
    is_textured = textured[:, tf.newaxis]
    flat = tf.where(is_textured, scores, 0.0)
    if pool == "batch":
        # Samples without texture say nothing; a shift counts where it counts for every other sample.
        counted = (tf.cast(is_textured & ~enough, flat.dtype), flat, tf.cast(is_textured, flat.dtype))
        refused, total, samples = sum_up([tf.reduce_sum(one, axis=0) for one in counted])
        enough = tf.broadcast_to(refused < 0.5, tf.shape(enough))
        flat = tf.math.divide_no_nan(total, samples) + tf.zeros_like(flat)
    scores = tf.where(enough, flat, -np.inf)
    best, is_known = peak.best_index(scores, window)
    shift = tf.gather(peak.window_shifts(max_shift, fixed.dtype), best)
    score = tf.gather(scores, best, batch_dims=1)

    aligned, aligned_mask = resample.shift_masked(moving, moving_mask, shift, geometry.spatial_shape(fixed))
    pixels = evidence.effective_pixels(fixed, aligned, fixed_mask * aligned_mask)
    nats = measure.log_likelihood(telling, enough, pixels)
    if pool == "batch":
        told = (tf.where(is_textured, nats, 0.0), tf.where(textured, pixels, 0.0), tf.where(is_textured, telling, 0.0))
        nats, pixels, total = sum_up([tf.reduce_sum(one, axis=0) for one in told])
        everyone = tf.ones_like(is_textured, nats.dtype)
        nats, pixels = everyone * nats, everyone[:, 0] * pixels
        telling = tf.math.divide_no_nan(total, samples) + tf.zeros_like(telling)
    sizes = [tf.minimum(*both) for both in zip(geometry.spatial_shape(fixed), geometry.spatial_shape(moving))]
    posterior = tf.stop_gradient(evidence.posterior(nats, enough, pixels, max_shift, sizes))
    confidence = tf.where(is_known, evidence.mass_within_one_pixel(posterior, shift, max_shift), 0.0)
    if subpixel:
        if measure.telling_map is information.mi and information.level_count(grids) < _FINE_LEVELS and pool is None:
            smooth = _smooth_around(telling, grids, shift, window)
            known = is_known[:, tf.newaxis]
            telling, shift = tf.where(known, smooth[0], telling), tf.where(known, smooth[2], shift)
            best = tf.where(is_known, smooth[1], best)
        curved = measure.curved(tf.where(enough, telling, -np.inf))
        shift += tf.where(is_known[:, tf.newaxis], peak.fraction(curved, best, window), 0.0)
    translation = tf.stop_gradient(shift)
    found = Registration(
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
    return found, tf.stop_gradient(tf.reshape(least, [-1]))


def _smooth_around(values, grids, shift, window):
    """The map of mutual information by Parzen windows up to two pixels from `shift`; its best index, and that shift."""
    shifts = peak.window_shifts(grids.max_shift, values.dtype)
    both = tf.concat([grids.moving, grids.moving_mask], axis=-1)
    steps = np.stack(np.meshgrid(*[np.arange(-2, 3)] * len(window), indexing="ij"), axis=-1).reshape(-1, len(window))

    def information_at(step):
        moved, inside = resample.shift_by_pixels(both, shift + step, geometry.spatial_shape(grids.fixed))
        weight = grids.fixed_mask * moved[..., -1:] * inside[..., tf.newaxis]
        return parzen.mutual_information(grids.fixed, moved[..., :-1], weight)

    # One after the other: side by side they would take the memory of all, and long to compile.
    found = tf.map_fn(information_at, tf.constant(steps, shift.dtype), fn_output_signature=values.dtype)
    away = shifts - shift[:, tf.newaxis]
    number = tf.reduce_sum(
        (away + 2.0) * tf.constant([5.0**axis for axis in reversed(range(len(window)))], away.dtype), -1
    )
    number = tf.clip_by_value(tf.cast(number, tf.int32), 0, len(steps) - 1)
    is_near = tf.reduce_all(tf.abs(away) < 2.5, axis=-1) & tf.math.is_finite(values)
    smooth = tf.where(is_near, tf.gather(tf.transpose(found), number, batch_dims=1), -np.inf)
    near = tf.reduce_all(tf.abs(shifts - shift[:, tf.newaxis]) < 1.5, axis=-1)
    best, _ = peak.best_index(tf.where(near, smooth, -np.inf), window)
    return smooth, best, tf.gather(shifts, best)


def _max_over_window(values):
    return tf.reduce_max(values, axis=list(range(1, values.shape.rank)), keepdims=True)
