"""Nothing that registration makes is as large as shifts x pixels."""

import math

import pytest
import tensorflow as tf

import tfalign
from tfalign.ops import registration


def largest(graph):
    """Elements of the largest tensor of a traced graph and the functions that it calls."""
    sizes, functions = [1], [function.graph for function in graph._functions.values() if hasattr(function, "graph")]
    for operation in graph.get_operations():
        for output in operation.outputs:
            # Sizes that only the run knows are slices, inside a loop, of what is known outside.
            if output.shape.is_fully_defined():
                sizes.append(math.prod(output.shape.as_list()))
    return max([*sizes, *map(largest, functions)])


@pytest.mark.parametrize("similarity", registration.SIMILARITIES)
@pytest.mark.parametrize("subpixel", [False, True])
def test_no_tensor_of_shifts_times_pixels(similarity, subpixel):
    batch, size, bound = 2, 96, 16
    window, padded = (2 * bound + 1) ** 2, (size + 2 * bound) ** 2

    @tf.function
    def register(fixed, moving):
        return tfalign.register(fixed, moving, max_shift=bound, similarity=similarity, subpixel=subpixel)

    spec = tf.TensorSpec([batch, size, size, 1], tf.float32)
    found = largest(register.get_concrete_function(spec, spec).graph)
    assert found >= batch * window
    # One grid for each level of the histograms, complex; a window for each pair of them is a fraction of it.
    assert found <= batch * padded * 40 < batch * window * size**2 / 10
