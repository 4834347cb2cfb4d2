"""A trained network on files of any size: predictions as files, one by one, so that what is done is kept."""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from PIL import Image

from tfalign import _checks
from tfalign.data import fingerprints, formats, sources, tables, writers
from tfalign.data.formats import MAX_PIXELS, BadFileError
from tfalign.data.journal import Journal
from tfalign.data.readers import read_pairs
from tfalign.export import options
from tfalign.jobs import files, run_reading
from tfalign.jobs.predictor import Codes, Predictor, type_of_numbers

FORMATS = ("auto", "tif", "png", "npy")
CLASSES = ("auto", "yes", "no")
JOURNAL = ".predictions.jsonl"  # of what is done, beside the tables
TABLES = ("predictions.csv", "skipped.csv")  # among the predictions; no inputs
_LARGE = 2**26  # values: beyond them arrays are maps of files


class Result(NamedTuple):
    """What was predicted.

    Attributes:
        rows: `{"name", "file", "input"}` of each prediction, those of earlier calls included.
        skipped: `(path, reason)` of each file left out.
    """

    rows: list
    skipped: list


def predict(
    inputs,
    out,
    *,
    run=None,
    model=None,
    form="auto",
    classes="auto",
    value_range=(0.0, 1.0),
    image_range=(0.0, 1.0),
    tile=None,
    tile_overlap=None,
    max_pixels=MAX_PIXELS,
    strict=False,
    track=lambda description, total: lambda steps: None,
):
    """Predicts every input of a folder, file or listing, and writes a file for each under its name.

    A kill loses the file in work; the same call goes on with it. An input that has changed is predicted again. Inputs
    are prepared as in training, and cut into overlapping tiles if they are large. Memory then holds a few tiles and the
    file as it is stored; .npy files and plain TIFF pictures of more than 67 million values are not even loaded, and
    results of that size are written as they come, unless a step of the preprocessing needs the whole input.

    Args:
        inputs: as `tfalign.data.read_pairs` takes them.
        out: the folder of predictions, with the table `predictions.csv` and `skipped.csv`; not inside `inputs`.
        run: a run folder: its best model and its preprocessing.
        model: instead, a `.keras` file. Its inputs are prepared by the preprocessing at its front
            (`tfalign.data.preprocess.with_preprocessing`) if it has one; otherwise by `image_range` alone.
        form: "tif" (float32), "png" (8 bit, gray or RGB) or "npy" (float32). "auto": .npy for signals, .tif for
            volumes and values, .png for class maps.
        classes: "yes" writes the number of the largest channel instead of all values; "auto": if the run was trained on
            class maps.
        value_range: the predictions that become black and white of a PNG.
        image_range: of a model without preprocessing: the values of the darkest and the brightest code of an integer
            file, whatever its bits.
        tile, tile_overlap: pixels a side of a tile, and that the outputs of two tiles share; see
            `tfalign.export_serving`. By default enough that no seam shows.
        max_pixels: most pixels times channels of a file.
        strict: stop at the first file that cannot be used.
        track: `(description, total files) -> function called with the files just done`.

    Returns:
        `Result`.

    Raises:
        ValueError: an option out of range, no file that can be read, or `out` holds predictions of another model.
        BadFileError: a file cannot be used, if strict.
    """
    out = outside(out, inputs)
    work = Work(
        run=run, model=model, form=form, classes=classes, value_range=value_range, image_range=image_range,
        tile=tile, tile_overlap=tile_overlap,
    )  # fmt: skip
    pairs = read_pairs(inputs, rank=work.rank, max_pixels=max_pixels, strict=strict)
    out.mkdir(parents=True, exist_ok=True)
    journal = Journal(out / JOURNAL, work.settings)
    advance = track("predicting", len(pairs))
    rows = []
    for index in range(len(pairs)):
        row = work.one(pairs, index, out, journal)
        rows += [] if row is None else [row]
        advance(1)
    return finished(pairs, rows, out)


def finished(pairs, rows, out):
    """Writes the tables; the `Result`."""
    tables.write(out / TABLES[0], rows)
    pairs.write_skipped(out)
    if pairs.skipped and not rows:
        received = {"files": len(pairs.skipped), "the first": pairs.skipped[0]}
        raise ValueError(_checks.message("`inputs` must hold a file that can be predicted from.", received))
    return Result(rows, list(pairs.skipped))


