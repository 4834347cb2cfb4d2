import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

import tfalign
from tfalign.data import misalign
from tfalign.models import DeformableModel
from tfalign.models._bent_labels import Task
from tfalign.models.deformable import _moved_back
from tfalign.ops import displacements, geometry

SIZE, MARGIN = 16, 4


def scene(count=8, channels=2, seed=0, rms=0.8, size=SIZE, margin=MARGIN, length=8.0):
    """Inputs, their true pictures, bent labels with a margin, and the displacements, input -> label."""
    side = size + 2 * margin
    noise = np.random.default_rng(seed).standard_normal((count, side, side, 1))
    x = 4 * ndimage.gaussian_filter(noise, (0, 2, 2, 0), mode="wrap").astype(np.float32)
    truth = np.concatenate([np.tanh(x), x**2][:channels], axis=-1)
    if not rms:
        return x[:, margin:-margin, margin:-margin], truth[:, margin:-margin, margin:-margin], truth, None
    back = misalign.draw_elastic(count, shape=(side, side), rms=rms, correlation_length=length, paired=True, seed=seed)
    labels, _ = tfalign.warp(truth, back.astype(np.float32), interpolation="cubic")
    inner = (slice(None), slice(margin, -margin), slice(margin, -margin))
    fields = np.stack([misalign.inverse_displacement(one) for one in back])
    return x[inner], truth[inner], labels.numpy(), fields[inner].astype(np.float32)


def predictor(channels=2, rank=2, **options):
    keras.utils.set_random_seed(7)
    return tfalign.models.unet(rank, output_channels=channels, filters=4, depth=2, **options)


def warper(**options):
    return tfalign.models.warp_network(**{"filters": 4, "depth": 1, "spacing": 2, "squarings": 2, **options})


def bending(network, scale=0.3):
    """The network with weights by which it bends."""
    rng = np.random.default_rng(5)
    for layer in network.convolutions:
        if layer.name.endswith("field"):
            kernel, bias = layer.get_weights()
            small_step = 0.1 if layer.name.startswith("last") else 1.0
            layer.set_weights([small_step * scale * rng.standard_normal(kernel.shape), bias])
    return network


def small(channels=2, rank=2, bent=False, **options):
    keras.utils.set_random_seed(11)
    network = warper(rank=rank, channels=channels)
    options = {"warmup_steps": 0, **options}
    return DeformableModel(predictor(channels, rank), bending(network) if bent else network, **options)


def gradients(model, x, y, weight=None):
    """The gradient of the loss to every weight of the model, frozen ones too, by the path of the weight."""
    x, y = tf.constant(x), tf.constant(y)
    variables = [*model.predictor.weights, *model.warp_network.weights]
    variables += [*model.predictor_twin.weights, *model.warp_network_twin.weights]
    with tf.GradientTape() as tape:
        for one in variables:
            tape.watch(_tensor(one))
        loss = model.compute_loss(x, y, model(x, training=True), weight)
    return loss, tape.gradient(loss, [_tensor(one) for one in variables])


def _tensor(weight):
    """The TensorFlow variable of a Keras variable, in either Keras."""
    return weight if isinstance(weight, tf.Variable) else weight.value


def copy_weights(model, other):
    for name in ("predictor", "warp_network", "predictor_twin", "warp_network_twin"):
        getattr(other, name).set_weights(getattr(model, name).get_weights())


def learning(network):
    """Layers with weights."""
    return [layer for layer in network.layers if layer.weights]


def weights(model):
    """Those of the networks and the state; Keras 2 counts metrics too."""
    networks = (model.predictor, model.warp_network, model.predictor_twin, model.warp_network_twin)
    return [*(one for network in networks for one in network.get_weights()), model.drift]


def split(model, values):
    first = len(model.predictor.weights)
    second = first + len(model.warp_network.weights)
    return values[:first], values[first:second], values[second:]


def test_calling_is_predicting_and_twins_start_alike(rng):
    model = small()
    x = rng.standard_normal((2, 9, 12, 1)).astype(np.float32)
    np.testing.assert_array_equal(model(x), model.predictor(x))
    np.testing.assert_array_equal(model.predictor_twin(x), model.predictor(x))
    pair = [model(x), model(x)]
    np.testing.assert_array_equal(model.warp_network_twin(pair), model.warp_network(pair))
    assert not model.predictor_twin.trainable_weights
    assert not model.warp_network_twin.trainable_weights
    assert len(model.trainable_weights) == len(model.predictor.weights) + len(model.warp_network.weights)


