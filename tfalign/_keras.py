"""The few differences between Keras 2.15 and Keras 3. The only file that knows of them."""

import keras
import tensorflow as tf

from tfalign import _checks

IS_KERAS_3 = int(keras.__version__.split(".")[0]) >= 3

if IS_KERAS_3 and keras.backend.backend() != "tensorflow":
    raise ImportError(
        _checks.message(
            "tfalign needs Keras on its TensorFlow backend.",
            {"backend": keras.backend.backend()},
            'Set the environment variable KERAS_BACKEND="tensorflow" before the first `import keras`.',
        )
    )

_REDUCTIONS_2 = {
    "auto": "sum_over_batch_size",
    "mean": "sum_over_batch_size",
    None: "none",
    "none": "none",
    "sum": "sum",
    "sum_over_batch_size": "sum_over_batch_size",
}
_REDUCTIONS_3 = {
    "auto": "sum_over_batch_size",
    "mean": "mean",
    None: "none",
    "none": "none",
    "sum": "sum",
    "sum_over_batch_size": "sum_over_batch_size",
    "mean_with_sample_weight": "mean_with_sample_weight",
}


# Keras 2 has no Dice.
DICE_CLASSES = tuple(getattr(keras.losses, name) for name in ("Dice",) if hasattr(keras.losses, name))
DICE_FUNCTIONS = tuple(getattr(keras.losses, name) for name in ("dice",) if hasattr(keras.losses, name))


class Loss(keras.losses.Loss):
    """A Keras loss with one constructor, one `dtype` and one config in both Kerases."""

    def __init__(self, *, name, reduction, dtype):
        reductions = _REDUCTIONS_3 if IS_KERAS_3 else _REDUCTIONS_2
        reduction = reductions[_checks.choice("reduction", reduction, tuple(reductions))]
        dtype = dtype or keras.backend.floatx()
        dtype = getattr(dtype, "name", dtype)
        if dtype in ("float16", "bfloat16") and keras.backend.floatx() == dtype:
            dtype = "float32"
        _checks.choice("dtype", dtype, ("float32", "float64"))
        if IS_KERAS_3:
            super().__init__(name=name, reduction=reduction, dtype=dtype)
        else:
            super().__init__(name=name, reduction=reduction)
            self.dtype = dtype

    def get_config(self):
        """Name, reduction and dtype."""
        return {"name": self.name, "reduction": self.reduction, "dtype": self.dtype}


def without_autograph(function):
    """Keras 2.15 converts `Loss.call` with AutoGraph, Keras 3 does not: never."""
    return tf.autograph.experimental.do_not_convert(function)


def direction_of(metric):
    """Whether more ("up") or less ("down") of a metric is better, where Keras 3 knows; else None."""
    return getattr(metric, "_direction", None)


def set_direction(metric, direction):
    """Tells the callbacks of Keras 3 that watch `metric`, for which there is no public way; Keras 2 goes by names."""
    if direction is not None:
        metric._direction = direction
