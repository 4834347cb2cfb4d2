"""The rotation, scale and shear that all labels have in common: the network's own, pinned as its drift is.

Turn the network's output by an angle and every registered rotation turns along, so the mean of each parameter over many
labels is the network's own. A Kalman filter follows it: a batch's mean counts as much as such means scatter, inside the
batch and between batches. What is taken out of the labels pulls the network back, with the inertia of the usual
optimizers, so the mean is expected to follow; a filter that does not expect that keeps pulling when the network is long
back, and swings. Where nothing follows (a convolutional network on random crops cannot turn) the mean that is taken out
is a fifth too small.

A state is `(AXES, FIELDS, 3)`: rotation in radians, logarithm of the scale, shear in radians, one for each axis or
plane of `tfalign.ops.geometry`; those that a rank lacks stay 0.
"""

import math

import numpy as np
import tensorflow as tf

from tfalign.ops import geometry

AXES = 3
FIELDS = 6  # mean, its variance, push, the last batch's mean, running sums of scatter between batches and its weights
COLUMNS = FIELDS * 3

_FIRST_VARIANCE = 4e-4  # 1 degree, 2 %
_MEASUREMENT_FLOOR = 4e-6  # variance of a batch's mean when nothing scatters: 0.1 degrees, 0.2 %
_WANDER = 4e-6  # per batch
_SCATTER_MEMORY = 0.95  # per batch
_INERTIA = 0.9  # per batch, of the push that what is taken out gives
_FOLLOWING = 0.1  # share of the push that a network follows in one step


def initial(max_rotation, max_scale, max_shear):
    """The state before the first batch; parameters are taken to fill their bounds evenly until they are seen."""
    bounds = np.array([math.radians(max_rotation), math.log1p(max_scale), math.radians(max_shear)])
    zeros = np.zeros((AXES, 3))
    fields = [zeros, zeros + _FIRST_VARIANCE, zeros, zeros, zeros + 2.0 * bounds**2 / 3.0, zeros + 2.0]
    return tf.constant(np.stack(fields, axis=1), tf.float32)


def parameters(transform):
    """`(batch, AXES, 3)`, float32: rotation, logarithm of the scale, shear of transforms `(batch, d+1, d+1)`."""
    found = geometry.decompose(tf.cast(transform, tf.float32))
    radians = math.pi / 180.0
    kinds = found.rotation * radians, tf.math.log(tf.maximum(found.scale, 1e-6)), found.shear * radians
    return tf.stack([tf.pad(kind, [[0, 0], [0, AXES - kind.shape[-1]]]) for kind in kinds], axis=-1)


def update(state, weight, total, squares):
    """The state after one batch.

    Args:
        state: `(AXES, FIELDS, 3)`.
        weight: sum of the weights, a scalar > 0.
        total, squares: `(AXES, 3)` weighted sums of the batch's parameters, and of their squares.
    """
    mean, variance, push, previous, scatter, scatter_weight = tf.unstack(state, axis=1)
    batch_mean = total / weight
    within = tf.maximum(squares / weight - tf.square(batch_mean), 0.0) / weight
    scatter = _SCATTER_MEMORY * scatter + tf.square(batch_mean - previous) / 2.0
    scatter_weight = _SCATTER_MEMORY * scatter_weight + 1.0
    noise = tf.maximum(within, scatter / scatter_weight) + _MEASUREMENT_FLOOR
    push = _INERTIA * push + (1.0 - _INERTIA) * mean
    mean, variance = mean - _FOLLOWING * push, variance + _WANDER
    gain = variance / (variance + noise)
    mean += gain * (batch_mean - mean)
    return tf.stack([mean, (1.0 - gain) * variance, push, batch_mean, scatter, scatter_weight], axis=1)


def transform(state, translation):
    """`(1, d+1, d+1)`: what the network does to its input, with a drift of `translation` `(1, d)` pixels."""
    rank = translation.shape[-1]
    planes = len(geometry.PLANES[rank])
    mean = tf.cast(state[:, 0], translation.dtype)[tf.newaxis]
    degrees = 180.0 / math.pi
    return geometry.make(
        translation,
        rotation=degrees * mean[:, :planes, 0] if planes else None,
        scale=tf.exp(mean[:, :rank, 1]),
        shear=degrees * mean[:, :planes, 2] if planes else None,
    )
