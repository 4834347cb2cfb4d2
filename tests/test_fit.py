"""`compile(loss=ShiftInvariantLoss())` inside Keras, in every way that a user may train."""

import keras
import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

import tfalign
from tfalign import _keras, drift

STEPS = 6


def updates(loss):
    """Training steps that the state has seen."""
    return drift.unpack(tf.convert_to_tensor(loss.state)).updates[0]


@pytest.fixture
def data(rng):
    field = rng.uniform(0, 1, (8, 48, 48, 1)).astype(np.float32)
    inputs, labels = field[:, 16:32, 16:32], np.empty((8, 24, 24, 1), np.float32)
    for label, sample, (y, x) in zip(labels, field, rng.integers(-2, 3, (8, 2))):
        label[:] = sample[12 - y : 36 - y, 12 - x : 36 - x]
    return inputs, labels


def network():
    keras.utils.set_random_seed(7)
    layers = keras.layers.Conv2D(4, 3, padding="same", activation="relu"), keras.layers.BatchNormalization()
    return keras.Sequential(
        [keras.Input((None, None, 1)), *layers, keras.layers.Conv2D(1, 3, padding="same", dtype="float32")]
    )


def trained(data, loss=None, steps=STEPS, **options):
    model = network()
    model.compile("adam", loss=loss or tfalign.ShiftInvariantLoss(), **options)
    dataset = tf.data.Dataset.from_tensor_slices(data).repeat().batch(4)
    history = model.fit(dataset, steps_per_epoch=steps, verbose=0, shuffle=False)
    return model, history.history["loss"][-1]


