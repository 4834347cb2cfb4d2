"""Transforms of the centred pixel grid: make, compose, invert, apply to points; any rank.

A transform is `(batch, d+1, d+1)`, homogeneous, and maps coordinates of the fixed grid to coordinates of the moving
grid (a pull): `aligned(u) = moving(T u)`. Coordinates are pixels in the order (plane, row, col), counted from the
centre of each grid, which is index `size // 2`; so the identity puts two grids of any size on one centre, and whole
pixels stay whole for odd differences of size too.
"""

import tensorflow as tf


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
    rank = translation.shape[-1]
    matrix = tf.eye(rank + 1, batch_shape=[tf.shape(translation)[0]], dtype=translation.dtype)
    column = tf.concat([translation, tf.ones_like(translation[:, :1])], axis=-1)
    return tf.concat([matrix[:, :, :rank], column[:, :, tf.newaxis]], axis=-1)


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