@pytest.mark.parametrize("moving", ["label", "prediction"])
def test_frozen_weights_get_no_gradient_and_the_others_one(moving):
    x, _, y, _ = scene(2)
    model = small(moving=moving, bent=True)
    model.compile("sgd", loss="mse")
    loss, found = gradients(model, x, y)
    of_predictor, of_warp_network, of_twins = split(model, found)
    assert np.isfinite(loss)
    for gradient in [*of_predictor, *of_warp_network]:
        assert gradient is not None
        assert np.all(np.isfinite(gradient))
    assert all(np.any(np.asarray(g) != 0) for g in of_predictor)
    assert np.mean([np.any(np.asarray(g) != 0) for g in of_warp_network]) > 0.8
    assert of_twins == [None] * len(of_twins)


def test_the_predictor_does_not_learn_through_the_warp_network_unless_asked_to():
    x, _, y, _ = scene(2)
    cut, uncut = (small(bent=True, laid_on="predictor", stop_gradient=option) for option in (True, False))
    copy_weights(cut, uncut)
    for model in (cut, uncut):
        model.compile("sgd", loss="mse")
    # With the label held still, the gradient is that of the plain loss on it.
    aligned = cut.align(x, y)
    target = tf.constant(np.where(aligned.mask[..., None] > 0, aligned.label, cut(x)))
    with tf.GradientTape() as tape:
        plain = tf.reduce_mean(tf.square(target - cut.predictor(x)))
    expected = tape.gradient(plain, cut.predictor.trainable_weights)
    found, other = (split(model, gradients(model, x, y)[1])[0] for model in (cut, uncut))
    for one, two in zip(found, expected):
        np.testing.assert_allclose(one, two, atol=2e-5)
    assert max(np.max(np.abs(one - two)) for one, two in zip(found, other)) > 1e-3


@pytest.mark.parametrize("laid_on", ["twin", "predictor"])
def test_whose_prediction_the_labels_are_laid_on(laid_on):
    x, _, y, _ = scene(2)
    model = small(bent=True, laid_on=laid_on, center=False, interpolation="linear")
    model.compile("sgd", loss="mse")
    model.predictor_twin.set_weights([1.5 * one for one in model.predictor.get_weights()])
    prediction = (model.predictor_twin if laid_on == "twin" else model.predictor)(x)
    label, mask = tfalign.warp(tf.constant(y), model.warp_network_twin([prediction, tf.constant(y)]))
    label = tf.where(mask[..., tf.newaxis] > 0, label, model(x))
    with tf.GradientTape() as tape:
        plain = tf.reduce_mean(tf.square(label - model.predictor(x)))
    expected = tape.gradient(plain, model.predictor.trainable_weights)
    for one, two in zip(split(model, gradients(model, x, y)[1])[0], expected):
        np.testing.assert_allclose(one, two, atol=2e-5)


def test_smoothness_counts_slopes_in_units_of_the_loss_by_chance():
    x, _, y, _ = scene(3)
    rough, smooth = (small(bent=True, center=False, smoothness=weight) for weight in (0.0, 0.7))
    copy_weights(smooth, rough)
    found = []
    for model in (rough, smooth):
        model.compile("sgd", loss="mse")
        found.append(split(model, gradients(model, x, y)[1])[1])
    label, mask, _ = smooth.align(x, y)
    errors = np.mean(np.square(label - smooth.predictor_twin(x)[:, ::-1, ::-1]), axis=-1)
    chance = np.mean(np.sum(errors * mask, axis=(1, 2)) / np.sum(mask, axis=(1, 2)))
    assert chance > 1.02 * float(smooth.warp_loss_tracker.result())
    with tf.GradientTape() as tape:
        fields = smooth.warp_network([smooth.predictor_twin(x), tf.constant(y)])
        penalty = 0.7 * chance * tf.reduce_mean(displacements.smoothness_energy(fields))
    for one, two, added in zip(*found, tape.gradient(penalty, smooth.warp_network.trainable_weights)):
        np.testing.assert_allclose(two - one, added, rtol=5e-3, atol=1e-6)


