"""Labels given as positions: points, peaks, intervals, boxes and polygons, read from files and drawn as maps.

Everything is turned into coordinates (plane, row, col) in pixels where 0 is the **centre** of the first pixel, and a
pixel belongs to a mark whose area holds its centre, the edge included. Files differ in where their own 0 lies:

| file | order | 0 lies at (`origin`) |
|---|---|---|
| COCO (.json), one file for many inputs | x, y | the outer corner of the first pixel: box (0, 0, 2, 2) is 2 x 2 px |
| GeoJSON (.geojson, .json), one for each input | x, y | the corner too, as QuPath and GIS write it |
| CSV, Parquet | by heading | the centre, as NumPy indices and blob detectors give it |

Headings of a table, each row one mark, case, spaces and _ do not matter:

* points: `row, col`, or `x, y`; in volumes `plane, row, col`, or `x, y, z`;
* boxes: `row_min, row_max, col_min, col_max`, or `x_min, x_max, y_min, y_max`, in volumes with `plane_` or `z_`;
* polygons: points with a third column `polygon`; rows with the same value are its vertices, in order;
* peaks: `position`; intervals: `start, end`; both along a 1-D input, in samples (see `scale` for seconds);
* `class`, or `label`: a name, or a whole number from 1 (0 is the background).
"""

import itertools
import json
import re
from pathlib import Path

import numpy as np

from tfalign import _checks, _files
from tfalign.data import tables
from tfalign.data.marks import Box, Mark, Point, Polygon, Runs

JSON = (".json", ".geojson")
_AXES = (("plane", "row", "col"), ("z", "y", "x"), ("row", "col"), ("y", "x"), ("position",))  # volumes hold the others


def is_file_of_positions(path):
    """Whether a label file holds positions: JSON does, a table by its headings."""
    suffix = Path(path).suffix.lower()
    return suffix in JSON or (suffix in tables.SUFFIXES and _columns(tables.headings(path)) is not None)


def read(path, drawing):
    """The marks of a file of positions that belongs to one input, GeoJSON or a table."""
    if Path(path).suffix.lower() in JSON:
        return read_geojson(path, drawing)
    return [mark for marks in read_table(path, drawing).values() for mark in marks]


