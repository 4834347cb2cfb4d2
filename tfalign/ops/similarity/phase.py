"""Phase correlation: the correlation of whitened spectra."""

import math

import tensorflow as tf

from tfalign.ops import geometry, spectral
from tfalign.ops.similarity.sums import over_channels

_RAMP = 0.25  # of a grid, at either end, over which it is faded: a border leaks into all frequencies
_FLOOR = 0.01  # of the strongest frequency: much weaker ones hold leakage and noise, and are not raised to full weight


def phase(grids, sums):
    """The whitened cross-correlation of mean-free values, faded towards the border, `(batch, 1, *window)`, at most 1.

    Sharp on textures, less so on smooth pictures; the overlap cannot be normalised.
    Source: Kuglin & Hines (1975); the floor as in a Wiener filter, whose noise is `_FLOOR` of the strongest power.
    """
    shape, window = grids.shape, geometry.spatial_shape(grids.moving)
    ends = []
    for size, moving_size in zip(window, grids.moving_shape):
        start = geometry.center_offset(size, moving_size)
        ends.append((tf.maximum(-start, 0), tf.minimum(moving_size - start, size)))
    tapers = [_taper(size, 0, size) for size in shape], [_taper(size, *two) for size, two in zip(window, ends)]
    sides = []
    for values, mask, taper in zip((grids.fixed, grids.moving), (grids.fixed_mask, grids.moving_mask), tapers):
        axes = list(range(1, values.shape.rank - 1))
        weight = tf.reduce_sum(mask, axis=axes, keepdims=True)
        mean = tf.math.divide_no_nan(tf.reduce_sum(values * mask, axis=axes, keepdims=True), weight)
        faded = (values - mean) * mask
        for axis, ramp in zip(axes, taper):
            faded *= tf.reshape(tf.cast(ramp, values.dtype), [-1] + [1] * (values.shape.rank - 1 - axis))
        sides.append(spectral.spectrum(spectral.channels_first(faded), grids.fft_sizes))
    power = over_channels(tf.math.conj(sides[0]) * sides[1])
    magnitude = tf.abs(power)
    floor = _FLOOR * tf.reduce_max(magnitude, axis=list(range(1, magnitude.shape.rank)), keepdims=True)
    white = power * tf.cast(tf.math.divide_no_nan(1.0, magnitude + floor), power.dtype)
    return spectral.inverse_window(white, grids.fft_sizes, grids.max_shift)


def _taper(size, begin, end):
    """`(size,)`: 0 outside `begin .. end`, 1 inside; between them `sin^2`, over `_RAMP` of the grid at each end."""
    at = tf.range(size)
    depth = tf.cast(tf.minimum(at - begin, end - 1 - at), tf.float32) + 0.5
    share = depth / (_RAMP * tf.cast(tf.maximum(end - begin, 1), tf.float32))
    return tf.square(tf.sin(0.5 * math.pi * tf.clip_by_value(share, 0.0, 1.0)))
