"""What the metrics have in common: how they take a label and weights, and a running mean over samples."""

import keras
import tensorflow as tf

from tfalign import _keras
from tfalign._label_parts import checked_extras
from tfalign._one_output import checked_weight
from tfalign.metrics import pairs


class DenseMetric(keras.metrics.Metric):
    """A metric of dense labels and predictions; labels may have a margin, appended channels and unknown pixels.

    A subclass says how the two are laid on one grid (`_laid`), what is counted there (`add`), and the `result`.
    """

    def __init__(self, *, label_extras, ignore_class, name, dtype, direction):
        label_extras = checked_extras(label_extras)
        super().__init__(name=name, dtype=dtype)
        _keras.set_direction(self, direction)
        self.label_extras = label_extras
        self.ignore_class = ignore_class

    @_keras.without_autograph
    def update_state(self, y_true, y_pred, sample_weight=None):
        """Counts one batch.

        Args:
            y_true: labels `(batch, *spatial, channels)`, with `label_extras` as further channels; larger or smaller
                than the prediction, on the same centre.
            y_pred: predictions `(batch, *spatial, channels)`.
            sample_weight: `(batch,)` or a scalar.
        """
        pair = pairs.paired(y_true, y_pred, label_extras=self.label_extras, ignore_class=self.ignore_class)
        ones = tf.ones_like(pair.prediction[(slice(None), *[0] * (pair.prediction.shape.rank - 1))])
        if sample_weight is not None:
            weight = tf.cast(checked_weight(sample_weight), ones.dtype)
            ones *= tf.reshape(weight, [-1]) if weight.shape.rank else weight
        self.add(self._laid(pair), ones)

    def _laid(self, pair):
        """The pair as it is compared."""
        return pairs.in_place(pair)

    def add(self, pair, sample_weight):
        """Counts a `Pair` that is laid out already, with weights `(batch,)`."""
        raise NotImplementedError

    def get_config(self):
        """The arguments of the constructor."""
        return {**super().get_config(), "label_extras": list(self.label_extras), "ignore_class": self.ignore_class}


class MeanOfSamples(DenseMetric):
    """The weighted mean of one value per sample; 0 before any sample counted."""

    def __init__(self, **options):
        super().__init__(**options)
        self.total, self.count = (
            self.add_weight(name=name, shape=(), initializer="zeros") for name in ("total", "count")
        )

    def add(self, pair, sample_weight):
        """Counts the samples of a `Pair`."""
        values, counts = self._values(pair)
        weight = tf.where(counts, sample_weight, tf.zeros_like(sample_weight))
        self.total.assign_add(tf.cast(tf.reduce_sum(values * weight), self.dtype))
        self.count.assign_add(tf.cast(tf.reduce_sum(weight), self.dtype))

    def _values(self, pair):
        """`(batch,)` values, finite where the prediction is, and whether each counts."""
        raise NotImplementedError

    def result(self):
        """The mean so far."""
        return tf.math.divide_no_nan(tf.convert_to_tensor(self.total), tf.convert_to_tensor(self.count))
