"""A trained model in files, and what such files of the other environment predict: `python -m tests.addons.exchange`."""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

import tfalign


def network():
    return tfalign.models.unet(input_channels=1, output_channels=2, filters=4, depth=2)


def inputs():
    return np.random.default_rng(3).uniform(0, 1, (2, 15, 18, 1)).astype(np.float32)


def write(folder):
    """Trains a network and saves it in every way that docs/coming-from-tensorflow-addons.md names."""
    folder.mkdir()
    rng = np.random.default_rng(4)
    images = rng.uniform(0, 1, (4, 16, 16, 1)).astype(np.float32)
    loss = tfalign.ShiftInvariantLoss(max_shift=2, warmup_steps=1)
    model = network()
    model.compile("adam", loss=loss, run_eagerly=True)
    model.fit(images, np.roll(np.repeat(images, 2, axis=-1), 1, axis=1), epochs=3, verbose=0)
    told = {"state": loss.state.numpy(), "drift": loss.drift, "tensorflow": tf.__version__}
    np.savez(folder / "truth.npz", prediction=model(inputs()), **told)
    np.savez(folder / "weights.npz", *model.get_weights())
    tfalign.export_serving(model, folder / "served", warmup=())
    model.save_weights(folder / "model.weights.h5")
    model.save(folder / "model.h5")


def read(folder, names):
    """Predictions by the name of the file, and the state of the loss, of files that were written elsewhere."""
    found = {}
    for name in names:
        if name == "served":
            serving = tf.saved_model.load(str(folder / "served/1")).signatures["serving_default"]
            found[name] = serving(inputs=tf.constant(inputs()))["prediction"].numpy()
            continue
        model = network()
        if name == "weights.npz":
            model.set_weights(list(np.load(folder / name).values()))
        else:
            model.load_weights(folder / name)
        found[name] = np.asarray(model(inputs()))
    loss = tfalign.ShiftInvariantLoss(max_shift=2)
    loss.state.assign(np.load(folder / "truth.npz")["state"])
    return {**found, "drift": loss.drift}


if __name__ == "__main__":
    # Writes into the second folder, reads the given files of the first, and keeps what they predict.
    theirs, mine = map(Path, sys.argv[1:3])
    write(mine)
    np.savez(mine / "found.npz", **read(theirs, sys.argv[3:]))
