"""Files whose labels are moved by known transforms: a data set to try alignment on."""

import bisect
import json
import zlib
from pathlib import Path

import numpy as np

from tfalign import _checks
from tfalign.data import fingerprints, label_files, misalign, positions, sources, tables, writers
from tfalign.data.formats import BadFileError
from tfalign.data.journal import Journal


def misalign_files(pairs, folder, moves, *, table="misalignment.csv", track=lambda description, total: lambda n: None):
    """Writes the labels of files moved by known moves, and their inputs, into `inputs` and `labels` of a folder.

    Both are cut around their centre as far as the move leaves every pixel of the label known, so nothing in it tells
    the move. Formats are kept, positions stay positions; labels from no file of their own become .npy. The same call
    goes on where it was stopped; a file that has changed since is done again.

    Args:
        pairs: `tfalign.data.Pairs`; only pairs with labels are written, which must have the size of their inputs.
        folder: where to.
        moves: one for each pair with a label, see `tfalign.data.misalign.misaligned`: transforms `(d+1, d+1)`, or
            displacements `(*shape, d)` about the centre of the file, of its size or smaller.
        table: name of the table in `folder`, .csv or .parquet: name, both files, the transform as JSON, and with
            displacements the .npy file in `truth` that lays the label back instead.
        track: see `tfalign.data.realign_files`.

    Returns:
        The rows of the table, a list of dicts.

    Raises:
        ValueError: as many moves as labelled pairs are needed; sizes differ, a move leaves nothing, or positions are to
            be moved by a displacement.
        BadFileError: a file cannot be read and `pairs` is strict; otherwise `pairs.skipped` lists it.
        ImportError: a .parquet table without the extra `parquet`.
    """
    folder = Path(folder)
    tables.check_suffix("table", table)
    labelled = [index for index in range(len(pairs)) if pairs[index].label is not None]
    if len(labelled) != len(moves):
        received = {"moves": len(moves), "labelled pairs": len(labelled)}
        raise ValueError(_checks.message("`moves` must be one for each pair with a label.", received))
    journal, done = Journal(folder / "misalignment.jsonl", {}), []
    advance = track("moving", len(labelled))
    for index, move in zip(labelled, moves):
        pair, move = pairs[index], np.asarray(move, np.float64)
        state = fingerprints.digest(fingerprints.of_example(pairs, index), list(move.shape), zlib.crc32(move.tobytes()))
        entry = journal.entry(pair.name, state)
        if entry is None or not _are_there(folder, pair, entry["row"]):
            entry = _moved(pairs, index, folder, move)
            if entry is not None:
                journal.add(pair.name, state, entry)
        done += [] if entry is None else [(pair, entry)]
        advance(1)
    label_files.write_shared(done, folder / "labels")
    has_displacement = any("displacement" in entry["row"] for _, entry in done)
    rows = [{**({"displacement": ""} if has_displacement else {}), **entry["row"]} for _, entry in done]
    tables.write(folder / table, rows)
    return rows


def _are_there(folder, pair, row):
    written = [row["input"], *([] if label_files.is_shared(pair) else [row["label"]]), row.get("displacement") or "."]
    return all((folder / name).exists() for name in written)


def _moved(pairs, index, folder, move):
    """Writes one file; its entry in the journal, or None where it cannot be read."""
    try:
        example = pairs.read(index)
    except BadFileError:
        if pairs.strict:
            raise
        return None
    pair, whole = pairs[index], example.label.shape[:-1]
    if example.input.shape[:-1] != whole:
        received = {"name": example.name, "input": example.input.shape, "label": example.label.shape}
        raise ValueError(_checks.message("Label and input must have one size.", received))
    shape, center = _largest(example.name, move, whole)
    is_field = move.shape[-1] == len(whole)
    image = misalign.cut(example.input, shape=shape, center=center)
    original = pair.input.path if isinstance(pair.input, sources.File) else None
    path = writers.write_like(original, folder / "inputs" / example.name, image)
    row = {
        "name": example.name,
        "input": path.relative_to(folder).as_posix(),
        "label": f"labels/{label_files.target(pair)}",
        "transform": "" if is_field else json.dumps(move.round(9).tolist()),
    }
    if label_files.has_marks(pair.label):
        if is_field:
            received = {"name": example.name, "label": str(pair.label.path)}
            raise ValueError(_checks.message("Positions must be moved by transforms.", received))
        return {"row": row, **_move_marks(pair.label, folder / row["label"], move, whole, shape)}
    part = _part(move, shape)
    label, truth = misalign.misaligned(example.label, part, shape=shape, center=center)
    original = pair.label.path if isinstance(pair.label, sources.File) else None
    writers.write_like(original, folder / "labels" / example.name, label)
    if is_field:
        path = writers.write_like(None, folder / "truth" / example.name, truth.astype(np.float32))
        row["displacement"] = path.relative_to(folder).as_posix()
    return {"row": row}


def _move_marks(label, path, move, whole, shape):
    """Writes the positions of one input that is cut from the sizes `whole` to `shape`; those of several come later."""
    rank, drawing = len(whole), label.drawing
    original = label.path if label.marks is None else label_files.file_and_owner(label)[0]
    # From the first pixel of the whole to that of the cut.
    cut = np.eye(rank + 1)
    cut[:rank, rank] = np.array(shape) // 2 - np.array(whole) // 2
    moved = positions.in_file(cut @ move, original, drawing, whole)
    if label.marks is None:
        positions.write_moved(label.path, path, {None: moved})
        return {}
    return {"move": moved.tolist(), "shape": [round(size / drawing.scale) for size in shape]}


def _largest(name, move, shape):
    """The largest sizes, and the centre, of a label whose every pixel is known after the move."""
    center = [size // 2 for size in shape]
    room = np.minimum(center, np.array(shape) - 1 - center)
    least = 0
    if move.shape[-1] == len(shape):
        least = max(0, *(-(-(size - own) // 2) for size, own in zip(shape, move.shape)))

    def fits(less):
        sizes = [size - 2 * less for size in shape]
        return np.all(misalign.reach([_part(move, sizes)], shape=sizes) <= room)

    choices = range(least, (min(shape) + 1) // 2)
    less = bisect.bisect_left(choices, True, key=fits)
    if less == len(choices):
        received = {"name": name, "shape": shape, "move": move.tolist() if move.size < 20 else move.shape}
        raise ValueError(_checks.message("A move must leave some of the label.", received))
    return [size - 2 * choices[less] for size in shape], center


def _part(move, shape):
    """The move of a label of the sizes `shape`: of a displacement what lies there about its centre."""
    if move.shape[-1] != len(shape):
        return move
    return misalign.cut(move, shape=shape, center=[size // 2 for size in move.shape[:-1]])
