import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.export.files import file_of
from tfalign.export import images


def decoder(channels, value_range=(0.0, 1.0)):
    function = tf.function(
        lambda files: images.decode(files, channels=channels, value_range=value_range),
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    return lambda *files: function(tf.constant(list(files), tf.string)).numpy()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_8_bit(rng, channels):
    arrays = rng.integers(0, 256, (3, 5, 7, channels), np.uint8)
    files = [file_of(array[..., 0] if channels == 1 else array) for array in arrays]
    np.testing.assert_allclose(decoder(channels)(*files), arrays / 255.0, atol=1e-6)


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0), (0.0, 65535.0)])
def test_png_of_16_bit(rng, value_range):
    array = rng.integers(0, 65536, (5, 7), np.uint16)
    array[0, :2] = 0, 65535
    low, high = value_range
    result = decoder(1, value_range)(file_of(array))
    np.testing.assert_allclose(result[0, ..., 0], low + (high - low) * (array / 65535.0), atol=1e-6 * (high - low))
    assert result[0, 0, :2, 0].tolist() == [low, high]
    # The same picture in 8 bit has the same range.
    assert decoder(1, value_range)(file_of(np.array([[0, 255]], np.uint8))).ravel().tolist() == [low, high]


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg(channels):
    ramp = np.linspace(0, 255, 32).astype(np.uint8) * np.ones((16, 1), np.uint8)
    ramp = ramp if channels == 1 else np.stack([ramp, ramp[:, ::-1], ramp], axis=-1)
    content = file_of(ramp, "JPEG", quality=95, subsampling=0)
    expected = np.asarray(Image.open(io.BytesIO(content))).reshape(16, 32, channels) / 255.0
    np.testing.assert_allclose(decoder(channels)(content)[0], expected, atol=3 / 255)
    white = decoder(1)(file_of(np.full((8, 8), 255, np.uint8), "JPEG"))
    np.testing.assert_allclose(white, 1.0, atol=1e-6)


GRAY = np.arange(35, dtype=np.uint8).reshape(5, 7)
WHOLE = file_of(GRAY)


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ([WHOLE, file_of(GRAY[:4])], "must all be of one size"),
        ([WHOLE, file_of(np.stack([GRAY] * 3, axis=-1))], "must have 1 channels"),
        ([WHOLE[: len(WHOLE) // 2]], "Invalid PNG"),
        ([WHOLE[:30] + b"\0\0\0\0" + WHOLE[34:]], "Invalid PNG"),
        ([WHOLE, b""], "must be PNG or JPEG"),
        ([WHOLE[:8]], "Invalid PNG"),
        ([WHOLE[:4]], "must be PNG or JPEG"),
        ([b"not an image at all"], "must be PNG or JPEG"),
        ([file_of(GRAY, "GIF")], "must be PNG or JPEG"),
        ([file_of(GRAY, "BMP")], "must be PNG or JPEG"),
        ([], "one image at least"),
    ],
)
def test_a_bad_file_is_a_clean_error(files, text):
    with pytest.raises(tf.errors.InvalidArgumentError, match=text):
        decoder(1)(*files)
