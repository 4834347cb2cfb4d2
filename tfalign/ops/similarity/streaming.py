"""The measure that no FFT gives: the mean absolute difference, one shift at a time."""

import tensorflow as tf


def mae(grids, sums):
    """Minus the mean absolute difference over the overlap and channels, `(batch, 1, *window)`.

    Reads one shift after the other, so the memory is that of one pair of grids.
    """
    shape, window = grids.shape, [2 * bound + 1 for bound in grids.max_shift]
    rank, shifts = len(window), 1
    for length in window:
        shifts *= length
    sizes = tf.stack([-1, *shape, -1])
    axes = list(range(1, rank + 1))

    def at_shift(index):
        begin = [0]
        for length in reversed(window):
            begin.insert(1, index % length)
            index //= length
        begin = tf.stack([*begin, 0])
        difference = tf.abs(grids.fixed - tf.slice(grids.moving, begin, sizes))
        weight = grids.fixed_mask * tf.slice(grids.moving_mask, begin, sizes)
        return tf.reduce_sum(difference * weight, axis=[*axes, rank + 1])

    total = tf.map_fn(at_shift, tf.range(shifts), fn_output_signature=grids.fixed.dtype, parallel_iterations=1)
    total = tf.reshape(tf.transpose(total), [-1, 1, *window])
    return -total / (tf.where(sums.count > 0.0, sums.count, 1.0) * grids.fixed.shape[-1])
