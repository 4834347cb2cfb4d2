"""Moves under which a predictor should give what it gives without them, moved alike."""

import tensorflow as tf

from tfalign import _checks
from tfalign.ops import displacements, geometry, resample

EQUIVARIANCES = ("flip", "rotate", "elastic")
_ELASTIC_RMS = 3.0  # px, of the moves
_ELASTIC_SPACING = 16  # px, between their control points


def moved_alike(inputs, prediction, kinds, *, seed):
    """Inputs and predictions moved by the same random moves, one for each sample, and the mask of the latter."""
    replica = tf.distribute.get_replica_context()
    seed = [seed, 0 if replica is None else replica.replica_id_in_sync_group]
    if "rotate" in kinds and inputs.shape.rank == 3:
        requirement = "Signals have no rotations."
        raise ValueError(_checks.message(requirement, {"equivariances": kinds}, 'Leave "rotate" out.'))
    sizes = inputs.shape[1:-1], prediction.shape[1:-1]
    if kinds != ("flip",) and any(given and found and found > given for given, found in zip(*sizes)):
        requirement = 'Pixels of input and prediction must be of one size for "rotate" and "elastic".'
        received = {"x.shape": _checks.shape_of(inputs), "y_pred.shape": _checks.shape_of(prediction)}
        raise ValueError(_checks.message(requirement, received, 'Use equivariances=("flip",).'))
    further = tf.random.experimental.stateless_split(seed, 2)
    rank, batch = inputs.shape.rank - 2, tf.shape(inputs)[0]
    signs = tf.where(tf.random.stateless_uniform([batch, rank], seed) < 0.5, -1.0, 1.0)
    if kinds == ("flip",):
        for axis in range(rank):
            flips = tf.reshape(signs[:, axis] < 0.0, [-1] + [1] * (rank + 1))
            inputs, prediction = (tf.where(flips, tf.reverse(one, [axis + 1]), one) for one in (inputs, prediction))
        return inputs, prediction, tf.ones_like(prediction[..., 0])
    angles = tf.random.stateless_uniform([batch, len(geometry.PLANES[rank])], further[0], -180.0, 180.0)
    transform = geometry.make(
        tf.zeros([batch, rank]),
        rotation=angles if "rotate" in kinds else None,
        scale=signs if "flip" in kinds else None,
    )
    shape = geometry.spatial_shape(inputs)
    field = tf.zeros([batch, *shape, rank])
    if "elastic" in kinds:
        coarse = [-(-size // _ELASTIC_SPACING) for size in shape]
        # Splines of white noise have about half its variance for each axis.
        drawn = _ELASTIC_RMS * 2.0 ** (rank / 2) * tf.random.stateless_normal([batch, *coarse, rank], further[1])
        field = displacements.from_control_points(drawn, shape=shape, spacing=_ELASTIC_SPACING)
    moved, _ = resample.warp(inputs, displacements.transformed(field, transform))
    field = resample.crop_or_pad(field, geometry.spatial_shape(prediction))
    return moved, *resample.warp(prediction, displacements.transformed(field, transform))
