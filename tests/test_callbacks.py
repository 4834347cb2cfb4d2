"""What callbacks add to the logs."""

import csv
import importlib.util
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfalign
from tfalign import drift
from tfalign.metrics import labels as labels_of
from tfalign.ops import geometry


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
    assert history["alignment_shift"][-1] == pytest.approx(1.0, abs=0.2)
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
    model.compile("adam", loss=mine if losses == "dict" else list(mine.values()), run_eagerly=True)
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


# Registering a data set.

SHIFTS = [(2, -1), (2, 1), (1, 2), (1, 1), (2, 0), (0, -2)]


def shifted(rng, shifts=SHIFTS, blank=()):
    """Inputs 16 x 16 and labels with a margin of 3; those of `blank` show nothing."""
    field = rng.uniform(0, 1, (len(shifts), 40, 40, 1)).astype(np.float32)
    labels = np.stack([one[9 - y : 31 - y, 9 - x : 31 - x] for one, (y, x) in zip(field, shifts)])
    labels[list(blank)] = 0.5
    return field[:, 12:28, 12:28], labels


def given(loss, **options):
    """A network that gives its input and stays so. It runs eagerly: tracing a loss takes longer than a few steps."""
    inputs = keras.Input((None, None, 1))
    model = keras.Model(inputs, keras.layers.Conv2D(1, 1, kernel_initializer="ones")(inputs))
    model.compile(keras.optimizers.SGD(0.0), loss=loss, **{"run_eagerly": True, **options})
    return model


def test_a_registered_data_set_is_told(rng, tmp_path, capsys):
    inputs, labels = shifted(rng, blank=[4])
    labels[3] += rng.normal(0, 0.1, labels[3].shape)
    log = tfalign.callbacks.AlignmentLog(
        dataset=tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(3),
        ids=list("abcdef"),
        every=2,
        worst=2,
        file=tmp_path / "log.csv",
    )
    model = given(tfalign.ShiftInvariantLoss(max_shift=2))
    history = model.fit(inputs, labels, epochs=3, callbacks=[log], verbose=2).history
    known = np.array([SHIFTS[n] for n in (0, 1, 2, 3, 5)])
    spread = np.sqrt(np.mean(np.sum(np.square(known - known.mean(axis=0)), axis=1)))
    np.testing.assert_allclose(history["label_shift"], np.linalg.norm(known.mean(axis=0)), atol=0.05)
    np.testing.assert_allclose(history["label_spread"], spread, atol=0.05)
    np.testing.assert_allclose(history["labels_at_bound"], 4 / 6)
    np.testing.assert_allclose(history["labels_gated"], 1 / 6)
    assert [row["epoch"] for row in log.labels] == [1] * 6
    assert [row["id"] for row in log.labels] == list("abcdef")
    for row, shift in zip(log.labels, SHIFTS):
        if row["id"] != "e":
            np.testing.assert_allclose((row["row"], row["col"]), shift, atol=0.1)
            np.testing.assert_array_equal(row["transform"][:2, 2], np.float32([row["row"], row["col"]]))
            assert row["at_bound"] == (2 in np.abs(shift))
            assert not row["gated"]
    assert log.labels[4]["gated"]
    # The noisy one fits least; the blank one shows nothing.
    assert log.worst_labels[0] == "d"
    assert "e" not in log.worst_labels
    assert len(log.worst_labels) == 2

    printed = capsys.readouterr().out
    assert "labels that fit least: d, " in printed
    assert "label_spread: " in printed
    epochs = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [row["epoch"] for row in epochs] == ["0", "1", "2"]
    assert float(epochs[-1]["label_spread"]) == pytest.approx(history["label_spread"][-1])
    table = list(csv.DictReader((tmp_path / "log-labels.csv").open()))
    assert [row["id"] for row in table] == list("abcdef")
    assert float(table[0]["row"]) == pytest.approx(2, abs=0.1)
    assert "transform" not in table[0]


def test_the_first_epoch_and_every_second_are_registered(rng, monkeypatch):
    inputs, labels = shifted(rng)
    log, seen = tfalign.callbacks.AlignmentLog(dataset=(inputs, labels), every=3), []
    register = log._register
    monkeypatch.setattr(log, "_register", lambda epoch: seen.append(epoch) or register(epoch))
    given(tfalign.ShiftInvariantLoss(max_shift=2)).fit(inputs, labels, epochs=7, callbacks=[log], verbose=0)
    assert seen == [0, 2, 5]


