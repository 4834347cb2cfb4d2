"""Sample and warm-up requests of a served model."""

import base64
import importlib
import json

import numpy as np
import tensorflow as tf

from tfalign import _checks

WARMUP_FILE = "tf_serving_warmup_requests"


def serving_api():
    """The protos of TensorFlow Serving, modules `(predict_pb2, prediction_log_pb2)`, or None where they are missing."""
    try:
        return tuple(
            importlib.import_module(f"tensorflow_serving.apis.{name}") for name in ("predict_pb2", "prediction_log_pb2")
        )
    except ImportError:
        return None


def needed_serving_api():
    """The same; an error names the extra."""
    found = serving_api()
    if found is None:
        raise ImportError(
            _checks.message(
                "`warmup` needs the package tensorflow-serving-api.",
                {"warmup": "sizes"},
                'Run pip install "tfalign[serving]", or give warmup=().',
            )
        )
    return found


def sample_inputs(specs, sizes, channels, *, seed=0):
    """Random values in [0, 1], a batch of 1, for the inputs of a signature; for a string the PNG of such an image.

    Args:
        specs: input name -> `tf.TensorSpec`, arrays `(batch, *spatial, channels)` or strings `(batch,)`.
        sizes: spatial sizes.
        channels: of an image in a file.
        seed: of the values.

    Returns:
        Input name -> array.
    """
    rng = np.random.default_rng(seed)
    return {
        name: png(rng.random((1, *sizes, channels)))
        if spec.dtype == tf.string
        else rng.random((1, *sizes, spec.shape[-1]), np.float32)
        for name, spec in specs.items()
    }


def png(images):
    """8-bit PNG files, `(batch,)` bytes, of `(batch, rows, cols, channels)` in [0, 1]."""
    codes = np.round(255.0 * images).astype(np.uint8)
    return np.array([tf.io.encode_png(image).numpy() for image in codes], object)


def predict_request(name, signature, inputs):
    """A `PredictRequest` for the gRPC service."""
    predict_pb2, _ = needed_serving_api()
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return request


def rest_request(signature, inputs):
    """The JSON body of a predict call, in the row format: an object, or the value alone where there is one input."""
    (batch,) = {len(value) for value in inputs.values()}
    rows = [{name: _json_value(value[row]) for name, value in inputs.items()} for row in range(batch)]
    if len(inputs) == 1:
        rows = [next(iter(row.values())) for row in rows]
    return json.dumps({"signature_name": signature, "instances": rows})


def _json_value(value):
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode("ascii")}
    return np.round(value.astype(np.float64), 3).tolist()


def write_warmup(path, requests):
    """Writes requests as the TFRecord of `PredictionLog` that TF Serving replays when it loads a model."""
    _, prediction_log_pb2 = needed_serving_api()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())