@pytest.mark.parametrize(
    "options", [{"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 3}], ids=lambda o: next(iter(o))
)
def test_every_way_to_compile_gives_the_same_training(data, options):
    model, loss = trained(data, jit_compile=False)
    other, other_loss = trained(data, **options)
    assert np.isfinite(loss)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-4)
    np.testing.assert_allclose(other.loss.state, model.loss.state, atol=1e-3)
    assert updates(model.loss) == STEPS


@pytest.mark.parametrize("jit_compile", [False, True])
def test_numpy_arrays_odd_last_batch_validation_and_weights(data, jit_compile):
    inputs, labels = data
    model = network()
    model.compile("adam", loss=tfalign.ShiftInvariantLoss(), jit_compile=jit_compile)
    weights = np.linspace(0, 1, 8).astype(np.float32)
    history = model.fit(
        inputs, labels, batch_size=3, epochs=2, sample_weight=weights, validation_data=(inputs, labels), verbose=0
    ).history
    assert np.all(np.isfinite(history["loss"] + history["val_loss"]))
    assert updates(model.loss) == 6


def test_evaluation_leaves_the_state_alone(data):
    model, _ = trained(data)
    before = model.loss.state.numpy()
    model.evaluate(*data, verbose=0)
    np.testing.assert_array_equal(model.loss.state, before)


def test_train_on_batch_and_a_tape_loop_agree(data):
    inputs, labels = (part[:4] for part in data)
    model = network()
    model.compile("sgd", loss=tfalign.ShiftInvariantLoss(warmup_steps=1))
    for _ in range(4):
        model.train_on_batch(inputs, labels)

    other, loss_object = network(), tfalign.ShiftInvariantLoss(warmup_steps=1)
    optimizer = keras.optimizers.SGD()
    optimizer.build(other.trainable_variables)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_object(y, other(x, training=True))
        optimizer.apply_gradients(zip(tape.gradient(loss, other.trainable_variables), other.trainable_variables))

    for _ in range(4):
        step(inputs, labels)
    np.testing.assert_allclose(loss_object.state, model.loss.state, atol=1e-4)
    for one, two in zip(other.weights, model.weights):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_a_tape_around_a_traced_loss_updates_the_state(data):
    loss_object = tfalign.ShiftInvariantLoss()
    traced = tf.function(lambda y, p: loss_object(y, p))
    prediction = tf.Variable(data[0])
    with tf.GradientTape() as tape:
        loss = traced(tf.constant(data[1]), prediction)
    tape.gradient(loss, prediction)
    assert updates(loss_object) == 1


def test_a_batch_of_one(data):
    model = network()
    model.compile("adam", loss=tfalign.ShiftInvariantLoss())
    history = model.fit(*data, batch_size=1, epochs=2, verbose=0).history
    assert np.all(np.isfinite(history["loss"]))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_unknown_batch_and_spatial_sizes(data, jit_compile):
    def generate():
        for size in (16, 12, 16, 14):
            yield data[0][:3, :size, :size], data[1][:3, : size + 8, : size + 8]

    spec = tf.TensorSpec([None, None, None, 1])
    dataset = tf.data.Dataset.from_generator(generate, output_signature=(spec, spec))
    model = network()
    model.compile("adam", loss=tfalign.ShiftInvariantLoss(), jit_compile=jit_compile)
    assert np.isfinite(model.fit(dataset, verbose=0).history["loss"][0])
    assert updates(model.loss) == 4


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_mixed_precision(data, policy, jit_compile):
    keras.mixed_precision.set_global_policy(policy)
    try:
        model, loss = trained((data[0], data[1].astype(np.float16)), jit_compile=jit_compile)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert np.isfinite(loss)
    assert updates(model.loss) == STEPS


def test_a_network_that_ends_in_half_precision(data):
    inputs = keras.Input((None, None, 1))
    outputs = keras.layers.Conv2D(1, 3, padding="same", dtype="float16")(inputs)
    model = keras.Model(inputs, outputs)
    model.compile("sgd", loss=tfalign.ShiftInvariantLoss())
    assert np.isfinite(model.fit(*data, verbose=0).history["loss"][0])


def test_op_determinism(data, tmp_path):
    import subprocess
    import sys

    program = tmp_path / "deterministic.py"
    np.savez(tmp_path / "data.npz", *data)
    program.write_text(
        "import sys, numpy as np, tensorflow as tf, keras, tfalign\n"
        "keras.utils.set_random_seed(1); tf.config.experimental.enable_op_determinism()\n"
        "x, y = np.load(sys.argv[1]).values()\n"
        "model = keras.Sequential([keras.Input((None, None, 1)), keras.layers.Conv2D(1, 3, padding='same')])\n"
        "model.compile('adam', loss=tfalign.ShiftInvariantLoss(warmup_steps=1))\n"
        "print('loss', repr(model.fit(x, y, batch_size=4, epochs=2, verbose=0).history['loss'][-1]))\n"
    )
    command = [sys.executable, str(program), str(tmp_path / "data.npz")]
    results = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert results[0] == results[1]
    assert "loss" in results[0]


def test_a_prediction_smaller_than_the_input_and_the_label(rng):
    inputs = rng.standard_normal((4, 60, 60, 1)).astype(np.float32)
    model = tfalign.models.unet(filters=4, depth=2, padding="valid")
    assert model.predict(inputs, verbose=0).shape == (4, 44, 44, 1)
    model.compile("adam", loss=tfalign.ShiftInvariantLoss(max_shift=4))
    assert np.isfinite(model.fit(inputs, inputs, verbose=0).history["loss"][0])


def test_nan_labels_do_not_break_training(data):
    inputs, labels = data
    labels[0] = np.nan
    labels[1, :12] = np.nan
    model, loss = trained((inputs, labels), steps=10)
    assert np.isfinite(loss)
    assert all(np.all(np.isfinite(weight)) for weight in model.weights)


def test_a_nan_prediction_reaches_terminate_on_nan(data):
    inputs, labels = data
    model = network()
    model.layers[-1].bias.assign([np.nan])
    model.compile("adam", loss=tfalign.ShiftInvariantLoss())
    seen = []
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(logs["loss"]))
    model.fit(inputs, labels, epochs=1, verbose=0, callbacks=[callback, keras.callbacks.TerminateOnNaN()])
    assert np.isnan(seen[-1])


def test_a_saved_model_keeps_its_loss_and_state(data, tmp_path):
    options = {"max_shift": (3, 2), "similarity": "mse", "min_confidence": 0.1, "warmup_steps": 2}
    model, _ = trained(data, tfalign.ShiftInvariantLoss("mse", **options))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.loss.get_config() == model.loss.get_config()
    np.testing.assert_array_equal(again.loss.state, model.loss.state)
    assert np.any(model.loss.state.numpy() != tfalign.ShiftInvariantLoss("mse", **options).state.numpy())
    np.testing.assert_allclose(again.evaluate(*data, verbose=0), model.evaluate(*data, verbose=0), rtol=1e-5)


def test_weights_files_keep_the_state(data, tmp_path):
    model, _ = trained(data)
    model.save_weights(tmp_path / "model.weights.h5")
    other = network()
    other.compile("adam", loss=tfalign.ShiftInvariantLoss())
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(other.loss.state, model.loss.state)


def test_a_state_of_other_groups_is_not_taken_and_said(data, tmp_path):
    model, _ = trained(data)
    model.save_weights(tmp_path / "model.weights.h5")
    other = network()
    other.compile("adam", loss=tfalign.ShiftInvariantLoss(groups=[(0,)]))
    with pytest.warns(UserWarning, match="of other `groups` than this loss has"):
        other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(other.loss.state, tfalign.ShiftInvariantLoss(groups=[(0,)]).state)
    for mine, theirs in zip(other.get_weights(), model.get_weights()):
        np.testing.assert_array_equal(mine, theirs)


