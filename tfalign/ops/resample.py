"""Values of a grid at moved coordinates, and the mask of where there are any. Whole-pixel moves are exact."""

import math

import numpy as np
import tensorflow as tf

from tfalign import _checks
from tfalign.ops import geometry, spline

INTERPOLATIONS = ("linear", "nearest", "cubic")
ENGINES = ("gather", "projective")
_ROUNDING = 1e-6  # of a size: so far outside a coordinate still lies on the border
# The projective engine's operation knows few types of integers.
_PROJECTED_AS = {
    tf.bool: tf.uint8, tf.int8: tf.int32, tf.int16: tf.int32, tf.uint16: tf.int32, tf.uint32: tf.int64,
    tf.uint64: tf.int64,
}  # fmt: skip


@tf.autograph.experimental.do_not_convert
def warp(
    moving, transform_or_displacement, *, output_shape=None, interpolation="linear", fill_value=0.0, engine="gather"
):
    """Reads `moving` through a transform or a displacement field: `aligned(u) = moving(T u)`.

    A move by whole pixels copies values exactly, whatever the interpolation; non-finite values touch only the pixels
    that read them. Coordinates are centred, see `tfalign.ops.geometry`.

    Args:
        moving: `(batch, *spatial, channels)`, any range. Integers and booleans keep their type with "nearest" and
            become float32 otherwise.
        transform_or_displacement: `(batch or 1, d+1, d+1)` transforms, fixed -> moving, or a displacement
            `(batch or 1, *output_shape, d)` in pixels, added to each pixel's own coordinate.
        output_shape: sizes of the fixed grid; by default those of the displacement, or of `moving`.
        interpolation: "linear" (order 1 per axis), "nearest" (ties go up; for class maps) or "cubic" (B-spline of order
            3 through the values, mirrored at the border: keeps the fine detail that "linear" blurs, and may overshoot
            at edges; a pixel with a non-finite channel touches what is read within 2 px of it).
        fill_value: the value where the moving grid has no data.
        engine: "gather" (any rank, compiles under XLA) or "projective" (TensorFlow's own operation for pictures: faster
            on a CPU, transforms with "linear" and "nearest" only, no gradient; it does not compile under XLA, whose
            error then names the engine, and beside non-finite pixels it gives NaN).

    Returns:
        `(values, mask)`: `(batch, *output_shape, channels)`, and `(batch, *output_shape)` floating, 1.0 where the
        coordinate lies inside the moving grid (on its outermost pixel centres at most), else 0.0.

    Raises:
        ValueError: ranks or sizes do not fit, an unknown interpolation or engine, or one that the other does not offer.

    Gradient: exact to the values; to the transform or displacement that of the interpolation ("nearest": none; "linear"
        at whole pixels: that towards the next one).

    Example:
        >>> picture = np.arange(9, dtype=np.float32).reshape(1, 3, 3, 1)
        >>> one_right = tf.constant([[[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]])  # reads 1 px further right
        >>> values, mask = tfalign.warp(picture, one_right)
        >>> values[0, :, :, 0].numpy().tolist()
        [[1.0, 2.0, 0.0], [4.0, 5.0, 0.0], [7.0, 8.0, 0.0]]
    """
    moving = tf.convert_to_tensor(moving)
    rank = _checks.spatial_rank("moving", moving)
    _checks.choice("interpolation", interpolation, INTERPOLATIONS)
    _checks.choice("engine", engine, ENGINES)
    if interpolation != "nearest":
        moving = _checks.floating(moving, "moving")
    pull = _checks.floating(transform_or_displacement, "transform_or_displacement")
    if 0 in moving.shape[1:-1]:
        raise ValueError(_checks.message("`moving` must have pixels.", {"moving.shape": _checks.shape_of(moving)}))
    coordinates = _pulled_coordinates(moving, pull, rank, output_shape)
    if engine == "projective":
        _check_projective(moving, pull, interpolation)
        values, mask = _projected(moving, pull, coordinates, interpolation)
    else:
        values, mask = sample(moving, coordinates, interpolation=interpolation)
    fill = tf.cast(fill_value, values.dtype)
    return tf.where(mask[..., tf.newaxis] > 0, values, fill), mask


