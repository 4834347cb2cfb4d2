"""Trains a network on a folder of inputs and labels, into a run folder that goes on after a kill."""

import time
import warnings
import zipfile

import keras
import numpy as np
import tensorflow as tf

from tfalign import _checks
from tfalign.callbacks import AlignmentLog
from tfalign.data import offset_check
from tfalign.export import ModelCard, export_serving
from tfalign.jobs import board, files, measures, networks, run_data, run_report, stopping
from tfalign.jobs.config import AUTO
from tfalign.jobs.run_folder import RunFolder, check_outside


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
    networks.check(config)
    check_outside(out, inputs=config.inputs, labels=config.labels)
    with RunFolder(out).claimed(config) as folder:
        if folder.is_done:
            announce(f"This run is finished: {folder.path}")
            return folder.summary()
        data = run_data.prepared(config, folder, track=track, announce=announce)
        keras.utils.set_random_seed(config.seed)
        training = _Training(folder, config, data, track, announce)
        training.check_offset()
        training.fit()
        return training.finish()


class _Training:
    """A network in training, its log, and what is done with it at the end."""

    def __init__(self, folder, config, data, track, announce):
        self.folder, self.config, self.data, self.track, self.announce = folder, config, data, track, announce
        self.model = networks.made(config, data.facts)
        networks.compile_for(self.model, config, metrics=measures.in_place_metrics(config, data.facts))
        self.steps = run_data.steps_per_epoch(data, config)
        self.validation = run_data.validation_batches(data, config)
        self.monitor = self._monitor()
        self.board = board.Board(folder.path / "tensorboard", data, config) if config.tensorboard else None
        self.rows = self._resumed()

    def check_offset(self):
        """Says, once, whether all labels are off in the same direction: what training cannot see."""
        if not self.folder.offset_file.exists():
            batches = run_data.every_batch(self.data.cache, "train", self.config)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # it is announced
                found = offset_check(batches, max_shift=self.config.max_shift)
            numbers = {name: [float(value) for value in getattr(found, name)] for name in ("offset", "standard_error")}
            known = numbers if found.labels and np.all(np.isfinite(found.offset)) else {}
            told = {**known, "labels": found.labels, "examined": found.examined, "warning": found.warning}
            files.write_json(self.folder.offset_file, told)
        warning = files.read_json(self.folder.offset_file)["warning"]
        if warning:
            self.announce(f"Warning: {warning}")

    def fit(self):
        """Trains until the last epoch, or until there is a reason to stop."""
        verdict = stopping.judge(self.rows, self.config, self.monitor)
        advance = self.track("training", self.config.epochs * self.steps)
        advance(len(self.rows) * self.steps)
        while len(self.rows) < self.config.epochs and verdict.stop is None:
            self.model.optimizer.learning_rate.assign(verdict.learning_rate)
            self.rows.append(self._epoch(len(self.rows), verdict.learning_rate, advance))
            verdict = stopping.judge(self.rows, self.config, self.monitor)
            self._save(verdict)
        self.verdict = verdict

    def _epoch(self, epoch, rate, advance):
        """Trains for an epoch; its row in the log."""
        began = time.perf_counter()
        try:
            history = self.model.fit(
                run_data.training_batches(self.data, self.config, epoch=epoch),
                initial_epoch=epoch,
                epochs=epoch + 1,
                steps_per_epoch=self.steps,
                validation_data=self.validation,
                callbacks=[AlignmentLog(), _Steps(advance)],
                shuffle=False,
                verbose=0,
            ).history
        except tf.errors.ResourceExhaustedError as error:
            received = {"batch_size": self.config.batch_size, "patch_size": self.data.facts["patch_size"]}
            remedy = "Lower one of them, or `filters`."
            raise MemoryError(_checks.message("A step must fit into the memory.", received, remedy)) from error
        logs = {name: float(values[-1]) for name, values in history.items() if name not in ("lr", "learning_rate")}
        seconds = time.perf_counter() - began
        return {"epoch": epoch, **logs, "learning_rate": rate, "seconds": round(seconds, 3)}

    def _save(self, verdict):
        """Writes the log, then the checkpoint, which makes the epoch count, then the best network."""
        epoch = self.rows[-1]["epoch"]
        self.folder.write_history(self.rows)
        self.folder.save_checkpoint(self.model, len(self.rows))
        is_best = verdict.best_epoch == epoch
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
            if stopping.judge(rows, self.config, self.monitor).best_epoch == epochs - 1:
                self.folder.keep_checkpoint(self.folder.best)  # the kill may have come before it was
            return rows
        return []

    def _monitor(self):
        """The column that is watched."""
        if self.config.monitor != AUTO:
            return self.config.monitor
        if self.validation is None:
            self.announce("There are no validation patches: the training loss decides what is best.")
            return "loss"
        if self.data.has_truth:
            return f"val_{measures.in_place_metrics(self.config, self.data.facts)[0].name}"
        return "val_loss"

    def finish(self):
        """Writes the last network, the table of labels, the export, the summary and the page."""
        folder, config, data = self.folder, self.config, self.data
        reason = self.verdict.stop or "all epochs done"
        self.announce(f"Training ended after {len(self.rows)} epochs: {reason}.")
        if reason == "diverged":
            self.announce("The loss is no number any more: try a lower --learning-rate.")
        folder.keep_checkpoint(folder.last)
        if folder.best.exists():
            self.model.load_weights(str(folder.best))
        rows = measures.alignment_rows(self.model, data, config, track=self.track)
        measures.write_alignment(folder.alignment_file, rows)
        summary = self._summary(reason, rows)
        summary["exported"] = self._export(summary)
        files.write_json(folder.summary_file, summary)
        self._report()
        summary["done"] = True
        files.write_json(folder.summary_file, summary)
        return summary

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
                    self.model, served, version=1, preprocess=self.data.cache.preprocessing, **_channels(self.data),
                    card=_card(summary, self.config),
                )  # fmt: skip
            except (ValueError, TypeError, tf.errors.OpError) as error:
                self.announce(f"The model is not exported for TF Serving: {' '.join(str(error).split())}")
                return None
        return (served / "1").relative_to(self.folder.path).as_posix()


class _Steps(keras.callbacks.Callback):
    """Advances the progress bar."""

    def __init__(self, advance):
        super().__init__()
        self._advance = advance

    def on_train_batch_end(self, batch, logs=None):
        """After each step."""
        self._advance(1)


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
