"""What a measure says of a pair as it lies: its log-likelihood, and the change that it wants of every moved value."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tfalign.ops.similarity import parzen


class View(NamedTuple):
    """What a measure says of an aligned pair.

    Attributes:
        nats: `(batch,)`, log-likelihood per pixel, higher is better.
        pull: `(batch, *spatial, channels)`, the change wanted of every moved value, times its weight.
        weight: the weights, with channels or without.
        trust: `(batch,)`, how much a sample's equations count beside another's.
        common: moved values without their mean where the measure ignores their gain and offset, else None.
    """

    nats: tf.Tensor
    pull: tf.Tensor
    weight: tf.Tensor
    trust: tf.Tensor
    common: tf.Tensor | None


def _total(values):
    return tf.reduce_sum(values, axis=list(range(1, values.shape.rank)), keepdims=True)


def _scalar(values):
    return tf.reshape(values, [-1])


def _without_mean(values, weight):
    axes = list(range(1, values.shape.rank - 1))
    count = tf.reduce_sum(weight, axis=axes, keepdims=True)
    return values - tf.math.divide_no_nan(tf.reduce_sum(values * weight, axis=axes, keepdims=True), count)


def by_correlation(fixed, moved, weight):
    """The fixed side is regressed on the moved one: the residual's share is 1 - ncc^2."""
    fixed, moved = _without_mean(fixed, weight), _without_mean(moved, weight)
    energy = _total(weight * tf.square(fixed))
    gain = tf.math.divide_no_nan(_total(weight * fixed * moved), _total(weight * tf.square(moved)))
    gain = tf.maximum(gain, 0.0)
    residual = fixed - gain * moved
    share = tf.where(energy > 0.0, tf.math.divide_no_nan(_total(weight * tf.square(residual)), energy), 1.0)
    share = tf.maximum(share, 1e-10)
    return View(
        nats=_scalar(-0.5 * tf.math.log(share)),
        pull=tf.math.divide_no_nan(weight * residual, gain),
        weight=weight,
        trust=_scalar(tf.math.divide_no_nan(tf.square(gain) * _total(weight), share * energy)),
        common=moved,
    )


def by_squares(fixed, moved, weight):
    """The residuals are Gaussian, of a variance that is not known."""
    residual = fixed - moved
    count = tf.maximum(_total(weight), 1.0)
    spread = _total(weight * tf.square(_without_mean(fixed, weight))) / count
    mean = _total(weight * tf.square(residual)) / count + 1e-10 * spread + 1e-36
    return View(_scalar(-0.5 * tf.math.log(mean)), weight * residual, weight, _scalar(1.0 / mean), None)


def by_absolutes(fixed, moved, weight):
    """Reweighted squares, whose stationary point is that of the absolutes."""
    residual = fixed - moved
    count = tf.maximum(_total(weight), 1.0)
    spread = _total(weight * tf.abs(_without_mean(fixed, weight))) / count
    mean = _total(weight * tf.abs(residual)) / count + 1e-5 * spread + 1e-18
    weight = weight / tf.maximum(tf.abs(residual), 0.1 * mean)
    return View(_scalar(-tf.math.log(mean)), weight * residual, weight, _scalar(1.0 / mean), None)


def by_information(fixed, moved, weight):
    """Mutual information by Parzen windows; the length of the step is that of two Gaussian variables."""
    with tf.GradientTape() as tape:
        tape.watch(moved)
        nats = parzen.mutual_information(fixed, moved, weight)
    slope = tape.gradient(nats, moved)
    centered = _without_mean(moved, weight)
    unexplained = tf.reshape(tf.exp(-2.0 * nats), tf.shape(_total(weight)))
    length = _total(weight * tf.square(centered)) * unexplained / tf.maximum(1.0 - unexplained, 1e-3)
    trust = tf.math.divide_no_nan(_total(weight), length)
    return View(nats, length * slope, weight, _scalar(trust), centered)


VIEWS: dict[str, Callable] = {
    "ncc": by_correlation,
    "cc": by_correlation,
    "phase": by_correlation,
    "mse": by_squares,
    "cross_entropy": by_squares,
    "overlap": by_squares,
    "mae": by_absolutes,
    "mi": by_information,
    "nmi": by_information,
    "joint_entropy": by_information,
}
