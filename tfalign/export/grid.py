"""Which input sizes a network takes and how its output lies on its input, found by tracing it; how far a border
reaches into its output, found by running it."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfalign import _checks

_STRIDES = (1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 16, 24, 32, 48, 64)
_FACTORS = (15, 16, 17)  # odd ones too: sizes that a coarser stride would not take are among them
_START, _LONGEST = 960, 64
_PROBES = {1: 1024, 2: 512, 3: 256}  # pixels along the axis that is measured, by rank
_PROBES_ACROSS = 8
_SAME = 1e-5


class Axis(NamedTuple):
    """What a network does along one spatial axis.

    It takes the sizes `remainder + k * stride`, or only `fixed`, and gives `loss` pixels less than it took, `loss // 2`
    of them at the start. Moving its input by `period` pixels moves its output; as far as `reach` pixels into it, the
    end of a grid shows (None: further than can be told). Both are known once they are `measured`.
    """

    stride: int = 1
    remainder: int = 0
    loss: int = 0
    fixed: int | None = None
    period: int = 1
    reach: int | None = None

    def taken_size(self, size):
        """The smallest size >= `size` that the network takes whole or, if larger than `fixed`, in tiles."""
        if self.fixed is not None:
            return self.fixed + tf.maximum(-((self.fixed - size) // self.period), 0) * self.period
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
                f"Where it takes multiples of more than {_LONGEST}, name that: stride=128. stride=None exports it as it"
                " is: nothing is padded, tiled or moved.",
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


def measured(model, axes, *, value_range=(0.0, 1.0)):
    """The axes with their `period` and `reach`.

    Along each axis the outputs for two cuts of the same noise are compared, of which one begins some pixels further on.
    The smallest such number for which they agree in the middle, to 1e-5 of the largest value, is the period; as far
    from an end as they do not, that end reaches. Where they never agree, as when a mean of the whole grid counts, the
    period is where they do best.

    Args:
        model: a Keras model with one input and one output.
        axes: an `Axis` for each spatial axis.
        value_range: half of the noise fills it, the other half is standard normal.
    """
    return tuple(_measured(model, axes, number, value_range) for number in range(len(axes)))


def _measured(model, axes, number, value_range):
    axis, longest = axes[number], max(_LONGEST, axes[number].stride)
    wanted = [other.loss + _PROBES_ACROSS for other in axes]
    wanted[number] = axis.loss + max(_PROBES[len(axes)], 4 * longest)
    sizes = [other.fixed or other.taken_size(size) for other, size in zip(axes, wanted)]
    rng = np.random.default_rng(0)
    shape = [1, *sizes, model.input_shape[-1]]
    shape[number + 1] += longest
    noise = np.concatenate([rng.uniform(min(value_range), max(value_range), shape), rng.normal(size=shape)]).astype(
        np.float32
    )

    def output(start):
        """Of one cut, the axis in front."""
        cut = np.take(noise, range(start, start + sizes[number]), axis=number + 1)
        return np.moveaxis(tf.cast(model(cut, training=False), tf.float32).numpy(), number + 1, 0)

    first = output(0)
    largest = np.abs(first).max(axis=(0, *range(2, first.ndim))) + np.finfo(np.float32).tiny
    middles = {}
    for period in (axis.stride * factor for factor in _STRIDES):
        if period > min(longest, len(first) // 2):
            break
        difference = np.abs(output(period)[:-period] - first[period:]).max(axis=tuple(range(2, first.ndim)))
        difference = (difference / largest).max(axis=1)
        count = len(difference)
        middles[period] = difference[count * 3 // 8 : count * 5 // 8 + 1].max()
        if middles[period] <= _SAME:
            places = np.flatnonzero(difference > _SAME)
            reach = int(np.minimum(places + 1, count - places).max(initial=0))
            # An end within a pooled group reaches as far as the group's begin does.
            return axis._replace(period=period, reach=reach + period - 1 if reach else 0)
    best = [period for period, middle in middles.items() if middle <= 2 * min(middles.values())]
    return axis._replace(period=min(best, default=axis.stride), reach=None)
