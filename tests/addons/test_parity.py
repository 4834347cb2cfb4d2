"""tfalign beside tensorflow-addons: gradients of warps, its losses as base, its optimizers in `compile`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfalign
from tfalign.ops import geometry

addons = pytest.importorskip("tensorflow_addons")

SIZES = (17, 14)


def pictures(rng, channels=2):
    return tf.constant(rng.uniform(0, 1, (2, *SIZES, channels)), tf.float32)


def gradients(function, *arguments, upstream):
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        total = tf.reduce_sum(upstream * function(*arguments))
    return tape.gradient(total, arguments)


def inner_weights(rng, border):
    """Random, and 0 near the border, where the two differ."""
    weights = np.zeros((2, *SIZES, 2), np.float32)
    weights[:, border:-border, border:-border] = rng.normal(size=weights[:, border:-border, border:-border].shape)
    return tf.constant(weights)


def test_gradients_of_dense_image_warp(rng):
    images, flow = pictures(rng), tf.constant(rng.uniform(-2, 2, (2, *SIZES, 2)), tf.float32)
    upstream = inner_weights(rng, 3)
    theirs = gradients(addons.image.dense_image_warp, images, flow, upstream=upstream)
    ours = gradients(lambda values, field: tfalign.warp(values, -field)[0], images, flow, upstream=upstream)
    for one, other in zip(ours, theirs):
        assert np.abs(other).max() > 0.1
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_gradients_of_translate(rng):
    images, upstream = pictures(rng), inner_weights(rng, 4)
    theirs = gradients(
        lambda values: addons.image.translate(values, [1.25, -2.5], "bilinear"), images, upstream=upstream
    )
    pull = geometry.from_translation(tf.constant([[2.5, -1.25]]))
    ours = gradients(lambda values: tfalign.warp(values, pull)[0], images, upstream=upstream)
    assert np.abs(theirs[0]).max() > 0.1
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-4)


def test_gradients_of_rotate(rng):
    """Ours is that of the linear map which it is; theirs is not, so there is nothing to be the same as."""
    images, upstream = pictures(rng), inner_weights(rng, 4)
    # Odd and even sizes turn about different points.
    pull = geometry.make(tf.zeros([1, 2]), rotation=tf.constant([[-20.0]]))
    for function, is_exact in (
        (lambda values: tfalign.warp(values, pull)[0], True),
        (lambda values: addons.image.rotate(values, np.radians(20.0), "bilinear"), False),
    ):
        (gradient,) = gradients(function, images, upstream=upstream)
        error = abs(tf.reduce_sum(gradient * images) - tf.reduce_sum(upstream * function(images)))
        assert (float(error) < 1e-3) == is_exact


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_the_projective_engine_is_their_transform(rng, interpolation):
    """Values, also on grids of another size, with a transform for each picture."""
    images = pictures(rng)
    transform = geometry.make(
        tf.constant([[1.0, -0.5], [0.25, 2.0]]),
        rotation=tf.constant([[5.0], [-8.0]]),
        scale=tf.constant([[1.1, 0.9]] * 2),
    )
    linear = transform[:, :2, :2]
    shift = geometry.translation_of(transform) + np.float32([8, 7]) - tf.linalg.matvec(linear, tf.constant([5.0, 6.0]))
    eight = tf.stack(
        [
            linear[:, 1, 1],
            linear[:, 1, 0],
            shift[:, 1],
            linear[:, 0, 1],
            linear[:, 0, 0],
            shift[:, 0],
            *[0 * shift[:, 0]] * 2,
        ],
        axis=1,
    )
    theirs = addons.image.transform(
        images, eight, interpolation={"linear": "bilinear"}.get(interpolation, interpolation), output_shape=[11, 12]
    )
    for engine in ("projective", "gather"):
        values, mask = tfalign.warp(
            images, transform, output_shape=(11, 12), interpolation=interpolation, engine=engine
        )
        assert np.mean(mask) > 0.8
        np.testing.assert_allclose(values, theirs * mask[..., tf.newaxis], atol=1e-4)


def test_a_focal_loss_as_base(rng):
    """On labels whose shift is known it is that loss on the overlap."""
    field = (rng.uniform(0, 1, (2, 30, 30, 1)) > 0.5).astype(np.float32)
    prediction = 0.8 * field[:, 7:23, 7:23] + 0.1
    labels = np.stack([field[0, 5 - 2 : 25 - 2, 5 - 1 : 25 - 1], field[1, 5 + 1 : 25 + 1, 5:25]])
    base = addons.losses.SigmoidFocalCrossEntropy(alpha=0.4, gamma=1.5)
    found = tfalign.shift_invariant_loss(labels, prediction, base, max_shift=2)
    expected = tf.reduce_mean(base(field[:, 7:23, 7:23], prediction), axis=[1, 2])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.all(found < tfalign.shift_invariant_loss(labels, prediction, base, max_shift=0))


def test_a_model_with_a_focal_loss_is_saved(rng, tmp_path):
    base = addons.losses.SigmoidFocalCrossEntropy(alpha=0.4, gamma=1.5)
    model = tfalign.models.unet(filters=2, depth=1, activation="sigmoid")
    model.compile("adam", loss=tfalign.ShiftInvariantLoss(base, max_shift=2))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(loaded.loss.base, addons.losses.SigmoidFocalCrossEntropy)
    assert loaded.loss.get_config() == model.loss.get_config()
    label, prediction = (rng.uniform(0, 1, (2, 8, 8, 1)).astype(np.float32) for _ in range(2))
    np.testing.assert_allclose(loaded.loss.base(label, prediction), base(label, prediction), rtol=1e-6)


OPTIMIZERS = {
    "AdamW": lambda: addons.optimizers.AdamW(weight_decay=1e-4, learning_rate=0.02),
    "Lookahead(RectifiedAdam)": lambda: addons.optimizers.Lookahead(addons.optimizers.RectifiedAdam(0.02)),
    "LAMB": lambda: addons.optimizers.LAMB(0.02),
    "SWA": lambda: addons.optimizers.SWA(
        addons.optimizers.SGDW(weight_decay=1e-5, learning_rate=0.5), start_averaging=2
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_in_compile(rng, name):
    """They train, and the drift follows."""
    field = (rng.uniform(0, 1, (8, 24, 24, 1)) > 0.5).astype(np.float32)
    inputs = field[:, 4:20, 4:20]
    shifts = [(1, 0), (-1, 0), (0, 1), (0, -1)] * 2
    labels = np.stack([one[4 - y : 20 - y, 4 - x : 20 - x] for one, (y, x) in zip(field, shifts)])
    # From the first step on it shows enough of the input to register by.
    model = keras.Sequential([keras.layers.Conv2D(1, 1, kernel_initializer="ones", activation="sigmoid")])
    loss = tfalign.ShiftInvariantLoss(addons.losses.SigmoidFocalCrossEntropy(), max_shift=1, warmup_steps=1)
    model.compile(OPTIMIZERS[name](), loss=loss, run_eagerly=True)
    history = model.fit(inputs, labels, batch_size=4, epochs=6, verbose=0).history["loss"]
    assert np.all(np.isfinite(history))
    assert history[-1] < 0.9 * history[0]
    assert loss.is_ready
    np.testing.assert_allclose(loss.drift, 0.0, atol=0.3)
