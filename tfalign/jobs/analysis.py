"""Numbers of a folder of stains or class maps, as tables and pictures."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import skimage.segmentation

from tfalign import _checks
from tfalign.data import tables
from tfalign.data.formats import MAX_PIXELS, BadFileError
from tfalign.data.readers import read_pairs
from tfalign.jobs import analysis_numbers as numbers
from tfalign.jobs import figures, files
from tfalign.jobs.predict import TABLES
from tfalign.jobs.run_folder import check_outside

KINDS = ("auto", "stain", "classes")
_MOST_CLASSES = 256
_BARS = 40
_POSITIVE, _NEGATIVE, _GRID = (224, 49, 49), (43, 108, 196), (255, 255, 255)
_PALETTE = np.array([[225, 228, 232], [230, 120, 40], [70, 150, 220], [90, 175, 80], [200, 70, 80], [150, 110, 200]])


class Result(NamedTuple):
    """What was found.

    Attributes:
        kind: "stain" or "classes".
        rows: those of `analysis.csv`.
        thresholds: `analysis_numbers.Thresholds` of stains, else None.
        skipped: `(path, reason)` of each file left out.
    """

    kind: str
    rows: list
    thresholds: numbers.Thresholds | None
    skipped: list


class _Settings(NamedTuple):
    signal: str
    marker: int | None
    nuclei: int | None
    location: str
    threshold: float | None
    nuclei_threshold: float | None
    min_area: float
    field: int | None
    pixel_area: float


def analyse(
    inputs,
    out,
    *,
    kind="auto",
    signal="auto",
    marker=None,
    nuclei=None,
    location="nuclei",
    threshold=None,
    nuclei_threshold=None,
    min_area=30,
    field=None,
    pixel_size=1.0,
    max_pixels=MAX_PIXELS,
    strict=False,
    track=lambda description, total: lambda steps: None,
):
    """Measures every stain or class map of a folder, e.g. what `tfalign predict` wrote.

    A stain gives positive area, optical density and, where nuclei show, the share of them that is positive, the
    labelling index. A class map gives area and count of every class. All files are measured with the same thresholds.

    Args:
        inputs: as `tfalign.data.read_pairs` takes them; stains are pictures or volumes, nuclei are found in pictures.
        out: the folder of the results: `analysis.csv`, a row for each image (and class); `fields.csv`, if `field` is
            given; `analysis.json`, the thresholds; `analysis.png`, a chart; `pictures/`, what was counted, drawn.
        kind: "stain" or "classes"; "auto": integers of one channel are class maps, as the first file has it.
        signal, marker, nuclei: see `analysis_numbers.amounts`.
        location: where the marker is: in "nuclei", or around them in "cells" (their cytoplasm and membranes).
        threshold: the amount of marker above which a pixel, or the mean of a nucleus, is positive; by default Otsu's of
            all files together. Where nothing is stained, that parts noise from noise: give a number then.
        nuclei_threshold: likewise of what shows the nuclei.
        min_area: pixels; smaller nuclei, and smaller parts of a class, are not counted.
        field: pixels a side of the fields that an image is divided into.
        pixel_size: length of a pixel's side; areas are in its square (cube).
        max_pixels, strict, track: see `tfalign.jobs.predict.predict`.

    Returns:
        `Result`.

    Raises:
        ValueError: an option out of range, or no file that can be measured.
        BadFileError: a file cannot be used, if strict.
    """
    _checks.choice("kind", kind, KINDS)
    _checks.choice("signal", signal, numbers.SIGNALS)
    pixel_size = _checks.number("pixel_size", pixel_size)
    if not pixel_size > 0:
        raise ValueError(_checks.message("`pixel_size` must be > 0.", {"pixel_size": pixel_size}))
    settings = _Settings(
        signal,
        marker,
        nuclei,
        _checks.choice("location", location, numbers.LOCATIONS),
        None if threshold is None else _checks.number("threshold", threshold),
        None if nuclei_threshold is None else _checks.number("nuclei_threshold", nuclei_threshold),
        _checks.number("min_area", min_area, at_least=1),
        None if field is None else _checks.whole_number("field", field, at_least=8),
        pixel_size,
    )
    out = Path(out)
    check_outside(out, inputs=inputs)
    pairs = read_pairs(inputs, max_pixels=max_pixels, strict=strict)
    pairs = pairs.select(lambda pair: Path(pair.input.path).name not in TABLES)
    images = _Images(pairs)
    kind = images.kind() if kind == "auto" else kind
    out.mkdir(parents=True, exist_ok=True)
    if kind == "classes":
        found, thresholds = _classes(images, out, settings, track), None
    else:
        found, thresholds = _stains(images, out, settings, track)
    rows, of_fields = found
    if not rows:
        received = {"inputs": str(inputs), "skipped": list(pairs.skipped[:3])}
        raise ValueError(_checks.message("`inputs` must hold a file that can be measured.", received))
    tables.write(out / "analysis.csv", rows)
    if settings.field is not None and of_fields:
        tables.write(out / "fields.csv", of_fields)
    used = {"kind": kind, "thresholds": thresholds and thresholds._asdict(), "settings": settings._asdict()}
    files.write_json(out / "analysis.json", used)
    with figures.styled():
        _write(out / "analysis.png", figures.png(_chart(rows, kind), dpi=130))
    pairs.write_skipped(out)
    return Result(kind, rows, thresholds, list(pairs.skipped))


class _Images:
    """The images of a folder that can be read, one at a time."""

    def __init__(self, pairs):
        self._pairs = pairs

    def each(self, advance=lambda steps: None):
        """Yields `(name, image)` of every one that can be read; `advance` is called for the others too."""
        for index, pair in enumerate(self._pairs):
            try:
                image = self._pairs.read(index).input
            except BadFileError:
                if self._pairs.strict:
                    raise
            else:
                yield pair.name, image
            advance(1)

    def tracked(self, track, description):
        """The same under a progress bar."""
        return self.each(track(description, len(self._pairs)))

    def kind(self):
        """What the first image is."""
        for _, image in self.each():
            return "classes" if image.dtype.kind in "iu" and image.shape[-1] == 1 else "stain"
        return "stain"

    def skip(self, name, reason):
        """Notes an image that cannot be measured, or stops."""
        path = next(pair.input.path for pair in self._pairs if pair.name == name)
        if self._pairs.strict:
            raise BadFileError(path, reason)
        self._pairs.note_skipped(path, reason)


def _stains(images, out, settings, track):
    """`((rows, rows of fields), thresholds)`."""
    thresholds = _thresholds(images, settings, track)
    rows, of_fields = [], []
    for name, image in images.tracked(track, "measuring"):
        values = numbers.as_floats(image)
        found = _amounts(images, name, values, settings)
        if found is None:
            continue
        is_picture = found.marker.ndim == 2
        counted = None
        if is_picture and found.nuclei is not None:
            options = {"min_area": settings.min_area, "location": settings.location}
            counted = numbers.find_nuclei(found, thresholds, **options)
        area = settings.pixel_area**found.marker.ndim
        whole = (slice(None),) * found.marker.ndim
        rows.append({"name": name, **numbers.stain_row(found, counted, thresholds, whole, pixel_area=area)})
        parts = numbers.fields(found.marker.shape, settings.field) if settings.field is not None else []
        for place, window in parts:
            row = numbers.stain_row(found, counted, thresholds, window, pixel_area=area)
            of_fields.append({"name": name, "field": "-".join(str(at + 1) for at in place), **row})
        picture = _drawn_stain(values, found, counted, thresholds, parts if is_picture else [])
        _write(out / "pictures" / f"{name}.png", figures.picture(picture))
    return (rows, of_fields), thresholds


def _amounts(images, name, values, settings):
    """The amounts of one image, or None where it is skipped."""
    if values.ndim < 3:
        images.skip(name, "it is a signal, and stains are pictures or volumes")
        return None
    options = {name: getattr(settings, name) for name in ("signal", "marker", "nuclei", "location")}
    try:
        return numbers.amounts(values, **options)
    except ValueError as error:
        images.skip(name, str(error).rstrip("."))
        return None


def _thresholds(images, settings, track):
    """Those of all files together, unless given."""
    if settings.threshold is not None and settings.nuclei_threshold is not None:
        return numbers.Thresholds(settings.threshold, settings.nuclei_threshold)
    samples: dict[str, list] = {"marker": [], "nuclei": []}
    for name, image in images.tracked(track, "thresholds"):
        found = _amounts(images, name, numbers.as_floats(image), settings)
        for kind, values in {} if found is None else found._asdict().items():
            if values is not None:
                samples[kind].append(numbers.sample(values))
    found = {kind: numbers.otsu(np.concatenate(values)) if values else None for kind, values in samples.items()}
    return numbers.Thresholds(
        marker=found["marker"] if settings.threshold is None else settings.threshold,
        nuclei=found["nuclei"] if settings.nuclei_threshold is None else settings.nuclei_threshold,
    )


def _classes(images, out, settings, track):
    """`(rows, rows of fields)`."""
    seen: set = set()
    for name, image in images.tracked(track, "classes"):
        own = np.unique(image)
        if image.dtype.kind not in "iu" or image.shape[-1] != 1 or len(own) > _MOST_CLASSES:
            images.skip(name, f"it is no class map: {image.shape[-1]} channels of {image.dtype} with {len(own)} values")
        else:
            seen |= set(own.tolist())
    rows, of_fields = [], []
    for name, image in images.tracked(track, "measuring"):
        if image.dtype.kind not in "iu" or image.shape[-1] != 1 or not set(np.unique(image).tolist()) <= seen:
            continue
        classes = image[..., 0]
        options = {"min_area": settings.min_area, "pixel_area": settings.pixel_area**classes.ndim}
        rows += [{"name": name, **row} for row in numbers.class_rows(classes, sorted(seen), **options)]
        parts = numbers.fields(classes.shape, settings.field) if settings.field is not None else []
        for place, window in parts:
            field = "-".join(str(at + 1) for at in place)
            found = numbers.class_rows(classes[window], sorted(seen), **options)
            of_fields += [{"name": name, "field": field, **row} for row in found]
        if classes.ndim > 1:
            plane = classes[len(classes) // 2] if classes.ndim == 3 else classes
            _write(out / "pictures" / f"{name}.png", figures.picture(np.uint8(_PALETTE[plane % len(_PALETTE)])))
    return rows, of_fields


def _drawn_stain(values, found, counted, thresholds, parts):
    """The image with what was counted: positive in red, negative nuclei in blue, fields in white."""
    if found.marker.ndim == 3:
        middle = len(values) // 2
        values, found = values[middle], numbers.Amounts(found.marker[middle], None)
    low, high = (0.0, 1.0) if values.min() >= 0 and values.max() <= 1 else (values.min(), values.max())
    colours = values[..., :3] if values.shape[-1] >= 3 else np.repeat(values[..., :1], 3, axis=-1)
    picture = (255 * np.clip((colours - low) / max(high - low, 1e-12), 0, 1) + 0.5).astype(np.uint8)
    if counted is None:
        outlines = skimage.segmentation.find_boundaries(found.marker > thresholds.marker, mode="inner")
        picture[outlines] = _POSITIVE
    else:
        outlines = skimage.segmentation.find_boundaries(counted.labels, mode="inner")
        colour = np.array([_NEGATIVE, *np.where(counted.is_positive[:, np.newaxis], _POSITIVE, _NEGATIVE)], np.uint8)
        picture[outlines] = colour[counted.labels[outlines]]
    for _, (rows, cols) in parts:
        picture[rows.start : rows.start + 1, cols] = _GRID
        picture[rows, cols.start : cols.start + 1] = _GRID
    return picture


def _chart(rows, kind):
    """The main number of each image as bars."""
    names = list(dict.fromkeys(row["name"] for row in rows))[:_BARS]
    figure = figures.figure(7.0, 1.2 + 0.28 * len(names))
    axes = figure.subplots()
    places = np.arange(len(names))
    if kind == "classes":
        starts = np.zeros(len(names))
        for one in sorted({row["class"] for row in rows}):
            shares = {row["name"]: row["share"] for row in rows if row["class"] == one}
            widths = np.array([100 * shares[name] for name in names])
            color = _PALETTE[one % len(_PALETTE)] / 255
            axes.barh(places, widths, left=starts, color=color, label=f"class {one}")
            starts += widths
        axes.set(xlabel="share of the area (%)", xlim=(0, 100))
        figure.legend(frameon=False, fontsize=8, loc="outside upper right", ncols=6)
    else:
        has_index = any(row["labelling_index"] is not None for row in rows)
        column = "labelling_index" if has_index else "positive_share"
        by_name = {row["name"]: row[column] for row in rows}
        axes.barh(places, [100 * (by_name[name] or 0.0) for name in names], color=figures.BLUE)
        axes.set(xlabel="labelling index (%)" if has_index else "positive area (%)", xlim=(0, 100))
    axes.set_yticks(places)
    axes.set_yticklabels(names, parse_math=False)
    axes.invert_yaxis()
    return figure


def _write(path, content):
    """Bytes, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"part-{path.name}")
    beside.write_bytes(content)
    beside.replace(path)


def in_words(result):
    """One line of what was found."""
    count = len({row["name"] for row in result.rows})
    images = "1 image" if count == 1 else f"{count} images"
    if result.kind == "classes":
        classes = sorted({row["class"] for row in result.rows})
        return f"{images}, {len(classes)} classes"
    indices = [row["labelling_index"] for row in result.rows if row["labelling_index"] is not None]
    mean = np.mean([row["positive_share"] for row in result.rows])
    said = f"{images}: {100 * mean:.1f} % of the area is positive (above {result.thresholds.marker:.3g})"
    return said + (f", labelling index {100 * np.mean(indices):.1f} %" if indices else "")
