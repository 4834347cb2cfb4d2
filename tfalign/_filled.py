"""The smaller of two grids filled up to the larger one, as a registration may want it."""

import tensorflow as tf

from tfalign import _checks
from tfalign.ops import geometry, resample

EXCLUDED = ("excluded_mean", "excluded_median")
FILLS = ("mean", "median", "min", *EXCLUDED)


def checked_fill(fill):
    """`fill`: None, the name of a statistic, or a finite number as a float."""
    if fill is None or isinstance(fill, str):
        return _checks.choice("fill", fill, (None, *FILLS))
    remedy = "Or None, " + ", ".join(f'"{name}"' for name in FILLS) + "."
    largest = float(tf.float32.max)
    return _checks.number("fill", fill, at_least=-largest, at_most=largest, remedy=remedy)


def filled(fixed, moving, moving_mask, *, whole, fill):
    """Both grids, on every axis as large as the larger of them, and the masks of what counts.

    Args:
        fixed: `(batch, *spatial, channels)`.
        moving: as many samples and channels.
        moving_mask: `(batch, *spatial, 1)`.
        whole: what `fixed` was cut out of, around the same centre.
        fill: a number, or a statistic of each sample and channel of the side that is filled: "mean", "median", "min"
            of its pixels; "excluded_mean", "excluded_median" of those that were cut off from `fixed`. A moving side
            loses none: its own mean or median is taken.

    Returns:
        `(fixed, fixed_mask, moving, moving_mask)`; filled pixels count in full.
    """
    sizes = [
        max(pair) if not any(map(tf.is_tensor, pair)) else tf.maximum(*pair)
        for pair in zip(geometry.spatial_shape(fixed), geometry.spatial_shape(moving))
    ]
    ones = tf.ones_like(fixed[..., :1])
    values, counts = fixed, tf.cast(_all_finite(fixed), fixed.dtype)
    if fill in EXCLUDED:
        values = whole
        inner = resample.crop_or_pad(ones, geometry.spatial_shape(whole))
        counts = tf.where(_all_finite(whole), 1.0 - inner, 0.0)
    fixed_value, moving_value = (
        _statistic(side, mask, fill) for side, mask in ((values, counts), (moving, moving_mask))
    )
    return (*_padded(fixed, ones, sizes, fixed_value), *_padded(moving, moving_mask, sizes, moving_value))


def _all_finite(values):
    return tf.reduce_all(tf.math.is_finite(values), axis=-1, keepdims=True)


def _padded(values, mask, sizes, value):
    inside = resample.crop_or_pad(tf.ones_like(mask), sizes)
    padded = tf.where(inside > 0.0, resample.crop_or_pad(values, sizes), value)
    return padded, tf.where(inside > 0.0, resample.crop_or_pad(mask, sizes), 1.0)


def _statistic(values, mask, fill):
    """What `fill` names, of each sample and channel, over pixels whose mask is above 0; 0 where there is none.

    `(batch, *(1 for each axis), channels)`.
    """
    if not isinstance(fill, str):
        return tf.constant(fill, values.dtype)
    flat = tf.reshape(values, [tf.shape(values)[0], -1, values.shape[-1]])
    counts = tf.reshape(mask, [tf.shape(mask)[0], -1, 1]) > 0.0
    count = tf.reduce_sum(tf.cast(counts, tf.int32), axis=1)
    if fill.endswith("mean"):
        total = tf.reduce_sum(tf.where(counts, flat, 0.0), axis=1)
        found = total / tf.cast(tf.maximum(count, 1), values.dtype)
    else:
        ascending = tf.sort(tf.where(counts, flat, values.dtype.max), axis=1)
        low, high = (tf.maximum(count - 1, 0) // 2, count // 2) if fill.endswith("median") else (0 * count, 0 * count)
        lower, upper = (tf.gather(ascending, at[:, 0], axis=1, batch_dims=1) for at in (low, high))
        found = tf.where(count > 0, 0.5 * lower + 0.5 * upper, 0.0)
    return tf.reshape(found, [-1, *[1] * (values.shape.rank - 2), values.shape[-1]])
