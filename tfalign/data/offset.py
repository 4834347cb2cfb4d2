"""Whether all labels of a data set are off in the same direction: what no aligned loss can tell from its network."""

import itertools
import warnings
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfalign import _checks
from tfalign._label_parts import checked_extras
from tfalign.ops.registration import register, valid_pixels

_LEAST_OFFSET = 0.5  # px
_LEAST_ERRORS = 3.0  # standard errors
_FEWEST = 8  # labels
_AT_A_TIME = 16  # labels are registered
_MOST_PAIRS = 12  # of an input and a label channel
_DIRECTIONS = {
    1: (("later", "earlier"),),
    2: (("down", "up"), ("right", "left")),
    3: (("deeper", "higher"), ("down", "up"), ("right", "left")),
}


class OffsetCheck(NamedTuple):
    """What `offset_check` found.

    Attributes:
        offset: `(d,)` pixels: where labels lie relative to their inputs, on average; NaN where too few could be told.
        standard_error: `(d,)` pixels, of the offset.
        labels: number of labels whose shift was told.
        examined: number of labels looked at.
        warning: what to do about it, in words; None where no offset is seen.
    """

    offset: np.ndarray
    standard_error: np.ndarray
    labels: int
    examined: int
    warning: str | None


def offset_check(dataset, *, max_shift=8, count=256, min_confidence=0.5, label_extras=(), ignore_class=None):
    """Registers labels to their *inputs*, by mutual information, and warns where all are off in the same direction.

    A common offset is the one misalignment that `ShiftInvariantLoss` cannot undo: labels that all lie 3 px right of
    their inputs look like labels that lie right and a network that is 3 px off. Inputs and labels are different kinds
    of pictures, so single shifts are less sure than those of the loss; their mean is what counts.

    Args:
        dataset: batches `(inputs, labels, ...)`, `(batch, *spatial, channels)` each, or a pair of arrays. Labels may
            have a margin, and may be maps of class numbers or flags (integers or booleans).
        max_shift: int >= 0, or one per spatial axis, pixels.
        count: at most so many labels are looked at.
        min_confidence: a shift that is known with a lower probability does not count.
        label_extras: as of the loss; the last channels of the labels.
        ignore_class: label pixels of this value do not count.

    Returns:
        An `OffsetCheck`. Its warning is also given by `warnings.warn` where on some axis the offset exceeds half a
        pixel and three standard errors.

    Raises:
        TypeError, ValueError: an option is out of range, there is no label, or shapes do not fit.
    """
    count = _checks.whole_number("count", count, at_least=1)
    min_confidence = _checks.number("min_confidence", min_confidence, at_least=0.0, at_most=1.0)
    label_extras = checked_extras(label_extras)
    found, examined = [], 0
    for inputs, labels in _batches(dataset, count):
        shifts, confidence = _registered(inputs, labels, max_shift, label_extras, ignore_class)
        examined += len(shifts)
        found.append(shifts[confidence >= min_confidence])
    if not examined:
        raise ValueError(_checks.message("`dataset` must hold labels.", {"labels": 0}))
    shifts = np.concatenate(found)
    rank = shifts.shape[-1]
    if len(shifts) < _FEWEST:
        return OffsetCheck(np.full(rank, np.nan), np.full(rank, np.nan), len(shifts), examined, None)
    offset, error = shifts.mean(axis=0), shifts.std(axis=0, ddof=1) / np.sqrt(len(shifts))
    # Registration is no better than a tenth of a pixel, whatever its scatter.
    is_off = (np.abs(offset) > _LEAST_OFFSET) & (np.abs(offset) > _LEAST_ERRORS * np.maximum(error, 0.1))
    warning = _warning(offset, error, is_off) if np.any(is_off) else None
    if warning:
        warnings.warn(warning, stacklevel=2)
    return OffsetCheck(offset, error, len(shifts), examined, warning)


def _batches(dataset, count):
    """Pairs of inputs and labels, up to `count` of them, a few at a time."""
    if isinstance(dataset, (tuple, list)):
        dataset = [dataset]
    for inputs, labels, *_ in dataset:
        inputs, labels = inputs[:count], labels[:count]
        count -= len(inputs)
        for start in range(0, len(inputs), _AT_A_TIME):
            part = slice(start, start + _AT_A_TIME)
            yield tf.convert_to_tensor(inputs[part]), tf.convert_to_tensor(labels[part])
        if count <= 0:
            return


def _registered(inputs, labels, max_shift, label_extras, ignore_class):
    """Shifts `(batch, d)` of labels against inputs, and their confidence, NumPy."""
    inputs = _checks.floating(inputs, "inputs")
    _checks.spatial_rank("inputs", inputs)
    if labels.shape.rank == inputs.shape.rank - 1:
        labels = labels[..., tf.newaxis]
    labels, mask = _checks.floating(labels, "labels"), None
    if label_extras:
        if labels.shape[-1] <= len(label_extras):
            received = {"labels.shape": _checks.shape_of(labels), "label_extras": label_extras}
            raise ValueError(_checks.message("`labels` must have channels beside their extras.", received))
        extras = dict(zip(label_extras, tf.unstack(labels[..., -len(label_extras) :], axis=-1)))
        labels, mask = labels[..., : -len(label_extras)], extras.get("mask")
    if ignore_class is not None:
        labels = tf.where(tf.equal(labels, float(ignore_class)), np.nan, labels)
    labels, mask = valid_pixels(labels, mask, "labels")
    pairs = list(itertools.product(_telling(inputs, labels), _telling(labels, inputs)))
    fixed, moving = (tf.gather(side, channels, axis=-1) for side, channels in zip((inputs, labels), zip(*pairs)))
    found = register(fixed, moving, max_shift=max_shift, similarity="mi", moving_mask=mask)
    return found.translation.numpy(), found.confidence.numpy()


def _telling(values, other):
    """The channels that vary most, no more than make few pairs with those of the other side."""
    most = max(_MOST_PAIRS // min(other.shape[-1], 3), 1)
    if values.shape[-1] <= min(most, 3):
        return list(range(values.shape[-1]))
    spread = np.nanstd(values.numpy().reshape(-1, values.shape[-1]), axis=0)
    return np.argsort(-spread, kind="stable")[: min(most, 3)].tolist()


def _warning(offset, error, is_off):
    """What is wrong and what to do, for people."""
    parts = [
        f"{abs(one):.1f} px {words[int(one < 0)]} (± {width:.1f})"
        for one, width, words, off in zip(offset, error, _DIRECTIONS[len(offset)], is_off)
        if off
    ]
    values = ", ".join(f"{one:.1f}" for one in offset)
    return (
        f"On average the labels lie {' and '.join(parts)} of where their inputs show the same. Training cannot tell "
        "that from a network that is off the other way, and the predictions will be off by as much. Move all labels "
        f"back by ({values}) pixels, or train with random flips (tfalign.data.flips), or mark a few labels that lie "
        'right with label_extras=("anchor",), or take the offset out at export (export_serving(..., offset=...)).'
    )
