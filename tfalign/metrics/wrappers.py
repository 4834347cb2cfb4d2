"""Any Keras metric of dense predictions: in place, or after registration."""

import keras
import tensorflow as tf

from tfalign import _checks, _keras
from tfalign.metrics import pairs
from tfalign.metrics.base import DenseMetric

_ACCURACIES = ("accuracy", "acc")


class _Wrapper(DenseMetric):
    """A metric inside: what it is given, and how it is saved."""

    def __init__(self, metric, *, spatial, prefix, label_extras, ignore_class, name, dtype):
        inner = _resolved(metric, bool(spatial), dtype)
        super().__init__(
            label_extras=label_extras,
            ignore_class=ignore_class,
            name=name or f"{prefix}_{inner.name}",
            dtype=dtype,
            direction=_keras.direction_of(inner),
        )
        self.metric = inner
        self.spatial = bool(spatial)
        self._source = None if inner is metric else metric

    def add(self, pair, sample_weight):
        """Hands a `Pair` on to the metric inside."""
        if isinstance(self.metric, DenseMetric):
            self.metric.add(pair, sample_weight)
        elif self.spatial:
            inside = pair.weight[..., tf.newaxis]
            known = tf.reduce_any(pair.weight > 0.0, axis=list(range(1, pair.weight.shape.rank)))
            self.metric.update_state(
                pair.label * inside,
                pair.prediction * inside,
                sample_weight=sample_weight * tf.cast(known, sample_weight.dtype),
            )
        else:
            label, prediction = (tf.reshape(values, [-1, values.shape[-1]]) for values in (pair.label, pair.prediction))
            weight = pair.weight * tf.reshape(sample_weight, [-1] + [1] * (pair.weight.shape.rank - 1))
            if tf.as_dtype(self.metric.dtype).is_integer:
                # Keras would cut off what rounding took from a 1.
                weight = tf.cast(tf.round(weight), self.metric.dtype)
            self.metric.update_state(label, prediction, sample_weight=tf.reshape(weight, [-1]))

    def result(self):
        """What the metric inside makes of all batches so far."""
        return self.metric.result()

    def reset_state(self):
        """Starts anew."""
        self.metric.reset_state()

    def get_config(self):
        """The arguments of the constructor."""
        metric = self.metric if self._source is None else self._source
        if not isinstance(metric, str):
            metric = keras.saving.serialize_keras_object(metric)
        return {**super().get_config(), "metric": metric, "spatial": self.spatial}

    @classmethod
    def from_config(cls, config):
        """The metric that `get_config` describes."""
        config = dict(config)
        if not isinstance(config["metric"], str):
            config["metric"] = keras.saving.deserialize_keras_object(config["metric"])
        return cls(**config)


@keras.saving.register_keras_serializable(package="tfalign")
class InPlace(_Wrapper):
    """A Keras metric at the coordinates as they are: nothing is aligned before it is scored.

    The aligned loss, and so `val_loss`, cannot see a network that sits beside its input; this can. Let `EarlyStopping`
    and `ModelCheckpoint` watch it: `monitor="val_in_place_mae", mode="min"`.

    Where label and prediction differ in size the larger is cut to the smaller around their common centre, on each axis
    by itself. Label pixels that are non-finite, of `ignore_class`, or of "mask" 0 are left out; the others are given to
    the metric as rows `(pixels, channels)`, with a weight each, so that a mean is one over all pixels that count, and
    metrics that know no pictures (`R2Score`, `F1Score`, `AUC(multi_label=True)`) work too. A metric that counts in
    integers, as the `MeanIoU` of Keras 3 does unless told `dtype="float32"`, rounds weights to whole numbers.

    Args:
        metric: the name of a Keras metric, a Keras metric, a function of `(y_true, y_pred)` with a value for each row,
            or a metric of this module. "accuracy" is binary, categorical or of class numbers as the channels say. A
            function must be registered with Keras to be saved.
        spatial: the metric looks at whole pictures (a structural similarity, a Dice per picture): it is given the grids
            `(batch, *spatial, channels)`, both times the weights of the pixels. A function then gives one value for
            each picture, or one for all, in which case it is called for each.
        label_extras: names, in order, of channels appended to the label: "mask" (weights, 0 to 1), "anchor".
        ignore_class: label pixels of this value do not count.
        name: by default "in_place_" and that of the metric.
        dtype: of the results.

    Raises:
        TypeError, ValueError: an option, or at the first batch a shape, does not fit.

    Example:
        >>> model.compile("adam", loss=tfalign.ShiftInvariantLoss(), metrics=[tfalign.metrics.InPlace("mae")])
    """

    def __init__(self, metric, *, spatial=False, label_extras=(), ignore_class=None, name=None, dtype=None):
        super().__init__(
            metric,
            spatial=spatial,
            prefix="in_place",
            label_extras=label_extras,
            ignore_class=ignore_class,
            name=name,
            dtype=dtype,
        )


