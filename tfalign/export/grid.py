"""Which input sizes a network takes, and how its output lies on its input: found by tracing it."""

from typing import NamedTuple

import tensorflow as tf

from tfalign import _checks

_STRIDES = (1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 16, 24, 32, 48, 64)
_FACTORS = (15, 16, 17)  # odd ones too: sizes that a coarser stride would not take are among them
_START, _LONGEST = 960, 64


class Axis(NamedTuple):
    """What a network does along one spatial axis.

    It takes the sizes `remainder + k * stride`, or only `fixed`, and gives `loss` pixels less than it took, `loss // 2`
    of them at the start.
    """

    stride: int = 1
    remainder: int = 0
    loss: int = 0
    fixed: int | None = None

    def taken_size(self, size):
        """The smallest size >= `size` that the network takes whole or, if larger than `fixed`, in tiles."""
        if self.fixed is not None:
            return tf.maximum(size, self.fixed)
        return size + (self.remainder - size) % self.stride


def axes_of(model, stride="auto"):
    """The `Axis` of every spatial axis of a network.

    The network is traced, not run, for some sizes that are the same on all axes. With "same" padding the stride is the
    smallest number whose multiples all come out as large as they went in. Where something is always lost ("valid"
    padding) the losses are periodic in the size: the stride is their period, and the sizes that lose least are those at
    which no pooling drops a pixel, so that the output is centred.

    Args:
        model: a Keras model with one input and one output.
        stride: "auto", or what to take for it, a whole number or one per axis; then only what is lost is found.

    Raises:
        TypeError, ValueError: no such number, or the network does not give one output pixel for every input pixel.
    """
    sizes = model.input_shape[1:-1]
    rank = len(sizes)
    if stride != "auto":
        stride = _checks.whole_numbers_per_axis("stride", stride, rank, at_least=1)

    def losses(*wanted):
        taken = [fixed or size for fixed, size in zip(sizes, wanted)]
        given = _output_sizes(model, taken)
        return None if given is None else tuple(size - left for size, left in zip(taken, given))

    axes = _by_multiples(losses, rank, stride) or _by_period(losses, rank, stride)
    if axes is None:
        raise ValueError(
            _checks.message(
                "`model` must give one output pixel for every input pixel, but for a border.",
                {"model.output_shape": model.output_shape, "stride": stride},
                "stride=None exports it as it is: nothing is padded, tiled or moved.",
            )
        )
    return tuple(Axis(loss=axis.loss, fixed=size) if size else axis for axis, size in zip(axes, sizes))


def _output_sizes(model, sizes):
    """Spatial sizes of the output for an input of `sizes`, or None where the network refuses them."""
    spec = tf.TensorSpec((1, *sizes, model.input_shape[-1]), tf.float32)
    try:
        shape = tf.function(lambda inputs: model(inputs)).get_concrete_function(spec).output_shapes
    except (ValueError, TypeError, tf.errors.OpError):
        return None
    if shape.rank != len(sizes) + 2 or None in shape.as_list()[1:-1]:
        return None
    return shape.as_list()[1:-1]


def _by_multiples(losses, rank, stride):
    """Of a network that loses nothing; None otherwise."""
    strides = [(one,) * rank for one in _STRIDES] if stride == "auto" else [stride]
    for tried in strides:
        if all(losses(*(factor * one for one in tried)) == (0,) * rank for factor in _FACTORS):
            return [Axis(one) for one in tried]
    return None


def _by_period(losses, rank, stride):
    """Of a network that always loses something; None if losses do not repeat or it takes no size."""
    strides = (None,) * rank if stride == "auto" else stride
    longest = _LONGEST if stride == "auto" else max(stride)
    columns: list[list[int | None]] = [[] for _ in range(rank)]
    for size in range(_START, _START + 2 * longest + 1):
        for column, loss in zip(columns, losses(*(size,) * rank) or (None,) * rank):
            column.append(loss)
        periods = [_period(column, one) for column, one in zip(columns, strides)]
        if all(periods):
            break
    else:
        return None
    axes = []
    for column, period in zip(columns, periods):
        lost = [(loss, index) for index, loss in enumerate(column[:period]) if loss is not None and loss >= 0]
        if not lost:
            return None
        loss, index = min(lost)
        axes.append(Axis(period, (_START + index) % period, loss))
    return axes


def _period(column, stride):
    """The smallest shift of a sequence, or `stride`, seen twice, that leaves it the same; None if there is none."""
    if all(loss is None for loss in column):
        return None
    for period in range(1, (len(column) - 1) // 2 + 1) if stride is None else [stride]:
        if len(column) > 2 * period and column[period:] == column[:-period]:
            return period
    return None
