"""Files whose labels are moved by known transforms: a data set to try alignment on."""

import json
from pathlib import Path

import numpy as np

from tfalign import _checks
from tfalign.data import misalign, sources, tables, writers


def misalign_files(
    pairs, folder, transforms, *, table="misalignment.csv", track=lambda description, total: lambda n: None
):
    """Writes the labels of files moved by known transforms, and their inputs, into `inputs` and `labels` of a folder.

    Both are cut around their centre as far as the move leaves every pixel of the label known, so nothing in it tells
    the move. Formats are kept; labels from no file of their own become .npy.

    Args:
        pairs: `tfalign.data.Pairs`; only pairs with labels are written, which must have the size of their inputs.
        folder: where to.
        transforms: `(count, d+1, d+1)`, one for each pair with a label, see `tfalign.data.misalign.misaligned`.
        table: name of the table in `folder`, .csv or .parquet: name, both files, and the transform as JSON.
        track: see `tfalign.data.realign_files`.

    Returns:
        The rows of the table, a list of dicts.

    Raises:
        ValueError: as many transforms as labelled pairs are needed; sizes differ, or a move leaves nothing.
        BadFileError: a file cannot be read.
    """
    folder = Path(folder)
    labelled = [index for index in range(len(pairs)) if pairs[index].label is not None]
    if len(labelled) != len(transforms):
        received = {"transforms": len(transforms), "labelled pairs": len(labelled)}
        raise ValueError(_checks.message("`transforms` must be one for each pair with a label.", received))
    advance, rows = track("moving", len(labelled)), []
    for index, transform in zip(labelled, transforms):
        pair, example = pairs[index], pairs.read(index)
        if example.input.shape[:-1] != example.label.shape[:-1]:
            received = {"name": example.name, "input": example.input.shape, "label": example.label.shape}
            raise ValueError(_checks.message("Label and input must have one size.", received))
        shape, center = _largest(example.name, transform, example.label.shape[:-1])
        label, _ = misalign.misaligned(example.label, transform, shape=shape, center=center)
        image = misalign.cut(example.input, shape=shape, center=center)
        written = [
            writers.write_like(_own_file(source), folder / part / example.name, array)
            for part, source, array in (("inputs", pair.input, image), ("labels", pair.label, label))
        ]
        names = [path.relative_to(folder).as_posix() for path in written]
        matrix = json.dumps(np.asarray(transform, float).round(9).tolist())
        rows.append({"name": example.name, "input": names[0], "label": names[1], "transform": matrix})
        advance(1)
    tables.write(folder / table, rows)
    return rows


def _own_file(source):
    return source.path if isinstance(source, sources.File) else None


def _largest(name, transform, shape):
    """The largest sizes, and the centre, of a label whose every pixel is known after the move."""
    center = [size // 2 for size in shape]
    room = np.minimum(center, np.array(shape) - 1 - center)
    for less in range(min(shape) // 2):
        sizes = [size - 2 * less for size in shape]
        if np.all(misalign.reach(np.asarray(transform)[np.newaxis], shape=sizes) <= room):
            return sizes, center
    received = {"name": name, "shape": shape, "transform": np.asarray(transform).tolist()}
    raise ValueError(_checks.message("A move must leave some of the label.", received))
