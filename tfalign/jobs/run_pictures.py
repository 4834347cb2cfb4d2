"""Pictures of a run's patches: what the network gives, the label as it came, and the label laid back."""

import collections
import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from tfalign.data.cache import Cache
from tfalign.data.realignment import registered
from tfalign.data.split import SETS
from tfalign.jobs import figures, files, networks, run_data, run_figures, run_reading
from tfalign.jobs.run_folder import RunFolder
from tfalign.models.deformable import DeformableModel
from tfalign.ops import displacements, resample

_LARGEST = 384  # pixels a side of a picture
_HELD_OUT = 4
_CANDIDATES = 16
_PALETTE = np.array(
    [[31, 41, 55], [230, 120, 40], [70, 150, 220], [90, 175, 80], [200, 70, 80], [150, 110, 200], [240, 200, 60]]
)


class Trained(NamedTuple):
    """What patches are looked at with.

    Attributes:
        model: of prepared patches.
        cache: the run's, or its stream.
        ignore_class: that of class maps, None for other labels.
        search: options of `tfalign.register`.
        align: of bent labels `DeformableModel.align`, traced, else None.
    """

    model: Callable
    cache: Cache
    ignore_class: int | None
    search: dict
    align: Callable | None = None

    @classmethod
    def of_run(cls, folder, summary):
        """That of a run; None where model or patches are not there."""
        try:
            cache = run_data.reopened(RunFolder(folder))
        except (OSError, ValueError):  # without a cache the files are needed, and they may be gone
            cache = None
        if cache is None or not any((folder / name).is_file() for name in run_reading.MODELS):
            return None
        bounds = {name: _plain(value) for name, value in (summary.get("bounds") or {}).items() if value}
        search = {"max_shift": 8, "similarity": summary.get("similarity") or "ncc", **bounds}
        search["similarity"] = "ncc" if search["similarity"] == "base" else search["similarity"]
        model, align = files.read_model(run_reading.best_model(folder), whole=True), None
        if isinstance(model, DeformableModel):
            networks.compile_for(model, RunFolder(folder).config())
            align = tf.function(model.align, autograph=False)
        return cls(model, cache, run_reading.cutting(folder).ignore_class, search, align)

    def predicted(self, patch):
        """The prediction of a patch `(*spatial, channels)`; of class maps the number of the largest channel."""
        prediction = tf.cast(self.model(patch["input"][np.newaxis], training=False), tf.float32)[0].numpy()
        if self.ignore_class is not None and prediction.shape[-1] > 1:
            return np.argmax(prediction, axis=-1)[..., np.newaxis].astype(np.int32)
        return prediction

    def laid(self, label, like, transform):
        """A label `(*spatial, channels)` moved by a transform onto the grid of a prediction, float, NaN if unknown."""
        is_map = self.ignore_class is not None
        values, _ = resample.warp(
            label[np.newaxis],
            tf.constant(transform, tf.float32),
            output_shape=like.shape[:-1],
            interpolation="nearest" if is_map else "linear",
            fill_value=self.ignore_class if is_map else np.nan,
        )
        values = values.numpy()[0].astype(np.float32)
        return np.where(values == self.ignore_class, np.nan, values) if is_map else values

    def laid_back(self, patch, like, label):
        """The label of a patch laid on the grid of its prediction, float, NaN if unknown; and by what displacements.

        These are `(*spatial, d)` pixels, or None where it was only shifted.
        """
        if self.align is not None:
            found = self.align(*(tf.constant(patch[side][np.newaxis]) for side in ("input", "label")))
            known = found.mask[0, ..., np.newaxis].numpy() > 0.0
            return np.where(known, found.label[0], np.nan).astype(np.float32), found.displacement[0].numpy()
        transform = tf.constant(label.transform(), tf.float32)
        field = displacements.from_transform(transform, like.shape[:-1])[0].numpy() if label.turns else None
        return self.laid(patch["label"], like, transform), field


def of_labels(trained, wanted):
    """Pictures of patches: for each `Label` found in the cache `(label, dict of data URLs)`.

    The dict holds "input"; "before" and "after", the prediction in magenta over the label in green, as it came and laid
    back; and "field", the displacements where the label is more than shifted, or None.
    """
    by_place = {(label.split, label.file, label.start): label for label in wanted}
    found = {}
    for set_name in SETS:
        places = {place[1:] for place in by_place if place[0] == set_name}
        patches = run_reading.patches(trained.cache, set_name, lambda _, *place, places=places: place in places)
        # No more of the shards is read than needed.
        for patch in itertools.islice(patches, len(places)):
            label = by_place[set_name, patch["name"], patch["start"]]
            found[label.row["id"], set_name] = (label, _of_label(trained, patch, label))
    return [found[label.row["id"], label.split] for label in wanted if (label.row["id"], label.split) in found]


def held_out(trained, labels):
    """`(name of the set, [(name of the file, {title: data URL})])` of patches with much to see; (None, []) without.

    Labels are laid back as `labels`, the `Label`s of the run, say.
    """
    known = {(label.split, label.file, label.start): label for label in labels}
    for set_name in ("test", "validation", "train"):
        contents = trained.cache.contents[set_name]
        if len(contents):
            chosen = set(np.argsort(-contents, kind="stable")[:_CANDIDATES].tolist())
            patches = run_reading.patches(trained.cache, set_name, lambda number, *_, chosen=chosen: number in chosen)
            found = itertools.islice(patches, len(chosen))
            shown = _one_of_each_first([(contents[number], patch) for number, patch in zip(sorted(chosen), found)])
            return set_name, [
                (patch["name"], _shown(trained, patch, known.get((set_name, patch["name"], patch["start"]))))
                for patch in shown[:_HELD_OUT]
            ]
    return None, []


