"""A run folder as `tfalign train` leaves it, read for those who go on with it."""

import contextlib
import csv
import itertools
import json
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

from tfalign import _checks
from tfalign.data import preprocess
from tfalign.data.cutting import Cutting
from tfalign.data.pipeline import Stream
from tfalign.data.shards import parse
from tfalign.jobs import files

MODELS = ("best.keras", "last.keras")
_CACHE = "cache"


class Records(NamedTuple):
    """The tables and texts of a run; empty where a file is not there yet.

    Attributes:
        config: the text of `config.yaml`.
        versions, summary: of the JSON files of these names.
        epochs: a dict for each epoch of `metrics.jsonl`, in order.
        labels: a dict of texts for each row of `alignment.csv`.
        skipped: a dict of path and reason for each file left out.
    """

    config: str
    versions: dict
    summary: dict
    epochs: list
    labels: list
    skipped: list


def existing(folder):
    """The folder of a run as a path, or an error that says what it is not."""
    folder = Path(folder)
    names = (*MODELS, "metrics.jsonl", "summary.json", "config.yaml")
    if not any((folder / name).exists() for name in names):
        remedy = "It is the folder that `tfalign train --out` wrote."
        raise ValueError(_checks.message("`run` must be the folder of a run.", {"run": str(folder)}, remedy))
    return folder


def records(folder):
    """The `Records` of a run."""
    folder = Path(folder)
    config = folder / "config.yaml"
    return Records(
        config=config.read_text(encoding="utf-8") if config.exists() else "",
        versions=_json(folder / "versions.json"),
        summary=_json(folder / "summary.json"),
        epochs=_epochs(folder / "metrics.jsonl"),
        labels=_rows(folder / "alignment.csv"),
        skipped=_rows(folder / "skipped.csv"),
    )


def best_model(folder):
    """The path of the best model of a run, or of the last one."""
    for name in MODELS:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    received = {"run": str(folder), "files": MODELS}
    raise ValueError(_checks.message("`run` must hold a model.", received, "Let the training end its first epoch."))


def cutting(folder):
    """The fitted `Cutting` that the patches of a run were cut by."""
    plan = Path(folder) / _CACHE / "plan.json"
    if not plan.exists():
        received = {"run": str(folder), "missing": str(plan)}
        remedy = "Give the model itself: --model FILE.keras."
        raise ValueError(_checks.message("`run` must hold its preprocessing.", received, remedy))
    content = files.read_json(plan)
    return Cutting.from_config({**content["settings"], "preprocessing": content["preprocessing"]})


def patches(cache, set_name, wanted):
    """Yields patches of a set, in order, as dicts of arrays: `input`, `label`, `start`, and the text `name`.

    Args:
        cache: a `Cache`, or a `Stream`.
        set_name: "train", "validation" or "test".
        wanted: `(number in the set, name of the file, start) -> bool`.
    """
    numbers = itertools.count()
    if isinstance(cache, Stream):
        for _, name, found in cache.read(set_name):
            for patch in found:
                if wanted(next(numbers), name, patch.start):
                    yield {"input": patch.input, "label": patch.label, "name": name, "start": patch.start}
        return
    for path, _ in cache.shards[set_name]:
        with contextlib.suppress(tf.errors.DataLossError):  # a shard that a kill cut off
            for record in tf.data.TFRecordDataset(path):
                example = tf.train.Example.FromString(record.numpy()).features.feature
                name = example["name"].bytes_list.value[0].decode()
                start = tuple(example["start"].int64_list.value)
                if wanted(next(numbers), name, start):
                    found = parse(
                        record,
                        input_shape=cache.input_shape,
                        label_shape=cache.label_shape,
                        label_dtype=cache.label_dtype,
                    )
                    arrays = {key: found[key].numpy() for key in ("input", "label")}
                    yield {**arrays, "name": name, "start": start}


def is_pointwise(preprocessing):
    """Whether every step takes each pixel by itself, so that parts of a grid can be prepared one by one."""
    local = (preprocess.Scale, preprocess.SeparateStains)
    return all(isinstance(step, local) or getattr(step, "over", "image") == "data" for step in preprocessing.steps)


def _json(path):
    return files.read_json(path) if path.exists() else {}


def _rows(path):
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _epochs(path):
    """The last line of each epoch: a run that went on may have written one twice, and a kill leaves half a line."""
    found: dict[int, dict] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            epoch = json.loads(line)
            found[epoch.get("epoch", len(found))] = epoch
    return [found[number] for number in sorted(found)]
