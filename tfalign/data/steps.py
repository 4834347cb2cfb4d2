"""The steps of a preprocessing: small frozen objects of pure TensorFlow, called with `(batch, *spatial, channels)`.

Statistics with `over="image"` are those of every image that a step is called with; with `over="data"` they are taken
once by `fitted`, from what `measure` takes of each image of the data, and are part of the step from then on.
"""

import dataclasses
import math
import zlib
from typing import ClassVar

import numpy as np
import skimage.color
import tensorflow as tf

from tfalign import _checks
from tfalign.ops import filters, geometry, resample

OVER = ("image", "data")
# From RGB to stains, as `skimage.color` names them by their initials.
STAINS = ("hed", "hdx", "fgx", "bex", "rbd", "gdx", "hax", "bro", "bpx", "ahx", "hpx")
_SAMPLE = 2**18  # pixels that stand for all of the data when percentiles are taken: 0.1 points s.d. at the median


class _Step:
    """One step; it leaves labels alone and has nothing to fit."""

    moves_pixels: ClassVar[bool] = False

    @property
    def is_fitted(self):
        """Whether it can be called."""
        return True

    def place(self, label, *, interpolation, fill_value):
        """The label `(batch, *spatial, channels)` where the input went."""
        return label

    def grid(self, shape):
        """What becomes of a grid of the sizes `shape`: `(sizes after, pixels after for each pixel before)`."""
        return tuple(shape), (1.0,) * len(shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale(_Step):
    """Maps `low` .. `high` to 0 .. 1, e.g. `Scale(high=255)` for bytes."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        low, high = _checks.number("low", self.low), _checks.number("high", self.high)
        if not high > low:
            raise ValueError(_checks.message("`high` must be > `low`.", {"low": self.low, "high": self.high}))

    def __call__(self, values):
        """`(batch, *spatial, channels)`, the same shape."""
        return (values - self.low) / (self.high - self.low)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Percentiles(_Step):
    """Maps the `low` percentile to 0 and the `high` one to 1; a flat channel becomes 0.

    Percentiles are interpolated as NumPy does. Non-finite pixels have no part in them and stay. Over "data" they are
    those of 262,144 pixels drawn from all images, or of all when there are fewer.

    Attributes:
        low, high: percent.
        per_channel: False takes one pair for all channels.
        clip: cut values to [0, 1].
        over: "image" or "data".
        bounds: what `fit` found: the values at `low` and at `high`, each with one number per channel (or one).
    """

    low: float = 1.0
    high: float = 99.0
    per_channel: bool = True
    clip: bool = False
    over: str = "image"
    bounds: tuple = ()

    def __post_init__(self):
        _checks.choice("over", self.over, OVER)
        low = _checks.number("low", self.low, at_least=0.0, at_most=100.0)
        high = _checks.number("high", self.high, at_least=0.0, at_most=100.0)
        if not high > low:
            raise ValueError(_checks.message("`high` must be > `low`.", {"low": self.low, "high": self.high}))

    @property
    def is_fitted(self):
        """Whether it can be called."""
        return self.over == "image" or bool(self.bounds)

    def __call__(self, values):
        """`(batch, *spatial, channels)`, the same shape."""
        if self.over == "data":
            low, high = (tf.constant(bound, values.dtype) for bound in self.bounds)
        else:
            low, high = _percentiles(values, (self.low, self.high), self.per_channel)
        scaled = _scaled(values, low, high - low)
        return tf.clip_by_value(scaled, 0.0, 1.0) if self.clip else scaled

    def measure(self, image):
        """Of one image `(*spatial, channels)`: the pixels that it adds to the sample, with their random keys."""
        image = np.ascontiguousarray(image)
        rows = image.reshape(-1, image.shape[-1] if self.per_channel else 1)
        rows = rows[np.isfinite(rows).all(axis=1)]
        keys = np.random.default_rng(zlib.crc32(image)).random(len(rows))
        return _sample(keys, rows)

    def fitted(self, measures):
        """The step with the bounds of all images."""
        keys, rows = None, None
        for new_keys, new_rows in measures:
            joined = [new_keys], [new_rows]
            if keys is not None:
                joined = [keys, new_keys], [rows, new_rows]
            keys, rows = _sample(*(np.concatenate(part) for part in joined))
        if rows is None or not len(rows):
            raise ValueError(_checks.message("`images` must hold finite pixels.", {"pixels": 0}))
        bounds = np.percentile(rows, (self.low, self.high), axis=0)
        return dataclasses.replace(self, bounds=as_tuples(bounds.tolist()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZScore(_Step):
    """Takes the mean away and divides by the standard deviation; a flat channel becomes 0.

    Non-finite pixels have no part in them and stay.

    Attributes:
        per_channel: False takes one pair for all channels.
        over: "image" or "data".
        mean, deviation: what `fit` found: one number per channel (or one).
    """

    per_channel: bool = True
    over: str = "image"
    mean: tuple = ()
    deviation: tuple = ()

    def __post_init__(self):
        _checks.choice("over", self.over, OVER)

    @property
    def is_fitted(self):
        """Whether it can be called."""
        return self.over == "image" or bool(self.mean)

    def __call__(self, values):
        """`(batch, *spatial, channels)`, the same shape."""
        if self.over == "data":
            mean, deviation = tf.constant(self.mean, values.dtype), tf.constant(self.deviation, values.dtype)
            return _scaled(values, mean, deviation)
        axes = list(range(1, values.shape.rank if not self.per_channel else values.shape.rank - 1))
        known = tf.math.is_finite(values)
        count = tf.reduce_sum(tf.cast(known, values.dtype), axis=axes, keepdims=True)
        mean = tf.math.divide_no_nan(tf.reduce_sum(tf.where(known, values, 0.0), axis=axes, keepdims=True), count)
        square = tf.where(known, tf.square(values - mean), 0.0)
        variance = tf.math.divide_no_nan(tf.reduce_sum(square, axis=axes, keepdims=True), count)
        return _scaled(values, mean, tf.sqrt(variance))

    def measure(self, image):
        """Of one image `(*spatial, channels)`: pixels, mean and sum of squares about it, per channel (or one)."""
        rows = np.reshape(image, (-1, image.shape[-1] if self.per_channel else 1)).astype(np.float64)
        rows = np.where(np.isfinite(rows), rows, np.nan)
        count = np.isfinite(rows).sum(axis=0)
        mean = np.nansum(rows, axis=0) / np.maximum(count, 1)
        return count, mean, np.nansum(np.square(rows - mean), axis=0)

    def fitted(self, measures):
        """The step with the mean and the deviation of all pixels, joined as by Chan et al. (1979)."""
        count, mean, squares = np.zeros(1), np.zeros(1), np.zeros(1)
        for more, other, other_squares in measures:
            total = np.maximum(count + more, 1)
            squares = squares + other_squares + np.square(other - mean) * count * more / total
            mean = mean + (other - mean) * more / total
            count = count + more
        if not np.min(count) > 0:
            raise ValueError(_checks.message("`images` must hold finite pixels.", {"pixels": int(np.min(count))}))
        return dataclasses.replace(self, mean=tuple(mean.tolist()), deviation=tuple(np.sqrt(squares / count).tolist()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Median(_Step):
    """Takes the median over a box of odd `size`, pixels, one number or one per axis. See `ops.filters.median`."""

    size: int | tuple = 3

    def __post_init__(self):
        filters.odd_sizes("size", self.size, len(_sequence(self.size)))

    def __call__(self, values):
        """`(batch, *spatial, channels)`, the same shape."""
        return filters.median(values, size=self.size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gaussian(_Step):
    """Smooths with the standard deviation `sigma`, pixels, one number or one per axis. See `ops.filters.gaussian`."""

    sigma: float | tuple = 1.0

    def __post_init__(self):
        for sigma in _sequence(self.sigma):
            _checks.number("sigma", sigma, at_least=0.0)

    def __call__(self, values):
        """`(batch, *spatial, channels)`, the same shape."""
        return filters.gaussian(values, sigma=self.sigma)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BandPass(_Step):
    """Keeps a band of frequencies of signals and delays nothing. See `ops.filters.band_pass`."""

    low: float | None = None
    high: float | None = None
    sampling_rate: float = 1.0
    taps: int = 101

    def __post_init__(self):
        filters.band_pass_kernel(**dataclasses.asdict(self))

    def __call__(self, values):
        """`(batch, samples, channels)`, the same shape."""
        return filters.band_pass(values, **dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeparateStains(_Step):
    """Unmixes the stains of a bright-field picture: optical density times a matrix, as `skimage.color.separate_stains`.

    Attributes:
        stains: "hed" (haematoxylin, eosin, DAB) or another of `STAINS`, scikit-image's matrices.
        white: the RGB value of an empty slide, e.g. 255 for bytes.
        keep: which of the three stains, in order; None keeps all.

    Source: Ruifrok & Johnston (2001), Anal. Quant. Cytol. Histol. 23(4), 291-299.
    """

    stains: str = "hed"
    white: float = 1.0
    keep: tuple | None = None

    def __post_init__(self):
        _checks.choice("stains", self.stains, STAINS)
        _checks.number("white", self.white, at_least=1e-3)
        if self.keep is not None and not (self.keep and set(self.keep) <= {0, 1, 2}):
            raise ValueError(_checks.message("`keep` must name stains 0, 1 or 2.", {"keep": self.keep}))

    def __call__(self, values):
        """`(batch, *spatial, 3)` to `(batch, *spatial, stains)`."""
        if values.shape[-1] != 3:
            received = {"values.shape": _checks.shape_of(values)}
            raise ValueError(_checks.message("`values` must have the channels R, G and B.", received))
        matrix = getattr(skimage.color, f"{self.stains}_from_rgb")
        matrix = matrix[:, list(self.keep)] if self.keep else matrix
        least = 1e-6  # scikit-image's stand-in for black, whose density is the unit
        density = tf.math.log(tf.maximum(values / self.white, least)) / math.log(least)
        return tf.nn.relu(tf.tensordot(density, tf.constant(matrix, values.dtype), axes=1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resample(_Step):
    """Changes the spacing of pixels about the centre, or brings every input to one size. See `ops.filters.resample`.

    Attributes:
        factor: pixels after for each pixel before, one number or one per axis: pixel size before / wanted pixel size.
        size: instead, sizes after, one per axis. A label must then have the size of its input.
    """

    moves_pixels: ClassVar[bool] = True
    factor: float | tuple | None = None
    size: tuple | None = None

    def __post_init__(self):
        if (self.factor is None) == (self.size is None):
            received = {"factor": self.factor, "size": self.size}
            raise ValueError(_checks.message("Either `factor` or `size` must be given.", received))
        for factor in _sequence(self.factor if self.size is None else ()):
            if not _checks.number("factor", factor) > 0.0:
                raise ValueError(_checks.message("`factor` must be > 0.", {"factor": self.factor}))
        for size in _sequence(self.size or ()):
            _checks.whole_number("size", size, at_least=1)

    def __call__(self, values):
        """`(batch, *spatial, channels)` to `(batch, *new spatial, channels)`."""
        return self._resampled(values, "linear")

    def place(self, label, *, interpolation, fill_value):
        """The label on the input's new spacing."""
        return self._resampled(label, interpolation)

    def grid(self, shape):
        """The new spacing."""
        if self.size is not None:
            sizes = tuple(_one_per_axis("size", self.size, len(shape)))
            return sizes, tuple(size / before for size, before in zip(sizes, shape))
        factors = tuple(_one_per_axis("factor", self.factor, len(shape)))
        return tuple(_resampled_size(size, factor) for size, factor in zip(shape, factors)), factors

    def _resampled(self, values, interpolation):
        rank = _checks.spatial_rank("values", values)
        shape = geometry.spatial_shape(values)
        if self.size is None:
            factors = _one_per_axis("factor", self.factor, rank)
            sizes = [_resampled_size(size, factor) for size, factor in zip(shape, factors)]
            steps = [1.0 / factor for factor in factors]
        else:
            sizes = _one_per_axis("size", self.size, rank)
            steps = [tf.cast(size, tf.float64) / wanted for size, wanted in zip(shape, sizes)]
        return filters.resample(values, step=steps, output_shape=sizes, interpolation=interpolation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CropOrPad(_Step):
    """Cuts or pads every axis to `size` (one number per axis) about the centre; new pixels are 0, of labels unknown."""

    moves_pixels: ClassVar[bool] = True
    size: tuple

    def __post_init__(self):
        for size in self.size:
            _checks.whole_number("size", size, at_least=1)

    def __call__(self, values):
        """`(batch, *spatial, channels)` to `(batch, *size, channels)`."""
        return self._fitted_in(values)

    def place(self, label, *, interpolation, fill_value):
        """The label cut or padded alike."""
        known = self._fitted_in(tf.ones_like(label, dtype=tf.int32)) > 0
        return tf.where(known, self._fitted_in(label), tf.cast(fill_value, label.dtype))

    def grid(self, shape):
        """The new sizes."""
        return tuple(_one_per_axis("size", self.size, len(shape))), (1.0,) * len(shape)

    def _fitted_in(self, values):
        rank = _checks.spatial_rank("values", values)
        return resample.crop_or_pad(values, _one_per_axis("size", self.size, rank))


STEPS = {
    step.__name__: step
    for step in (Scale, Percentiles, ZScore, Median, Gaussian, BandPass, SeparateStains, Resample, CropOrPad)
}


def _percentiles(values, percents, per_channel):
    """Percentiles over space, one tensor `(batch, 1, ..., channels or 1)` each; non-finite pixels are left out."""
    rank, batch = values.shape.rank, tf.shape(values)[0]
    channels = (values.shape[-1] or tf.shape(values)[-1]) if per_channel else 1
    rows = tf.transpose(tf.reshape(values, [batch, -1, channels]), [0, 2, 1])
    known = tf.math.is_finite(rows)
    ordered = tf.sort(tf.where(known, rows, values.dtype.max), axis=-1)
    last = tf.maximum(tf.reduce_sum(tf.cast(known, tf.int32), axis=-1, keepdims=True) - 1, 0)
    for percent in percents:
        # In whole numbers as far as may be: float32 loses the place among 17 million pixels.
        at = tf.cast(last, tf.float64) * (percent / 100.0)
        low = tf.cast(tf.floor(at), tf.int32)
        part = tf.cast(at - tf.floor(at), values.dtype)
        lower = tf.gather(ordered, low, axis=-1, batch_dims=2)
        upper = tf.gather(ordered, tf.minimum(low + 1, last), axis=-1, batch_dims=2)
        yield tf.reshape(lower + (upper - lower) * part, tf.stack([batch] + [1] * (rank - 2) + [channels]))


def _scaled(values, offset, width):
    """`(values - offset) / width`; 0 where the width is nothing but rounding."""
    flat = width <= 1e-6 * tf.abs(offset)
    zero = tf.where(~tf.math.is_finite(values), values, 0.0)
    scaled = tf.where(flat, zero, (values - offset) / tf.where(~flat, width, 1.0))
    scaled.set_shape(values.shape)
    return scaled


def _sample(keys, rows):
    """Of many pixels those with the smallest keys: a uniform sample, whatever the order in which they are joined."""
    if len(keys) <= _SAMPLE:
        return keys, rows
    chosen = np.argpartition(keys, _SAMPLE)[:_SAMPLE]
    return keys[chosen], rows[chosen]


def _resampled_size(size, factor):
    """`size * factor`, rounded, at least 1: an int where static."""
    if isinstance(size, int):
        return max(1, math.floor(size * factor + 0.5))
    return tf.maximum(1, tf.cast(tf.floor(tf.cast(size, tf.float64) * factor + 0.5), tf.int32))


def _sequence(value):
    return value if isinstance(value, (tuple, list)) else (value,)


def _one_per_axis(name, value, rank):
    values = _sequence(value)
    values = values * rank if len(values) == 1 else values
    if len(values) != rank:
        raise ValueError(_checks.message(f"`{name}` must be one number or one for each of {rank} axes.", {name: value}))
    return list(values)


def as_tuples(value):
    """Lists, as JSON gives them, as tuples: a frozen step can then be compared and hashed."""
    return tuple(as_tuples(item) for item in value) if isinstance(value, list) else value
