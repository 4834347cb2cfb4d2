"""The running mean transform that pins the free offset.

Shift the network's output by c and every registered shift by c: the aligned loss is the same, so nothing in it holds
the network to its input. What does: over many labels the true shifts have a mean of zero, hence the mean of the
registered ones is the network's own offset, the drift, and is taken out of each.

How fast the mean may follow depends on how much the shifts scatter. A Kalman filter weighs each batch's mean by its
variance: aligned labels (no scatter) correct at once, shifts of +-8 px slowly. The scatter of batch means is taken
inside the batch and, because a batch may hold a single label or a single slide, also between consecutive batches.

A slow estimate in the loop oscillates: the network has long moved back when the mean says so. So the filter is told how
the network moves. Labels that are off by whole pixels share the fraction of their registered shifts with the network,
whatever their scatter: the phase of that fraction, followed from batch to batch, is an odometer. Where fractions are
incoherent (labels off by fractions) the network is taken to follow the correction at a typical rate.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

AXES = 3  # room for a volume's three; a state keeps its size whatever the rank

_READY_CONFIDENCE = 0.75  # registration is trusted once the running mean confidence of the batches reaches this
_LONGEST_WARMUP = 100  # updates; noisy labels may never look confident, and the plain loss blurs what was there
_MEASUREMENT_FLOOR = 0.01  # px^2, variance of a batch's mean when nothing scatters
_PROCESS_VARIANCE = 4e-4  # px^2 per step by which the drift may wander unseen
_TRACKED_PROCESS_VARIANCE = (5e-5, 0.02)  # the same while its fraction is followed: the least, and the first batch's
_WARMUP_PROCESS_VARIANCE = 0.02  # the same while the network is still forming
_FOLLOWING_RATE = 0.03  # px per step and px of correction, by which a network typically follows
_PHASE_GAIN = 0.3  # per batch, of the followed fraction
_COHERENCE_MEMORY = 0.95  # per batch
_COHERENT = (0.5, 0.7)  # fractions are not followed below, fully above
_SCATTER_MEMORY = 0.98  # per batch, of the scatter between batches
_CONFIDENCE_MEMORY = 0.9  # per batch; from 0 it takes 14 certain batches to be ready
_HYSTERESIS = (0.05, 0.2)  # px beyond the half at which a whole-pixel correction changes: one s.d. in these bounds


class BatchSums(NamedTuple):
    """What one batch tells, as sums, so that replicas can be added: `(AXES,)` each, weights as `weight`."""

    weight: tf.Tensor
    shift: tf.Tensor
    shift_squared: tf.Tensor
    cosine: tf.Tensor  # of the shift's fraction as a phase
    sine: tf.Tensor
    confidence: tf.Tensor
    count: tf.Tensor


class DriftState(NamedTuple):
    """The filter's state: `(AXES,)` each."""

    mean: tf.Tensor  # px, the drift
    variance: tf.Tensor  # px^2, of `mean`
    correction: tf.Tensor  # whole px that are taken out of the shifts
    previous: tf.Tensor  # px, mean of the last batch
    scatter: tf.Tensor  # px^2, running sum of squared changes between batch means
    scatter_weight: tf.Tensor  # running sum of their weights
    batches: tf.Tensor  # that told a shift
    fraction: tf.Tensor  # px, the followed fraction of the shifts, unwrapped
    coherence: tf.Tensor  # how well the fractions agree with it, 0 .. 1
    confidence: tf.Tensor  # running mean, from 0
    updates: tf.Tensor  # batches seen
    ready: tf.Tensor  # 1.0 once registration is trusted


STATE_SHAPE = (len(DriftState._fields), AXES)


def initial(max_shift=()):
    """The state before the first batch; the shifts are taken to fill the window evenly until they are seen."""
    bounds = [float(bound) for bound in max_shift] + [0.0] * (AXES - len(max_shift))
    zeros = tf.zeros([AXES])
    return DriftState(
        mean=zeros,
        variance=tf.ones([AXES]),
        correction=zeros,
        previous=zeros,
        scatter=tf.constant([2.0 * bound * bound / 3.0 for bound in bounds]),
        scatter_weight=tf.fill([AXES], 2.0),
        batches=zeros,
        fraction=zeros,
        coherence=zeros,
        confidence=zeros,
        updates=zeros,
        ready=zeros,
    )


def pack(state):
    """One tensor of `STATE_SHAPE`, for a variable."""
    return tf.stack(state)


def unpack(packed):
    """The state from what `pack` gave."""
    return DriftState(*tf.unstack(packed, num=len(DriftState._fields)))


