"""One run: train an arm of a cell of a task with a seed, score it, keep the record under the hash of what made it."""

import hashlib
import json
import time
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import scipy.stats
import tensorflow as tf

import tfalign
from benchmarks.quality import LOSS_VERSION, bent
from benchmarks.quality.arms import ARMS, REFERENCES, VARIANTS, center
from benchmarks.quality.cells import CELLS, patches
from benchmarks.quality.tasks import TASKS, Scene
from tfalign.jobs import evaluate, files
from tfalign.ops import displacements, geometry

RECORDS = Path(__file__).parent.parent / "results" / "quality" / "records"
_DRIFT_BOUND = 4  # px of the best global move
_OFFSET_BOUND = 6  # px of the measured offset
_SHOWN = 3  # patches in the picture of bent labels


class Run(NamedTuple):
    """What names a run."""

    task: str
    cell: str
    arm: str
    seed: int

    def canonical(self):
        """The run that gives the same network, so that it is made once."""
        cell = CELLS[self.cell]
        if self.arm == "oracle" and cell.oracle_of:
            return self._replace(cell=cell.oracle_of, arm="plain")
        if self.arm in REFERENCES and cell.plain_of:
            return self._replace(cell=cell.plain_of).canonical()
        if self.cell == "M10" and self.arm == "plain":
            return self._replace(cell="M1", seed=0)  # the same patches; inits of the plain loss hardly differ
        return self


def key(run, loss_version=LOSS_VERSION):
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
        "flips": cell.flips,
    }
    described["settings"]["patch"] = cell.patch or task.patch
    if arm.uses_loss:
        described.update(loss=cell.loss if run.arm != "bare" else {}, loss_version=loss_version)
    return described


def path(run, loss_version=LOSS_VERSION):
    """Where the record of a run lies."""
    digest = hashlib.sha256(json.dumps(key(run, loss_version), sort_keys=True).encode()).hexdigest()[:16]
    return RECORDS / f"{run.task}-{run.cell}-{run.arm}-{run.seed}-{digest}.json"


def load(run, loss_version=LOSS_VERSION):
    """The record of a run, or None."""
    kept = path(run, loss_version)
    return files.read_json(kept) if kept.exists() else None


