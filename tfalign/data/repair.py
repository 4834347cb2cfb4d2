"""Files of labels laid on what a trained network predicts: repaired labels, and a table of what was found."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfalign import _checks
from tfalign.data import fingerprints, label_files, misalign, patches, positions, sources, tables, writers
from tfalign.data.formats import BadFileError
from tfalign.data.journal import Journal
from tfalign.data.preprocess import Preprocessing
from tfalign.data.realignment import Pool, registered
from tfalign.ops import geometry, registration, resample

JOURNAL = "alignment.jsonl"  # in the folder of the repaired labels
_BATCH = 8
_AXES = {1: ("sample",), 2: ("row", "col"), 3: ("plane", "row", "col")}
_EVERY = "/all"  # no name of a pair begins so


def realign_files(
    pairs,
    model,
    folder,
    *,
    max_shift,
    max_rotation=0.0,
    max_scale=0.0,
    max_shear=0.0,
    per="file",
    preprocessing=None,
    similarity="ncc",
    subpixel=False,
    offset=0.0,
    min_confidence=0.5,
    min_overlap=0.5,
    ignore_class=None,
    patch_size=256,
    max_patches=64,
    table="alignment.csv",
    track=lambda description, total: lambda steps: None,
):
    """Registers the labels of files to the predictions of a trained network, and writes them moved back.

    A shift is found from patches: those of the file with the most to see in their labels, all together. Where more than
    shifts are searched, the file is predicted in patches and registered as a whole, which must fit into the memory. A
    kill loses the file in work; the same call goes on with it. A file that has changed since is done again.

    Args:
        pairs: `tfalign.data.Pairs`; inputs without label are passed over.
        model: `(batch, *spatial, channels)` -> predictions, of any size that patches have.
        folder: where to, one file for each label under the name of its pair, in the format that it came in: positions
            stay positions. Labels from no file of their own (archives, sets, recipes, slides) become .npy.
        max_shift: int >= 0, or one per spatial axis, pixels of what the model is given.
        max_rotation, max_scale, max_shear: see `tfalign.register`.
        per: "file", or "dataset" for one shift of all.
        preprocessing: of inputs, `(1, *spatial, channels)` -> the same sizes, or a fitted `Preprocessing`, which may
            change them: labels are registered as it places them, and moved in their own pixels.
        similarity, min_overlap: see `tfalign.register`.
        subpixel, min_confidence, ignore_class: see `realign`. Files of integers and positions that are not
            interpolated move by whole pixels; what no pixel moves to becomes NaN, in integers `ignore_class` or 0.
        offset: see `realign`; pixels of what the model is given.
        patch_size: likewise, one number or one per axis.
        max_patches: of a file, that are looked at for a shift.
        table: name of the table in `folder`, .csv or .parquet: for each file its name, the file written, where the
            label lay relative to its input (shift in pixels of the file and, if searched, rotation and shear in degrees
            and scale, see `tfalign.ops.geometry`), and the confidence.
        track: called with a description and a number of files, returns what is called with each step done.

    Returns:
        The rows of the table, a list of dicts.

    Raises:
        ValueError: an option out of range, a preprocessing that changes sizes in an unknown way, a table with the name
            of a label, or a folder begun with other settings, weights or preprocessing.
        BadFileError: a file cannot be read and `pairs` is strict; otherwise `pairs.skipped` lists it.
        ImportError: a .parquet table without the extra `parquet`.
    """
    _checks.choice("per", per, ("file", "dataset"))
    _checks.choice("similarity", similarity, registration.SIMILARITIES)
    tables.check_suffix("table", table)
    more = {"max_rotation": max_rotation, "max_scale": max_scale, "max_shear": max_shear}
    if per == "dataset" and any(more.values()):
        raise ValueError(_checks.message('More than shifts must be found per="file".', {"per": per, **more}))
    settings = {
        "max_shift": max_shift, **more, "per": per, "similarity": similarity, "subpixel": bool(subpixel),
        "offset": np.asarray(offset, float).tolist(), "min_confidence": min_confidence, "min_overlap": min_overlap,
        "ignore_class": ignore_class, "patch_size": patch_size, "max_patches": max_patches,
    }  # fmt: skip
    items = [index for index in range(len(pairs)) if pairs[index].label is not None]
    folder, work = Path(folder), _Work(pairs, model, preprocessing, settings)
    targets = {index: label_files.target(pairs[index]) for index in items}
    if table in targets.values():
        remedy = "Give the table another name."
        raise ValueError(_checks.message("`table` must not be the name of a label.", {"table": table}, remedy))
    made_by = {"model": fingerprints.of_model(model), "preprocessing": _settings_of(preprocessing)}
    digests = {name: fingerprints.digest(value) for name, value in made_by.items()}
    journal = Journal(folder / JOURNAL, {**settings, **digests})
    states = {index: fingerprints.digest(fingerprints.of_example(pairs, index)) for index in items}
    if per == "dataset":  # every file has a part in the shift of all
        states = dict.fromkeys(items, fingerprints.digest(list(states.values())))

    def is_done(index):
        known = journal.entry(pairs[index].name, states[index])
        return known is not None and (label_files.is_shared(pairs[index]) or (folder / targets[index]).exists())

    missing = [index for index in items if not is_done(index)]
    common = None
    if per == "dataset" and missing:
        common = journal.entry(_EVERY, states[items[0]])
        if common is None:
            common = work.common(items, track("registering", len(items)))
            journal.add(_EVERY, states[items[0]], common)
    advance = track("repairing", len(items))
    advance(len(items) - len(missing))
    for index in missing:
        entry = work.repaired(index, folder, targets[index], common)
        if entry is not None:
            journal.add(pairs[index].name, states[index], entry)
        advance(1)
    entries = {index: journal.entry(pairs[index].name, states[index]) for index in items}
    entries = {index: entry for index, entry in entries.items() if entry is not None}
    label_files.write_shared([(pairs[index], entry) for index, entry in entries.items()], folder)
    rows = [entry["row"] for entry in entries.values()]
    tables.write(folder / table, rows)
    return rows


class _Seen(NamedTuple):
    """What the model is given of one file, the label on the same grid, and where that is of the file (1, else 0)."""

    image: np.ndarray
    label: np.ndarray
    inside: np.ndarray


class _Work:
    """What is done to one file."""

    def __init__(self, pairs, model, preprocessing, settings):
        self._pairs, self._model, self._prepare = pairs, model, preprocessing
        self._settings = settings
        self._more = {name: settings[name] for name in ("max_rotation", "max_scale", "max_shear")}
        self._moves_pixels = isinstance(preprocessing, Preprocessing) and preprocessing.moves_pixels

    def common(self, items, advance):
        """`(translation, confidence)` of all files together; None where none can be read."""
        pool = None
        for index in items:
            example = self._read(index)
            pool = pool if example is None else self._pooled(example, pool)
            advance(1)
        return pool and _plain(*pool.result())

    def repaired(self, index, folder, written, common):
        """Writes the label of one file, moved; its entry in the journal, or None where it cannot be read."""
        example = self._read(index)
        if example is None:
            return None
        source = self._pairs[index].label
        keeps_marks = label_files.has_marks(source)
        transform, confidence = self._transform(example, keeps_marks, common)
        move = None
        if keeps_marks:
            shape = example.input.shape[:-1]
            original = source.path if source.marks is None else label_files.file_and_owner(source)[0]
            move = positions.in_file(np.linalg.inv(transform), original, source.drawing, shape)
        if keeps_marks and source.marks is None:
            positions.write_moved(source.path, folder / written, {None: move})
        elif not keeps_marks:
            original = source.path if isinstance(source, sources.File) else None
            writers.write_like(original, folder / example.name, self._moved(example.label, transform))
        row = {
            "name": example.name,
            "file": written,
            **_parameters(transform, any(self._more.values())),
            "confidence": round(confidence, 6),
        }
        return {"row": row, "move": None if move is None else move.tolist()}

    def _read(self, index):
        try:
            return self._pairs.read(index)
        except BadFileError:
            if self._pairs.strict:
                raise
            return None

    def _transform(self, example, keeps_marks, common):
        """`(transform (d+1, d+1), confidence)`, input -> label on the file's own grid; the identity where unknown."""
        rank, settings = example.input.ndim - 1, self._settings
        if any(self._more.values()):
            transform, confidence = self._of_whole(example)
        else:
            translation, confidence = common or self._pooled(example).result()
            transform = misalign.make_transforms(np.array(translation)[np.newaxis])[0]
        if confidence < settings["min_confidence"]:
            return np.eye(rank + 1), confidence
        offset = np.asarray(settings["offset"], float) * np.ones(rank)
        transform = transform @ misalign.make_transforms(-offset[np.newaxis])[0]
        if self._moves_pixels:
            scale = np.diag([*self._prepare.magnification(example.input.shape[:-1]), 1.0])
            transform = np.linalg.inv(scale) @ transform @ scale
        is_map = example.label.dtype.kind in "iu" and not keeps_marks
        if _is_shift(transform) and (is_map or not settings["subpixel"]):
            transform[:-1, -1] = np.round(transform[:-1, -1]) + 0.0
        return transform, confidence

    def _pooled(self, example, pool=None):
        """The evidence for a shift of one file, on top of that of others."""
        bounds = self._bounds(example)
        pool = pool or Pool(bounds)
        for windows, labels, inside in self._windows(self._seen(example), bounds):
            found = self._registered(self._predicted(windows), labels, inside, max_shift=bounds)
            for maps in zip(found.posterior_map.numpy(), found.score_map.numpy()):
                pool.add(*maps)
        return pool

    def _of_whole(self, example):
        """The transform of one file `(d+1, d+1)` on the grid that the model is given, and its confidence."""
        seen, bounds = self._seen(example), self._bounds(example)
        tiles = self._tiles(seen, overlap=4)
        predicted = (self._predicted(one[np.newaxis])[0].numpy() for one in patches.cut(seen.image, tiles))
        whole = patches.stitch(predicted, tiles, fill_value=np.nan)
        found = self._registered(
            tf.constant(whole[np.newaxis]), seen.label[np.newaxis], seen.inside[np.newaxis, ..., 0],
            max_shift=bounds, **self._more,
        )  # fmt: skip
        return found.transform[0].numpy().astype(np.float64), float(found.confidence[0])

    def _bounds(self, example):
        return _checks.pixels_per_axis("max_shift", self._settings["max_shift"], example.input.ndim - 1)

    def _predicted(self, windows):
        return tf.cast(self._model(tf.constant(windows), training=False), tf.float32)

    def _registered(self, prediction, labels, inside, **bounds):
        options = {name: self._settings[name] for name in ("similarity", "min_overlap", "ignore_class")}
        return registered(prediction, tf.constant(labels), mask=inside, **options, **bounds)

    def _seen(self, example):
        """The file as the model is given it."""
        image, label = example.input, example.label
        inside = np.ones((*label.shape[:-1], 1), np.uint8)
        if self._prepare is not None:
            image = np.asarray(self._prepare(image[np.newaxis]))[0]
        if self._moves_pixels:
            fill = np.nan if label.dtype.kind == "f" else (self._settings["ignore_class"] or 0)
            interpolation = "linear" if label.dtype.kind == "f" else "nearest"
            label = self._prepare.place(label[np.newaxis], interpolation=interpolation, fill_value=fill).numpy()[0]
            inside = self._prepare.place(inside[np.newaxis], interpolation="nearest", fill_value=0).numpy()[0]
        elif image.shape[:-1] != example.input.shape[:-1]:
            received = {"before": example.input.shape, "after": image.shape}
            remedy = "Or it must be a `tfalign.data.preprocess.Preprocessing`, which says where pixels go."
            raise ValueError(_checks.message("`preprocessing` must keep the sizes.", received, remedy))
        return _Seen(image.astype(np.float32), label, inside)

    def _tiles(self, seen, overlap=None):
        """Patches of the file, which overlap by one `overlap`-th of their size."""
        shape = seen.image.shape[:-1]
        sizes = _checks.pixels_per_axis("patch_size", self._settings["patch_size"], len(shape))
        sizes = tuple(min(size, length) for size, length in zip(sizes, shape))
        return patches.tile(shape, size=sizes, overlap=tuple(size // overlap if overlap else 0 for size in sizes))

    def _windows(self, seen, bounds):
        """Batches where there is most to see: inputs, labels with room to be moved, and where these are of the file."""
        tiles = self._tiles(seen)
        outer = tuple(size + 2 * bound for size, bound in zip(tiles.size, bounds))
        ignored = self._settings["ignore_class"]
        contents = [patches.content(one, ignore_class=ignored) for one in patches.cut(seen.label, tiles)]
        chosen = np.argsort(contents, kind="stable")[::-1][: self._settings["max_patches"]]
        for start in range(0, len(chosen), _BATCH):
            indices = sorted(int(one) for one in chosen[start : start + _BATCH])
            inside = patches.cut(seen.inside, tiles, size=outer, fill=0, indices=indices)
            yield (
                np.stack(list(patches.cut(seen.image, tiles, indices=indices))),
                np.stack(list(patches.cut(seen.label, tiles, size=outer, indices=indices))),
                np.stack([one[..., 0] for one in inside]),
            )

    def _moved(self, label, transform):
        """A label on its own grid, laid back; a shift by whole pixels copies."""
        is_float = label.dtype.kind == "f"
        fill = np.nan if is_float else (self._settings["ignore_class"] or 0)
        shift = transform[:-1, -1]
        if _is_shift(transform) and np.all(shift == np.round(shift)):
            moved = np.full_like(label, fill)
            to, source = zip(*(_overlap(length, by) for length, by in zip(label.shape, shift.astype(int))))
            moved[to] = label[source]
            return moved
        values, _ = resample.warp(
            label[np.newaxis],
            tf.constant(transform[np.newaxis], tf.float32),
            interpolation="linear" if is_float else "nearest",
            fill_value=fill,
        )
        return values.numpy()[0].astype(label.dtype)


def _settings_of(preprocessing):
    has_config = hasattr(preprocessing, "get_config")
    return preprocessing.get_config() if has_config else fingerprints.of_function(preprocessing)


def _plain(translation, confidence):
    """As JSON can hold it."""
    return translation.tolist(), confidence


def _is_shift(transform):
    return np.array_equal(transform[:-1, :-1], np.eye(len(transform) - 1))


def _parameters(transform, has_more):
    """What a transform is made of, by the names of the columns."""
    rank = len(transform) - 1
    axes = _AXES[rank]
    row = dict(zip(axes, (transform[:-1, -1] + 0.0).tolist()))
    if has_more:
        found = geometry.decompose(tf.constant(transform[np.newaxis]))
        about = {1: (), 2: ("",), 3: tuple(f"_{axis}" for axis in axes)}[rank]
        for name, suffixes in (("rotation", about), ("shear", about), ("scale", [f"_{axis}" for axis in axes])):
            row |= {name + suffix: float(value) for suffix, value in zip(suffixes, getattr(found, name)[0])}
    return row


def _overlap(length, by):
    """Where a row of `length` lies after a move by `-by`, and where from."""
    kept = max(length - abs(by), 0)
    first = max(by, 0) if kept else 0
    return slice(max(-by, 0), max(-by, 0) + kept), slice(first, first + kept)
