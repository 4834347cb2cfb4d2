"""Callbacks: what alignment does, in the logs of every epoch, and when to stop."""

import csv
import io
import json
import math
import warnings
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfalign import _checks, _files, drift
from tfalign.losses import ShiftInvariantLoss
from tfalign.metrics import labels as labels_of

_BATCH = 32  # of arrays
_MATRIX = "transform"  # in JSON alone: a table has the parameters it is made of


class AlignmentLog(keras.callbacks.Callback):
    """Adds what alignment does to the logs of an epoch, for every `ShiftInvariantLoss` of the model.

    The logs, and so the progress bar, `History`, and `CSVLogger` or `TensorBoard` (which must come after this one; that
    needs the package tensorboard) gain, from the state of the loss:

    * "drift": the length of the network's estimated offset from its input, pixels;
    * "alignment_shift": the length of the running mean of the registered shifts, pixels;
    * "alignment_spread": the length of their running standard deviation, pixels;
    * "alignment_at_bound": the running share of labels whose shift lies on the bound of the search: raise it if large;
    * "alignment_gated": the running share of labels that are known too little to be moved;
    * "alignment_confidence": the running mean confidence of the registered labels;
    * "alignment_ready": 1.0 once labels are aligned.

    Running values are over the last 20 batches or so. With a `dataset` the logs also gain what its registration finds;
    between registrations the latest values stand:

    * "label_shift": the length of the mean shift, pixels: the drift on this data, where its true shifts average to 0;
    * "label_spread": the root of the mean squared distance of the shifts from that, pixels;
    * "labels_at_bound": the share of labels whose shift lies on the bound of the search;
    * "labels_gated": the share of labels that are known too little to be moved.

    Mean and spread are over the labels that are known well enough. With several such losses the names begin with that
    of the output, or its number, and an underscore. Of groups of channels the largest drift, shift and spread are told.

    Args:
        file: a path that ends in .csv or .json, for a table of these values, a row for each epoch, rewritten after
            each. Registered labels go into a second table beside it, as in "log-labels.csv", in .json under "labels".
            A run that goes on (`initial_epoch`) goes on in its file.
        dataset: labelled data to register as the loss does: a `tf.data.Dataset` of batches `(inputs, labels)` in an
            order that stays, or a pair of arrays. A third part that is a dict with "name" and "start", as
            `tfalign.data.pipeline.dataset` gives with `origin=True`, names the labels.
        ids: names of the labels in their order; by default what the data set says, or numbers from 0.
        every: epochs from one registration to the next; the first epoch of a fit has one too.
        worst: how many labels to list that fit the prediction least even where they lie best; they are printed if `fit`
            shows its progress.
        max_shift: pixels, one number or one per axis, to search in place of what the loss does; needed by a model of
            one output that is trained with another loss.

    Attributes:
        labels: a dict for each label of the latest registration: "epoch", "id", its shift ("row", "col", …, pixels,
            drift and all), rotation, shear and scale where there are any, "score", "confidence", "overlap", "at_bound",
            "gated", and "transform", the matrix `(d+1, d+1)`; "output" and "group" where there are several.
        worst_labels: the ids of the worst ones, the worst first. Labels without anything to register by are none.

    Raises:
        TypeError, ValueError: an option does not fit.

    Example:
        >>> log = tfalign.callbacks.AlignmentLog(dataset=(inputs, labels), every=5, file="alignment.csv")
        >>> model.fit(inputs, labels, epochs=20, callbacks=[log])
        >>> log.worst_labels
    """

    def __init__(self, *, file=None, dataset=None, ids=None, every=1, worst=5, max_shift=None):
        super().__init__()
        if file is not None:
            _checks.choice("suffix of `file`", Path(file).suffix, (".csv", ".json"))
        self.file = None if file is None else Path(file)
        self.dataset = _batches(dataset)
        self.ids = None if ids is None else list(ids)
        self.every = _checks.whole_number("every", every, at_least=1)
        self.worst = _checks.whole_number("worst", worst, at_least=0)
        self.max_shift = max_shift
        self.labels: list[dict] = []
        self.worst_labels: list = []
        self._rows: list[dict] | None = None
        self._latest: dict | None = None
        self._registering: list[tuple] = []

    def on_train_begin(self, logs=None):
        """Forgets what a former `fit` found; makes the folder of the file."""
        self._rows, self._latest, self._registering = None, None, []
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        if self.dataset is not None:
            # Traced once for each size, and anew for each fit: the model may have another loss.
            self._predict = tf.function(self._predicted, reduce_retracing=True)
            self._registering = [
                (prefix, key, self._traced(loss))
                for prefix, key, loss in _registering_losses(self.model.loss, self.max_shift)
            ]

    def on_epoch_end(self, epoch, logs=None):
        """Adds the values to `logs`, and writes the file."""
        told: dict[str, float] = {}
        for prefix, _, loss in _aligning_losses(self.model.loss):
            told |= {prefix + name: value for name, value in _state_of(loss).items()}
        if self._registering and (self._latest is None or (epoch + 1) % self.every == 0):
            self._latest = self._register(epoch)
            if self.worst_labels:
                _say(self, epoch, f"labels that fit least: {', '.join(map(str, self.worst_labels))}")
        told |= self._latest or {}
        if logs is not None:
            logs.update(told)
        if self.file is not None:
            if self._rows is None:
                self._rows = _former_rows(self.file, epoch)
            self._rows.append({"epoch": epoch, **told})
            _write(self.file, self._rows, self.labels)

    def _traced(self, loss):
        registering = labels_of.registering(loss, self.max_shift)
        return tf.function(registering, autograph=False, reduce_retracing=True)

    def _predicted(self, inputs):
        return self.model(inputs, training=False)

    def _register(self, epoch):
        """Registers the data set: what is told of it; `labels` and `worst_labels` are set."""
        names = list(getattr(self.model, "output_names", None) or [])
        found: list[list] = [[] for _ in self._registering]
        ids: list = []
        for inputs, labels, *more in self.dataset:
            predictions = self._predict(inputs)
            for batches, (_, key, register) in zip(found, self._registering):
                pair = (_of_output(part, key, names) for part in (labels, predictions))
                batches.append(tf.nest.map_structure(np.asarray, register(*pair)))
            ids += _ids(more, count=len(found[0][-1][0]["score"]), first=len(ids))
        if not ids:
            raise ValueError(_checks.message("`dataset` must hold labels.", {"labels": 0}))
        if self.ids is not None:
            if len(self.ids) != len(ids):
                received = {"ids": len(self.ids), "labels": len(ids)}
                raise ValueError(_checks.message("`ids` must name every label of `dataset`.", received))
            ids = self.ids
        told: dict[str, float] = {}
        self.labels = []
        for (prefix, _, _), batches in zip(self._registering, found):
            groups = [
                {name: np.concatenate([one[name] for one in parts]) for name in parts[0]} for parts in zip(*batches)
            ]
            told |= {prefix + name: value for name, value in labels_of.summary(groups).items()}
            for number, group in enumerate(groups):
                place = {"epoch": epoch, **({"output": prefix[:-1]} if prefix else {})}
                self.labels += labels_of.rows(group, ids, {**place, "group": number} if len(groups) > 1 else place)
        self.worst_labels = labels_of.worst(self.labels, self.worst)
        return told


