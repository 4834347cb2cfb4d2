"""`tfalign.distributed`: one call that trains on one device, on several replicas, and with several workers."""

import csv
import json
import shutil
import socket
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfalign
from tests.multi_worker import training, workers
from tfalign import distributed

PROGRAM = training.__file__
KILLED_IN, NEVER = 1, 99  # epochs


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one device makes of it."""
    folder = tmp_path_factory.mktemp("alone")
    model = training.model_in(tf.distribute.get_strategy())
    return training.result(model, training.train(model, folder))


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two workers make of it, of which one is killed and both are started again: the folder."""
    try:
        socket.create_server(("127.0.0.1", 0)).close()
    except OSError as error:
        pytest.skip(f"no sockets of the loopback: {error}")
    folder = tmp_path_factory.mktemp("together")
    with workers.started(PROGRAM, folder, KILLED_IN) as (_, killed):
        said, _ = killed.communicate(timeout=workers.TIMEOUT)
        assert killed.returncode == -9, said[-4000:]
    shutil.copytree(folder, folder / "killed")
    training.cached(folder)
    service = tf.data.experimental.service
    dispatcher = service.DispatchServer()
    config = service.WorkerConfig(dispatcher_address=dispatcher.target.split("://")[1])
    servers = [service.WorkerServer(config) for _ in range(2)]
    with workers.started(PROGRAM, folder, NEVER, dispatcher.target) as processes:
        workers.finished(processes)
    del servers, dispatcher
    return folder


def close(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_worker_was_killed_and_both_went_on_from_the_last_epoch(together):
    saved = [path.name for path in (together / "killed" / "checkpoints").iterdir()]
    assert saved == [f"epoch-{KILLED_IN:05d}.keras"]
    with np.load(together / "result-0.npz") as result:
        assert len(result["loss"]) == training.EPOCHS - KILLED_IN


@pytest.mark.parametrize("number", [0, 1])
def test_workers_that_went_on_end_as_one_device_does(together, alone, number):
    with np.load(together / f"result-{number}.npz") as result:
        found = dict(result)
    logs = [name for name, value in alone.items() if value.shape == (training.EPOCHS,)]
    assert {"loss", "in_place_mae", "val_loss", "drift", "alignment_ready"} <= {*logs}
    close(found, {name: value[KILLED_IN:] if name in logs else value for name, value in alone.items()})


def test_the_chief_alone_writes(together):
    epochs = {}
    for name in ("alignment.csv", "log.csv"):
        with (together / name).open() as file:
            epochs[name] = [int(row["epoch"]) for row in csv.DictReader(file)]
    assert epochs == {"alignment.csv": [0, 1, 2], "log.csv": [1, 2]}
    assert keras.models.load_model(together / "latest.keras").loss.get_config()["max_shift"] == 4


def test_the_service_of_tf_data_gives_workers_every_patch_once(together):
    each = []
    for number in (0, 1):
        with np.load(together / f"service-{number}.npz") as result:
            each.append(dict(result))
    first = np.unique(np.concatenate([one["epoch 0"] for one in each]))
    assert len(first) == 25
    for epoch in ("epoch 0", "epoch 1"):
        np.testing.assert_array_equal(np.sort(np.concatenate([one[epoch] for one in each])), first)
        assert sorted(len(one[epoch]) for one in each) == [12, 13]
    assert all(one["steps"] == 2 * 6 for one in each)  # the thirteenth would be a batch for one of them alone
    np.testing.assert_array_equal(each[0]["losses"], each[1]["losses"])
    assert np.all(np.isfinite(each[0]["losses"]))


# Without workers.


def plain_model(**options):
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((None, None, 1)), keras.layers.Conv2D(1, 3, padding="same")])
    model.compile(keras.optimizers.Adam(1e-2), loss="mae", metrics=["mse"], **options)
    return model


def squares(count=10):
    inputs = np.random.default_rng(1).uniform(0, 1, (count, 8, 8, 1)).astype(np.float32)
    return tf.data.Dataset.from_tensor_slices((inputs, np.square(inputs)))


