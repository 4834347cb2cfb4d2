import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

import tfalign
from tests import reference
from tfalign.data import misalign
from tfalign.models.warp_network import _DAMPING, _REACH, _newton_step, _unlikeness
from tfalign.ops import displacements

SIZES = [(33,), (20, 17), (7, 8, 9)]


def pair(rng, size, channels=2, batch=2):
    return [rng.standard_normal((batch, *size, channels)).astype(np.float32) for _ in range(2)]


def wild(network, rng, scale=0.3):
    """The network with large random weights where it starts near zero."""
    for layer in network.convolutions:
        if layer.name.endswith("field"):
            kernel, bias = layer.get_weights()
            small_step = 0.1 if layer.name.startswith("last") else 1.0
            layer.set_weights([small_step * scale * rng.standard_normal(kernel.shape), bias])
    return network


@pytest.mark.parametrize("size", SIZES)
def test_takes_rank_and_channels_at_its_first_call(rng, size):
    network = tfalign.models.warp_network()
    assert not network.built
    field = network(pair(rng, size))
    assert field.shape == (2, *size, len(size))
    assert field.dtype == tf.float32
    assert 0 < np.max(np.abs(field)) < 0.1
    again = tfalign.models.warp_network(rank=len(size), channels=2)
    assert [w.shape for w in again.get_weights()] == [w.shape for w in network.get_weights()]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spacing", [2, 4])
def test_stays_inside_its_bound_and_folds_only_as_a_displacement(rng, size, spacing):
    inputs = pair(rng, size)
    options = {"max_displacement": 5.0, "spacing": spacing, "filters": 4, "depth": 2}
    folds = 0.0
    for seed in range(3):
        flow, direct = (
            wild(
                tfalign.models.warp_network(form=form, **options, rank=len(size), channels=2),
                np.random.default_rng(seed),
                1,
            )(inputs)
            for form in ("velocity", "displacement")
        )
        assert 0.5 < np.max(np.abs(direct)) <= 5.0 + 1e-5
        assert np.max(np.abs(flow)) <= 5.0 + 1e-5
        np.testing.assert_array_equal(displacements.fold_share(flow), [0.0, 0.0])
        folds = max(folds, np.max(displacements.fold_share(direct)))
    if len(size) == 2 and spacing == 2:
        assert folds > 0.01


def test_eager_graph_and_xla_agree(rng, run):
    network = wild(tfalign.models.warp_network(rank=2, channels=1, filters=4, depth=2), rng)
    inputs = pair(rng, (17, 12), channels=1)
    np.testing.assert_allclose(run(lambda p, y: network([p, y]), *inputs), network(inputs), atol=2e-3)


@pytest.mark.parametrize("case", ["zeros", "constant", "one blank", "not finite"])
def test_blank_patches_give_finite_fields_and_gradients(rng, case):
    network = wild(tfalign.models.warp_network(rank=2, channels=1, filters=4, depth=2), rng)
    prediction, label = pair(rng, (12, 12), channels=1)
    if case in ("zeros", "constant"):
        prediction, label = (np.full_like(one, {"zeros": 0.0, "constant": 7.3}[case]) for one in (prediction, label))
    elif case == "one blank":
        label[:] = 0.1
    else:
        label[:, 3:5], prediction[0, 2, 2] = np.nan, np.inf
    with tf.GradientTape() as tape:
        fields = network([prediction, label])
        total = tf.reduce_sum(tf.square(fields))
    assert np.all(np.isfinite(fields))
    for gradient in tape.gradient(total, network.trainable_variables):
        assert np.all(np.isfinite(gradient))
    if case in ("zeros", "constant"):
        np.testing.assert_allclose(fields, np.zeros_like(fields), atol=2e-3)


