"""Transforms of the centred pixel grid: make, compose, invert, apply to points; any rank.

A transform is `(batch, d+1, d+1)`, homogeneous, and maps coordinates of the fixed grid to coordinates of the moving
grid (a pull): `aligned(u) = moving(T u)`. Coordinates are pixels in the order (plane, row, col), counted from the
centre of each grid, which is index `size // 2`; so the identity puts two grids of any size on one centre, and whole
pixels stay whole for odd differences of size too.

The linear part is A = R . shear . scale. R turns by angles in degrees, R = [[cos, -sin], [sin, cos]] on (row, col): an
angle > 0 reads points turned counter-clockwise on the screen, so the aligned picture turns clockwise. In 3-D it is the
product of the rotations about the plane, row and col axis, in this order (that of col acts first). shear is a unit
matrix with tan(angle) right of its diagonal, for the same pairs of axes; scale is a factor per axis, > 1 reads further
out. So A determines all its parameters.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

PLANES = {1: (), 2: ((0, 1),), 3: ((1, 2), (0, 2), (0, 1))}  # axes that each angle turns or shears


class Parameters(NamedTuple):
    """What a transform is made of.

    Attributes:
        translation: `(batch, d)` pixels.
        rotation: `(batch, d(d-1)/2)` degrees.
        shear: `(batch, d(d-1)/2)` degrees.
        scale: `(batch, d)` factors.
    """

    translation: tf.Tensor
    rotation: tf.Tensor
    shear: tf.Tensor
    scale: tf.Tensor


def spatial_shape(tensor):
    """Sizes of the spatial axes of `(batch, *spatial, channels)`: an int where static, else a scalar tensor."""
    static = tensor.shape[1:-1].as_list()
    dynamic = tf.unstack(tf.shape(tensor)[1:-1], num=len(static)) if None in static else static
    return [known if known is not None else size for known, size in zip(static, dynamic)]


def center_offset(fixed_size, moving_size):
    """Index in the moving grid of the fixed grid's index 0 under the identity, for one axis."""
    return moving_size // 2 - fixed_size // 2


def identity(batch, rank, dtype=tf.float32):
    """`(batch, rank+1, rank+1)` identity transforms."""
    return tf.eye(rank + 1, batch_shape=[batch], dtype=dtype)


def from_translation(translation):
    """Transforms `(batch, d+1, d+1)` that only shift, by `translation` `(batch, d)` pixels.

    A positive entry reads further down/right: the moving content lies that far down/right of the fixed one.
    """
    return tf.constant(np.eye(translation.shape[-1] + 1), translation.dtype) + _last_column(translation)


def _last_column(translation):
    """Matrices `(batch, d+1, d+1)` of zeros, but for the translation."""
    return tf.pad(translation[:, :, tf.newaxis], [[0, 0], [0, 1], [translation.shape[-1], 0]])


def make(translation, *, rotation=None, shear=None, scale=None):
    """Transforms `(batch, d+1, d+1)` from their parameters, see `Parameters`; what is None is left out.

    Gradient: exact, to all of them.
    """
    translation = tf.convert_to_tensor(translation)
    rank, dtype = translation.shape[-1], translation.dtype
    unit = tf.constant(np.eye(rank)[np.newaxis], dtype)
    linear, turn = unit, None
    if shear is not None:
        linear += _placed(PLANES[rank], tf.tan(_radians(shear, dtype)), rank)
    if scale is not None:
        linear *= tf.cast(scale, dtype)[:, tf.newaxis, :]
    if rotation is not None:
        angles = _radians(rotation, dtype)
        sines, cosines = tf.sin(angles), tf.cos(angles)
        for number, (first, second) in enumerate(PLANES[rank]):
            sine, cosine = (values[:, number : number + 1] for values in (sines, cosines))
            entries = [(first, first), (second, second), (second, first), (first, second)]
            values = tf.concat([cosine - 1.0, cosine - 1.0, sine, -sine], axis=-1)
            one = unit + _placed(entries, values, rank)
            turn = one if turn is None else tf.linalg.matmul(turn, one)
        linear = linear if turn is None else tf.linalg.matmul(turn, linear)
    corner = tf.constant(np.diag([0.0] * rank + [1.0]), dtype)
    return tf.pad(linear, [[0, 0], [0, 1], [0, 1]]) + _last_column(translation) + corner


def decompose(transform):
    """The `Parameters` that `make` makes `transform` of; a mirrored one has a negative last scale.

    At a rotation of exactly 90 degrees about the row axis of a volume that about the col axis is given as 0.
    """
    linear = transform[..., :-1, :-1]
    rank = linear.shape[-1]
    # Gram-Schmidt: the columns of R, and the triangle shear . scale.
    columns: list[tf.Tensor] = []
    triangle: dict[tuple[int, int], tf.Tensor] = {}
    for axis in range(rank):
        rest = linear[..., axis]
        for before, column in enumerate(columns):
            triangle[before, axis] = tf.reduce_sum(column * linear[..., axis], axis=-1)
            rest -= triangle[before, axis][..., tf.newaxis] * column
        triangle[axis, axis] = tf.norm(rest, axis=-1)
        columns.append(tf.math.divide_no_nan(rest, triangle[axis, axis][..., tf.newaxis]))
    turn = tf.stack(columns, axis=-1)
    mirrored = tf.where(determinant(turn) < 0.0, -tf.ones_like(triangle[0, 0]), 1.0)
    last = rank - 1
    triangle[last, last] *= mirrored
    turn = tf.concat([turn[..., :last], turn[..., last:] * mirrored[..., tf.newaxis, tf.newaxis]], axis=-1)
    slopes = [tf.math.divide_no_nan(triangle[pair], triangle[pair[1], pair[1]]) for pair in PLANES[rank]]
    none = tf.zeros_like(translation_of(transform)[..., :0])
    return Parameters(
        translation=translation_of(transform),
        rotation=tf.stack(_angles(turn), axis=-1) * (180.0 / np.pi) if rank > 1 else none,
        shear=tf.math.atan(tf.stack(slopes, axis=-1)) * (180.0 / np.pi) if rank > 1 else none,
        scale=tf.stack([triangle[axis, axis] for axis in range(rank)], axis=-1),
    )


