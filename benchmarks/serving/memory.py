"""What tiles save: memory and time of one prediction, whole and tiled.

`python -m benchmarks.serving.memory` prints a Markdown table; each prediction has a process of its own.
"""

import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import tensorflow as tf

import tfalign

SIZES = (1024, 2048, 4096)
KINDS = {"whole": {}, "tiles of 512": {"tile": 512, "tile_overlap": 128}}


def peak():
    """Of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def predict(folder, size):
    """Prints what one prediction adds to the memory of a process, MiB, and its seconds."""
    signature = tf.saved_model.load(folder).signatures["serving_default"]
    inputs = tf.random.stateless_uniform((1, size, size, 1), seed=(0, 0))
    signature(inputs=inputs[:, :64, :64])
    before, began = peak(), time.perf_counter()
    signature(inputs=inputs)
    print(f"{peak() - before:.0f} {time.perf_counter() - began:.1f}")


def main():
    """Prints the table."""
    model = tfalign.models.unet(filters=16, depth=3, output_channels=3)
    weights = np.random.default_rng(0)
    model.set_weights([weights.normal(0.0, 0.05, weight.shape) for weight in model.get_weights()])
    print("| image | " + " | ".join(f"{kind}: MiB | s" for kind in KINDS) + " |")
    print("|---" * (2 * len(KINDS) + 1) + "|")
    with tempfile.TemporaryDirectory() as place:
        paths = {
            kind: str(tfalign.export_serving(model, place, warmup=(), **options)) for kind, options in KINDS.items()
        }
        for size in SIZES:
            cells = []
            for path in paths.values():
                command = [sys.executable, "-m", "benchmarks.serving.memory", path, str(size)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                cells += done.stdout.split()
            print(f"| {size} x {size} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        predict(sys.argv[1], int(sys.argv[2]))
    else:
        main()
