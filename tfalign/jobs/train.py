"""Trains a network on a folder of inputs and labels, into a run folder that goes on after a kill."""

import contextlib
import functools
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfalign import _checks, distributed
from tfalign.callbacks import AlignmentLog
from tfalign.data import offset_check
from tfalign.export import ModelCard, export_serving
from tfalign.jobs import board, files, measures, networks, run_data, run_report, stopping
from tfalign.jobs.config import AUTO
from tfalign.jobs.run_folder import RunFolder, check_outside, writing


def run(out, config, *, track=lambda description, total: lambda steps: None, announce=lambda text: None):
    """Trains, or goes on where an earlier call with the same settings was stopped, however it was.

    Args:
        out: the run folder, see `tfalign.jobs.run_folder`.
        config: `tfalign.jobs.config.Config`.
        track: `(description, total) -> function called with what was just done`, for progress bars.
        announce: called with a line of text now and then.

    Returns:
        The content of `summary.json`.

    Raises:
        ValueError, TypeError: a setting that does not fit, or a folder that holds something else.
        OSError: the folder cannot be written, or the disk is full; what was saved last stays.
    """
    scope = distributed.strategy()  # before anything else of TensorFlow: workers meet here
    is_chief = distributed.is_chief(scope)
    networks.check(config)
    check_outside(out, inputs=config.inputs, labels=config.labels)
    folder = RunFolder(out)
    with contextlib.ExitStack() as claim:
        with distributed.together(scope):
            if is_chief:
                claim.enter_context(folder.claimed(config))
            if is_chief and not folder.is_done:
                data = run_data.prepared(config, folder, track=track, announce=announce)
                run_data.check_replicas(data, config, scope.num_replicas_in_sync)
                _check_offset(folder, data, config, announce)
        with distributed.together(scope):
            if folder.is_done:
                announce(f"This run is finished: {folder.path}")
                return folder.summary()
            if not is_chief:
                data = run_data.shared(config, folder)
        training = _Training(scope, folder, config, data, track, announce)
        training.fit()
        with distributed.together(scope):
            if is_chief:
                training.finish()
    return folder.summary()


