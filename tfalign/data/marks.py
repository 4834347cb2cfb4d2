"""Marks, the objects that a label names by their positions, drawn as class maps, masks, instances or heat-maps.

Coordinates are (plane, row, col) in pixels, 0 is the centre of the first pixel, and a pixel belongs to a mark whose
area holds its centre, the edge included; a box has one pixel on each axis at least.
"""

from typing import NamedTuple

import numpy as np
import skimage.draw

from tfalign import _checks

KINDS = ("classes", "masks", "instances", "heatmap")


class Point(NamedTuple):
    """A position `at`, `(d,)`."""

    at: np.ndarray


class Box(NamedTuple):
    """The box from `low` to `high`, both `(d,)` and included; an interval in 1-D."""

    low: np.ndarray
    high: np.ndarray


class Polygon(NamedTuple):
    """`rings`, each `(vertices, 2)`: the outline, then holes."""

    rings: tuple


class Runs(NamedTuple):
    """Run lengths `counts` of pixels outside, inside, outside …, down the columns of a map of the sizes `shape`."""

    counts: np.ndarray
    shape: tuple

    def mask(self):
        """The map, bool."""
        inside = np.arange(len(self.counts)) % 2 == 1
        return np.repeat(inside, self.counts).reshape(self.shape[::-1]).T


class Mark(NamedTuple):
    """One object: its parts, the name of its class, and the number of its class where the file has one."""

    parts: tuple
    name: str | None = None
    number: int | None = None


class Drawing(NamedTuple):
    """How positions become a map.

    Attributes:
        kind: "classes": one channel, int32, 0 where nothing is, else the number of the class. "masks": one channel for
            each class, uint8. "instances": one channel, int32, each mark its own number, from 1 in the order of the
            file. "heatmap": one channel for each class, float32, with a Gaussian of height 1 at the middle of each
            mark. Where marks overlap, the later one is seen; in a heat-map, the higher value.
        radius: pixels, >= 1: of the disc (ball, interval) that a point or peak is drawn as, and the standard deviation
            of the Gaussians.
        classes: names in the order of their numbers 1, 2, …, or channels; a mark of another class is a fault of its
            file. Empty: the numbers of the file are taken (of a mark without a class, 1), and masks and heat-maps have
            one channel for all marks.
        origin: "center" or "corner", where the file's 0 lies in its first pixel; None takes what is usual for the file,
            see `tfalign.data.positions`.
        scale: pixels in one unit of the file, e.g. samples per second, or pixels per micrometre.
    """

    kind: str = "classes"
    radius: float = 3.0
    classes: tuple = ()
    origin: str | None = None
    scale: float = 1.0

    def checked(self):
        """Self, its values checked.

        Raises:
            ValueError, TypeError: a value out of range.
        """
        _checks.choice("kind", self.kind, KINDS)
        _checks.choice("origin", self.origin, (None, "center", "corner"))
        _checks.number("radius", self.radius, at_least=1)
        _checks.number("scale", self.scale, at_least=1e-12)
        if isinstance(self.classes, str) or len(set(self.classes)) != len(self.classes):
            raise ValueError(_checks.message("`classes` must be different names.", {"classes": self.classes}))
        return self._replace(classes=tuple(str(name) for name in self.classes))


_PLAIN = Drawing()


def rasterise(marks, shape, drawing=_PLAIN):
    """Draws marks as a map.

    Args:
        marks: `Mark`s in pixels (plane, row, col) from the centre of the first pixel.
        shape: spatial sizes of the map.
        drawing: a checked `Drawing`; its `origin` and `scale` are a matter of reading.

    Returns:
        `(*shape, channels)`, see `Drawing.kind`.

    Raises:
        ValueError: a mark has another rank than the map, or a class that `drawing` does not know.
    """
    kind, per_class = drawing.kind, drawing.kind in ("masks", "heatmap")
    types = {"masks": np.uint8, "heatmap": np.float32}
    drawn = np.zeros((*shape, max(1, len(drawing.classes)) if per_class else 1), types.get(kind, np.int32))
    for position, mark in enumerate(marks, 1):
        number = _class_number(mark, drawing)
        channel = drawn[..., number - 1 if per_class and drawing.classes else 0]
        if kind == "heatmap":
            _add_gaussian(channel, np.mean(_ends(mark), axis=0), drawing.radius)
            continue
        value = {"masks": 1, "instances": position, "classes": number}[kind]
        for part in mark.parts:
            channel[_pixels(part, shape, drawing.radius)] = value
    return drawn