class StopBelow(keras.callbacks.Callback):
    """Stops training once a value of the logs falls below a threshold.

    Args:
        threshold: a number.
        monitor: the name of the value; one of a metric in place tells more than the aligned loss.

    Attributes:
        stopped_epoch: where it stopped, or None.

    Raises:
        TypeError: `threshold` is no number.

    Example:
        >>> stop = tfalign.callbacks.StopBelow(0.01, monitor="val_loss")
        >>> model.fit(inputs, labels, validation_split=0.25, epochs=100, callbacks=[stop])
    """

    def __init__(self, threshold, *, monitor="loss"):
        super().__init__()
        self.threshold = _checks.number("threshold", threshold)
        self.monitor = monitor
        self.stopped_epoch = None

    def on_train_begin(self, logs=None):
        """Starts anew."""
        self.stopped_epoch = None

    def on_epoch_end(self, epoch, logs=None):
        """Stops if the value is below the threshold."""
        value = _watched(logs, self.monitor)
        if value is not None and value < self.threshold:
            _stop(self, epoch, f"{self.monitor} {value:.6g} is below {self.threshold:.6g}")


class StopConverged(keras.callbacks.Callback):
    """Stops training once a value of the logs has settled: its mean over the last epochs is that of those before.

    Epochs before the labels of a `ShiftInvariantLoss` are aligned do not count: the loss stands still, then falls.
    Unlike `EarlyStopping` it does not wait for a best value to be passed by chance, and needs no direction.

    Args:
        monitor: the name of the value.
        window: epochs, 2 or more, of each of the two means.
        tolerance: share of the former mean by which the two may differ.

    Attributes:
        stopped_epoch: where it stopped, or None.

    Raises:
        TypeError, ValueError: an option out of range.

    Example:
        >>> model.fit(inputs, labels, epochs=500, callbacks=[tfalign.callbacks.StopConverged(window=10)])
    """

    def __init__(self, *, monitor="loss", window=5, tolerance=0.01):
        super().__init__()
        self.monitor = monitor
        self.window = _checks.whole_number("window", window, at_least=2)
        self.tolerance = _checks.number("tolerance", tolerance, at_least=0.0)
        self.stopped_epoch = None
        self._values: list[float] = []

    def on_train_begin(self, logs=None):
        """Starts anew."""
        self.stopped_epoch = None
        self._values = []

    def on_epoch_end(self, epoch, logs=None):
        """Stops if the value has settled."""
        value = _watched(logs, self.monitor)
        if value is None or not all(loss.is_ready for _, _, loss in _aligning_losses(self.model.loss)):
            return
        self._values = [*self._values, value][-2 * self.window :]
        if len(self._values) < 2 * self.window:
            return
        before, after = (float(np.mean(part)) for part in (self._values[: self.window], self._values[self.window :]))
        if abs(after - before) <= self.tolerance * abs(before):
            _stop(self, epoch, f"{self.monitor} has settled at {after:.6g}")


