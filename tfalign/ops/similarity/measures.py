"""The measures by name, and what each says about how likely a shift is."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tfalign.ops.similarity import information, moments, phase, streaming


def _gaussian(unexplained):
    """Residuals of unknown variance, proportional to `unexplained`."""
    floor = 1e-6 * tf.maximum(tf.reduce_max(unexplained, axis=-1, keepdims=True), 1e-30)
    return -0.5 * tf.math.log(tf.maximum(unexplained, floor))


def _of_correlation(scores):
    return _gaussian(1.0 - tf.square(tf.maximum(scores, 0.0)))


def _of_squared_difference(scores):
    return _gaussian(-scores)


def _of_absolute_difference(scores):
    """Laplace residuals of unknown scale."""
    return 2.0 * _gaussian(-scores)


def _as_it_is(scores):
    return scores


class Measure(NamedTuple):
    """A similarity.

    Attributes:
        score_map: `(grids, sums)` -> `(batch, 1, *window)`, higher is better.
        evidence_map: the map that tells how likely a shift is; the score map itself where a likelihood is known.
        log_likelihood: of the evidence map's values, per independent pixel, up to a constant.
    """

    score_map: Callable
    evidence_map: Callable = moments.ncc
    log_likelihood: Callable = _of_correlation


MEASURES = {
    "ncc": Measure(moments.ncc),
    "cc": Measure(moments.cc),
    "mse": Measure(moments.mse, moments.mse, _of_squared_difference),
    "mae": Measure(streaming.mae, streaming.mae, _of_absolute_difference),
    "cross_entropy": Measure(moments.cross_entropy, moments.cross_entropy, _as_it_is),
    "overlap": Measure(moments.overlap),
    "mi": Measure(information.mi, information.mi, _as_it_is),
    "nmi": Measure(information.nmi),
    "joint_entropy": Measure(information.joint_entropy, information.joint_entropy, _as_it_is),
    "phase": Measure(phase.phase),
}
