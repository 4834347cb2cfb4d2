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
    offset: tf.Tensor  # (batch, channels, 1, …), what centring took from fixed minus what it took from moving


def overlap_sums(fixed, moving, fixed_mask, moving_mask, *, max_shift):
    """The sums from which every measure of this module is made.

    Args:
        fixed, moving: `(batch, *spatial, channels)`, finite; sizes may differ.
        fixed_mask, moving_mask: `(batch, *spatial, 1)`, 1.0 where a pixel counts, else 0.0.
        max_shift: one int per axis.
    """
    shape, moving_shape = geometry.spatial_shape(fixed), geometry.spatial_shape(moving)
    all_valid = tf.reduce_all(fixed_mask > 0) & tf.reduce_all(moving_mask > 0)
    window_shape = [size + 2 * bound for size, bound in zip(shape, max_shift)]
    moving = resample.crop_or_pad(moving, window_shape)
    moving_mask = resample.crop_or_pad(moving_mask, window_shape)
    # Large common offsets would cost digits.
    fixed, fixed_center = _centered(fixed, fixed_mask)
    moving, moving_center = _centered(moving, moving_mask)
    last = fixed.shape.rank - 1
    offset = tf.transpose(fixed_center - moving_center, [0, last, *range(1, last)])

    fft_sizes = [spectral.fast_size(size) for size in window_shape]
    fixed_spectrum, moving_spectrum = (spectral.spectrum(side, fft_sizes) for side in (fixed, moving))
    # Only the sum over channels is wanted: taken in frequencies, one inverse FFT serves all channels.
    product = spectral.inverse_window(
        _over_channels(tf.math.conj(fixed_spectrum) * moving_spectrum), fft_sizes, max_shift
    )

    def from_boxes():
        return _box_sums(fixed, moving, shape, moving_shape, max_shift)

    def from_masks():
        spectra = fixed_spectrum, moving_spectrum
        masks = fixed_mask, moving_mask
        return _masked_sums(fixed, moving, masks, spectra, fft_sizes, max_shift)

    single = tf.cond(all_valid, from_boxes, from_masks)
    return OverlapSums(*[*single, product, offset])


def _box_sums(fixed, moving, shape, moving_shape, max_shift):
    """All sums but the product where every pixel is valid: the overlap is a box, summed axis by axis.

    In float64: a GPU would round the factors of a float32 matrix product to ten bits.
    """
    fixed_sums, moving_sums = (_with_squares(tf.cast(side, tf.float64)) for side in (fixed, moving))
    count = tf.ones([1] * (len(shape) + 2), tf.float64)
    for axis, (size, moving_size, bound) in enumerate(zip(shape, moving_shape, max_shift), start=1):
        shift = tf.range(-bound, bound + 1)[:, tf.newaxis]
        counterpart = tf.range(size) + geometry.center_offset(size, moving_size) + shift
        met_by_fixed = tf.cast((counterpart >= 0) & (counterpart < moving_size), tf.float64)
        inside = tf.range(size + 2 * bound) - bound - shift
        met_by_moving = tf.cast((inside >= 0) & (inside < size), tf.float64)
        fixed_sums = _along(fixed_sums, met_by_fixed, axis)
        moving_sums = _along(moving_sums, met_by_moving, axis)
        count = _along(tf.repeat(count, size, axis=axis), met_by_fixed, axis)
    channels = fixed.shape[-1]
    count = tf.broadcast_to(count, tf.concat([tf.shape(fixed_sums)[:-1], [1]], axis=0))
    last = fixed.shape.rank - 1
    found = [count, fixed_sums[..., :channels], moving_sums[..., :channels]]
    found += [fixed_sums[..., channels:], moving_sums[..., channels:]]
    return [tf.cast(tf.transpose(part, [0, last, *range(1, last)]), fixed.dtype) for part in found]