@pytest.mark.parametrize("size", [(32,), (20, 16), (8, 8, 12)])
def test_unknown_pixels_and_a_margin_of_them_do_not_matter(rng, size):
    network = wild(tfalign.models.warp_network(rank=len(size), channels=1, filters=4, depth=2), rng)
    prediction, label = pair(rng, size, channels=1)
    hole = (slice(None), *(slice(2, 4) for _ in size))
    label[hole] = np.nan
    field = network([prediction, label])
    around = [(0, 0), *[(3, 3)] * len(size), (0, 0)]
    margin = np.pad(label, around, constant_values=np.nan)
    np.testing.assert_allclose(network([prediction, margin]), field, atol=1e-4)
    known = np.where(np.isfinite(margin), margin, rng.standard_normal(margin.shape)).astype(np.float32)
    assert np.max(np.abs(network([prediction, known]) - field)) > 0.01


@pytest.mark.parametrize("size", [(9,), (6, 7), (4, 5, 4)])
def test_unlikeness_is_that_of_the_truth(run, rng, size):
    fixed, moving = pair(rng, size)
    weight = (rng.random((2, *size, 1)) < 0.7).astype(np.float32)
    weight[0, :3] = 0.0
    found = run(_unlikeness, fixed, moving, weight)
    reach = _REACH[len(size)]
    for sample in range(2):
        wanted = reference.unlikeness(fixed[sample], moving[sample], weight[sample, ..., 0], reach)
        np.testing.assert_allclose(found[sample], wanted, atol=1e-5)


@pytest.mark.parametrize(("size", "spacing"), [((12,), 2), ((8, 12), 4), ((4, 6, 4), 2)])
def test_a_step_is_that_of_least_squares_around_each_point(run, rng, size, spacing):
    fixed, moving = pair(rng, size)
    weight = rng.random((2, *size, 1)).astype(np.float32)
    weight[0] = 0.0
    step, certainty = run(lambda *pair: _newton_step(*pair, spacing), fixed, moving, weight)
    for sample in range(2):
        wanted, sure = reference.newton_step(
            fixed[sample], moving[sample], weight[sample, ..., 0], spacing, damping=_DAMPING
        )
        np.testing.assert_allclose(step[sample], np.clip(wanted, -1, 1), atol=1e-4)
        np.testing.assert_allclose(certainty[sample, ..., 0], sure, atol=1e-4)
    np.testing.assert_array_equal(step[0], np.zeros_like(step[0]))


def test_a_step_finds_a_small_shift(rng):
    x = ndimage.gaussian_filter(rng.standard_normal((2, 40, 40, 2)), (0, 2.5, 2.5, 0), mode="wrap")
    x = (x / x.std()).astype(np.float32)
    moved = ndimage.shift(x, (0, 0.4, -0.3, 0), order=5, mode="grid-wrap").astype(np.float32)
    step, _ = _newton_step(tf.constant(x), tf.constant(moved), tf.ones_like(x[..., :1]), 2)
    # Damping shortens it.
    share = np.mean(step, axis=(0, 1, 2)) / [0.4, -0.3]
    assert np.all((share > 0.8) & (share < 1.02))


def test_range_and_offset_of_the_pair_do_not_matter(rng):
    network = wild(tfalign.models.warp_network(rank=2, channels=2, filters=4, depth=2), rng)
    inputs = pair(rng, (16, 12))
    np.testing.assert_allclose(network([200 * one + 90 for one in inputs]), network(inputs), atol=5e-3)


