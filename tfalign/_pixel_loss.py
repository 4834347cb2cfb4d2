"""The base loss: what it takes, and its value for each sample of a prediction and the label laid on it."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from tfalign import _checks, _keras


class PixelLoss(NamedTuple):
    """The base loss, and how its inputs compare.

    Attributes:
        call: `(y_true, y_pred)` -> one value per pixel, per sample or, of a loss that sums over space, per batch.
        is_sparse: labels are class ids.
        ignore_class: the id of pixels that do not count.
        activation: makes probabilities of predictions that are logits.
        similarity: the measure of `tfalign.register` that is minus its mean over the overlap, where there is one.
        is_binary: each channel is a probability of its own.
        joins_channels: channels mean nothing one by one.
        wants_mean: quadratic or linear in the label, so that the mean of several labels has the gradient of all.
    """

    call: Callable
    is_sparse: bool = False
    ignore_class: int | None = None
    activation: Callable | None = None
    similarity: str | None = None
    is_binary: bool = False
    joins_channels: bool = False
    wants_mean: bool = False

    @classmethod
    def resolved(cls, base, ignore_class=None, *, name="base"):
        if ignore_class is not None:
            ignore_class = _checks.number("ignore_class", ignore_class)
        if not (isinstance(base, (str, keras.losses.Loss)) or callable(base)) or isinstance(base, type):
            raise TypeError(
                _checks.message(
                    f"`{name}` must be the name of a Keras loss, a Keras loss, or a callable of (y_true, y_pred).",
                    {name: base},
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
                joins_channels=any(function is one for one in _JOINING_FUNCTIONS),
                wants_mean=any(function is one for one in _MEAN_FUNCTIONS),
            )
        config, activation = function.get_config(), None
        if config.get("from_logits"):
            activation = tf.nn.softmax if isinstance(function, _JOINING_CLASSES) else tf.sigmoid
        return cls(
            call=function.call,
            is_sparse=isinstance(function, keras.losses.SparseCategoricalCrossentropy),
            ignore_class=config.get("ignore_class") if ignore_class is None else ignore_class,
            activation=activation,
            similarity=_similarity_of(function, config),
            is_binary=isinstance(function, keras.losses.BinaryCrossentropy),
            joins_channels=isinstance(function, _JOINING_CLASSES),
            wants_mean=type(function) in _MEAN_CLASSES,
        )


_EXACT_FUNCTIONS = (  # not a dict: a user's callable need not be hashable
    (keras.losses.mean_absolute_error, "mae"),
    (keras.losses.mean_squared_error, "mse"),
    (keras.losses.binary_crossentropy, "cross_entropy"),
    (keras.losses.categorical_crossentropy, "cross_entropy"),
    (keras.losses.sparse_categorical_crossentropy, "cross_entropy"),
    *((function, "overlap") for function in _keras.DICE_FUNCTIONS),
)
_EXACT_CLASSES = {
    keras.losses.MeanAbsoluteError: "mae",
    keras.losses.MeanSquaredError: "mse",
    keras.losses.BinaryCrossentropy: "cross_entropy",
    keras.losses.CategoricalCrossentropy: "cross_entropy",
    keras.losses.SparseCategoricalCrossentropy: "cross_entropy",
    **dict.fromkeys(_keras.DICE_CLASSES, "overlap"),
}
_MEAN_FUNCTIONS = (
    keras.losses.mean_squared_error,
    keras.losses.binary_crossentropy,
    keras.losses.categorical_crossentropy,
)
_MEAN_CLASSES = (
    keras.losses.MeanSquaredError,
    keras.losses.BinaryCrossentropy,
    keras.losses.CategoricalCrossentropy,
)
_JOINING_FUNCTIONS = (
    keras.losses.categorical_crossentropy,
    keras.losses.categorical_focal_crossentropy,
    keras.losses.sparse_categorical_crossentropy,
)
_JOINING_CLASSES = (
    keras.losses.CategoricalCrossentropy,
    keras.losses.CategoricalFocalCrossentropy,
    keras.losses.SparseCategoricalCrossentropy,
)


def _similarity_of(function, config):
    """The measure that is minus the loss, up to a constant: not if labels are smoothed, or Dice is taken by axes."""
    if config.get("label_smoothing") or (isinstance(function, _keras.DICE_CLASSES) and config.get("axis") is not None):
        return None
    return _EXACT_CLASSES.get(type(function))


def per_sample(label, prediction, weight, base):
    """The base loss of each sample, `(batch,)`: of one value per pixel the weighted mean.

    Losses that sum over space (Dice, Tversky) are taken on the values times their weights, one sample at a time. A
    sample of which no pixel counts costs 0.

    Args:
        label, prediction: `(batch, *spatial, channels)` on one grid.
        weight: `(batch, *spatial)` >= 0, 0 = the pixel does not count.
        base: a `PixelLoss`.

    Raises:
        ValueError: the base gives anything else.
    """
    counts = weight > 0.0
    if base.is_sparse:
        # A number that is no class would spoil the gradient, though it does not count.
        label = tf.where(counts, label[..., 0], 0.0)
    else:
        known = counts[..., tf.newaxis]
        # Not always: `tf.where` is slow where it repeats a mask for all channels.
        label = tf.cond(
            tf.reduce_all(counts), lambda: label, lambda: tf.where(known, label, tf.stop_gradient(prediction))
        )
    found = base.call(label, prediction)
    per_pixel, axes = prediction.shape[:-1], list(range(1, prediction.shape.rank - 1))
    if found.shape.rank == per_pixel.rank and found.shape.is_compatible_with(per_pixel):
        total = tf.reduce_sum(tf.where(counts, found * weight, 0.0), axis=axes)
        return tf.math.divide_no_nan(total, tf.reduce_sum(weight, axis=axes))
    if found.shape.rank not in (0, 1) or not found.shape.is_compatible_with(per_pixel[:1][: found.shape.rank]):
        raise ValueError(
            _checks.message(
                "`base` must give one value per pixel (batch, *spatial), per sample (batch,), or one for a batch.",
                {"its shape": _checks.shape_of(found), "y_pred.shape": _checks.shape_of(prediction)},
                "Let it keep the spatial axes, or take its mean over all but the first axis.",
            )
        )
    # Where nothing counts nothing is masked: a base need not be finite on zeros alone.
    is_any = tf.reduce_any(counts, axis=axes, keepdims=True)
    weight = tf.where(is_any, weight, 1.0)
    whole = weight[..., tf.newaxis]
    masked = label * (weight if base.is_sparse else whole), prediction * whole
    if found.shape.rank == 1:
        values = base.call(*masked)
    else:
        values = tf.map_fn(
            lambda one: tf.reshape(base.call(*(side[tf.newaxis] for side in one)), []),
            masked,
            fn_output_signature=prediction.dtype,
        )
    return tf.where(tf.reshape(is_any, [-1]), values, 0.0)
