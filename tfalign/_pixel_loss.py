"""The base loss, pixel by pixel: what it takes, and its mean over the overlap of a prediction and its moved label."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from tfalign import _checks
from tfalign.ops import geometry, registration, resample, spline


class PixelLoss(NamedTuple):
    """The loss per pixel, and how its inputs compare.

    Attributes:
        call: `(y_true, y_pred)` -> one value per pixel.
        is_sparse: labels are class ids.
        ignore_class: the id of pixels that do not count.
        activation: makes probabilities of predictions that are logits.
        similarity: the measure of `tfalign.register` that is minus its mean over the overlap, where there is one.
        is_binary: each channel is a probability of its own.
    """

    call: Callable
    is_sparse: bool = False
    ignore_class: int | None = None
    activation: Callable | None = None
    similarity: str | None = None
    is_binary: bool = False

    @classmethod
    def resolved(cls, base, ignore_class=None):
        if not (isinstance(base, (str, keras.losses.Loss)) or callable(base)) or isinstance(base, type):
            raise TypeError(
                _checks.message(
                    "`base` must be the name of a Keras loss, a Keras loss, or a callable of (y_true, y_pred).",
                    {"base": base},
                )
            )
        function = keras.losses.get(base) if isinstance(base, str) else base
        if not isinstance(function, keras.losses.Loss):
            return cls(
                call=function,
                ignore_class=ignore_class,
                is_sparse=function is keras.losses.sparse_categorical_crossentropy,
                similarity=next((name for known, name in _EXACT_FUNCTIONS if known is function), None),
                is_binary=function is keras.losses.binary_crossentropy,
            )
        config, activation = function.get_config(), None
        if config.get("from_logits"):
            binary = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)
            activation = tf.sigmoid if isinstance(function, binary) else tf.nn.softmax
        return cls(
            call=function.call,
            is_sparse=isinstance(function, keras.losses.SparseCategoricalCrossentropy),
            ignore_class=config.get("ignore_class") if ignore_class is None else ignore_class,
            activation=activation,
            similarity=None if config.get("label_smoothing") else _EXACT_CLASSES.get(type(function)),
            is_binary=isinstance(function, keras.losses.BinaryCrossentropy),
        )


_EXACT_FUNCTIONS = (  # not a dict: a user's callable need not be hashable
    (keras.losses.mean_absolute_error, "mae"),
    (keras.losses.mean_squared_error, "mse"),
    (keras.losses.binary_crossentropy, "cross_entropy"),
    (keras.losses.categorical_crossentropy, "cross_entropy"),
    (keras.losses.sparse_categorical_crossentropy, "cross_entropy"),
)
_EXACT_CLASSES = {
    keras.losses.MeanAbsoluteError: "mae",
    keras.losses.MeanSquaredError: "mse",
    keras.losses.BinaryCrossentropy: "cross_entropy",
    keras.losses.CategoricalCrossentropy: "cross_entropy",
    keras.losses.SparseCategoricalCrossentropy: "cross_entropy",
}


def paired(y_true, y_pred, base):
    """The finite label, the mask `(batch, *spatial, 1)` of its valid pixels, and the prediction."""
    prediction = _checks.floating(y_pred, "y_pred")
    label = tf.cast(_checks.floating(y_true, "y_true"), prediction.dtype)
    _checks.spatial_rank("y_pred", prediction)
    if label.shape.rank == prediction.shape.rank - 1:
        label = label[..., tf.newaxis]
    channels = 1 if base.is_sparse else prediction.shape[-1]
    if base.ignore_class is not None and channels != 1:
        raise ValueError(
            _checks.message(
                "`ignore_class` needs labels of one channel.",
                {"ignore_class": base.ignore_class, "y_pred.shape": _checks.shape_of(prediction)},
                "Set the pixels that do not count to NaN.",
            )
        )
    if not label.shape.is_compatible_with([None] * (prediction.shape.rank - 1) + [channels]):
        raise ValueError(
            _checks.message(
                "`y_true` must have the rank of `y_pred` and "
                + ("one channel of class ids." if base.is_sparse else "its channels."),
                {"y_true.shape": _checks.shape_of(label), "y_pred.shape": _checks.shape_of(prediction)},
                "Label and prediction are (batch, *spatial, channels); only the spatial sizes may differ.",
            )
        )
    if not label.shape[:1].is_compatible_with(prediction.shape[:1]):
        raise ValueError(
            _checks.message(
                "`y_true` must have as many samples as `y_pred`.",
                {"y_true.shape": _checks.shape_of(label), "y_pred.shape": _checks.shape_of(prediction)},
            )
        )
    label = tf.ensure_shape(label, [None] * (prediction.shape.rank - 1) + [channels])
    counts = None if base.ignore_class is None else tf.not_equal(label, float(base.ignore_class))
    return *registration.valid_pixels(label, counts, "y_true"), prediction


def loss_on_overlap(label, valid, prediction, moves, base, search):
    """Lays the label on the prediction, or the reverse, and averages the pixel loss where both have data: `(batch,)`.

    Args:
        label, valid, prediction: of `paired`.
        moves: `(batch, d+1, d+1)`, prediction -> label.
        base: a `PixelLoss`.
        search: a `Search`: which side moves, and whether by fractions of a pixel.
    """
    if search.moving == "label":
        compared, shape = prediction, geometry.spatial_shape(prediction)
        if not search.interpolates:
            aligned, weight = _shifted(label, valid, moves, shape)
        elif base.is_sparse:
            aligned, weight = _laid_nearest(label, valid, moves, shape)
        else:
            aligned, weight = _laid(label, valid, moves, shape)
            aligned = _inside_range(aligned, label, valid)
    else:
        everywhere, shape = tf.ones_like(prediction[..., :1]), geometry.spatial_shape(label)
        lay = _laid if search.interpolates else _shifted
        compared, weight = lay(prediction, everywhere, geometry.invert(moves), shape)
        aligned, weight = label, weight * valid
    counts = weight[..., 0] > 0.999
    pixel_loss = _compared(aligned, compared, counts, base)
    axes = list(range(1, prediction.shape.rank - 1))
    total = tf.reduce_sum(tf.where(counts, pixel_loss, 0.0), axis=axes)
    mean = total / tf.maximum(tf.reduce_sum(tf.cast(counts, total.dtype), axis=axes), 1.0)
    # Also where no label pixel counts a non-finite prediction must be seen.
    return mean + tf.reduce_sum(0.0 * prediction, axis=[*axes, prediction.shape.rank - 1])


def _shifted(values, mask, moves, shape):
    """Values and weights read through moves by whole pixels, on a grid of sizes `shape`."""
    both = tf.concat([values, mask], axis=-1)
    moved, inside = resample.shift_by_pixels(both, geometry.translation_of(moves), shape)
    return moved[..., :-1], moved[..., -1:] * inside[..., tf.newaxis]


def _laid(values, mask, moves, shape):
    """The same by any moves: values by cubic splines, weights linearly."""
    return resample.sample_masked(spline.fill_holes(values, mask), mask, moves, shape)


def _laid_nearest(values, mask, moves, shape):
    """The same for class numbers."""
    both = tf.concat([values, mask], axis=-1)
    moved, inside = resample.warp(both, moves, output_shape=shape, interpolation="nearest")
    return moved[..., :-1], moved[..., -1:] * inside[..., tf.newaxis]


def _inside_range(aligned, label, valid):
    """Splines overshoot at edges: values back inside the range of each label."""
    axes = list(range(1, label.shape.rank - 1))
    known = valid > 0.0
    highest = tf.reduce_max(tf.where(known, label, label.dtype.min), axis=axes, keepdims=True)
    lowest = tf.reduce_min(tf.where(known, label, label.dtype.max), axis=axes, keepdims=True)
    return tf.maximum(tf.minimum(aligned, highest), tf.minimum(lowest, highest))


def _compared(aligned, prediction, counts, base):
    """The loss of every pixel, `(batch, *spatial)`; where none counts it is finite, with a finite gradient."""
    if base.is_sparse:
        # A number that is no class would spoil the gradient, though it does not count.
        pixel_loss = base.call(tf.where(counts, aligned[..., 0], 0.0), prediction)
    else:
        pixel_loss = base.call(tf.where(counts[..., tf.newaxis], aligned, tf.stop_gradient(prediction)), prediction)
    expected = prediction.shape[:-1]
    if pixel_loss.shape.rank != expected.rank or not pixel_loss.shape.is_compatible_with(expected):
        raise ValueError(
            _checks.message(
                "`base` must give one value per pixel, (batch, *spatial).",
                {"its shape": _checks.shape_of(pixel_loss), "y_pred.shape": _checks.shape_of(prediction)},
                'Losses that reduce over space (Dice, Tversky) do not work as a base; use "binary_crossentropy" or so.',
            )
        )
    return pixel_loss
