"""What the registration of a loss finds for each label of a data set: rows of a table, and what they have in common."""

import numpy as np
import tensorflow as tf

from tfalign import drift
from tfalign._label_parts import parted, parts
from tfalign._label_search import Search, least_confidence
from tfalign._pixel_loss import PixelLoss
from tfalign.metrics.shifts import is_at_bound
from tfalign.ops import geometry

_AXES = {1: ("sample",), 2: ("row", "col"), 3: ("plane", "row", "col")}


def registering(loss, max_shift=None):
    """A function of labels and predictions that registers them as `loss`, a `ShiftInvariantLoss`, does.

    `max_shift` is searched in place of what the loss does, if given.

    It returns a dict for each group of channels: "transform" `(batch, d+1, d+1)`, and `(batch,)` "score", "confidence",
    "overlap", and as booleans "at_bound" (the shift lies on the bound of the search) and "gated" (known too little to
    be moved).
    """
    config = loss.get_config()
    bound = {} if max_shift is None else {"max_shift": max_shift}
    search = Search.checked(**{name: config[name] for name in Search._fields} | bound)
    base = PixelLoss.resolved(loss.base, loss.ignore_class)

    def registered(label, prediction):
        found = []
        states = drift.unpack_each(tf.convert_to_tensor(loss.state))
        for part, state in zip(parted(parts(label, prediction, base, loss.label_extras), loss.groups), states):
            inner = search.cropped(part.prediction, part.label)
            one = search.registered(part, inner, base)
            bounds = search.bounds(part.prediction if search.crop == "max_shift" else inner, part.label)
            found.append(
                {
                    "transform": one.transform,
                    "score": one.score,
                    "confidence": one.confidence,
                    "overlap": one.overlap,
                    "at_bound": is_at_bound(one.translation, bounds),
                    "gated": one.confidence < least_confidence(search.min_confidence, state.in_place[0]),
                }
            )
        return found

    return registered


def summary(groups):
    """What the labels of a data set have in common, by the name of a log.

    Args:
        groups: for each group of channels the arrays that `registering` gave of all batches, joined.
    """
    shifts, spreads = [], []
    for group in groups:
        known = group["transform"][~group["gated"]][:, :-1, -1]
        mean = known.mean(axis=0) if len(known) else np.zeros(group["transform"].shape[-1] - 1)
        shifts.append(np.linalg.norm(mean))
        spreads.append(np.sqrt(np.mean(np.sum(np.square(known - mean), axis=1))) if len(known) else 0.0)
    return {
        "label_shift": float(max(shifts)),
        "label_spread": float(max(spreads)),
        "labels_at_bound": float(np.mean([group["at_bound"] for group in groups])),
        "labels_gated": float(np.mean([group["gated"] for group in groups])),
    }


def rows(group, ids, place):
    """A dict for each label: `place`, its id, what its transform is made of, and the other values of `group`."""
    found = geometry.decompose(tf.constant(group["transform"]))
    axes = _AXES[group["transform"].shape[-1] - 1]
    columns = {axis: found.translation[:, number] for number, axis in enumerate(axes)}
    if np.any(group["transform"][:, :-1, :-1] != np.eye(len(axes))):
        about = {1: (), 2: ("",), 3: tuple(f"_{axis}" for axis in axes)}[len(axes)]
        for kind, suffixes in (("rotation", about), ("shear", about), ("scale", [f"_{axis}" for axis in axes])):
            values = getattr(found, kind)
            columns |= {kind + suffix: values[:, number] for number, suffix in enumerate(suffixes)}
    columns = {name: np.asarray(values) for name, values in columns.items()}
    columns |= {name: group[name] for name in ("score", "confidence", "overlap", "at_bound", "gated")}
    return [
        {
            **place,
            "id": one,
            **{name: values[number].item() for name, values in columns.items()},
            "transform": group["transform"][number],
        }
        for number, one in enumerate(ids)
    ]


def worst(rows_of_labels, count):
    """The ids of the labels that fit least where they lie best; those without anything to register by are none."""
    telling = sorted((row for row in rows_of_labels if row["confidence"] > 0.0), key=lambda row: row["score"])
    return list(dict.fromkeys(row["id"] for row in telling))[:count]