def test_the_warp_network_gains_nothing_by_shrinking_what_the_prediction_lacks():
    """Its loss is a mean over the label: the spots below are as large there whatever it makes of them."""
    rows, columns = np.mgrid[:24, :24] - 11.5
    spots = [np.exp(-((rows - a) ** 2 + (columns - b) ** 2) / 8.0) for a, b in ((0, 0), (-1, 2), (1, 0))]
    y = np.stack(spots).astype(np.float32)[..., None]
    x = np.zeros_like(y)
    steepest = []
    models = [small(1, center=False, smoothness=0.0, by_area=option) for option in (True, False)]
    for network in (models[0].predictor, models[0].predictor_twin):
        network.set_weights([np.zeros_like(one) for one in network.get_weights()])
    for network in (models[0].warp_network, models[0].warp_network_twin):
        bending(network, 0.1)
    for model in models:
        copy_weights(models[0], model)
        model.compile("sgd", loss="mae")
        _, found, _ = split(model, gradients(model, x, y)[1])
        steepest.append(max(np.max(np.abs(one)) for one in found))
        area = displacements.jacobian_determinant(model.warp_network([x, y]))
        assert 0.1 < np.max(np.abs(area - 1.0)) < 0.9
        label, mask, _ = model.align(x, y)
        weight = np.where(mask > 0, area if model.by_area else 1.0, 0.0)
        errors = np.where(mask > 0, np.abs(label[..., 0]), 0.0) * weight
        expected = np.mean(np.sum(errors, axis=(1, 2)) / np.sum(weight, axis=(1, 2)))
        np.testing.assert_allclose(model.warp_loss_tracker.result(), expected, rtol=1e-4)
    assert steepest[0] < 0.1 * steepest[1], steepest


def test_synchronous_twins_and_one_loss_are_joint_training():
    """Gradient for gradient, with every pixel inside the label."""
    x, _, y, _ = scene(2, rms=0.3, margin=6)
    options = {"laid_on": "predictor", "stop_gradient": False, "center": False, "smoothness": 0.0, "by_area": False}
    model = small(bent=True, momentum=0.0, interpolation="linear", **options)
    model.compile("sgd", loss="mse")
    _, found = gradients(model, x, y)
    networks = [*model.predictor.trainable_weights, *model.warp_network.trainable_weights]
    with tf.GradientTape() as tape:
        prediction = model.predictor(x, training=True)
        field = model.warp_network([prediction, tf.constant(y)], training=True)
        warped, mask = tfalign.warp(tf.constant(y), field)
        joint = tf.reduce_mean(tf.square(warped - prediction))
    assert np.min(mask) == 1.0
    assert np.max(np.abs(field)) > 0.1
    for one, two in zip(found, tape.gradient(joint, networks)):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)


def test_the_predictor_learns_slowly_at_first_and_the_warp_network_at_once():
    x, _, y, _ = scene(2)
    model = small(bent=True, warmup_steps=2, center=False)
    at_once = small(bent=True, center=False)
    copy_weights(at_once, model)
    for one in (model, at_once):
        one.compile(keras.optimizers.SGD(0.0), loss="mse", run_eagerly=True)
    wanted = split(at_once, gradients(at_once, x, y)[1])
    # Two steps as slow as can be, and then a hundred until it learns as fast as the other.
    for share in (0.3, 0.3, 0.307, 0.314):
        found = split(model, gradients(model, x, y)[1])
        for one, two in zip(found[0], wanted[0]):
            np.testing.assert_allclose(one, share * np.asarray(two), rtol=1e-3, atol=1e-7)
        for one, two in zip(found[1], wanted[1]):
            np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-7)
    model.steps.assign(101.0)
    for one, two in zip(gradients(model, x, y)[1], gradients(at_once, x, y)[1]):
        np.testing.assert_allclose(0.0 if one is None else one, 0.0 if two is None else two, rtol=1e-3, atol=1e-7)


def test_a_loss_that_searches_brings_a_warm_up_of_its_own():
    x, _, y, _ = scene(2)
    model, at_once = small(bent=True, warmup_steps=5), small(bent=True)
    copy_weights(at_once, model)
    for one in (model, at_once):
        one.compile("sgd", loss=tfalign.ShiftInvariantLoss("mse", max_shift=1, warmup_steps=0))
    for one, two in zip(split(model, gradients(model, x, y)[1])[0], split(at_once, gradients(at_once, x, y)[1])[0]):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"momentum": 0.0}, [1, 1, 1, 1]),
        ({"momentum": 0.0, "follow_every": 2}, [0, 1, 0, 1]),
        ({"momentum": 0.5}, [2 / 11, 3 / 12, 4 / 13, 5 / 14]),
        ({"momentum": 1.0, "follow_every": 3}, [0, 0, 4 / 13, 0]),
    ],
)
def test_how_twins_follow(options, expected):
    """`expected`: what is kept of the old twin, or for momentum 0 whether it is a copy."""
    x, _, y, _ = scene(2)
    model = small(**options)
    model.compile("sgd", loss="mse", run_eagerly=True)
    source, twin = model.predictor, model.predictor_twin
    for share in expected:
        before = twin.get_weights()
        model.train_on_batch(x, y)
        for old, new, now in zip(before, source.get_weights(), twin.get_weights()):
            if options["momentum"] == 0.0:
                np.testing.assert_array_equal(now, new if share else old)
            else:
                kept = share if (options.get("follow_every", 1) == 1 or share) else 1.0
                np.testing.assert_allclose(now, new + kept * (old - new), atol=1e-6)
    assert np.max(np.abs(source.get_weights()[0] - before[0])) > 0