def test_a_json_file_goes_on_with_its_run(rng, tmp_path):
    inputs, labels = shifted(rng, blank=range(6))
    path = tmp_path / "log.json"
    for begin, end, dataset in ((0, 3, None), (2, 4, (inputs, labels))):
        log = tfalign.callbacks.AlignmentLog(file=path, dataset=dataset)
        model = given(tfalign.ShiftInvariantLoss(max_shift=2))
        model.fit(inputs, labels, initial_epoch=begin, epochs=end, callbacks=[log], verbose=0)
    told = json.loads(path.read_text())
    assert [row["epoch"] for row in told["epochs"]] == [0, 1, 2, 3]
    assert told["epochs"][-1]["labels_gated"] == 1.0
    assert told["epochs"][-1]["label_shift"] == 0.0
    assert [row["id"] for row in told["labels"]] == list(range(6))
    assert np.shape(told["labels"][0]["transform"]) == (3, 3)
    assert log.worst_labels == []
    log = tfalign.callbacks.AlignmentLog(file=path)
    model.fit(inputs, labels, callbacks=[log], verbose=0)
    assert [row["epoch"] for row in json.loads(path.read_text())["epochs"]] == [0]


def test_a_bound_of_its_own(rng):
    """A model of a plain loss needs one; in place of that of the loss it holds for the data set alone."""
    inputs, labels = shifted(rng)
    log = tfalign.callbacks.AlignmentLog(dataset=(inputs, labels[:, 3:-3, 3:-3]), max_shift=2)
    history = given("mae").fit(inputs, labels[:, 3:-3, 3:-3], callbacks=[log], verbose=0).history
    assert history["labels_at_bound"] == [pytest.approx(5 / 6)]
    assert "drift" not in history
    log = tfalign.callbacks.AlignmentLog(dataset=(inputs, labels), max_shift=(1, 2))
    given(tfalign.ShiftInvariantLoss(max_shift=2)).fit(inputs[:1], labels[:1], callbacks=[log], verbose=0)
    assert all(abs(row["row"]) <= 1.5 for row in log.labels)
    np.testing.assert_allclose([row["col"] for row in log.labels[2:4]], [2, 1], atol=0.1)


def test_rows_of_turned_labels():
    angles, scales = np.float32([[3.0], [-2.0]]), np.float32([[1.1, 0.9], [1.0, 1.0]])
    transform = geometry.make(np.float32([[1.0, 2.0], [0.0, -0.5]]), rotation=angles, scale=scales).numpy()
    told = {"score": np.float32([0.9, 0.2]), "confidence": np.float32([1.0, 0.3]), "overlap": np.ones(2)}
    group = {"transform": transform, **told, "at_bound": np.array([True, False]), "gated": np.array([False, True])}
    first, second = labels_of.rows(group, ["x", "y"], {"epoch": 4})
    for row, angle, scale in ((first, 3.0, 1.1), (second, -2.0, 1.0)):
        assert row["epoch"] == 4
        assert row["rotation"] == pytest.approx(angle, abs=1e-4)
        assert row["shear"] == pytest.approx(0.0, abs=1e-4)
        assert row["scale_row"] == pytest.approx(scale, abs=1e-5)
    assert (first["row"], first["col"], second["col"]) == (1.0, 2.0, -0.5)
    assert labels_of.worst([first, second], 1) == ["y"]


def test_labels_are_gated_as_the_loss_gates_them_now(rng):
    prediction = rng.uniform(0, 1, (3, 16, 16, 1)).astype(np.float32)
    label = prediction + np.float32([1.5, 0.0, 0.0]).reshape(3, 1, 1, 1) * rng.standard_normal(prediction.shape)
    loss = tfalign.ShiftInvariantLoss(max_shift=3)
    registered = tf.function(labels_of.registering(loss), autograph=False)
    for share, least in ((0.5, 0.5), (0.01, 0.1), (0.97, 0.5)):
        loss.state.assign(drift.pack(drift.initial((3, 3))._replace(in_place=tf.fill([3], share))))
        (found,) = registered(tf.constant(label, tf.float32), tf.constant(prediction))
        np.testing.assert_array_equal(found["gated"], found["confidence"] < least)
        assert 0.1 < found["confidence"][0] < 0.5 < found["confidence"][1]