class Work:
    """What is done to one file; arguments as of `predict`.

    Attributes:
        rank: spatial axes of the inputs.
        settings: of the journal.
    """

    def __init__(self, *, run, model, form, classes, value_range, image_range, tile, tile_overlap):
        if (run is None) == (model is None):
            received = {"run": run and str(run), "model": model and str(model)}
            raise ValueError(_checks.message("Either `run` or `model` must be given.", received))
        _checks.choice("form", form, FORMATS)
        _checks.choice("classes", classes, CLASSES)
        value_range = _range("value_range", value_range)
        network, preprocessing, is_class_map = _trained(run, model, image_range)
        self.rank = options.model_rank(network)
        self._predictor = Predictor(network, preprocessing, tile=tile, tile_overlap=tile_overlap)
        channels = self._predictor.channels
        is_class_map = is_class_map and channels > 1 if classes == "auto" else classes == "yes"
        form = _form(form, self.rank, channels, is_class_map)
        self._target = _Target(form, value_range, is_class_map)
        self.settings = {
            "form": form,
            "classes": is_class_map,
            "value_range": list(value_range),
            "model": fingerprints.digest(fingerprints.of_model(network)),
            "preprocessing": repr(preprocessing),
        }

    def one(self, pairs, index, out, journal):
        """The row of one file, predicted now or before; None where it is skipped."""
        name = pairs[index].name
        state = fingerprints.digest(fingerprints.of_example(pairs, index))
        row = journal.entry(name, state)
        if row is not None and (out / row["file"]).exists():
            return row
        try:
            values = _read(pairs, index)
            _check_channels(pairs[index].input.path, values, self._predictor)
        except BadFileError as error:
            if pairs.strict:
                raise
            pairs.note_skipped(error.path, error.reason)
            return None
        path = self._target.write(out / name, self._predictor, values)
        source = str(pairs[index].input.path).encode("utf-8", "backslashreplace").decode("utf-8")
        row = {"name": name, "file": path.relative_to(out).as_posix(), "input": source}
        journal.add(name, state, row)
        return row