def test_chosen_layers_are_frozen_and_the_others_shared():
    x, _, y, _ = scene(2)
    network = predictor()
    names = [layer.name for layer in learning(network)][:2]
    model = DeformableModel(network, bending(warper(rank=2, channels=2)), frozen=[*names, "warp_network"], momentum=0.5)
    model.compile("sgd", loss="mse", run_eagerly=True)
    for layer, twin in zip(*(learning(one) for one in (model.predictor, model.predictor_twin))):
        assert layer.name == twin.name
        assert (layer is twin) == (layer.name not in names)
        assert layer.trainable
        assert twin.trainable == (layer.name not in names)
    frozen = [twin for twin in learning(model.predictor_twin) if twin.name in names]
    before = [layer.get_weights() for layer in frozen]
    model.fit(x, y, epochs=1, verbose=0)
    assert all(np.any(a[0] != layer.get_weights()[0]) for a, layer in zip(before, frozen))
    # A shared layer learns from both branches: it has a gradient where the f-branch is taken out.
    shared = model.predictor_twin.layers[-1]
    with tf.GradientTape() as tape:
        field = model.warp_network([model.predictor_twin(x), y[:, MARGIN:-MARGIN, MARGIN:-MARGIN]])
        total = tf.reduce_sum(tf.square(field))
    assert tape.gradient(total, shared.trainable_weights[0]) is not None
    parts = model.warp_network_twin.convolutions
    assert not any(one is two for one, two in zip(parts, model.warp_network.convolutions))


def test_chosen_layers_of_the_warp_network():
    network = warper(rank=2, channels=2)
    name = network.convolutions[0].name
    model = DeformableModel(predictor(), network, frozen=[name])
    same = [one is two for one, two in zip(network.convolutions, model.warp_network_twin.convolutions)]
    assert same == [False] + [True] * (len(same) - 1)
    assert not model.warp_network_twin.convolutions[0].trainable
    pairs = zip(*(learning(one) for one in (model.predictor, model.predictor_twin)))
    assert all(one is two for one, two in pairs)


FIT = {
    "graph": {},
    "eager": {"run_eagerly": True},
    "xla": {"jit_compile": True},
    "steps": {"steps_per_execution": 2},
}


@pytest.fixture(scope="module")
def fitted():
    """Weights and logs after the same training, compiled in every way."""
    x, _, y, _ = scene(8)
    results = {}

    def of(mode):
        if mode not in results:
            # Bent: a field of nearly 0 reads at whole pixels, where rounding decides which slope the gradient is of.
            model = small(bent=True)
            model.compile("sgd", loss="mse", **{"jit_compile": False, **FIT[mode]})
            logs = model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0).history
            results[mode] = weights(model), logs, model.evaluate(x, y, verbose=0, return_dict=True)
        return results[mode]

    return of


@pytest.mark.parametrize("mode", ["eager", *(pytest.param(one, marks=pytest.mark.slow) for one in ("xla", "steps"))])
def test_every_way_to_compile_gives_the_same_training(fitted, mode):
    expected, logs, evaluated = fitted("graph")
    other, other_logs, other_evaluated = fitted(mode)
    for one, two in zip(expected, other):
        np.testing.assert_allclose(two, one, atol=2e-5)
    assert {"loss", "warp_loss", "displacement", "folds"} <= set(logs)
    for name in ("loss", "warp_loss", "displacement"):
        np.testing.assert_allclose(other_logs[name], logs[name], rtol=5e-3, atol=1e-4)
        np.testing.assert_allclose(other_evaluated[name], evaluated[name], rtol=5e-3, atol=1e-4)
    assert logs["folds"] == [0.0, 0.0]


def test_evaluation_changes_nothing_and_logs_the_compiled_loss_alone():
    x, _, y, _ = scene(4, rms=0)
    y[:, 8:12, 9:14] = np.nan
    model = small(smoothness=50.0, bent=True)
    model.compile("sgd", loss="mae")
    before = weights(model)
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    for one, two in zip(before, weights(model)):
        np.testing.assert_array_equal(one, two)
    aligned = model.align(x, y)
    # Without data the prediction stands in for the label.
    expected = np.mean(np.where(aligned.mask[..., None] > 0, np.abs(aligned.label - model(x)), 0))
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-4)


