"""Refines transforms by the slopes of the picture: damped Gauss-Newton steps on the similarity, kept where they gain.

One warp per step: with `moved(u) = moving(T u)`, T of linear part A, a change dT of the transform changes `moved` by
its own slopes on the fixed grid times `A^-1 dT u`.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfalign.ops import evidence, geometry, resample, spectral, spline
from tfalign.ops.similarity import parzen, views

_STEPS = 8  # at most, at each level
_WIDE = (1.0, 2.0, 3.0, 4.0, 5.0, 4.0, 3.0, 2.0, 1.0)  # blurs, so that steps see farther
# Between pixels a spline averages noise away, which would make fractions look better than whole pixels: what it takes
# is taken from all of them.
_FINE = (1.0, 2.0, 1.0)
_SHORTER = 0.3  # a step that does not gain is tried again, so much shorter
_DAMPING = 1e-4  # of the normal equations' diagonal
# px, of the pixel that the next step would move farthest: stop there, and on blurred grids; call it found.
_STILL, _NEAR, _SETTLED = 0.005, 0.1, 0.1
_DIFFERENCE = 2e-3  # of a parameter: px, radians, logarithm


class Bounds(NamedTuple):
    """What is searched, and how far: pixels for each axis, degrees, f = factors 1/(1+f) .. 1+f, degrees; 0 = not.

    Parameters are `(batch, number)`: a translation in pixels, then of what is searched the rotations in radians, the
    logarithms of the scales, the shears in radians.
    """

    max_shift: tuple[int, ...]
    max_rotation: float = 0.0
    max_scale: float = 0.0
    max_shear: float = 0.0

    def limits(self):
        """The largest value of each parameter but the translation: arrays by name, in the order of the parameters."""
        rank = len(self.max_shift)
        planes = len(geometry.PLANES[rank])
        named = {
            "rotation": np.full(planes, np.deg2rad(self.max_rotation)),
            "scale": np.full(rank, np.log1p(self.max_scale)),
            "shear": np.full(planes, np.deg2rad(self.max_shear)),
        }
        return {name: limit for name, limit in named.items() if limit.size and limit[0] > 0.0}

    def clipped(self, parameters):
        """`parameters` inside the bounds; a full circle has none."""
        limits = [np.array(self.max_shift) + 0.5, *self.limits().values()]
        limit = np.concatenate(limits)
        if self.max_rotation >= 180.0:
            planes = len(geometry.PLANES[len(self.max_shift)])
            limit[len(self.max_shift) :][:planes] = np.inf
        return tf.clip_by_value(parameters, tf.constant(-limit, parameters.dtype), tf.constant(limit, parameters.dtype))

    def of_translation(self, translation):
        """The parameters of `translation` `(batch, d)` alone."""
        others = sum(limit.size for limit in self.limits().values())
        return tf.pad(translation, [[0, 0], [0, others]])

    def transform(self, parameters):
        """`(batch, d+1, d+1)`."""
        parts, start = {}, len(self.max_shift)
        for name, limit in self.limits().items():
            part = parameters[:, start : start + limit.size]
            parts[name] = tf.exp(part) if name == "scale" else part * (180.0 / np.pi)
            start += limit.size
        return geometry.make(parameters[:, : len(self.max_shift)], **parts)

    def rates(self, parameters):
        """`(batch, number, d, d+1)`: how fast the top of the transform changes with each parameter."""
        rank, number = len(self.max_shift), parameters.shape[-1]
        steps = _DIFFERENCE * tf.eye(number, dtype=parameters.dtype)

        def tops(sign):
            beside = tf.reshape(parameters[:, tf.newaxis] + sign * steps, [-1, number])
            return tf.reshape(self.transform(beside)[:, :-1], [-1, number, rank, rank + 1])

        return (tops(1.0) - tops(-1.0)) / (2.0 * _DIFFERENCE)


class Level(NamedTuple):
    """A pair of grids, ready to be compared under any transform at the pixels that are kept of the fixed one."""

    grid: tf.Tensor  # (*kept, d), their centred coordinates
    fixed: tf.Tensor  # (batch, *kept, channels)
    moving: tf.Tensor  # (batch, *spatial, channels) values, or the weights that their splines read; without holes
    fixed_mask: tf.Tensor  # (batch, *kept, 1)
    moving_mask: tf.Tensor  # (batch, *spatial, 1)
    stride: int  # px from one that is kept to the next
    is_spline: bool

    @classmethod
    def fine(cls, fixed, moving, fixed_mask, moving_mask):
        """The grids hardly smoothed, read by cubic splines."""
        smooth = spline.fill_holes(spline.local_mean(moving, moving_mask, _FINE), moving_mask)
        grid = geometry.centered_grid(geometry.spatial_shape(fixed), fixed.dtype)
        fixed = spline.local_mean(fixed, fixed_mask, _FINE)
        weights = spline.side_by_side(spline.coefficients(smooth))
        return cls(grid, fixed, weights, fixed_mask, moving_mask, stride=1, is_spline=True)

    @classmethod
    def blurred(cls, fixed, moving, fixed_mask, moving_mask):
        """Both sides blurred, so that every other pixel says as much, and read linearly."""
        every_other = (slice(None, None, 2),) * (fixed.shape.rank - 2)
        grid = geometry.centered_grid(geometry.spatial_shape(fixed), fixed.dtype)[every_other]
        moving = spline.local_mean(moving, moving_mask, _WIDE)
        fixed, fixed_mask = (
            one[(slice(None), *every_other)] for one in (spline.local_mean(fixed, fixed_mask, _WIDE), fixed_mask)
        )
        return cls(grid, fixed, moving, fixed_mask, moving_mask, stride=2, is_spline=False)

    def moved(self, transform):
        """The moving values at the pixels that are kept, and the weight of each pixel of both."""
        rank = transform.shape[-1] - 1
        points = geometry.apply_to_points(transform, tf.reshape(self.grid, [1, -1, rank]))
        coordinates = tf.reshape(points, [-1, *geometry.spatial_shape(self.fixed), rank])
        mask, inside = resample.sample(self.moving_mask, coordinates, interpolation="linear", finite=True)
        if self.is_spline:
            values = resample.sample_splines(self.moving, coordinates)
        else:
            values, _ = resample.sample(self.moving, coordinates, interpolation="linear", finite=True)
        return values, self.fixed_mask * mask * inside[..., tf.newaxis]


class Climb(NamedTuple):
    """Where the steps are: the best parameters so far and their nats, the step to try from there, and its share."""

    parameters: tf.Tensor
    nats: tf.Tensor
    first_nats: tf.Tensor  # of the first that was tried
    step: tf.Tensor
    share: tf.Tensor


class Refined(NamedTuple):
    """What was found: the gain is that of the log-likelihood over the plain shift's."""

    parameters: tf.Tensor  # (batch, number)
    gain: tf.Tensor  # (batch,) nats
    settled: tf.Tensor  # (batch,), whether it had come to rest


