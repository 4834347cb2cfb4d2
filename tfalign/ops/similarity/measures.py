"""The measures by name, and what each says about how likely a shift is."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfalign.ops.similarity import information, moments, phase, streaming


def _by_correlation(correlation, enough, effective):
    """Residuals of unknown variance after a regression."""
    unexplained = tf.where(enough, 1.0 - tf.square(tf.maximum(correlation, 0.0)), 1.0)
    floor = 1e-6 * tf.maximum(tf.reduce_max(unexplained, axis=-1, keepdims=True), 1e-30)
    return -0.5 * effective[:, tf.newaxis] * tf.math.log(tf.maximum(unexplained, floor))


def _by_cross_entropy(scores, enough, effective):
    """The score is the log-likelihood of a pixel; a shift that does not count must not set the scale."""
    top = tf.reduce_max(tf.where(enough, scores, scores.dtype.min), axis=-1, keepdims=True)
    return effective[:, tf.newaxis] * tf.where(enough, scores, tf.where(top > scores.dtype.min, top, 0.0))


def _by_information(information, enough, effective):
    """The rarity of so much mutual information where sides are independent: a chi-squared variable's large deviation.

    Its mean, half the degrees of freedom, is taken from the window itself: most of its shifts are wrong.
    """
    told = tf.where(enough, effective[:, tf.newaxis] * information, np.inf)
    middle = tf.reduce_sum(tf.cast(enough, tf.int32), axis=-1, keepdims=True) // 2
    chance = tf.gather(tf.sort(told, axis=-1), tf.minimum(middle, tf.shape(told)[1] - 1), batch_dims=1)
    chance = tf.maximum(tf.where(tf.math.is_finite(chance), chance, 0.0), 1e-6)
    told = tf.where(enough, tf.maximum(told, chance), chance)
    return told - chance - chance * tf.math.log(told / chance)


def _as_it_is(scores):
    return scores


def _of_information(information):
    """Minus the share of variance that is left unexplained by as much information between Gaussian variables."""
    top = tf.reduce_max(information, axis=-1, keepdims=True)
    return -tf.exp(-2.0 * (information - tf.where(tf.math.is_finite(top), top, 0.0)))


class Measure(NamedTuple):
    """A similarity.

    Attributes:
        score_map: `(grids, sums)` -> `(batch, 1, *window)`, higher is better.
        telling_map: the same, of the measure that tells how likely each shift is, and where within a pixel.
        log_likelihood: `(its values, which of them count, independent pixels)` -> nats, up to a constant.
        curved: makes of its values a map that is like a parabola around its maximum.
    """

    score_map: Callable
    telling_map: Callable = moments.ncc
    log_likelihood: Callable = _by_correlation
    curved: Callable = _as_it_is


_INFORMATION = (information.mi, _by_information, _of_information)
MEASURES = {
    "ncc": Measure(moments.ncc),
    "cc": Measure(moments.cc),
    "mse": Measure(moments.mse),
    "mae": Measure(streaming.mae),
    "cross_entropy": Measure(moments.cross_entropy, moments.cross_entropy, _by_cross_entropy),
    "overlap": Measure(moments.overlap),
    "mi": Measure(information.mi, *_INFORMATION),
    "nmi": Measure(information.nmi, *_INFORMATION),
    "joint_entropy": Measure(information.joint_entropy, *_INFORMATION),
    "phase": Measure(phase.phase),
}
