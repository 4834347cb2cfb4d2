"""Measures from joint histograms, exact at every shift: mutual information, its normalised form, joint entropy.

The joint count of two levels at every shift is the correlation of the two sides' indicators of these levels
(Öfverstedt, Lindblad & Sladoje, "Fast computation of mutual information in the frequency domain with applications to
global multimodal image alignment", Pattern Recognition Letters 159, 2022, doi:10.1016/j.patrec.2022.05.022).
"""

import math
from typing import NamedTuple

import tensorflow as tf

from tfalign.ops import spectral
from tfalign.ops.similarity.sums import exact_counts

_PIXELS_PER_CELL = 50  # fewer, and mutual information favours small overlaps
_LEVELS = (2, 32)
_LEVELS_OF_UNKNOWN_SIZES = 8


class Entropies(NamedTuple):
    """Entropies over the overlap at every shift, nats, `(batch, 1, *window)`: means over channels."""

    joint: tf.Tensor
    fixed: tf.Tensor
    moving: tf.Tensor


def mi(grids, sums):
    """Mutual information of the levels of both sides over the overlap, nats."""
    entropies = _entropies(grids)
    return entropies.fixed + entropies.moving - entropies.joint


def nmi(grids, sums):
    """Normalised mutual information, `(H(f) + H(m)) / H(f, m)`, from 1 (independent) to 2; 1 where nothing varies.

    Source: Studholme, Hill & Hawkes (1999), doi:10.1016/S0031-3203(98)00091-0.
    """
    entropies = _entropies(grids)
    varies = entropies.joint > 1e-6
    return tf.where(varies, (entropies.fixed + entropies.moving) / tf.where(varies, entropies.joint, 1.0), 1.0)


def joint_entropy(grids, sums):
    """Minus the entropy of the joint histogram over the overlap, nats."""
    return -_entropies(grids).joint


def level_count(grids):
    """How many levels to tell apart: at least 50 pixels for each cell of the joint histogram at every shift.

    Counted at the window's farthest shift, which never leaves less than `min_overlap` where sizes are known: a window
    that leaves more has more levels than `min_overlap` alone would allow. Masks, known at run time, are not counted.
    """
    least = 1
    for size, moving_size, bound in zip(grids.shape, grids.moving_shape, grids.max_shift):
        if not (isinstance(size, int) and isinstance(moving_size, int)):
            return _LEVELS_OF_UNKNOWN_SIZES
        least *= max(min(size, moving_size, (size + moving_size) // 2 - bound), 1)
    return min(max(math.isqrt(least // _PIXELS_PER_CELL), _LEVELS[0]), _LEVELS[1])


def _entropies(grids):
    """All entropies, channel by channel."""
    levels, channels = level_count(grids), grids.fixed.shape[-1]
    found = [_of_channel(grids, channel, levels) for channel in range(channels)]
    return Entropies(*(sum(parts) / channels for parts in zip(*found)))


def _of_channel(grids, channel, levels):
    masks = grids.fixed_mask, grids.moving_mask
    fixed, moving = (
        spectral.spectrum(
            spectral.channels_first(_indicators(values[..., channel : channel + 1], mask, levels)), grids.fft_sizes
        )
        for values, mask in zip((grids.fixed, grids.moving), masks)
    )
    joint = fixed_part = 0.0
    moving_counts = 0.0
    for level in range(levels):
        counts = spectral.inverse_window(
            tf.math.conj(fixed[:, level : level + 1]) * moving, grids.fft_sizes, grids.max_shift
        )
        counts = exact_counts(counts, *masks)
        joint += tf.reduce_sum(_n_log_n(counts), axis=1, keepdims=True)
        fixed_part += _n_log_n(tf.reduce_sum(counts, axis=1, keepdims=True))
        moving_counts += counts
    total = tf.reduce_sum(moving_counts, axis=1, keepdims=True)
    moving_part = tf.reduce_sum(_n_log_n(moving_counts), axis=1, keepdims=True)
    safe = tf.where(total > 0.0, total, 1.0)
    return Entropies(*(tf.math.log(safe) - part / safe for part in (joint, fixed_part, moving_part)))


def _n_log_n(counts):
    return counts * tf.math.log(tf.where(counts > 0.0, counts, 1.0))


def value_range(values, mask):
    """The ends of each sample's valid values, or three standard deviations from their mean where outliers lie further.

    `(batch, *(1 for each axis))` each, equal where nothing is valid.
    """
    smallest, low, high = _range_above_smallest(values, mask)
    return smallest + low, smallest + high


def _range_above_smallest(values, mask):
    """The smallest valid value, and the ends counted from it: a small range on a large base keeps its digits."""
    axes = list(range(1, values.shape.rank))
    counts = mask > 0
    weight = tf.maximum(tf.reduce_sum(tf.cast(counts, values.dtype), axis=axes, keepdims=True), 1.0)
    largest = tf.reduce_max(tf.where(counts, values, values.dtype.min), axis=axes, keepdims=True)
    smallest = tf.reduce_min(tf.where(counts, values, values.dtype.max), axis=axes, keepdims=True)
    smallest, largest = (tf.where(smallest <= largest, end, 0.0) for end in (smallest, largest))
    spread = tf.where(counts, values - smallest, 0.0)
    mean = tf.reduce_sum(spread, axis=axes, keepdims=True) / weight
    variance = tf.reduce_sum(tf.where(counts, tf.square(spread - mean), 0.0), axis=axes, keepdims=True) / weight
    low = tf.maximum(mean - 3.0 * tf.sqrt(variance), 0.0)
    high = tf.minimum(mean + 3.0 * tf.sqrt(variance), largest - smallest)
    return smallest, low, high


def _indicators(values, mask, levels):
    """`(batch, *spatial, levels)`: the weight of a pixel in the channel of its level, equal steps of `value_range`."""
    smallest, low, high = _range_above_smallest(values, mask)
    spread = tf.where(mask > 0, values - smallest, 0.0)
    step = tf.where(high > low, (high - low) / levels, 1.0)
    level = tf.clip_by_value(tf.cast(tf.floor((spread - low) / step), tf.int32), 0, levels - 1)
    return tf.one_hot(level[..., 0], levels, dtype=values.dtype) * mask