def refined(fixed, moving, masks, start, plain, *, bounds, similarity, least, textured, pool):
    """Refines `start`, first on blurred grids, then on the grids as they are.

    The result is never worse, by the measure's smooth form on the grids as they are, than `start` and `plain`. Nothing
    raises on singular or non-finite data: then `plain` is kept.

    Args:
        fixed, moving: `(batch, *spatial, channels)`, finite.
        masks: of both, `(batch, *spatial, 1)`.
        start: `(batch, number)` parameters of `bounds`.
        plain: the same of the best shift alone, for comparison.
        bounds: `Bounds`.
        similarity: name of the measure; "cc" and "phase" are refined by "ncc", "cross_entropy" and "overlap" by "mse",
            the measures of histograms by mutual information from Parzen windows.
        least: `(batch,)` pixels of overlap that a transform must keep.
        textured: `(batch,)`, which samples say anything.
        pool: "batch" refines one transform for all samples, by the sum of their equations.

    Gradient: none.
    Source: Baker & Matthews (2004), doi:10.1023/B:VISI.0000011205.11775.fd; gain and offset are eliminated as in
        Golub & Pereyra (1973), doi:10.1137/0710036.
    """
    fixed, moving, start, plain, *masks = (tf.stop_gradient(one) for one in (fixed, moving, start, plain, *masks))
    view = views.VIEWS[similarity]

    def judged(level):
        def at(parameters):
            return _judged(level, parameters, view, bounds, least, textured, pool)

        return at

    coarse = judged(Level.blurred(fixed, moving, *masks))
    rough = _climbed(coarse, start[tf.newaxis], bounds, fixed, _NEAR)
    level = Level.fine(fixed, moving, *masks)
    fine = judged(level)
    done = _climbed(fine, tf.stack([plain, start, rough.parameters]), bounds, fixed, _STILL)
    moved, weight = level.moved(bounds.transform(done.parameters))
    # Of another kind of picture only what the levels do not foretell is a residual.
    told = parzen.foretold(level.fixed, moved, weight) if view is views.by_information else level.fixed
    pixels = evidence.effective_pixels(told, moved, weight)
    if pool == "batch":
        pixels = _shared(tf.where(textured, pixels, 0.0))
    gain = tf.where(done.nats > done.first_nats, pixels * (done.nats - done.first_nats), 0.0)
    return Refined(done.parameters, gain, _farthest(done, bounds, fixed) < _SETTLED)


