"""Filters of signals, images and volumes `(batch, *spatial, channels)`, each channel by itself; they compile under XLA.

Borders are mirrored about the outer edge of the last pixel (d c b a | a b c d | d c b a), as SciPy does by default.
"""

import itertools

import numpy as np
import tensorflow as tf
from scipy import signal

from tfalign import _checks
from tfalign.ops import geometry

INTERPOLATIONS = ("linear", "nearest")


def median(values, *, size=3):
    """The median over a box of pixels.

    Every window is held at once: memory grows with `size ** rank`, so keep windows small (3 to 5).

    Args:
        values: `(batch, *spatial, channels)`, any range.
        size: odd pixels, one number or one per axis.

    Returns:
        `values` filtered, float32 or float64.

    Raises:
        TypeError, ValueError: `size` is no odd number.
    """
    values = _checks.floating(values, "values")
    rank = _checks.spatial_rank("values", values)
    sizes = odd_sizes("size", size, rank)
    padded = values
    for axis, width in enumerate(sizes, start=1):
        padded = _mirror(padded, axis, width // 2)
    shape = geometry.spatial_shape(values)
    window = [
        tf.slice(padded, [0, *corner, 0], [-1, *shape, -1]) for corner in itertools.product(*(range(w) for w in sizes))
    ]
    middle = tf.sort(tf.stack(window, axis=-1), axis=-1)[..., len(window) // 2]
    return _with_shape_of(middle, values)


def gaussian(values, *, sigma):
    """Smooths by a Gaussian, cut at 4 standard deviations.

    Args:
        values: `(batch, *spatial, channels)`, any range.
        sigma: standard deviation in pixels, one number or one per axis; 0 leaves an axis as it is.

    Returns:
        `values` filtered, float32 or float64.

    Raises:
        TypeError, ValueError: `sigma` is no number >= 0.
    """
    values = _checks.floating(values, "values")
    rank = _checks.spatial_rank("values", values)
    for axis, width in enumerate(_per_axis("sigma", sigma, rank), start=1):
        radius = int(4.0 * width + 0.5)
        if radius:
            kernel = np.exp(-0.5 * np.square(np.arange(-radius, radius + 1) / width))
            values = _convolve(values, axis, kernel / kernel.sum())
    return values


def band_pass(values, *, low=None, high=None, sampling_rate=1.0, taps=101):
    """Keeps a band of frequencies of a signal, without delay: a symmetric filter leaves every event where it is.

    A finite impulse response by the window method (Hamming); it falls off over about `3.3 * sampling_rate / taps`.

    Args:
        values: `(batch, samples, channels)`, any range.
        low, high: edges of the band, in the unit of `sampling_rate`, where the gain is one half; None leaves that side
            open. Without `low` the mean stays, with it the mean goes.
        sampling_rate: samples per unit of time; by default edges are in cycles per sample.
        taps: odd length of the filter, samples.

    Returns:
        `values` filtered, float32 or float64.

    Raises:
        TypeError, ValueError: no signal, no edge, or edges out of order or beyond half the sampling rate.
    """
    values = _checks.floating(values, "values")
    if _checks.spatial_rank("values", values) != 1:
        received = {"values.shape": _checks.shape_of(values)}
        raise ValueError(_checks.message("`values` must be signals (batch, samples, channels).", received))
    return _convolve(values, 1, band_pass_kernel(low=low, high=high, sampling_rate=sampling_rate, taps=taps))


def band_pass_kernel(*, low, high, sampling_rate, taps):
    """The impulse response `(taps,)` of `band_pass`, float64."""
    (taps,) = odd_sizes("taps", taps, 1)
    rate = _checks.number("sampling_rate", sampling_rate)
    edges = [_checks.number(name, edge) for name, edge in (("low", low), ("high", high)) if edge is not None]
    inside = all(0.0 < edge < rate / 2 for edge in edges)
    if not edges or not inside or edges != sorted(set(edges)):
        raise ValueError(
            _checks.message(
                "`low` and `high` must satisfy 0 < low < high < sampling_rate / 2, and one of them must be given.",
                {"low": low, "high": high, "sampling_rate": sampling_rate},
                "Give the sampling rate in the unit of the edges.",
            )
        )
    return signal.firwin(taps, edges, pass_zero=low is None, fs=rate)


def resample(values, *, step, output_shape, interpolation="linear"):
    """Reads a grid at other spacing: output index i lies at `(i - size_out // 2) * step + size_in // 2`.

    So both grids share their centre pixel, whatever their sizes, and grids of one centre keep it when each is resampled
    by the same step; `1 / step` and the old sizes lead back. Where `step` > 1, "linear" averages over the pixels that
    an output pixel stands for (a triangle of that half-width), which keeps aliases out. Beyond the border its value
    holds. A non-finite value touches only the pixels that read it.

    Args:
        values: `(batch, *spatial, channels)`, any range. Integers keep their type with "nearest".
        step: pixels of `values` per pixel of the output, > 0, one number (or scalar tensor) per axis.
        output_shape: sizes, one per axis, numbers or scalar tensors.
        interpolation: "linear", or "nearest" (ties go up; for class maps).

    Returns:
        `(batch, *output_shape, channels)`.
    """
    _checks.choice("interpolation", interpolation, INTERPOLATIONS)
    values = _checks.floating(values, "values") if interpolation == "linear" else tf.convert_to_tensor(values)
    for axis, (spacing, size) in enumerate(zip(step, output_shape), start=1):
        values = _resample_axis(values, axis, tf.cast(spacing, tf.float64), size, interpolation)
    static = [size if isinstance(size, int) else None for size in output_shape]
    values.set_shape([values.shape[0], *static, values.shape[-1]])
    return values


def _resample_axis(values, axis, step, size, interpolation):
    """One axis of `resample`. Coordinates are float64: float32 loses whole samples of a long signal."""
    last = geometry.spatial_shape(values)[axis - 1] - 1
    index = tf.cast(tf.range(size) - size // 2, tf.float64)
    at = index * step + tf.cast((last + 1) // 2, tf.float64)
    at = tf.clip_by_value(at, 0.0, tf.cast(last, tf.float64))
    if interpolation == "nearest":
        return tf.gather(values, tf.cast(tf.floor(at + 0.5), tf.int32), axis=axis)
    half_width = tf.maximum(step, 1.0)
    reach = tf.cast(tf.math.ceil(half_width), tf.int32)
    tap = tf.cast(tf.floor(at), tf.int32)[:, tf.newaxis] + tf.range(1 - reach, reach + 1)
    weight = tf.nn.relu(1.0 - tf.abs(tf.cast(tap, tf.float64) - at[:, tf.newaxis]) / half_width)
    weight = tf.where((tap >= 0) & (tap <= last), weight, 0.0)
    weight = tf.cast(weight / tf.reduce_sum(weight, axis=1, keepdims=True), values.dtype)
    weight = tf.reshape(weight, tf.concat([tf.shape(weight), [1] * (values.shape.rank - axis - 1)], axis=0))
    taken = tf.gather(values, tf.clip_by_value(tap, 0, last), axis=axis)
    # A neighbour of weight 0 may be NaN: it must not reach the sum.
    return tf.reduce_sum(tf.where(weight > 0, taken, 0.0) * weight, axis=axis + 1)


def odd_sizes(name, value, rank):
    """Odd numbers of pixels, one for each of `rank` axes."""
    sizes = _checks.pixels_per_axis(name, value, rank)
    if any(size % 2 == 0 for size in sizes):
        raise ValueError(_checks.message(f"`{name}` must be odd.", {name: value}, "An even window has no middle."))
    return sizes


def _per_axis(name, value, rank):
    """Numbers >= 0, one for each of `rank` axes."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * rank
    if len(values) != rank:
        raise ValueError(_checks.message(f"`{name}` must be one number or one for each of {rank} axes.", {name: value}))
    return [_checks.number(name, item, at_least=0.0) for item in values]


def _convolve(values, axis, kernel):
    """Convolves one axis with a symmetric kernel of odd length, the border mirrored."""
    padded = tf.experimental.numpy.moveaxis(_mirror(values, axis, len(kernel) // 2), axis, -1)
    shape = tf.shape(padded)
    lines = tf.reshape(padded, [-1, shape[-1], 1])
    taps = tf.constant(kernel[:, np.newaxis, np.newaxis], values.dtype)
    filtered = tf.reshape(tf.nn.conv1d(lines, taps, stride=1, padding="VALID"), tf.concat([shape[:-1], [-1]], axis=0))
    return _with_shape_of(tf.experimental.numpy.moveaxis(filtered, -1, axis), values)


def _mirror(values, axis, width):
    """`values` with `width` more pixels at both ends of an axis; a gather, since `tf.pad` stops at the axis' length."""
    size = geometry.spatial_shape(values)[axis - 1]
    index = tf.range(-width, size + width) % (2 * size)
    return tf.gather(values, tf.minimum(index, 2 * size - 1 - index), axis=axis)


def _with_shape_of(tensor, values):
    """`tensor` with the static shape of `values`, which the ops between have lost."""
    tensor.set_shape(values.shape)
    return tensor
