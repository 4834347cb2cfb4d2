"""The networks, losses and labels that users bring to a `DeformableModel`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfalign
from tests.models.test_deformable import bending as bent
from tests.models.test_deformable import small, warper
from tfalign import drift
from tfalign.models import DeformableModel
from tfalign.models._bent_labels import Task, where_known
from tfalign.models._equivariance import moved_alike
from tfalign.ops import geometry

CONVOLUTIONS = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D, 3: keras.layers.Conv3D}


def convolved(channels=1, activation=None, rank=2, first=(), **options):
    """A predictor of one convolution after the layers `first`."""
    keras.utils.set_random_seed(3)
    inputs = values = keras.Input((None,) * rank + (1,))
    for layer in first:
        values = layer(values)
    layer = CONVOLUTIONS[rank](channels, 3, padding="same", activation=activation, **options)
    return keras.Model(inputs, layer(values))


def bending(network, loss="mae", **options):
    keras.utils.set_random_seed(4)
    model = DeformableModel(network, warper(), **{"warmup_steps": 0, **options})
    model.compile("adam", loss=loss, run_eagerly=True)
    return model


def pictures(rng, shape=(2, 16, 16)):
    return rng.standard_normal((*shape, 1)).astype(np.float32)


def test_the_twin_of_a_predictor_that_normalises_is_its_twin(rng):
    x = 100 + 50 * pictures(rng)
    scaled = keras.layers.Normalization(axis=-1)
    scaled.adapt(x)
    model = bending(convolved(first=[scaled]), momentum=0.0)
    np.testing.assert_allclose(model.predictor_twin(x), model.predictor(x), rtol=1e-5)
    for _ in range(2):
        model.train_on_batch(x, x)
    np.testing.assert_allclose(model.predictor_twin(x), model.predictor(x), rtol=1e-4, atol=1e-4)


def test_evaluation_leaves_the_statistics_of_the_predictor_alone(rng):
    normalised = keras.layers.BatchNormalization()
    x = pictures(rng)
    model = bending(convolved(first=[normalised]), equivariance=0.1)
    before = np.array(normalised.moving_mean)
    model.test_on_batch(x + 3, x)
    np.testing.assert_array_equal(normalised.moving_mean, before)
    model.train_on_batch(x + 3, x)
    assert np.all(np.array(normalised.moving_mean) != before)


def test_categorical_losses_are_finite_where_a_prediction_moves_out(rng):
    x = pictures(rng)
    labels = np.eye(3, dtype=np.float32)[rng.integers(0, 3, (2, 16, 16))]
    model = bending(convolved(3, "softmax"), "categorical_crossentropy", moving="prediction")
    logs = model.train_on_batch(x, labels, return_dict=True)
    assert np.isfinite(logs["loss"])
    assert np.isfinite(logs["warp_loss"])
    assert np.isfinite(model.test_on_batch(x, labels, return_dict=True)["loss"])


@keras.saving.register_keras_serializable(package="tests")
def of_each_sample(y_true, y_pred):
    return tf.reduce_mean(tf.abs(y_true - y_pred), axis=[1, 2, 3])


def test_samples_have_their_own_weights_where_a_loss_gives_one_value_for_each(rng):
    x = pictures(rng)
    model = bending(convolved(), of_each_sample)

    def both(samples=slice(None), **options):
        logs = model.test_on_batch(x[samples], 2 * x[samples], return_dict=True, **options)
        return np.array([logs["loss"], logs["warp_loss"]])

    for kept in (0, 1):
        weight = np.zeros(2, np.float32)
        weight[kept] = 2
        np.testing.assert_allclose(both(sample_weight=weight), both([kept]), rtol=1e-5)
    assert np.all(np.abs(both([0]) - both([1])) > 1e-3)


@pytest.mark.parametrize("with_search", [False, True])
def test_a_sample_of_weight_0_tells_no_drift(rng, with_search):
    """Nor does one whose label has no values, whatever the warp network makes of it."""
    x = pictures(rng)
    labels, unknown = np.array(x), np.array(x)
    labels[0] = np.roll(x[0], 2, axis=0)
    unknown[0] = np.nan
    states = []
    for samples, y, weight in ((1, labels, [0, 1]), (0, labels, [0, 1]), (0, unknown, [1, 1]), (0, labels, [1, 1])):
        loss = tfalign.ShiftInvariantLoss("mae", max_shift=2, warmup_steps=0) if with_search else "mae"
        model = bending(convolved(), loss)
        for network in (model.warp_network, model.warp_network_twin):
            bent(network)
        model.train_on_batch(x[samples:], y[samples:], sample_weight=np.float32(weight[samples:]))
        states.append(drift.unpack(tf.convert_to_tensor(model.drift_state)).shift.numpy())
    np.testing.assert_allclose(states[1], states[0], atol=1e-5)
    np.testing.assert_allclose(states[2], states[0], atol=1e-5)
    assert np.max(np.abs(states[3] - states[0])) > 1e-3


def test_what_a_mask_leaves_out_does_not_matter(rng):
    x = pictures(rng)
    mask = np.ones_like(x)
    mask[:, 4:8, 4:8] = 0
    logs = []
    for junk in (0.0, 50.0):
        loss = tfalign.ShiftInvariantLoss("mae", max_shift=2, label_extras=("mask",))
        label = np.where(mask > 0, x, junk)
        model = bending(convolved(), loss)
        logs.append(model.train_on_batch(x, np.concatenate([label, mask], axis=-1), return_dict=True))
        aligned = model.align(x, np.concatenate([label, mask], axis=-1))
        assert np.all(aligned.mask[:, 5:7, 5:7] == 0)
    for name in logs[0]:
        np.testing.assert_allclose(logs[0][name], logs[1][name], rtol=1e-5)


def test_an_anchor_stays_one_where_the_label_has_holes(rng):
    """And its label is not moved: it is known to lie right."""
    x = pictures(rng, (4, 24, 24))
    label = np.roll(x, 3, axis=1)
    label[:, :, :14] = np.nan
    anchors = np.zeros_like(x)
    anchors[:2] = 1
    loss = tfalign.ShiftInvariantLoss("mse", max_shift=4, label_extras=("anchor",))
    identity = convolved(kernel_initializer=keras.initializers.Constant(np.eye(9)[4].reshape(3, 3, 1, 1)))
    model = bending(identity, loss)
    moved = model.align(x, np.concatenate([label, anchors], axis=-1)).displacement.numpy()[..., 0].mean(axis=(1, 2))
    np.testing.assert_allclose(moved, [0, 0, 3, 3], atol=0.3)
    model.train_on_batch(x, np.concatenate([label, anchors], axis=-1))
    assert drift.unpack(tf.convert_to_tensor(loss.state)).anchored[0] > 0


@pytest.mark.parametrize("mode", ["graph", pytest.param("xla", marks=pytest.mark.slow)])
@pytest.mark.parametrize("searches", [False, True])
def test_compiled_it_trains_as_eagerly(rng, mode, searches):
    """Masks, anchors, weights of samples, and what runs in training alone."""
    x = pictures(rng, (4, 16, 16))
    extras = [np.ones_like(x), np.zeros_like(x)]
    extras[0][:, 4:8, 4:8] = 0
    extras[1][:2] = 1
    label = np.concatenate([np.roll(x, 2, axis=1), *extras], axis=-1) if searches else np.roll(x, 1, axis=1)
    logs = []
    for eagerly in (True, False):
        loss = of_each_sample
        if searches:
            loss = tfalign.ShiftInvariantLoss("mae", max_shift=3, label_extras=("mask", "anchor"))
        model = bending(convolved(), loss, equivariance=0.1)
        model.compile(keras.optimizers.SGD(1e-4), loss, run_eagerly=eagerly, jit_compile=mode == "xla" and not eagerly)
        weight = np.array([1, 2, 0, 1], np.float32)
        for _ in range(3):
            told = model.train_on_batch(x, label, sample_weight=weight, return_dict=True)
        logs.append([*told.values(), *model.test_on_batch(x, label, return_dict=True).values()])
    np.testing.assert_allclose(logs[0], logs[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("size", "rank"), [((2, 1, 16, 16), 3), ((2, 16, 1), 2)])
def test_along_an_axis_of_one_pixel_nothing_moves(rng, size, rank):
    x = pictures(rng, size)
    model = bending(convolved(rank=rank))
    before = model.predictor.get_weights()
    assert model.train_on_batch(x, x, return_dict=True)["loss"] > 0
    assert any(np.any(old != new) for old, new in zip(before, model.predictor.get_weights()))
    field = model.align(x, x).displacement.numpy()
    single = size[1:].index(1)
    np.testing.assert_allclose(field[..., single], 0, atol=1e-6)
    assert np.max(np.abs(field)) > 1e-4


def test_pixels_without_data_are_as_predicted_whatever_the_loss():
    prediction = tf.constant(np.random.default_rng(0).dirichlet(np.ones(3), (1, 4)), tf.float32)
    known = tf.constant([[1.0, 1.0, 0.0, 0.0]]) > 0
    classes = tf.zeros([1, 4, 1])
    label, _ = where_known(classes, prediction, known, Task.of("sparse_categorical_crossentropy"))
    np.testing.assert_array_equal(label[0, 2:, 0], np.argmax(prediction[0, 2:], axis=-1))
    np.testing.assert_array_equal(label[0, :2, 0], [0, 0])


def test_the_search_is_that_of_the_loss(rng):
    """Windows of one bound for each axis, and values that mark holes."""
    x = pictures(rng, (2, 12, 64))
    identity = convolved(kernel_initializer=keras.initializers.Constant(np.eye(9)[4].reshape(3, 3, 1, 1)))
    model = bending(identity, tfalign.ShiftInvariantLoss("mae"))
    label = np.roll(x, 7, axis=2)
    label[:, 5, 5] = 9.97e36
    aligned = model.align(x, label)
    np.testing.assert_allclose(aligned.displacement[..., 1], 7, atol=0.3)
    logs = model.test_on_batch(x, label, return_dict=True)
    assert logs["loss"] < 0.1
    assert logs["warp_loss"] < 0.1


def test_what_layers_add_to_the_loss_counts_once(rng):
    x = pictures(rng)
    network = convolved(activity_regularizer=keras.regularizers.L2(0.1))
    plain = keras.models.clone_model(network)
    plain.set_weights(network.get_weights())
    plain.compile("sgd", "mae", run_eagerly=True)
    found = bending(network).test_on_batch(x, x, return_dict=True)["loss"]
    np.testing.assert_allclose(found, plain.test_on_batch(x, x, return_dict=True)["loss"], rtol=0.05)


def test_a_predictor_of_double_precision_trains(rng):
    inputs = keras.Input((None, None, 1), dtype="float64")
    network = keras.Model(inputs, keras.layers.Conv2D(1, 3, padding="same", dtype="float64")(inputs))
    x = pictures(rng).astype(np.float64)
    model = bending(network)
    logs = [model.train_on_batch(x, x, return_dict=True)["loss"] for _ in range(5)]
    assert logs[-1] < logs[0]


def test_a_nested_network_with_layers_that_keras_cannot_find(rng):
    class Doubled(keras.layers.Layer):
        def call(self, inputs):
            return 2 * inputs

    inside = keras.Sequential([keras.Input((None, None, 1)), Doubled(), keras.layers.Conv2D(1, 1)])
    x = pictures(rng)
    model = bending(convolved(first=[inside]))
    np.testing.assert_allclose(model.predictor_twin(x), model.predictor(x), rtol=1e-6)
    model.train_on_batch(x, x)
    assert np.any(np.array(model.predictor_twin(x)) != np.array(model.predictor(x)))


def test_turns_do_not_follow_from_flips(monkeypatch):
    drawn = []

    def make(translation, rotation, scale):
        drawn.append((rotation[0, 0] > 0, scale[0, 0] > 0))
        return geometry.identity(1, 2)

    monkeypatch.setattr("tfalign.models._equivariance.geometry.make", make)
    x = tf.zeros([1, 8, 8, 1])
    for seed in range(60):
        moved_alike(x, x, ("flip", "rotate"), seed=seed)
    assert {(bool(turned), bool(flipped)) for turned, flipped in drawn} == {(a, b) for a in (0, 1) for b in (0, 1)}


def test_the_first_batch_may_be_one_to_align(rng):
    network = keras.Sequential([keras.layers.Conv2D(1, 3, padding="same")])
    model = bending(network)
    with pytest.raises(ValueError, match="no drift before the first batch"):
        _ = model.drift
    x = pictures(rng)
    assert model.align(x, x).label.shape == x.shape
    np.testing.assert_allclose(model.drift, [0, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"warp_loss": 3}, TypeError, "`warp_loss` must be the name of a Keras loss.*warp_loss=3"),
        ({"warp_loss": "sparse_categorical_crossentropy"}, ValueError, "`warp_loss` must compare probabilities"),
    ],
)
def test_bad_losses_of_the_warp_network(options, error, text):
    with pytest.raises(error, match=text):
        small(**options)


def test_what_does_not_fit_is_refused(rng):
    x = pictures(rng)

    def refused(text, network=None, x=x, y=x, **options):
        model = bending(convolved() if network is None else network, **options)
        with pytest.raises(ValueError, match=text):
            model.train_on_batch(x, y)

    signal = x[:, 0]
    refused("`groups` cannot be kept apart", loss=tfalign.ShiftInvariantLoss(groups=[(0,)]))
    refused("`loss` must be one loss, of one output", loss={"conv2d": "mae"})
    turned = {"equivariance": 1, "equivariances": ["rotate"]}
    refused("Signals have no rotations", convolved(rank=1), signal, signal, **turned)
    doubled = convolved(first=[keras.layers.UpSampling2D()])
    refused("must be of one size", doubled, y=np.repeat(np.repeat(x, 2, axis=1), 2, axis=2), **turned)
    hidden = keras.Sequential([keras.Input((None, 1)), keras.layers.Masking(), keras.layers.Dense(1)])
    refused("must not carry a Keras mask", hidden, signal, signal)
    wide = DeformableModel(convolved(), warper(rank=2, channels=3))
    wide.compile("sgd", "mae")
    with pytest.raises(ValueError, match="must have the rank and channels of the network"):
        wide.test_on_batch(x, x)