def test_the_drift_is_what_the_displacements_have_in_common_and_is_taken_out():
    x, _, y, _ = scene(4, rms=0)
    model = small(momentum=1.0)
    for network in (model.warp_network, model.warp_network_twin):
        for layer in network.convolutions:
            kernel, _ = layer.get_weights()
            last = layer.name == "level_0_field"
            layer.set_weights([0 * kernel, np.array([0.6, -0.4]) if last else np.zeros(kernel.shape[-1])])
    model.compile(keras.optimizers.SGD(0.0), loss="mae", run_eagerly=True)
    np.testing.assert_allclose(model.drift, [0.0, 0.0], atol=1e-6)
    found = model.align(x, y)
    np.testing.assert_allclose(found.displacement, np.broadcast_to([1.2, -0.8], found.displacement.shape), atol=0.02)
    model.fit(x, y, epochs=30, verbose=0)
    np.testing.assert_allclose(model.drift, [1.2, -0.8], atol=0.02)
    found = model.align(x, y)
    np.testing.assert_allclose(found.displacement, np.zeros_like(found.displacement), atol=0.03)
    np.testing.assert_allclose(found.label, y[:, MARGIN:-MARGIN, MARGIN:-MARGIN], atol=0.05)
    # The label that the warp network learns from keeps it: only what the predictor learns from is centred.
    not_centered = small(center=False)
    copy_weights(model, not_centered)
    assert np.min(np.abs(not_centered.align(x, y).displacement)) > 0.7


def learned(moving="label", steps=100, **options):
    """A model that has seen the same bent labels often; its inputs, truth, labels and fields."""
    x, truth, y, fields = scene(16, rms=1.2, size=20, margin=6)
    keras.utils.set_random_seed(3)
    model = DeformableModel(
        tfalign.models.unet(output_channels=2, filters=8, depth=2),
        warper(rank=2, channels=2, filters=8, depth=2),
        moving=moving,
        interpolation="linear",
        **options,
    )
    model.compile(keras.optimizers.Adam(5e-3), loss="mae")
    data = tf.data.Dataset.from_tensor_slices((x, y)).repeat().batch(16)
    model.fit(data, steps_per_epoch=steps, verbose=0)
    return model, x, truth, y, fields


@pytest.mark.parametrize("moving", ["label", pytest.param("prediction", marks=pytest.mark.slow)])
def test_fit_recovers_the_fields_either_way_without_folds(moving):
    model, x, truth, y, fields = learned(moving)
    found = model.align(x, y)
    inner = (slice(None), slice(3, -3), slice(3, -3))
    known = np.isfinite(fields[inner])
    error = np.where(known, np.asarray(found.displacement)[inner] - fields[inner], 0)
    rms = np.sqrt(np.mean(np.where(known, fields[inner], 0) ** 2))
    assert rms > 0.8
    assert np.sqrt(np.mean(error**2)) < 0.5 * rms
    np.testing.assert_array_equal(displacements.fold_share(found.displacement), np.zeros(16))
    assert np.max(np.abs(model.drift)) < 0.2
    before = np.mean(np.abs(y[:, 6:-6, 6:-6] - truth)[inner])
    assert np.mean(np.abs(found.label - truth)[inner]) < 0.6 * before


def test_a_network_of_the_users_gets_labels_of_the_predictions_size_without_holes():
    x, _, y, _ = scene(2, rms=0.3)
    y[:, 8:10, 8:10] = np.nan
    sides = [keras.Input((SIZE, SIZE, 2)), keras.Input((SIZE, SIZE, 2))]
    both = keras.layers.Concatenate()(sides)
    network = keras.Model(sides, keras.layers.Conv2D(2, 3, padding="same")(both))
    model = DeformableModel(predictor(), network)
    model.compile("sgd", loss="mae")
    loss, found = gradients(model, x, y)
    assert np.isfinite(loss)
    assert all(np.all(np.isfinite(one)) for one in split(model, found)[1])
    assert np.all(np.isfinite(model.align(x, y).displacement))


def test_a_prediction_is_moved_back_from_where_its_label_is_read():
    """A picture of its own coordinates u arrives at v = T (u + field(u))."""
    size = (20, 18)
    field = misalign.draw_elastic(1, shape=size, rms=1.0, correlation_length=6.0, seed=4).astype(np.float32)
    moves = geometry.make(np.float32([[1.5, -0.5]]), rotation=np.float32([[8.0]]))
    moved, mask = _moved_back(geometry.centered_grid(size)[tf.newaxis], tf.constant(field), moves)
    read = geometry.apply_to_points(moves, tf.reshape(moved + displacements.at_points(field, moved), [1, -1, 2]))
    error = np.abs(tf.reshape(read, moved.shape) - geometry.centered_grid(size))[:, 4:-4, 4:-4]
    assert np.all(np.asarray(mask)[:, 4:-4, 4:-4] == 1.0)
    assert np.max(error) < 0.1
    assert np.sqrt(np.mean(error**2)) < 0.02


