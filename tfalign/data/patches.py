"""Patches: where they lie, what is cut there, which to keep, and back to the whole. NumPy; 1-D, 2-D and 3-D.

A grid is `(*spatial, channels)`; sizes are in pixels, in the order (plane, row, col), one number or one per axis.
Whatever belongs to a tile shares its centre, index `size // 2`: an input patch, a label patch that is larger by a
margin, a prediction that is smaller because the network pads nothing. Grids of other sizes lie on one centre as well.

    tiles = tile(image.shape[:-1], size=100, overlap=20)
    windows = cut(image, tiles, size=256)  # the network gives the inner 100 pixels
    whole = stitch((model(window[np.newaxis])[0] for window in windows), tiles)
"""

import dataclasses
import itertools
import math
from typing import NamedTuple

import numpy as np

from tfalign import _checks

MIRROR = "mirror"


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Where the patches of one grid lie: every combination of the starts on each axis, the last axis fastest.

    Attributes:
        shape: sizes of the grid.
        size: sizes of a patch.
        starts: for each axis the first index of each patch, ascending; negative where the grid is smaller than a patch.
    """

    shape: tuple
    size: tuple
    starts: tuple

    def __len__(self):
        return math.prod(len(axis) for axis in self.starts)

    def __getitem__(self, index):
        """The first index on each axis of patch `index`."""
        return tuple(axis[at] for axis, at in zip(self.starts, self.place(index)))

    def place(self, index):
        """Which patch on each axis patch `index` is."""
        return tuple(int(at) for at in np.unravel_index(index, [len(axis) for axis in self.starts]))


def tile(shape, *, size=None, count=None, overlap=0, max_size=None, max_pixels=None):
    """Cuts a grid that is over a threshold into a number of patches, or into patches of a size.

    The patches cover the grid and are spread evenly, so that neighbours overlap by `overlap` or a little more.

    Args:
        shape: sizes of the grid.
        size: of a patch. A grid that is smaller on an axis lies in the middle of its patch.
        count: instead, patches per axis, or how many in all: these are shared out so that patches come out as square as
            may be.
        overlap: pixels that neighbours share at least, < `size`.
        max_size, max_pixels: a grid that exceeds neither is one patch of its own size; by default all are cut.

    Returns:
        `Tiles`; a single one when neither `size` nor `count` is given.

    Raises:
        TypeError, ValueError: an option out of range, or both `size` and `count`.
    """
    shape = tuple(int(length) for length in shape)
    rank = len(shape)
    overlaps = _checks.pixels_per_axis("overlap", overlap, rank)
    if size is not None and count is not None:
        raise ValueError(
            _checks.message("Only one of `size` and `count` may be given.", {"size": size, "count": count})
        )
    limits = (math.inf,) * rank if max_size is None else _positive("max_size", max_size, rank)
    pixels = math.inf if max_pixels is None else _checks.whole_number("max_pixels", max_pixels, at_least=1)
    has_threshold = max_size is not None or max_pixels is not None
    is_small = all(length <= limit for length, limit in zip(shape, limits)) and math.prod(shape) <= pixels
    if (size is None and count is None) or (has_threshold and is_small):
        return Tiles(shape, shape, ((0,),) * rank)
    if size is None:
        counts = _counts(count, shape)
        if any(k > n for k, n in zip(counts, shape)):
            raise ValueError(_checks.message("`count` must not exceed the pixels.", {"count": count, "shape": shape}))
        sizes = tuple(-(-(n + (k - 1) * o) // k) for n, k, o in zip(shape, counts, overlaps))
    else:
        sizes = _positive("size", size, rank)
        counts = None
    if any(o >= width for o, width in zip(overlaps, sizes)):
        received = {"overlap": overlap, "size": sizes}
        raise ValueError(_checks.message("`overlap` must be smaller than a patch.", received))
    if counts is None:
        counts = [max(1, -(-(n - o) // (s - o))) for n, s, o in zip(shape, sizes, overlaps)]
    return Tiles(shape, sizes, tuple(_spread(*axis) for axis in zip(shape, sizes, counts)))


def cut(values, tiles, *, size=None, fill=MIRROR, indices=None):
    """Cuts the patches of a grid, one after the other.

    Args:
        values: `(*spatial, channels)`, an array or `np.memmap`; its sizes may differ from `tiles.shape`, the centre is
            the same.
        tiles: `Tiles`.
        size: of what is cut around the centre of each tile; by default `tiles.size`.
        fill: where the grid has no pixel: a value, or "mirror", for inputs.
        indices: which patches; by default all.

    Yields:
        Arrays `(*size, channels)`, copies.
    """
    rank = len(tiles.shape)
    if values.ndim != rank + 1:
        received = {"values.shape": values.shape, "tiles.shape": tiles.shape}
        raise ValueError(_checks.message(f"`values` must have {rank} spatial axes and channels.", received))
    sizes = tiles.size if size is None else _positive("size", size, rank)
    offsets = [n // 2 - m // 2 for n, m in zip(values.shape, tiles.shape)]
    for index in range(len(tiles)) if indices is None else indices:
        starts = _concentric(tiles[index], tiles.size, sizes)
        yield _window(values, [start + offset for start, offset in zip(starts, offsets)], sizes, fill)


def stitch(patches, tiles, *, out=None, fill_value=0):
    """Puts patches together: the inverse of `cut`.

    Floating patches are blended by weights that fall linearly from their middle and sum to one at every pixel. Of
    integers and booleans (class maps) each pixel takes the patch in which it lies deepest. One patch is in memory at a
    time, so with an `np.memmap` for `out` memory stays flat whatever the size.

    Args:
        patches: iterable of `(*size, channels)` arrays in the order of `tiles`, all of one size. That may differ from
            `tiles.size` on the same centre: a prediction that is smaller, or has a border to be blended.
        tiles: the `Tiles` that they were cut by.
        out: array to write into, `(*tiles.shape, channels)`; by default a new one in the type of the patches.
        fill_value: of pixels that no patch covers, which happens only with patches smaller than `tiles.size`.

    Returns:
        `out`.

    Raises:
        ValueError: too few or too many patches, or shapes that do not fit.
    """
    done, shape, axes = 0, None, []
    for patch in map(np.asarray, patches):
        if done == 0:
            shape = patch.shape
            axes = _shares(tiles, patch)
            out = _empty(out, tiles, patch, axes, fill_value)
        if done == len(tiles) or patch.shape != shape:
            received = {"patch": done, "its shape": patch.shape, "first shape": shape, "tiles": len(tiles)}
            raise ValueError(_checks.message("`patches` must be one per tile, all of one shape.", received))
        _add(out, patch, [axis[number] for axis, number in zip(axes, tiles.place(done))])
        done += 1
    if done < len(tiles):
        received = {"patches": done, "tiles": len(tiles)}
        raise ValueError(_checks.message("`patches` must be one for each tile.", received))
    return out


def content(label, *, ignore_class=None):
    """How much there is to see in a patch: 0 is blank.

    Args:
        label: `(*spatial, channels)`. Floating: the largest standard deviation of a channel, non-finite pixels left
            out. Integers and booleans (class maps): the share of pixels outside the most common class.
        ignore_class: a class that counts as no pixel.
    """
    if _is_class_map(label):
        classes = label if ignore_class is None else label[label != ignore_class]
        counts = np.unique(classes, return_counts=True)[1]
        return float(1.0 - counts.max() / counts.sum()) if counts.size else 0.0
    rows = label.reshape(-1, label.shape[-1]).astype(np.float64)
    known = (channel[np.isfinite(channel)] for channel in rows.T)
    return float(max(channel.std() if channel.size else 0.0 for channel in known))


def balanced(contents, *, max_blank=0.1, blank_below=0.05, seed=0):
    """Which patches to train on, so that blank ones do not dominate: all others, and a random part of these.

    Args:
        contents: `(count,)` of `content`.
        max_blank: blank patches at most, as a share of those kept; 1 keeps all.
        blank_below: a patch is blank at or below this share of the 95th percentile of all contents.
        seed: of the draw.

    Returns:
        `(count,)` bool. All of them when all are blank.
    """
    contents = np.asarray(contents, dtype=np.float64)
    max_blank = _checks.number("max_blank", max_blank, at_least=0.0, at_most=1.0)
    blank_below = _checks.number("blank_below", blank_below, at_least=0.0, at_most=1.0)
    if not contents.size:
        return np.ones(0, dtype=bool)
    is_blank = contents <= blank_below * np.percentile(contents, 95)
    others = np.count_nonzero(~is_blank)
    if max_blank == 1.0 or not others:
        return np.ones(contents.shape, dtype=bool)
    blank = np.random.default_rng(seed).permutation(np.flatnonzero(is_blank))
    kept = ~is_blank
    kept[blank[: math.floor(others * max_blank / (1.0 - max_blank))]] = True
    return kept


class _Share(NamedTuple):
    """What a patch gives to one axis: from index `first` of the grid on, its pixels from `skip` on, by `weights`."""

    first: int
    skip: int
    weights: np.ndarray

    @property
    def target(self):
        return slice(self.first, self.first + len(self.weights))

    @property
    def source(self):
        return slice(self.skip, self.skip + len(self.weights))


def _shares(tiles, patch):
    """The shares of all patches like this one, for each axis a list. Of class maps every pixel has one owner."""
    if patch.ndim != len(tiles.shape) + 1:
        received = {"patch.shape": patch.shape, "tiles.shape": tiles.shape}
        raise ValueError(_checks.message("A patch must have the axes of the tiles and channels.", received))
    share = _owned if _is_class_map(patch) else _blended
    return [
        share([start + size // 2 - width // 2 for start in starts], width, length)
        for starts, size, width, length in zip(tiles.starts, tiles.size, patch.shape, tiles.shape)
    ]


def _blended(starts, width, length):
    """Shares of one axis by weights that sum to one wherever there is a patch."""
    tent = np.minimum(np.arange(1, width + 1), np.arange(width, 0, -1)).astype(np.float64)
    shares, total = [], np.zeros(length)
    for start in starts:
        first, last = max(start, 0), min(start + width, length)
        shares.append(_Share(first, first - start, tent[first - start : max(last - start, first - start)]))
        total[shares[-1].target] += shares[-1].weights
    return [share._replace(weights=share.weights / total[share.target]) for share in shares]


def _owned(starts, width, length):
    """Shares of one axis that do not overlap: each pixel is that of the patch whose middle is nearest."""
    shares, begin = [], 0
    for number, start in enumerate(starts):
        begin = max(begin, start)
        end = start + width
        if number + 1 < len(starts):
            end = min(end, (start + starts[number + 1] + width + 1) // 2)
        end = max(begin, min(end, length))
        shares.append(_Share(begin, begin - start, np.ones(end - begin)))
        begin = end
    return shares


def _empty(out, tiles, patch, axes, fill_value):
    """The grid to write to: 0, and `fill_value` where no patch comes."""
    shape = (*tiles.shape, patch.shape[-1])
    out = np.empty(shape, patch.dtype) if out is None else out
    if out.shape != shape:
        raise ValueError(_checks.message("`out` must hold the whole.", {"out.shape": out.shape, "needed": shape}))
    out[...] = 0
    for axis, shares in enumerate(axes):
        is_covered = np.zeros(tiles.shape[axis], dtype=bool)
        for share in shares:
            is_covered[share.target] = True
        out[(slice(None),) * axis + (~is_covered,)] = fill_value
    return out


def _add(out, patch, shares):
    """Adds to `out` the shares of one patch, one for each axis."""
    target, values = tuple(share.target for share in shares), patch[tuple(share.source for share in shares)]
    if _is_class_map(patch):
        out[target] = values
        return
    for axis, share in enumerate(shares):
        weights = share.weights.astype(patch.dtype)
        values = values * weights.reshape([-1] + [1] * (patch.ndim - 1 - axis))
    out[target] += values


def _is_class_map(values):
    return values.dtype.kind in "iub"


def _window(values, starts, sizes, fill):
    """A copy of `values` from `starts` on; outside the grid mirrored about the border or filled."""
    stops = [start + size for start, size in zip(starts, sizes)]
    inside = tuple(
        slice(min(max(start, 0), n), max(min(stop, n), 0)) for start, stop, n in zip(starts, stops, values.shape)
    )
    known = values[inside]
    if known.shape[:-1] == tuple(sizes):
        return np.array(known)
    if isinstance(fill, str):
        _checks.choice("fill", fill, (MIRROR,))
        at = [np.arange(start, stop) % (2 * n) for start, stop, n in zip(starts, stops, values.shape)]
        return np.array(values[np.ix_(*(np.minimum(i, 2 * n - 1 - i) for i, n in zip(at, values.shape)))])
    window = np.full((*sizes, values.shape[-1]), fill, dtype=values.dtype)
    window[tuple(slice(s.start - start, s.stop - start) for s, start in zip(inside, starts))] = known
    return window


def _concentric(starts, sizes, others):
    """Where windows of sizes `others` start that share the centre of windows of `sizes`."""
    return [start + size // 2 - other // 2 for start, size, other in zip(starts, sizes, others)]


def _spread(length, size, count):
    """Starts of `count` patches, evenly from border to border; one in the middle where the grid is no larger."""
    if length <= size:
        return (length // 2 - size // 2,)
    return tuple(i * (length - size) // max(count - 1, 1) for i in range(count))


def _counts(count, shape):
    """Patches per axis."""
    if isinstance(count, (list, tuple)):
        return _positive("count", count, len(shape))
    count = _checks.whole_number("count", count, at_least=1)
    divisors = [k for k in range(1, count + 1) if count % k == 0]
    choices = [ks for ks in itertools.product(divisors, repeat=len(shape)) if math.prod(ks) == count]

    def elongation(counts):
        sides = [n / k for n, k in zip(shape, counts)]
        return max(sides) / min(sides)

    return min(choices, key=elongation)


def _positive(name, value, rank):
    """Whole numbers >= 1, one for each of `rank` axes."""
    sizes = _checks.pixels_per_axis(name, value, rank)
    if 0 in sizes:
        raise ValueError(_checks.message(f"`{name}` must be >= 1.", {name: value}))
    return sizes