def _along(values, indicator, axis):
    """Sums over one axis with each row of `indicator` `(shifts, size)`: that axis becomes the shifts."""
    shape = tf.shape(values)
    rows = tf.reshape(values, [tf.reduce_prod(shape[:axis]), shape[axis], tf.reduce_prod(shape[axis + 1 :])])
    summed = tf.linalg.matmul(indicator, rows)
    out = tf.reshape(summed, tf.concat([shape[:axis], [indicator.shape[0]], shape[axis + 1 :]], axis=0))
    static = values.shape.as_list()
    static[axis] = indicator.shape[0]
    out.set_shape(static)
    return out


def _masked_sums(fixed, moving, masks, spectra, fft_sizes, max_shift):
    """All sums but the product for any masks, by correlation."""
    fixed_values, moving_values = spectra
    (fixed_squares, fixed_ones), (moving_squares, moving_ones) = (
        tf.split(spectral.spectrum(tf.concat([_squares(side), mask], axis=-1), fft_sizes), 2, axis=1)
        for side, mask in zip((fixed, moving), masks)
    )
    products = [
        tf.math.conj(fixed_ones) * moving_ones,
        tf.math.conj(fixed_values) * moving_ones,
        tf.math.conj(fixed_ones) * moving_values,
        tf.math.conj(fixed_squares) * moving_ones,
        tf.math.conj(fixed_ones) * moving_squares,
    ]
    windows = spectral.inverse_window(tf.concat(products, axis=1), fft_sizes, max_shift)
    channels = fixed.shape[-1]
    count, *sums = tf.split(windows, [1, channels, channels, 1, 1], axis=1)
    return [tf.round(count), *sums]


def _squares(values):
    return tf.reduce_sum(tf.square(values), axis=-1, keepdims=True)


def _with_squares(values):
    return tf.concat([values, _squares(values)], axis=-1)


def _centered(values, mask):
    """Values minus their mean on the mask, 0 elsewhere, and the mean `(batch, 1, …, channels)`.

    The largest value is taken out first, so that what is left of a constant is exactly 0.
    """
    axes = list(range(1, values.shape.rank - 1))
    largest = tf.reduce_max(tf.where(mask > 0, values, values.dtype.min), axis=axes, keepdims=True)
    largest = tf.where(largest > values.dtype.min, largest, 0.0)
    values = (values - largest) * mask
    count = tf.maximum(tf.reduce_sum(mask, axis=axes, keepdims=True), 1.0)
    mean = tf.reduce_sum(values, axis=axes, keepdims=True) / count
    return (values - mean) * mask, mean + largest


def has_texture(sums):
    """Whether both sides vary at all over their valid pixels, `(batch,)`: a constant cannot be registered."""
    axes = list(range(1, sums.count.shape.rank))
    return (tf.reduce_max(sums.fixed_squared, axis=axes) > 0) & (tf.reduce_max(sums.moving_squared, axis=axes) > 0)


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
    # One after the other: the product of two variances would overflow, or vanish, long before they do.
    for variance in (fixed_variance, moving_variance):
        covariance *= tf.math.rsqrt(tf.where(flat, 1.0, variance))
    return tf.where(flat, 0.0, tf.clip_by_value(covariance, -1.0, 1.0))


def _is_rounding(variance):
    return variance <= 1e-5 * tf.reduce_max(variance, axis=list(range(1, variance.shape.rank)), keepdims=True)


def cc_map(sums, channels):
    """Covariance: the mean over the overlap and channels of the product of mean-subtracted values."""
    covariance, _, _ = _covariances(sums)
    return covariance / (tf.maximum(sums.count, 1.0) * channels)


def mse_map(sums, channels):
    """Minus the mean squared difference over the overlap and channels."""
    squared = sums.fixed_squared - 2.0 * sums.product + sums.moving_squared
    squared += _over_channels(sums.offset * (2.0 * (sums.fixed - sums.moving) + sums.offset * sums.count))
    return -tf.maximum(squared, 0.0) / (tf.maximum(sums.count, 1.0) * channels)