def test_a_large_shift_is_found_first_and_the_rest_is_bent():
    """By the search of the compiled loss; the warp network alone could not reach it."""
    x, truth, y, _ = scene(4, channels=1, rms=0, margin=8)
    shifts = np.array([[5, 0], [-4, 3], [0, -7], [3, 0]])
    moved = np.stack([np.roll(one, shift, axis=(0, 1)) for one, shift in zip(y, shifts)])
    network = keras.Sequential([keras.Input((None, None, 1)), keras.layers.Conv2D(1, 1, dtype="float32")])
    network.set_weights([np.float32([[[[0.8]]]]), np.zeros(1, np.float32)])
    model = DeformableModel(network, warper(rank=2, channels=1, max_displacement=1.0))
    model.compile("sgd", loss=tfalign.ShiftInvariantLoss("mae", max_shift=7), jit_compile=False)
    found = model.align(x, moved)
    rounded = np.round(np.mean(found.displacement, axis=(1, 2)))
    np.testing.assert_array_equal(rounded, shifts)
    np.testing.assert_allclose(found.label, truth, atol=0.1)
    history = model.fit(x, moved, epochs=50, verbose=0).history
    assert np.all(np.isfinite(history["loss"]))
    # The mean shift is not zero here: it is what all labels have in common.
    np.testing.assert_allclose(model.drift, np.mean(shifts, axis=0), atol=0.1)


BINARY = keras.losses.BinaryCrossentropy(from_logits=True)
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)


@pytest.mark.parametrize("moving", ["label", "prediction"])
@pytest.mark.parametrize(
    "loss",
    [BINARY, SPARSE, "binary_crossentropy", tfalign.ShiftInvariantLoss(SPARSE, max_shift=1)],
    ids=["logits", "sparse", "probabilities", "searched"],
)
def test_class_labels_train_and_pixels_without_data_do_not_count(rng, moving, loss):
    """The same gradients and loss whatever lies where there is no data."""
    x = rng.standard_normal((2, 12, 12, 1)).astype(np.float32)
    sparse = loss is SPARSE or isinstance(loss, tfalign.ShiftInvariantLoss)
    channels = 3 if sparse else 2
    classes = rng.integers(0, channels, (2, 16, 16))
    model = DeformableModel(
        predictor(channels, activation="sigmoid" if loss == "binary_crossentropy" else None),
        bending(warper(rank=2, channels=channels), 0.1),
        moving=moving,
    )
    model.compile("sgd", loss=loss)
    labels = classes[..., None].astype(np.float32) if sparse else np.eye(channels, dtype=np.float32)[classes]
    labels[:, 5:9, 4:8] = 255 if loss is SPARSE else np.nan
    loss_value, found = gradients(model, x, labels)
    of_predictor, of_warp_network, _ = split(model, found)
    assert np.isfinite(loss_value)
    for one in [*of_predictor, *of_warp_network]:
        assert np.all(np.isfinite(one))
    assert any(np.any(np.asarray(one) != 0) for one in of_warp_network)
    # Only where the label has data does a change of the prediction change anything.
    prediction = tf.Variable(model(x))
    with tf.GradientTape() as tape:
        value = model.compute_loss(tf.constant(x), tf.constant(labels), prediction)
    per_pixel = np.abs(np.asarray(tape.gradient(value, prediction))).sum(axis=-1)
    assert np.all(per_pixel[:, 5:6, 4:5] == 0)
    assert np.mean(per_pixel > 0) > 0.5


def test_blank_patches_and_labels_without_data_give_finite_training(rng):
    x = np.zeros((4, SIZE, SIZE, 1), np.float32)
    y = np.zeros((4, SIZE, SIZE, 2), np.float32)
    y[1], y[2], x[3] = np.nan, 5.0, rng.standard_normal((SIZE, SIZE, 1))
    model = small(bent=True, equivariance=1.0)
    model.compile("adam", loss="mae", run_eagerly=True)
    for _ in range(2):
        assert np.isfinite(model.train_on_batch(x, y, return_dict=True)["loss"])
    assert all(np.all(np.isfinite(one)) for one in model.get_weights())


def test_a_prediction_that_is_not_finite_is_seen_and_leaves_the_drift_alone():
    x, _, y, _ = scene(2)
    x[0, 3, 3] = np.nan
    model = small()
    model.compile("sgd", loss="mae", run_eagerly=True)
    assert not np.isfinite(model.evaluate(x, y, verbose=0, return_dict=True)["loss"])
    model.train_on_batch(x, y)
    assert np.all(np.isfinite(model.drift))


