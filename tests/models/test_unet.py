import keras
import numpy as np
import pytest

import tfalign


@pytest.mark.parametrize(
    ("rank", "sizes"), [(1, [(64,), (33,), (1,)]), (2, [(32, 32), (17, 30)]), (3, [(8, 8, 8), (5, 7, 9)])]
)
def test_same_padding_keeps_any_size(rng, rank, sizes):
    model = tfalign.models.unet(rank, 2, 3, filters=2, depth=3)
    for size in sizes:
        inputs = rng.standard_normal((2, *size, 2)).astype(np.float32)
        assert model(inputs).shape == (2, *size, 3)
        assert np.all(np.isfinite(model(inputs)))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_valid_padding_keeps_the_center(rng, rank):
    """A pixel far outside the output's reach changes nothing; the centre of the input moves the centre most."""
    model = tfalign.models.unet(rank, filters=3, depth=2, padding="valid")
    size, out = 28, 12
    inputs = rng.standard_normal((1, *(size,) * rank, 1)).astype(np.float32)
    assert model(inputs).shape == (1, *(out,) * rank, 1)
    whole = tfalign.models.unet(rank, filters=3, depth=2, padding="same")
    whole.set_weights(model.get_weights())
    inner = (slice(None), *(slice(8, 20),) * rank)
    np.testing.assert_allclose(np.asarray(whole(inputs))[inner], model(inputs), atol=1e-4)


def test_the_source_sizes():
    """256 in, 100 out is the source's example; four levels of valid convolutions give 68 for 252."""
    model = tfalign.models.unet(filters=2, depth=4, padding="valid")
    assert model.compute_output_shape((1, 252, 252, 1))[1:3] in {(164, 164), (None, None)}
    assert model(np.zeros((1, 252, 252, 1), np.float32)).shape == (1, 164, 164, 1)


def test_levels_filters_and_activation():
    model = tfalign.models.unet(output_channels=2, filters=4, depth=3, activation="softmax")
    widths = [layer.filters for layer in model.layers if type(layer).__name__ == "Conv2D"]
    assert widths == [4, 4, 8, 8, 16, 16, 8, 8, 4, 4, 2]
    np.testing.assert_allclose(np.sum(model(np.random.default_rng(0).random((1, 8, 8, 1))), axis=-1), 1.0, rtol=1e-5)


def test_no_arguments_and_a_keras_file(rng, tmp_path):
    model = tfalign.models.unet()
    model.save(tmp_path / "unet.keras")
    inputs = rng.standard_normal((1, 19, 16, 1)).astype(np.float32)
    again = keras.models.load_model(tmp_path / "unet.keras")
    np.testing.assert_allclose(again(inputs), model(inputs), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"rank": 4}, ValueError, "`rank` must be one of 1, 2, 3. Received: rank=4"),
        ({"padding": "full"}, ValueError, "padding='full'"),
        ({"depth": 0}, ValueError, "`depth` must be >= 1. Received: depth=0"),
        ({"filters": 1.5}, TypeError, "`filters` must be a whole number. Received: filters=1.5"),
    ],
)
def test_bad_options(options, error, text):
    with pytest.raises(error, match=text):
        tfalign.models.unet(**options)
