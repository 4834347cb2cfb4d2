"""Displacement fields of a centred pixel grid: compose, invert, integrate, and how much they fold or vary; 1-D to 3-D.

A displacement is `(batch, *spatial, d)`, pixels, in the order (plane, row, col), and a pull as a transform is: the
pixel u of the fixed grid reads the moving grid at u + displacement(u), both counted from the centre of their grid.
Between pixels a displacement is read linearly, and outside its grid as at the border.
"""

import itertools
import math

import tensorflow as tf

from tfalign import _checks
from tfalign.ops import geometry, resample, spline

_UNROLLED = 2
_LARGEST_CONSTANT = 2**18  # values, in a graph


def from_transform(transform, shape):
    """The displacement `(batch, *shape, d)` of a transform `(batch, d+1, d+1)` on a grid of the given sizes."""
    return geometry.transformed_grid(transform, shape) - geometry.centered_grid(shape, transform.dtype)


def transformed(displacement, transform):
    """The displacement first, then the transform `(batch, d+1, d+1)`: u -> T (u + displacement(u))."""
    displacement = checked(displacement)
    grid = geometry.centered_grid(geometry.spatial_shape(displacement), displacement.dtype)
    points = tf.reshape(grid + displacement, [tf.shape(displacement)[0], -1, grid.shape[-1]])
    moved = geometry.apply_to_points(tf.cast(transform, points.dtype), points)
    return tf.reshape(moved, tf.shape(displacement)) - grid


def compose(outer, inner):
    """The displacement that applies `inner` first: inner(u) + outer(u + inner(u)), on the grid of `inner`.

    Args:
        outer: `(batch, *spatial, d)`; its grid may be larger or smaller than that of `inner`.
        inner: `(batch, *spatial, d)`.

    Gradient: exact, to both.
    """
    outer, inner = checked(outer), checked(inner)
    grid = geometry.centered_grid(geometry.spatial_shape(inner), inner.dtype)
    return inner + at_points(outer, grid + inner)


def at_points(displacement, coordinates):
    """Reads a displacement at centred `coordinates` `(batch, *output, d)`: `(batch, *output, d)`, pixels."""
    return resample.sample_linear(checked(displacement), coordinates)


def invert(displacement, *, iterations=5):
    """The displacement g that undoes `displacement`: u + g(u) reads back to u, so g(u) = -displacement(u + g(u)).

    By fixed-point steps, each three quarters of the way, then Newton steps; the last one also carries the gradient.
    Where a field folds there is no inverse, and the last step is given.

    Args:
        displacement: `(batch, *spatial, d)`.
        iterations: whole number of steps of either kind.

    Returns:
        `(batch, *spatial, d)`, on the same grid. Where a pixel reads outside the grid, the border is taken to go on.

    Raises:
        TypeError, ValueError: not a field, or `iterations` out of range.

    Gradient: that of the implicit equation, -(1 + slopes of the displacement)^-1, whatever the number of steps; where
        the determinant of this is under 1 / 20, as if it were that.
    """
    displacement = checked(displacement)
    _checks.whole_number("iterations", iterations, at_least=0)
    grid = geometry.centered_grid(geometry.spatial_shape(displacement), displacement.dtype)
    field = tf.stop_gradient(displacement)
    inverse = _repeated(lambda g: g - 0.75 * (g + at_points(field, grid + g)), -field, iterations)
    inverse = tf.stop_gradient(_repeated(lambda g: _newton_step(field, grid, g), inverse, iterations))
    return _newton_step(displacement, grid, inverse)


def integrate(velocity, *, squarings=7):
    """The displacement after one unit of time in a flow that does not change: by scaling and squaring.

    `velocity / 2**squarings` is composed with itself `squarings` times. The flow never folds, and neither does the
    result where the velocity is smooth over a pixel and 2**squarings is several times its steepest slope. The inverse
    of the result is that of `-velocity`. No axis of a displacement exceeds the largest velocity on that axis.

    Args:
        velocity: `(batch, *spatial, d)`, pixels per unit of time.
        squarings: whole number.

    Gradient: exact.
    Source: Arsigny et al. (2006), doi:10.1007/11866565_113.
    """
    scaled = checked(velocity) / 2.0 ** _checks.whole_number("squarings", squarings, at_least=0)
    grid = geometry.centered_grid(geometry.spatial_shape(scaled), scaled.dtype)
    return _repeated(lambda field: field + at_points(field, grid + field), scaled, squarings)


