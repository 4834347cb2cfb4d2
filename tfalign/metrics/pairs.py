"""A label and its prediction on the grid that they share: as they lie, or after registration. Pure functions."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfalign import _checks, _label_parts
from tfalign._pixel_loss import PixelLoss
from tfalign.ops import geometry, registration, resample

_ACTIVATIONS = {"sigmoid": tf.sigmoid, "softmax": tf.nn.softmax}


class Pair(NamedTuple):
    """A label and what it is compared with.

    Attributes:
        label: `(batch, *spatial, channels)`, finite: 0 where it does not count.
        weight: `(batch, *spatial)` in [0, 1], how much each label pixel counts.
        prediction: `(batch, *spatial, channels)`; the sizes may differ from those of the label.
        is_anchored: `(batch,)` booleans, labels that are known to lie right.
    """

    label: tf.Tensor
    weight: tf.Tensor
    prediction: tf.Tensor
    is_anchored: tf.Tensor

    @property
    def is_sparse(self):
        """Whether the label holds class numbers."""
        return self.label.shape[-1] == 1 < self.prediction.shape[-1]


class Search(NamedTuple):
    """What a registered metric searches: options of `tfalign.register`.

    `activation` ("sigmoid", "softmax" or None) makes probabilities of predictions that are logits, to register them.
    """

    max_shift: int | tuple[int, ...]
    max_rotation: float = 0.0
    max_scale: float = 0.0
    max_shear: float = 0.0
    similarity: str = "ncc"
    min_overlap: float = 0.5
    pool: str | None = None
    activation: str | None = None

    @classmethod
    def checked(cls, **options):
        """The options, each inside its range; raises `TypeError` or `ValueError`."""
        search = cls(**options)
        several = search.max_shift if isinstance(search.max_shift, (list, tuple)) else None
        bounds = _checks.pixels_per_axis("max_shift", search.max_shift, 1 if several is None else len(several))
        return search._replace(
            max_shift=bounds[0] if several is None else bounds,
            max_rotation=_checks.number("max_rotation", search.max_rotation, at_least=0.0, at_most=180.0),
            max_scale=_checks.number("max_scale", search.max_scale, at_least=0.0),
            max_shear=_checks.number("max_shear", search.max_shear, at_least=0.0, at_most=45.0),
            similarity=_checks.choice("similarity", search.similarity, registration.SIMILARITIES),
            min_overlap=_checks.number("min_overlap", search.min_overlap, at_least=0.0, at_most=1.0),
            pool=_checks.choice("pool", search.pool, (None, "batch")),
            activation=_checks.choice("activation", search.activation, (None, *_ACTIVATIONS)),
        )

    @property
    def turns(self):
        """Whether more than shifts is searched."""
        return max(self.max_rotation, self.max_scale, self.max_shear) > 0.0

    def bounds(self, rank):
        """Pixels searched along each of `rank` axes."""
        return _checks.pixels_per_axis("max_shift", self.max_shift, rank)


def paired(y_true, y_pred, *, label_extras=(), ignore_class=None):
    """Takes a label apart, beside its prediction.

    Args:
        y_true: `(batch, *spatial, channels + len(label_extras))`, with as many channels as the prediction or one, of
            class numbers; without extras a label of one channel may lack the last axis. Pixels with a non-finite
            channel do not count.
        y_pred: `(batch, *spatial, channels)`. Half types become float32.
        label_extras: names of the last channels of the label, in order: "mask" (weights, 0 to 1) and "anchor" (1: this
            label is known to lie right).
        ignore_class: label pixels of this value do not count; for labels of one channel.

    Returns:
        A `Pair`.

    Raises:
        TypeError, ValueError: kinds or shapes do not fit.
    """
    prediction = _checks.floating(y_pred, "y_pred")
    rank = _checks.spatial_rank("y_pred", prediction)
    label = tf.convert_to_tensor(y_true)
    has_numbers = label.shape.rank == rank + 1 or (label.shape.rank and label.shape[-1] == 1 + len(label_extras))
    kind = PixelLoss.resolved("mae", ignore_class)._replace(is_sparse=bool(has_numbers))
    found = _label_parts.parts(label, prediction, kind, label_extras)
    weight = found.valid if found.weight is None else found.weight
    is_anchored = found.anchored
    if is_anchored is None:
        is_anchored = tf.zeros_like(weight[(slice(None), *[0] * (rank + 1))], tf.bool)
    # A value that a weight of 0 hides may be no class and no probability.
    return Pair(tf.where(weight > 0.0, found.label, 0.0), weight[..., 0], found.prediction, is_anchored)


def in_place(pair):
    """Label and prediction as they lie, both cut to the sizes that they share around their common centre."""
    sizes = [
        min(both) if not any(map(tf.is_tensor, both)) else tf.minimum(*both)
        for both in zip(geometry.spatial_shape(pair.label), geometry.spatial_shape(pair.prediction))
    ]
    label, weight, prediction = (
        resample.crop_or_pad(values, sizes) for values in (pair.label, pair.weight[..., tf.newaxis], pair.prediction)
    )
    return pair._replace(label=label, weight=weight[..., 0], prediction=prediction)


def registered(pair, search, *, subpixel):
    """The `tfalign.Registration` of each label to its prediction; class numbers as one channel for each class."""
    fixed, label = pair.prediction, pair.label
    if search.activation is not None:
        fixed = _ACTIVATIONS[search.activation](fixed)
    if pair.is_sparse:
        label = tf.one_hot(tf.cast(tf.round(label[..., 0]), tf.int32), fixed.shape[-1], dtype=fixed.dtype)
    options = search._asdict()
    del options["activation"]
    options["max_shift"] = search.bounds(fixed.shape.rank - 2)
    return registration.register(fixed, label, moving_mask=pair.weight, subpixel=subpixel, **options)


def aligned(pair, search, *, subpixel, min_confidence):
    """Label and prediction on the prediction's grid, the label moved to where registration finds it.

    A label that is anchored, or whose place is known with a probability below `min_confidence`, stays where it is.
    Moves by whole pixels copy values; others read them by cubic splines, inside the range of each label, and class
    numbers from the nearest pixel. Pixels that a move has no label for do not count.
    """
    found = registered(pair, search, subpixel=subpixel)
    is_trusted = (found.confidence >= min_confidence) & ~pair.is_anchored
    unmoved = geometry.from_translation(tf.zeros_like(found.translation))
    transform = tf.where(is_trusted[:, tf.newaxis, tf.newaxis], found.transform, unmoved)
    shape = geometry.spatial_shape(pair.prediction)
    counts = pair.weight[..., tf.newaxis] > 0.0
    by_fractions = (search.turns or subpixel) and not pair.is_sparse
    # What does not count is NaN, which shows in every pixel that reads it.
    moved, inside = resample.warp(
        tf.where(counts, pair.label, np.nan),
        transform,
        output_shape=shape,
        interpolation="cubic" if by_fractions else "nearest",
        fill_value=np.nan,
    )
    label, known = registration.valid_pixels(moved, inside, "y_true")
    if by_fractions:
        label = _inside_range(label, pair.label, counts)
    graded, _ = resample.warp(pair.weight[..., tf.newaxis], transform, output_shape=shape)
    weight = tf.where(known > 0.0, graded, 0.0)
    return pair._replace(label=tf.where(weight > 0.0, label, 0.0), weight=weight[..., 0])


def _inside_range(moved, label, counts):
    """Splines overshoot at edges."""
    axes = list(range(1, label.shape.rank - 1))
    highest = tf.reduce_max(tf.where(counts, label, label.dtype.min), axis=axes, keepdims=True)
    lowest = tf.reduce_min(tf.where(counts, label, label.dtype.max), axis=axes, keepdims=True)
    return tf.maximum(tf.minimum(moved, highest), tf.minimum(lowest, highest))
