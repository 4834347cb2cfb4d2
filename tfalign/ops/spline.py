"""Cubic B-splines that go through the values of a grid, mirrored at its outermost pixels; and values for holes."""

import numpy as np
import tensorflow as tf

from tfalign.ops import geometry

_POLE = np.sqrt(3.0) - 2.0
_TAPS = (-1, 0, 1, 2)  # px from the whole part of an index, where splines are read
_REACH = 16  # px, after which the filter's answer is under 1e-9
_BOX = (1.0,) * 9  # px, from which holes are filled


def coefficients(values):
    """Weights `(batch, *spatial, channels)` of the B-splines at every pixel, so that their sum goes through `values`.

    The recursive filter of each axis, 6 / (z + 4 + 1/z), is a product of sparse ones: with L one pixel's delay and p
    its pole, 1 / (1 - p L) = (1 + p L)(1 + p^2 L^2)(1 + p^4 L^4) …, so it needs no loop over pixels.

    Args:
        values: finite.

    Source: Unser (1999), doi:10.1109/79.799930.
    """
    for axis, size in enumerate(geometry.spatial_shape(values), start=1):
        # Mirrored borders keep the outermost pixels single.
        index = mirrored(tf.range(-_REACH, size + _REACH), size)
        padded = tf.gather(values, index, axis=axis)
        for direction in (1, -1):
            for lag in (1, 2, 4, 8):
                padded += _POLE**lag * tf.roll(padded, direction * lag, axis)
        middle = tf.gather(padded, tf.range(_REACH, size + _REACH), axis=axis)
        values = -6.0 * _POLE * middle
    return values


def mirrored(index, size):
    """Whole indices, also far outside, reflected into `0 .. size - 1`."""
    period = tf.maximum(2 * size - 2, 1)
    within = tf.math.floormod(index, period)
    return tf.minimum(within, period - within)


def taps(index, size):
    """What four B-splines along one axis are read at fractional `index`: whole indices, and weights that sum to 1.

    Gradient: exact, through the weights.
    """
    lower = tf.floor(index)
    part = index - lower
    rest = 1.0 - part
    weights = [
        rest**3 / 6.0,
        2.0 / 3.0 - 0.5 * part**2 * (2.0 - part),
        2.0 / 3.0 - 0.5 * rest**2 * (2.0 - rest),
        part**3 / 6.0,
    ]
    at = tf.cast(lower, tf.int32)
    return [(mirrored(at + step, size), weight) for step, weight in zip(_TAPS, weights)]


def side_by_side(weights):
    """`(batch, *spatial, 4 * channels)`: at each pixel the weights that are read from it along the last axis."""
    axis, size = weights.shape.rank - 2, geometry.spatial_shape(weights)[-1]
    steps = [mirrored(tf.range(size) + step, size) for step in _TAPS]
    return tf.concat([tf.gather(weights, at, axis=axis) for at in steps], axis=-1)


def fill_holes(values, mask):
    """`values` with the pixels where `mask` is 0 replaced by the mean of the pixels around them that count.

    Where none counts within 4 px it is the mean of all that do, and 0 where none does at all.

    Args:
        values: `(batch, *spatial, channels)`; what is masked out may be non-finite.
        mask: `(batch, *spatial, 1)` weights, 0 where a pixel does not count.

    Gradient: exact to the values that count.
    """
    return tf.cond(tf.reduce_all(mask > 0.0), lambda: values, lambda: _filled(values, mask))


def _filled(values, mask):
    axes = list(range(1, values.shape.rank - 1))
    known = tf.where(mask > 0.0, values, 0.0)
    everywhere = tf.math.divide_no_nan(
        tf.reduce_sum(known * mask, axis=axes, keepdims=True), tf.reduce_sum(mask, axis=axes, keepdims=True)
    )
    sums, weights = _local_sums(known, mask, _BOX)
    around = tf.where(weights > 0.0, tf.math.divide_no_nan(sums, weights), everywhere)
    return tf.where(mask > 0.0, values, around)


def local_mean(values, mask, kernel):
    """The mean around each pixel, weighted by `mask` and along each axis by `kernel`; 0 where nothing counts.

    `kernel` is an odd number of weights, the same from both ends.
    """
    return tf.math.divide_no_nan(*_local_sums(values, mask, kernel))


def _local_sums(values, mask, kernel):
    """The weighted sums around each pixel of `values`, and those of the weights."""
    reach = len(kernel) // 2
    sums = tf.concat([values * mask, mask], axis=-1)
    for axis, size in enumerate(geometry.spatial_shape(values), start=1):
        # Zeros come round, so that the roll reads nothing from the other end.
        padded = tf.pad(sums, [[0, reach if one == axis else 0] for one in range(sums.shape.rank)])
        rolled = [tf.roll(padded, lag - reach, axis) for lag in range(len(kernel))]
        total = tf.add_n([one if share == 1.0 else share * one for one, share in zip(rolled, kernel)])
        sums = tf.gather(total, tf.range(size), axis=axis)
    return sums[..., :-1], sums[..., -1:]