def jacobian(displacement):
    """Slopes of u + displacement(u), `(batch, *spatial, d, d)`: entry (a, b) is that of axis a along axis b.

    By central differences, at the border one-sided; along an axis of one pixel the displacement does not vary.
    """
    displacement = checked(displacement)
    slopes = [central_difference(displacement, axis) for axis in range(1, displacement.shape.rank - 1)]
    return tf.stack(slopes, axis=-1) + tf.eye(displacement.shape[-1], dtype=displacement.dtype)


def jacobian_determinant(displacement):
    """How much larger the patch is that a pixel reads, `(batch, *spatial)`: 1 keeps its size, <= 0 folds."""
    return geometry.determinant(jacobian(displacement))


def fold_share(displacement):
    """Share of pixels at which a displacement folds, `(batch,)` in [0, 1]."""
    determinant = jacobian_determinant(displacement)
    folds = tf.cast(determinant <= 0.0, determinant.dtype)
    return tf.reduce_mean(folds, axis=list(range(1, folds.shape.rank)))


def central_difference(values, axis):
    """Slope along one axis, per pixel: at the border one-sided, 0 where there is one pixel only."""
    size = tf.shape(values)[axis]
    upper, lower = tf.minimum(tf.range(size) + 1, size - 1), tf.maximum(tf.range(size) - 1, 0)
    distance = tf.cast(tf.maximum(upper - lower, 1), values.dtype)
    distance = tf.reshape(distance, [-1 if one == axis else 1 for one in range(values.shape.rank)])
    return (tf.gather(values, upper, axis=axis) - tf.gather(values, lower, axis=axis)) / distance


def smoothness_energy(displacement):
    """Mean over the pixels of the squared slopes of all axes, summed, `(batch,)`, without unit: 0 for a pure shift.

    Gradient: exact.
    """
    displacement, total = checked(displacement), 0.0
    for axis in range(1, displacement.shape.rank - 1):
        size = tf.shape(displacement)[axis]
        upper, lower = (tf.gather(displacement, tf.range(first, size - 1 + first), axis=axis) for first in (1, 0))
        squares = tf.square(upper - lower)
        count = tf.cast(tf.size(squares[:1, ..., 0]), squares.dtype)
        total += tf.reduce_sum(squares, axis=list(range(1, squares.shape.rank))) / tf.maximum(count, 1.0)
    return total


def bending(displacement):
    """What no shift, rotation, scale or shear describes of a displacement: its RMS length, `(batch,)` pixels.

    The affine part is the least-squares fit over the grid.
    """
    rest = checked(displacement)
    axes = list(range(1, rest.shape.rank - 1))
    rest -= tf.reduce_mean(rest, axis=axes, keepdims=True)
    # Centred rows, columns and planes are orthogonal, so each slope is a fit of its own.
    for axis in axes:
        size = tf.shape(rest)[axis]
        at = tf.cast(tf.range(size), rest.dtype) - 0.5 * tf.cast(size - 1, rest.dtype)
        at = tf.reshape(at, [-1 if one == axis else 1 for one in range(rest.shape.rank)])
        rest -= at * tf.math.divide_no_nan(
            tf.reduce_mean(rest * at, axis=axes, keepdims=True), tf.reduce_mean(tf.square(at))
        )
    return tf.sqrt(tf.reduce_mean(tf.reduce_sum(tf.square(rest), axis=-1), axis=axes))


def from_control_points(values, *, shape, spacing):
    """Cubic B-splines over a coarse grid: smooth values for every pixel, also the displacement of a coarse field.

    Point k lies at the middle of the pixels `k * spacing .. (k + 1) * spacing - 1`; beyond the outermost ones their
    values go on. A result never exceeds the values, and a signal's map that rises from point to point rises everywhere.

    Args:
        values: `(batch, *coarse, channels)`, where `coarse` is `shape / spacing`, rounded up.
        shape: sizes of the result, ints or scalar tensors.
        spacing: int >= 1, pixels from point to point. 1 gives `values` back.

    Returns:
        `(batch, *shape, channels)`.
    """
    values = _checks.floating(values, "values")
    if spacing == 1:
        return values
    for axis, (size, points) in enumerate(zip(shape, geometry.spatial_shape(values)), start=1):
        weights = _spline_matrix(size, points, spacing, values.dtype)
        last = values.shape.rank - 1
        order = [axis if one == last else last if one == axis else one for one in range(last + 1)]
        values = tf.transpose(tf.tensordot(tf.transpose(values, order), weights, axes=[[last], [1]]), order)
    return values


