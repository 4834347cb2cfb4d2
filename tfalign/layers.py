"""Keras layers that warp."""

import keras
import tensorflow as tf

from tfalign import _checks
from tfalign.ops import resample


@keras.saving.register_keras_serializable(package="tfalign")
class Warp(keras.layers.Layer):
    """Reads a grid through a transform or a displacement field: `aligned(u) = moving(T u)`, see `tfalign.warp`.

    Inputs are `[moving, transform_or_displacement]`; the output is the values, `(batch, *output_shape, channels)`, or
    with `return_mask` the values and the mask `(batch, *output_shape)`. Coordinates are computed in float32 at least,
    whatever the layer's dtype; the results have the layer's compute dtype (integers stay with "nearest").

    Args:
        output_shape: sizes of the fixed grid; by default those of the displacement, or of `moving`.
        interpolation: "linear", "nearest" or "cubic".
        fill_value: the value where the moving grid has no data.
        engine: "gather", or "projective" (transforms of pictures; no gradient, not under `jit_compile=True`).
        return_mask: also return the mask.

    Raises:
        TypeError, ValueError: options, ranks or sizes do not fit.

    Example:
        >>> field = keras.layers.Conv2D(2, 3, padding="same", kernel_initializer="zeros")(inputs)
        >>> aligned = tfalign.layers.Warp()([labels, field])
    """

    def __init__(
        self,
        *,
        output_shape=None,
        interpolation="linear",
        fill_value=0.0,
        engine="gather",
        return_mask=False,
        **kwargs,
    ):
        # Half types count pixels up to 2048 only: the layer casts for itself.
        super().__init__(**{"autocast": False, **kwargs})
        if output_shape is not None:
            output_shape = [_checks.whole_number("output_shape", size, at_least=1) for size in output_shape]
        self.options = {
            "output_shape": output_shape,
            "interpolation": _checks.choice("interpolation", interpolation, resample.INTERPOLATIONS),
            "fill_value": _checks.number("fill_value", fill_value),
            "engine": _checks.choice("engine", engine, resample.ENGINES),
        }
        self.return_mask = return_mask

    def call(self, inputs):
        """Warps `inputs[0]` by `inputs[1]`."""
        moving, pull = inputs
        values, mask = resample.warp(moving, pull, **self.options)
        if values.dtype.is_floating:
            values = tf.cast(values, self.compute_dtype)
        return (values, tf.cast(mask, self.compute_dtype)) if self.return_mask else values

    def get_config(self):
        """The arguments of the constructor."""
        return {**super().get_config(), **self.options, "return_mask": self.return_mask}
