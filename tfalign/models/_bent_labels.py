"""What training on bent labels asks of the compiled loss, and the labels of a batch with where they hold data."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfalign import _checks
from tfalign._label_parts import Parts, parts
from tfalign._label_search import Search, least_confidence
from tfalign._pixel_loss import PixelLoss
from tfalign.losses import ShiftInvariantLoss
from tfalign.ops import displacements, geometry, resample, spline

COUNTS = 0.999  # weight from which a pixel counts: less is rounding, or a neighbour without data


class Task(NamedTuple):
    """What the compiled loss asks for.

    Attributes:
        base: the compiled loss, or the base of a `ShiftInvariantLoss`, a `PixelLoss`.
        pixel_loss: `(y_true, y_pred)` -> one value per pixel if it can, for the warp network, of dense labels.
        search: what a compiled `ShiftInvariantLoss` searches, else None.
        extras: the names of its `label_extras`.
    """

    base: PixelLoss
    pixel_loss: Callable
    search: Search | None = None
    extras: tuple[str, ...] = ()

    @classmethod
    def of(cls, loss, warp_loss=None):
        """What a compiled loss, and a loss for the warp network, ask for."""
        if isinstance(loss, (list, tuple)) and len(loss) == 1:
            (loss,) = loss
        if isinstance(loss, (list, tuple, dict)) or loss is None:
            remedy = 'Compile with one, e.g. loss="mae".'
            raise ValueError(_checks.message("`loss` must be one loss, of one output.", {"loss": loss}, remedy))
        search, extras = None, ()
        if isinstance(loss, ShiftInvariantLoss):
            if loss.groups is not None:
                requirement = "A warp network lays all channels of a label on one field: `groups` cannot be kept apart."
                remedy = "Leave `groups` out, or train on one group of channels."
                raise ValueError(_checks.message(requirement, {"groups": loss.groups}, remedy))
            base, search, extras = loss._base, loss._search, loss.label_extras
        else:
            base = PixelLoss.resolved(loss, name="loss")
        if warp_loss is not None:
            compared = checked_warp_loss(warp_loss).call
        elif base.is_sparse:
            compared = keras.losses.CategoricalCrossentropy(from_logits=base.activation is not None).call
        else:
            compared = base.call
        return cls(base, compared, search, extras)

    def activated(self, prediction):
        """What a prediction means, in the values of dense labels."""
        return prediction if self.base.activation is None else self.base.activation(prediction)

    def moves(self, whole):
        """The transforms `(batch, d+1, d+1)` that are found; the identity without a search, or where it is not sure."""
        if self.search is None:
            return geometry.identity(tf.shape(whole.label)[0], whole.label.shape.rank - 2, whole.label.dtype)
        found = self.search.registered(whole, self.search.cropped(whole.prediction, whole.label), self.base)
        trusted = found.confidence >= least_confidence(self.search.min_confidence)
        if whole.anchored is not None:
            trusted &= ~whole.anchored
        return tf.stop_gradient(self.search.moves(found, None, trusted))


def checked_warp_loss(loss):
    """The loss of a warp network as a `PixelLoss`; it compares dense labels."""
    known = PixelLoss.resolved(loss, name="warp_loss")
    if known.is_sparse:
        requirement = "`warp_loss` must compare probabilities: the warp network sees class ids as such."
        remedy = 'Use "categorical_crossentropy", or leave it out.'
        raise ValueError(_checks.message(requirement, {"warp_loss": loss}, remedy))
    return known


class Labels(NamedTuple):
    """The labels of a batch, and where they hold data.

    Attributes:
        values: `(batch, *spatial, channels)` as given, with what was appended; 0 where there is no data.
        dense: `(batch, *spatial, prediction's channels)`: class ids as probabilities.
        valid: `(batch, *spatial, 1)`, 1.0 where there is data that counts.
        parts: of label and prediction, `Parts`.
        shape: sizes of the prediction's grid.
        is_sparse: whether `values` are class ids.
    """

    values: tf.Tensor
    dense: tf.Tensor
    valid: tf.Tensor
    parts: Parts
    shape: list
    is_sparse: bool

    @classmethod
    def of(cls, labels, prediction, task):
        """Labels `(batch, *spatial, channels)`, larger or smaller than the prediction, on the same centre."""
        found = parts(labels, prediction, task.base, task.extras)
        known = found.valid > 0.0
        values = dense = tf.where(known, found.label, 0.0)
        if task.extras:
            appended = tf.cast(labels, values.dtype)[..., -len(task.extras) :]
            values = tf.concat([values, tf.where(tf.math.is_finite(appended), appended, 0.0)], axis=-1)
        if task.base.is_sparse:
            dense = tf.one_hot(tf.cast(tf.round(dense[..., 0]), tf.int32), prediction.shape[-1], dtype=values.dtype)
        valid, shape = tf.cast(known, values.dtype), geometry.spatial_shape(prediction)
        return cls(values, dense, valid, found, shape, task.base.is_sparse)

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
        appended = label[..., tf.shape(label)[-1] - len(task.extras) :]
        values = tf.where(known, label[..., : tf.shape(label)[-1] - len(task.extras)], np.nan)
        return tf.ensure_shape(tf.concat([values, appended], axis=-1), label.shape), prediction
    held = tf.stop_gradient(prediction)
    if not task.base.is_sparse:
        label = tf.where(known, label, task.activated(held))
    elif task.base.ignore_class is not None:
        label = tf.where(known, label, float(task.base.ignore_class))
    else:
        label = tf.where(known, label, tf.cast(tf.argmax(held, axis=-1), label.dtype)[..., tf.newaxis])
    return label, tf.where(known, prediction, held)


def mean_loss(pixel_loss, label, prediction, counts, sample_weight, area=None):
    """The mean over the pixels that count, each by its `area` `(batch, *spatial)`, then over the batch, a scalar.

    A `pixel_loss` that gives no value per pixel is taken on values that are 0 where nothing counts.
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
    else:
        values = tf.cast(pixel_loss(*(tf.where(known, one, 0.0) for one in (label, prediction))), prediction.dtype)
    if sample_weight is not None:
        values *= tf.cast(sample_weight, values.dtype)
    return tf.reduce_mean(values)
