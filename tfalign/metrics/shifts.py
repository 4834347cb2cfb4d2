"""What registration finds between labels and predictions, as metrics."""

import keras
import numpy as np
import tensorflow as tf

from tfalign import _checks
from tfalign.metrics import pairs
from tfalign.metrics.base import MeanOfSamples


class _ShiftMetric(MeanOfSamples):
    """The mean of something that is known of each registered label."""

    def __init__(self, *, search, **options):
        super().__init__(**options)
        self.search = search

    def _laid(self, pair):
        """As it lies: registration takes label and prediction of any sizes."""
        return pair

    def get_config(self):
        """The arguments of the constructor."""
        return {**super().get_config(), **self.search._asdict()}


@keras.saving.register_keras_serializable(package="tfalign")
class MeanShift(_ShiftMetric):
    """How far labels lie from their predictions, pixels: the mean length of the shifts, or their mean along one axis.

    The mean along an axis is what all labels have in common: the drift of the network, where the true shifts average
    to zero. A positive one says that labels lie further down/right than the predictions. The mean length is what is
    wrong with the labels, and drift on top.

    Args:
        max_shift: int >= 0, or one per spatial axis, pixels.
        axis: the spatial axis of a signed mean, 0 for rows of a picture; None for the mean length.
        min_confidence: labels whose shift is known with a lower probability do not count.
        label_extras, ignore_class, dtype: see `InPlace`.
        name: by default "mean_shift", with the number of the axis if there is one.
        search: other options of `tfalign.register`, see `ShiftInvariant`.

    Raises:
        TypeError, ValueError: an option, or at the first batch a shape, does not fit.

    Example:
        >>> model.compile("adam", loss=loss, metrics=[tfalign.metrics.MeanShift(max_shift=8, axis=0)])
    """

    def __init__(
        self,
        *,
        max_shift,
        axis=None,
        min_confidence=0.5,
        label_extras=(),
        ignore_class=None,
        name=None,
        dtype=None,
        **search,
    ):
        _checks.choice("axis", axis, (None, 0, 1, 2))
        min_confidence = _checks.number("min_confidence", min_confidence, at_least=0.0, at_most=1.0)
        super().__init__(
            search=pairs.Search.checked(max_shift=max_shift, **search),
            label_extras=label_extras,
            ignore_class=ignore_class,
            name=name or ("mean_shift" if axis is None else f"mean_shift_{axis}"),
            dtype=dtype,
            direction="down" if axis is None else None,
        )
        self.axis = axis
        self.min_confidence = min_confidence

    def _values(self, pair):
        found = pairs.registered(pair, self.search, subpixel=True)
        rank = found.translation.shape[-1]
        if self.axis is not None and self.axis >= rank:
            raise ValueError(
                _checks.message(
                    f"`axis` must be one of the {rank} spatial axes.",
                    {"axis": self.axis, "y_pred.shape": _checks.shape_of(pair.prediction)},
                )
            )
        length = tf.norm(found.translation, axis=-1) if self.axis is None else found.translation[:, self.axis]
        return length, (found.confidence >= self.min_confidence) & (found.confidence > 0.0)

    def get_config(self):
        """The arguments of the constructor."""
        return {**super().get_config(), "axis": self.axis, "min_confidence": self.min_confidence}


@keras.saving.register_keras_serializable(package="tfalign")
class ShiftAtBound(_ShiftMetric):
    """The share of labels whose best shift lies on the bound of the search, in [0, 1].

    Few should: such a label may lie further away than `max_shift`, or show nothing that the prediction shows. If many
    do, raise `max_shift`. Labels without anything to register by (blank, empty) do not count.

    Args:
        max_shift: int >= 0, or one per spatial axis, pixels.
        label_extras, ignore_class, dtype: see `InPlace`.
        name: as in Keras.
        search: other options of `tfalign.register`, see `ShiftInvariant`.

    Raises:
        TypeError, ValueError: an option, or at the first batch a shape, does not fit.

    Example:
        >>> model.compile("adam", loss=loss, metrics=[tfalign.metrics.ShiftAtBound(max_shift=8)])
    """

    def __init__(self, *, max_shift, label_extras=(), ignore_class=None, name="shift_at_bound", dtype=None, **search):
        super().__init__(
            search=pairs.Search.checked(max_shift=max_shift, **search),
            label_extras=label_extras,
            ignore_class=ignore_class,
            name=name,
            dtype=dtype,
            direction="down",
        )

    def _values(self, pair):
        found = pairs.registered(pair, self.search, subpixel=False)
        values = is_at_bound(found.translation, self.search.bounds(found.translation.shape[-1]))
        return tf.cast(values, found.translation.dtype), found.confidence > 0.0


def is_at_bound(translation, bounds):
    """Whether shifts `(batch, d)` reach the bound of an axis that is searched, within half a pixel: `(batch,)`."""
    limits = np.array([bound - 0.5 if bound else np.inf for bound in bounds])
    return tf.reduce_any(tf.abs(translation) > tf.constant(limits, translation.dtype), axis=-1)