def _pulled_coordinates(moving, pull, rank, output_shape):
    """Centred moving coordinates `(batch, *output, d)` of every fixed pixel."""
    is_transform = pull.shape.rank == 3 and pull.shape[-1] == rank + 1 and pull.shape[-2] in (None, rank + 1)
    if not is_transform and (pull.shape.rank != rank + 2 or pull.shape[-1] != rank):
        raise ValueError(
            _checks.message(
                f"`transform_or_displacement` must have the shape (batch, {rank + 1}, {rank + 1}), or "
                f"(batch, *output_shape, {rank}).",
                {"its shape": _checks.shape_of(pull), "moving.shape": _checks.shape_of(moving)},
                "Make a transform with `tfalign.ops.geometry`, or take one from `tfalign.register`.",
            )
        )
    if pull.shape[0] not in (None, 1) and moving.shape[0] not in (None, pull.shape[0]):
        raise ValueError(
            _checks.message(
                "`transform_or_displacement` must hold one sample, or one for each of `moving`.",
                {"its shape": _checks.shape_of(pull), "moving.shape": _checks.shape_of(moving)},
            )
        )
    shape = geometry.spatial_shape(moving if is_transform else pull)
    if output_shape is not None:
        wanted = _checked_sizes(output_shape, rank)
        if not is_transform and any(
            isinstance(one, int) and isinstance(own, int) and one != own for one, own in zip(wanted, shape)
        ):
            raise ValueError(
                _checks.message(
                    "`output_shape` must be that of the displacement.",
                    {"output_shape": output_shape, "its shape": _checks.shape_of(pull)},
                    "Leave it out.",
                )
            )
        shape = wanted
    return geometry.transformed_grid(pull, shape) if is_transform else geometry.centered_grid(shape, pull.dtype) + pull


def _checked_sizes(output_shape, rank):
    """`output_shape` as a list: ints >= 1, or scalar tensors."""
    sizes = tf.get_static_value(output_shape) if tf.is_tensor(output_shape) else output_shape
    if sizes is None:
        return tf.unstack(output_shape, num=rank)
    sizes = sizes.tolist() if isinstance(sizes, np.ndarray) else sizes
    if not isinstance(sizes, (list, tuple, tf.TensorShape)) or len(sizes) != rank:
        raise ValueError(
            _checks.message(
                f"`output_shape` must hold {rank} sizes, one per spatial axis.", {"output_shape": output_shape}
            )
        )
    return [size if tf.is_tensor(size) else _checks.whole_number("output_shape", size, at_least=1) for size in sizes]


def sample(values, coordinates, *, interpolation, finite=False):
    """Reads `values` `(batch, *spatial, channels)` at centred `coordinates` `(batch or 1, *output, d)`.

    It is faster where the caller knows that they are `finite`.

    Returns:
        `(samples, mask)`, unfilled: outside the grid the samples are those of the nearest border, where a coordinate
        counts as inside if no more than rounding has put it there.
    """
    index, mask = _indices(values, coordinates), _inside(values, coordinates)
    if interpolation == "nearest":
        return gather_pixels(values, [tf.cast(tf.floor(at + 0.5), tf.int32) for at in index]), mask
    if interpolation == "cubic":
        return _cubic(values, index, finite), mask
    return _linear(values, index, finite), mask


def sample_linear(values, coordinates):
    """Reads `values` as `sample` does by "linear", without a mask."""
    return _linear(values, _indices(values, coordinates), finite=False)


def _linear(values, index, finite):
    """Values between whole pixels, at fractional indices."""
    taps = []
    for at in index:
        lower = tf.floor(at)
        part, first = tf.cast(at - lower, values.dtype), tf.cast(lower, tf.int32)
        taps.append([(first, 1.0 - part), (first + 1, part)])

    def share(pixels, weight):
        # A neighbour of weight 0 may be NaN: it must not reach the sum. A finite one must stay: the gradient needs it.
        return tf.where((weight > 0) | tf.math.is_finite(pixels), pixels, 0.0) * weight

    return _weighted(values, taps, tf.multiply if finite else share)


def sample_masked(filled, mask, transform, shape, *, interpolation="cubic"):
    """Values without holes, and their weights, through a transform on a grid of sizes `shape`.

    Args:
        filled: `(batch, *spatial, channels)` of `spline.fill_holes`.
        mask: `(batch, *spatial, 1)` weights, read by "linear".
        transform: `(batch, d+1, d+1)`.
        interpolation: of the values, by default cubic splines.

    Returns:
        `(values, weights)`, `(batch, *shape, channels)` and `(batch, *shape, 1)`; 0 outside the grid.
    """
    grid = geometry.transformed_grid(transform, shape)
    values, inside = sample(filled, grid, interpolation=interpolation, finite=True)
    weight, _ = sample(mask, grid, interpolation="linear", finite=True)
    return values, weight * inside[..., tf.newaxis]


