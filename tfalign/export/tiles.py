"""A network on grids of any size: padded to what it takes, cut into tiles that fit into memory, cropped back."""

import tensorflow as tf


def predict(network, inputs, axes, *, channels, tiles=None):
    """The prediction of `network`, also for sizes that it does not take.

    The grid is extended at its end by its mirror image; what comes out of the extension is cut off.

    Args:
        network: a function of `(batch, *spatial, channels)`.
        inputs: `(batch, *spatial, channels)`, one at least, of any sizes larger than what is lost at the border.
        axes: an `Axis` for each spatial axis.
        channels: of the output.
        tiles: `(size, overlap)` for each spatial axis, see `tiled`; None takes the grid whole.

    Returns:
        `(batch, *(spatial - loss), channels)` float32.

    Raises:
        InvalidArgumentError: when run, on no grid, or on one that is not larger than what is lost.
    """
    sizes = tf.shape(inputs)[1:-1]
    lost = [axis.loss for axis in axes]
    # Of no image at all the runtime's fused convolutions make an error that says something else.
    check = tf.debugging.assert_greater(
        tf.shape(inputs)[:-1], [0, *lost], message=f"`inputs` must be one at least, of more than {lost} pixels:"
    )
    with tf.control_dependencies([check]):
        padded, sizes = tf.identity(inputs), tf.unstack(tf.identity(sizes), num=len(axes))
    for number, (size, axis) in enumerate(zip(sizes, axes)):
        if axis.stride > 1 or axis.fixed is not None:
            padded = tf.gather(padded, _mirrored(size, axis.taken_size(size)), axis=number + 1)
    output = tf.cast(network(padded), tf.float32) if tiles is None else tiled(network, padded, axes, tiles, channels)
    return tf.slice(output, [0] * (len(axes) + 2), [-1, *(size - axis.loss for size, axis in zip(sizes, axes)), -1])


def _mirrored(size, padded):
    """Indices of a mirrored extension at the end, without a repeated border; as often as it takes."""
    period = tf.maximum(2 * (size - 1), 1)
    at = tf.range(padded) % period
    return tf.minimum(at, period - at)


def tiled(network, inputs, axes, tiles, channels):
    """The prediction of `network` tile by tile, blended where tiles overlap.

    Where outputs of neighbouring tiles overlap, the outer third of the overlap does not count and in the middle third
    one tile goes over into the other. So the result is that of the whole grid if the border of a tile reaches no
    further than a third of the overlap. Images of more than one tile are taken one by one: memory does not grow with
    the batch.

    Args:
        network: a function of `(batch, *spatial, channels)`.
        inputs: `(batch, *spatial, channels)` of sizes that the axes take.
        axes: an `Axis` for each spatial axis.
        tiles: `(size, overlap)` for each: pixels of a tile's input, of a size that the axis takes, and pixels that the
            outputs of two tiles share at least. Tiles are up to a period longer.
        channels: of the output.

    Returns:
        `(batch, *(spatial - loss), channels)` float32.
    """
    rank = len(axes)
    batch, *sizes = tf.unstack(tf.shape(inputs)[:-1], num=rank + 1)
    plans = [_plan(size, axis, *tile) for size, axis, tile in zip(sizes, axes, tiles)]
    outer, (last_starts, last_weights, last_places) = plans[:-1], plans[-1]
    counts = [tf.shape(starts)[0] for starts, *_ in plans]
    extents = [tf.shape(weights)[1] for _, weights, _ in plans]
    taken = [extent + axis.loss for extent, axis in zip(extents, axes)]
    per_image = tf.reduce_prod(tf.stack(counts))
    group = tf.where(per_image > 1, 1, batch)
    strips = per_image // counts[-1]

    # Tiles that follow one another along the last axis make a strip: the total is touched once for each strip.
    def one_strip(number, total):
        begin, weight, rest = [number // strips * group], tf.ones([]), number % strips
        for axis, (starts, weights, _) in enumerate(outer):
            at, rest = rest % counts[axis], rest // counts[axis]
            begin.append(starts[at])
            weight *= tf.reshape(weights[at], [-1 if other == axis else 1 for other in range(rank)] + [1])

        def one_tile(start_and_weight):
            start, along_last = start_and_weight
            tile = tf.slice(inputs, [*begin, start, 0], [group, *taken, -1])
            return tf.cast(network(tile), tf.float32) * weight * along_last[:, tf.newaxis]

        spec = tf.TensorSpec([None] * (rank + 1) + [channels], tf.float32)
        outputs = tf.map_fn(one_tile, (last_starts, last_weights), fn_output_signature=spec, parallel_iterations=1)
        strip = _joined(outputs, last_places, sizes[-1] - axes[-1].loss)
        ranges = [tf.range(start, start + extent) for start, extent in zip(begin, [group, *extents])]
        indices = tf.stack(tf.meshgrid(*ranges, indexing="ij"), axis=-1)
        return number + 1, tf.tensor_scatter_nd_add(total, indices, strip)

    steps = tf.where(per_image > 1, batch, 1) * strips
    empty = tf.zeros([batch, *(size - axis.loss for size, axis in zip(sizes, axes)), channels])
    _, total = tf.while_loop(
        lambda number, total: number < steps,
        one_strip,
        [0, empty],
        shape_invariants=[tf.TensorShape([]), tf.TensorShape([None] * (rank + 1) + [channels])],
        parallel_iterations=1,
    )
    return total


def _joined(outputs, places, size):
    """Sums tiles `(count, batch, *spatial, channels)` at their `places` `(count, extent)` along the last axis."""
    rank = outputs.shape.rank - 3
    first = tf.transpose(outputs, [0, rank + 1, *range(1, rank + 1), rank + 2])
    rows = tf.reshape(first, tf.concat([[-1], tf.shape(first)[2:]], axis=0))
    joined = tf.math.unsorted_segment_sum(rows, tf.reshape(places, [-1]), size)
    return tf.transpose(joined, [*range(1, rank + 1), 0, rank + 1])


def _plan(size, axis, tile, overlap):
    """For one axis: where tiles start, `(count,)`, and weights and places of their output pixels, `(count, extent)`.

    The weights of all tiles sum to 1 at every pixel. Starts are multiples of the period: a tile is pooled in the same
    grids of pixels as the whole. The last tile ends with the axis: all are as much longer as that takes, and it may
    share more.
    """
    step = (tile - axis.loss - overlap) // axis.period * axis.period
    tile = tf.minimum(tile + (size - tile) % axis.period, size)
    count = -((tile - size) // step) + 1
    starts = tf.minimum(tf.range(count) * step, size - tile)
    extent = tile - axis.loss
    position = tf.range(extent, dtype=tf.float32) + 0.5
    third = max(overlap / 3.0, 1e-3)
    rising = tf.clip_by_value((position - third) / third, 0.0, 1.0)[tf.newaxis]
    number = tf.range(count)[:, tf.newaxis]
    weights = tf.where(number > 0, rising, 1.0) * tf.where(number < count - 1, rising[:, ::-1], 1.0)
    places = starts[:, tf.newaxis] + tf.range(extent)
    total = tf.math.unsorted_segment_sum(weights, places, size - axis.loss)
    return starts, weights / tf.gather(total, places), places