def test_reset_state_makes_the_loss_new(data):
    model, _ = trained(data)
    assert model.loss.is_ready or model.loss.confidence > 0
    model.loss.reset_state()
    np.testing.assert_array_equal(model.loss.state, tfalign.ShiftInvariantLoss().state)


def two_headed(losses, **options):
    image = keras.Input((16, 16, 1))
    heads = [keras.layers.Conv2D(1, 3, padding="same", name=name)(image) for name in "ab"]
    model = keras.Model(image, heads)
    model.compile("adam", loss=losses, **options)
    return model


@pytest.mark.parametrize("train", ["fit", "train_on_batch", "evaluate"])
@pytest.mark.parametrize("broadcast", [False, True])
def test_one_loss_for_two_outputs_is_refused(data, train, broadcast):
    inputs, labels = data
    loss = tfalign.ShiftInvariantLoss(max_shift=2)
    with pytest.raises(ValueError, match="its own instance"):
        getattr(two_headed(loss if broadcast else [loss, loss]), train)(inputs, [labels, labels])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_two_outputs_keep_a_state_each(data, jit_compile):
    inputs, labels = data
    losses = [tfalign.ShiftInvariantLoss(max_shift=2) for _ in range(2)]
    model = two_headed(losses, jit_compile=jit_compile)
    moved = np.roll(labels, 1, axis=1)
    model.fit(inputs, [labels, moved], batch_size=4, epochs=2, verbose=0)
    assert [updates(loss) for loss in losses] == [4, 4]
    assert np.abs(losses[0].state.numpy() - losses[1].state.numpy()).max() > 0


def test_predictions_made_one_after_the_other_may_share_a_loss(data):
    inputs, labels = data
    model, loss = network(), tfalign.ShiftInvariantLoss()

    @tf.function
    def accumulated():
        with tf.GradientTape() as tape:
            total = sum(loss(labels[part], model(inputs[part])) for part in (slice(0, 4), slice(4, 8)))
        return tape.gradient(total, model.trainable_variables)

    assert all(np.isfinite(one).all() for one in accumulated())


def test_a_checkpoint_that_names_the_state_restores_it(data, tmp_path):
    model, _ = trained(data)
    path = tf.train.Checkpoint(model=model, alignment=model.loss.state).save(str(tmp_path / "c"))
    other = network()
    other.compile("adam", loss=tfalign.ShiftInvariantLoss())
    status = tf.train.Checkpoint(model=other, alignment=other.loss.state).restore(path)
    status.assert_existing_objects_matched()
    np.testing.assert_array_equal(other.loss.state, model.loss.state)


