"""The U-Net, 1-D to 3-D, for inputs of any size."""

import keras
import tensorflow as tf

from tfalign import _checks


@keras.saving.register_keras_serializable(package="tfalign")
class CropLike(keras.layers.Layer):
    """Cuts the first of two grids to the sizes of the second.

    `anchor="center"` keeps the middle (the skip of an unpadded network), "start" the first pixels (an upsampled grid
    that an odd size made one too large).
    """

    def __init__(self, *, anchor, **kwargs):
        super().__init__(**kwargs)
        self.anchor = _checks.choice("anchor", anchor, ("center", "start"))

    def call(self, inputs):
        """Cuts `inputs[0]` to the spatial sizes of `inputs[1]`."""
        larger, smaller = inputs
        rank = larger.shape.rank - 2
        wanted = tf.shape(smaller)[1:-1]
        spare = tf.shape(larger)[1:-1] - wanted
        begin = spare // 2 if self.anchor == "center" else tf.zeros_like(spare)
        cut = tf.slice(larger, tf.concat([[0], begin, [0]], 0), tf.concat([[-1], wanted, [-1]], 0))
        cut.set_shape([larger.shape[0], *smaller.shape[1 : rank + 1], larger.shape[-1]])
        return cut

    def compute_output_shape(self, input_shape):
        """The first grid's channels on the second's sizes."""
        larger, smaller = input_shape
        return (larger[0], *smaller[1:-1], larger[-1])

    def get_config(self):
        """The arguments of the constructor."""
        return {**super().get_config(), "anchor": self.anchor}


_LAYERS = {
    1: (keras.layers.Conv1D, keras.layers.Conv1DTranspose, keras.layers.MaxPooling1D),
    2: (keras.layers.Conv2D, keras.layers.Conv2DTranspose, keras.layers.MaxPooling2D),
    3: (keras.layers.Conv3D, keras.layers.Conv3DTranspose, keras.layers.MaxPooling3D),
}


def unet(
    rank=2,
    input_channels=1,
    output_channels=1,
    filters=32,
    depth=4,
    padding="same",
    activation=None,
    name="unet",
):
    """A U-Net: two 3-wide convolutions a level, halved by pooling, doubled again with the skip of its level.

    Args:
        rank: spatial axes, 1, 2 or 3.
        input_channels, output_channels: channels of `(batch, *spatial, channels)`; every spatial size may vary.
        filters: channels of the first level; each level below has twice as many.
        depth: levels, 1 or more; the grid is halved `depth - 1` times.
        padding: "same": the prediction has the input's size, whatever it is. "valid": nothing is padded, the
            prediction is smaller and keeps the input's centre; give sizes that are even before every pooling, else it
            can sit half a pixel off.
        activation: of the last layer, which computes in float32 whatever the policy, so that a loss sees no half type.
        name: of the model.

    Returns:
        A `keras.Model`.

    Raises:
        TypeError, ValueError: an option out of range.

    Source: Ronneberger et al. (2015), doi:10.1007/978-3-319-24574-4_28; with "same" padding by default.
    """
    _checks.choice("rank", rank, tuple(_LAYERS))
    _checks.choice("padding", padding, ("same", "valid"))
    for option, value in {
        "input_channels": input_channels,
        "output_channels": output_channels,
        "filters": filters,
        "depth": depth,
    }.items():
        _checks.whole_number(option, value, at_least=1)
    convolution, upsampling, pooling = _LAYERS[rank]

    def block(x, width):
        for _ in range(2):
            x = convolution(width, 3, padding=padding, activation="relu", kernel_initializer="he_normal")(x)
        return x

    inputs = keras.Input((None,) * rank + (input_channels,))
    skips, x = [], inputs
    for level in range(depth - 1):
        x = block(x, filters * 2**level)
        skips.append(x)
        x = pooling(2, padding=padding)(x)
    x = block(x, filters * 2 ** (depth - 1))
    for level in reversed(range(depth - 1)):
        x = upsampling(filters * 2**level, 2, strides=2)(x)
        skip = skips[level]
        if padding == "same":
            x = CropLike(anchor="start")([x, skip])
        else:
            skip = CropLike(anchor="center")([skip, x])
        x = block(keras.layers.Concatenate()([skip, x]), filters * 2**level)
    outputs = convolution(output_channels, 1, activation=activation, dtype="float32")(x)
    return keras.Model(inputs, outputs, name=name)