def read_shared(path, drawing):
    """The marks of a file that belongs to many inputs, `{name of the input: (its sizes or None, marks)}`.

    COCO, or a table with the column `name`. None for any other file.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".json":
        content = _json(path)
        return read_coco(path, drawing) if isinstance(content, dict) and "annotations" in content else None
    if suffix in tables.SUFFIXES and "name" in tables.headings(path):
        return {name or "": (None, marks) for name, marks in read_table(path, drawing).items()}
    return None


def read_table(path, drawing):
    """The marks of a CSV or Parquet file: `{name: marks}`; the name is that of the column `name`, or None.

    Raises:
        ValueError: headings that make no position, or values that are no numbers.
    """
    origin = drawing.origin or "center"
    grouped: dict = {}
    for index, row in enumerate(tables.rows(path)):
        grouped.setdefault((row.get("name") or None, row.get("polygon", index)), []).append(row)
    found: dict = {}
    for (owner, _), group in grouped.items():
        parts = [_row_part(row, origin, drawing.scale) for row in group]
        if "polygon" in group[0]:
            parts = [_polygon([[point.at for point in parts]])]
        name = group[0].get("class", group[0].get("label"))
        found.setdefault(owner, []).append(Mark(tuple(parts), *_class(name)))
    return found


def read_geojson(path, drawing):
    """The marks of a GeoJSON file: features, a collection of them, or a list as QuPath writes it.

    Raises:
        ValueError: a geometry that is no point, polygon or several of these.
    """
    content = _json(path)
    if isinstance(content, dict):
        content = content["features"] if content.get("type") == "FeatureCollection" else [content]
    return [_feature(feature, drawing.origin or "corner", drawing.scale) for feature in content]


def read_coco(path, drawing):
    """The marks of a COCO file by the names of its images: `{file_name: ((rows, cols), marks)}`,
    sizes None where `drawing.scale` says that they are others.

    A mark is the segmentation (polygons, or run lengths), or the box where there is none, or the labelled key points
    where there is neither. Its class is the name of the category, its number the id.
    """
    content = _json(path)
    names = {category["id"]: category["name"] for category in content.get("categories", ())}
    images = {image["id"]: image for image in content["images"]}
    found: dict = {identity: [] for identity in images}
    for annotation in content["annotations"]:
        image, category = images[annotation["image_id"]], annotation.get("category_id")
        parts = _coco_parts(annotation, image, drawing.origin or "corner", drawing.scale)
        found[image["id"]].append(Mark(parts, names.get(category), category))
    shapes = {identity: (image["height"], image["width"]) for identity, image in images.items()}
    return {
        image["file_name"]: (shapes[identity] if drawing.scale == 1 else None, found[identity])
        for identity, image in images.items()
    }


def in_file(matrix, path, drawing, shape):
    """A move of positions in the units of their file.

    Args:
        matrix: `(d+1, d+1)`, from where positions are to where they go, in pixels from the centre of the input.
        path: of the file.
        drawing: `marks.Drawing`, which says what units these are.
        shape: sizes of the input.
    """
    corner = (drawing.origin or ("corner" if Path(path).suffix.lower() in JSON else "center")) == "corner"
    from_file = np.diag([*[drawing.scale] * len(shape), 1.0])
    from_file[:-1, -1] = [-(size // 2) - (0.5 if corner else 0.0) for size in shape]
    return np.linalg.inv(from_file) @ matrix @ from_file


def write_moved(path, out, moves, shapes=None):
    """Writes a file of positions to `out` with the positions of each input moved.

    A box becomes the box around where it went; run lengths take the nearest pixels.

    Args:
        path: COCO, GeoJSON or a table.
        moves: `{name of the input: (d+1, d+1)}`, from old to new positions in the file's own units, (plane, row, col);
            the name None is that of a file of one input. What belongs to others stays where it is.
        shapes: `{name of the input: new sizes}`, in COCO, of those cut to another size.
    """
    path, out = Path(path), Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() not in JSON:
        tables.write_rows(path, out, lambda row: _moved_row(row, moves.get(row.get("name") or None)))
        return
    content = _json(path)
    if isinstance(content, dict) and "annotations" in content:
        images = {image["id"]: image for image in content["images"]}
        for image in images.values():
            height, width = (shapes or {}).get(image["file_name"], (image["height"], image["width"]))
            image.update(height=height, width=width)
        for annotation in content["annotations"]:
            image = images[annotation["image_id"]]
            if image["file_name"] in moves:
                _move_annotation(annotation, moves[image["file_name"]], (image["height"], image["width"]))
    else:
        features = content if isinstance(content, list) else content.get("features", [content])
        for feature in features:
            geometry = feature["geometry"]
            geometry["coordinates"] = _moved_coordinates(geometry["coordinates"], moves[None])
    _files.write_text(out, json.dumps(content, ensure_ascii=False))


def _moved_row(row, move):
    """The cells of a row that change, by heading."""
    if move is None:
        return {}
    columns = _columns(row)
    ends = np.array([[_number(row[name]) for name in names] for names in columns])
    moved = np.round(_moved_box(ends[0], ends[-1], move) if len(ends) == 2 else _moved_points(ends, move), 9)
    return {
        name: float(new)
        for names, old_end, new_end in zip(columns, ends, moved)
        for name, old, new in zip(names, old_end, new_end)
        if new != old
    }


def _moved_points(points, move):
    """Points `(n, d)` by a matrix `(d+1, d+1)`."""
    return np.asarray(points) @ move[:-1, :-1].T + move[:-1, -1]


def _moved_box(low, high, move):
    """The box around the moved corners of a box, `(low, high)`."""
    corners = _moved_points(list(itertools.product(*zip(low, high))), move)
    return corners.min(axis=0), corners.max(axis=0)


def _moved_coordinates(coordinates, move):
    """GeoJSON coordinates, (x, y) at any depth, moved."""
    if isinstance(coordinates[0], (int, float)):
        ((row, col),) = _moved_points([coordinates[1::-1]], move).tolist()
        return [col, row, *coordinates[2:]]
    return [_moved_coordinates(inner, move) for inner in coordinates]


def _move_annotation(annotation, move, shape):
    """Moves what COCO says of one object, on an image that has the sizes `shape` then."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        runs = _run_lengths(segmentation, tuple(segmentation["size"]))
        annotation["segmentation"] = {"size": list(shape), "counts": _counts(_moved_mask(runs.mask(), move, shape))}
    elif segmentation:
        rings = [_moved_points(np.reshape(ring, (-1, 2))[:, ::-1], move)[:, ::-1] for ring in segmentation]
        annotation["segmentation"] = [ring.ravel().tolist() for ring in rings]
    if annotation.get("bbox"):
        x, y, width, height = annotation["bbox"]
        (top, left), (bottom, right) = (end.tolist() for end in _moved_box((y, x), (y + height, x + width), move))
        annotation["bbox"] = [left, top, right - left, bottom - top]
    if annotation.get("keypoints"):
        moved = np.reshape(annotation["keypoints"], (-1, 3)).astype(float)
        seen = moved[:, 2] > 0
        moved[seen, :2] = _moved_points(moved[seen, 1::-1], move)[:, ::-1]
        annotation["keypoints"] = moved.ravel().tolist()


