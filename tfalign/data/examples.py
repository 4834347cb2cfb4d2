"""Reading examples, whatever they come from, and fitting a preprocessing to them."""

import collections
import dataclasses
from typing import NamedTuple

from tfalign import _checks
from tfalign.data import split
from tfalign.data.cutting import parts
from tfalign.data.formats import BadFileError


class Kind(NamedTuple):
    """What all examples have in common.

    Attributes:
        input, label: `(spatial axes, channels)`.
        name: of an example that has them.
    """

    input: tuple
    label: tuple
    name: str

    @classmethod
    def of(cls, example):
        """The kind of one example."""
        name, image, label = example
        return cls((image.ndim - 1, image.shape[-1]), (label.ndim - 1, label.shape[-1]), str(name))


class Rules(NamedTuple):
    """What becomes of an example that cannot be read, or is not of the `kind`: skipped, or if `strict` it stops."""

    strict: bool
    kind: Kind | None = None


def read(pairs, index):
    """`(name, input, label)` of an example: `pairs.read(index)`, or `pairs[index]` where there is no `read`."""
    return pairs.read(index) if hasattr(pairs, "read") else pairs[index]


def try_to_read(pairs, index, rules):
    """`(example, None)`, or `(None, {"path", "reason"})` of one that is skipped.

    Raises:
        OSError, ValueError: instead, if strict.
    """
    try:
        example = read(pairs, index)
        _check_kind(pairs, index, example, rules.kind)
    except (OSError, ValueError) as error:
        if rules.strict:
            raise
        path = getattr(error, "path", None) or f"example {index}"
        return None, {"path": str(path), "reason": str(getattr(error, "reason", error))}
    return example, None


def _check_kind(pairs, index, example, kind):
    """Refuses an example that does not fit the others."""
    for role in ("input", "label") if kind is not None else ():
        own, wanted = getattr(Kind.of(example), role), getattr(kind, role)
        if own != wanted:
            reason = "it has {} spatial axes and {} channels, most of the first files {} and {}, as {!r}"
            path = getattr(pairs[index], role).path if hasattr(pairs, "read") else example[0]
            raise BadFileError(path, reason.format(*own, *wanted, kind.name))


def set_names(pairs, cutting, groups=None):
    """The set of each file, None without a label; by region a file has several, and counts as one for training."""
    groups = [_group(pairs, index) for index in range(len(pairs))] if groups is None else list(groups)
    if len(groups) != len(pairs):
        raise ValueError(
            _checks.message("`groups` must name one per file.", {"groups": len(groups), "files": len(pairs)})
        )
    names: list[str | None] = [None] * len(pairs)
    labelled = [index for index in range(len(pairs)) if _has_label(pairs, index)]
    if cutting.split_by == "region" or not labelled:
        found = [split.SETS[0]] * len(labelled)
    else:
        of_labelled = [groups[index] for index in labelled]
        found = split.by_file(len(labelled), fractions=cutting.fractions, groups=of_labelled, seed=cutting.seed)
    for index, name in zip(labelled, found):
        names[index] = name
    return names


def _has_label(pairs, index):
    return (pairs[index].label if hasattr(pairs, "read") else pairs[index][2]) is not None


def _group(pairs, index):
    """What an example must not be parted from: the other tiles of its slide."""
    return getattr(getattr(pairs[index], "input", None), "file", index)


def sampled(pool, function, indices, *options):
    """What `function` gives for the first, the middle and the last example, or for the first that gives something.

    Args:
        pool: `Workers`.
        function: `(pairs, index, *options)` -> anything, None where the example is skipped.
        indices: of the examples with a label.
        options: of the function.
    """
    chosen = sorted({0, len(indices) // 2, len(indices) - 1}) if indices else []
    for places in (chosen, *([place] for place in range(len(indices)) if place not in chosen)):
        found = pool.map(function, [(indices[place], *options) for place in places])
        known = [one for one in found if one is not None]
        if known:
            return known
    received = {"examples": len(pool.pairs), "with a label": len(indices)}
    raise ValueError(_checks.message("`pairs` must hold an example that can be read and has a label.", received))


def rules_of(pool, sets, *, strict):
    """The `Rules` for all examples: their kind is that of most of the first, the middle and the last."""
    kinds = sampled(pool, _kind, [index for index, name in enumerate(sets) if name is not None], Rules(strict))
    ((most, _),) = collections.Counter(kind[:2] for kind in kinds).most_common(1)
    return Rules(strict, next(kind for kind in kinds if kind[:2] == most))


def _kind(pairs, index, rules):
    example, _ = try_to_read(pairs, index, rules)
    return None if example is None else Kind.of(example)


def fit(pool, cutting, sets, *, rules, track):
    """`cutting` with its preprocessing fitted to the training set, one pass for each step over the data.

    Args:
        pool: `Workers`.
        cutting: `Cutting`.
        sets: set name of each file.
        rules: `Rules`.
        track: see `tfalign.data.cache.prepare`.
    """
    items = [index for index, name in enumerate(sets) if name == "train"]
    while cutting.preprocessing.unfitted is not None:
        measures = pool.map(_measure, ((index, cutting, rules) for index in items))
        known = _known(measures, track("statistics", len(items)))
        cutting = dataclasses.replace(cutting, preprocessing=cutting.preprocessing.fitted(known))
    return cutting


def _known(measures, advance):
    """Those of the files that could be read."""
    for measure in measures:
        advance(1)
        if measure is not None:
            yield measure


def _measure(pairs, index, cutting, rules):
    """What fitting takes from the training part of one file, or None."""
    example, _ = try_to_read(pairs, index, rules)
    if example is None:
        return None
    image = example[1]
    regions = dict(parts(image.shape[:-1], cutting, number=index, set_name="train"))
    return cutting.preprocessing.measure(image[regions["train"]])