def moved(marks, *, offset, scale):
    """Marks at coordinates scale * x + offset, per axis `(d,)`; run lengths stay."""

    def move(part):
        match part:
            case Point(at):
                return Point(at * scale + offset)
            case Box(low, high):
                return Box(low * scale + offset, high * scale + offset)
            case Polygon(rings):
                return Polygon(tuple(ring * scale + offset for ring in rings))
        return part

    return [mark._replace(parts=tuple(map(move, mark.parts))) for mark in marks]


def bounds(marks):
    """The boxes around marks of one rank, `(low, high)`, both `(count, d)`."""
    ends = np.array([_ends(mark) for mark in marks])
    return (ends[:, 0], ends[:, 1]) if len(marks) else (np.zeros((0, 1)), np.zeros((0, 1)))


def _ends(mark):
    """Lower and upper end of the box around a mark, two times `(d,)`."""
    corners: list = []
    for part in mark.parts:
        match part:
            case Runs():
                corners += list(np.argwhere(part.mask()))
            case Polygon(rings):
                corners += list(rings[0])
            case _:
                corners += list(part)
    return np.min(corners, axis=0), np.max(corners, axis=0)


def _class_number(mark, drawing):
    """The number of a mark's class, from 1."""
    if drawing.classes:
        name = drawing.classes[0] if mark.name is None and len(drawing.classes) == 1 else mark.name
        if name not in drawing.classes:
            received = {"class": name, "classes": drawing.classes}
            raise ValueError(_checks.message("A mark's class must be one of `classes`.", received))
        return drawing.classes.index(name) + 1
    if drawing.kind != "classes" or (mark.name is None and mark.number is None):
        return 1
    if mark.number is None or mark.number < 1:
        received = {"class": mark.name, "number": mark.number}
        remedy = "Number the classes from 1, or name them all in `classes`."
        raise ValueError(_checks.message("A mark's class must have a number >= 1.", received, remedy))
    return mark.number


def _pixels(part, shape, radius):
    """Indices `(d, n)` of the pixels of a part inside the map, as a tuple of arrays."""
    match part:
        case Runs():
            if part.shape != tuple(shape):
                received = {"sizes": part.shape, "map": tuple(shape)}
                raise ValueError(_checks.message("Run lengths must have the sizes of the map.", received))
            return np.nonzero(part.mask())
        case Point(at):
            grid = _window(at - radius, at + radius, shape)
            inside = sum((axis - center) ** 2 for axis, center in zip(grid, at)) <= radius**2
            return tuple(axis[inside] for axis in grid)
        case Box(low, high):
            # One that holds no centre of a pixel is seen as the pixel that its middle lies in.
            middle = np.floor((low + high) / 2 + 0.5)
            grid = _window(np.minimum(np.ceil(low), middle), np.maximum(np.floor(high), middle), shape)
            return tuple(axis.ravel() for axis in grid)
        case Polygon(rings):
            _check_rank(rings[0][0], shape)
            inside, first = _ring(rings[0], shape)
            for hole in rings[1:]:
                inside &= ~_ring(hole, shape, window=(first, inside.shape))[0]
            return tuple(axis + start for axis, start in zip(np.nonzero(inside), first))
    raise TypeError(part)


def _ring(ring, shape, window=None):
    """What a ring encloses, bool, on the part of the map that it spans or on a window, and where that begins."""
    if window is None:
        low = np.clip(np.ceil(ring.min(axis=0)), 0, shape).astype(int)
        high = np.clip(np.floor(ring.max(axis=0)) + 1, low, shape).astype(int)
        window = low, tuple(high - low)
    first, size = window
    inside = np.zeros(size, bool)
    inside[skimage.draw.polygon(ring[:, 0] - first[0], ring[:, 1] - first[1], shape=size)] = True
    return inside, first


def _window(low, high, shape):
    """Index grids of the whole pixels from `low` to `high`, both included, inside the map."""
    _check_rank(low, shape)
    ranges = [
        np.arange(max(0, int(np.ceil(a))), min(size - 1, int(np.floor(b))) + 1) for a, b, size in zip(low, high, shape)
    ]
    return np.meshgrid(*ranges, indexing="ij")


def _check_rank(at, shape):
    if len(at) != len(shape):
        raise ValueError(
            _checks.message("Positions must have the rank of the input.", {"axes": len(at), "input": tuple(shape)})
        )


def _add_gaussian(channel, center, sigma):
    """Raises a map to a Gaussian of height 1 where that is higher."""
    grid = _window(center - 4 * sigma, center + 4 * sigma, channel.shape)
    squares = sum((axis - middle) ** 2 for axis, middle in zip(grid, center))
    where = tuple(grid)
    channel[where] = np.maximum(channel[where], np.exp(-squares / (2 * sigma**2)))
