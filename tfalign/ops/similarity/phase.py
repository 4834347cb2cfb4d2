"""Phase correlation: the correlation of whitened spectra."""

import tensorflow as tf

from tfalign.ops import spectral
from tfalign.ops.similarity.sums import over_channels


def phase(grids, sums):
    """The whitened cross-correlation of mean-free values, `(batch, 1, *window)`, at most 1.

    Sharp on textures, unreliable on smooth pictures; the overlap cannot be normalised.
    Source: Kuglin & Hines (1975).
    """
    sides = []
    for values, mask in ((grids.fixed, grids.fixed_mask), (grids.moving, grids.moving_mask)):
        axes = list(range(1, values.shape.rank - 1))
        weight = tf.reduce_sum(mask, axis=axes, keepdims=True)
        mean = tf.math.divide_no_nan(tf.reduce_sum(values * mask, axis=axes, keepdims=True), weight)
        sides.append(spectral.spectrum((values - mean) * mask, grids.fft_sizes))
    power = over_channels(tf.math.conj(sides[0]) * sides[1])
    magnitude = tf.abs(power)
    floor = 1e-6 * tf.reduce_max(magnitude, axis=list(range(1, magnitude.shape.rank)), keepdims=True)
    known = magnitude > floor
    white = power / tf.cast(tf.where(known, magnitude, 1.0), power.dtype)
    return spectral.inverse_window(tf.where(known, white, tf.zeros([], power.dtype)), grids.fft_sizes, grids.max_shift)
