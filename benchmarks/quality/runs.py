"""One run: train an arm of a cell of a task with a seed, score it, keep the record under the hash of what made it."""

import hashlib
import json
import time
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

import tfalign
from benchmarks.quality.arms import ARMS
from benchmarks.quality.cells import CELLS, patches
from benchmarks.quality.tasks import TASKS
from tfalign.jobs import evaluate, files

RECORDS = Path(__file__).parent.parent / "results" / "quality" / "records"
_DRIFT_BOUND = 4  # px of the best global move


class Run(NamedTuple):
    """What names a run."""

    task: str
    cell: str
    arm: str
    seed: int


def _loss_sources():
    """A hash of the code behind the loss: when it changes, tfalign's arms are run again."""
    package = Path(tfalign.__file__).parent
    parts = [
        package / "drift.py",
        package / "losses.py",
        package / "_keras.py",
        *sorted((package / "ops").glob("*.py")),
    ]
    return hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()[:12]


def key(run):
    """Everything that the result of a run depends on."""
    task, cell, arm = TASKS[run.task], CELLS[run.cell], ARMS[run.arm]
    settings = {
        field: getattr(task, field)
        for field in ("base", "activation", "steps", "patch", "patches", "batch", "filters", "depth", "learning_rate")
    }
    described = {
        **run._asdict(),
        "settings": settings,
        "data_version": task.data_version,
        "cell_version": cell.version,
        "arm_version": arm.version,
        "margin": cell.margin,
    }
    if arm.uses_tfalign:
        described.update(loss=cell.loss if run.arm != "bare" else {}, sources=_loss_sources())
    return described


def path(run):
    """Where the record of a run lies."""
    digest = hashlib.sha256(json.dumps(key(run), sort_keys=True).encode()).hexdigest()[:16]
    return RECORDS / f"{run.task}-{run.cell}-{run.arm}-{run.seed}-{digest}.json"


def load(run):
    """The record of a run, or None."""
    return files.read_json(path(run)) if path(run).exists() else None


def do(run, threads=0):
    """Trains and scores a run, unless its record exists; returns the record."""
    if load(run) is not None:
        return load(run)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    task, cell = TASKS[run.task], CELLS[run.cell]
    data = patches(task, cell, run.seed)
    labels, loss = ARMS[run.arm].prepare(task, cell, data)
    keras.utils.set_random_seed(run.seed)
    rank = data.inputs.ndim - 2
    model = tfalign.models.unet(
        rank,
        data.inputs.shape[-1],
        data.labels.shape[-1],
        filters=task.filters,
        depth=task.depth,
        activation=task.activation,
    )
    schedule = keras.optimizers.schedules.CosineDecay(task.learning_rate, task.steps)
    model.compile(keras.optimizers.Adam(schedule), loss=loss)
    watch = _Watch(task, run.seed, loss)
    began = time.perf_counter()
    batch = cell.batch or task.batch
    dataset = _dataset(data.inputs, labels, batch, cell.one_shift_per_batch, run.seed)
    model.fit(dataset, steps_per_epoch=task.steps, callbacks=[watch], shuffle=False, verbose=0)
    record = {
        "key": key(run),
        **watch.scores(),
        "score_at_a_third": watch.curve["score"][len(watch.curve["score"]) // 3 - 1],
        "curve": watch.curve,
        "milliseconds_per_step": 1000 * float(np.median(watch.durations)),
        "seconds": time.perf_counter() - began,
        **_transform_errors(model, cell, data),
        "versions": files.versions(),
        "threads": threads,
    }
    RECORDS.mkdir(parents=True, exist_ok=True)
    files.write_json(path(run), record)
    return record


def _dataset(inputs, labels, batch, one_shift_per_batch, seed):
    dataset = tf.data.Dataset.from_tensor_slices((inputs, labels))
    if one_shift_per_batch:
        dataset = dataset.batch(batch).cache().shuffle(len(inputs) // batch, seed=seed).repeat()
    else:
        dataset = dataset.shuffle(len(inputs), seed=seed).repeat().batch(batch, drop_remainder=True)
    return dataset.prefetch(2)


def _transform_errors(model, cell, data):
    """Errors of the shifts that the trained network sees, pixels."""
    if not cell.margin:
        return {}
    bound = cell.loss["max_shift"]
    found, confidence = evaluate.registered_shifts(model, data.inputs, data.labels, max_shift=bound)
    error = found - data.translations
    around = error - np.median(error, axis=0)
    return {
        "shift_error": {
            "common": np.median(error, axis=0).tolist(),
            "rms_in_place": float(np.sqrt(np.mean(error**2))),
            "rms_around_common": float(np.sqrt(np.mean(around**2))),
            "exact_around_common": float(np.mean(np.all(around == 0, axis=-1))),
            "mean_confidence": float(confidence.mean()),
        }
    }


class _Watch(keras.callbacks.Callback):
    """Scores the held-out scenes thirty times in a run, and times the steps."""

    def __init__(self, task, seed, loss):
        super().__init__()
        self.task, self.loss = task, loss
        self.held_out = task.scenes(seed)[1]
        self.noted = {task.steps * part // 30 for part in range(1, 31)}
        self.curve, self.durations = {"step": [], "score": [], "drift": []}, []

    def on_train_batch_begin(self, batch, logs=None):
        self.began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.durations.append(time.perf_counter() - self.began)
        if batch + 1 in self.noted:
            self.curve["step"].append(batch + 1)
            self.curve["score"].append(self._score(self._predictions()))
            drift = getattr(self.loss, "drift", None)
            self.curve["drift"].append(None if drift is None else drift.tolist())

    def _predictions(self):
        return [np.asarray(self.model(scene.input[np.newaxis]))[0] for scene in self.held_out]

    def _score(self, predictions):
        return self.task.score(predictions, [scene.truth for scene in self.held_out])

    def scores(self):
        """In place; after the best global move; how far off; how sharp."""
        predictions, truths = self._predictions(), [scene.truth for scene in self.held_out]
        inner = tuple(slice(_DRIFT_BOUND, -_DRIFT_BOUND) for _ in truths[0].shape[:-1])
        moves = np.stack(
            np.meshgrid(*[np.arange(-_DRIFT_BOUND, _DRIFT_BOUND + 1)] * len(inner), indexing="ij"), axis=-1
        ).reshape(-1, len(inner))
        axes = tuple(range(len(inner)))
        moved = [
            self.task.score([np.roll(one, -move, axes)[inner] for one in predictions], [one[inner] for one in truths])
            for move in moves
        ]
        drifts = [
            tfalign.register(truth[None], one[None], max_shift=6, similarity="mse").translation.numpy()[0]
            for one, truth in zip(predictions, truths)
        ]
        return {
            "score": self._score(predictions),
            "score_moved_back": float(np.max(moved)),
            "moved_back_by": moves[int(np.argmax(moved))].tolist(),
            "drift": np.mean(drifts, axis=0).tolist(),
            "sharpness": float(np.mean([evaluate.sharpness(one, truth) for one, truth in zip(predictions, truths)]))
            if len(inner) == 2
            else None,
        }
