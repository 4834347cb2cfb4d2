"""The loss of labels that are laid on their predictions, or the reverse, over the pixels where both have data."""

import tensorflow as tf

from tfalign import _pixel_loss
from tfalign.ops import geometry, resample, spline

_WHOLE = 0.999  # of a pixel's weight: one that interpolation mixes with what does not count is left out


def loss_on_overlap(parts, moves, base, search):
    """The base loss of each label and its prediction, one of them moved: `(batch,)`.

    Args:
        parts: `Parts`.
        moves: `(batch, d+1, d+1)`, prediction -> label.
        base: a `PixelLoss`.
        search: a `Search`: which side moves, and whether by fractions of a pixel.
    """
    label, valid, prediction = parts.label, parts.valid, parts.prediction
    if search.moving == "label":
        aligned, weight = laid_label(parts, moves, geometry.spatial_shape(prediction), base, search)
        compared = prediction
    else:
        everywhere, shape = tf.ones_like(prediction[..., :1]), geometry.spatial_shape(label)
        lay = _laid if search.interpolates else _shifted
        compared, inside = lay(prediction, everywhere, geometry.invert(moves), shape)
        inside *= valid
        aligned, weight = label, _weight(inside, parts.weight, None, shape, search)
    return _pixel_loss.per_sample(aligned, compared, weight[..., 0], base)


def laid_label(parts, moves, shape, base, search):
    """The label and the weight of its pixels, laid on a grid of sizes `shape`."""
    label, valid = parts.label, parts.valid
    if not search.interpolates:
        aligned, inside = _shifted(label, valid, moves, shape)
    elif base.is_sparse:
        aligned, inside = _laid_nearest(label, valid, moves, shape)
    else:
        aligned, inside = _laid(label, valid, moves, shape)
        aligned = inside_range(aligned, label, valid)
    return aligned, _weight(inside, parts.weight, moves, shape, search)


def joined(losses, groups, prediction):
    """One loss per sample: the mean over groups by their channels. A non-finite prediction is seen in any case."""
    if groups is not None:
        channels = [float(len(group)) for group in groups]
        losses = [loss * (count / sum(channels)) for loss, count in zip(losses, channels)]
    return tf.add_n(losses) + tf.reduce_sum(0.0 * prediction, axis=list(range(1, prediction.shape.rank)))


def _weight(inside, graded, moves, shape, search):
    """How much each pixel counts: whole pixels alone, by the label's own graded weight where it has one."""
    counts = inside > _WHOLE
    if graded is None:
        return tf.cast(counts, inside.dtype)
    if moves is not None:
        if search.interpolates:
            graded, _ = resample.warp(graded, moves, output_shape=shape)
        else:
            graded, _ = resample.shift_by_pixels(graded, geometry.translation_of(moves), shape)
    return tf.where(counts, graded, 0.0)


def _shifted(values, mask, moves, shape):
    """Values and weights read through moves by whole pixels, on a grid of sizes `shape`."""
    return resample.shift_masked(values, mask, geometry.translation_of(moves), shape)


def _laid(values, mask, moves, shape):
    """The same by any moves: values by cubic splines, weights linearly."""
    return resample.sample_masked(spline.fill_holes(values, mask), mask, moves, shape)


def _laid_nearest(values, mask, moves, shape):
    """The same for class numbers."""
    both = tf.concat([values, mask], axis=-1)
    moved, inside = resample.warp(both, moves, output_shape=shape, interpolation="nearest")
    return moved[..., :-1], moved[..., -1:] * inside[..., tf.newaxis]


def inside_range(aligned, label, valid):
    """Splines overshoot at edges, and Fourier transforms round: values back inside the range of each label."""
    lowest, highest = value_range(label, valid)
    return tf.maximum(tf.minimum(aligned, highest), tf.minimum(lowest, highest))


def value_range(label, valid):
    """The least and the largest value of each label and channel, `(batch, 1.., channels)` each.

    Of a label without any value the least is above the largest.
    """
    axes = list(range(1, label.shape.rank - 1))
    known = valid > 0.0
    highest = tf.reduce_max(tf.where(known, label, label.dtype.min), axis=axes, keepdims=True)
    lowest = tf.reduce_min(tf.where(known, label, label.dtype.max), axis=axes, keepdims=True)
    return lowest, highest