def _one_of_each_first(found):
    """Patches of `(content, patch)`: of every file the one with the most to see, then the second of each."""
    turns: collections.Counter = collections.Counter()
    placed = []
    for number, (_, patch) in enumerate(sorted(found, key=lambda one: -one[0])):
        placed.append((turns[patch["name"]], number, patch))
        turns[patch["name"]] += 1
    return [patch for *_, patch in sorted(placed, key=lambda one: one[:2])]


def score_map(trained, wanted):
    """The search for one label: `{title: data URL}`; {} where its patch is not found."""
    for patch in run_reading.patches(
        trained.cache, wanted.split, lambda _, *place: place == (wanted.file, wanted.start)
    ):
        prediction = tf.cast(trained.model(patch["input"][np.newaxis], training=False), tf.float32)
        search = {**trained.search, **dict.fromkeys(("max_rotation", "max_scale", "max_shear"), 0.0)}
        label = tf.constant(patch["label"][np.newaxis])
        found = registered(prediction, label, ignore_class=trained.ignore_class, **search)
        scores = found.score_map.numpy()[0]
        shown = _of_label(trained, patch, wanted)
        return {
            "input": shown["input"],
            "prediction over the label as it came": shown["before"],
            "score of every shift; the best is marked": run_figures.score_map(scores, found.translation.numpy()[0]),
            "prediction over the label laid back": shown["after"],
        }
    return {}


def _of_label(trained, patch, label):
    prediction = trained.predicted(patch)
    rank = prediction.ndim - 1
    before = trained.laid(patch["label"], prediction, np.eye(rank + 1)[np.newaxis])
    after, field = trained.laid_back(patch, prediction, label)
    overlay = _overlay if rank > 1 else _signals
    return {
        "input": _picture(patch["input"]),
        "before": overlay(prediction, before),
        "after": overlay(prediction, after),
        "field": run_figures.field(field) if rank == 2 and field is not None else None,
    }


def _shown(trained, patch, label):
    """Input, prediction and label of one held-out patch, as pictures."""
    prediction = trained.predicted(patch)
    rank = prediction.ndim - 1
    drawn = {"label as it came": trained.laid(patch["label"], prediction, np.eye(rank + 1)[np.newaxis])}
    if label is not None:
        drawn["label laid back"], _ = trained.laid_back(patch, prediction, label)
    if rank == 1:
        pictures = {title: _signals(prediction, one) for title, one in drawn.items()}
    elif trained.ignore_class is not None:
        pictures = {title: _classes(one) for title, one in {"prediction": prediction, **drawn}.items()}
    else:
        low, high = _range(drawn["label as it came"])
        pictures = {title: _picture(one, low, high) for title, one in {"prediction": prediction, **drawn}.items()}
    return {"input": _picture(patch["input"]), **pictures}


def _overlay(prediction, label):
    """Prediction in magenta, label in green, gray where they agree; dark where the label is not known."""
    first, second = (_stretched(_plane(one).mean(axis=-1)) for one in (prediction, label))
    unknown = ~np.isfinite(second)
    codes = np.stack([first, np.where(unknown, 0.0, second), first], axis=-1)
    codes[unknown] = 0.12
    return _url(codes)


def _signals(prediction, label):
    return run_figures.signals({"label": label.mean(axis=-1), "prediction": prediction.mean(axis=-1)})


def _picture(values, low=None, high=None):
    """A patch as a picture: gray, or the first three channels as colours."""
    if values.ndim == 2:
        return run_figures.signals({"input": values.mean(axis=-1)})
    plane = _plane(values)
    plane = plane[..., :3] if plane.shape[-1] >= 3 else np.repeat(plane[..., :1], 3, axis=-1)
    low, high = _range(plane) if low is None else (low, high)
    return _url(np.nan_to_num((plane - low) / max(high - low, 1e-12), nan=0.12))


def _classes(values):
    """A class map in colours; dark where it is not known."""
    numbers = _plane(values)[..., 0]
    known = np.isfinite(numbers)
    codes = _PALETTE[np.where(known, numbers, 0).astype(int) % len(_PALETTE)] / 255.0
    codes[~known] = 0.0
    return _url(codes)


def _plane(values):
    """The rows and columns of a picture, or of the middle plane of a volume."""
    return values[len(values) // 2] if values.ndim == 4 else values


def _stretched(values):
    low, high = _range(values)
    return np.clip((values - low) / max(high - low, 1e-12), 0.0, 1.0)


def _range(values):
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    low, high = np.percentile(known, (0.5, 99.5))
    return float(low), float(high)


def _url(values):
    """`(rows, cols, 3)` in [0, 1] as a data URL, made smaller if it is large."""
    image = Image.fromarray((np.clip(255 * values, 0, 255) + 0.5).astype(np.uint8))
    image.thumbnail((_LARGEST, _LARGEST))
    return figures.data_url(figures.picture(np.asarray(image)))


def _plain(value):
    return tuple(value) if isinstance(value, list) else value
