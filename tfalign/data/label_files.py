"""Where changed labels are written, and the files of positions among them, which several inputs may share."""

from pathlib import Path

import numpy as np

from tfalign.data import positions, sources, writers


def target(pair):
    """The file that a label is written to, as seen from its folder."""
    if is_shared(pair):
        return Path(file_and_owner(pair.label)[0]).name
    if has_marks(pair.label):
        return pair.name + Path(pair.label.path).suffix
    return pair.name + writers.suffix_like(pair.label.path if isinstance(pair.label, sources.File) else None)


def has_marks(source):
    """Whether a label is positions of a whole input, which stay positions."""
    return isinstance(source, sources.Drawn) and source.placing is None


def is_shared(pair):
    """Whether the label is positions in a file that holds those of other inputs too."""
    return has_marks(pair.label) and pair.label.marks is not None


def file_and_owner(source):
    """The file of positions that many inputs share, and which of its names is meant."""
    original, _, owner = source.path.rpartition(": ")
    return original, owner


def write_shared(entries, folder):
    """Writes the files of positions that hold the labels of many inputs.

    Args:
        entries: `(pair, {"move", perhaps "shape"})`, see `positions.write_moved`.
        folder: where to.
    """
    moves: dict = {}
    shapes: dict = {}
    for pair, entry in entries:
        if is_shared(pair):
            original, owner = file_and_owner(pair.label)
            moves.setdefault(original, {})[owner] = np.array(entry["move"])
            if "shape" in entry:
                shapes[owner] = entry["shape"]
    for original, of_owner in moves.items():
        positions.write_moved(original, folder / Path(original).name, of_owner, shapes)
