"""The same small training everywhere: in one process, and as a program, by each of several workers.

    python training.py FOLDER EPOCH [SERVICE]

trains and writes `result-<number of the worker>.npz`; the last worker is killed in that epoch, if there is one. With
the address of a `tf.data` service it then trains on that, and writes `service-<number of the worker>.npz`.
"""

import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import keras
import numpy as np
import tensorflow as tf

import tfalign
from tfalign import distributed
from tfalign.data import pipeline
from tfalign.data.cutting import Cutting

EPOCHS, BATCH = 3, 4


def scenes():
    """Inputs, and labels that lie up to 2 px off, with a margin."""
    rng = np.random.default_rng(20240607)
    field = rng.uniform(0, 1, (10, 40, 40, 1)).astype(np.float32)
    labels = [one[10 - y : 30 - y, 10 - x : 30 - x] for one, (y, x) in zip(field, rng.integers(-2, 3, (10, 2)))]
    return field[:, 12:28, 12:28], np.stack(labels)


def model_in(scope, loss=None):
    """A network with seeded weights, compiled under a strategy."""
    keras.utils.set_random_seed(7)
    with scope.scope():
        model = keras.Sequential([keras.Input((None, None, 1)), keras.layers.Conv2D(1, 3, padding="same")])
        loss = loss or tfalign.ShiftInvariantLoss(max_shift=4, warmup_steps=2)
        model.compile(keras.optimizers.Adam(1e-3), loss=loss, metrics=[tfalign.metrics.InPlace("mae")])
    return model


def batches():
    """Global batches, of which the last is smaller, in another order in every epoch."""
    return tf.data.Dataset.from_tensor_slices(scenes()).shuffle(10, seed=3).batch(BATCH)


def train(model, folder, *more):
    """Trains for all epochs; the history."""
    return distributed.fit(
        model,
        batches(),
        epochs=EPOCHS,
        validation_data=tf.data.Dataset.from_tensor_slices(scenes()).batch(BATCH),
        callbacks=[
            tfalign.callbacks.AlignmentLog(file=folder / "alignment.csv"),
            keras.callbacks.CSVLogger(folder / "log.csv"),
            keras.callbacks.ModelCheckpoint(str(folder / "latest.keras")),
            *more,
        ],
        checkpoints=folder / "checkpoints",
    ).history


def result(model, history):
    """What is compared, by name."""
    weights = {f"weight {number}": np.asarray(one) for number, one in enumerate(model.get_weights())}
    state = {"state": model.loss.state.numpy(), "step": np.asarray(model.optimizer.iterations.numpy())}
    return {**weights, **state, **{name: np.asarray(values) for name, values in history.items()}}


def cached(folder):
    """Patches in a cache, each with a value of its own at its first pixel; 25 of them."""
    rng = np.random.default_rng(3)
    picture = rng.uniform(0, 1, (40, 40, 1)).astype(np.float32)
    return pipeline.prepare(
        [("one", picture, picture)], folder / "cache", Cutting(patch_size=8, fractions=(1.0, 0.0, 0.0)), workers=0
    )


def train_by_service(scope, folder, address):
    """Trains for two epochs on what the `tf.data` service at `address` gives; the patches of each that came here."""
    cache, seen = cached(folder), [[], []]

    def batches(context, epoch):
        data = pipeline.dataset(
            cache, "train", batch_size=2, max_blank=1.0, drop_remainder=False, seed=epoch, service=address,
            part=(context.input_pipeline_id, context.num_input_pipelines),
        )  # fmt: skip

        def noted(values):
            seen[epoch].extend(values[:, 0, 0, 0].tolist())
            return values

        def note(inputs, labels):
            return tf.ensure_shape(tf.numpy_function(noted, [inputs], tf.float32), inputs.shape), labels

        return data.map(note)

    with scope.scope():
        model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(1, 3, padding="same")])
        model.compile("sgd", loss="mae")
    losses = distributed.fit(model, batches, epochs=2).history["loss"]
    return {"epoch 0": seen[0], "epoch 1": seen[1], "losses": losses, "steps": model.optimizer.iterations.numpy()}


class Kill(keras.callbacks.Callback):
    """Ends the process, as `kill -9` does, after the first step of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch, self.is_now = epoch, False

    def on_epoch_begin(self, epoch, logs=None):
        """Whether it is time."""
        self.is_now = epoch == self.epoch

    def on_train_batch_end(self, batch, logs=None):
        """Ends it."""
        if self.is_now:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder, epoch, service=None):
    """A worker."""
    scope = distributed.strategy()
    number = scope.cluster_resolver.task_id
    more = [] if distributed.is_chief(scope) else [Kill(int(epoch))]
    model = model_in(scope)
    history = train(model, Path(folder), *more)
    np.savez(Path(folder) / f"result-{number}.npz", **result(model, history))
    if service is not None:
        np.savez(Path(folder) / f"service-{number}.npz", **train_by_service(scope, Path(folder), service))


if __name__ == "__main__":
    main(*sys.argv[1:])
