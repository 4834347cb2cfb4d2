"""Argument checks and the one form of an error message: what must hold, what came, what to do."""

import importlib
import numbers

import tensorflow as tf


def message(requirement, received, remedy=""):
    """One error text: the requirement, `Received: name=value, …`, then what to do."""
    values = ", ".join(f"{name}={value!r}" for name, value in received.items())
    return f"{requirement} Received: {values}. {remedy}".rstrip()


def extra(module, name):
    """Imports a module that the extra `name` installs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        remedy = f"pip install 'tfalign[{name}]'"
        raise ImportError(message(f"`{module}` must be installed.", {"import": str(error)}, remedy)) from error


def number(name, value, *, at_least=None, at_most=None, remedy=""):
    """Returns `value` as a float inside its bounds."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(message(f"`{name}` must be a number.", {name: value}, remedy))
    low = "" if at_least is None else f" >= {at_least}"
    high = "" if at_most is None else f" <= {at_most}"
    too_low = at_least is not None and not value >= at_least
    too_high = at_most is not None and not value <= at_most
    if too_low or too_high:
        joined = " and".join(part for part in (low, high) if part)
        raise ValueError(message(f"`{name}` must be{joined}.", {name: value}, remedy))
    return float(value)


def whole_number(name, value, *, at_least, remedy=""):
    """Returns `value`, a whole number inside its bound."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(message(f"`{name}` must be a whole number.", {name: value}, remedy))
    number(name, value, at_least=at_least, remedy=remedy)
    return int(value)


def choice(name, value, allowed):
    """Returns `value`, which must be one of `allowed`."""
    if value not in allowed:
        names = ", ".join(repr(item) for item in allowed)
        raise ValueError(message(f"`{name}` must be one of {names}.", {name: value}))
    return value


def pixels_per_axis(name, value, rank):
    """Expands a whole number of pixels, or one per axis, to a tuple with one for each of `rank` axes."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * rank
    for item in values:
        if isinstance(item, bool) or not isinstance(item, numbers.Integral):
            raise TypeError(
                message(
                    f"`{name}` must be a whole number of pixels, or one per axis.",
                    {name: value},
                    "Round it up: a sub-pixel result is asked for with `subpixel=True`.",
                )
            )
        if item < 0:
            raise ValueError(message(f"`{name}` must be >= 0.", {name: value}, "0 searches no shift on that axis."))
    if len(values) != rank:
        raise ValueError(
            message(
                f"`{name}` must be one number or one for each of the {rank} spatial axes.",
                {name: value},
                "Axes are in the order (plane, row, col), without batch and channels.",
            )
        )
    return tuple(int(item) for item in values)


def whole_numbers_per_axis(name, value, rank, *, at_least):
    """Expands a whole number, or one per axis, to a tuple with one for each of `rank` axes."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * rank
    if len(values) != rank:
        raise ValueError(
            message(f"`{name}` must be one number or one for each of the {rank} spatial axes.", {name: value})
        )
    return tuple(whole_number(name, item, at_least=at_least) for item in values)


def spatial_rank(name, tensor):
    """Number of spatial axes of a `(batch, *spatial, channels)` tensor: 1, 2 or 3."""
    rank = tensor.shape.rank
    if rank is None or not 3 <= rank <= 5:
        raise ValueError(
            message(
                f"`{name}` must have the shape (batch, *spatial, channels) with 1, 2 or 3 spatial axes.",
                {f"{name}.shape": shape_of(tensor)},
                "Add the batch or the channel axis, e.g. x[..., tf.newaxis].",
            )
        )
    return rank - 2


def shape_of(tensor):
    """Static shape as a tuple (None where unknown), for messages."""
    return None if tensor.shape.rank is None else tuple(tensor.shape.as_list())


def floating(value, name):
    """A float32 or float64 tensor: integers, booleans and half types become float32."""
    try:
        tensor = tf.convert_to_tensor(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            message(f"`{name}` must be a dense numeric tensor or array.", {f"type({name})": type(value).__name__})
        ) from error
    if tensor.dtype in (tf.float32, tf.float64):
        return tensor
    if not (tensor.dtype.is_floating or tensor.dtype.is_integer or tensor.dtype.is_bool):
        raise TypeError(message(f"`{name}` must be real numbers.", {f"{name}.dtype": tensor.dtype.name}))
    return tf.cast(tensor, tf.float32)
