"""The measures by name, and what each says about how likely a shift is."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from tfalign.ops.similarity import information, moments, phase, streaming


class Measure(NamedTuple):
    """A similarity.

    Attributes:
        score_map: `(grids, sums)` -> `(batch, 1, *window)`, higher is better.
        log_likelihood: of the scores, per independent pixel, up to a constant; None: that of "ncc" is taken.
    """

    score_map: Callable
    log_likelihood: Callable | None = None


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


MEASURES = {
    "ncc": Measure(moments.ncc, _of_correlation),
    "cc": Measure(moments.cc),
    "mse": Measure(moments.mse, _of_squared_difference),
    "mae": Measure(streaming.mae, _of_absolute_difference),
    "cross_entropy": Measure(moments.cross_entropy, _as_it_is),
    "overlap": Measure(moments.overlap),
    "mi": Measure(information.mi, _as_it_is),
    "nmi": Measure(information.nmi),
    "joint_entropy": Measure(information.joint_entropy, _as_it_is),
    "phase": Measure(phase.phase),
}
