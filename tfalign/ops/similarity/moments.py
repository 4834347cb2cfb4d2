"""Measures that follow from sums over the overlap: correlation, covariance, squared difference, Dice, cross-entropy.

Each takes `Grids` and their `OverlapSums` and gives `(batch, 1, *window)`, higher is better.
"""

import tensorflow as tf

from tfalign.ops.similarity.sums import over_channels, overlap_sums, raw_product

_LEAST_PROBABILITY = 1e-7  # as in Keras


def _safe(count):
    return tf.where(count > 0.0, count, 1.0)


def _covariances(sums):
    """Per-shift covariance and variances, summed over channels, times the overlap's pixels."""
    count = _safe(sums.count)
    covariance = sums.product - over_channels(sums.fixed * sums.moving) / count
    fixed_variance = sums.fixed_squared - over_channels(tf.square(sums.fixed)) / count
    moving_variance = sums.moving_squared - over_channels(tf.square(sums.moving)) / count
    return covariance, fixed_variance, moving_variance


def ncc(grids, sums):
    """Normalised cross-correlation over the overlap, in [-1, 1]: an offset for each channel, one gain for all.

    0 where a side is flat: a variance under 1e-5 of the window's largest is rounding of the FFT. 0 too where the values
    are so large that the variances overflow.
    """
    covariance, fixed_variance, moving_variance = _covariances(sums)
    flat = _is_rounding(fixed_variance) | _is_rounding(moving_variance) | ~tf.math.is_finite(covariance)
    # One after the other: the product of two variances would overflow, or vanish, long before they do.
    for variance in (fixed_variance, moving_variance):
        covariance *= tf.math.rsqrt(tf.where(~flat, variance, 1.0))
    return tf.where(~flat, tf.clip_by_value(covariance, -1.0, 1.0), 0.0)


def _is_rounding(variance):
    largest = tf.reduce_max(variance, axis=list(range(1, variance.shape.rank)), keepdims=True)
    return ~(variance > 1e-5 * largest)  # nor is one that overflowed, which may be no number


def cc(grids, sums):
    """Covariance: the mean over the overlap and channels of the product of mean-subtracted values."""
    covariance, _, _ = _covariances(sums)
    return covariance / (_safe(sums.count) * grids.fixed.shape[-1])


def mse(grids, sums):
    """Minus the mean squared difference over the overlap and channels."""
    squared = sums.fixed_squared - 2.0 * sums.product + sums.moving_squared
    offset = sums.fixed_center - sums.moving_center
    squared += over_channels(offset * (2.0 * (sums.fixed - sums.moving) + offset * sums.count))
    return -tf.maximum(squared, 0.0) / (_safe(sums.count) * grids.fixed.shape[-1])


def overlap(grids, sums):
    """Soft Dice, `2 sum(f m) / (sum(f) + sum(m))` over the overlap and channels, of values in [0, 1]; 0 of nothing."""
    fixed = sums.fixed + sums.fixed_center * sums.count
    moving = sums.moving + sums.moving_center * sums.count
    total = over_channels(fixed + moving)
    return tf.where(total > 1e-5 * _safe(sums.count), 2.0 * raw_product(sums) / _safe(total), 0.0)


def cross_entropy(grids, sums):
    """Minus the mean cross-entropy of the fixed probabilities against the moving label, over the overlap, nats.

    One channel is the probability of a binary label; of several, each pixel's probabilities sum to 1.
    """
    probability = tf.clip_by_value(grids.fixed, _LEAST_PROBABILITY, 1.0 - _LEAST_PROBABILITY)
    log_p, moving = tf.math.log(probability), grids.moving
    if grids.fixed.shape[-1] == 1:
        log_not = tf.math.log1p(-probability)
        log_p = tf.concat([log_p - log_not, log_not], axis=-1)
        moving = tf.concat([moving, tf.ones_like(moving)], axis=-1)
    return raw_product(overlap_sums(grids._replace(fixed=log_p, moving=moving))) / _safe(sums.count)