@keras.saving.register_keras_serializable(package="tfalign")
class ShiftInvariant(_Wrapper):
    """A Keras metric after each label was registered to its prediction: what is left once misalignment is taken out.

    Beside `InPlace` it tells drift and misaligned labels from a bad network: good here and bad in place. On labels that
    lie right it flatters the network: each sample takes the place that suits it best.

    Labels move onto the prediction's grid by whole pixels, or as `subpixel` or a bound on more than shifts asks by
    splines; class numbers are read from the nearest pixel. Only the overlap counts.

    Args:
        metric, spatial, label_extras, ignore_class, dtype: see `InPlace`. Labels whose "anchor" is 1 are not moved.
        max_shift: int >= 0, or one per spatial axis, pixels.
        subpixel: move by fractions of a pixel too.
        min_confidence: a label whose place is known with a lower probability stays where it is.
        name: by default "shift_invariant_" and that of the metric.
        search: other options of `tfalign.register`: `max_rotation`, `max_scale`, `max_shear`, `similarity`,
            `min_overlap`, `pool`; and `activation`, "sigmoid" or "softmax", which makes probabilities of predictions
            that are logits, to register them.

    Raises:
        TypeError, ValueError: an option, or at the first batch a shape, does not fit.

    Example:
        >>> model.compile("adam", loss=loss, metrics=[tfalign.metrics.ShiftInvariant("mae", max_shift=8)])
    """

    def __init__(
        self,
        metric,
        *,
        max_shift,
        subpixel=False,
        min_confidence=0.5,
        spatial=False,
        label_extras=(),
        ignore_class=None,
        name=None,
        dtype=None,
        **search,
    ):
        checked = pairs.Search.checked(max_shift=max_shift, **search)
        min_confidence = _checks.number("min_confidence", min_confidence, at_least=0.0, at_most=1.0)
        super().__init__(
            metric,
            spatial=spatial,
            prefix="shift_invariant",
            label_extras=label_extras,
            ignore_class=ignore_class,
            name=name,
            dtype=dtype,
        )
        self.search = checked
        self.subpixel = bool(subpixel)
        self.min_confidence = min_confidence

    def _laid(self, pair):
        return pairs.aligned(pair, self.search, subpixel=self.subpixel, min_confidence=self.min_confidence)

    def get_config(self):
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            **self.search._asdict(),
            "subpixel": self.subpixel,
            "min_confidence": self.min_confidence,
        }


def _resolved(metric, spatial, dtype):
    """A Keras metric of what a user may name one by."""
    if isinstance(metric, keras.metrics.Metric):
        return metric
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", None)
    function = metric
    if isinstance(metric, str):
        function = _accuracy if metric in _ACCURACIES else keras.metrics.get(metric)
        if isinstance(function, keras.metrics.Metric):
            # Keras 3 makes an instance with a long name of its own.
            return type(function).from_config({**function.get_config(), "name": name, **_given(dtype)})
    if isinstance(function, type) or not callable(function):
        raise TypeError(
            _checks.message(
                "`metric` must be the name of a Keras metric, a Keras metric, or a function of (y_true, y_pred).",
                {"metric": metric},
            )
        )
    values = _of_pictures(function) if spatial else _of_rows(function)
    return keras.metrics.MeanMetricWrapper(values, name=name, **_given(dtype))


def _given(dtype):
    return {} if dtype is None else {"dtype": dtype}


def _accuracy(y_true, y_pred):
    """As Keras chooses in `compile`: by the channels."""
    if y_pred.shape[-1] == 1:
        return keras.metrics.binary_accuracy(y_true, y_pred)
    if y_true.shape[-1] == 1:
        return keras.metrics.sparse_categorical_accuracy(y_true, y_pred)
    return keras.metrics.categorical_accuracy(y_true, y_pred)


def _of_rows(function):
    """`function`, which must give a value for each row."""

    def values(y_true, y_pred):
        found = function(y_true, y_pred)
        if found.shape.rank == 0:
            raise ValueError(
                _checks.message(
                    "`metric` must give one value for each row (pixel) that it is given.",
                    {"metric": function, "its shape": _checks.shape_of(found)},
                    "Give spatial=True if it is to see whole pictures.",
                )
            )
        return found

    return values


def _of_pictures(function):
    """`function`, one value for each picture: it is called for each if it gives one for all."""

    def values(y_true, y_pred):
        found = function(y_true, y_pred)
        if found.shape.rank == 0:
            found = tf.map_fn(
                lambda one: function(one[0][tf.newaxis], one[1][tf.newaxis]),
                (y_true, y_pred),
                fn_output_signature=tf.TensorSpec([], found.dtype),
            )
        if found.shape.rank != 1:
            raise ValueError(
                _checks.message(
                    "`metric` must give one value for each picture, or one for all.",
                    {"metric": function, "its shape": _checks.shape_of(found)},
                    "Leave spatial=False if it has a value for each pixel.",
                )
            )
        return found

    return values
