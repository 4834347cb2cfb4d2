"""A trained network on grids of any size: prepared as in training, cut into tiles that overlap, put together again."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfalign import _checks
from tfalign.data import patches
from tfalign.data.preprocess import Preprocessing, Scale, SeparateStains
from tfalign.export import grid, options, tiles
from tfalign.ops import filters

_TILE = {1: 2**16, 2: 768, 3: 96}  # pixels a side, by rank; a step of a small U-Net then takes about a gigabyte
_WIDEST = {1: 2**18, 2: 1024, 3: 128}  # and where its borders reach far


class Codes(NamedTuple):
    """A preprocessing that maps the codes of an integer type to a range; floats stay."""

    low: float
    high: float

    def __call__(self, values):
        """`(batch, *spatial, channels)`."""
        if values.dtype.kind != "u":
            return np.asarray(values, np.float32)
        return np.float32(self.low + (self.high - self.low) * (values / np.float32(np.iinfo(values.dtype).max)))


class Predictor:
    """A network with its preprocessing on single grids `(*spatial, channels)` of any size and type.

    Attributes:
        channels: of a prediction.
        input_channels: of what it takes.
    """

    def __init__(self, model, preprocessing, *, tile=None, tile_overlap=None):
        self._network, front = options.split(model)
        self._steps = [step for step in (preprocessing, front) if step is not None]
        self.channels = model.output_shape[-1]
        steps = [step for one in self._steps for step in getattr(one, "steps", ())]
        self.input_channels = (
            3 if any(isinstance(step, SeparateStains) for step in steps) else self._network.input_shape[-1]
        )
        self._moves = any(step.moves_pixels for step in steps)
        rank = options.model_rank(model)
        self._axes = grid.axes_of(self._network)
        self._wanted, self._overlap = tile, tile_overlap
        limits = _checks.whole_numbers_per_axis("tile", _TILE[rank] if tile is None else tile, rank, at_least=1)
        self._limits = [axis.fixed or limit for axis, limit in zip(self._axes, limits)]
        self._cuts = None
        if tile is not None or tile_overlap is not None:
            self._tiling()
        spec = tf.TensorSpec([1, *[None] * rank, self._network.input_shape[-1]], tf.float32)
        self._run = tf.function(
            lambda inputs: tiles.predict(
                lambda values: self._network(values, training=False), inputs, self._axes, channels=self.channels
            ),
            input_signature=[spec],
        )

    def __call__(self, values, *, out=None, classes=False):
        """The prediction `(*spatial, channels)` float32 on the grid of `values`, or the number of its largest channel.

        Args:
            values: `(*spatial, channels)`, an array or `np.memmap`.
            out: an array to write into.
            classes: True gives uint8, or uint16 for more than 256 channels, `(*spatial, 1)`.

        A network that gives fewer pixels than it takes sees the input's mirror image beyond its border. Where the
        preprocessing moves pixels, the prediction is moved back; what lies beyond is 0.
        """
        shape = values.shape[:-1]
        in_parts = all(map(_is_pointwise, self._steps))
        prepared = values if in_parts else self._prepared(values)
        windows = self._windows(prepared, is_prepared=not in_parts)
        if self._moves:
            whole = patches.stitch(windows, self._plan(prepared.shape[:-1]))
            result = _moved_back(whole, self._steps, shape)
            result = _numbers(result) if classes else result
            if out is None:
                return result
            out[...] = result
            return out
        if classes:
            windows = map(_numbers, windows)
        return patches.stitch(windows, self._plan(shape), out=out)

    def _prepared(self, values):
        values = values[np.newaxis]
        for step in self._steps:
            values = step(values)
        return np.asarray(values, np.float32)[0]

    def _plan(self, shape):
        """Where the parts of the prediction lie that are put together."""
        if all(size <= limit - axis.loss for size, limit, axis in zip(shape, self._limits, self._axes)):
            return patches.tile(shape)
        cores, shared = zip(
            *((size, 0) if size <= cut.core else (cut.core, cut.shared) for size, cut in zip(shape, self._tiling()))
        )
        return patches.tile(shape, size=cores, overlap=shared)

    def _windows(self, values, *, is_prepared):
        """Yields the prediction of each part of the plan."""
        shape = values.shape[:-1]
        plan = self._plan(shape)
        for number in range(len(plan)):
            spans = [
                self._span(axis, size, start, core, self._tiling()[index] if len(plan) > 1 else None)
                for index, (axis, size, start, core) in enumerate(zip(self._axes, shape, plan[number], plan.size))
            ]
            place = patches.Tiles(shape, tuple(span.size for span in spans), tuple((span.first,) for span in spans))
            (window,) = patches.cut(values, place)
            window = window if is_prepared else self._prepared(window)
            predicted = self._run(tf.constant(window[np.newaxis], tf.float32))[0].numpy()
            yield predicted[tuple(slice(span.skip, span.skip + core) for span, core in zip(spans, plan.size))]

    def _span(self, axis, size, start, core, cut):
        """What is given to the network along one axis for the predictions from `start` on."""
        margin, period = (0, 1) if cut is None else (cut.margin, cut.period)
        first = max(start - margin, 0) // period * period
        last = first + axis.fixed - axis.loss if axis.fixed else min(start + core + margin, size)
        return _Span(first - axis.loss // 2, last - first + axis.loss, start - first)

    def _tiling(self):
        """A `_Cut` for each axis; the network is measured when a grid needs it."""
        if self._cuts is None:
            axes = grid.measured(self._network, self._axes)
            rank = len(axes)
            if self._wanted is None and self._overlap is None:
                widths = [axis.fixed or _width(axis, rank) for axis in axes]
                overlaps = [
                    min(3 * (axis.reach or 0) or width // 4, (width - axis.loss) // 2)
                    for axis, width in zip(axes, widths)
                ]
            else:
                tiling = options.checked_tiles(self._wanted or _TILE[rank], self._overlap, axes)
                widths, overlaps = [width for width, _ in tiling], [overlap for _, overlap in tiling]
            self._cuts = [_cut(*one) for one in zip(axes, widths, overlaps)]
        return self._cuts


class _Span(NamedTuple):
    """Along one axis: the first index and the size of a window, and how many of its predictions come too early."""

    first: int
    size: int
    skip: int


class _Cut(NamedTuple):
    """How an axis is cut: predictions of a tile that count, those that neighbours share, and the border around them."""

    core: int
    shared: int
    margin: int
    period: int


def _width(axis, rank):
    """Pixels of a tile: as many as are usual, or enough for a border that reaches far."""
    needed = 6 * (axis.reach or 0) + axis.loss
    return int(axis.taken_size(min(max(_TILE[rank], needed), _WIDEST[rank])))


def _cut(axis, width, overlap):
    """The outer third of an overlap does not count, in the middle third one tile goes over into the other."""
    period = axis.period if axis.reach is not None else 1
    margin = overlap // 3
    core = width - axis.loss - 2 * margin - (period - 1)
    if core < 1:
        received = {"tile": width, "tile_overlap": overlap, "period": period}
        raise ValueError(_checks.message("`tile` must be larger.", received))
    return _Cut(core, min(overlap - 2 * margin, core - 1), margin, period)


def _is_pointwise(step):
    """Whether every pixel is prepared by itself, so that parts of a grid can be."""
    own = step.steps if isinstance(step, Preprocessing) else ()
    is_known = isinstance(step, (Preprocessing, Codes))
    return is_known and all(
        isinstance(one, (Scale, SeparateStains)) or getattr(one, "over", "") == "data" for one in own
    )


def _numbers(values):
    """The number of the largest channel, `(*spatial, 1)`."""
    return np.argmax(values, axis=-1)[..., np.newaxis].astype(type_of_numbers(values.shape[-1]))


def type_of_numbers(channels):
    """The integers that number so many classes."""
    return np.dtype(np.uint8 if channels <= 256 else np.uint16)


def _moved_back(values, steps, shape):
    """A prediction `(*spatial, channels)` on the grid of the file; 0 where the network was given nothing."""
    before, factors = tuple(shape), np.ones(len(shape))
    for step in steps:
        for one in getattr(step, "steps", ()):
            before, own = one.grid(before)
            factors *= own
    moved = filters.resample(values[np.newaxis], step=factors.tolist(), output_shape=tuple(shape))[0].numpy()
    for axis, (size, given, factor) in enumerate(zip(shape, values.shape, factors)):
        at = (np.arange(size) - size // 2) * factor + given // 2
        beyond = (at < -0.5 * max(factor, 1.0)) | (at > given - 1 + 0.5 * max(factor, 1.0))
        moved[(slice(None),) * axis + (beyond,)] = 0
    return moved
