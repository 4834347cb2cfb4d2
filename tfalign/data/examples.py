"""Reading examples, whatever they come from, and fitting a preprocessing to them."""

import dataclasses
import os
import zlib

from tfalign import _checks
from tfalign.data import split
from tfalign.data.cutting import parts

UNLABELLED = "it has no label"


def read(pairs, index):
    """`(name, input, label)` of an example: `pairs.read(index)`, or `pairs[index]` where there is no `read`."""
    return pairs.read(index) if hasattr(pairs, "read") else pairs[index]


def try_to_read(pairs, index, *, strict):
    """`(example, None)`, or `(None, {"path", "reason"})` of one that cannot be read or has no label.

    Raises:
        OSError, ValueError: instead, if strict.
    """
    try:
        example = read(pairs, index)
    except (OSError, ValueError) as error:
        if strict:
            raise
        path = getattr(error, "path", None) or f"example {index}"
        return None, {"path": str(path), "reason": str(getattr(error, "reason", error))}
    if example[2] is not None:
        return example, None
    if strict:
        raise ValueError(_checks.message("Every example must have a label.", {"name": example[0]}))
    return None, {"path": str(example[0]), "reason": UNLABELLED}


def fingerprint(pairs, index):
    """What tells that an example changed: name, and size and time of its files, or a checksum where it has none."""
    if not hasattr(pairs, "read"):
        name, *arrays = pairs[index]
        return [str(name), *(None if array is None else _array_state(array) for array in arrays)]
    pair = pairs[index]
    return [str(pair.name), *(None if source is None else _file_state(source) for source in (pair.input, pair.label))]


def set_names(count, cutting, groups=None):
    """The set of each file; by region a file has several, and counts as one for training."""
    if cutting.split_by == "region":
        return [split.SETS[0]] * count
    return split.by_file(count, fractions=cutting.fractions, groups=groups, seed=cutting.seed)


def fit(pool, cutting, sets, *, strict, track):
    """`cutting` with its preprocessing fitted to the training set, one pass for each step over the data.

    Args:
        pool: `Workers`.
        cutting: `Cutting`.
        sets: set name of each file.
        strict, track: see `tfalign.data.cache.prepare`.
    """
    items = [index for index, name in enumerate(sets) if name == "train"]
    while cutting.preprocessing.unfitted is not None:
        measures = pool.map(_measure, ((index, cutting, strict) for index in items))
        known = _known(measures, track("statistics", len(items)))
        cutting = dataclasses.replace(cutting, preprocessing=cutting.preprocessing.fitted(known))
    return cutting


def _known(measures, advance):
    """Those of the files that could be read."""
    for measure in measures:
        advance(1)
        if measure is not None:
            yield measure


def _measure(pairs, index, cutting, strict):
    """What fitting takes from the training part of one file, or None."""
    example, _ = try_to_read(pairs, index, strict=strict)
    if example is None:
        return None
    image = example[1]
    regions = dict(parts(image.shape[:-1], cutting, number=index, set_name="train"))
    return cutting.preprocessing.measure(image[regions["train"]])


def _array_state(array):
    """Shape, type and checksum."""
    return [list(array.shape), str(array.dtype), zlib.crc32(array.tobytes())]


def _file_state(source):
    """Path, size and time of the file behind a source; what follows ": " in its path names something inside it."""
    path = str(source.path)
    while path and not os.path.exists(path):
        path = path.rpartition(": ")[0]
    state = os.stat(path) if path else None
    return [str(source.path), *((state.st_size, state.st_mtime_ns) if state else ())]
