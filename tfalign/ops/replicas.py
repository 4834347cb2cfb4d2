"""What replicas of a `tf.distribute` strategy know together, from inside its `run`."""

import tensorflow as tf


def count():
    """How many replicas run in step with this one, itself among them; 1 outside of `strategy.run`."""
    replica = tf.distribute.get_replica_context()
    return 1 if replica is None else replica.num_replicas_in_sync


def summed(tensors):
    """A list of tensors, each summed over all replicas.

    Must be called by every replica, and not inside a loop or a condition of the graph.
    """
    if count() == 1:
        return tensors
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensors)


def gathered(tensors):
    """A list of tensors with the samples of all replicas, and a function that takes this replica's own out of one."""
    replica = tf.distribute.get_replica_context()
    samples = replica.all_gather(tf.shape(tensors[0])[:1], axis=0)
    number = replica.replica_id_in_sync_group
    first = tf.reduce_sum(tf.where(tf.range(tf.size(samples)) < number, samples, 0))
    everyone = [tf.ensure_shape(replica.all_gather(one, axis=0), [None, *one.shape[1:]]) for one in tensors]
    return everyone, lambda one: one[first : first + samples[number]]
