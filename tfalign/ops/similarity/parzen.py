"""Mutual information that is smooth in the values, for a refinement by gradients."""

import tensorflow as tf

from tfalign.ops.similarity.information import value_range


def mutual_information(fixed, moving, weight, *, levels=16):
    """Mutual information of two aligned grids from Parzen windows, `(batch,)` nats, the mean over channels.

    Each pixel is shared by the four levels around its value, weighted by a cubic B-spline; the joint distribution is
    the mean of the products over the overlap, the marginals are its sums. So the measure has a continuous gradient to
    the values of both sides, and through a warp to the transform.

    Viola & Wells (1997) lay Gaussians on a random sample of the pixels, and follow a stochastic estimate of the
    gradient; here every pixel counts and the value is deterministic, the windows have compact support, and their width
    is one level instead of a tuned standard deviation. It is biased upwards by few pixels, as any histogram, and never
    falls below 0.

    Args:
        fixed, moving: `(batch, *spatial, channels)`, on one grid. Values beyond three standard deviations count as the
            farthest level.
        weight: `(batch, *spatial, 1)`, 0 where a pixel does not count.
        levels: int >= 4. One pair needs `pixels x levels` numbers for each side.

    Gradient: exact, but not through the ends of the ranges.
    Source: Viola & Wells (1997), doi:10.1023/A:1007958904918; B-spline windows as in Thévenaz & Unser (2000),
        doi:10.1109/83.887976.
    """
    fixed, moving, weight = (tf.convert_to_tensor(values) for values in (fixed, moving, weight))
    channels, pixels = fixed.shape[-1], tf.reduce_prod(tf.shape(fixed)[1:-1])
    flat_weight = tf.reshape(weight, [-1, pixels])
    total = tf.maximum(tf.reduce_sum(flat_weight, axis=1), 1e-6)[:, tf.newaxis, tf.newaxis]
    found = 0.0
    for channel in range(channels):
        sides = (values[..., channel : channel + 1] for values in (fixed, moving))
        shares = [tf.reshape(_shares(side, weight, levels), [-1, pixels, levels]) for side in sides]
        joint = tf.einsum("bp,bpi,bpj->bij", flat_weight, *shares) / total
        left, right = tf.reduce_sum(joint, axis=2), tf.reduce_sum(joint, axis=1)
        found += _entropy(left, [1]) + _entropy(right, [1]) - _entropy(joint, [1, 2])
    return tf.maximum(found / channels, 0.0)


def foretold(fixed, moving, weight, *, levels=16):
    """What the levels of `fixed` foretell of `moving`: its conditional mean, read back at every pixel.

    Arguments as of `mutual_information`; `(batch, *spatial, channels)`, 0 where no pixel counts.
    """
    pixels = tf.reduce_prod(tf.shape(fixed)[1:-1])
    flat_weight = tf.reshape(weight, [-1, pixels])
    found = []
    for channel in range(fixed.shape[-1]):
        shares = tf.reshape(_shares(fixed[..., channel : channel + 1], weight, levels), [-1, pixels, levels])
        values = tf.reshape(moving[..., channel], [-1, pixels])
        sums = tf.einsum("bp,bpl->bl", flat_weight * values, shares)
        means = tf.math.divide_no_nan(sums, tf.einsum("bp,bpl->bl", flat_weight, shares))
        found.append(tf.reshape(tf.einsum("bl,bpl->bp", means, shares), tf.shape(moving)[:-1]))
    return tf.stack(found, axis=-1)


def _shares(values, weight, levels):
    """`(batch, *spatial, levels)`: the share of every level in a pixel, by a cubic B-spline of the distance."""
    low, high = (tf.stop_gradient(end) for end in value_range(values, weight))
    # The outermost levels keep room for half a window.
    scaled = (values - low) / tf.where(high > low, high - low, 1.0)
    level = 1.0 + tf.clip_by_value(scaled, 0.0, 1.0) * (levels - 3.0)
    away = tf.abs(level - tf.range(levels, dtype=values.dtype))
    near = 2.0 / 3.0 - tf.square(away) * (1.0 - 0.5 * away)
    far = tf.pow(tf.maximum(2.0 - away, 0.0), 3) / 6.0
    return tf.where(away < 1.0, near, far)


def _entropy(shares, axes):
    return -tf.reduce_sum(shares * tf.math.log(tf.maximum(shares, 1e-12)), axis=axes)