def _farthest(now, bounds, fixed):
    """How far the step to try next would move a pixel, at most, `(batch,)` px."""
    change = tf.abs(bounds.transform(_trial(now, bounds)) - bounds.transform(now.parameters))[:, :-1]
    sizes = tf.cast(tf.stack([*geometry.spatial_shape(fixed), 2]), fixed.dtype)
    return tf.reduce_max(tf.linalg.matvec(change, sizes / 2.0), axis=-1)


def _trial(now, bounds):
    return bounds.clipped(now.parameters + now.share[:, tf.newaxis] * now.step)


def _climbed(judged, known, bounds, fixed, still):
    """Takes the best of `known` `(count, batch, number)`, then steps: full ones from a new best, else shorter ones.

    Until no pixel would move by more than `still`, or for `_STEPS` steps.
    """
    count = known.shape[0]

    def body(number, now):
        is_known = number < count
        trial = tf.where(is_known, tf.gather(known, tf.minimum(number, count - 1)), _trial(now, bounds))
        nats, step = judged(trial)
        # A sample's end is its own, whatever the others of its batch still need.
        gains = (nats > now.nats) & (is_known | (_farthest(now, bounds, fixed) > still))
        row = gains[:, tf.newaxis]
        return number + 1, Climb(
            parameters=tf.where(row, trial, now.parameters),
            nats=tf.where(gains, nats, now.nats),
            first_nats=tf.where(number == 0, nats, now.first_nats),
            step=tf.where(row, step, now.step),
            share=tf.where(gains | is_known, tf.ones_like(now.share), _SHORTER * now.share),
        )

    nothing = tf.zeros_like(known[0, :, 0])
    first = Climb(known[0], nothing - np.inf, nothing, tf.zeros_like(known[0]), nothing + 1.0)

    def is_on_the_way(number, now):
        return (number < count) | tf.reduce_any(_farthest(now, bounds, fixed) > still)

    return tf.while_loop(is_on_the_way, body, (tf.constant(0), first), maximum_iterations=count + _STEPS)[1]


def _judged(level, parameters, view, bounds, least, textured, pool):
    """The nats `(batch,)` of transforms, -inf where the overlap is too small, and the step from there."""
    transform = bounds.transform(parameters)
    moved, weight = level.moved(transform)
    seen = view(level.fixed, moved, weight)
    velocities = tf.linalg.matmul(geometry.invert(transform)[:, tf.newaxis, :-1, :-1], bounds.rates(parameters))
    normal, right = _equations(seen, moved, weight, velocities, level)
    count = tf.reduce_sum(weight, axis=list(range(1, weight.shape.rank))) * float(
        level.stride ** len(bounds.max_shift)
    )  # pixels, those not kept too
    nats = tf.where(tf.math.is_finite(seen.nats) & (count >= least), seen.nats, -np.inf)
    if pool == "batch":
        row = textured[:, tf.newaxis]
        normal = _shared(tf.where(row[..., tf.newaxis], seen.trust[:, tf.newaxis, tf.newaxis] * normal, 0.0))
        right = _shared(tf.where(row, seen.trust[:, tf.newaxis] * right, 0.0))
        count = tf.where(textured, tf.maximum(count, 1.0), 0.0)
        total = _shared(tf.where(textured, count * nats, 0.0))
        nats = tf.math.divide_no_nan(total, _shared(count))
    return nats, _solved(normal, right)


