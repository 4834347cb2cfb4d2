"""Callbacks: what alignment does, in the logs of every epoch."""

import keras
import numpy as np

from tfalign.losses import ShiftInvariantLoss


class AlignmentLog(keras.callbacks.Callback):
    """Adds the state of every `ShiftInvariantLoss` of the model to the logs of an epoch.

    The logs, and so `History`, `CSVLogger` or `TensorBoard` (which must come after this one), gain "drift", the length
    of the network's estimated offset from its input, pixels; "alignment_confidence", the running mean confidence of
    the registered labels; and "alignment_ready", 1.0 once labels are aligned. With several such losses the names begin
    with that of the output, or its number, and an underscore.
    """

    def on_epoch_end(self, epoch, logs=None):
        """Adds the values to `logs`."""
        if logs is None:
            return
        for prefix, loss in _aligning_losses(self.model.loss):
            logs[f"{prefix}drift"] = float(np.linalg.norm(loss.drift))
            logs[f"{prefix}alignment_confidence"] = loss.confidence
            logs[f"{prefix}alignment_ready"] = float(loss.is_ready)


def _aligning_losses(losses):
    """Pairs of a name's prefix and a loss, from what was given to `compile`."""
    if isinstance(losses, dict):
        named = list(losses.items())
    elif isinstance(losses, (list, tuple)):
        named = list(enumerate(losses))
    else:
        named = [("", losses)]
    found = [(str(name), loss) for name, loss in named if isinstance(loss, ShiftInvariantLoss)]
    return [("" if len(found) == 1 else f"{name}_", loss) for name, loss in found]
