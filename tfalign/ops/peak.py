"""The best shift of score maps `(batch, shifts)`, flattened windows: in whole pixels, and within one."""

import math

import numpy as np
import tensorflow as tf

from tfalign.ops import geometry

_REACH = 4  # shifts on either side of the best one that the polynomial goes through
_ITERATIONS = 4


def window_shifts(max_shift, dtype):
    """`(shifts, d)`: the shift of every entry of a flattened window."""
    axes = [np.arange(-bound, bound + 1) for bound in max_shift]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    return tf.constant(grid.reshape(-1, len(max_shift)), dtype=dtype)


def best_index(scores, window):
    """Index of the best shift, of ties the smallest; and whether the map tells anything at all."""
    finite = tf.math.is_finite(scores)
    top = tf.reduce_max(tf.where(finite, scores, scores.dtype.min), axis=-1, keepdims=True)
    lowest = tf.reduce_min(tf.where(finite, scores, scores.dtype.max), axis=-1, keepdims=True)
    rounding = 2e-6 * tf.reduce_max(tf.where(finite, tf.abs(scores), 0.0), axis=-1, keepdims=True)
    ties = finite & (scores >= top - rounding)
    distance = sum(np.square(axis) for axis in np.meshgrid(*(np.arange(n) - n // 2 for n in window), indexing="ij"))
    outward = np.argsort(distance.ravel(), kind="stable")
    first = tf.argmax(tf.cast(tf.gather(ties, outward, axis=1), tf.int32), axis=-1, output_type=tf.int32)
    return tf.gather(tf.constant(outward, tf.int32), first), (top - lowest > rounding)[:, 0]


def fraction(values, best, window):
    """How far from the whole-pixel shift `best` the maximum lies, `(batch, d)`, less than half a pixel per axis.

    It is that of the polynomial through the values at up to four shifts on either side, found by Newton's method. A
    measure of squares is, as a function of the shift, as smooth as the pictures are, so that the polynomial follows it
    between whole pixels. It goes as far to one side as to the other: a lopsided one would put the sharp peak of a
    texture beside itself. Where values are missing it goes through one shift on either side; where they are missing
    there too, or nothing is a maximum, the fraction is 0. At the window's border it goes through the three outermost
    shifts, and the fraction points inwards.
    """
    dtype, rank = values.dtype, len(window)
    at = [(best // math.prod(window[axis + 1 :])) % length for axis, length in enumerate(window)]
    counts = [min(2 * _REACH, 2 * ((length - 1) // 2)) + 1 for length in window]
    starts = [tf.clip_by_value(one - n // 2, 0, length - n) for one, n, length in zip(at, counts, window)]
    index = tf.zeros([tf.shape(values)[0]] + [1] * rank, tf.int32)
    for axis, (start, n, length) in enumerate(zip(starts, counts, window)):
        along = [n if other == axis else 1 for other in range(rank)]
        index = index * length + tf.reshape(start[:, tf.newaxis] + tf.range(n), [-1, *along])
    around = tf.gather(values, index, batch_dims=1)

    missing = tf.cast(~tf.math.is_finite(around), dtype)
    wide, narrow = ([_powers(n, min(n, used)) for n in counts] for used in (2 * _REACH + 1, 3))
    is_whole = ~_lacks(missing, wide, at, starts)
    tables = []
    for one, start, *both in zip(at, starts, narrow, wide):
        chosen = tf.gather(tf.constant(np.stack(both), dtype), tf.cast(is_whole, tf.int32))
        tables.append(tf.gather(chosen, one - start, axis=1, batch_dims=1))
    # From the best value, in units of the range: determinants of tiny or huge values would not be numbers.
    away = around - tf.reshape(tf.gather(values, best, batch_dims=1), [-1] + [1] * rank)
    away = tf.where(missing > 0.0, tf.zeros_like(away), away)
    extent = tf.reduce_max(tf.abs(away), axis=list(range(1, rank + 1)), keepdims=True)
    coefficients = _contracted(tf.math.divide_no_nan(away, extent), tables)

    found = tf.zeros([tf.shape(values)[0], rank], dtype)
    for _ in range(_ITERATIONS):
        step, is_maximum = _newton_step(coefficients, found)
        found = tf.clip_by_value(found + tf.clip_by_value(step, -0.5, 0.5), -1.0, 1.0)
    usable = is_maximum & (is_whole | ~_lacks(missing, narrow, at, starts)) & tf.reduce_all(tf.abs(step) < 0.1, axis=-1)
    # Short of the half, so that rounding gives the whole-pixel shift back.
    lowest = tf.stack([-0.499 * tf.cast(one > 0, dtype) for one in at], axis=-1)
    highest = tf.stack([0.499 * tf.cast(one < length - 1, dtype) for one, length in zip(at, window)], axis=-1)
    found = tf.clip_by_value(found, tf.cast(lowest, dtype), tf.cast(highest, dtype))
    return tf.where(usable[:, tf.newaxis], found, 0.0)


def _powers(count, used):
    """`(count, count, count)`: for each node that is the best one, what gives the coefficients of the powers of the
    distance from it, of the polynomial through at most `used` nodes around it, as many on either side.
    """
    tables = np.zeros((count, count, count))
    for best in range(count):
        inside = max(2 * min(best, count - 1 - best) + 1, min(3, count))
        width = min(used, inside)
        first = min(max(best - width // 2, 0), count - width)
        nodes = np.arange(first, first + width)
        tables[best, :width, nodes] = np.linalg.inv(np.vander(nodes - best, increasing=True).astype(float)).T
    return tables


def _lacks(missing, tables, at, starts):
    """Whether a node that the polynomials of `tables` go through is missing, `(batch,)`."""
    uses = [
        tf.gather(tf.constant(np.any(table != 0.0, axis=1)[:, np.newaxis], missing.dtype), one - start)
        for table, one, start in zip(tables, at, starts)
    ]
    return tf.reshape(_contracted(missing, uses), [-1]) > 0.0


def _contracted(values, matrices):
    """`values` `(batch, *sizes)` with each axis multiplied by its matrix `(batch, new, size)`."""
    for matrix in matrices:
        rest = values.shape[2:].as_list()
        flat = tf.reshape(values, [-1, matrix.shape[2], math.prod(rest)])
        # The axis in front goes to the back, so that after all of them the order is the first one.
        moved = tf.linalg.matmul(flat, matrix, transpose_a=True, transpose_b=True)
        values = tf.reshape(moved, [-1, *rest, matrix.shape[1]])
    return values


def _newton_step(coefficients, at):
    """The step `(batch, d)` from `at` to where the polynomial's slope is 0, and whether it bends down there."""
    rank, dtype = at.shape[-1], at.dtype
    bases = []
    for x, count in zip(tf.unstack(at, axis=-1), coefficients.shape[1:]):
        power, order = np.arange(count), np.arange(3)[:, np.newaxis]
        factor = np.prod([np.where(order > lower, power - lower, 1.0) for lower in range(2)], axis=0)
        powers = tf.pow(tf.reshape(x, [-1, 1, 1]), tf.constant(np.maximum(power - order, 0), dtype))
        bases.append(tf.constant(factor, dtype) * powers)
    derivatives = tf.unstack(tf.reshape(_contracted(coefficients, bases), [-1, 3**rank]), axis=-1)
    unit = 3 ** np.arange(rank)[::-1]  # where the first derivative along each axis lies
    slope = [derivatives[one] for one in unit]
    bend = [[derivatives[one + other] for other in unit] for one in unit]
    for axis, count in enumerate(coefficients.shape[1:]):
        if count < 3:
            # An axis of one shift has no slope; without a bend it would leave the others none either.
            bend[axis][axis] -= 1.0
    numerators, determinant = geometry.cramer(bend, slope)
    minors = [geometry.determinant_of_rows([row[:size] for row in bend[:size]]) for size in range(1, rank)]
    minors.append(determinant)
    signs = [minor < 0.0 if size % 2 else minor > 0.0 for size, minor in enumerate(minors, start=1)]
    step = [-tf.math.divide_no_nan(one, determinant) for one in numerators]
    return tf.stack(step, axis=-1), tf.reduce_all(tf.stack(signs), axis=0)