def _moved_mask(mask, move, shape):
    """A mask moved onto a grid of sizes `shape`; its pixels are half a unit from the corner that COCO counts from."""
    at = _moved_points(np.argwhere(np.ones(shape, bool)) + 0.5, np.linalg.inv(move))
    at = np.floor(at).astype(int)
    inside = ((at >= 0) & (at < mask.shape)).all(axis=1)
    return (inside & mask[tuple(np.where(inside[:, np.newaxis], at, 0).T)]).reshape(shape)


def _counts(mask):
    """COCO's run lengths of a mask."""
    flat = mask.T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    return [0, *counts] if flat[0] else counts


def _json(path):
    return json.loads(Path(path).read_text(encoding="utf-8-sig"))


def _columns(headings):
    """The headings of one position: (lower bounds, upper bounds), or (coordinates,), or None."""
    if {"start", "end"} <= set(headings):
        return ["start"], ["end"]
    for axes in _AXES:
        bounds = [f"{axis}min" for axis in axes], [f"{axis}max" for axis in axes]
        if {*bounds[0], *bounds[1]} <= set(headings):
            return bounds
    return next(([list(axes)] for axes in _AXES if set(axes) <= set(headings)), None)


def _row_part(row, origin, scale):
    """The point or box of one row of a table."""
    columns = _columns(row)
    if columns is None:
        raise ValueError(_checks.message("Headings must name a position.", {"headings": list(row)}))
    found = [_coordinates([row[name] for name in names], origin, scale) for names in columns]
    return _box(*found) if len(found) == 2 else Point(*found)


def _class(given):
    """Name and number of a class: a number counts where it is written as one."""
    if given is None or str(given).strip() == "":
        return None, None
    name = str(given).strip()
    return name, int(name.partition(".")[0]) if re.fullmatch(r"[0-9]+(\.0*)?", name) else None


def _coordinates(values, origin, scale):
    """Pixels from the centre of the first pixel."""
    found = np.array([_number(value) for value in values]) * scale - (0.5 if origin == "corner" else 0.0)
    if not np.isfinite(found).all():
        raise ValueError(_checks.message("Positions must be finite.", {"position": list(values)}))
    return found


def _number(cell):
    """A number, perhaps text with a decimal comma: cells hold no other."""
    return float(cell.replace(",", ".") if isinstance(cell, str) else cell)


def _box(low, high):
    if (high < low).any():
        raise ValueError(_checks.message("A box must not end before it begins.", {"low": low, "high": high}))
    return Box(low, high)


def _polygon(rings):
    rings = tuple(np.array(ring, dtype=np.float64) for ring in rings)
    if any(ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3 for ring in rings):
        raise ValueError(_checks.message("A polygon must have three vertices.", {"shapes": [r.shape for r in rings]}))
    return Polygon(rings)


def _feature(feature, origin, scale):
    """One GeoJSON feature as a mark."""

    def position(at):
        return _coordinates([at[1], at[0]], origin, scale)

    def polygon(rings):
        return _polygon([[position(at) for at in ring] for ring in rings])

    makers = {"Point": lambda at: Point(position(at)), "Polygon": polygon}
    kind, coordinates = feature["geometry"]["type"], feature["geometry"]["coordinates"]
    single = _checks.choice("geometry", kind.removeprefix("Multi"), tuple(makers))
    parts = tuple(map(makers[single], coordinates if kind != single else [coordinates]))
    properties = feature.get("properties") or {}
    given = properties.get("classification", properties.get("class", properties.get("label", properties.get("name"))))
    name = given.get("name") if isinstance(given, dict) else given
    return Mark(parts, *_class(name))


def _coco_parts(annotation, image, origin, scale):
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        return (_run_lengths(segmentation, (image["height"], image["width"])),)
    if segmentation:
        rings = [np.reshape(ring, (-1, 2))[:, ::-1] for ring in segmentation]
        return tuple(_polygon([[_coordinates(at, origin, scale) for at in ring]]) for ring in rings)
    if annotation.get("bbox"):
        x, y, width, height = annotation["bbox"]
        return (_box(*(_coordinates(at, origin, scale) for at in ((y, x), (y + height, x + width)))),)
    points = np.reshape(annotation["keypoints"], (-1, 3))
    return tuple(Point(_coordinates((y, x), origin, scale)) for x, y, seen in points if seen)


def _run_lengths(segmentation, shape):
    """COCO's run lengths, as numbers or text."""
    counts, size = segmentation["counts"], tuple(segmentation["size"])
    counts = _unpacked(counts) if isinstance(counts, str) else counts
    if size != tuple(shape) or sum(counts) != size[0] * size[1] or min(counts) < 0:
        raise ValueError(_checks.message("Run lengths must fill the image.", {"size": size, "image": tuple(shape)}))
    return Runs(np.array(counts), size)


def _unpacked(text):
    """Run lengths from COCO's text: 5 bits a character, the lowest first; from the fourth on, the change since two ago.

    Source: `rleFrString` of cocodataset/cocoapi, common/maskApi.c.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (1 << shift) if code & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts
