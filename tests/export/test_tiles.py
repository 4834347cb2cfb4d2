import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.export import networks
from tfalign.export import grid, options, tiles


def predictor(model, axes, **options):
    """A function of arrays of any size, traced once."""
    spec = tf.TensorSpec([None] * (len(axes) + 1) + [model.input_shape[-1]])
    function = tf.function(
        lambda inputs: tiles.predict(model, inputs, axes, channels=model.output_shape[-1], **options),
        input_signature=[spec],
    )
    return lambda inputs: function(inputs).numpy()


def predicted(model, inputs):
    return predictor(model, grid.axes_of(model))(inputs)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 8), (5, 4), (13, 22)])
def test_sizes_between_strides_are_mirrored_and_cropped(rng, size):
    model, inputs = networks.pooled(4), rng.random((2, *size, 1)).astype(np.float32)
    extended = np.pad(inputs, [(0, 0), *((0, -length % 4) for length in size), (0, 0)], mode="reflect")
    expected = model(extended).numpy()[:, : size[0], : size[1]]
    np.testing.assert_allclose(predicted(model, inputs), expected, atol=1e-6)


def test_an_unpadded_network_keeps_its_centre(rng):
    model, inputs = networks.unet(padding="valid"), rng.random((1, 31, 40, 1)).astype(np.float32)
    result = predicted(model, inputs)
    assert result.shape == (1, 15, 24, 2)
    # Each pixel sees 17 x 17 and no border, so a network on a taken size that begins at an even pixel gives the same.
    np.testing.assert_allclose(result[:, :12, 4:24], model(inputs[:, :28, 4:40]).numpy(), atol=1e-6)


def test_a_network_that_takes_any_size_gets_it_as_it_is(rng):
    model = networks.unet()
    for size in ((1, 1), (1, 7), (9, 13)):
        inputs = rng.random((3, *size, 1)).astype(np.float32)
        np.testing.assert_array_equal(predicted(model, inputs), model(inputs))


def test_nothing_and_less_than_the_border_are_refused():
    model = networks.unet(padding="valid")
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"more than \[16, 16\] pixels"):
        predicted(model, np.zeros((1, 16, 40, 1), np.float32))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"more than \[0, 0\] pixels"):
        predicted(networks.pooled(), np.zeros((1, 0, 4, 1), np.float32))
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be one at least"):
        predicted(networks.unet(), np.zeros((0, 4, 4, 1), np.float32))


@pytest.mark.parametrize(
    ("make", "all_tiles"),
    [
        (lambda: networks.pooled(4), [(48, None)]),
        (lambda: networks.unet(padding="valid"), [(32, 0), (28, 5)]),  # a border reaches no further than what is lost
        # A network that takes every size and pools in pairs all the same.
        (networks.unet, [(33, 27), (47, 28)]),
        (lambda: networks.unet(depth=3), [(93, 79)]),
    ],
)
def test_tiles_equal_the_whole(rng, make, all_tiles):
    model = make()
    axes = grid.measured(model, grid.axes_of(model))
    whole = predictor(model, axes)
    for tile, overlap in all_tiles:
        tiled = predictor(model, axes, tiles=options.checked_tiles(tile, overlap, axes))
        for size in ((17, 19), (32, 33), (50, 95), (131, 64)):
            inputs = rng.random((2, *size, 1)).astype(np.float32)
            np.testing.assert_allclose(tiled(inputs), whole(inputs), atol=5e-6)


def test_by_default_tiles_share_what_leaves_no_seams(rng):
    model = networks.unet()
    axes = grid.measured(model, grid.axes_of(model))
    assert options.checked_tiles((32, 256), None, axes) == ((32, 27), (256, 64))
    # Of a network of one size there may not be enough.
    axes = [axis._replace(fixed=28) for axis in axes]
    assert options.checked_tiles(None, None, axes) == ((28, 7),) * 2


def test_a_network_of_one_size_takes_any_in_tiles(rng):
    model = networks.fixed(32)
    kernel, bias = model.get_weights()
    tiled = predictor(model, grid.axes_of(model), tiles=((32, 8),) * 2)  # sees 2 pixels
    for size in ((1, 1), (20, 32), (33, 70)):
        inputs = rng.random((2, *size, 3)).astype(np.float32)
        extended = np.pad(inputs, [(0, 0), *((0, max(32 - length, 0)) for length in size), (0, 0)], mode="reflect")
        expected = tf.nn.conv2d(extended, kernel, 1, "SAME") + bias
        np.testing.assert_allclose(tiled(inputs), expected[:, : size[0], : size[1]], atol=2e-6)


def test_the_tiles_of_a_network_of_one_size_start_where_it_pools(rng):
    inputs = keras.Input((32, 32, 1))
    low = networks.LAYERS.MaxPooling2D(4)(inputs)
    model = networks.randomized(keras.Model(inputs, networks.LAYERS.UpSampling2D(4)(low)))
    axes = grid.measured(model, grid.axes_of(model))
    assert [(axis.period, axis.reach) for axis in axes] == [(4, 0)] * 2
    image = rng.random((1, 45, 70, 1)).astype(np.float32)
    extended = np.pad(image, [(0, 0), (0, 3), (0, 2), (0, 0)], mode="reflect")
    expected = extended.reshape(1, 12, 4, 18, 4, 1).max(axis=(2, 4)).repeat(4, axis=1).repeat(4, axis=2)
    tiled = predictor(model, axes, tiles=options.checked_tiles(None, None, axes))
    np.testing.assert_allclose(tiled(image), expected[:, :45, :70], atol=1e-6)


def test_too_little_overlap_shows(rng):
    model, inputs = networks.pooled(4), rng.random((1, 80, 80, 1)).astype(np.float32)
    axes = grid.axes_of(model)
    difference = predictor(model, axes, tiles=((32, 0),) * 2)(inputs) - predictor(model, axes)(inputs)
    assert np.abs(difference).max() > 1e-2


@pytest.mark.parametrize("size", [(37,), (29, 64), (9, 20, 17)])
def test_tiles_cover_every_pixel_once(size):
    seen = []

    def network(tile):
        seen.append(tuple(tile.shape))
        return tf.ones_like(tile) * 3.0

    axes = (grid.Axis(stride=2, period=2),) * len(size)
    padded = [length + length % 2 for length in size]
    inputs = tf.zeros((3, *padded, 1))
    result = tiles.predict(network, inputs, axes, channels=1, tiles=((8, 3),) * len(size))
    np.testing.assert_allclose(result, np.full((3, *padded, 1), 3.0), rtol=1e-6)
    # Memory: one image at a time, and no more of it than a tile.
    assert set(seen) == {(1, *(min(8, length) for length in padded), 1)}


def test_images_of_one_tile_go_together():
    seen = []

    def network(tile):
        seen.append(tuple(tile.shape))
        return tile

    axes = (grid.Axis(),) * 2
    tiles.predict(network, tf.zeros((5, 8, 6, 1)), axes, channels=1, tiles=((8, 2),) * 2)
    assert seen == [(5, 8, 6, 1)]