def test_several_outputs_and_groups(rng):
    inputs, labels = shifted(rng)
    other = np.roll(labels, 1, axis=1)
    image = keras.Input((16, 16, 1))
    channels = {"a": 1, "b": 2}
    heads = [keras.layers.Conv2D(n, 1, kernel_initializer="ones", name=name)(image) for name, n in channels.items()]
    model = keras.Model(image, heads)
    losses = {
        "a": tfalign.ShiftInvariantLoss(max_shift=3),
        "b": tfalign.ShiftInvariantLoss(max_shift=3, groups=[(0,), (1,)]),
    }
    pairs = {"a": labels, "b": np.concatenate([labels, other], axis=-1)}
    model.compile(keras.optimizers.SGD(0.0), loss=losses, run_eagerly=True)
    # As the pipeline names what it cuts.
    origin = {"name": np.array([b"left.png"] * 3 + [b"right.png"] * 3), "start": np.arange(12).reshape(6, 2)}
    dataset = tf.data.Dataset.from_tensor_slices((inputs, (pairs["a"], pairs["b"]), origin)).batch(3)
    log = tfalign.callbacks.AlignmentLog(dataset=dataset)
    history = model.fit(inputs, pairs, callbacks=[log], verbose=0).history
    means = [np.linalg.norm(np.mean(SHIFTS, axis=0) + (offset, 0)) for offset in (0, 1)]
    np.testing.assert_allclose(history["a_label_shift"][0], means[0], atol=0.1)
    np.testing.assert_allclose(history["b_label_shift"][0], max(means), atol=0.1)
    assert np.isfinite(history["b_drift"][0])
    places = {(row["output"], row.get("group")) for row in log.labels}
    assert places == {("a", None), ("b", 0), ("b", 1)}
    assert [row["id"] for row in log.labels][2:4] == ["left.png (4, 5)", "right.png (6, 7)"]
    assert len(log.labels) == 18


