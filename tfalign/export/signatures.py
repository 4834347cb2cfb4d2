"""The functions that a served model offers, traced."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfalign import _checks
from tfalign.export import images, tiles
from tfalign.ops import registration

_PYTHON_OPERATIONS = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}


class Signature(NamedTuple):
    """One function: traced, with the names of what goes in and comes out."""

    concrete: tf.types.experimental.ConcreteFunction
    inputs: dict[str, tf.TensorSpec]
    outputs: dict[str, tf.TensorSpec]


def prediction_signatures(model, axes, *, channels, steps=(), tile=None, offset=(), image_range=(0.0, 1.0)):
    """`serving_default`, and for images of up to four channels `encoded`.

    Args:
        model: a Keras model with one input and one output.
        axes: an `Axis` for each spatial axis; None gives the arrays to the model as they come.
        channels: of the raw input.
        steps: of the preprocessing, functions of `(batch, *spatial, channels)` float32.
        tile: `(size, overlap)` for each spatial axis, or None.
        offset: pixels `(d,)` by which the prediction lies too far down/right.
        image_range: the values of the darkest and brightest code of an image file.

    Returns:
        Name -> `Signature`.
    """
    rank = len(model.input_shape) - 2

    def network(grid):
        return model(grid, training=False)

    arrays = {"inputs": tf.TensorSpec([None] * (rank + 1) + [channels], tf.float32, name="inputs")}

    # A function, so that the graph of the network is written once for both signatures.
    @tf.function(input_signature=list(arrays.values()))
    def predict(inputs):
        for step in steps:
            inputs = step(inputs)
        grid = _checked(inputs, model.input_shape)
        if axes is None:
            return tf.cast(network(grid), tf.float32)
        prediction = tiles.predict(network, grid, axes, channels=model.output_shape[-1], tiles=tile)
        prediction = _moved_back(prediction, offset)
        return tf.ensure_shape(prediction, [None] * (rank + 1) + [model.output_shape[-1]])

    def predict_arrays(inputs):
        return {"prediction": predict(inputs)}

    def predict_encoded(files):
        return predict_arrays(images.decode(files, channels=channels, value_range=image_range))

    signatures = {"serving_default": _traced(predict_arrays, arrays)}
    if rank == 2 and channels <= 4:
        strings = {"images": tf.TensorSpec([None], tf.string, name="images")}
        signatures["encoded"] = _traced(predict_encoded, strings)
    return signatures


def register_signature(rank, channels, options):
    """`register`: a label is laid on a prediction, see `tfalign.register`.

    Args:
        rank: spatial axes of both.
        channels: of both.
        options: of `tfalign.register`.
    """

    def register(prediction, label):
        prediction, label = _comparable(prediction, label)
        found = registration.register(prediction, label, **options)
        aligned, mask = found.warp(label)
        return {
            "aligned": aligned,
            "mask": mask,
            "transform": found.transform,
            "translation": found.translation,
            "confidence": found.confidence,
        }

    shape = [None] * (rank + 1) + [channels]
    return _traced(register, {name: tf.TensorSpec(shape, tf.float32, name=name) for name in ("prediction", "label")})


def _traced(function, specs):
    def checked(**tensors):
        # A session takes whatever it is fed: three channels can pass through the convolution of one.
        return function(*(tf.ensure_shape(tensors[name], spec.shape) for name, spec in specs.items()))

    concrete = tf.function(checked).get_concrete_function(**specs)
    _check_operations(concrete)
    outputs = {
        name: tf.TensorSpec(value.shape, value.dtype, name=name) for name, value in concrete.structured_outputs.items()
    }
    return Signature(concrete, specs, outputs)


def _check_operations(concrete):
    """Refuses what needs the Python process that traced it."""
    graph = concrete.graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    found = sorted({node.op for node in nodes} & _PYTHON_OPERATIONS)
    if found:
        raise ValueError(
            _checks.message(
                "`model` and `preprocess` must be TensorFlow operations alone: no server runs Python.",
                {"operations": found},
                "Replace tf.py_function and tf.numpy_function.",
            )
        )


def _comparable(prediction, label):
    """Both, of pixels, and one label for each prediction."""
    checks = [
        tf.debugging.assert_positive(
            tf.shape(tensor)[:-1], message=f"`{name}` must hold one image at least, of one pixel at least:"
        )
        for name, tensor in (("prediction", prediction), ("label", label))
    ]
    with tf.control_dependencies(checks):
        same = tf.debugging.assert_equal(
            tf.shape(label)[0], tf.shape(prediction)[0], message="`label` must hold as many images as `prediction`:"
        )
    with tf.control_dependencies([same]):
        return tf.identity(prediction), tf.identity(label)


def _checked(grid, wanted):
    """What a preprocessing gave, which must be what the model takes."""
    grid = tf.cast(grid, tf.float32)
    if grid.shape.rank not in (None, len(wanted)) or grid.shape[-1] not in (None, wanted[-1]):
        raise ValueError(
            _checks.message(
                "`preprocess` must give what the model takes.",
                {"its shape": _checks.shape_of(grid), "model.input_shape": wanted},
                "Where it takes other channels than it gives, name `input_channels`.",
            )
        )
    return tf.ensure_shape(grid, [None] * (len(wanted) - 1) + [wanted[-1]])


def _moved_back(prediction, offset):
    """The prediction read `offset` pixels further on, linear between pixels; beyond its border, the border."""
    for axis, amount in enumerate(offset, start=1):
        whole = int(np.floor(amount))
        fraction = float(amount) - whole
        last = tf.shape(prediction)[axis] - 1
        at = tf.range(last + 1) + whole
        moved = tf.gather(prediction, tf.clip_by_value(at, 0, last), axis=axis) if amount else prediction
        if fraction:
            beyond = tf.gather(prediction, tf.clip_by_value(at + 1, 0, last), axis=axis)
            moved = (1.0 - fraction) * moved + fraction * beyond
        prediction = moved
    return prediction
