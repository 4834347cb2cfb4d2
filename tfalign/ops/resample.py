"""Values of a grid at moved coordinates, and the mask of where there are any. Whole-pixel moves are exact."""

import itertools

import tensorflow as tf

from tfalign import _checks
from tfalign.ops import geometry

INTERPOLATIONS = ("linear", "nearest")


def warp(moving, transform_or_displacement, *, output_shape=None, interpolation="linear", fill_value=0.0):
    """Reads `moving` through a transform or a displacement field: `aligned(u) = moving(T u)`.

    A move by whole pixels copies values exactly, whatever the interpolation; non-finite values touch only the pixels
    that read them. Coordinates are centred, see `tfalign.ops.geometry`. Built from gathers, so it compiles under XLA.

    Args:
        moving: `(batch, *spatial, channels)`, any range. Integers and booleans keep their type with "nearest" and
            become float32 with "linear".
        transform_or_displacement: `(batch or 1, d+1, d+1)` transforms, fixed -> moving, or a displacement
            `(batch or 1, *output_shape, d)` in pixels, added to each pixel's own coordinate.
        output_shape: sizes of the fixed grid; by default those of the displacement, or of `moving`.
        interpolation: "linear" (order 1 per axis) or "nearest" (ties go up; for class maps).
        fill_value: the value where the moving grid has no data.

    Returns:
        `(values, mask)`: `(batch, *output_shape, channels)`, and `(batch, *output_shape)` floating, 1.0 where the
        coordinate lies inside the moving grid (on its outermost pixel centres at most), else 0.0.

    Raises:
        ValueError: ranks or sizes do not fit, or an unknown interpolation.

    Gradient: exact to the values; to the transform or displacement that of the interpolation ("nearest": none).
    """
    moving = tf.convert_to_tensor(moving)
    rank = _checks.spatial_rank("moving", moving)
    _checks.choice("interpolation", interpolation, INTERPOLATIONS)
    if interpolation == "linear":
        moving = _checks.floating(moving, "moving")
    pull = _checks.floating(transform_or_displacement, "transform_or_displacement")
    coordinates = _pulled_coordinates(moving, pull, rank, output_shape)
    values, mask = sample(moving, coordinates, interpolation=interpolation)
    fill = tf.cast(fill_value, values.dtype)
    return tf.where(mask[..., tf.newaxis] > 0, values, fill), mask


def _pulled_coordinates(moving, pull, rank, output_shape):
    """Centred moving coordinates `(batch, *output, d)` of every fixed pixel."""
    is_transform = pull.shape.rank == 3 and pull.shape[-1] == rank + 1
    if not is_transform and (pull.shape.rank != rank + 2 or pull.shape[-1] != rank):
        raise ValueError(
            _checks.message(
                f"`transform_or_displacement` must have the shape (batch, {rank + 1}, {rank + 1}), or "
                f"(batch, *output_shape, {rank}).",
                {"its shape": _checks.shape_of(pull), "moving.shape": _checks.shape_of(moving)},
                "Make a transform with `tfalign.ops.geometry`, or take one from `tfalign.register`.",
            )
        )
    if output_shape is None:
        shape = geometry.spatial_shape(moving if is_transform else pull)
    else:
        shape = list(tf.unstack(output_shape, num=rank)) if tf.is_tensor(output_shape) else list(output_shape)
        if len(shape) != rank:
            raise ValueError(
                _checks.message(
                    f"`output_shape` must hold {rank} sizes, one per spatial axis.", {"output_shape": output_shape}
                )
            )
    grid = geometry.centered_grid(shape, pull.dtype)
    if not is_transform:
        return grid + pull
    points = tf.reshape(grid, [1, -1, rank])
    moved = geometry.apply_to_points(pull, points)
    return tf.reshape(moved, [-1, *shape, rank])


