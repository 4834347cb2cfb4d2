import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# What is compiled runs once or twice here: half the time of XLA goes into making it fast.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfalign import _keras

# A compilation of TensorFlow 2.15 keeps 0.1 GB for good, 10 GB in a worker: there only `fit` and a few more compile.
MODES = ("eager", "graph", "xla") if _keras.IS_KERAS_3 else ("eager", "graph")


def in_modes(cases, names=None):
    """`(mode, *case)` for `run`, given indirectly: eager for each case, graph and XLA for one of each first entry, or
    of those in `names` alone.

    Tracing and compiling take seconds, and a compilation a tenth of a gigabyte that is never given back.
    """
    names = list(dict.fromkeys(case[0] for case in cases)) if names is None else names
    of_name = {name: [case for case in cases if case[0] == name] for name in names}
    once = [of_name[name][number % len(of_name[name])] for number, name in enumerate(names)]
    return [(mode, *case) for case in cases for mode in MODES if mode == "eager" or case in once]


# Before anything touches the devices; operations stay on the first unless a strategy places them.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture(scope="session")
def two_replicas():
    """The one strategy of the process: a second one breaks even Keras's own losses."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session", autouse=True)
def only_those_that_ask_compile():
    """Keras 3 compiles every `fit` with XLA unless told otherwise, for half a minute: here `jit_compile=True` does."""
    with pytest.MonkeyPatch.context() as patch:
        if _keras.IS_KERAS_3:
            patch.setattr(keras.src.trainers.trainer.Trainer, "_resolve_auto_jit_compile", lambda _: False)
        yield


@pytest.fixture(autouse=True)
def same_weights_at_each_run():
    """Initial weights, shuffling and dropout of a test do not depend on the tests before it."""
    keras.utils.set_random_seed(20240607)


@pytest.fixture
def rng():
    return np.random.default_rng(20240607)


@pytest.fixture(params=MODES)
def run(request):
    """Calls a function of tensors eagerly, as a graph, or compiled by XLA."""

    compiled = {}

    def call(function, *arguments):
        tensors = [tf.convert_to_tensor(argument) for argument in arguments]
        if request.param == "eager":
            return function(*tensors)
        # One for each function: a test that calls in a loop must not trace, or compile, at every turn.
        if function not in compiled:
            compiled[function] = tf.function(function, jit_compile=request.param == "xla", autograph=False)
        return compiled[function](*tensors)

    return call