def test_a_registered_data_set_on_two_replicas(two_replicas, rng):
    inputs, labels = shifted(rng)
    labels = labels[:, 3:-3, 3:-3]
    with two_replicas.scope():
        model = given("mae", run_eagerly=False)
    log = tfalign.callbacks.AlignmentLog(dataset=(inputs, labels), max_shift=2)
    history = model.fit(inputs, labels, callbacks=[log], verbose=0).history
    np.testing.assert_allclose(history["label_shift"], np.linalg.norm(np.mean(SHIFTS, axis=0)), atol=0.05)
    assert len(log.labels) == 6


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_takes_the_logs(data, tmp_path):
    model = given(tfalign.ShiftInvariantLoss(max_shift=2))
    callbacks = [tfalign.callbacks.AlignmentLog(), keras.callbacks.TensorBoard(str(tmp_path), write_graph=False)]
    model.fit(*data, callbacks=callbacks, verbose=0)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("events*"))
    assert b"epoch_alignment_confidence" in written


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: tfalign.callbacks.AlignmentLog(file="log.txt"), ValueError, "suffix of `file`.*'.txt'"),
        (lambda: tfalign.callbacks.AlignmentLog(every=0), ValueError, "`every` must be >= 1.*every=0"),
        (lambda: tfalign.callbacks.AlignmentLog(worst=1.5), TypeError, "`worst`.*1.5"),
        (lambda: tfalign.callbacks.AlignmentLog(dataset=np.zeros(3)), TypeError, "`dataset` must be.*ndarray"),
        (
            lambda: tfalign.callbacks.AlignmentLog(dataset=tf.data.Dataset.range(3).repeat()),
            ValueError,
            r"`dataset` must end.*take",
        ),
        (lambda: tfalign.callbacks.StopBelow("low"), TypeError, "`threshold` must be a number.*'low'"),
        (lambda: tfalign.callbacks.StopConverged(window=1), ValueError, "`window` must be >= 2.*window=1"),
        (lambda: tfalign.callbacks.StopConverged(tolerance=-1), ValueError, "`tolerance` must be >= 0"),
    ],
)
def test_bad_options(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_what_a_data_set_needs(data):
    model = given("mae")
    with pytest.raises(ValueError, match=r"`dataset` needs a model.*max_shift=None.*'mae'"):
        model.fit(*data, callbacks=[tfalign.callbacks.AlignmentLog(dataset=data)], verbose=0)
    log = tfalign.callbacks.AlignmentLog(dataset=data, max_shift=2, ids=["one"])
    with pytest.raises(ValueError, match=r"`ids` must name every label.*ids=1, labels=4"):
        model.fit(*data, callbacks=[log], verbose=0)
    nothing = tf.data.Dataset.from_tensor_slices(data).batch(2).take(0)
    with pytest.raises(ValueError, match="`dataset` must hold labels"):
        model.fit(*data, callbacks=[tfalign.callbacks.AlignmentLog(dataset=nothing, max_shift=2)], verbose=0)


def test_the_folder_of_the_file_is_made(data, tmp_path):
    log = tfalign.callbacks.AlignmentLog(file=tmp_path / "logs" / "new" / "log.csv")
    given("mae").fit(*data, callbacks=[log], verbose=0)
    assert (tmp_path / "logs" / "new" / "log.csv").exists()


def test_another_bound_does_not_change_the_gate(rng):
    """It is that of the loss, as far as it has come."""
    inputs, labels = shifted(rng)
    labels = labels + np.float32(rng.standard_normal(labels.shape))
    loss = tfalign.ShiftInvariantLoss(max_shift=2)
    model = given(loss)
    state = drift.unpack(tf.convert_to_tensor(loss.state))
    shares = []
    for in_place in (0.0, 0.5):
        loss.state.assign(drift.pack(state._replace(in_place=tf.fill([3], in_place))))
        log = tfalign.callbacks.AlignmentLog(dataset=(inputs, labels), max_shift=6)
        log.set_model(model)
        log.set_params({})
        log.on_train_begin()
        log.on_epoch_end(0)
        confidence = np.array([row["confidence"] for row in log.labels])
        np.testing.assert_array_equal([row["gated"] for row in log.labels], confidence < max(in_place, 0.1))
        shares.append(np.mean(confidence < max(in_place, 0.1)))
    assert shares[0] < shares[1]


# Stopping.


class Told(keras.callbacks.Callback):
    """Puts values into the logs."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def on_epoch_end(self, epoch, logs=None):
        logs["told"] = self.values[epoch]


def epochs_until(stop, values, model=None):
    model = model or given("mae")
    pixel = np.zeros((1, 4, 4, 1), np.float32)
    model.fit(pixel, pixel, epochs=len(values), callbacks=[Told(values), stop], verbose=0)
    return stop.stopped_epoch


def test_stop_below_a_threshold():
    model, stop = given("mae"), tfalign.callbacks.StopBelow(0.5, monitor="told")
    assert epochs_until(stop, [2.0, np.nan, 0.5, 0.4, 0.3], model) == 3
    assert epochs_until(stop, [2.0, 1.0], model) is None


def test_stop_once_settled():
    model, stop = given("mae"), tfalign.callbacks.StopConverged(monitor="told", window=2, tolerance=0.05)
    assert epochs_until(stop, [4.0, 3.0, 2.0, 1.0, 1.1, 1.0, 1.05, 0.9, 0.8], model) == 6
    # Rising as well as falling; a non-finite value does not count.
    assert epochs_until(stop, [1.0, 2.0, 3.0, np.inf, 3.0, 3.0, 3.0, 3.0], model) == 6
    assert epochs_until(stop, [8.0, 4.0, 2.0, 1.0, 0.5], model) is None


def test_a_standstill_before_alignment_is_not_settled():
    loss = tfalign.ShiftInvariantLoss(max_shift=1, warmup_steps=6)
    stop = tfalign.callbacks.StopConverged(monitor="told", window=2)
    # Aligned from the end of the sixth epoch on, which is the first of four that count.
    assert epochs_until(stop, [1.0] * 12, given(loss)) == 8


def test_a_value_that_is_not_there(data):
    for stop in (tfalign.callbacks.StopBelow(1.0, monitor="there"), tfalign.callbacks.StopConverged(monitor="there")):
        with pytest.warns(UserWarning, match="'there' is not in the logs, which hold loss"):
            given("mae").fit(*data, callbacks=[stop], verbose=0)
