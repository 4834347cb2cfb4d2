"""No tensor of shifts times pixels: what a registration holds beside its inputs is a score map and some spectra."""

import numpy as np
import pytest
import tensorflow as tf

import tfalign
from tfalign.ops.registration import SIMILARITIES

SIZE, BOUND = 64, 8
SHIFTS = (2 * BOUND + 1) ** 2


def largest(graph):
    """Values in the largest tensor of a graph and of all that it calls."""
    graphs = [graph, *(function.graph for function in graph._functions.values() if hasattr(function, "graph"))]
    sizes = [
        int(np.prod(output.shape.as_list()))
        for one in graphs
        for operation in one.get_operations()
        for output in operation.outputs
        if output.shape.is_fully_defined()
    ]
    return max(sizes)


def traced(register):
    spec = tf.TensorSpec((1, SIZE, SIZE, 1), tf.float32)
    return tf.function(register).get_concrete_function(spec, spec).graph


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_no_tensor_of_shifts_times_pixels(similarity, masked):
    def register(fixed, moving):
        mask = tf.cast(moving > 0.1, tf.float32) if masked else None
        return tfalign.register(
            fixed, moving, max_shift=BOUND, similarity=similarity, moving_mask=mask, return_map=True
        ).score_map

    assert largest(traced(register)) < 0.5 * SHIFTS * SIZE**2


@pytest.mark.parametrize("in_a_loop", [False, True])
def test_such_a_tensor_would_be_seen(in_a_loop):
    def every_shift(fixed, moving):
        moved = tf.stack([tf.roll(moving, [y, x], [1, 2]) for y in range(17) for x in range(17)])
        return tf.reduce_mean(tf.abs(moved - fixed))

    def looped(fixed, moving):
        return tf.map_fn(lambda step: step * every_shift(fixed, moving), tf.range(3.0))

    assert largest(traced(looped if in_a_loop else every_shift)) >= SHIFTS * SIZE**2