def batch_sums(translation, confidence, *, min_confidence):
    """Sums over one batch; a shift that is not known well does not count, others by their confidence.

    Args:
        translation: `(batch, d)` pixels, sub-pixel. Non-finite samples are skipped.
        confidence: `(batch,)`.
        min_confidence: below it a sample has no weight.
    """
    translation = tf.cast(tf.pad(translation, [[0, 0], [0, AXES - translation.shape[-1]]]), tf.float32)
    confidence = tf.cast(confidence, tf.float32)
    usable = tf.reduce_all(tf.math.is_finite(translation), axis=-1) & tf.math.is_finite(confidence)
    confidence = tf.where(usable, confidence, 0.0)
    weight = tf.where(confidence >= min_confidence, confidence, 0.0)[:, tf.newaxis]
    translation = tf.where(usable[:, tf.newaxis], translation, 0.0)
    phase = 2.0 * np.pi * translation
    ones = tf.ones([AXES])
    return BatchSums(
        weight=ones * tf.reduce_sum(weight),
        shift=tf.reduce_sum(weight * translation, axis=0),
        shift_squared=tf.reduce_sum(weight * tf.square(translation), axis=0),
        cosine=tf.reduce_sum(weight * tf.cos(phase), axis=0),
        sine=tf.reduce_sum(weight * tf.sin(phase), axis=0),
        confidence=ones * tf.reduce_sum(confidence),
        count=ones * tf.reduce_sum(tf.cast(usable, tf.float32)),
    )


def update(state, sums, *, warmup_steps, subpixel):
    """The state after one batch; unchanged by a batch that tells nothing.

    Args:
        state: a `DriftState`.
        sums: `BatchSums` over all replicas.
        warmup_steps: "auto", or after how many batches registration is trusted.
        subpixel: whether the corrections in use are fractions.
    """
    known = sums.weight > 0.0
    weight = tf.where(known, sums.weight, 1.0)
    batch_mean = sums.shift / weight
    within = tf.maximum(sums.shift_squared / weight - tf.square(batch_mean), 0.0) / weight

    step = tf.square(batch_mean - state.previous) / 2.0
    is_first = state.batches <= 0.0
    scatter = tf.where(is_first, state.scatter, _SCATTER_MEMORY * state.scatter + step)
    scatter_weight = tf.where(is_first, state.scatter_weight, _SCATTER_MEMORY * state.scatter_weight + 1.0)
    measured = tf.maximum(within, scatter / scatter_weight) + _MEASUREMENT_FLOOR

    phase = 2.0 * np.pi * state.fraction
    cosine = (sums.cosine * tf.cos(phase) + sums.sine * tf.sin(phase)) / weight
    sine = (sums.sine * tf.cos(phase) - sums.cosine * tf.sin(phase)) / weight
    coherence = _COHERENCE_MEMORY * state.coherence + (1.0 - _COHERENCE_MEMORY) * cosine
    followed = _PHASE_GAIN * tf.sqrt(tf.square(cosine) + tf.square(sine)) * tf.atan2(sine, cosine) / (2.0 * np.pi)
    tracked = tf.clip_by_value((coherence - _COHERENT[0]) / (_COHERENT[1] - _COHERENT[0]), 0.0, 1.0)

    is_ready = state.ready > 0.0
    untracked_move = tf.where(is_ready, -_FOLLOWING_RATE * _applied(state, subpixel), 0.0)
    expected = state.mean + tracked * followed + (1.0 - tracked) * untracked_move
    slip = tf.maximum(_TRACKED_PROCESS_VARIANCE[0], _TRACKED_PROCESS_VARIANCE[1] / (state.batches + 1.0))
    process = tracked * slip + (1.0 - tracked) * (_PROCESS_VARIANCE + tf.square(untracked_move))
    predicted = state.variance + tf.where(is_ready, process, _WARMUP_PROCESS_VARIANCE)
    gain = predicted / (predicted + measured)
    mean = expected + gain * (batch_mean - expected)
    variance = (1.0 - gain) * predicted
    moved = tf.abs(mean - state.correction) > 0.5 + tf.clip_by_value(tf.sqrt(variance), *_HYSTERESIS)

    seen = sums.count > 0.0
    confidence = sums.confidence / tf.maximum(sums.count, 1.0)
    confidence = _CONFIDENCE_MEMORY * state.confidence + (1.0 - _CONFIDENCE_MEMORY) * confidence
    updates = state.updates + 1.0
    if warmup_steps == "auto":
        now_ready = (confidence >= _READY_CONFIDENCE) | (updates >= _LONGEST_WARMUP)
    else:
        now_ready = updates >= float(warmup_steps)
    after = DriftState(
        mean=tf.where(known, mean, state.mean),
        variance=tf.where(known, variance, state.variance),
        correction=tf.where(known & moved, tf.round(mean), state.correction),
        previous=tf.where(known, batch_mean, state.previous),
        scatter=tf.where(known, scatter, state.scatter),
        scatter_weight=tf.where(known, scatter_weight, state.scatter_weight),
        fraction=tf.where(known, state.fraction + followed, state.fraction),
        coherence=tf.where(known, coherence, state.coherence),
        batches=state.batches + tf.cast(known, tf.float32),
        confidence=confidence,
        updates=updates,
        ready=tf.maximum(state.ready, tf.cast(now_ready, tf.float32)),
    )
    return DriftState(*(tf.where(seen, new, old) for new, old in zip(after, state)))


def correction(state, *, rank, subpixel):
    """Pixels `(rank,)` to take out of every registered shift: whole ones, unless shifts are interpolated anyway."""
    return _applied(state, subpixel)[:rank]


def _applied(state, subpixel):
    return state.mean if subpixel else state.correction