def test_the_equivariance_penalty_sees_an_offset_and_not_a_predictor_in_place():
    x, _, _, _ = scene(4, rms=0)
    ways = {"flip": 1e-6, "rotate": 0.05, "elastic": 0.05}

    def network(offset):
        one = keras.Sequential([keras.Input((None, None, 1)), keras.layers.Conv2D(2, 5, padding="same")])
        kernel = np.zeros((5, 5, 1, 2), np.float32)
        kernel[2, 2 + offset] = 1.0
        one.set_weights([kernel, np.zeros(2, np.float32)])
        return one

    found = {}
    for way in ways:
        for offset in (0, 1):
            model = DeformableModel(network(offset), warper(rank=2, channels=2), equivariance=1, equivariances=[way])
            model.compile("sgd", loss="mae")
            found[way, offset] = float(model._inequivariance(tf.constant(x), model(x), Task.of("mae")))
        assert found[way, 0] <= ways[way]
    # A constant offset commutes with what is nearly a translation everywhere.
    for way in ("flip", "rotate"):
        assert found[way, 1] > 2 * found[way, 0] + 0.03


def test_sample_weights(rng):
    x, _, y, _ = scene(3)
    model = small(bent=True, smoothness=0.0, center=False)
    model.compile("sgd", loss="mae")
    one = [gradients(model, x[:1], y[:1])[1], gradients(model, x, y, tf.constant([3.0, 0.0, 0.0]))[1]]
    for alone, weighted in zip(*one):
        if alone is not None:
            np.testing.assert_allclose(weighted, alone, atol=1e-4)
    with pytest.raises(ValueError, match=r"`sample_weight` must have the shape \(batch,\).*\(3, 16, 16\)"):
        gradients(model, x, y, tf.ones((3, 16, 16)))


@pytest.mark.parametrize("rank", [1, 3])
def test_signals_and_volumes(rng, rank):
    size = (24,) if rank == 1 else (6, 8, 7)
    x = rng.standard_normal((2, *size, 1)).astype(np.float32)
    y = rng.standard_normal((2, *[n + 2 for n in size], 2)).astype(np.float32)
    for moving in ("label", "prediction"):
        model = small(rank=rank, moving=moving, equivariance=0.1)
        model.compile("sgd", loss="mae", run_eagerly=True)
        assert np.isfinite(model.train_on_batch(x, y, return_dict=True)["loss"])
        assert model.align(x, y).displacement.shape == (2, *size, rank)
        assert model.drift.shape == (rank,)


def test_unknown_sizes():
    model = DeformableModel(predictor(), warper())
    model.compile("adam", loss="mae")

    def generate():
        for size in (16, 12):
            x, _, y, _ = scene(2, size=size)
            yield x, y

    spec = [tf.TensorSpec([None, None, None, channels]) for channels in (1, 2)]
    data = tf.data.Dataset.from_generator(generate, output_signature=tuple(spec))
    assert np.isfinite(model.fit(data, verbose=0).history["loss"][0])


@pytest.mark.parametrize("policy", ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)])
def test_mixed_precision(policy):
    x, _, y, _ = scene(4)
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = small()
        model.compile("adam", loss="mae")
        assert np.isfinite(model.fit(x, y.astype(np.float16), verbose=0).history["loss"][0])
        assert "LossScale" in type(model.optimizer).__name__ or policy == "mixed_bfloat16"
    finally:
        keras.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize("searches", [False, True])
def test_two_replicas_train_as_one(two_replicas, searches):
    x, _, y, _ = scene(4, rms=0.2)

    def trained():
        model = small(momentum=0.5)
        loss = tfalign.ShiftInvariantLoss("mse", max_shift=1, warmup_steps=1) if searches else "mse"
        model.compile(keras.optimizers.SGD(0.01), loss=loss, jit_compile=False)
        # Few: rounding grows threefold with each.
        return model, model.fit(x, y, batch_size=4, epochs=6, shuffle=False, verbose=0).history

    one, logs = trained()
    with two_replicas.scope():
        two, mirrored_logs = trained()
    for a, b in zip(weights(one), weights(two)):
        np.testing.assert_allclose(b, a, atol=1e-5)
    np.testing.assert_allclose(two.drift, one.drift, atol=1e-5)
    assert np.abs(one.drift).max() > 0.0
    assert float(tf.convert_to_tensor(two.steps)) == float(tf.convert_to_tensor(one.steps)) == 6.0
    for name, values in logs.items():
        np.testing.assert_allclose(mirrored_logs[name], values, atol=1e-5, err_msg=name)
    if searches:
        np.testing.assert_allclose(two.loss.state, one.loss.state, atol=1e-5)