class Stop(keras.callbacks.Callback):
    """Breaks off after the first step of the third epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations.numpy() == 5:
            raise KeyboardInterrupt


def test_a_broken_off_fit_goes_on_with_its_state(data, tmp_path):
    if keras.__version__.startswith("2."):
        pytest.skip("BackupAndRestore of Keras 2 does not ask the loss; a tf.train.Checkpoint does, see above")
    inputs, labels = data

    def fit(*callbacks):
        model = network()
        model.compile("adam", loss=tfalign.ShiftInvariantLoss())
        backup = keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))
        model.fit(inputs, labels, batch_size=4, epochs=4, shuffle=False, callbacks=[*callbacks, backup], verbose=0)
        return model

    with pytest.raises(KeyboardInterrupt):
        fit(Stop())
    resumed = fit()
    assert updates(resumed.loss) == 8
    whole = fit()
    np.testing.assert_allclose(resumed.loss.state, whole.loss.state, atol=1e-5)


def near_identity():
    """A network whose first prediction is its input, nearly: labels then fit at one shift alone."""
    model = keras.Sequential([keras.Input((None, None, 1)), keras.layers.Conv2D(1, 3, padding="same")])
    kernel = 0.05 * np.random.default_rng(1).standard_normal((3, 3, 1, 1))
    kernel[1, 1] += 0.5
    model.set_weights([kernel, np.zeros(1)])
    return model


def trained_by_sgd(data, loss, steps, metrics=()):
    model = near_identity()
    model.compile(keras.optimizers.SGD(0.02), loss=loss, metrics=list(metrics), jit_compile=False)
    dataset = tf.data.Dataset.from_tensor_slices(data).repeat().batch(4)
    return model, model.fit(dataset, steps_per_epoch=1, epochs=steps, verbose=0, shuffle=False).history


REPLICATED = [
    {},
    {"reduction": "sum"},
    {"pool": "batch"},
    # Minutes long.
    pytest.param({"max_rotation": 5.0}, marks=pytest.mark.slow),
    pytest.param({"max_rotation": 5.0, "pool": "batch"}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("options", REPLICATED, ids=lambda one: "-".join(map(str, one.values())) or "plain")
def test_two_replicas_train_as_one_device(data, two_replicas, options):
    steps = 3 if "max_rotation" in options else 20
    if "pool" in options:  # all labels lie alike
        wide = np.pad(data[0], [(0, 0), (4, 4), (4, 4), (0, 0)], mode="wrap")
        data = data[0], np.roll(wide, (1, -2), axis=(1, 2))

    def fit():
        metrics = [tfalign.metrics.InPlace("mae"), tfalign.metrics.MeanShift(max_shift=4)]
        return trained_by_sgd(
            data, tfalign.ShiftInvariantLoss(max_shift=4, warmup_steps=1, **options), steps, metrics
        )  # fmt: skip

    single, logs = fit()
    with two_replicas.scope():
        model, mirrored_logs = fit()
    assert mirrored_logs.keys() == logs.keys() >= {"loss", "in_place_mae", "mean_shift"}
    for name, values in logs.items():
        np.testing.assert_allclose(mirrored_logs[name], values, atol=1e-5, err_msg=name)
    # A refinement ends when its steps are short: a last digit decides on one step more, of 1e-3 px.
    near = 1e-2 if "max_rotation" in options else 1e-5
    np.testing.assert_allclose(model.loss.state, single.loss.state, atol=near)
    for one, two in zip(single.get_weights(), model.get_weights()):
        np.testing.assert_allclose(two, one, atol=1e-5)
    assert updates(single.loss) == steps
    assert np.abs(single.loss.drift).max() > 1e-3  # there is something to compare


OTHER_REDUCTIONS = ("mean", "mean_with_sample_weight", None) if _keras.IS_KERAS_3 else ("none",)


@pytest.mark.parametrize("reduction", OTHER_REDUCTIONS)
def test_other_reductions_deviate_no_more_than_those_of_keras(data, two_replicas, reduction):
    inputs, labels = data
    losses = {
        "ours": lambda: tfalign.ShiftInvariantLoss(max_shift=4, warmup_steps=1, reduction=reduction),
        "mae": lambda: keras.losses.MeanAbsoluteError(reduction=reduction),
    }
    deviations = {}
    for name, loss in losses.items():
        pair = inputs, labels if name == "ours" else labels[:, 4:-4, 4:-4]
        single, logs = trained_by_sgd(pair, loss(), 3)
        with two_replicas.scope():
            model, mirrored_logs = trained_by_sgd(pair, loss(), 3)
        apart = [np.abs(one - two).max() for one, two in zip(single.get_weights(), model.get_weights())]
        relative = np.abs(np.subtract(mirrored_logs["loss"], logs["loss"])) / logs["loss"]
        deviations[name] = np.max(apart), np.max(relative)
    assert np.all(np.array(deviations["ours"]) <= np.array(deviations["mae"]) + 1e-5), deviations


def test_a_loss_made_outside_the_scope_counts_steps_once(data, two_replicas):
    loss = tfalign.ShiftInvariantLoss()
    with two_replicas.scope():
        model = network()
        model.compile(keras.optimizers.SGD(0.01), loss=loss)
    model.fit(*data, batch_size=4, epochs=1, verbose=0)
    model.evaluate(*data, batch_size=4, verbose=0)
    assert updates(loss) == 2


def test_training_on_moved_labels_beats_the_plain_loss():
    """The smallest form of the main job: a linear filter learns to copy its input through moved labels."""
    rng = np.random.default_rng(0)
    field = scipy.ndimage.gaussian_filter(rng.standard_normal((64, 40, 40, 1)), (0, 1, 1, 0)).astype(np.float32)
    field /= field.std()
    shifts = rng.integers(-2, 3, (32, 2))
    shifts = np.concatenate([shifts, -shifts])
    inputs = field[:, 12:28, 12:28]
    labels = np.stack([f[10 - y : 30 - y, 10 - x : 30 - x] for f, (y, x) in zip(field, shifts)])

    def error(loss, labels):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((None, None, 1)), keras.layers.Conv2D(1, 5, padding="same")])
        model.compile(keras.optimizers.Adam(0.02), loss=loss)
        model.fit(inputs, labels, batch_size=16, epochs=60, verbose=0)
        return np.abs(model.predict(inputs, verbose=0) - inputs)[:, 3:-3, 3:-3].mean()

    plain = error("mae", labels[:, 2:-2, 2:-2])
    ours = error(tfalign.ShiftInvariantLoss(max_shift=2), labels)
    assert ours < 0.1 * plain