def _radians(degrees, dtype):
    return tf.cast(degrees, dtype) * (np.pi / 180.0)


def _placed(entries, values, rank):
    """Matrices `(batch, rank, rank)` with `values` `(batch, len(entries))` at `entries`, 0 elsewhere."""
    places = np.zeros((len(entries), rank, rank))
    for number, entry in enumerate(entries):
        places[(number, *entry)] = 1.0
    return tf.reduce_sum(values[:, :, tf.newaxis, tf.newaxis] * tf.constant(places, values.dtype), axis=1)


def determinant(matrix):
    """Of small matrices, by the first row: `tf.linalg.det` does not compile with XLA."""
    return determinant_of_rows([tf.unstack(row, axis=-1) for row in tf.unstack(matrix, axis=-2)])


def determinant_of_rows(rows):
    """The determinant of a square list of lists of tensors."""
    (first, *others), *below = rows
    if not others:
        return first
    total = first * determinant_of_rows([row[1:] for row in below])
    for column, entry in enumerate(others, start=1):
        part = entry * determinant_of_rows([[*row[:column], *row[column + 1 :]] for row in below])
        total = total - part if column % 2 else total + part
    return total


def cramer(rows, vector):
    """Numerators, one for each unknown, and their common divisor, the determinant, of what solves `rows x = vector`.

    For few unknowns. The caller divides with a guard of its own: a solver would raise where nothing is determined.
    """
    replaced = [
        [[*row[:axis], value, *row[axis + 1 :]] for row, value in zip(rows, vector)] for axis in range(len(rows))
    ]
    return [determinant_of_rows(one) for one in replaced], determinant_of_rows(rows)


def _angles(turn):
    """The angles of rotation matrices, radians, in the order of `PLANES`."""
    if turn.shape[-1] == 2:
        return [tf.math.atan2(turn[..., 1, 0], turn[..., 0, 0])]
    sine = tf.clip_by_value(-turn[..., 0, 2], -1.0, 1.0)
    locked = tf.abs(sine) > 1.0 - 1e-6
    return [
        tf.where(
            locked,
            tf.math.atan2(turn[..., 2, 1], turn[..., 1, 1]),
            tf.math.atan2(-turn[..., 1, 2], turn[..., 2, 2]),
        ),
        tf.math.asin(sine),
        tf.where(locked, tf.zeros_like(sine), tf.math.atan2(-turn[..., 0, 1], turn[..., 0, 0])),
    ]


def translation_of(transform):
    """The shift `(..., d)`, in pixels, that `transform` `(..., d+1, d+1)` gives the fixed grid's centre."""
    return transform[..., :-1, -1]


def compose(outer, inner):
    """The transform that applies `inner` first: `compose(a, b) u = a (b u)`, both `(batch, d+1, d+1)`."""
    return tf.linalg.matmul(outer, inner)


def invert(transform):
    """The inverse transforms, moving -> fixed; a translation is inverted exactly.

    Raises:
        tf.errors.InvalidArgumentError: a linear part is singular (eager and graph; under XLA the result is not finite).
    """
    linear_inverse = tf.linalg.inv(transform[..., :-1, :-1])
    shift = -tf.linalg.matvec(linear_inverse, translation_of(transform))
    top = tf.concat([linear_inverse, shift[..., tf.newaxis]], axis=-1)
    return tf.concat([top, transform[..., -1:, :]], axis=-2)


def apply_to_points(transform, points):
    """Moves centred `points` `(batch, count, d)` of the fixed grid to the moving grid."""
    linear = tf.linalg.matmul(points, transform[:, :-1, :-1], transpose_b=True)
    return linear + translation_of(transform)[:, tf.newaxis, :]


def centered_grid(shape, dtype=tf.float32):
    """Centred coordinates `(*shape, d)` of every pixel of a grid with the given sizes (ints or scalar tensors)."""
    axes = [tf.cast(tf.range(size) - size // 2, dtype) for size in shape]
    return tf.stack(tf.meshgrid(*axes, indexing="ij"), axis=-1)


def transformed_grid(transform, shape):
    """Centred moving coordinates `(batch, *shape, d)` of every pixel of a fixed grid with the given sizes."""
    rank = len(shape)
    points = tf.reshape(centered_grid(shape, transform.dtype), [1, -1, rank])
    return tf.reshape(apply_to_points(transform, points), [-1, *shape, rank])