def _indices(values, coordinates):
    """Fractional indices into `values`, a tensor for each axis.

    Outside the grid they are those of the border: a coordinate that a rotation's rounding put there reads it exactly.
    """
    return [tf.clip_by_value(at, 0.0, last) for at, last in _unclipped(values, coordinates)]


def _inside(values, coordinates):
    """Floating, `(batch, *output)`: 1.0 where the coordinates lie in the grid."""
    inside = []
    for at, last in _unclipped(values, coordinates):
        rounding = _ROUNDING * (last + 1.0)
        inside.append((at >= -rounding) & (at <= last + rounding))
    mask = tf.cast(tf.reduce_all(tf.stack(inside), axis=0), coordinates.dtype)
    return tf.broadcast_to(mask, tf.concat([tf.shape(values)[:1], tf.shape(mask)[1:]], axis=0))


def _unclipped(values, coordinates):
    """For each axis the fractional indices and the last one of the grid, a number or a scalar."""
    for axis, size in zip(tf.unstack(coordinates, axis=-1), geometry.spatial_shape(values)):
        if isinstance(size, int):
            yield axis + float(size // 2), float(size - 1)
        else:
            yield axis + tf.cast(size // 2, axis.dtype), tf.cast(size - 1, axis.dtype)


def _cubic(values, index, finite):
    """Values of the interpolating cubic B-spline at fractional indices, exact where all of them are whole."""
    shape, dtype = geometry.spatial_shape(values), values.dtype
    known = None if finite else tf.reduce_all(tf.math.is_finite(values), axis=-1, keepdims=True)
    filled = values if finite else spline.fill_holes(values, tf.cast(known, dtype))
    total = _spline_sum(spline.side_by_side(spline.coefficients(filled)), index)
    lower = [tf.floor(at) for at in index]
    whole = tf.reduce_all(tf.stack([at == low for at, low in zip(index, lower)]), axis=0)[..., tf.newaxis]
    at = [tf.cast(low, tf.int32) for low in lower]
    between = total
    if not finite:
        for axis, size in enumerate(shape, start=1):
            beside = [tf.clip_by_value(tf.range(size) + step, 0, size - 1) for step in range(-1, 3)]
            known = tf.reduce_all(tf.stack([tf.gather(known, one, axis=axis) for one in beside]), axis=0)
        between = tf.where(gather_pixels(known, at), total, np.nan)
    exact = tf.where(whole, gather_pixels(values, at), between)
    # Adds 0: the gradient stays that of the splines, also where the value is copied.
    return tf.stop_gradient(exact) + (total - tf.stop_gradient(total))


def sample_splines(weights, coordinates):
    """Reads B-splines, whose weights lie side by side, at centred `coordinates`, as `sample` does, without a mask."""
    return _spline_sum(weights, _indices(weights, coordinates))


def _spline_sum(weights, index):
    """One gather for all that is read along the last axis."""
    shape = geometry.spatial_shape(weights)
    *across, along = (spline.taps(tf.cast(at, weights.dtype), size) for at, size in zip(index, shape))
    whole = [(tf.cast(index[-1], tf.int32), None)]
    rows = _weighted(weights, [*across, whole], lambda row, weight: row if weight is None else row * weight)
    parts = tf.split(rows, len(along), axis=-1)
    return tf.add_n([part * weight[..., tf.newaxis] for part, (_, weight) in zip(parts, along)])


def _check_projective(moving, pull, interpolation):
    """Refuses what the projective engine does not offer."""
    if moving.shape.rank != 4 or pull.shape.rank != 3 or interpolation == "cubic":
        raise ValueError(
            _checks.message(
                '`engine="projective"` must be given pictures, a transform, and interpolation "linear" or "nearest".',
                {
                    "engine": "projective",
                    "moving.shape": _checks.shape_of(moving),
                    "transform_or_displacement.shape": _checks.shape_of(pull),
                    "interpolation": interpolation,
                },
                'Use engine="gather".',
            )
        )


def _projected(moving, pull, coordinates, interpolation):
    """Values by TensorFlow's operation, which counts (col, row) from the first pixel; the mask is our own."""
    mask = _inside(moving, coordinates)
    output = tf.shape(coordinates)[1:3]
    pull = tf.cast(pull, tf.float32)
    linear = pull[:, :2, :2]
    start, center = (tf.cast(sizes // 2, tf.float32) for sizes in (output, tf.shape(moving)[1:3]))
    offset = geometry.translation_of(pull) + center - tf.linalg.matvec(linear, start)
    rows = tf.concat([linear[:, :, ::-1], offset[..., tf.newaxis]], axis=-1)[:, ::-1]
    eight = tf.concat([tf.reshape(rows, [-1, 6]), tf.zeros_like(rows[:, 0, :2])], axis=-1)
    values = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.stop_gradient(tf.cast(moving, _PROJECTED_AS.get(moving.dtype, moving.dtype))),
        transforms=tf.stop_gradient(eight),
        output_shape=output,
        fill_value=0.0,
        interpolation={"linear": "BILINEAR", "nearest": "NEAREST"}[interpolation],
        name="engine_projective_does_not_compile_use_engine_gather",
    )
    values.set_shape([moving.shape[0], *coordinates.shape[1:3], moving.shape[-1]])
    return tf.cast(values, moving.dtype), mask


def gather_pixels(values, index):
    """Values at whole indices, one `(batch or 1, *output)` tensor per axis; an index outside reads the border."""
    return _weighted(values, [[(at, None)] for at in index], lambda pixels, _: pixels)


def _weighted(values, taps, share):
    """Sums over neighbours, axis by axis, of `share(pixels, weight)`.

    One flat gather for each: faster than `batch_dims`, and it compiles under XLA.

    Args:
        values: `(batch, *spatial, channels)`.
        taps: for each axis a list of `(whole index, weight)`, both `(batch or 1, *output)`.
        share: a function of `(batch, *output, channels)` values and `(batch or 1, *output, 1)` weights.
    """
    shape, channels = geometry.spatial_shape(values), values.shape[-1]
    pixels = tf.reshape(values, [-1, tf.shape(values)[-1] if channels is None else channels])
    strides = [math.prod(shape[axis:]) for axis in range(len(shape) + 1)]
    samples = tf.reshape(tf.range(tf.shape(values)[0]) * strides[0], [-1] + [1] * len(shape))
    steps = [
        [(tf.clip_by_value(at, 0, size - 1) * stride, weight) for at, weight in along]
        for along, size, stride in zip(taps, shape, strides[1:])
    ]

    def total(flat, steps):
        if not steps:
            return tf.gather(pixels, flat)
        (along, *others), parts = steps, []
        for step, weight in along:
            parts.append(share(total(flat + step, others), weight if weight is None else weight[..., tf.newaxis]))
        return parts[0] if len(parts) == 1 else tf.add_n(parts)

    return total(samples, steps)


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
    starts = tf.unstack(tf.cast(tf.round(translation), tf.int32), num=rank, axis=-1)
    for axis, (start, size, moving_size) in enumerate(zip(starts, output_shape, shape)):
        along = tf.range(size) + geometry.center_offset(size, moving_size)
        at = tf.reshape(start, [-1] + [1] * rank) + tf.reshape(along, [-1] + [1] * (rank - 1 - axis))
        index.append(at)
        inside.append((at >= 0) & (at < moving_size))
    mask = inside[0]
    for other in inside[1:]:
        mask = mask & other
    return gather_pixels(moving, index), tf.cast(mask, tf.float32 if moving.dtype != tf.float64 else tf.float64)


def shift_masked(moving, mask, translation, output_shape):
    """Values and weights moved by whole pixels.

    Args:
        moving, translation, output_shape: as of `shift_by_pixels`.
        mask: `(batch, *spatial, 1)`.

    Returns:
        `(values, weights)`; weights `(batch, *output_shape, 1)`, 0 outside the moving grid.
    """
    values, inside = shift_by_pixels(moving, translation, output_shape)
    inside = inside[..., tf.newaxis]

    def moved():
        return inside * shift_by_pixels(mask, translation, output_shape)[0]

    # Weights take as long as values do, and mostly there is nothing to move.
    return values, tf.cond(tf.reduce_all(mask == 1.0), lambda: inside, moved)


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
