"""Encoded images as arrays, inside the graph."""

import tensorflow as tf


def decode(images, *, channels, value_range):
    """Decodes a batch of PNG or JPEG files, 8 or 16 bit, all of one size.

    Args:
        images: `(batch,)` strings.
        channels: every image must have as many: 1 is gray, 3 is red, green, blue, 4 has alpha.
        value_range: the values of the darkest and the brightest code, whatever the bits.

    Returns:
        `(batch, rows, cols, channels)` float32.

    Raises:
        InvalidArgumentError: when run, on a file that is no whole PNG or JPEG, or has other channels or another size
            than the first one.
    """
    low, high = value_range
    count = tf.shape(images)[0]
    some = tf.debugging.assert_positive(count, message="`images` must hold one image at least.")
    with tf.control_dependencies([some]):
        count = tf.identity(count)

    def one_image(number, shape, arrays):
        image = low + (high - low) * _decoded(images[number], channels)
        shape = tf.where(number == 0, tf.shape(image), shape)
        same = tf.debugging.assert_equal(
            tf.shape(image), shape, message="`images` must all be of one size, (rows, cols, channels):"
        )
        with tf.control_dependencies([same]):
            return number + 1, shape, arrays.write(number, image)

    arrays = tf.TensorArray(tf.float32, size=count, element_shape=[None, None, channels])
    *_, arrays = tf.while_loop(lambda number, *_: number < count, one_image, [0, tf.zeros([3], tf.int32), arrays])
    return arrays.stack()


def _decoded(image, channels):
    """One file as `(rows, cols, channels)` in [0, 1]."""
    is_png = tf.strings.substr(image, 0, 8) == b"\x89PNG\r\n\x1a\n"
    is_jpeg = tf.strings.substr(image, 0, 3) == b"\xff\xd8\xff"
    # The decoder takes other formats too: nothing that was not asked for.
    known = tf.debugging.Assert(is_png | is_jpeg, ["`images` must be PNG or JPEG files."])
    with tf.control_dependencies([known]):
        decoded = tf.io.decode_image(tf.identity(image), dtype=tf.float32, expand_animations=False)
    fits = tf.debugging.assert_equal(
        tf.shape(decoded)[-1], channels, message=f"`images` must have {channels} channels, as the model:"
    )
    with tf.control_dependencies([fits]):
        return tf.ensure_shape(decoded, [None, None, channels])
