"""Where labels are laid: where each fits best, or softly, at all its shifts, each as probable as registration makes it.

With the posterior over shifts as weights a training step is the M-step of expectation-maximisation, where the best
shift alone follows the noise. The expected loss of a base that is quadratic or linear in the label has the gradient of
the loss of the expected label, which is one convolution; of any other base the losses of the most probable shifts are
averaged.

Source: Dempster, Laird & Rubin (1977), doi:10.1111/j.2517-6161.1977.tb01600.x.
"""

import math
from typing import NamedTuple

import tensorflow as tf

from tfalign import _aligned_loss, _pixel_loss
from tfalign.ops import geometry, peak, spectral

_LIKELIEST = 8  # shifts of which losses are averaged
_ROUNDING = 1e-6  # of values: what they differ by is no texture
_LEAST_SHARE = 0.5  # share of a pixel's shifts that must find a value
_NEARLY_ALL = 0.9  # share of labels without which a network could not go on to learn


class Placed(NamedTuple):
    """Where labels are laid.

    Attributes:
        moves: `(batch, d+1, d+1)`, prediction -> label, if softly of a shift of 0.
        posterior: `(batch, *(2 * max_shift + 1))`, the probability of each shift from there; None if hard.
        counts: `(batch,)` booleans, labels that are compared; None: all.
    """

    moves: tf.Tensor
    posterior: tf.Tensor | None
    counts: tf.Tensor | None


def place(found, network, part, search, *, least_confidence, is_ready=None, share_gated=None):
    """Where the labels of a batch are laid, a `Placed`.

    Args:
        found: a `Registration`; if softly with its maps.
        network: `(1, d+1, d+1)`, what the network does to its input, to be taken out; or None.
        part: `Parts`.
        search: a `Search`.
        least_confidence: of a label that is known well enough.
        is_ready: a scalar boolean, whether labels are aligned by now; until then all stay in place. None: they are.
        share_gated: of late labels, those known too little; where that is nearly all none is left out. None: it is not.
    """
    known = found.confidence >= tf.cast(least_confidence, found.confidence.dtype)
    moved = known if search.assignment == "hard" else tf.ones_like(known)
    counts = None
    if search.uncertain == "leave_out":
        counts = known | _is_constant(part)
    if part.anchored is not None:
        moved &= ~part.anchored
        counts = None if counts is None else counts | part.anchored
    if is_ready is not None:
        moved &= is_ready
        counts = None if counts is None else counts | ~is_ready
    if counts is not None and share_gated is not None:
        counts |= share_gated > _NEARLY_ALL
    if search.assignment == "hard":
        return Placed(search.moves(found, network, moved), None, counts)
    moves, posterior = _spread(found, network, moved)
    return Placed(moves, posterior, counts)


def loss_there(parts, placed, base, search):
    """The base loss of each label and its prediction, `(batch,)`; 0 of labels that do not count."""
    if placed.posterior is None:
        losses = _aligned_loss.loss_on_overlap(parts, placed.moves, base, search)
    else:
        losses = _expected_loss(parts, placed.moves, placed.posterior, base, search)
    return losses if placed.counts is None else tf.where(placed.counts, losses, 0.0)


def _is_constant(part):
    """Labels, `(batch,)`, that are the same wherever they are laid."""
    lowest, highest = _aligned_loss.value_range(part.label, part.valid)
    rounding = _ROUNDING * tf.maximum(tf.abs(lowest), tf.abs(highest))
    return tf.reduce_all(highest - lowest <= rounding, axis=list(range(1, part.label.shape.rank)))


def _expected_loss(parts, moves, posterior, base, search):
    """The expected base loss of each label and its prediction, `(batch,)`.

    Args:
        parts: `Parts`.
        moves: `(batch, d+1, d+1)`, prediction -> label, of a shift of 0.
        posterior: `(batch, *(2 * max_shift + 1))`, sums to 1.
        base: a `PixelLoss`.
        search: a `Search`.
    """
    max_shift = [size // 2 for size in posterior.shape[1:]]
    if base.wants_mean:
        aligned, weight = _expected_label(parts, moves, posterior, base, search, max_shift)
        return _pixel_loss.per_sample(aligned, parts.prediction, weight[..., 0], base)
    size = math.prod(posterior.shape[1:])
    shares, best = tf.math.top_k(tf.reshape(posterior, [-1, size]), min(_LIKELIEST, size))
    shifts = tf.gather(peak.window_shifts(max_shift, parts.label.dtype), best)  # (batch, likeliest, d)

    def loss_of(shift):
        further = geometry.compose(moves, geometry.from_translation(shift))
        return _aligned_loss.loss_on_overlap(parts, further, base, search)

    # Not `tf.map_fn`: under XLA its loop cannot stack what the branches of a loss keep for the gradient.
    losses = tf.stack([loss_of(shift) for shift in tf.unstack(shifts, axis=1)], axis=1)
    return tf.reduce_sum(losses * shares, axis=1) / tf.reduce_sum(shares, axis=1)


def _expected_label(parts, moves, posterior, base, search, max_shift):
    """The posterior mean of the label on the prediction's grid, over the shifts that find a value, and its weight."""
    shape = geometry.spatial_shape(parts.prediction)
    wide = [size + 2 * bound for size, bound in zip(shape, max_shift)]
    label, weight = _aligned_loss.laid_label(parts, moves, wide, base, search)
    # A value counts as found however little it weighs.
    shares = [weight] if parts.weight is None else [weight, tf.cast(weight > 0.0, weight.dtype)]
    sizes = [spectral.fast_size(size) for size in wide]
    kernel = spectral.spectrum(posterior[:, tf.newaxis], sizes)
    weighted = tf.concat([spectral.channels_first(side) for side in (label * weight, *shares)], axis=1)
    spectra = spectral.spectrum(weighted, sizes)
    # Of the circular correlation the first values are those that wrap nothing.
    sums = spectral.inverse(tf.math.conj(kernel) * spectra, sizes, shape)
    total, *shares = tf.split(sums, [label.shape[-1], *[1] * len(shares)], axis=-1)
    weight = tf.where(shares[-1] > _LEAST_SHARE, tf.clip_by_value(shares[0], 0.0, 1.0), 0.0)
    mean = tf.math.divide_no_nan(tf.where(weight > 0.0, total, 0.0), weight)
    return _aligned_loss.inside_range(mean, parts.label, parts.valid), weight


def _spread(found, network, moved):
    """The move of a shift of 0, and the posterior over shifts from there."""
    identity = geometry.from_translation(tf.zeros_like(found.translation))
    # The map of a mere shift counts from no shift, that of any other transform from the transform.
    is_turned = tf.reduce_any(found.transform[:, :-1, :-1] != identity[:, :-1, :-1], axis=[1, 2])
    moves = tf.where(is_turned[:, tf.newaxis, tf.newaxis], found.transform, identity)
    if network is not None:
        moves = geometry.compose(moves, geometry.invert(network))
    size = math.prod(found.posterior_map.shape[1:])
    flat = tf.reshape(found.posterior_map, [-1, size])
    middle = tf.one_hot([size // 2], size, dtype=flat.dtype)
    posterior = tf.reshape(tf.where(moved[:, tf.newaxis], flat, middle), tf.shape(found.posterior_map))
    posterior.set_shape(found.posterior_map.shape)
    return tf.where(moved[:, tf.newaxis, tf.newaxis], moves, identity), posterior
