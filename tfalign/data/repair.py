"""Files of labels laid on what a trained network predicts: repaired labels, and a table of what was found."""

import json
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfalign import _checks, _files
from tfalign.data import patches, positions, sources, tables, writers
from tfalign.data.formats import BadFileError
from tfalign.data.realignment import Pool, registered
from tfalign.ops import geometry, registration, resample

_BATCH = 8
_AXES = {1: ("sample",), 2: ("row", "col"), 3: ("plane", "row", "col")}
_ALL_AXES = ("sample", "plane", "row", "col")


def realign_files(
    pairs,
    model,
    folder,
    *,
    max_shift,
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

    A shift is found from patches: those of the file with the most to see in their labels, all together. A kill loses
    the file in work; the same call goes on with it.

    Args:
        pairs: `tfalign.data.Pairs`; inputs without label are passed over.
        model: `(batch, *spatial, channels)` -> predictions, of any size that patches have.
        folder: where to, one file for each label under the name of its pair, in the format that it came in: positions
            stay positions. Labels from no file of their own (archives, sets, recipes, slides) become .npy.
        max_shift: int >= 0, or one per spatial axis, pixels.
        per: "file", or "dataset" for one shift of all.
        preprocessing: of inputs, `(1, *spatial, channels)` -> the same sizes.
        similarity, min_overlap: see `tfalign.register`.
        subpixel, offset, min_confidence, ignore_class: see `realign`. Files of integers and positions that are not
            interpolated move by whole pixels; what no pixel moves to becomes NaN, in integers `ignore_class` or 0.
        patch_size: pixels, one number or one per axis.
        max_patches: of a file, that are looked at.
        table: name of the table in `folder`, .csv or .parquet: for each file its name, the file written, the shift in
            pixels (where the label lay relative to its input), and the confidence.
        track: called with a description and a number of files, returns what is called with each step done.

    Returns:
        The rows of the table, a list of dicts.

    Raises:
        ValueError: an option out of range, a preprocessing that changes sizes, or a folder begun with other settings.
        BadFileError: a file cannot be read and `pairs` is strict; otherwise `pairs.skipped` lists it.
        ImportError: a .parquet table without the extra `parquet`.
    """
    _checks.choice("per", per, ("file", "dataset"))
    _checks.choice("similarity", similarity, registration.SIMILARITIES)
    tables.check_suffix("table", table)
    settings = {
        "max_shift": max_shift, "per": per, "similarity": similarity, "subpixel": bool(subpixel),
        "offset": np.asarray(offset, float).tolist(), "min_confidence": min_confidence, "min_overlap": min_overlap,
        "ignore_class": ignore_class, "patch_size": patch_size, "max_patches": max_patches,
    }  # fmt: skip
    work = _Work(pairs, model, preprocessing, settings)
    journal = _Journal(Path(folder), settings)
    items = [index for index in range(len(pairs)) if pairs[index].label is not None]
    common = None
    if per == "dataset":
        advance, pool = track("registering", len(items)), None
        for index in items:
            pool = work.pooled(index, pool)
            advance(1)
        common = pool.result() if pool else None
    advance = track("repairing", len(items))
    for index in items:
        if not journal.has(pairs[index].name, by_itself=not _is_shared(pairs[index])):
            row = work.repaired(index, Path(folder), common)
            if row is not None:
                journal.add(row)
        advance(1)
    rows = journal.rows(pairs[index].name for index in items)
    work.write_shared_positions(rows, Path(folder))
    tables.write(Path(folder) / table, rows)
    return rows


class _Work:
    """What is done to one file."""

    def __init__(self, pairs, model, preprocessing, settings):
        self._pairs, self._model, self._prepare = pairs, model, preprocessing
        self._settings = settings

    def pooled(self, index, pool=None):
        """The evidence of one file, on top of that of others; None for a file that cannot be read."""
        example = self._read(index)
        if example is None:
            return pool
        bounds = _checks.pixels_per_axis("max_shift", self._settings["max_shift"], example.input.ndim - 1)
        pool = pool or Pool(bounds)
        options = {name: self._settings[name] for name in ("similarity", "min_overlap", "ignore_class")}
        for windows, labels, inside in self._windows(example, bounds):
            prediction = tf.cast(self._model(tf.constant(windows), training=False), tf.float32)
            found = registered(prediction, tf.constant(labels), mask=inside, max_shift=bounds, **options)
            for maps in zip(found.posterior_map.numpy(), found.score_map.numpy()):
                pool.add(*maps)
        return pool

    def repaired(self, index, folder, common):
        """Writes the label of one file, moved; its row, or None where it cannot be read."""
        example = self._read(index)
        if example is None:
            return None
        translation, confidence = common or self.pooled(index).result()
        rank, source = len(translation), self._pairs[index].label
        shift = translation - np.asarray(self._settings["offset"], np.float32) * np.ones(rank, np.float32)
        marks = isinstance(source, sources.Drawn) and source.placing is None
        if not self._settings["subpixel"] or (example.label.dtype.kind in "iu" and not marks):
            shift = np.round(shift)
        if confidence < self._settings["min_confidence"]:
            shift = np.zeros_like(shift)
        path = folder / example.name
        if marks and source.marks is None:
            path = path.with_name(path.name + Path(source.path).suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            positions.write_moved(source.path, path, {None: shift / source.drawing.scale})
        elif _is_shared(self._pairs[index]):
            path = folder / Path(_file_and_owner(source)[0]).name
        else:
            original = source.path if isinstance(source, sources.File) else None
            path = writers.write_like(original, path, self._moved(example.label, shift))
        return {
            "name": example.name,
            "file": path.relative_to(folder).as_posix(),
            **{axis: float(value) for axis, value in zip(_AXES[rank], shift + 0.0)},
            "confidence": round(confidence, 6),
        }

    def write_shared_positions(self, rows, folder):
        """Writes the files of positions that hold the labels of many inputs."""
        shifts = {row["name"]: np.array([row[axis] for axis in _ALL_AXES if axis in row]) for row in rows}
        shared: dict = {}
        for pair in self._pairs:
            if _is_shared(pair) and pair.name in shifts:
                original, owner = _file_and_owner(pair.label)
                shared.setdefault(original, {})[owner] = shifts[pair.name] / pair.label.drawing.scale
        for original, of_owner in shared.items():
            positions.write_moved(original, folder / Path(original).name, of_owner)

    def _read(self, index):
        try:
            return self._pairs.read(index)
        except BadFileError:
            if self._pairs.strict:
                raise
            return None

    def _windows(self, example, bounds):
        """Batches where there is most to see: inputs, labels with room to be moved, and where these are of the file."""
        image = example.input
        if self._prepare is not None:
            image = np.asarray(self._prepare(image[np.newaxis]))[0]
        if image.shape[:-1] != example.input.shape[:-1]:
            received = {"before": example.input.shape, "after": image.shape}
            raise ValueError(_checks.message("`preprocessing` must keep the sizes.", received))
        shape = image.shape[:-1]
        sizes = _checks.pixels_per_axis("patch_size", self._settings["patch_size"], len(shape))
        tiles = patches.tile(shape, size=tuple(min(size, length) for size, length in zip(sizes, shape)))
        label, ignored = example.label, self._settings["ignore_class"]
        outer = tuple(size + 2 * bound for size, bound in zip(tiles.size, bounds))
        contents = [patches.content(one, ignore_class=ignored) for one in patches.cut(label, tiles)]
        chosen = np.argsort(contents, kind="stable")[::-1][: self._settings["max_patches"]]
        for start in range(0, len(chosen), _BATCH):
            indices = sorted(int(one) for one in chosen[start : start + _BATCH])
            inside = np.ones((*label.shape[:-1], 1), np.uint8)
            yield (
                np.stack(list(patches.cut(image.astype(np.float32), tiles, indices=indices))),
                np.stack(list(patches.cut(label, tiles, size=outer, indices=indices))),
                np.stack([one[..., 0] for one in patches.cut(inside, tiles, size=outer, fill=0, indices=indices)]),
            )

    def _moved(self, label, shift):
        """A label on its own grid, its content moved by `-shift`."""
        fill = np.nan if label.dtype.kind == "f" else (self._settings["ignore_class"] or 0)
        if np.all(shift == np.round(shift)):
            whole = shift.astype(int)
            moved = np.full_like(label, fill)
            target, source = zip(*(_overlap(length, by) for length, by in zip(label.shape, whole)))
            moved[target] = label[source]
            return moved
        transform = geometry.from_translation(tf.constant(shift[np.newaxis], tf.float32))
        values, mask = resample.warp(tf.constant(label[np.newaxis]), transform)
        return np.where(mask[0][..., np.newaxis] > 0, values[0], np.nan).astype(label.dtype)


class _Journal:
    """The rows so far, one line of JSON each, under the settings that made them."""

    def __init__(self, folder, settings):
        self._path, self._folder = folder / "alignment.jsonl", folder
        self._rows: dict[str, dict] = {}
        folder.mkdir(parents=True, exist_ok=True)
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True) if self._path.exists() else []
        # A kill may leave half a line.
        known = [json.loads(line) for line in lines if line.endswith("\n")]
        if known and known[0] != json.loads(json.dumps(settings)):
            received = {"folder": str(folder), "its settings": known[0], "settings": settings}
            remedy = "Go on with those, or choose another folder."
            raise ValueError(_checks.message("`folder` was begun with other settings.", received, remedy))
        self._rows = {row["name"]: row for row in known[1:]}
        text = "".join(json.dumps(one) + "\n" for one in [settings, *self._rows.values()])
        _files.write_text(self._path, text)

    def has(self, name, *, by_itself):
        """Whether a label is done and, where it has a file by itself, still there."""
        row = self._rows.get(name)
        return row is not None and (not by_itself or (self._folder / row["file"]).exists())

    def add(self, row):
        """Notes a file that is done."""
        self._rows[row["name"]] = row
        with open(self._path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    def rows(self, names):
        """The rows of the names that have one."""
        return [self._rows[name] for name in names if name in self._rows]


def _is_shared(pair):
    """Whether the label is positions in a file that holds those of other inputs too."""
    return isinstance(pair.label, sources.Drawn) and pair.label.marks is not None and pair.label.placing is None


def _file_and_owner(source):
    """The file of positions that many inputs share, and which of its names is meant."""
    original, _, owner = source.path.rpartition(": ")
    return original, owner


def _overlap(length, by):
    """Where a row of `length` lies after a move by `-by`, and where from."""
    kept = max(length - abs(by), 0)
    first = max(by, 0) if kept else 0
    return slice(max(-by, 0), max(-by, 0) + kept), slice(first, first + kept)