class _Target:
    """How predictions are written."""

    def __init__(self, form, value_range, is_class_map):
        self.form, self.value_range, self._is_class_map = form, value_range, is_class_map

    def write(self, path, predictor, values):
        """Predicts and writes one file, beside and renamed; returns its path."""
        channels = 1 if self._is_class_map else predictor.channels
        shape = (*values.shape[:-1], channels)
        if np.prod(shape, dtype=np.int64) <= _LARGE:
            array = predictor(values, classes=self._is_class_map)
            array = array if self.form != "png" else self._codes(array)
            return writers.write_like(f"any.{self.form}", path, array)
        path = Path(f"{path}.{self.form}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with _beside(path) as beside:
            dtype = type_of_numbers(predictor.channels) if self._is_class_map else np.dtype(np.float32)
            if self.form == "png":
                self._write_large_picture(beside, shape, dtype, predictor, values)
            else:
                mapped = _mapped(beside, self.form, shape, dtype)
                predictor(values, out=mapped, classes=self._is_class_map)
                mapped.flush()
        return path

    def _write_large_picture(self, beside, shape, dtype, predictor, values):
        """The bytes of a picture must be in memory, its values need not."""
        held = beside.with_name(f"{beside.name}.npy")
        try:
            mapped = predictor(values, out=_mapped(held, "npy", shape, dtype), classes=self._is_class_map)
            codes = np.empty(shape, np.uint8)
            for row in range(shape[0]):
                codes[row] = self._codes(mapped[row])
        finally:
            held.unlink(missing_ok=True)
        Image.fromarray(codes[..., 0] if shape[-1] == 1 else codes).save(beside, format="PNG")

    def _codes(self, array):
        """Bytes."""
        if array.dtype.kind == "u":
            return array
        low, high = self.value_range
        scaled = np.nan_to_num((array - low) / (high - low))
        return np.uint8(np.clip(255 * scaled, 0, 255) + 0.5)


@contextlib.contextmanager
def _beside(path):
    """A path to write to, renamed to `path` at the end."""
    beside = path.with_name(f"part-{path.name}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _mapped(path, form, shape, dtype):
    """A new file as an array `shape`."""
    if form == "npy":
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    channels = shape[-1]
    array = tifffile.memmap(
        path,
        shape=shape if channels > 1 else shape[:-1],
        dtype=dtype,
        photometric="minisblack",
        planarconfig="contig" if channels > 1 else None,
        metadata={"axes": ("Z" if len(shape) == 4 else "") + "YX" + ("S" if channels > 1 else "")},
    )
    return array.reshape(shape)


def outside(out, inputs):
    """The folder of predictions, which must not be read as inputs the next time."""
    out = Path(out)
    place = Path(inputs).resolve()
    if place.is_dir() and (out.resolve() == place or place in out.resolve().parents):
        remedy = "Predictions in it would be inputs of the next call."
        raise ValueError(
            _checks.message("`out` must not lie in `inputs`.", {"out": str(out), "inputs": str(inputs)}, remedy)
        )
    return out


def _trained(run, model, image_range):
    """The network, what prepares its inputs, and whether it was trained on class maps."""
    if run is not None:
        folder = run_reading.existing(run)
        cutting = run_reading.cutting(folder)
        network = files.read_model(run_reading.best_model(folder))
        return network, cutting.preprocessing, cutting.ignore_class is not None
    network = files.read_model(model)
    options.model_rank(network)
    has_own = options.split(network)[1] is not None
    return network, None if has_own else Codes(*_range("image_range", image_range)), False


def _range(name, values):
    """`(low, high)`."""
    values = tuple(values) if isinstance(values, (list, tuple)) else (values,)
    if len(values) != 2 or not np.all(np.isfinite(values)) or not values[0] < values[1]:
        requirement = f"`{name}` must be two numbers, the lower one first."
        raise ValueError(_checks.message(requirement, {name: values}, "E.g. 0,1."))
    return values


def _form(form, rank, channels, is_class_map):
    """The format that files are written in."""
    if is_class_map and channels == 1:
        remedy = "Its values are written with --classes no."
        raise ValueError(_checks.message("Classes must have a channel each.", {"channels": channels}, remedy))
    holds_picture = rank == 2 and (channels <= 256 if is_class_map else channels in (1, 3))
    if form == "auto":
        return "npy" if rank == 1 else "png" if is_class_map and holds_picture else "tif"
    if (form == "png" and not holds_picture) or (form == "tif" and rank == 1):
        received = {"form": form, "spatial axes": rank, "channels": channels}
        remedy = "Every prediction fits into npy, pictures and volumes into tif, gray and RGB pictures into png."
        raise ValueError(_checks.message("`form` must hold the predictions.", received, remedy))
    return form


def _read(pairs, index):
    """The input of a pair, of a large plain file as a map."""
    source, rank = pairs[index].input, pairs[index].input.rank if hasattr(pairs[index].input, "rank") else None
    path = Path(source.path) if isinstance(source, sources.File) else None
    if path is None or path.suffix.lower() not in (".npy", ".tif", ".tiff") or not path.is_file():
        return pairs.read(index).input
    if path.stat().st_size <= _LARGE:
        return pairs.read(index).input
    with formats.decoding(path):
        mapped = np.load(path, mmap_mode="r") if path.suffix.lower() == ".npy" else _mapped_picture(path)
    if mapped is None:
        return pairs.read(index).input
    formats.check_size(path, mapped.shape, source.max_pixels)
    array = formats.canonical(mapped, path, rank=rank if path.suffix.lower() == ".npy" else None)
    if rank is not None and array.ndim - 1 != rank:
        raise BadFileError(path, f"its shape {array.shape} has {array.ndim - 1} spatial axes, not {rank}")
    return array


def _mapped_picture(path):
    """A TIFF of one page, gray or RGB, that lies in the file as it is in memory; None for any other."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        plain = (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB)
        is_plain = len(tiff.pages) == 1 and page.photometric in plain and not page.extrasamples
        upright = page.tags.valueof("Orientation", default=1) == 1
        if not (is_plain and upright and page.is_memmappable and page.axes in ("YX", "YXS")):
            return None
        axes = page.axes
    array = tifffile.memmap(path, page=0, mode="r")
    return array if axes == "YXS" else array[..., np.newaxis]


def _check_channels(path, values, predictor):
    if values.shape[-1] != predictor.input_channels:
        raise BadFileError(path, f"it has {values.shape[-1]} channels, the network takes {predictor.input_channels}")