def sample(values, coordinates, *, interpolation):
    """Reads `values` `(batch, *spatial, channels)` at centred `coordinates` `(batch or 1, *output, d)`.

    Returns:
        `(samples, mask)`, unfilled: outside the grid the samples are those of the nearest border.
    """
    shape = geometry.spatial_shape(values)
    axes = tf.unstack(coordinates, axis=-1)
    index = [axis + tf.cast(size // 2, axis.dtype) for axis, size in zip(axes, shape)]
    inside = [(at >= 0) & (at <= tf.cast(size - 1, at.dtype)) for at, size in zip(index, shape)]
    mask = tf.cast(tf.reduce_all(tf.stack(inside), axis=0), coordinates.dtype)
    batch = tf.shape(values)[0]
    mask = tf.broadcast_to(mask, tf.concat([[batch], tf.shape(mask)[1:]], axis=0))
    if interpolation == "nearest":
        return gather_pixels(values, [tf.cast(tf.floor(at + 0.5), tf.int32) for at in index]), mask
    lower = [tf.floor(at) for at in index]
    fraction = [tf.cast(at - low, values.dtype) for at, low in zip(index, lower)]
    total = tf.zeros([], values.dtype)
    for corner in itertools.product((0, 1), repeat=len(shape)):
        at = [tf.cast(low, tf.int32) + bit for low, bit in zip(lower, corner)]
        weight = tf.ones([], values.dtype)
        for part, bit in zip(fraction, corner):
            weight = weight * (part if bit else 1.0 - part)
        weight = weight[..., tf.newaxis]
        # A neighbour of weight 0 may be NaN: it must not reach the sum.
        total = total + tf.where(weight > 0, gather_pixels(values, at), 0.0) * weight
    return total, mask


def gather_pixels(values, index):
    """Values at whole indices, one `(batch or 1, *output)` tensor per axis; an index outside reads the border.

    One flat gather: faster than `batch_dims`, and it compiles under XLA.
    """
    shape = geometry.spatial_shape(values)
    batch, channels = tf.shape(values)[0], values.shape[-1]
    flat = tf.reshape(tf.range(batch), [-1] + [1] * len(shape))
    for at, size in zip(index, shape):
        flat = flat * size + tf.clip_by_value(at, 0, size - 1)
    pixels = tf.reshape(values, [-1, tf.shape(values)[-1] if channels is None else channels])
    return tf.gather(pixels, flat)


def shift_by_pixels(moving, translation, output_shape):
    """Moves by whole pixels: one gather and no interpolation.

    Args:
        moving: `(batch, *spatial, channels)`.
        translation: `(batch, d)`, whole numbers in any type; `aligned(u) = moving(u + translation)`.
        output_shape: sizes of the fixed grid.

    Returns:
        `(values, mask)` as `warp`; outside the moving grid the values are those of its border.
    """
    rank = len(output_shape)
    shape = geometry.spatial_shape(moving)
    index, inside = [], []
    for axis, (size, moving_size) in enumerate(zip(output_shape, shape)):
        start = tf.cast(tf.round(translation[:, axis]), tf.int32) + geometry.center_offset(size, moving_size)
        at = start[:, tf.newaxis] + tf.range(size)
        broadcast = [-1] + [size if axis == other else 1 for other in range(rank)]
        at = tf.reshape(at, broadcast)
        index.append(at)
        inside.append((at >= 0) & (at < moving_size))
    mask = inside[0]
    for other in inside[1:]:
        mask = mask & other
    return gather_pixels(moving, index), tf.cast(mask, tf.float32 if moving.dtype != tf.float64 else tf.float64)


def crop_or_pad(values, output_shape):
    """Cuts or zero-pads every spatial axis to `output_shape` around the grid's centre."""
    begin, size, paddings = [0], [-1], [[0, 0]]
    for wanted, available in zip(output_shape, geometry.spatial_shape(values)):
        start = geometry.center_offset(wanted, available)
        first, last = _maximum(start, 0), _minimum(start + wanted, available)
        begin.append(first)
        size.append(last - first)
        paddings.append([first - start, start + wanted - last])
    cut = tf.slice(values, begin + [0], size + [-1])
    padded = tf.pad(cut, paddings + [[0, 0]])
    padded.set_shape(
        [values.shape[0], *(item if isinstance(item, int) else None for item in output_shape), values.shape[-1]]
    )
    return padded


def _maximum(a, b):
    return tf.maximum(a, b) if tf.is_tensor(a) or tf.is_tensor(b) else max(a, b)


def _minimum(a, b):
    return tf.minimum(a, b) if tf.is_tensor(a) or tf.is_tensor(b) else min(a, b)
