"""A label as it comes: its values, what was appended to it, and which of its pixels count."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfalign import _checks
from tfalign.ops import registration

EXTRAS = ("mask", "anchor")
_LARGEST = 1e15  # of a label's values: what is larger marks a hole, and its square would overflow


class Parts(NamedTuple):
    """A label in parts, and the prediction it is compared with.

    Attributes:
        label: `(batch, *spatial, channels)`, finite.
        valid: `(batch, *spatial, 1)`, 1 where the label has a value that counts, else 0.
        weight: the same shape, how much it counts, in [0, 1]; None where that is `valid`.
        anchored: `(batch,)` booleans, labels that are known to lie right; None where none is.
        prediction: `(batch, *spatial, channels)`.
    """

    label: tf.Tensor
    valid: tf.Tensor
    weight: tf.Tensor | None
    anchored: tf.Tensor | None
    prediction: tf.Tensor


def checked_extras(label_extras):
    """`label_extras` as a tuple of known names, each once."""
    names = (label_extras,) if isinstance(label_extras, str) else label_extras
    is_known = isinstance(names, (list, tuple)) and all(name in EXTRAS for name in names)
    if not is_known or len(set(names)) != len(names):
        known = " and ".join(f'"{name}"' for name in EXTRAS)
        raise ValueError(
            _checks.message(f"`label_extras` must name {known}, each at most once.", {"label_extras": label_extras})
        )
    return tuple(names)


def weighted(y_true, sample_weight):
    """Labels, those of weight 0 without values: they cost nothing, so they shall tell nothing either.

    Args:
        y_true: `(batch, ...)`.
        sample_weight: a scalar, `(batch,)` or `(batch, 1)`.
    """
    label = _checks.floating(y_true, "y_true")
    ones = tf.ones([tf.rank(label) - 1], tf.int32) if label.shape.rank is None else [1] * (label.shape.rank - 1)
    counts = tf.reshape(tf.not_equal(sample_weight, 0), tf.concat([[-1], ones], axis=0))
    unknown = tf.constant(np.nan, label.dtype)
    return tf.ensure_shape(tf.where(counts, label, unknown), label.shape)


def parts(y_true, y_pred, base, label_extras=()):
    """Takes a label apart.

    Args:
        y_true: `(batch, *spatial, channels + len(label_extras))`; a label of one channel and no extras may lack the
            last axis.
        y_pred: `(batch, *spatial, channels)`.
        base: a `PixelLoss`.
        label_extras: of `checked_extras`, the names of the last channels in order.

    Raises:
        TypeError, ValueError: kinds or shapes do not fit.
    """
    prediction = _checks.floating(y_pred, "y_pred")
    label = tf.cast(_checks.floating(y_true, "y_true"), prediction.dtype)
    _checks.spatial_rank("y_pred", prediction)
    if label.shape.rank == prediction.shape.rank - 1 and not label_extras:
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
    _check_shapes(label, prediction, channels, base, label_extras)
    every = [None] * (prediction.shape.rank - 1)
    label = tf.ensure_shape(label, [*every, None if channels is None else channels + len(label_extras)])
    extras = dict(zip(label_extras, tf.unstack(label[..., -len(label_extras) :], axis=-1))) if label_extras else {}
    if label_extras:
        label = label[..., : -len(label_extras)]
    counts = None if base.ignore_class is None else tf.not_equal(label, float(base.ignore_class))
    label, valid = registration.valid_pixels(label, counts, "y_true", largest=_LARGEST)
    weight = anchored = None
    if "mask" in extras:
        # As a mask it is clipped to [0, 1], and what is not finite does not count.
        _, weight = registration.valid_pixels(label, extras["mask"], "y_true")
        weight *= valid
        valid = tf.cast(weight > 0.0, label.dtype)
    if "anchor" in extras:
        flags = tf.cast(extras["anchor"] > 0.5, label.dtype)  # not so where it is NaN
        anchored = tf.reduce_mean(flags, axis=list(range(1, flags.shape.rank))) > 0.5
    return Parts(label, valid, weight, anchored, prediction)


def _check_shapes(label, prediction, channels, base, label_extras):
    """Refuses labels that do not belong to the predictions."""
    wanted = None if channels is None else channels + len(label_extras)
    received = {"y_true.shape": _checks.shape_of(label), "y_pred.shape": _checks.shape_of(prediction)}
    if not label.shape.is_compatible_with([None] * (prediction.shape.rank - 1) + [wanted]):
        kind = "one channel of class ids" if base.is_sparse else "its channels"
        more = "".join(f', and one of "{name}"' for name in label_extras)
        if label_extras:
            received["label_extras"] = label_extras
        raise ValueError(
            _checks.message(
                f"`y_true` must have the rank of `y_pred` and {kind}{more}.",
                received,
                "Label and prediction are (batch, *spatial, channels); only the spatial sizes may differ.",
            )
        )
    if not label.shape[:1].is_compatible_with(prediction.shape[:1]):
        raise ValueError(_checks.message("`y_true` must have as many samples as `y_pred`.", received))


def checked_groups(groups, base):
    """`groups` as a tuple of tuples of channels, each channel in one; None stays."""
    if groups is None:
        return None
    if base.joins_channels:
        raise ValueError(
            _checks.message(
                "`groups` needs a base loss that takes each channel by itself.",
                {"groups": groups},
                'Categorical losses compare all channels at once: leave `groups` out, or use "binary_crossentropy".',
            )
        )
    lists = groups if isinstance(groups, (list, tuple, np.ndarray)) else []
    count = sum(np.size(group) for group in lists)
    return tuple(map(tuple, registration.checked_groups(groups, count)))


def parted(whole, groups):
    """`Parts` of the channels of each group."""
    if groups is None:
        return [whole]
    registration.checked_groups(groups, whole.prediction.shape[-1])
    return [
        whole._replace(
            label=tf.gather(whole.label, group, axis=-1), prediction=tf.gather(whole.prediction, group, axis=-1)
        )
        for group in groups
    ]


def group_of_channels(groups):
    """The number of the group of each channel."""
    of_channel = {channel: number for number, group in enumerate(groups) for channel in group}
    return [of_channel[channel] for channel in sorted(of_channel)]
