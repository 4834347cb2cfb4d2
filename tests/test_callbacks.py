"""What callbacks add to the logs."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfalign


@pytest.fixture
def data(rng):
    inputs = rng.uniform(0, 1, (4, 16, 16, 1)).astype(np.float32)
    return inputs, inputs


def test_an_alignment_log_reaches_history_and_files(data, tmp_path):
    model = keras.Sequential([keras.layers.Conv2D(1, 3, padding="same", kernel_initializer=_one_off)])
    loss = tfalign.ShiftInvariantLoss(max_shift=2, warmup_steps=2)
    model.compile(keras.optimizers.SGD(0.0), loss=loss)
    path = tmp_path / "log.csv"
    callbacks = [tfalign.callbacks.AlignmentLog(), keras.callbacks.CSVLogger(str(path))]
    history = model.fit(*data, batch_size=4, epochs=8, callbacks=callbacks, verbose=0).history
    assert history["alignment_ready"] == [0.0] + 7 * [1.0]
    assert history["drift"][-1] == pytest.approx(np.linalg.norm(loss.drift))
    assert history["drift"][-1] == pytest.approx(1.0, abs=0.2)
    assert history["alignment_confidence"] == sorted(history["alignment_confidence"])
    assert float(list(csv.DictReader(path.open()))[-1]["drift"]) == pytest.approx(history["drift"][-1])


def _one_off(shape, dtype=None):
    """A kernel that reads one pixel up, so that the prediction lies one pixel down."""
    kernel = np.zeros(shape, np.float32)
    kernel[0, 1] = 1.0
    return tf.constant(kernel)


@pytest.mark.parametrize("losses", ["list", "dict"])
def test_several_losses_are_told_apart(data, losses):
    image = keras.Input((16, 16, 1))
    heads = {name: keras.layers.Conv2D(1, 3, padding="same", name=name)(image) for name in "abc"}
    mine = {"a": tfalign.ShiftInvariantLoss(max_shift=2), "b": "mse", "c": tfalign.ShiftInvariantLoss(max_shift=2)}
    model = keras.Model(image, heads if losses == "dict" else list(heads.values()))
    model.compile("adam", loss=mine if losses == "dict" else list(mine.values()))
    inputs, labels = data
    given = dict.fromkeys("abc", labels) if losses == "dict" else [labels] * 3
    history = model.fit(inputs, given, callbacks=[tfalign.callbacks.AlignmentLog()], verbose=0).history
    first, last = ("a", "c") if losses == "dict" else ("0", "2")
    assert {f"{first}_drift", f"{last}_drift"} <= set(history)
    assert not any(name.startswith(("b_drift", "1_drift")) for name in history)


def test_other_losses_add_nothing(data):
    model = keras.Sequential([keras.layers.Conv2D(1, 3, padding="same")])
    model.compile("adam", loss="mae")
    history = model.fit(*data, callbacks=[tfalign.callbacks.AlignmentLog()], verbose=0).history
    assert not any("drift" in name for name in history)