def _check_offset(folder, data, config, announce):
    """Says, once, whether all labels are off in the same direction: what training cannot see."""
    if not folder.offset_file.exists():
        batches = run_data.every_batch(data.cache, "train", config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it is announced
            found = offset_check(batches, max_shift=config.max_shift, ignore_class=run_data.ignored_class(config))
        numbers = {name: [float(value) for value in getattr(found, name)] for name in ("offset", "standard_error")}
        known = numbers if found.labels and np.all(np.isfinite(found.offset)) else {}
        told = {**known, "labels": found.labels, "examined": found.examined, "warning": found.warning}
        files.write_json(folder.offset_file, told)
    warning = files.read_json(folder.offset_file)["warning"]
    if warning:
        announce(f"Warning: {warning}")


class _Training:
    """A network in training, its log, and what is done with it at the end."""

    def __init__(self, scope, folder, config, data, track, announce):
        self.scope, self.folder, self.config, self.data, self.track = scope, folder, config, data, track
        self.is_chief = distributed.is_chief(scope)
        self.announce = announce if self.is_chief else lambda text: None
        keras.utils.set_random_seed(config.seed)
        with scope.scope():
            self.model = self._compiled(metrics=measures.in_place_metrics(config, data.facts))
        self.steps = run_data.steps_per_epoch(data, config)
        self.validation = run_data.validation_batches(data, config)
        self.monitor = self._monitor()
        self.board = None
        if config.tensorboard and self.is_chief:
            self.board = board.Board(folder.path / "tensorboard", data, config)
        with scope.scope():
            self.rows = self._resumed()
        self.verdict = stopping.judge(self.rows, self.config, self.monitor)

    def _compiled(self, *, metrics=()):
        model = networks.made(self.config, self.data.facts)
        networks.compile_for(model, self.config, metrics=metrics)
        return model

    def fit(self):
        """Trains until the last epoch, or until there is a reason to stop."""
        advance = self.track("training", self.config.epochs * self.steps)
        advance(len(self.rows) * self.steps)
        if len(self.rows) == self.config.epochs or self.verdict.stop is not None:
            return
        self.model.optimizer.learning_rate.assign(self.verdict.learning_rate)
        try:
            distributed.fit(
                self.model,
                functools.partial(run_data.training_batches, self.data, self.config),
                epochs=self.config.epochs,
                initial_epoch=len(self.rows),
                steps_per_epoch=self.steps,
                validation_data=self.validation,
                callbacks=[AlignmentLog(), _Progress(self, advance)],
            )
        except tf.errors.ResourceExhaustedError as error:
            received = {"batch_size": self.config.batch_size, "patch_size": self.data.facts["patch_size"]}
            remedy = "Lower one of them, or `filters`."
            raise MemoryError(_checks.message("A step must fit into the memory.", received, remedy)) from error
        except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
            received = {"workers that go on": "not all"}
            remedy = "Give each the same command again: it goes on after the last epoch."
            raise ConnectionError(_checks.message("All workers must go on to the end.", received, remedy)) from error

    def end_epoch(self, logs, seconds):
        """Adds an epoch to the log, saves, and settles how it goes on."""
        logs = {name: float(value) for name, value in logs.items()}
        rate = self.verdict.learning_rate
        row = {"epoch": len(self.rows), **logs, "learning_rate": rate, "seconds": round(seconds, 3)}
        self.rows.append(row)
        self.verdict = stopping.judge(self.rows, self.config, self.monitor)
        with writing(self.folder.path):
            self._save()
        self.model.optimizer.learning_rate.assign(self.verdict.learning_rate)
        self.model.stop_training = self.verdict.stop is not None

    def _save(self):
        """Writes the log, then the checkpoint, which makes the epoch count, then the best network."""
        if not self.is_chief:
            with tempfile.TemporaryDirectory() as aside:  # the sums of metrics are saved, which workers make together
                files.save_model(self.model, Path(aside) / "model.keras")
            return
        epoch = self.rows[-1]["epoch"]
        self.folder.write_history(self.rows)
        self.folder.save_checkpoint(self.model, len(self.rows))
        is_best = self.verdict.best_epoch == epoch
        if is_best:
            self.folder.keep_checkpoint(self.folder.best)
        if self.board is not None:
            self.board.write(self.model, self.rows[-1])
        self.announce(_in_words(self.rows[-1], self.config.epochs, self.monitor) + ("  best" if is_best else ""))

    def _resumed(self):
        """The rows of the epochs that are done; the network is as it was after the last of them."""
        for epochs, path in self.folder.saved_checkpoints():
            rows = self.folder.history()[:epochs]
            if len(rows) < epochs:
                continue
            try:
                self.model.load_weights(str(path))
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                self.announce(f"{path} is damaged ({type(error).__name__}): going on from an earlier epoch.")
                continue
            self.announce(f"Going on after epoch {epochs} of {self.config.epochs}.")
            if self.is_chief and stopping.judge(rows, self.config, self.monitor).best_epoch == epochs - 1:
                self.folder.keep_checkpoint(self.folder.best)  # the kill may have come before it was
            return rows
        return []

    def _monitor(self):
        """The column that is watched."""
        if self.config.monitor != AUTO:
            return self._checked_monitor(self.config.monitor)
        if self.validation is None:
            self.announce("There are no validation patches: the training loss decides what is best.")
            return "loss"
        if self.data.has_truth:
            return f"val_{measures.in_place_metrics(self.config, self.data.facts)[0].name}"
        return "val_loss"

    def _checked_monitor(self, monitor):
        """Told now, not after the first epoch."""
        measured = ["loss", *(one.name for one in measures.in_place_metrics(self.config, self.data.facts))]
        if self.config.deformable:
            measured += [one.name for one in self.model.metrics if one.name not in measured]
        columns = measured + [f"val_{name}" for name in measured if self.validation is not None]
        if (
            monitor not in columns
            and monitor not in ("drift", "learning_rate")
            and not monitor.startswith("alignment_")
        ):
            received = {"monitor": monitor, "columns": columns}
            raise ValueError(_checks.message("`monitor` must be a column of metrics.jsonl.", received))
        return monitor

    def finish(self):
        """Writes the last network, the table of labels, the export, the summary and the page."""
        folder, config, data = self.folder, self.config, self.data
        reason = self.verdict.stop or "all epochs done"
        self.announce(f"Training ended after {len(self.rows)} epochs: {reason}.")
        if reason == "diverged":
            self.announce("The loss is no number any more: try a lower --learning-rate.")
        folder.keep_checkpoint(folder.last)
        if self.scope.num_replicas_in_sync > 1:
            self.model = self._compiled()  # of this process alone
        self.model.load_weights(str(folder.best if folder.best.exists() else folder.last))
        rows = measures.alignment_rows(self.model, data, config, track=self.track)
        measures.write_alignment(folder.alignment_file, rows)
        summary = self._summary(reason, rows)
        summary["exported"] = self._export(summary)
        files.write_json(folder.summary_file, summary)
        self._report()
        summary["done"] = True
        files.write_json(folder.summary_file, summary)

    def _report(self):
        """Writes the page."""
        try:
            run_report.write(self.folder.path, track=self.track)
        except ValueError as error:
            # The page reads the network back, and one with code in it is not read without being asked.
            if not self.config.runs_code:
                raise
            self.announce(f"There is no report: {error}")

    def _summary(self, reason, rows):
        config, data = self.config, self.data
        sets = {"validation": self.validation, "test": run_data.every_batch(data.cache, "test", config)}
        score = measures.Scorer(self.model, config, data.facts)
        scores = {name: score(batches) for name, batches in sets.items() if batches is not None}
        bounds = {name: config.loss[name] for name in measures.BOUNDS if name in config.loss}
        return {
            "done": False,
            "base": config.loss["base"],
            "similarity": config.loss["similarity"],
            "bounds": {**bounds, "max_shift": config.max_shift},
            "rank": data.rank,
            "input_channels": data.facts["input_channels"],
            "output_channels": data.facts["output_channels"],
            "label_range": data.facts["label_range"],
            "class_map": run_data.is_class_map(config),
            "counts": {
                "files": len({row["file"] for row in rows}),
                "labels": len(rows),
                "skipped": len(data.cache.skipped),
                "patches": run_data.patch_counts(data.cache),
            },
            "epochs": len(self.rows),
            "best_epoch": self.verdict.best_epoch,
            "monitor": self.monitor,
            "stopped": reason,
            "validation_labels_lie_right": data.has_truth,
            **scores,
            "offset_check": files.read_json(self.folder.offset_file),
            "drift": [float(value) for value in self.model.loss.drift[: data.rank]],
            "alignment_confidence": self.model.loss.confidence,
            "seconds": round(sum(row["seconds"] for row in self.rows), 1),
        }

    def _export(self, summary):
        """Writes the model for TF Serving; its folder as seen from the run, or None where it cannot be served."""
        served = self.folder.saved_models / self.config.name
        if not (served / "1").exists():
            try:
                export_serving(
                    networks.predictor_of(self.model), served, version=1,
                    preprocess=self.data.cache.preprocessing, card=_card(summary, self.config), **_channels(self.data),
                )  # fmt: skip
            except (ValueError, TypeError, tf.errors.OpError) as error:
                self.announce(f"The model is not exported for TF Serving: {' '.join(str(error).split())}")
                return None
        return (served / "1").relative_to(self.folder.path).as_posix()


class _Progress(keras.callbacks.Callback):
    """Advances the progress bar, and ends the epochs of a `_Training`."""

    def __init__(self, training, advance):
        super().__init__()
        self._training, self._advance = training, advance

    def on_epoch_begin(self, epoch, logs=None):
        """Looks at the clock."""
        self._began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        """After each step."""
        self._advance(1)

    def on_epoch_end(self, epoch, logs=None):
        """After each epoch, with its validation."""
        self._training.end_epoch(logs, time.perf_counter() - self._began)


def _channels(data):
    """Of a raw input, where the preprocessing changes them."""
    unmixes = any(type(step).__name__ == "SeparateStains" for step in data.cache.preprocessing.steps)
    return {"input_channels": 3} if unmixes else {}


def _in_words(row, epochs, monitor):
    """One line of an epoch."""
    shown = {"loss": row["loss"], monitor: row.get(monitor)}
    shown |= {name: row.get(name) for name in row if name.startswith("val_")}
    words = [f"epoch {row['epoch'] + 1}/{epochs}"]
    words += [f"{name} {value:.4g}" for name, value in shown.items() if value is not None]
    if "drift" in row:
        words.append(f"drift {row['drift']:.2f} px" if row.get("alignment_ready", 1.0) else "not aligning yet")
    return "  ".join(words)


def in_words(summary):
    """One line on the outcome."""
    scores = summary.get("validation") or summary.get("test") or {}
    best = summary["best_epoch"]
    words = ["No epoch was of use" if best is None else f"Best epoch {best + 1} of {summary['epochs']}"]
    for kind, names in {"in place": "in_place", "labels registered": "registered"}.items():
        if names in scores:
            values = ", ".join(f"{name} {value:.4g}" for name, value in scores[names].items())
            words.append(f"{kind}: {values}")
    words.append(f"drift {max(map(abs, summary['drift'])):.2f} px")
    return "; ".join(words) + "."


def _card(summary, config):
    """What the run knows of its model."""
    scores = summary.get("test") or summary.get("validation") or {}
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in scores.get("registered", {}).items())
    return ModelCard(
        what=f"Trained by `tfalign train` with the base loss {config.loss['base']!r}.",
        data=f"{config.inputs or config.tfds}; {summary['counts']['patches']['train']} training patches.",
        metrics=f"On held-out patches, labels registered: {metrics}." if metrics else "",
    )
