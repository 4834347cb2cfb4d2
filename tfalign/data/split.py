"""Training, validation and test sets that share nothing: whole files, or regions of each file."""

import math

import numpy as np

from tfalign import _checks

SETS = ("train", "validation", "test")


def by_file(count, *, fractions, groups=None, seed=0):
    """Gives every file to one set.

    Args:
        count: number of files.
        fractions: of train, validation and test; they sum to 1. A set with a fraction > 0 gets a file at least.
        groups: one key per file; files of one key (a patient, a slide) stay together, and fractions count groups. By
            default every file is a group.
        seed: of the draw.

    Returns:
        A list of set names, one per file.

    Raises:
        ValueError: fractions that do not sum to 1, too few files, or not one group per file.
    """
    fractions = checked(fractions)
    groups = list(range(count)) if groups is None else list(groups)
    if len(groups) != count:
        raise ValueError(_checks.message("`groups` must name one per file.", {"groups": len(groups), "files": count}))
    keys = list(dict.fromkeys(groups))
    wanted = sum(fraction > 0 for fraction in fractions)
    if len(keys) < wanted:
        received = {"files or groups": len(keys), "fractions": fractions}
        raise ValueError(_checks.message(f"{wanted} sets need as many files.", received, "Split by region."))
    order = np.random.default_rng(seed).permutation(len(keys))
    edges = np.cumsum(_shared_out(len(keys), fractions))
    place = {keys[key]: SETS[int(np.searchsorted(edges, rank, side="right"))] for rank, key in enumerate(order)}
    return [place[key] for key in groups]


def by_region(shape, *, fractions, number=0, seed=0):
    """Cuts a file into bands across its longest axis, one for each set, in an order drawn for each file.

    Args:
        shape: sizes of the input.
        fractions: of train, validation and test; they sum to 1.
        number: of the file.
        seed: of the draw.

    Returns:
        A list of `(set name, slices)`, one slice per axis; the bands touch and do not overlap.

    Raises:
        ValueError: fractions that do not sum to 1, or fewer pixels than sets.
    """
    fractions = checked(fractions)
    axis = int(np.argmax(shape))
    wanted = [index for index, fraction in enumerate(fractions) if fraction > 0]
    if shape[axis] < len(wanted):
        raise ValueError(_checks.message("An input must have a pixel for each set.", {"shape": tuple(shape)}))
    lengths = _shared_out(shape[axis], fractions)
    order = np.random.default_rng([seed, number]).permutation(wanted)
    edges = np.concatenate([[0], np.cumsum([lengths[index] for index in order])])
    whole = [slice(None)] * len(shape)
    return [
        (SETS[index], (*whole[:axis], slice(int(first), int(last)), *whole[axis + 1 :]))
        for index, first, last in zip(order, edges, edges[1:])
    ]


def checked(fractions):
    """`fractions` as a tuple of three numbers >= 0 that sum to 1."""
    fractions = tuple(_checks.number("fractions", fraction, at_least=0.0) for fraction in fractions)
    if len(fractions) != len(SETS) or not math.isclose(sum(fractions), 1.0, abs_tol=1e-6):
        requirement = f"`fractions` must be those of {', '.join(SETS)} and sum to 1."
        raise ValueError(_checks.message(requirement, {"fractions": fractions}))
    return fractions


def _shared_out(count, fractions):
    """Whole numbers in the proportion of `fractions` that sum to `count`, none 0 that has a fraction."""
    exact = np.array(fractions) * count
    parts = np.floor(exact + 1e-9).astype(int)
    for index in np.argsort(parts - exact, kind="stable")[: count - parts.sum()]:
        parts[index] += 1
    for index, fraction in enumerate(fractions):
        if fraction > 0 and parts[index] == 0:
            parts[np.argmax(parts)] -= 1
            parts[index] = 1
    return parts