class Seen(keras.callbacks.Callback):
    """The loss after each batch."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(logs["loss"])


@pytest.mark.parametrize(
    "options", [{}, {"run_eagerly": True}, {"jit_compile": True}], ids=lambda one: "".join(one) or "graph"
)
def test_one_device_trains_as_fit_does(options):
    data, validation = squares().batch(4), squares(6).batch(4)
    logs = {}
    for name in ("fit", "ours"):
        model, seen = plain_model(**options), Seen()
        given = {"epochs": 3, "validation_data": validation, "callbacks": [seen], "verbose": 0}
        history = model.fit(data, **given) if name == "fit" else distributed.fit(model, data, **given)
        assert model.optimizer.iterations == 9
        logs[name] = {**history.history, "batches": seen.losses, "weights": np.ravel(model.get_weights()[0])}
    assert logs["fit"].keys() == logs["ours"].keys() >= {"loss", "mse", "val_loss", "val_mse"}
    for name, values in logs["fit"].items():
        np.testing.assert_allclose(logs["ours"][name], values, rtol=1e-5, err_msg=name)


def test_a_loss_that_aligns_trains_as_in_fit(alone):
    model = training.model_in(tf.distribute.get_strategy())
    steps = training.batches().cardinality().numpy()
    data = training.batches().repeat()
    history = model.fit(data, epochs=training.EPOCHS, steps_per_epoch=steps, shuffle=False, verbose=0).history
    np.testing.assert_allclose(history["loss"], alone["loss"], rtol=1e-5)
    np.testing.assert_allclose(model.loss.state, alone["state"], atol=1e-5)


@pytest.mark.parametrize("kind", ["dataset", "function"])
def test_two_replicas_take_parts_of_the_same_batches(two_replicas, kind):
    def batches(context, epoch):
        assert (context.num_input_pipelines, context.num_replicas_in_sync) == (1, 2)
        return squares().skip(epoch).take(8).batch(context.get_per_replica_batch_size(4))

    wanted = plain_model()
    for epoch in range(3):
        distributed.fit(wanted, squares().skip(epoch).take(8).batch(4) if kind == "function" else squares().batch(4))
    with two_replicas.scope():
        found = plain_model()
    history = distributed.fit(found, batches if kind == "function" else squares().batch(4), epochs=3).history
    assert len(history["loss"]) == 3
    for one, other in zip(found.get_weights(), wanted.get_weights()):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_no_replica_trains_on_nothing(two_replicas):
    keras.utils.set_random_seed(3)
    with two_replicas.scope():
        layers = [keras.layers.Conv2D(1, 3, padding="same"), keras.layers.BatchNormalization()]
        model = keras.Sequential([keras.Input((None, None, 1)), *layers])
        model.compile("sgd", loss="mae", metrics=["mse"])
    data, seen = squares(9).batch(4), Seen()
    history = distributed.fit(model, data, epochs=2, validation_data=data, callbacks=[seen]).history
    assert model.optimizer.iterations == 4 == len(seen.losses)
    assert np.all(np.isfinite(np.concatenate([np.ravel(one) for one in model.get_weights()])))
    inputs, labels = next(iter(squares(9).batch(9)))
    wanted = np.mean(np.square(model(inputs) - labels))
    # All nine count; each replica normalises by means of its own.
    np.testing.assert_allclose(history["val_mse"][-1], wanted, rtol=2e-3)
    with pytest.raises(ValueError, match=r"must have a sample for each replica.*replicas=2"):
        distributed.fit(model, squares(2).batch(1))
    with pytest.warns(UserWarning, match=r"Received: batches=3, replicas=2, trained on=1. Make batches larger"):
        distributed.fit(model, squares(4).batch(4).concatenate(squares(2).batch(1)))


@pytest.mark.parametrize("damage", [False, True])
def test_a_run_goes_on_where_it_ended(tmp_path, damage):
    def data():
        return squares().shuffle(10, seed=1).batch(4)

    whole = plain_model()
    losses = distributed.fit(whole, data(), epochs=4).history["loss"]
    distributed.fit(plain_model(), data(), epochs=3, checkpoints=tmp_path)
    if damage:
        (tmp_path / "epoch-00003.keras").write_bytes(b"half")
    model = plain_model()
    assert (
        distributed.fit(model, data(), epochs=4, checkpoints=tmp_path).history["loss"] == losses[2 if damage else 3 :]
    )
    for one, other in zip(model.get_weights(), whole.get_weights()):
        np.testing.assert_array_equal(one, other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-00003.keras", "epoch-00004.keras"]
    assert distributed.fit(model, data(), epochs=4, checkpoints=tmp_path).history == {}


def test_the_first_epoch_may_have_another_number():
    losses = distributed.fit(plain_model(), squares().batch(4), epochs=3).history["loss"]
    model = plain_model()
    distributed.fit(model, squares().batch(4), epochs=1)
    history = distributed.fit(model, squares().batch(4), epochs=3, initial_epoch=1)
    assert history.epoch == [1, 2]
    np.testing.assert_allclose(history.history["loss"], losses[1:], rtol=1e-6)


def test_where_another_worker_fails_this_one_ends(monkeypatch):
    scope, done = tf.distribute.get_strategy(), []
    with distributed.together(scope):
        done.append("all")
    with pytest.raises(ZeroDivisionError), distributed.together(scope):
        raise ZeroDivisionError
    monkeypatch.setattr(distributed, "_reduced", lambda strategy, operation, value: value + 1.0)
    with pytest.raises(ConnectionError, match="Another worker failed"), distributed.together(scope):
        done.append("mine")

    def gone(*_):
        raise tf.errors.UnavailableError(None, None, "Connection reset by peer")

    monkeypatch.setattr(distributed, "_reduced", gone)
    with pytest.raises(ConnectionError, match="Another worker failed"), distributed.together(scope):
        done.append("mine too")
    with pytest.raises(ZeroDivisionError), distributed.together(scope):
        raise ZeroDivisionError
    assert done == ["all", "mine", "mine too"]


def test_callbacks_stop_training_and_steps_go_on_in_the_data():
    def noted(inputs, labels):
        seen.extend(inputs[:, 0, 0, 0].tolist())
        return inputs, labels

    def note(*pair):
        noted_pair = tf.numpy_function(noted, pair, [one.dtype for one in pair])
        return [tf.ensure_shape(one, like.shape) for one, like in zip(noted_pair, pair)]

    seen, model = [], plain_model()
    stop = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: setattr(model, "stop_training", epoch == 1))
    data = squares(3).batch(1).repeat().map(lambda *pair: tuple(note(*pair)))
    history = distributed.fit(model, data, epochs=5, steps_per_epoch=2, callbacks=[stop])
    assert history.epoch == [0, 1]
    assert seen[3] == seen[0] != seen[2]


def fake(kind, number, cluster):
    resolver = SimpleNamespace(
        task_type=kind, task_id=number, cluster_spec=lambda: tf.train.ClusterSpec({one: ["a:1"] for one in cluster})
    )
    return SimpleNamespace(cluster_resolver=resolver)


def test_one_process_is_the_chief():
    assert distributed.is_chief(tf.distribute.get_strategy())
    assert distributed.is_chief(fake("worker", 0, ["worker"]))
    assert not distributed.is_chief(fake("worker", 1, ["worker"]))
    assert not distributed.is_chief(fake("worker", 0, ["chief", "worker"]))
    assert distributed.is_chief(fake("chief", 0, ["chief", "worker"]))


def test_what_writes_runs_on_the_chief_alone():
    mine = keras.callbacks.TerminateOnNaN()
    mine.chief_only = True
    writers = [keras.callbacks.CSVLogger("log.csv"), mine]
    others = [
        keras.callbacks.ModelCheckpoint("run/{epoch}.keras"),
        tfalign.callbacks.AlignmentLog(file="a.csv"),
        Seen(),
    ]
    kept = distributed._of_this_worker([*writers, *others], fake("worker", 0, ["worker"]), "aside")
    assert kept == [*writers, *others]
    kept = distributed._of_this_worker([*writers, *others], fake("worker", 1, ["worker"]), "aside")
    assert kept == others
    assert (others[0].filepath, others[1].file) == ("aside/{epoch}.keras", None)


def test_one_worker_has_no_strategy_of_several(monkeypatch):
    cluster = {"cluster": {"worker": ["localhost:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
    assert distributed.strategy() is tf.distribute.get_strategy()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"model": keras.Sequential([keras.layers.Dense(1)])}, ValueError, "built and compiled.*built=False"),
        ({"data": [1, 2]}, TypeError, "`data` must be a tf.data.Dataset.*data='list'"),
        ({"data": squares().repeat()}, ValueError, "`data` without end needs a number of steps"),
        ({"data": squares().take(0)}, ValueError, "`data` must last for all steps.*batches=0"),
        ({"steps_per_epoch": 4}, ValueError, "`data` must last for all steps.*steps=4, batches=3"),
        ({"steps_per_epoch": 0}, ValueError, "steps of `data`.*>= 1"),
        ({"validation_data": 3}, TypeError, "`validation_data` must be"),
        ({"epochs": 0}, ValueError, "`epochs` must be >= 1"),
        ({"initial_epoch": -1}, ValueError, "`initial_epoch` must be >= 0"),
        ({"callbacks": [keras.callbacks.BackupAndRestore("x")]}, ValueError, "Give `checkpoints=folder`"),
    ],
)
def test_what_does_not_fit_is_named(change, error, text):
    arguments = {"model": plain_model(), "data": squares().batch(4), **change}
    with pytest.raises(error, match=text):
        distributed.fit(arguments.pop("model"), arguments.pop("data"), **arguments)
