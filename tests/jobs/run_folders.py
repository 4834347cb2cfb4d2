"""Run folders as `tfalign train` leaves them, made without training: the network gives back what its label shows."""

import csv
import json
from pathlib import Path

import keras
import numpy as np
import scipy.ndimage
import tensorflow as tf
from PIL import Image

from tests.export.networks import shifting
from tfalign.data import pipeline, read_pairs, tables
from tfalign.data.preprocess import Preprocessing, Scale
from tfalign.data.realignment import registered
from tfalign.jobs import files, misalignment, run_reading

MAX_SHIFT = 6
EVIL = "<img src=x onerror=alert(1)> & \"quoted\" 'név'"


def scene(rng, size):
    """A smooth random picture `(size, size)`, bytes."""
    field = scipy.ndimage.gaussian_filter(rng.standard_normal((size, size)), 2)
    return np.uint8(255 * (field - field.min()) / np.ptp(field))


def write_pictures(folder, names, *, size=64, seed=3, scenes=None):
    """Inputs, and labels of the same scene that lie elsewhere; returns the shifts by name."""
    rng, shifts = np.random.default_rng(seed), {}
    for part in ("inputs", "labels"):
        (folder / part).mkdir(parents=True)
    for name in names:
        whole = scene(rng, size + 4 * MAX_SHIFT) if scenes is None else _part(scenes, size + 4 * MAX_SHIFT, rng)
        shifts[name] = tuple(int(one) for one in rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, 2))
        for part, shift in (("inputs", (0, 0)), ("labels", shifts[name])):
            top, left = (2 * MAX_SHIFT - one for one in shift)
            picture = whole[top : top + size, left : left + size]
            Image.fromarray(picture).save(folder / part / f"{name.replace('/', '_')}.png")
    return shifts


def _part(whole, size, rng):
    top, left = (int(rng.integers(0, length - size)) for length in whole.shape)
    return whole[top : top + size, left : left + size]


def make(folder, names=("a b", "c", "d", "é"), *, size=64, scenes=None):
    """A run in `folder / "run"`, its files beside it; `scenes` is a picture to cut them from."""
    folder = Path(folder)
    write_pictures(folder, names, size=size, scenes=scenes)
    run = folder / "run"
    cutting = pipeline.Cutting(
        preprocessing=Preprocessing((Scale(high=255),)),
        label_preprocessing=Preprocessing((Scale(high=255),)),
        patch_size=32,
        margin=MAX_SHIFT,
        fractions=(0.5, 0.25, 0.25),
    )
    pipeline.prepare(read_pairs(folder / "inputs", folder / "labels"), run / "cache", cutting, workers=0)
    model = shifting((0, 0))
    files.save_model(model, run / "best.keras")
    files.save_model(model, run / "last.keras")
    (run / "config.yaml").write_text(f"# {EVIL}\nseed: 0\n", encoding="utf-8")
    files.write_json(run / "versions.json", {"tfalign": "0.0", "seed": 0})
    return run


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def read_json_lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def saved(model, path):
    """Saves a model and returns the path."""
    model.save(path)
    return path


def make_of_arrays(folder, rank):
    """A run on signals or volumes, labels moved by one pixel along every axis."""
    folder, rng = Path(folder), np.random.default_rng(4)
    shape, patch = {1: ((200,), 50), 3: ((12, 24, 24), (12, 12, 12))}[rank]
    for part in ("inputs", "labels"):
        (folder / part).mkdir(parents=True)
    for name in ("a", "b", "c"):
        values = scipy.ndimage.gaussian_filter(rng.standard_normal(shape), 1.5).astype(np.float32)
        np.save(folder / "inputs" / f"{name}.npy", values)
        np.save(folder / "labels" / f"{name}.npy", np.roll(values, (1,) * rank, axis=tuple(range(rank))))
    fractions = (1 / 3, 1 / 3, 1 / 3)
    cutting = pipeline.Cutting(patch_size=patch, margin=2, fractions=fractions)
    pairs = read_pairs(folder / "inputs", folder / "labels", rank=rank)
    pipeline.prepare(pairs, folder / "run" / "cache", cutting, workers=0)
    layer = {1: keras.layers.Conv1D, 3: keras.layers.Conv3D}[rank](1, 1, use_bias=False, kernel_initializer="ones")
    files.save_model(keras.Sequential([keras.Input((None,) * rank + (1,)), layer]), folder / "run" / "best.keras")
    return folder / "run"


def finish(run, *, epochs=6, seed=5, max_shift=MAX_SHIFT):
    """Adds the tables that training leaves: where the label of every patch lies, and the log."""
    rng = np.random.default_rng(seed)
    cache, rows = pipeline.reopened(run / "cache"), []
    model = files.read_model(run / "best.keras")
    axes = misalignment.AXES[len(cache.input_shape) - 1]
    for split in ("train", "validation", "test"):
        for patch in run_reading.patches(cache, split, lambda *_: True):
            labels = tf.constant(patch["label"][np.newaxis])
            found = registered(model(patch["input"][np.newaxis]), labels, max_shift=max_shift)
            shift = [round(float(one), 2) for one in found.translation.numpy()[0]]
            rows.append(
                {"id": f"{patch['name']}@{','.join(map(str, patch['start']))}", "file": patch["name"], "split": split,
                 **{f"start_{axis}": first for axis, first in zip(axes, patch["start"])}, **dict(zip(axes, shift)),
                 "score": round(float(found.score[0]), 4), "confidence": round(float(found.confidence[0]), 4)}
            )  # fmt: skip
    tables.write(run / "alignment.csv", rows)
    lines = [
        {"epoch": number, "loss": 0.2 / (1 + number), "val_loss": 0.21 / (1 + number),
         "val_in_place_psnr": 20.0 + number,
         "drift": 0.4 / (1 + number), "alignment_confidence": 0.5 + 0.08 * number, "alignment_ready": 1.0,
         "learning_rate": 1e-3, "seconds": 1.5 + rng.random()}
        for number in range(epochs)
    ]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"epo', encoding="utf-8")
    scores = {"in_place": {"psnr": 21.3, "ssim": 0.61}, "registered": {"psnr": 30.2, "ssim": 0.93}}
    files.write_json(
        run / "summary.json",
        {"done": False, "base": "mae", "similarity": "ncc", "bounds": {"max_shift": max_shift, "max_rotation": 0.0},
         "rank": len(axes), "counts": {"files": 4, "labels": len(rows), "skipped": 1}, "epochs": epochs,
         "best_epoch": 4,
         "monitor": "val_loss", "stopped": "all epochs done", "validation": scores, "test": scores,
         "validation_labels_lie_right": False, "drift": [0.01, -0.02, 0.0][: len(axes)], "alignment_confidence": 0.9},
    )  # fmt: skip
    with open(run / "skipped.csv", "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("path", "reason"), (f"labels/{EVIL}.png", "it cannot be decoded")])
    return rows
