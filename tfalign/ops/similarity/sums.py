"""Sums over the overlap of two grids at every shift of a window: what most measures are made of.

Each sum is a correlation of values, squares or weights (Padfield, "Masked object registration in the Fourier domain",
IEEE TIP 21(5), 2012, doi:10.1109/TIP.2011.2181402).
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfalign.ops import geometry, resample, spectral


class Grids(NamedTuple):
    """Two grids to compare, ready for a window of shifts: the moving one is cut or padded to what the window reads.

    `(batch, *spatial, channels)` finite values and `(batch, *spatial, 1)` weights in [0, 1], 0 where there is nothing.
    """

    fixed: tf.Tensor
    moving: tf.Tensor
    fixed_mask: tf.Tensor
    moving_mask: tf.Tensor
    all_valid: tf.Tensor  # whether every weight is 1, padding aside
    moving_shape: tuple  # before it was cut or padded
    max_shift: tuple[int, ...]

    @classmethod
    def windowed(cls, fixed, moving, fixed_mask, moving_mask, max_shift):
        """The grids of a registration; sizes of `fixed` and `moving` may differ."""
        window = [size + 2 * bound for size, bound in zip(geometry.spatial_shape(fixed), max_shift)]
        return cls(
            fixed=fixed,
            moving=resample.crop_or_pad(moving, window),
            fixed_mask=fixed_mask,
            moving_mask=resample.crop_or_pad(moving_mask, window),
            all_valid=(tf.reduce_min(fixed_mask) >= 1) & (tf.reduce_min(moving_mask) >= 1),
            moving_shape=tuple(geometry.spatial_shape(moving)),
            max_shift=tuple(max_shift),
        )

    @property
    def shape(self):
        """Sizes of the fixed grid."""
        return geometry.spatial_shape(self.fixed)

    @property
    def fft_sizes(self):
        """Sizes of the transforms whose wrap stays outside the window."""
        return [spectral.fast_size(size) for size in geometry.spatial_shape(self.moving)]


class OverlapSums(NamedTuple):
    """Weighted sums over the overlap at every shift, `(batch, channels or 1, *window)`, of centred values."""

    count: tf.Tensor  # (batch, 1, *window), product of the weights: pixels valid on both sides
    fixed: tf.Tensor  # (batch, channels, *window)
    moving: tf.Tensor  # (batch, channels, *window)
    fixed_squared: tf.Tensor  # (batch, 1, *window), summed over channels
    moving_squared: tf.Tensor  # (batch, 1, *window), summed over channels
    product: tf.Tensor  # (batch, 1, *window), summed over channels
    fixed_center: tf.Tensor  # (batch, channels, 1, …), what centring took from fixed
    moving_center: tf.Tensor  # the same of moving


def overlap_sums(grids):
    """The sums of a pair of `Grids`."""
    values = [spectral.channels_first(side) for side in (grids.fixed, grids.moving)]
    masks = [spectral.channels_first(side) for side in (grids.fixed_mask, grids.moving_mask)]
    # Large common offsets would cost digits.
    (fixed, fixed_center), (moving, moving_center) = (_centered(*side) for side in zip(values, masks))
    weighted = fixed * masks[0], moving * masks[1]
    spectra = [spectral.spectrum(side, grids.fft_sizes) for side in weighted]
    # Only the sum over channels is wanted: taken in frequencies, one inverse FFT serves all channels.
    product = spectral.inverse_window(
        over_channels(tf.math.conj(spectra[0]) * spectra[1]), grids.fft_sizes, grids.max_shift
    )

    def from_boxes():
        return _box_sums(fixed, moving, grids)

    def from_masks():
        return _masked_sums(fixed, moving, masks, grids, spectra)

    single = tf.cond(grids.all_valid, from_boxes, from_masks)
    return OverlapSums(*[*single, product, fixed_center, moving_center])


def _box_sums(fixed, moving, grids):
    """All sums but the product where every pixel is valid: the overlap is a box, summed axis by axis."""
    fixed_sums, moving_sums = _with_squares(fixed), _with_squares(moving)
    count = tf.ones([1] * fixed.shape.rank, tf.float64)
    axes = enumerate(zip(grids.shape, grids.moving_shape, grids.max_shift), start=2)
    # The last axis first: there one product serves all rows.
    for axis, (size, moving_size, bound) in reversed(list(axes)):
        is_known = isinstance(size, int) and isinstance(moving_size, int)
        larger, smaller = (np.maximum, np.minimum) if is_known else (tf.maximum, tf.minimum)
        shift = np.arange(-bound, bound + 1, dtype=np.int32)
        first = shift + geometry.center_offset(size, moving_size)  # the counterpart of the first fixed pixel
        begin, end = (smaller(larger(one, 0), size) for one in (-first, moving_size - first))
        count *= tf.reshape(
            tf.cast(larger(end - begin, 0), count.dtype), [-1 if one == axis else 1 for one in range(fixed.shape.rank)]
        )
        fixed_sums = _interval_sums(fixed_sums, begin, end, axis)
        moving_sums = _interval_sums(moving_sums, shift + bound, shift + bound + size, axis)
    every = tf.zeros_like(moving_sums)
    count, fixed_sums = count + every[:, :1], fixed_sums + every
    channels = fixed.shape[1]
    found = [count, fixed_sums[:, :channels], moving_sums[:, :channels]]
    found += [fixed_sums[:, channels:], moving_sums[:, channels:]]
    return [tf.cast(part, fixed.dtype) for part in found]


def _interval_sums(values, begin, end, axis):
    """Sums over `[begin, end)` of one axis, an interval for each shift: that axis becomes the shifts, float64.

    One shift only, where all have the same interval. `begin` and `end` may be tensors.
    """
    if tf.is_tensor(begin) or tf.is_tensor(end):
        at = tf.range(tf.shape(values)[axis])
        return _along(values, (at >= begin[:, np.newaxis]) & (at < end[:, np.newaxis]), axis)
    # What all intervals share is summed once.
    first, last = begin.max(), max(end.min(), begin.max())
    at = np.concatenate([np.arange(begin.min(), first), np.arange(last, end.max())])
    before = (slice(None),) * axis
    shared = tf.cast(tf.reduce_sum(values[(*before, slice(first, last))], axis, keepdims=True), tf.float64)
    if not len(at):
        return shared
    shared = tf.minimum(shared, values.dtype.max)  # an infinite sum would be no number where it is left out
    edges = tf.concat([values[(*before, slice(begin.min(), first))], values[(*before, slice(last, end.max()))]], axis)
    inside = (at >= begin[:, np.newaxis]) & (at < end[:, np.newaxis])
    return shared + _along(edges, inside, axis)


def _along(values, indicator, axis):
    """Sums over one axis with each row of `indicator` `(shifts, size)`: that axis becomes the shifts.

    In float64: a GPU would round the factors of a float32 matrix product to ten bits.
    """
    values, indicator = tf.cast(values, tf.float64), tf.cast(indicator, tf.float64)
    sizes = [-1, *(size or tf.shape(values)[one] for one, size in enumerate(values.shape[1:], start=1))]
    if axis == values.shape.rank - 1:
        summed = tf.linalg.matmul(tf.reshape(values, [-1, sizes[axis]]), indicator, transpose_b=True)
    else:
        rows = tf.reshape(values, [-1, sizes[axis], math.prod(sizes[axis + 1 :])])
        summed = tf.linalg.matmul(indicator, rows)
    return tf.reshape(summed, [*sizes[:axis], indicator.shape[0], *sizes[axis + 1 :]])


def _masked_sums(fixed, moving, masks, grids, spectra):
    """All sums but the product for any masks, by correlation."""
    fixed_values, moving_values = spectra
    (fixed_squares, fixed_ones), (moving_squares, moving_ones) = (
        tf.split(
            spectral.spectrum(tf.concat([over_channels(tf.square(side)) * mask, mask], axis=1), grids.fft_sizes), 2, 1
        )
        for side, mask in zip((fixed, moving), masks)
    )
    products = [
        tf.math.conj(fixed_ones) * moving_ones,
        tf.math.conj(fixed_values) * moving_ones,
        tf.math.conj(fixed_ones) * moving_values,
        tf.math.conj(fixed_squares) * moving_ones,
        tf.math.conj(fixed_ones) * moving_squares,
    ]
    windows = spectral.inverse_window(tf.concat(products, axis=1), grids.fft_sizes, grids.max_shift)
    channels = fixed.shape[1]
    count, *sums = tf.split(windows, [1, channels, channels, 1, 1], axis=1)
    return [exact_counts(count, *masks), *sums]


def exact_counts(counts, *masks):
    """Correlations of weights without the rounding of the FFT: whole numbers where all weights are 0 or 1."""
    is_binary = tf.reduce_all([tf.reduce_all((mask <= 0) | (mask >= 1)) for mask in masks])
    return tf.where(is_binary, tf.round(counts), tf.maximum(counts, 0.0))


def _with_squares(values):
    """`(batch, channels + 1, *spatial)`: the values, and their squares summed over the channels."""
    squares = tf.minimum(over_channels(tf.square(values)), values.dtype.max)
    return tf.concat([values, squares], axis=1)


def _centered(values, mask):
    """Values minus their weighted mean, 0 where nothing counts, and the mean `(batch, channels, 1, …)`.

    The largest value is taken out first, so that what is left of a constant is exactly 0.
    """
    axes = list(range(2, values.shape.rank))
    counts = tf.cast(mask > 0, values.dtype)
    largest = tf.reduce_max(values + (counts - 1.0) * values.dtype.max, axis=axes, keepdims=True)
    largest = tf.where(tf.reduce_any(mask > 0, axis=axes, keepdims=True), largest, 0.0)
    # Products, not `tf.where`: that is slow where it repeats channels.
    values = tf.math.multiply_no_nan(values - largest, counts)
    mean = tf.math.divide_no_nan(
        tf.reduce_sum(values * mask, axis=axes, keepdims=True), tf.reduce_sum(mask, axis=axes, keepdims=True)
    )
    return tf.math.multiply_no_nan(values - mean, counts), mean + largest


def over_channels(values):
    """The sum over channels, `(batch, 1, *window)`."""
    return tf.reduce_sum(values, axis=1, keepdims=True)


def raw_product(sums):
    """`sum(fixed * moving)` of the values as they were, over the overlap and the channels, `(batch, 1, *window)`."""
    return sums.product + over_channels(
        sums.fixed_center * sums.moving + sums.moving_center * (sums.fixed + sums.fixed_center * sums.count)
    )


def has_texture(sums):
    """Whether both sides vary at all over their valid pixels, `(batch,)`: a constant cannot be registered."""
    axes = list(range(1, sums.count.shape.rank))
    return (tf.reduce_max(sums.fixed_squared, axis=axes) > 0) & (tf.reduce_max(sums.moving_squared, axis=axes) > 0)
