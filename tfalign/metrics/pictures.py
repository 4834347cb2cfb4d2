"""How alike prediction and label look, in place: peak signal-to-noise ratio and structural similarity, 1-D to 3-D."""

import math

import keras
import numpy as np
import tensorflow as tf

from tfalign import _checks
from tfalign.metrics.base import MeanOfSamples
from tfalign.ops import geometry

_RESOLUTION = float(np.finfo(np.float32).eps)  # of the peak: a smaller error float32 cannot tell from none


def peak_signal_to_noise(label, prediction, weight, *, max_value):
    """`10 log10(max_value^2 / mean squared error)` of each sample, dB.

    An exact prediction gets 138 dB, the most that float32 can tell, so that one does not make a mean infinite.

    Args:
        label, prediction: `(batch, *spatial, channels)`.
        weight: `(batch, *spatial)`, how much each pixel counts.
        max_value: the range of the values.

    Returns:
        `(batch,)`; of a sample in which nothing counts it means nothing.
    """
    axes = list(range(1, weight.shape.rank))
    squares = tf.reduce_mean(tf.math.squared_difference(label, prediction), axis=-1)
    error = tf.math.divide_no_nan(tf.reduce_sum(weight * squares, axis=axes), tf.reduce_sum(weight, axis=axes))
    least = (_RESOLUTION * max_value) ** 2
    # Not a maximum: the error of a non-finite prediction must stay.
    error = tf.where(error < least, tf.cast(least, error.dtype), error)
    return (10.0 / math.log(10.0)) * (2.0 * math.log(max_value) - tf.math.log(error))


