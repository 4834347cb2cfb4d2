"""What a loss with a state must refuse: a second output, and weights that would not move with the label."""

import threading
import weakref

import tensorflow as tf

from tfalign import _checks


class OneOutput:
    """Raises when one loss serves several outputs: predictions that were all there before the first was compared.

    Predictions made one after the other, as in gradient accumulation, may share a loss. Looks at traced graphs; Keras 3
    traces the losses once even when it runs eagerly.
    """

    def __init__(self):
        self._first: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def __deepcopy__(self, memo):
        return OneOutput()

    def check(self, prediction):
        graph = getattr(prediction, "graph", None)
        if graph is None:
            return
        operations = graph.get_operations()
        # Replicas are traced by one thread each, into the same graph.
        name, count = self._first.setdefault(graph, {}).setdefault(
            threading.get_ident(), (prediction.name, len(operations))
        )
        if prediction.name != name and prediction.op in operations[:count]:
            raise ValueError(
                _checks.message(
                    "A `ShiftInvariantLoss` must serve one output: its drift belongs to that output.",
                    {"y_pred": [name, prediction.name]},
                    "Give each output its own instance: loss=[ShiftInvariantLoss(), ShiftInvariantLoss()].",
                )
            )


def refuse_mask(prediction):
    """Raises when a prediction carries a Keras mask."""
    if getattr(prediction, "_keras_mask", None) is not None:
        raise ValueError(
            _checks.message(
                "`y_pred` must not carry a Keras mask: it would not move with the label.",
                {"y_pred.shape": _checks.shape_of(prediction)},
                "Set the label to NaN where it does not count, and leave the Masking layer out.",
            )
        )


def checked_weight(sample_weight):
    """The weights as a tensor, which must be one per sample."""
    sample_weight = tf.convert_to_tensor(sample_weight)
    rank = sample_weight.shape.rank
    if rank is not None and (rank > 2 or (rank == 2 and sample_weight.shape[-1] != 1)):
        raise ValueError(
            _checks.message(
                "`sample_weight` must have the shape (batch,): one weight per sample.",
                {"sample_weight.shape": tuple(sample_weight.shape)},
                "A weight per pixel belongs to the label and must move with it: set pixels that do not count to "
                'NaN in the label, or append their weights to it: label_extras=("mask",).',
            )
        )
    return sample_weight