@pytest.mark.parametrize("form", ["velocity", pytest.param("displacement", marks=pytest.mark.slow)])
def test_fit_learns_to_find_fields_of_pairs_that_it_has_not_seen(form):
    """From pictures and their bent copies alone: the displacement is never shown."""
    keras.utils.set_random_seed(3)
    noise = np.random.default_rng(1).standard_normal((40, 40, 40, 1))
    scenes = 5 * ndimage.gaussian_filter(noise, (0, 2, 2, 0))
    fields = misalign.draw_elastic(40, shape=(40, 40), rms=1.2, correlation_length=10.0, seed=2).astype(np.float32)
    prediction, _ = tfalign.warp(scenes.astype(np.float32), fields, interpolation="cubic")
    # prediction(u) = label(u + field(u))
    label, prediction = scenes[:, 4:36, 4:36].astype(np.float32), np.asarray(prediction)[:, 4:36, 4:36]
    network = tfalign.models.warp_network(rank=2, channels=1, form=form, filters=8, depth=2, spacing=2)
    optimizer = keras.optimizers.Adam(5e-3)
    optimizer.build(network.trainable_variables)

    @tf.function
    def step(p, y):
        with tf.GradientTape() as tape:
            moved, mask = tfalign.warp(y, network([p, y]))
            loss = tf.reduce_mean(mask[..., None] * tf.abs(moved - p))
        optimizer.apply_gradients(zip(tape.gradient(loss, network.trainable_variables), network.trainable_variables))

    for turn in range(90):
        part = slice(16 * (turn % 2), 16 * (turn % 2) + 16)
        step(tf.constant(prediction[part]), tf.constant(label[part]))
    found = np.asarray(network([prediction[32:], label[32:]]))[:, 4:-4, 4:-4]
    truth = fields[32:, 8:32, 8:32]
    assert np.sqrt(np.mean((found - truth) ** 2)) < 0.4 * np.sqrt(np.mean(truth**2))


def test_a_keras_file_keeps_options_and_weights(rng, tmp_path):
    options = {
        "form": "displacement",
        "max_displacement": 4.5,
        "filters": 3,
        "depth": 2,
        "spacing": 4,
        "squarings": 3,
        "name": "bend",
    }
    network = wild(tfalign.models.warp_network(rank=1, channels=2, **options), rng)
    network.save(tmp_path / "warp.keras")
    again = keras.models.load_model(tmp_path / "warp.keras")
    assert {name: again.get_config()[name] for name in options} == options
    inputs = pair(rng, (21,))
    np.testing.assert_allclose(again(inputs), network(inputs), atol=1e-6)


def test_unknown_sizes_inside_a_model(rng):
    prediction, label = keras.Input((None, None, 1)), keras.Input((None, None, 1))
    network = wild(tfalign.models.warp_network(rank=2, channels=1, filters=4, depth=3), rng)
    model = keras.Model([prediction, label], network([prediction, label]))
    for size in ((16, 16), (9, 1)):
        inputs = pair(rng, size, channels=1)
        np.testing.assert_allclose(model(inputs), network(inputs), atol=1e-5)


def test_mixed_precision_keeps_fields_in_float32(rng):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        network = wild(tfalign.models.warp_network(rank=2, channels=1, filters=4, depth=2), rng)
        inputs = pair(rng, (16, 16), channels=1)
        halves = [tf.cast(one, tf.bfloat16) for one in inputs]
        assert network(halves).dtype == network(inputs).dtype == tf.float32
        assert np.all(np.isfinite(network(inputs)))
    finally:
        keras.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: tfalign.models.warp_network(form="flow"), ValueError, "`form` must be one of .*form='flow'"),
        (lambda: tfalign.models.warp_network(spacing=3), ValueError, "`spacing` must be a power of 2.*spacing=3"),
        (lambda: tfalign.models.warp_network(max_displacement=0), ValueError, "max_displacement=0"),
        (lambda: tfalign.models.warp_network(depth=0), ValueError, "depth=0"),
        (lambda: tfalign.models.warp_network(filters=1.5), TypeError, "filters=1.5"),
        (lambda: tfalign.models.warp_network(rank=2), ValueError, "`rank` and `channels`.*channels=None"),
        (lambda: tfalign.models.warp_network(rank=4, channels=1), ValueError, "`rank` must be one of.*rank=4"),
        (
            lambda: tfalign.models.warp_network()([np.zeros((1, 8, 8, 1)), np.zeros((1, 8, 8, 2))]),
            ValueError,
            r"the same, known channels.*\(1, 8, 8, 1\)",
        ),
        (
            lambda: tfalign.models.warp_network()([np.zeros((1, 8)), np.zeros((1, 8))]),
            ValueError,
            r"1, 2 or 3 spatial axes.*\(1, 8\)",
        ),
    ],
)
def test_bad_options(call, error, text):
    with pytest.raises(error, match=text):
        call()