def use_one_thread():
    """For a process that shares the machine with others; before TensorFlow does anything."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def do(run):
    """Trains and scores a run, unless its record exists; returns the record."""
    if load(run) is not None:
        return load(run)
    task, cell = TASKS[run.task], CELLS[run.cell]
    data = patches(task, cell, run.seed)
    labels, loss = ARMS[run.arm].prepare(task, cell, data)
    keras.backend.clear_session()
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
    predictor, around = model, ARMS[run.arm].around
    if around is not None:
        model = around(predictor)
    schedule = keras.optimizers.schedules.CosineDecay(task.learning_rate, task.steps)
    model.compile(keras.optimizers.Adam(schedule), loss=loss)
    watch = _Watch(task, cell.data_seed if cell.data_seed is not None else run.seed, loss)
    began = time.perf_counter()
    batch = cell.batch or task.batch
    dataset = _dataset(data.inputs, labels, batch, cell, run.seed + ARMS[run.arm].order)
    model.fit(dataset, steps_per_epoch=task.steps, callbacks=[watch], shuffle=False, verbose=0)
    record = {
        "key": key(run),
        **watch.scores(),
        "score_at_a_third": watch.curve["score"][len(watch.curve["score"]) // 3 - 1],
        "curve": watch.curve,
        "milliseconds_per_step": 1000 * float(np.median(watch.durations)),
        "seconds": time.perf_counter() - began,
        **_transform_errors(model, cell, data),
        **(_field_errors(model, cell, data, labels) if around is not None and data.fields is not None else {}),
        "versions": files.versions(),
        "threads": tf.config.threading.get_intra_op_parallelism_threads(),
    }
    RECORDS.mkdir(parents=True, exist_ok=True)
    files.write_json(path(run), record)
    if around is not None and data.fields is not None and run.seed == 0 and run.arm not in VARIANTS:
        shown = slice(_SHOWN)
        aligned = model.align(data.inputs[shown], labels[shown])
        before, truths = (center(one[shown], cell.margin) for one in (data.labels, data.true_labels))
        picture = bent.picture(data.inputs[shown], before, aligned, truths, data.fields[shown])
        picture.savefig(RECORDS.parent / f"bent-{run.task}-{run.cell}-{run.arm}.png", dpi=110)
    return record


def _dataset(inputs, labels, batch, cell, seed):
    dataset = tf.data.Dataset.from_tensor_slices((inputs, labels))
    if cell.one_shift_per_batch:
        dataset = dataset.batch(batch).cache().shuffle(len(inputs) // batch, seed=seed).repeat()
    else:
        dataset = dataset.shuffle(len(inputs), seed=seed).repeat()
        if cell.flips:
            dataset = tf.data.Dataset.zip((dataset, tf.data.Dataset.random(seed=seed))).map(_flipped)
        dataset = dataset.batch(batch, drop_remainder=True)
    return dataset.prefetch(2)


def _flipped(pair, number):
    """Input and label mirrored together along each axis, or not, by the bits of a random number."""
    for axis in range(pair[0].shape.rank - 1):
        bit = tf.bitwise.bitwise_and(tf.bitwise.right_shift(number, axis), 1) > 0
        pair = tuple(tf.where(bit, tf.reverse(one, [axis]), one) for one in pair)
    return pair


def _transform_errors(model, cell, data):
    """Errors of the transforms that the trained network sees, and how well confidence tells wrong scenes."""
    if not cell.margin or data.transforms is None:
        return {}
    rank = data.inputs.ndim - 2
    bounds = {name: value for name, value in cell.loss.items() if name.startswith("max_")}
    turns = len(bounds) > 1
    subpixel = turns or cell.loss.get("subpixel", False)
    found, score, confidence = evaluate.registered_labels(model, data.inputs, data.labels, subpixel=subpixel, **bounds)
    right, wrong = ~data.is_wrong, data.is_wrong
    error = (found - data.transforms)[right, :rank, rank]
    around = error - np.median(error, axis=0)
    told = {
        "common": np.median(error, axis=0).tolist(),
        "rms_in_place": float(np.sqrt(np.mean(error**2))),
        "rms_around_common": float(np.sqrt(np.mean(around**2))),
        "within_half_around_common": float(np.mean(np.all(np.abs(around) <= 0.5, axis=-1))),
        "mean_confidence": float(confidence[right].mean()),
    }
    if turns:
        # Medians: a label that could not be told says nothing of the others.
        mine, true = (geometry.decompose(tf.constant(one[right], tf.float32)) for one in (found, data.transforms))
        told["rotation_error_degrees"] = float(np.median(np.abs(mine.rotation - true.rotation)))
        told["scale_error_percent"] = float(100 * np.median(np.abs(mine.scale / true.scale - 1.0)))
        told["shear_error_degrees"] = float(np.median(np.abs(mine.shear - true.shear)))
    if wrong.any():
        told["wrong_scene_auc"] = _auc(confidence[right], confidence[wrong])
        told["wrong_scene_auc_of_score"] = _auc(score[right], score[wrong])
    return {"shift_error": told}


def _auc(right, wrong):
    """How often one of `right` is larger than one of `wrong`."""
    return float(scipy.stats.mannwhitneyu(right, wrong).statistic / (len(right) * len(wrong)))


def _field_errors(model, cell, data, labels):
    """How far the displacements that a warp network finds lie from the true ones, pixels, and what of them folds."""
    found, folds = [], []
    for start in range(0, len(labels), 50):
        aligned = model.align(data.inputs[start : start + 50], labels[start : start + 50])
        found.append(np.asarray(aligned.displacement))
        folds.append(np.asarray(displacements.fold_share(aligned.displacement)))
    error = np.linalg.norm(np.concatenate(found) - data.fields, axis=-1)
    return {
        "field_error": {
            "mean": float(np.nanmean(error)),
            "median": float(np.nanmedian(error)),
            "true_mean": float(np.nanmean(np.linalg.norm(data.fields, axis=-1))),
            "folds": float(np.mean(np.concatenate(folds))),
        }
    }


class _Watch(keras.callbacks.Callback):
    """Scores the held-out scenes fifteen times in a run, and times the steps."""

    def __init__(self, task, seed, loss):
        super().__init__()
        self.task, self.loss = task, loss
        self.held_out = [Scene(one.input, one.truth.astype(np.float32)) for one in task.scenes(seed)[1]]
        self.noted = {task.steps * part // 15 for part in range(1, 16)}
        self.curve, self.durations = {"step": [], "score": [], "offset": [], "drift": []}, []

    def on_train_batch_begin(self, batch, logs=None):
        self.began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.durations.append(time.perf_counter() - self.began)
        if batch + 1 in self.noted:
            self.curve["step"].append(batch + 1)
            predictions = self._predictions()
            self.curve["score"].append(self._score(predictions))
            self.curve["offset"].append(self._offset(predictions))
            drift = getattr(self.loss, "drift", None)
            self.curve["drift"].append(None if drift is None else drift.tolist())

    def _predictions(self):
        return [np.asarray(self.model(scene.input[np.newaxis]))[0] for scene in self.held_out]

    def _score(self, predictions):
        return self.task.score(predictions, [scene.truth for scene in self.held_out])

    def _offset(self, predictions):
        """How far the predictions lie off, pixels."""
        found = [
            tfalign.register(scene.truth[np.newaxis], one[np.newaxis], max_shift=_OFFSET_BOUND, similarity="mse")
            for scene, one in zip(self.held_out, predictions)
        ]
        return np.mean([one.translation.numpy()[0] for one in found], axis=0).tolist()

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
        return {
            "score": self._score(predictions),
            "score_moved_back": float(np.max(moved)),
            "moved_back_by": moves[int(np.argmax(moved))].tolist(),
            "drift": self._offset(predictions),
            "sharpness": float(np.mean([evaluate.sharpness(one, truth) for one, truth in zip(predictions, truths)])),
        }
