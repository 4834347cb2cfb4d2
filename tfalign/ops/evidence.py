"""How sure a shift is: what a score map says about every shift, as log-likelihoods."""

import tensorflow as tf

from tfalign.ops import peak, spectral

_CHANCE = 0.6  # of the variance of a lead; 2 for independent pixels, 0.6 is what calibrates the confidence


def effective_pixels(fixed, aligned, weight):
    """Number of independent pixels behind a score, `(batch,)`, of two grids that lie on each other.

    The variance of a correlation of two stationary fields grows by `sum_k r_residual(k) r_moving(k)`; with a
    first-order autoregressive field along each axis that is (1 + p) / (1 - p), p the product of the two lag-1
    autocorrelations.
    Source: Bartlett (1946), doi:10.2307/2983611, applied per axis.
    """
    weight = spectral.channels_first(weight)
    fixed, aligned = (_centered(spectral.channels_first(side), weight) for side in (fixed, aligned))
    everything = list(range(1, fixed.shape.rank))
    energy = tf.reduce_sum(tf.square(aligned), axis=everything, keepdims=True)
    product = tf.reduce_sum(fixed * aligned, axis=everything, keepdims=True)
    residual = fixed - aligned * tf.math.divide_no_nan(product, energy)
    effective = tf.reduce_sum(weight, axis=everything)
    for axis in everything[1:]:
        together = _lag_one(residual, axis) * _lag_one(aligned, axis)
        effective *= (1.0 - together) / (1.0 + together)
    return tf.stop_gradient(effective)


def _centered(values, weight):
    """Values without their mean, 0 where nothing counts: shares of the largest, since squares of huge ones overflow."""
    everything = list(range(1, values.shape.rank))
    values = tf.math.multiply_no_nan(values, tf.cast(weight > 0.0, values.dtype))  # faster than `tf.where`
    values = tf.math.divide_no_nan(values, tf.reduce_max(tf.abs(values), axis=everything, keepdims=True))
    count = tf.maximum(tf.reduce_sum(weight, axis=everything, keepdims=True), 1.0)
    return (values - tf.reduce_sum(values * weight, axis=everything[1:], keepdims=True) / count) * weight


def _lag_one(values, axis):
    """Lag-1 autocorrelation along one axis, `(batch,)` in [0, 0.999]."""
    before = [slice(None)] * axis
    first, second = values[(*before, slice(None, -1))], values[(*before, slice(1, None))]
    others = list(range(1, values.shape.rank))
    energy = tf.reduce_sum(tf.square(values), axis=others)
    return tf.clip_by_value(tf.math.divide_no_nan(tf.reduce_sum(first * second, axis=others), energy), 0.0, 0.999)


def posterior(nats, enough, pixels, max_shift, sizes):
    """How probable each shift is, `(batch, shifts)`, sums to 1.

    As far as their overlaps differ, two shifts compare different pixels, and noise alone makes one look better: so much
    better that the lead's variance is that of a correlation over the pixels that they do not share. A lead far above it
    counts in full, a smaller one as the square of its standard score. So the shifts of a periodic picture stay rivals.

    Args:
        nats: `(batch, shifts)` log-likelihoods.
        enough: which of them count.
        pixels: `(batch,)` independent ones behind each.
        max_shift: of the window.
        sizes: of the overlap of the two grids.
    """
    nats = tf.where(enough, nats, nats.dtype.min)
    best = tf.argmax(nats, axis=-1)
    top = tf.gather(nats, best, batch_dims=1)[:, tf.newaxis]
    range_ = top - tf.reduce_min(tf.where(enough, nats, top), axis=-1, keepdims=True)
    explained = 1.0 - tf.exp(-2.0 * tf.math.divide_no_nan(range_, pixels[:, tf.newaxis]))
    shifts = peak.window_shifts(max_shift, nats.dtype)
    away = tf.abs(shifts - tf.gather(shifts, best)[:, tf.newaxis]) / tf.cast(tf.stack(sizes), nats.dtype)
    unshared = 1.0 - tf.reduce_prod(tf.maximum(1.0 - away, 0.0), axis=-1)
    variance = 2.0 * unshared * pixels[:, tf.newaxis] * explained
    lead = tf.where(enough, top - nats, 0.0)
    lead = tf.math.divide_no_nan(tf.square(lead), lead + _CHANCE * variance)
    return tf.nn.softmax(tf.where(enough, -lead, nats.dtype.min), axis=-1)


def mass_within_one_pixel(posterior, shift, max_shift):
    """Posterior mass of the shifts at most 1 px from `shift` on every axis, `(batch,)`."""
    shifts = peak.window_shifts(max_shift, posterior.dtype)
    near = tf.reduce_all(tf.abs(shifts[tf.newaxis] - shift[:, tf.newaxis]) < 1.5, axis=-1)
    return tf.minimum(tf.reduce_sum(tf.where(near, posterior, 0.0), axis=-1), 1.0)
