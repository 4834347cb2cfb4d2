"""What training on bent labels asks of the compiled loss, and the labels of a batch with where they hold data."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfalign import _checks
from tfalign._label_search import least_confidence
from tfalign._pixel_loss import PixelLoss
from tfalign.losses import ShiftInvariantLoss
from tfalign.ops import displacements, geometry, registration, resample, spline

COUNTS = 0.999  # weight from which a pixel counts: less is rounding, or a neighbour without data


class Task(NamedTuple):
    """What the compiled loss asks for.

    Attributes:
        pixel_loss: `(y_true, y_pred)` -> one value per pixel if it can, for the warp network, of dense labels.
        activation: makes probabilities of predictions that are logits.
        is_sparse: labels are class ids.
        ignore_class: the id of pixels that do not count.
        search: the config of a compiled `ShiftInvariantLoss`, else None.
    """

    pixel_loss: Callable
    activation: Callable | None
    is_sparse: bool
    ignore_class: int | None
    search: dict | None

    @classmethod
    def of(cls, loss, warp_loss=None):
        """What a compiled loss, and a loss for the warp network, ask for."""
        if isinstance(loss, (list, tuple, dict)) and len(loss) == 1:
            (loss,) = loss.values() if isinstance(loss, dict) else loss
        if isinstance(loss, (list, tuple, dict)) or loss is None:
            remedy = 'Compile with one, e.g. loss="mae".'
            raise ValueError(_checks.message("`loss` must be one loss, of one output.", {"loss": loss}, remedy))
        search = loss.get_config() if isinstance(loss, ShiftInvariantLoss) else None
        base = loss.base if isinstance(loss, ShiftInvariantLoss) else loss
        base = keras.losses.get(base) if isinstance(base, str) else base
        known = PixelLoss.resolved(base, getattr(loss, "ignore_class", None))
        compared = warp_loss
        if compared is None:
            compared = keras.losses.CategoricalCrossentropy(from_logits=known.activation is not None)
            if not known.is_sparse:
                compared = base
        compared = keras.losses.get(compared) if isinstance(compared, str) else compared
        return cls(
            pixel_loss=compared.call if isinstance(compared, keras.losses.Loss) else compared,
            activation=known.activation,
            is_sparse=known.is_sparse,
            ignore_class=known.ignore_class,
            search=search,
        )

    def activated(self, prediction):
        """What a prediction means, in the values of dense labels."""
        return prediction if self.activation is None else self.activation(prediction)

    def bounds(self, prediction, label):
        """Options of `tfalign.register` and the confidence from which its result counts."""
        search, rank = self.search or {}, prediction.shape.rank - 2
        sizes, min_overlap = (prediction.shape[1:-1], label.shape[1:-1]), search.get("min_overlap", 0.5)
        max_shift = search.get("max_shift")
        if max_shift is None:
            for max_shift in range(8, -1, -1):
                overlap = registration.overlap_at_bound(*sizes, [max_shift] * rank)
                if overlap is None or overlap >= min_overlap:
                    break
        similarity = search.get("similarity", "ncc")
        options = {
            "max_shift": max_shift,
            "similarity": similarity if similarity in registration.SIMILARITIES else "ncc",
            "min_overlap": min_overlap,
            "subpixel": bool(search.get("subpixel", False)),
            **{name: search.get(name, 0.0) for name in ("max_rotation", "max_scale", "max_shear")},
        }
        return options, least_confidence(search.get("min_confidence", "auto"))


class Labels(NamedTuple):
    """The labels of a batch, and where they hold data.

    Attributes:
        values: `(batch, *spatial, channels)` as given, 0 where there is no data.
        dense: `(batch, *spatial, prediction's channels)`: class ids as probabilities.
        valid: `(batch, *spatial, 1)`, 1.0 where there is data.
        shape: sizes of the prediction's grid.
        is_sparse: whether `values` are class ids.
    """

    values: tf.Tensor
    dense: tf.Tensor
    valid: tf.Tensor
    shape: list
    is_sparse: bool

    @classmethod
    def of(cls, labels, prediction, task):
        """Labels `(batch, *spatial, channels)`, larger or smaller than the prediction, on the same centre."""
        values = tf.cast(_checks.floating(labels, "y_true"), prediction.dtype)
        if values.shape.rank == prediction.shape.rank - 1:
            values = values[..., tf.newaxis]
        channels, wanted = values.shape[-1], 1 if task.is_sparse else prediction.shape[-1]
        extras = task.search is not None and channels is not None and channels >= wanted
        if values.shape.rank != prediction.shape.rank or not (channels in (None, wanted) or extras):
            raise ValueError(
                _checks.message(
                    "`y_true` must have the rank of `y_pred` and "
                    + ("one channel of class ids." if task.is_sparse else "its channels."),
                    {"y_true.shape": _checks.shape_of(values), "y_pred.shape": _checks.shape_of(prediction)},
                )
            )
        known = tf.math.is_finite(values)
        if task.ignore_class is not None:
            known &= tf.not_equal(values, float(task.ignore_class))
        known = tf.reduce_all(known, axis=-1, keepdims=True)
        values = tf.where(known, values, 0.0)
        dense = values[..., :wanted]
        if task.is_sparse:
            dense = tf.one_hot(tf.cast(tf.round(dense[..., 0]), tf.int32), prediction.shape[-1], dtype=values.dtype)
        dense = tf.ensure_shape(dense, [None] * (prediction.shape.rank - 1) + [prediction.shape[-1]])
        shape = geometry.spatial_shape(prediction)
        return cls(values, dense, tf.cast(known, values.dtype), shape, task.is_sparse)

    def pulled(self, displacement, interpolation, *, dense=False):
        """Labels, as given or dense, on the prediction's grid, and the mask `(batch, *spatial)` of where data is.

        Gradient: exact, to the displacement; not through the mask.
        """
        values = self.dense if dense else self.values
        valid, inside = resample.warp(self.valid, displacement)
        mask = tf.cast(valid[..., 0] * inside > COUNTS, valid.dtype)
        grid = geometry.centered_grid(geometry.spatial_shape(displacement), displacement.dtype)
        coordinates = grid + displacement
        is_nearest = self.is_sparse and not dense
        if is_nearest or interpolation == "linear":
            interpolation = "nearest" if is_nearest else "linear"
            return resample.sample(values, coordinates, interpolation=interpolation)[0], mask
        filled = spline.fill_holes(values, self.valid)
        values = resample.sample_splines(spline.side_by_side(spline.coefficients(filled)), coordinates)
        # Splines overshoot at edges.
        axes = list(range(1, filled.shape.rank - 1))
        lowest, highest = (bound(filled, axis=axes, keepdims=True) for bound in (tf.reduce_min, tf.reduce_max))
        return tf.maximum(tf.minimum(values, highest), lowest), mask

    def beside(self, moves, task, *, with_margin):
        """A function that makes the inputs of a warp network from a prediction.

        They are what the prediction means, and the dense label after the move: with its margin and NaN in its holes,
        or on the prediction's grid with holes filled by the former.
        """
        shape = geometry.spatial_shape(self.values) if with_margin else self.shape
        if task.search is None:
            label, counts = self.cropped(self.dense, shape)
        else:
            label, counts = self.pulled(displacements.from_transform(moves, shape), "linear", dense=True)
        known = counts[..., tf.newaxis] > COUNTS

        def seen(prediction):
            prediction = task.activated(prediction)
            return [prediction, tf.where(known, label, np.nan if with_margin else prediction)]

        return seen

    def cropped(self, values, shape=None):
        """`values` as they lie on a grid of these sizes, by default the prediction's, and the mask."""
        shape = self.shape if shape is None else shape
        values, valid = (resample.crop_or_pad(one, shape) for one in (values, self.valid))
        return values, valid[..., 0]


