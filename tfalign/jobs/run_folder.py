"""The folder of a training run: what lies where, who may write it, and how a run goes on after a kill.

| file | content |
|---|---|
| `config.yaml` | every setting |
| `versions.json` | versions and machine, as the run was begun |
| `data.json` | what the data settled: sizes, channels, ranges, the fitted preprocessing (of the inputs) |
| `cache/`, `skipped.csv` | patches as shards; files left out and why |
| `metrics.jsonl` | a line of JSON for each epoch |
| `checkpoints/` | `epoch-00012.keras`: network, optimizer and loss after 12 epochs |
| `best.keras`, `last.keras` | two of these files: networks of prepared inputs |
| `alignment.csv` | where each label lay |
| `summary.json` | the outcome; "done" is true once everything is there |
| `saved_model/<name>/1` | the best network for TF Serving, preprocessing inside |
| `report.html` | the page |

Everything is written beside and renamed. A checkpoint is the last thing that an epoch writes: what a kill leaves behind
it is made again.
"""

import contextlib
import errno
import importlib
import json
import math
import os
import re
import shutil
from pathlib import Path

import tensorflow as tf

from tfalign import _checks, _files
from tfalign.jobs import config as configs
from tfalign.jobs import files

_CHECKPOINT = re.compile(r"epoch-(\d{5})\.keras")
_KEPT = 2  # checkpoints: one more than needed, should the last be damaged
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RunFolder:
    """The paths of a run, and what is done to them; see the top of this module."""

    def __init__(self, path):
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.versions_file = self.path / "versions.json"
        self.data_file = self.path / "data.json"
        self.offset_file = self.path / "offset.json"
        self.cache = self.path / "cache"
        self.truth = self.path / "cache-validation"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "best.keras"
        self.last = self.path / "last.keras"
        self.alignment_file = self.path / "alignment.csv"
        self.summary_file = self.path / "summary.json"
        self.saved_models = self.path / "saved_model"

    @classmethod
    def existing(cls, path):
        """The folder of a run that was begun.

        Raises:
            ValueError: it holds none.
        """
        folder = cls(path)
        if not folder.config_file.is_file():
            remedy = "It is what `tfalign train --out` was given."
            raise ValueError(_checks.message("`run` must be the folder of a run.", {"run": str(path)}, remedy))
        return folder

    def config(self):
        """The `Config` of the run."""
        return configs.from_mapping(configs.read(self.config_file))

    def facts(self):
        """The content of `data.json`.

        Raises:
            ValueError: the files were not read yet.
        """
        if not self.data_file.exists():
            remedy = "Let `tfalign train` end its first epoch."
            raise ValueError(_checks.message("`run` must have been trained.", {"run": str(self.path)}, remedy))
        return files.read_json(self.data_file)

    def summary(self):
        """The content of `summary.json`, or {}."""
        return files.read_json(self.summary_file) if self.summary_file.exists() else {}

    @property
    def is_done(self):
        """Whether the run is finished."""
        return bool(self.summary().get("done"))

    @contextlib.contextmanager
    def claimed(self, config):
        """Takes the folder for a run of these settings while the context lasts.

        Raises:
            ValueError: it holds something else, or a run with other settings, or one that is going on.
            OSError: it cannot be written.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            with _locked(self.path):
                self._claim(config)
                yield self

    def _claim(self, config):
        is_new = not self.config_file.exists()
        if is_new and any(path.name != ".lock" and path.suffix != ".part" for path in self.path.iterdir()):
            received = {"out": str(self.path)}
            raise ValueError(_checks.message("`out` must be a new folder, or that of this run.", received))
        is_same = not is_new and self._is_same(config)
        if not is_same:
            self.data_file.unlink(missing_ok=True)
            self.offset_file.unlink(missing_ok=True)
            _files.write_text(self.config_file, configs.text_of(config))
        self.checkpoints.mkdir(exist_ok=True)
        if not (is_same and self.versions_file.exists()):
            files.write_json(self.versions_file, {**files.versions(), "seed": config.seed})

    def _is_same(self, config):
        """Whether the run was begun with these settings; others are refused once an epoch has ended."""
        differ = config.differences(self.config())
        if differ and self.checkpoints.is_dir() and self.saved_checkpoints():
            received = {name: f"{new}, was {old}" for name, (new, old) in differ.items()}
            remedy = "Give the settings that it was begun with, or another folder."
            raise ValueError(
                _checks.message("`out` holds a run with other settings.", {"out": str(self.path), **received}, remedy)
            )
        return not differ

    def history(self):
        """The rows of `metrics.jsonl`; half a line that a kill left is no row."""
        if not self.metrics_file.exists():
            return []
        lines = self.metrics_file.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def write_history(self, rows):
        """Writes `metrics.jsonl`; numbers that JSON does not know become null."""
        known = [{name: _finite(value) for name, value in row.items()} for row in rows]
        _files.write_text(self.metrics_file, "".join(json.dumps(row) + "\n" for row in known))

    def save_checkpoint(self, model, epochs):
        """Saves network, optimizer and loss after so many epochs, and deletes older ones."""
        # Not as .weights.h5: HDF5 brings the process down when the disk is full, a .keras is made in memory.
        files.save_model(model, self.checkpoints / f"epoch-{epochs:05d}.keras")
        for _, old in self.saved_checkpoints()[_KEPT:]:
            old.unlink()

    def saved_checkpoints(self):
        """`(epochs, path)` of every checkpoint, the latest first."""
        found = ((_CHECKPOINT.fullmatch(path.name), path) for path in self.checkpoints.iterdir())
        return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)

    def keep_checkpoint(self, path):
        """Copies the latest checkpoint to `best` or `last`."""
        (_, latest), *_ = self.saved_checkpoints()
        beside = path.with_name(f"part-{path.name}")
        shutil.copyfile(latest, beside)
        os.replace(beside, path)


def check_outside(out, **places):
    """Refuses to write among files that are read: originals are never overwritten, nor results read as inputs."""
    here = Path(out).resolve()
    for role, place in places.items():
        if place is None or not Path(place).exists():
            continue
        there = Path(place).resolve()
        is_among = here == there.parent if there.is_file() else here == there or there in here.parents
        if is_among:
            received = {"out": str(out), role: str(place)}
            raise ValueError(_checks.message(f"`out` must not be among the {role}.", received, "Give a new folder."))


@contextlib.contextmanager
def writing(path):
    """Says of an error of the disk which folder it is about and what to do.

    Raises:
        OSError: instead of what Python, HDF5 and TensorFlow raise.
    """
    try:
        yield
    except OSError as error:
        number = error.errno or (errno.ENOSPC if "No space left" in str(error) else None)
        if number in _FULL:
            raise _full(path, error, number) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS) and _is_below(error.filename, path):
            received = {"out": str(path), "error": os.strerror(number)}
            raise OSError(number, _checks.message("`out` must be a folder that can be written.", received)) from error
        raise
    except tf.errors.ResourceExhaustedError as error:
        if "No space left" not in str(error) and "File too large" not in str(error):
            raise
        raise _full(path, error, errno.ENOSPC) from error


def _is_below(filename, path):
    """Whether an error is about the folder, one above it, or something in it; or does not say."""
    if filename is None:
        return True
    file, folder = Path(os.fsdecode(filename)).absolute(), Path(path).absolute()
    return file.is_relative_to(folder) or folder.is_relative_to(file)


def _full(path, error, number):
    """The error of a full disk."""
    received = {"out": str(path), "error": os.strerror(number)}
    remedy = "Make room and give the same command: it goes on with the last epoch that was saved."
    return OSError(number, _checks.message("The disk must have room for the run.", received, remedy))


@contextlib.contextmanager
def _locked(path):
    """Keeps other processes out of the folder; the system lifts the lock when the process ends, however it does."""
    if os.name != "posix":
        yield
        return
    fcntl = importlib.import_module("fcntl")  # not on every system
    with open(path / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            received = {"out": str(path)}
            remedy = "Wait for it, or give another folder."
            raise ValueError(_checks.message("Another process is at work in `out`.", received, remedy)) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):  # some network folders know no locks
                raise
        yield


def _finite(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value
