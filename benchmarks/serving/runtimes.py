"""An export in other runtimes: how far their answers are from TensorFlow's, and how long they take.

`python -m benchmarks.serving.runtimes [VERSION FOLDER]` prints a Markdown table. It needs an environment of its own:
`pip install "tensorflow==2.15.*" openvino onnxruntime tf2onnx "onnx<1.17" "protobuf<5"`.
"""

import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import tensorflow as tf

SHAPES = ((1, 256, 256), (4, 96, 96), (1, 101, 67), (1, 1, 1))
REPEATS = 20


def tensorflow_runner(folder):
    """The signature as TensorFlow's Python runs it."""
    signature = tf.saved_model.load(folder).signatures["serving_default"]
    return lambda inputs: signature(inputs=tf.constant(inputs))["prediction"].numpy()


def openvino_runner(folder):
    """OpenVINO reads the folder as it is."""
    # By default it computes in bfloat16 where the processor can.
    model = openvino.Core().compile_model(folder, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda inputs: model({"inputs": inputs})["prediction"]


def onnx_runner(folder):
    """ONNX Runtime, through tf2onnx."""
    with tempfile.TemporaryDirectory() as place:
        path = str(Path(place, "model.onnx"))
        options = ["--saved-model", folder, "--signature_def", "serving_default", "--output", path, "--opset", "17"]
        subprocess.run([sys.executable, "-m", "tf2onnx.convert", *options], check=True, capture_output=True)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["prediction"], {"inputs": inputs})[0]


RUNNERS = {"openvino": openvino_runner, "onnxruntime": onnx_runner}


def milliseconds(run, inputs):
    """The median of several calls."""
    run(inputs)
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run(inputs)
        times.append(time.perf_counter() - began)
    return 1000.0 * float(np.median(times))


def main(folder="saved_models/tissue_stain/1"):
    """Prints the table."""
    rng = np.random.default_rng(0)
    grids = {shape: rng.random((*shape, 1), np.float32) for shape in SHAPES}
    reference = tensorflow_runner(folder)
    print(f"TensorFlow {tf.__version__}: {milliseconds(reference, grids[SHAPES[0]]):.0f} ms for {SHAPES[0]}\n")
    print("| runtime | " + " | ".join("x".join(map(str, shape)) for shape in SHAPES) + f" | ms, {SHAPES[0]} |")
    print("|---" * (len(SHAPES) + 2) + "|")
    for name, make in RUNNERS.items():
        run = make(folder)
        distances = [float(np.abs(run(grid) - reference(grid)).max()) for grid in grids.values()]
        cells = [f"{distance:.1e}" for distance in distances] + [f"{milliseconds(run, grids[SHAPES[0]]):.0f}"]
        print(f"| {name} {metadata.version(name)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(*sys.argv[1:])