def where_known(label, prediction, known, task):
    """Label and prediction for the compiled loss: pixels that are not known have no gradient to either."""
    known = known[..., tf.newaxis]
    if task.search is not None:
        return tf.where(known, label, np.nan), prediction
    held = tf.stop_gradient(prediction)
    if task.is_sparse:
        label = tf.where(known, label, 0.0 if task.ignore_class is None else float(task.ignore_class))
    elif task.activation is None:
        label = tf.where(known, label, held)
    else:
        label = tf.where(known, label, task.activated(held))
    return label, tf.where(known, prediction, held)


def mean_loss(pixel_loss, label, prediction, counts, sample_weight, area=None):
    """The mean over the pixels that count, each by its `area` `(batch, *spatial)`, then over the batch, a scalar.

    A `pixel_loss` that gives no value per pixel is taken as it is.
    """
    counts = counts > COUNTS
    known = counts[..., tf.newaxis]
    label = tf.where(known, label, tf.stop_gradient(label))
    values = tf.cast(pixel_loss(label, tf.where(known, prediction, tf.stop_gradient(prediction))), prediction.dtype)
    if values.shape.rank == prediction.shape.rank - 1:
        axes = list(range(1, values.shape.rank))
        area = tf.cast(counts, values.dtype) * (1.0 if area is None else tf.cast(area, values.dtype))
        total = tf.reduce_sum(tf.where(counts, values, 0.0) * area, axis=axes)
        values = total / tf.maximum(tf.reduce_sum(area, axis=axes), 1.0)
        if sample_weight is not None:
            values *= tf.cast(sample_weight, values.dtype)
    return tf.reduce_mean(values)
