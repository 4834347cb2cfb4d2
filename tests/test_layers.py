import keras
import numpy as np
import pytest
import tensorflow as tf

import tfalign
from tfalign.ops import geometry


def pictures(rng, size=(8, 9), channels=2, batch=3):
    return rng.standard_normal((batch, *size, channels)).astype(np.float32)


@pytest.mark.parametrize("size", [(13,), (8, 9), (5, 6, 4)])
@pytest.mark.parametrize("interpolation", ["linear", "nearest", "cubic"])
def test_is_the_function_for_any_rank(rng, size, interpolation):
    moving, rank = pictures(rng, size), len(size)
    field = rng.uniform(-2, 2, (3, *size, rank)).astype(np.float32)
    layer = tfalign.layers.Warp(interpolation=interpolation, fill_value=-1.0, return_mask=True)
    for found, expected in zip(
        layer([moving, field]), tfalign.warp(moving, field, interpolation=interpolation, fill_value=-1.0)
    ):
        np.testing.assert_array_equal(found, expected)


def network(**options):
    """Learns one displacement for the whole picture, from zero."""
    moving, one = keras.Input((16, 16, 1)), keras.Input((1,))
    field = keras.layers.Dense(2, use_bias=False, kernel_initializer="zeros", dtype="float32")(one)
    # Not UpSampling2D: its gradient has no XLA kernel in TensorFlow 2.15.
    field = keras.layers.RepeatVector(16 * 16, dtype="float32")(field)
    field = keras.layers.Reshape((16, 16, 2), dtype="float32")(field)
    return keras.Model([moving, one], tfalign.layers.Warp(**options)([moving, field]))


@pytest.mark.parametrize(
    ("interpolation", "jit_compile", "policy"),
    [
        ("linear", False, "float32"),
        ("cubic", True, "float32"),
        ("linear", False, "mixed_bfloat16"),
    ],
)
def test_fit_learns_a_displacement_from_zero(interpolation, jit_compile, policy):
    """The field starts at whole pixels, where the gradient must be that of the slope."""
    grid = np.arange(16) - 8.0
    moving = np.exp(-np.add.outer(grid**2, grid**2) / 18.0).astype(np.float32)
    moving = np.tile(moving[None, ..., None], (8, 1, 1, 1))
    wanted, _ = tfalign.warp(moving, geometry.from_translation(tf.constant([[0.75, -0.5]])), interpolation="cubic")
    ones = np.ones((8, 1), np.float32)
    learning = network(interpolation=interpolation, dtype=policy)
    learning.compile(optimizer=keras.optimizers.SGD(10.0), loss="mse", jit_compile=jit_compile)
    learning.fit([moving, ones], wanted, epochs=60, verbose=0)
    np.testing.assert_allclose(learning.get_weights()[0], [[0.75, -0.5]], atol=0.05)


def test_half_types_keep_their_coordinates(rng):
    moving = pictures(rng, (4, 3000), batch=1)
    transform = geometry.from_translation(tf.constant([[0.0, 1000.3]]))
    values, mask = tfalign.layers.Warp(return_mask=True, dtype="mixed_float16")([moving, transform])
    assert values.dtype == mask.dtype == tf.float16
    np.testing.assert_allclose(values, tfalign.warp(moving, transform)[0], atol=2e-3)


def test_class_maps_keep_their_type():
    classes = np.arange(16, dtype=np.int32).reshape(1, 4, 4, 1)
    moved = tfalign.layers.Warp(interpolation="nearest")(
        [classes, geometry.from_translation(tf.constant([[1.0, 0.0]]))]
    )
    assert moved.dtype == tf.int32
    np.testing.assert_array_equal(moved[0, 0, :, 0], [4, 5, 6, 7])


def test_unknown_sizes(rng):
    moving, field = keras.Input((None, None, 2)), keras.Input((None, None, 2))
    warping = keras.Model([moving, field], tfalign.layers.Warp()([moving, field]))
    one, other = pictures(rng), rng.uniform(-2, 2, (3, 6, 5, 2)).astype(np.float32)
    np.testing.assert_allclose(warping([one, other]), tfalign.warp(one, other)[0], atol=1e-6)


def test_a_saved_model_is_the_same(rng, tmp_path):
    moving, transform = keras.Input((8, 9, 2)), keras.Input((3, 3))
    layer = tfalign.layers.Warp(
        output_shape=(5, 6),
        interpolation="nearest",
        fill_value=7.0,
        engine="projective",
        return_mask=True,
        name="moved",
    )
    saving = keras.Model([moving, transform], layer([moving, transform]))
    saving.save(tmp_path / "warp.keras")
    loaded = keras.models.load_model(tmp_path / "warp.keras")
    assert loaded.get_layer("moved").get_config() == layer.get_config()
    inputs = [
        tf.constant(pictures(rng)),
        geometry.make(np.float32([[1.0, 2.0]] * 3), rotation=np.float32([[20.0]] * 3)),
    ]
    for one, other in zip(loaded(inputs), saving(inputs)):
        assert one.shape[1:3] == (5, 6)
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"interpolation": "best"}, ValueError, "`interpolation` must be one of .*interpolation='best'"),
        ({"engine": "best"}, ValueError, "`engine` must be one of .*engine='best'"),
        ({"output_shape": (4, 2.5)}, TypeError, "`output_shape` must be a whole number.*2.5"),
        ({"fill_value": "mean"}, TypeError, "`fill_value` must be a number.*'mean'"),
    ],
)
def test_bad_options(options, error, text):
    with pytest.raises(error, match=text):
        tfalign.layers.Warp(**options)
