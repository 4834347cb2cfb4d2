"""Random flips and quarter turns of an input together with its label, for `tf.data.Dataset.map`.

A misalignment that is common to all labels does not commute with a flip: over flipped samples it averages out, and the
network has no reason to follow it.
"""

import numpy as np
import tensorflow as tf

from tfalign import _checks

_NAMED = "Name sizes that TensorFlow does not know, as after a `py_function`: tensor.set_shape([64, 64, 3])."


def flips(inputs, label, seed, *, axes=None, quarter_turns=False):
    """Flips every spatial axis of an input and its label with probability 1/2, and turns them by 0 to 3 quarters.

    Both stay on one centre. In a data set each sample needs a seed of its own:

        seeds = tf.data.Dataset.random(seed=7).batch(2)
        tf.data.Dataset.zip((samples, seeds)).map(lambda sample, seed: flips(*sample, seed))

    Args:
        inputs: `(*spatial, channels)` of one sample, 1 to 3 spatial axes.
        label: same rank; may be larger or smaller by an even number of pixels on each axis, as with a margin.
        seed: two whole numbers; the same seed gives the same result.
        axes: which spatial axes may be flipped, e.g. (1,) where up and down differ; by default all.
        quarter_turns: whether to turn, in 2-D and for square samples.

    Returns:
        `(inputs, label)`, the same shapes and types.

    Raises:
        ValueError: ranks differ, sizes known to differ by an odd number, axes out of range, or turns of what is not
            square.
    """
    inputs, label, seed = (tf.convert_to_tensor(one) for one in (inputs, label, seed))
    rank = _rank(inputs, label, seed)
    axes = tuple(range(rank)) if axes is None else tuple(np.ravel(axes).tolist())
    _check(inputs, label, rank, axes, quarter_turns)
    draws = tf.random.stateless_uniform([rank + 1], seed, 0, 4, dtype=tf.int32)

    def moved(values):
        for axis in axes:
            values = tf.where(draws[axis] < 2, tf.reverse(values, [axis]), values)
        if quarter_turns:
            values = tf.switch_case(draws[rank], [lambda k=k: tf.image.rot90(values, k) for k in range(4)])
        return values

    return moved(inputs), moved(label)


def _shapes(inputs, label):
    return {"inputs.shape": _checks.shape_of(inputs), "label.shape": _checks.shape_of(label)}


def _rank(inputs, label, seed):
    """The number of spatial axes of both."""
    if inputs.shape.rank is None or label.shape.rank != inputs.shape.rank:
        requirement = "`inputs` and `label` must have one known rank, (*spatial, channels)."
        raise ValueError(_checks.message(requirement, _shapes(inputs, label), _NAMED))
    if not seed.shape.is_compatible_with([2]):
        raise ValueError(_checks.message("`seed` must be two whole numbers.", {"seed.shape": _checks.shape_of(seed)}))
    return inputs.shape.rank - 1


def _check(inputs, label, rank, axes, quarter_turns):
    """Refuses what cannot be flipped or turned about one centre."""
    shapes = _shapes(inputs, label)
    if not set(axes) <= set(range(rank)):
        raise ValueError(_checks.message(f"`axes` must be spatial axes, 0 to {rank - 1}.", {"axes": axes}))
    pairs = list(zip(inputs.shape[:-1], label.shape[:-1]))
    if any(None not in pair and (pair[0] - pair[1]) % 2 for pair in pairs):
        # An even grid has its centre beside its middle: a flip moves it, and only both alike.
        remedy = "Give the label a margin of the same width on both sides."
        raise ValueError(_checks.message("Sizes must differ by an even number of pixels.", shapes, remedy))
    if not quarter_turns:
        return
    squares = [rank == 2 and shape[0] is not None and shape[0] == shape[1] for shape in (inputs.shape, label.shape)]
    if not all(squares):
        raise ValueError(_checks.message("`quarter_turns` needs square samples of known size.", shapes, _NAMED))