def _shared(values):
    """The sum over the samples, for every sample."""
    return tf.zeros_like(values) + tf.reduce_sum(values, axis=0)


def _equations(seen, moved, weight, velocities, level):
    """Normal equations `(batch, number, number)` and right sides `(batch, number)` of a step.

    Only of the pixels that have neighbours on all sides: a slope over the border of what is there would be none.
    """
    rank = moved.shape.rank - 2
    values, valid = spectral.channels_first(moved), spectral.channels_first(weight) > 0.0
    inner = tf.ones([], tf.bool)
    changes = tf.zeros([], moved.dtype)
    points = tf.concat([level.grid, tf.ones_like(level.grid[..., :1])], axis=-1)[(slice(1, -1),) * rank]
    points = tf.reshape(points, [1, 1, -1, rank + 1])
    for axis in range(rank):
        after, before = (_beside(values, axis, step) for step in (1, -1))
        for step in (1, -1):
            inner &= _beside(valid, axis, step)
        slope = _rows((after - before) * (0.5 / level.stride))
        # (batch, number, 1, pixels)
        speed = tf.linalg.matmul(velocities[:, :, axis, tf.newaxis], points, transpose_b=True)
        changes += slope[:, tf.newaxis] * speed
    inner = tf.cast(inner, moved.dtype)
    kept, pull = (_rows(_inside(one) * inner)[:, tf.newaxis] for one in (seen.weight, seen.pull))
    if seen.common is not None:
        common = _rows(_inside(seen.common))[:, tf.newaxis]
        changes -= tf.math.divide_no_nan(
            tf.reduce_sum(changes * kept, axis=-1, keepdims=True), tf.reduce_sum(kept, axis=-1, keepdims=True)
        )
        weighted = kept * common
        along = tf.reduce_sum(weighted * changes, axis=[2, 3], keepdims=True)
        changes -= common * tf.math.divide_no_nan(along, tf.reduce_sum(weighted * common, axis=[2, 3], keepdims=True))
    shape = tf.shape(changes)
    rows, weighted = (
        tf.reshape(one, [shape[0], changes.shape[1], shape[2] * shape[3]]) for one in (changes, changes * kept)
    )
    return tf.linalg.matmul(weighted, rows, transpose_b=True), tf.reduce_sum(changes * pull, axis=[2, 3])


def _inside(values):
    """`(batch, channels, *kept)` without the outermost pixels, of `(batch, *kept, channels)`."""
    return spectral.channels_first(values)[(..., *(slice(1, -1),) * (values.shape.rank - 2))]


def _beside(values, axis, step):
    """What lies one pixel further on `axis` of the pixels that `_inside` keeps, of values with channels first."""
    moved = [slice(1, -1)] * (values.shape.rank - 2)
    moved[axis] = slice(2, None) if step > 0 else slice(None, -2)
    return values[(..., *moved)]


def _rows(values):
    """`(batch, channels, pixels)` of values with channels first."""
    shape = tf.shape(values)
    return tf.reshape(values, [shape[0], values.shape[1], tf.reduce_prod(shape[2:])])


def _solved(normal, right):
    """The step; 0 where the equations say nothing."""
    diagonal = tf.linalg.diag_part(normal)
    units = tf.where(diagonal > 0.0, tf.math.rsqrt(tf.where(diagonal > 0.0, diagonal, 1.0)), 0.0)
    # With a diagonal of ones and the damping the matrix is positive definite: Cholesky cannot raise.
    scaled = units[:, :, tf.newaxis] * normal * units[:, tf.newaxis, :]
    wanted = units * right
    usable = tf.reduce_all(tf.math.is_finite(scaled), axis=[1, 2]) & tf.reduce_all(tf.math.is_finite(wanted), axis=1)
    identity = tf.eye(normal.shape[-1], dtype=normal.dtype)
    scaled = tf.where(usable[:, tf.newaxis, tf.newaxis], scaled + _DAMPING * identity, identity)
    wanted = tf.where(usable[:, tf.newaxis], wanted, 0.0)
    step = units * tf.linalg.cholesky_solve(tf.linalg.cholesky(scaled), wanted[..., tf.newaxis])[..., 0]
    # Units of tiny or huge values may overflow.
    return tf.where(tf.reduce_all(tf.math.is_finite(step), axis=1, keepdims=True), step, 0.0)