def structural_similarity(label, prediction, weight, *, max_value, filter_size, filter_sigma, k1, k2):
    """The mean of the structural similarity index over all windows of a Gaussian that hold only pixels that count.

        SSIM = (2 m_x m_y + C1) (2 s_xy + C2) / ((m_x^2 + m_y^2 + C1) (s_x^2 + s_y^2 + C2)),   Ci = (ki max_value)^2

    with the window's means m, variances s^2 and covariance s_xy. Channels are averaged; a window has the weight of its
    middle pixel.

    Args:
        label, prediction: `(batch, *spatial, channels)`, no smaller than the window.
        weight: `(batch, *spatial)`, in [0, 1].
        max_value: the range of the values.
        filter_size: pixels of the window along each axis, odd.
        filter_sigma: standard deviation of the Gaussian, pixels.
        k1, k2: as above.

    Returns:
        `(batch,)` in [-1, 1], and whether any window counts.

    Source: Wang et al. (2004), doi:10.1109/TIP.2003.819861.
    """
    rank = weight.shape.rank - 1
    counts = tf.cast(weight > 0.0, label.dtype)[..., tf.newaxis]
    # Variances lose digits under a large mean; any constant may be taken out of both.
    axes = list(range(1, rank + 1))
    center = tf.math.divide_no_nan(
        tf.reduce_sum(counts * label, axis=axes, keepdims=True), tf.reduce_sum(counts, axis=axes, keepdims=True)
    )
    x, y = label - center, prediction - center
    windows = tf.concat([x, y, x * x, y * y, x * y], axis=-1)
    kernel = np.exp(-0.5 * np.square((np.arange(filter_size) - filter_size // 2) / filter_sigma))
    for axis in axes:
        windows = _windowed(windows, axis, kernel / kernel.sum())
        counts = _windowed(counts, axis, [1.0] * filter_size)
    x, y, xx, yy, xy = tf.split(windows, 5, axis=-1)
    c1, c2 = ((k * max_value) ** 2 for k in (k1, k2))
    mean_x, mean_y = x + center, y + center
    alike = (2.0 * mean_x * mean_y + c1) * (2.0 * (xy - x * y) + c2)
    alike /= (mean_x**2 + mean_y**2 + c1) * (xx - x * x + yy - y * y + c2)
    half = filter_size // 2
    middle = tuple(slice(half, -half or None) for _ in axes)
    each = tf.where(counts[..., 0] > filter_size**rank - 0.5, weight[(slice(None), *middle)], 0.0)
    total = tf.reduce_sum(each, axis=axes)
    shown = tf.where(each > 0.0, tf.reduce_mean(alike, axis=-1), 0.0)
    return tf.math.divide_no_nan(tf.reduce_sum(each * shown, axis=axes), total), total > 0.0


def _windowed(values, axis, kernel):
    """Weighted sums over every whole window along one axis, which becomes that much shorter."""
    size = tf.maximum(tf.shape(values)[axis] - (len(kernel) - 1), 0)
    static = values.shape[axis]
    if static is not None:
        size = max(static - (len(kernel) - 1), 0)
    before = (slice(None),) * axis
    return tf.add_n([share * values[(*before, slice(lag, lag + size))] for lag, share in enumerate(kernel)])


@keras.saving.register_keras_serializable(package="tfalign")
class PSNR(MeanOfSamples):
    """Peak signal-to-noise ratio in place, dB: the mean over samples of `10 log10(max_value^2 / mse)`.

    An exact sample counts as 138 dB. Sizes that differ, unknown pixels and appended channels are as in `InPlace`.
    Callbacks of Keras 2 that watch it need `mode="max"`.

    Args:
        max_value: the range of the values: 1 of [0, 1], 255 of bytes.
        label_extras, ignore_class, dtype: see `InPlace`.
        name: as in Keras.

    Raises:
        TypeError, ValueError: an option, or at the first batch a shape, does not fit.

    Example:
        >>> model.compile("adam", loss=tfalign.ShiftInvariantLoss(), metrics=[tfalign.metrics.PSNR()])
    """

    def __init__(self, *, max_value=1.0, label_extras=(), ignore_class=None, name="psnr", dtype=None):
        max_value = _positive("max_value", max_value)
        super().__init__(label_extras=label_extras, ignore_class=ignore_class, name=name, dtype=dtype, direction="up")
        self.max_value = max_value

    def _values(self, pair):
        _check_channels(pair)
        values = peak_signal_to_noise(pair.label, pair.prediction, pair.weight, max_value=self.max_value)
        return values, tf.reduce_any(pair.weight > 0.0, axis=list(range(1, pair.weight.shape.rank)))

    def get_config(self):
        """The arguments of the constructor."""
        return {**super().get_config(), "max_value": self.max_value}


@keras.saving.register_keras_serializable(package="tfalign")
class SSIM(MeanOfSamples):
    """Structural similarity in place, at most 1: the mean over samples, of signals, pictures or volumes.

    The index of `tf.image.ssim`, and of scikit-image with `gaussian_weights=True, use_sample_covariance=False`. Windows
    with a pixel that does not count are left out. Sizes that differ and appended channels are as in `InPlace`.
    Callbacks of Keras 2 that watch it need `mode="max"`.

    Args:
        max_value: the range of the values: 1 of [0, 1], 255 of bytes.
        filter_size: pixels of the window along each axis, odd.
        filter_sigma: standard deviation of its Gaussian weights, pixels.
        k1, k2: the constants of the index.
        label_extras, ignore_class, dtype: see `InPlace`.
        name: as in Keras.

    Raises:
        TypeError, ValueError: an option, or at the first batch a shape, does not fit; a grid smaller than the window.

    Example:
        >>> model.compile("adam", loss=tfalign.ShiftInvariantLoss(), metrics=[tfalign.metrics.SSIM()])
    """

    def __init__(
        self,
        *,
        max_value=1.0,
        filter_size=11,
        filter_sigma=1.5,
        k1=0.01,
        k2=0.03,
        label_extras=(),
        ignore_class=None,
        name="ssim",
        dtype=None,
    ):
        if _checks.whole_number("filter_size", filter_size, at_least=1) % 2 == 0:
            raise ValueError(_checks.message("`filter_size` must be odd.", {"filter_size": filter_size}))
        window = {
            "max_value": _positive("max_value", max_value),
            "filter_size": int(filter_size),
            "filter_sigma": _positive("filter_sigma", filter_sigma),
            "k1": _checks.number("k1", k1, at_least=0.0),
            "k2": _checks.number("k2", k2, at_least=0.0),
        }
        super().__init__(label_extras=label_extras, ignore_class=ignore_class, name=name, dtype=dtype, direction="up")
        self._window = window

    def _values(self, pair):
        _check_channels(pair)
        size = self._window["filter_size"]
        if any(not tf.is_tensor(one) and one < size for one in geometry.spatial_shape(pair.label)):
            raise ValueError(
                _checks.message(
                    "`filter_size` must not exceed the sizes that label and prediction share.",
                    {"filter_size": size, "shape": _checks.shape_of(pair.label)},
                    "Take larger patches, or a smaller window.",
                )
            )
        return structural_similarity(pair.label, pair.prediction, pair.weight, **self._window)

    def get_config(self):
        """The arguments of the constructor."""
        return {**super().get_config(), **self._window}


def _positive(name, value):
    value = _checks.number(name, value)
    if not 0.0 < value < math.inf:
        raise ValueError(_checks.message(f"`{name}` must be > 0 and finite.", {name: value}))
    return value


def _check_channels(pair):
    if pair.label.shape[-1] != pair.prediction.shape[-1]:
        raise ValueError(
            _checks.message(
                "`y_true` must have the channels of `y_pred`.",
                {"y_true.shape": _checks.shape_of(pair.label), "y_pred.shape": _checks.shape_of(pair.prediction)},
                "Class numbers have no intensities to compare.",
            )
        )
