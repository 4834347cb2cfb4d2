import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest
import tensorflow as tf

MODES = ("eager", "graph", "xla")


@pytest.fixture
def rng():
    return np.random.default_rng(20240607)


@pytest.fixture(params=MODES)
def run(request):
    """Calls a function of tensors eagerly, as a graph, or compiled by XLA."""

    def call(function, *arguments):
        tensors = [tf.convert_to_tensor(argument) for argument in arguments]
        if request.param == "eager":
            return function(*tensors)
        return tf.function(function, jit_compile=request.param == "xla")(*tensors)

    return call