def _watched(logs, monitor):
    """The finite value of that name in the logs, or None."""
    if monitor not in (logs or {}):
        warnings.warn(f"{monitor!r} is not in the logs, which hold {', '.join(logs or {})}.", stacklevel=3)
        return None
    value = float(logs[monitor])
    return value if math.isfinite(value) else None


def _stop(callback, epoch, reason):
    callback.stopped_epoch = epoch
    callback.model.stop_training = True
    _say(callback, epoch, reason)


def _say(callback, epoch, text):
    """Beside the progress bar, where `fit` shows one."""
    if (callback.params or {}).get("verbose"):
        print(f"\nEpoch {epoch + 1}: {text}")


def _aligning_losses(losses):
    """`(prefix of names, key of the output or None, loss)` of what was given to `compile`."""
    if isinstance(losses, dict):
        named = list(losses.items())
    elif isinstance(losses, (list, tuple)):
        named = list(enumerate(losses))
    else:
        named = [(None, losses)]
    found = [(key, loss) for key, loss in named if isinstance(loss, ShiftInvariantLoss)]
    return [("" if len(found) == 1 else f"{key}_", key, loss) for key, loss in found]


def _registering_losses(losses, max_shift):
    """The same, of what registers a data set."""
    found = _aligning_losses(losses)
    if not found and max_shift is not None and not isinstance(losses, (dict, list, tuple)):
        found = [("", None, ShiftInvariantLoss(losses, max_shift=max_shift))]
    if not found:
        raise ValueError(
            _checks.message(
                "`dataset` needs a model that is trained with a ShiftInvariantLoss, or of one output and `max_shift`.",
                {"max_shift": max_shift, "model.loss": losses},
            )
        )
    return found


def _state_of(loss):
    """What the state of a loss tells, by the name of a log."""
    states = drift.unpack_each(tf.convert_to_tensor(loss.state))
    return {
        "drift": float(np.max(np.linalg.norm(loss.drift, axis=-1))),
        "alignment_shift": float(max(np.linalg.norm(state.shift) for state in states)),
        "alignment_spread": float(np.max(np.linalg.norm(loss.shift_spread, axis=-1))),
        "alignment_at_bound": loss.share_at_bound,
        "alignment_gated": loss.share_gated,
        "alignment_confidence": loss.confidence,
        "alignment_ready": float(loss.is_ready),
    }


def _batches(dataset):
    """A data set of batches, or None."""
    if dataset is None:
        return None
    if isinstance(dataset, tf.data.Dataset):
        if int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
            raise ValueError(
                _checks.message(
                    "`dataset` must end: all of it is registered after an epoch.",
                    {"dataset": dataset},
                    "Leave `repeat` out, or name the number of batches: dataset.take(...).",
                )
            )
        return dataset
    if not isinstance(dataset, (list, tuple)) or len(dataset) != 2:
        raise TypeError(
            _checks.message(
                "`dataset` must be a tf.data.Dataset of batches (inputs, labels), or a pair of arrays.",
                {"type(dataset)": type(dataset).__name__},
            )
        )
    return tf.data.Dataset.from_tensor_slices(tuple(dataset)).batch(_BATCH)


def _of_output(structure, key, names):
    """The part of labels or predictions that belongs to one output, by its name or number; None is all of it."""
    if key is None or not isinstance(structure, (dict, list, tuple)):
        return structure
    if isinstance(structure, dict):
        return structure[names[key] if isinstance(key, int) else key]
    return structure[key if isinstance(key, int) else names.index(key)]


def _ids(more, *, count, first):
    """Names of the labels of a batch: the file and where in it, or numbers."""
    if not more or not isinstance(more[0], dict) or "name" not in more[0]:
        return list(range(first, first + count))
    names = [name.decode() for name in more[0]["name"].numpy()]
    if "start" not in more[0]:
        return names
    starts = [", ".join(map(str, np.ravel(start))) for start in more[0]["start"].numpy()]
    return [f"{name} ({start})" for name, start in zip(names, starts)]


def _former_rows(file, epoch):
    """The rows of a run that goes on with `epoch`."""
    if epoch == 0 or not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    rows = json.loads(text)["epochs"] if file.suffix == ".json" else list(csv.DictReader(io.StringIO(text)))
    return [row for row in rows if int(row["epoch"]) < epoch]


def _write(file, rows, labels):
    """Both tables, in one step each."""
    if file.suffix == ".json":
        plain = [{**row, _MATRIX: row[_MATRIX].tolist()} for row in labels]
        text = json.dumps({"epochs": rows, "labels": plain}, indent=1, default=str)
        _files.write_text(file, text + "\n")
        return
    _files.write_text(file, _as_csv(rows))
    if labels:
        beside = file.with_name(f"{file.stem}-labels.csv")
        _files.write_text(beside, _as_csv([{key: row[key] for key in row if key != _MATRIX} for row in labels]))


def _as_csv(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
