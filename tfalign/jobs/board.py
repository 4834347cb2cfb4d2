"""What TensorBoard shows of a run: scalars, histograms of shifts, patches before and after (extra `tensorboard`)."""

import numpy as np
import tensorflow as tf

from tfalign import _checks
from tfalign.jobs import measures
from tfalign.jobs.run_data import every_batch, validation_batches
from tfalign.ops import resample

_SHOWN = 4  # patches
_GAP = 2  # pixels between pictures


class Board:
    """Writes an event file, epoch by epoch, of the first validation batch, or training batch where there is none.

    Args:
        folder: where to.
        data: `RunData`.
        config: `Config`.

    Raises:
        ImportError: without the extra `tensorboard`.
    """

    def __init__(self, folder, data, config):
        _checks.extra("tensorboard", "tensorboard")
        self._writer = tf.summary.create_file_writer(str(folder))
        batches = validation_batches(data, config) or every_batch(data.cache, "train", config)
        self._signature = batches.element_spec
        self._inputs, self._labels = next(iter(batches))
        self._config, self._rank = config, data.rank
        self._find = None

    def write(self, model, row):
        """Adds an epoch: the numbers of its row in the log, shifts, and pictures."""
        self._find = self._find or measures.registering(model, self._config, self._signature)
        found = self._find(self._inputs, self._labels)
        with self._writer.as_default(step=row["epoch"] + 1):
            for name, value in row.items():
                if name != "epoch":
                    tf.summary.scalar(name, value)
            for index, axis in enumerate(measures.AXES[self._rank]):
                tf.summary.histogram(f"shift/{axis}", found.transform[:, index, -1])
            tf.summary.histogram("shift/confidence", found.confidence)
            if self._rank > 1:
                grid = self._pictures(model(self._inputs[:_SHOWN], training=False), found.transform[:_SHOWN])
                tf.summary.image("input, prediction, label, label aligned", grid[np.newaxis])
        self._writer.flush()

    def _pictures(self, predictions, transforms):
        """A row for each patch: input, prediction, label as it came, label laid on the prediction."""
        labels = tf.cast(self._labels[:_SHOWN], tf.float32)
        shape = predictions.shape[1:-1]
        aligned, _ = resample.warp(labels, transforms, output_shape=shape, interpolation="nearest", fill_value=np.nan)
        if labels.shape[-1] < predictions.shape[-1]:  # class numbers
            predictions = tf.cast(tf.argmax(predictions, axis=-1)[..., tf.newaxis], tf.float32)
        columns = (self._inputs[:_SHOWN], predictions, resample.crop_or_pad(labels, shape), aligned)
        return np.concatenate([np.concatenate(row, axis=1) for row in zip(*map(_shown, columns))], axis=0)


def _shown(grids):
    """Grids `(batch, *spatial, channels)` as colour pictures in [0, 1] with a border; of volumes the middle plane."""
    grids = np.asarray(grids, np.float32)
    if grids.ndim == 5:
        grids = grids[:, grids.shape[1] // 2]
    known = np.isfinite(grids)
    low, high = grids.min(where=known, initial=np.inf), grids.max(where=known, initial=-np.inf)
    scaled = np.where(known, (grids - low) / max(high - low, 1e-6), 0.0)
    colours = scaled[..., :3] if scaled.shape[-1] >= 3 else np.repeat(scaled[..., :1], 3, axis=-1)
    return np.pad(colours, [(0, 0), (_GAP, _GAP), (_GAP, _GAP), (0, 0)], constant_values=1.0)