def test_a_keras_file_resumes_and_the_predictor_is_saved_alone(tmp_path):
    x, _, y, _ = scene(4)
    options = {
        "moving": "prediction",
        "momentum": 0.8,
        "follow_every": 2,
        "warmup_steps": 3,
        "laid_on": "predictor",
        "stop_gradient": False,
        "center": False,
        "by_area": False,
        "smoothness": 0.75,
        "equivariance": 0.25,
        "equivariances": ["flip", "elastic"],
        "interpolation": "linear",
        "warp_loss": "mse",
        "frozen": ["warp_network", "unet"],
        "name": "bent",
    }
    model = small(**options)
    model.compile("adam", loss="mae", run_eagerly=True)
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "whole.keras")
    model.predictor.save(tmp_path / "predictor.keras")
    again = keras.models.load_model(tmp_path / "whole.keras")
    config = again.get_config()
    assert {name: config[name] for name in options} == options
    for one, two in zip(weights(model), weights(again)):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(again.drift, model.drift)
    for resumed in (model, again):
        resumed.fit(x, y, verbose=0)
    for one, two in zip(weights(model), weights(again)):
        np.testing.assert_allclose(two, one, atol=1e-5)
    alone = keras.models.load_model(tmp_path / "predictor.keras")
    assert not isinstance(alone, DeformableModel)
    assert alone(x).shape == model(x).shape


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """A predictor that is not made of a graph of layers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.convolution = keras.layers.Conv2D(2, 3, padding="same", dtype="float32", name="own")
        self.normalization = keras.layers.BatchNormalization()

    def build(self, input_shape):
        self.convolution.build(input_shape)
        self.normalization.build((*input_shape[:-1], 2))
        self.built = True

    def call(self, inputs, training=None):
        return self.normalization(self.convolution(inputs), training=training)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], 2)

    def get_config(self):
        return {"name": self.name}


def test_a_subclassed_predictor_is_built_at_its_first_call_and_saved(tmp_path):
    x, _, y, _ = scene(4)
    model = DeformableModel(Subclassed(), warper())
    model.compile("adam", loss="mae")
    model.fit(x, y, verbose=0)
    assert not model.predictor_twin.trainable_weights
    # Moving statistics follow too.
    for one, two in zip(model.predictor.get_weights(), model.predictor_twin.get_weights()):
        assert one.shape == two.shape
        assert np.all(np.isfinite(two))
    model.save(tmp_path / "whole.keras")
    again = keras.models.load_model(tmp_path / "whole.keras")
    for one, two in zip(weights(model), weights(again)):
        np.testing.assert_array_equal(one, two)
    with pytest.raises(ValueError, match="`frozen` must be"):
        DeformableModel(Subclassed(), warper(), frozen=["own"]).build((None, 8, 8, 1))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"moving": "both"}, ValueError, "`moving` must be one of .*moving='both'"),
        ({"momentum": 1.5}, ValueError, "momentum=1.5"),
        ({"follow_every": 0}, ValueError, "follow_every=0"),
        ({"warmup_steps": -1}, ValueError, "warmup_steps=-1"),
        ({"laid_on": "label"}, ValueError, "laid_on='label'"),
        ({"stop_gradient": False}, ValueError, 'Set laid_on="predictor"'),
        ({"smoothness": -1}, ValueError, "smoothness=-1"),
        ({"equivariances": ["turn"]}, ValueError, "equivariances='turn'"),
        ({"equivariances": "flip"}, TypeError, "`equivariances` must be a list of names.*'flip'"),
        ({"interpolation": "nearest"}, ValueError, "interpolation='nearest'"),
        ({"frozen": ["conv_x"]}, ValueError, "`frozen` must name layers.*conv_x"),
        ({"frozen": "some"}, TypeError, "`frozen` must be a list of names.*'some'"),
    ],
)
def test_bad_options(options, error, text):
    with pytest.raises(error, match=text):
        small(**options)


def test_bad_networks_losses_and_labels(rng):
    x = rng.standard_normal((1, 8, 8, 1)).astype(np.float32)
    with pytest.raises(TypeError, match="`predictor` must be a Keras model"):
        DeformableModel(lambda x: x)
    flat = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="`predictor` must give one output"):
        DeformableModel(flat)
    model = small()
    model.compile("sgd", loss=["mae", "mse"])
    with pytest.raises(ValueError, match="one loss, of one output"):
        model.compute_loss(x, np.zeros((1, 8, 8, 2), np.float32), model(x))
    model.compile("sgd", loss="mae")
    with pytest.raises(ValueError, match=r"`y_true` must have the rank of .*\(1, 8, 8, 3\)"):
        model.compute_loss(x, np.zeros((1, 8, 8, 3), np.float32), model(x))
