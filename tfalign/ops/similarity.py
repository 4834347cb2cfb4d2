"""Score maps: the similarity of two grids at every whole-pixel shift of a window, normalised by the overlap.

Higher is better. All measures here follow from six sums over the overlap of the two grids at each shift; each sum is
a correlation of values, squares or validity masks (Padfield, "Masked object registration in the Fourier domain", IEEE
TIP 21(5), 2012, doi:10.1109/TIP.2011.2181402).
"""

from typing import NamedTuple

import tensorflow as tf

from tfalign.ops import geometry, resample, spectral


class OverlapSums(NamedTuple):
    """Sums over the overlap at every shift, `(batch, channels or 1, *window)`, of centred values."""

    count: tf.Tensor  # (batch, 1, *window), pixels valid on both sides
    fixed: tf.Tensor  # (batch, channels, *window)
    moving: tf.Tensor  # (batch, channels, *window)
    fixed_squared: tf.Tensor  # (batch, 1, *window), summed over channels
    moving_squared: tf.Tensor  # (batch, 1, *window), summed over channels
    product: tf.Tensor  # (batch, 1, *window), summed over channels


def overlap_sums(fixed, moving, fixed_mask, moving_mask, *, max_shift, common_center):
    """The sums from which every measure of this module is made.

    Args:
        fixed, moving: `(batch, *spatial, channels)`, finite; sizes may differ.
        fixed_mask, moving_mask: `(batch, *spatial, 1)`, 1.0 where a pixel counts, else 0.0.
        max_shift: one int per axis.
        common_center: subtract one mean from both sides (a difference keeps its meaning), or from each its own
            (a covariance gains precision). Either way large offsets cost no digits.
    """
    shape = geometry.spatial_shape(fixed)
    channels = fixed.shape[-1]
    window_shape = [size + 2 * bound for size, bound in zip(shape, max_shift)]
    moving = resample.crop_or_pad(moving, window_shape)
    moving_mask = resample.crop_or_pad(moving_mask, window_shape)
    fixed_mean = _masked_mean(fixed, fixed_mask)
    moving_mean = fixed_mean if common_center else _masked_mean(moving, moving_mask)
    fixed_is_flat, moving_is_flat = _is_flat(fixed, fixed_mask), _is_flat(moving, moving_mask)
    fixed = (fixed - fixed_mean) * fixed_mask
    moving = (moving - moving_mean) * moving_mask
    # What is left of a flat channel is rounding.
    fixed = tf.where(fixed_is_flat, 0.0, fixed)
    if not common_center:
        moving = tf.where(moving_is_flat, 0.0, moving)

    fft_sizes = [spectral.fast_size(size) for size in window_shape]
    parts = [channels, 1, 1]
    fixed_values, fixed_squares, fixed_ones = tf.split(_parts_spectrum(fixed, fixed_mask, fft_sizes), parts, axis=1)
    moving_values, moving_squares, moving_ones = tf.split(
        _parts_spectrum(moving, moving_mask, fft_sizes), parts, axis=1
    )
    fixed_values, fixed_squares, fixed_ones = map(tf.math.conj, (fixed_values, fixed_squares, fixed_ones))
    # Where only the sum over channels is wanted it is taken in frequencies: one inverse FFT serves all channels.
    products = [
        fixed_ones * moving_ones,
        fixed_values * moving_ones,
        fixed_ones * moving_values,
        fixed_squares * moving_ones,
        fixed_ones * moving_squares,
        _over_channels(fixed_values * moving_values),
    ]
    windows = spectral.inverse_window(tf.concat(products, axis=1), fft_sizes, max_shift)
    count, *sums = tf.split(windows, [1, channels, channels, 1, 1, 1], axis=1)
    return OverlapSums(tf.round(count), *sums)


def _masked_mean(values, mask):
    """Mean over the valid pixels, `(batch, 1, …, channels)`."""
    axes = list(range(1, values.shape.rank - 1))
    count = tf.maximum(tf.reduce_sum(mask, axis=axes, keepdims=True), 1.0)
    return tf.reduce_sum(values * mask, axis=axes, keepdims=True) / count


def _is_flat(values, mask):
    """Whether a channel is constant on the mask up to rounding, `(batch, 1, …, channels)`."""
    axes = list(range(1, values.shape.rank - 1))
    highest = tf.reduce_max(tf.where(mask > 0, values, values.dtype.min), axis=axes, keepdims=True)
    lowest = tf.reduce_min(tf.where(mask > 0, values, values.dtype.max), axis=axes, keepdims=True)
    return highest - lowest <= 1e-6 * tf.maximum(tf.abs(highest), tf.abs(lowest))


def has_texture(values, mask):
    """Whether a sample varies at all over its mask, `(batch,)`: a constant one cannot be registered."""
    return tf.reduce_any(~_is_flat(values, mask), axis=list(range(1, values.shape.rank)))


def _parts_spectrum(values, mask, fft_sizes):
    """Spectra of values, of their squares summed over channels, and of the mask, stacked on the channel axis."""
    squares = tf.reduce_sum(tf.square(values), axis=-1, keepdims=True)
    return spectral.spectrum(tf.concat([values, squares, mask], axis=-1), fft_sizes)


def _covariances(sums):
    """Per-shift covariance and variances, summed over channels, times the overlap's pixels."""
    count = tf.maximum(sums.count, 1.0)
    covariance = sums.product - _over_channels(sums.fixed * sums.moving) / count
    fixed_variance = sums.fixed_squared - _over_channels(tf.square(sums.fixed)) / count
    moving_variance = sums.moving_squared - _over_channels(tf.square(sums.moving)) / count
    return covariance, fixed_variance, moving_variance


def _over_channels(values):
    return tf.reduce_sum(values, axis=1, keepdims=True)


def ncc_map(sums, channels):
    """Normalised cross-correlation over the overlap, in [-1, 1]: an offset for each channel, one gain for all.

    0 where a side is flat: a variance under 1e-5 of the window's largest is rounding of the FFT.
    """
    covariance, fixed_variance, moving_variance = _covariances(sums)
    flat = _is_rounding(fixed_variance) | _is_rounding(moving_variance)
    power = tf.where(flat, 1.0, fixed_variance) * tf.where(flat, 1.0, moving_variance)
    return tf.where(flat, 0.0, tf.clip_by_value(covariance * tf.math.rsqrt(power), -1.0, 1.0))


def _is_rounding(variance):
    return variance <= 1e-5 * tf.reduce_max(variance, axis=list(range(1, variance.shape.rank)), keepdims=True)


def cc_map(sums, channels):
    """Covariance: the mean over the overlap and channels of the product of mean-subtracted values."""
    covariance, _, _ = _covariances(sums)
    return covariance / (tf.maximum(sums.count, 1.0) * channels)


def mse_map(sums, channels):
    """Minus the mean squared difference over the overlap and channels."""
    squared = sums.fixed_squared - 2.0 * sums.product + sums.moving_squared
    return -tf.maximum(squared, 0.0) / (tf.maximum(sums.count, 1.0) * channels)