def checked(displacement):
    """`displacement` as a floating tensor `(batch, *spatial, d)` with one channel for each spatial axis."""
    displacement = _checks.floating(displacement, "displacement")
    if displacement.shape.rank is None or displacement.shape[-1] != displacement.shape.rank - 2:
        raise ValueError(
            _checks.message(
                "`displacement` must have the shape (batch, *spatial, d) with d spatial axes.",
                {"displacement.shape": _checks.shape_of(displacement)},
            )
        )
    return displacement


def _repeated(function, field, times):
    """`function` applied that many times. Many become a loop of the graph: unrolled, XLA would compile for a minute."""
    if times <= _UNROLLED:
        for _ in range(times):
            field = function(field)
        return field

    def body(step, field):
        following = function(field)
        following.set_shape(field.shape)
        return step + 1, following

    return tf.while_loop(lambda step, _: step < times, body, (0, field), maximum_iterations=times)[1]


def _newton_step(displacement, grid, inverse):
    """A step of g towards g + displacement(u + g) = 0; the gradient passes through the displacement alone."""
    values, slopes = _values_and_slopes(displacement, grid + inverse)
    slopes = tf.stop_gradient(slopes) + tf.eye(slopes.shape[-1], dtype=slopes.dtype)
    return inverse - _solved(slopes, inverse + values)


def _values_and_slopes(displacement, coordinates):
    """The linear interpolation at centred coordinates, and its slopes `(batch, *output, d, d)`; 0 outside the grid."""
    lower, part, inside = [], [], []
    for at, size in zip(tf.unstack(coordinates, axis=-1), geometry.spatial_shape(displacement)):
        last = tf.cast(size - 1, at.dtype)
        index = at + tf.cast(size // 2, at.dtype)
        inside.append(tf.cast((index >= 0.0) & (index <= last), at.dtype))
        index = tf.clip_by_value(index, 0.0, last)
        lower.append(tf.floor(index))
        part.append(index - lower[-1])
    total, slopes = tf.zeros([], displacement.dtype), [tf.zeros([], displacement.dtype)] * len(part)
    for corner in itertools.product((0, 1), repeat=len(part)):
        values = resample.gather_pixels(displacement, [tf.cast(low, tf.int32) + bit for low, bit in zip(lower, corner)])
        shares = [one if bit else 1.0 - one for one, bit in zip(part, corner)]
        total += values * math.prod(shares)[..., tf.newaxis]
        for axis, bit in enumerate(corner):
            weight = math.prod([*shares[:axis], *shares[axis + 1 :]], start=inside[axis] if bit else -inside[axis])
            slopes[axis] += values * weight[..., tf.newaxis]
    return total, tf.stack(slopes, axis=-1)


def _solved(matrix, vector):
    """matrix^-1 vector for small matrices; a determinant under 1/20 counts as 1/20."""
    rows = [tf.unstack(row, axis=-1) for row in tf.unstack(matrix, axis=-2)]
    numerators, determinant = geometry.cramer(rows, tf.unstack(vector, axis=-1))
    return tf.stack(numerators, axis=-1) / tf.maximum(determinant, 0.05)[..., tf.newaxis]


def _spline_matrix(size, points, spacing, dtype):
    """Weights `(size, points)` of cubic B-splines at every pixel; outside lie copies of the last points."""
    if isinstance(size, int) and isinstance(points, int) and size * points <= _LARGEST_CONSTANT:
        # As a constant: graphs are traced sooner without these two hundred operations.
        with tf.init_scope():
            weights = _spline_weights(size, points, spacing, dtype).numpy()
        return tf.constant(weights)
    return _spline_weights(size, points, spacing, dtype)


def _spline_weights(size, points, spacing, dtype):
    at = (tf.cast(tf.range(size), dtype) + 0.5) / spacing - 0.5
    total = 0.0
    # Moved inwards, so that the taps are not mirrored.
    for index, share in spline.taps(at + 4.0, points + 8):
        total += tf.one_hot(tf.clip_by_value(index - 4, 0, points - 1), points, dtype=at.dtype) * share[:, tf.newaxis]
    return total
