"""The running estimate of the network's own offset, the drift, that pins the free offset.

Shift the network's output by c and every registered shift by c: the aligned loss is the same, so nothing in it holds
the network to its input. What does: over many labels the true shifts have a mean of zero, hence the mean of the
registered ones is the network's own offset, the drift, and is taken out of each.

The drift is followed by a histogram filter: a belief over a fine grid of drifts, for each axis, that each batch
multiplies with what it tells, and that moves as the network does.

* The mean of the batch's shifts tells the drift as well as shifts scatter. The scatter of batch means is taken inside
  the batch and, because a batch may hold a single label or a single slide, also between consecutive batches. So aligned
  labels (no scatter) correct at once, shifts of +-8 px slowly.
* The common fraction of the shifts tells the drift's fraction. Labels that are off by whole pixels share it with the
  network, whatever their scatter: followed from batch to batch it is an odometer, which shows when the network moves by
  a pixel. How far it can be trusted is taken from consecutive batches too; labels off by fractions have none.
* Labels that are known to lie right, anchors, tell the drift itself. Once there were any, the mean of the others tells
  nothing more: it may be anything.
* A correction moves the network. A slow estimate in the loop would oscillate: the network has long moved back when the
  mean says so. So the belief moves against the correction, at any of several typical rates, and the fractions tell
  which it was.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfalign import linear_drift

AXES = 3  # room for a volume's three; a state keeps its size whatever the rank

_CELLS_PER_PIXEL = 16
_REACH = 6  # px the belief covers on either side of its origin
_CELLS = 2 * _REACH * _CELLS_PER_PIXEL + 1

_READY_CONFIDENCE = 0.75  # registration is trusted once the running mean confidence of the batches reaches this
_LONGEST_WARMUP = 100  # updates; noisy labels may never look confident, and the plain loss blurs what was there
SETTLING = 100.0  # updates that `ready` takes to rise
_WARMUP_GRADIENT = 0.3  # share of the gradient that counts before labels are aligned
_CONFIDENCE_MEMORY = 0.9  # per batch; from 0 it takes 14 certain batches to be ready
_TELLING_MEMORY = 0.95  # per batch, of what is told to people and of how many labels lie in place
_IN_PLACE = 1.5  # px from the drift: within a pixel, as a confidence is understood, and what rounding leaves
_FIRST_SHARE_IN_PLACE = 0.5  # until labels are seen
_FIRST_VARIANCE = 1.0  # px^2 of the belief before the first batch
_MEASUREMENT_FLOOR = 0.01  # px^2, variance of a batch's mean when nothing scatters
_ANCHOR_VARIANCE = 0.1  # px^2, of the shift of one label that is known to lie right
_UNTOLD = 1e6  # px^2, of a mean that tells nothing
_SCATTER_MEMORY = 0.98  # per batch, of the scatter between batches
_COHERENCE_MEMORY = 0.9  # per batch
_LEAST_COHERENCE = 0.35  # below it fractions tell nothing
_CONCENTRATION = 8.0  # of the von Mises likelihood of a batch's fraction
_OUTLIERS = 0.02  # share of batches that may tell anything
_WANDER = (0.02, 4e-4)  # px^2 per step, while the network is still forming and later
_RATES = (0.0, 0.03, 0.1, 0.3, 1.0)  # per step, at which a network may follow a push
_RATE_SHARES = (0.3, 0.4, 0.2, 0.07, 0.03)  # how often
_RATE_CHANGE = 0.01  # per step, of becoming any other
_INERTIA = 0.9  # per step, of the push that a correction gives: the momentum of the usual optimizers
_COASTING = 5.0  # steps of the present push that a network still follows
_DOUBT = 0.2  # a whole-pixel correction stands until it is less probable


class BatchSums(NamedTuple):
    """What one batch tells, as sums, so that replicas can be added: `(AXES,)` each, weights as `weight`."""

    weight: tf.Tensor
    shift: tf.Tensor
    shift_squared: tf.Tensor
    cosine: tf.Tensor  # of the shift's fraction as a phase
    sine: tf.Tensor
    confidence: tf.Tensor
    count: tf.Tensor
    gated: tf.Tensor  # labels that are known too little to be moved
    at_bound: tf.Tensor  # labels whose shift lies on the bound of the search
    in_place: tf.Tensor  # confidence of the labels that lie where the network is
    linear: tf.Tensor | None = None  # `(AXES, 3)`, rotation, scale and shear where they are searched
    linear_squared: tf.Tensor | None = None
    anchor_weight: tf.Tensor | None = None  # of the labels that are known to lie right, where some may be
    anchor_shift: tf.Tensor | None = None
    anchor_linear: tf.Tensor | None = None
    anchor_linear_squared: tf.Tensor | None = None


class DriftState(NamedTuple):
    """The filter's state: `(AXES,)` each but the first and the last."""

    belief: tf.Tensor  # `(AXES, rates, cells)`, sums to 1 for each axis
    origin: tf.Tensor  # whole px, the drift of the middle cell
    correction: tf.Tensor  # whole px that are taken out of the shifts
    push: tf.Tensor  # px, running mean of the corrections applied
    previous: tf.Tensor  # px, mean of the last batch
    previous_cosine: tf.Tensor  # its fraction as a phase
    previous_sine: tf.Tensor
    scatter: tf.Tensor  # px^2, running sum of squared changes between batch means
    scatter_weight: tf.Tensor  # running sum of their weights
    coherence: tf.Tensor  # running mean of how well the fractions of consecutive batches agree, -1 .. 1
    batches: tf.Tensor  # that told a shift
    confidence: tf.Tensor  # running mean, from 0
    gated: tf.Tensor  # running share of labels
    at_bound: tf.Tensor  # running share of labels
    in_place: tf.Tensor  # running share of labels that lie where the network is, by their confidence
    shift: tf.Tensor  # px, running mean
    shift_squared: tf.Tensor  # px^2, running mean
    updates: tf.Tensor  # batches seen
    anchored: tf.Tensor  # above 0 once a label was known to lie right
    ready: tf.Tensor  # above 0 once registration is trusted, and then rises to 1
    linear: tf.Tensor  # of `tfalign.linear_drift`

    @property
    def mean(self):
        """The drift, `(AXES,)` pixels."""
        return self.origin + tf.reduce_sum(self.belief * _OFFSETS, axis=[1, 2])

    @property
    def spread(self):
        """The standard deviation of the shifts of late, `(AXES,)` pixels."""
        return tf.sqrt(tf.maximum(self.shift_squared - tf.square(self.shift), 0.0))

    @property
    def variance(self):
        """Of the mean, `(AXES,)` pixels^2."""
        away = _OFFSETS - (self.mean - self.origin)[:, tf.newaxis, tf.newaxis]
        return tf.reduce_sum(self.belief * tf.square(away), axis=[1, 2])


_PIXELS = np.arange(-_REACH, _REACH + 1, dtype=np.float32)
_OFFSETS = (np.arange(_CELLS) / _CELLS_PER_PIXEL - _REACH).astype(np.float32)
_SINGLE = len(DriftState._fields) - 2  # fields of one number for each axis
STATE_SHAPE = (AXES, len(_RATES) * _CELLS + _SINGLE + linear_drift.COLUMNS)


def _spread(variance):
    """`(cells, cells)`: what one step of wandering makes of a belief."""
    steps = np.subtract.outer(_OFFSETS, _OFFSETS)
    width = 1.0 / _CELLS_PER_PIXEL
    # A Gaussian narrower than a cell keeps its variance as three weights.
    if variance < width**2:
        beside = 0.5 * variance / width**2
        kernel = np.where(steps == 0, 1.0 - 2.0 * beside, np.where(np.abs(steps) < 1.5 * width, beside, 0.0))
    else:
        kernel = np.exp(-0.5 * np.square(steps) / variance)
    return (kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32)


def _whole_pixels():
    """`(cells, 2 reach + 1)`: the share of each cell in each whole pixel; half-way ones belong to two."""
    away = np.abs(np.subtract.outer(_OFFSETS, _PIXELS))
    return np.where(away < 0.5, 1.0, np.where(away == 0.5, 0.5, 0.0)).astype(np.float32)


_RATE_COLUMN, _SHARES = (np.array(values, np.float32)[:, np.newaxis] for values in (_RATES, _RATE_SHARES))
_FORMING, _FORMED = (_spread(variance) for variance in _WANDER)
_WHOLE_PIXELS = _whole_pixels()


def initial(max_shift=(), *, max_rotation=0.0, max_scale=0.0, max_shear=0.0):
    """The state before the first batch; the shifts are taken to fill the window evenly until they are seen."""
    bounds = [float(bound) for bound in max_shift] + [0.0] * (AXES - len(max_shift))
    belief = np.outer(_RATE_SHARES, np.exp(-0.5 * np.square(_OFFSETS) / _FIRST_VARIANCE))
    zeros = tf.zeros([AXES])
    return DriftState(
        belief=tf.constant(np.tile(belief / belief.sum(), (AXES, 1, 1)), tf.float32),
        origin=zeros,
        correction=zeros,
        push=zeros,
        previous=zeros,
        previous_cosine=zeros,
        previous_sine=zeros,
        scatter=tf.constant([2.0 * bound * bound / 3.0 for bound in bounds]),
        scatter_weight=tf.fill([AXES], 2.0),
        coherence=zeros,
        batches=zeros,
        confidence=zeros,
        gated=zeros,
        at_bound=zeros,
        in_place=tf.fill([AXES], _FIRST_SHARE_IN_PLACE),
        shift=zeros,
        shift_squared=zeros,
        updates=zeros,
        anchored=zeros,
        ready=zeros,
        linear=linear_drift.initial(max_rotation, max_scale, max_shear),
    )


def pack(state):
    """One tensor of `STATE_SHAPE`, for a variable."""
    several = [tf.reshape(field, [AXES, -1]) for field in (state.belief, state.linear)]
    return tf.concat([several[0], tf.stack(state[1:-1], axis=1), several[1]], axis=1)


def unpack(packed):
    """The state from what `pack` gave."""
    belief, single, linear = tf.split(packed, [len(_RATES) * _CELLS, _SINGLE, linear_drift.COLUMNS], axis=1)
    belief = tf.reshape(belief, [AXES, len(_RATES), _CELLS])
    linear = tf.reshape(linear, [AXES, linear_drift.FIELDS, 3])
    return DriftState._make([belief, *tf.unstack(single, num=_SINGLE, axis=1), linear])


def unpack_each(packed):
    """The states of a loss: one, or one for each of its groups of channels, stacked."""
    return [unpack(one) for one in (tf.unstack(packed) if packed.shape.rank > 2 else [packed])]


def batch_sums(translation, confidence, *, min_confidence, mean=0.0, max_shift=(), anchored=None, linear=None):
    """Sums over one batch; a shift that is not known well does not count, others by their confidence.

    Args:
        translation: `(batch, d)` pixels, sub-pixel. Non-finite samples are skipped.
        confidence: `(batch,)`.
        min_confidence: below it a sample has no weight.
        mean: `(AXES,)` pixels, the drift so far, to tell the labels that lie in place.
        max_shift: of the window, one int per axis, to tell the shifts that lie on its bound.
        anchored: `(batch,)` booleans, labels that are known to lie right: what is registered is the network's drift.
        linear: `(batch, AXES, 3)` of `tfalign.linear_drift.parameters`, finite, where they are searched.
    """
    on_bound = tf.zeros_like(confidence, tf.bool)
    for axis, bound in enumerate(max_shift):
        on_bound |= (tf.abs(translation[:, axis]) > bound - 0.5) & (bound > 0)
    translation = tf.cast(tf.pad(translation, [[0, 0], [0, AXES - translation.shape[-1]]]), tf.float32)
    confidence = tf.cast(confidence, tf.float32)
    usable = tf.reduce_all(tf.math.is_finite(translation), axis=-1) & tf.math.is_finite(confidence)
    confidence = tf.where(usable, confidence, 0.0)
    weight = tf.where(confidence >= min_confidence, confidence, 0.0)[:, tf.newaxis]
    translation = tf.where(usable[:, tf.newaxis], translation, 0.0)
    phase = 2.0 * np.pi * translation
    is_in_place = tf.reduce_all(tf.abs(translation - mean) <= _IN_PLACE, axis=-1)
    ones = tf.ones([AXES])
    found = {}
    if linear is not None:
        found["linear"], found["linear_squared"] = _first_two_sums(weight, linear)
    if anchored is not None:
        anchors = weight * tf.cast(anchored, tf.float32)[:, tf.newaxis]
        found["anchor_weight"] = ones * tf.reduce_sum(anchors)
        found["anchor_shift"] = tf.reduce_sum(anchors * translation, axis=0)
        if linear is not None:
            found["anchor_linear"], found["anchor_linear_squared"] = _first_two_sums(anchors, linear)
    return BatchSums(
        weight=ones * tf.reduce_sum(weight),
        shift=tf.reduce_sum(weight * translation, axis=0),
        shift_squared=tf.reduce_sum(weight * tf.square(translation), axis=0),
        cosine=tf.reduce_sum(weight * tf.cos(phase), axis=0),
        sine=tf.reduce_sum(weight * tf.sin(phase), axis=0),
        confidence=ones * tf.reduce_sum(confidence),
        count=ones * tf.reduce_sum(tf.cast(usable, tf.float32)),
        gated=ones * tf.reduce_sum(tf.cast(usable & (confidence < min_confidence), tf.float32)),
        at_bound=ones * tf.reduce_sum(tf.cast(usable & on_bound, tf.float32)),
        in_place=ones * tf.reduce_sum(tf.where(is_in_place, confidence, 0.0)),
        **found,
    )


def _first_two_sums(weight, linear):
    weighted = weight[..., tf.newaxis] * linear
    return tf.reduce_sum(weighted, axis=0), tf.reduce_sum(weighted * linear, axis=0)


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
    batch_mean, cosine, sine = sums.shift / weight, sums.cosine / weight, sums.sine / weight

    within = tf.maximum(sums.shift_squared / weight - tf.square(batch_mean), 0.0) / weight
    is_first = state.batches <= 0.0
    step = tf.square(batch_mean - state.previous) / 2.0
    scatter = tf.where(is_first, state.scatter, _SCATTER_MEMORY * state.scatter + step)
    scatter_weight = tf.where(is_first, state.scatter_weight, _SCATTER_MEMORY * state.scatter_weight + 1.0)
    variance = tf.maximum(within, scatter / scatter_weight) + _MEASUREMENT_FLOOR
    agreement = cosine * state.previous_cosine + sine * state.previous_sine
    coherence = _COHERENCE_MEMORY * state.coherence + (1.0 - _COHERENCE_MEMORY) * agreement
    told, anchored, is_told = batch_mean, state.anchored, None
    if sums.anchor_weight is not None:
        is_told = sums.anchor_weight > 0.0
        anchored = tf.maximum(anchored, tf.cast(is_told, tf.float32))
        anchors = tf.where(is_told, sums.anchor_weight, 1.0)
        told = tf.where(is_told, sums.anchor_shift / anchors, told)
        variance = tf.where(anchored > 0.0, _UNTOLD, variance)
        variance = tf.where(is_told, _ANCHOR_VARIANCE / anchors + _MEASUREMENT_FLOOR, variance)
    belief = state.belief * _likelihood(told - state.origin, variance, cosine, sine, coherence)[:, tf.newaxis]

    # The step that follows this batch moves the network.
    is_ready = state.ready > 0.0
    push = _INERTIA * state.push + (1.0 - _INERTIA) * tf.where(is_ready, _applied(state, subpixel), 0.0)
    belief = _moved(belief, push)
    belief @= tf.where(is_ready[0], _FORMED, _FORMING)
    belief += _RATE_CHANGE * (tf.reduce_sum(belief, axis=1, keepdims=True) * _SHARES - belief)
    belief, origin = _centered(belief / tf.reduce_sum(belief, axis=[1, 2], keepdims=True), state.origin)
    correction = _whole_correction(belief, origin, push, state.correction)

    seen = sums.count > 0.0
    confidence = sums.confidence / tf.maximum(sums.count, 1.0)
    confidence = _CONFIDENCE_MEMORY * state.confidence + (1.0 - _CONFIDENCE_MEMORY) * confidence
    gated, at_bound = (
        _running(share / tf.maximum(sums.count, 1.0), old, state.updates <= 0.0)
        for share, old in ((sums.gated, state.gated), (sums.at_bound, state.at_bound))
    )
    # Batches count as much as is known about them.
    change = (sums.in_place - sums.confidence * state.in_place) / tf.maximum(sums.count, 1.0)
    updates = state.updates + 1.0
    if warmup_steps == "auto":
        now_ready = (confidence >= _READY_CONFIDENCE) | (updates >= _LONGEST_WARMUP)
    else:
        now_ready = updates >= float(warmup_steps)
    after = DriftState(
        belief=tf.where(_cellwise(known), belief, state.belief),
        origin=tf.where(known, origin, state.origin),
        correction=tf.where(known, correction, state.correction),
        push=push,
        previous=tf.where(known, batch_mean, state.previous),
        previous_cosine=tf.where(known, cosine, state.previous_cosine),
        previous_sine=tf.where(known, sine, state.previous_sine),
        scatter=tf.where(known, scatter, state.scatter),
        scatter_weight=tf.where(known, scatter_weight, state.scatter_weight),
        coherence=tf.where(known & ~is_first, coherence, state.coherence),
        batches=state.batches + tf.cast(known, tf.float32),
        confidence=confidence,
        gated=gated,
        at_bound=at_bound,
        in_place=state.in_place + (1.0 - _TELLING_MEMORY) * change,
        shift=tf.where(known, _running(batch_mean, state.shift, is_first), state.shift),
        shift_squared=tf.where(
            known, _running(sums.shift_squared / weight, state.shift_squared, is_first), state.shift_squared
        ),
        updates=updates,
        anchored=anchored,
        ready=tf.where(is_ready | now_ready, tf.minimum(state.ready + 1.0 / SETTLING, 1.0), 0.0),
        linear=state.linear,
    )
    if sums.linear is not None:
        linear = linear_drift.update(state.linear, weight[0], sums.linear, sums.linear_squared)
        linear = tf.where(_cellwise(known), linear, state.linear)
        if is_told is not None:
            by_anchors = linear_drift.update(state.linear, anchors[0], sums.anchor_linear, sums.anchor_linear_squared)
            linear = tf.where(_cellwise(anchored > 0.0), state.linear, linear)
            linear = tf.where(_cellwise(is_told), by_anchors, linear)
        after = after._replace(linear=linear)
    return DriftState(
        *(tf.where(_cellwise(seen) if new.shape.rank > 1 else seen, new, old) for new, old in zip(after, state))
    )


def _running(new, old, is_first):
    return tf.where(is_first, new, _TELLING_MEMORY * old + (1.0 - _TELLING_MEMORY) * new)


def gradient_share(ready):
    """How much of the gradient is to count, in [0, 1]; `ready` is 0 before labels are aligned and then rises to 1.

    Labels that do not lie on their inputs give large gradients, which optimizers with a memory of squares would
    otherwise hold against the small ones of aligned labels for long.
    """
    return _WARMUP_GRADIENT + (1.0 - _WARMUP_GRADIENT) * ready


def correction(state, *, rank, subpixel):
    """Pixels `(rank,)` to take out of every registered shift: whole ones, unless shifts are interpolated anyway."""
    return _applied(state, subpixel)[:rank]


def _whole_correction(belief, origin, push, standing):
    """The standing correction, or a new one once the network will come to rest elsewhere if no more is taken out."""
    shares = tf.reduce_sum(_moved(belief, _COASTING * push) @ _WHOLE_PIXELS, axis=1)
    stands = tf.abs(origin[:, tf.newaxis] + _PIXELS - standing[:, tf.newaxis]) < 0.5
    is_doubtful = tf.reduce_sum(tf.where(stands, shares, 0.0), axis=-1) < _DOUBT
    return tf.where(is_doubtful, origin + tf.round(tf.reduce_sum(shares * _PIXELS, axis=-1)), standing)


def _applied(state, subpixel):
    if not subpixel:
        return state.correction
    rate = tf.reduce_sum(state.belief * _RATE_COLUMN, axis=[1, 2])
    return state.mean - _COASTING * rate * state.push


def _cellwise(values):
    """`(AXES,)` against fields with two more axes."""
    return values[:, tf.newaxis, tf.newaxis]


def _moved(belief, push):
    """The belief after the network has followed a push, at each of the rates."""
    source = tf.range(_CELLS, dtype=tf.float32) + _cellwise(push) * _RATE_COLUMN * _CELLS_PER_PIXEL
    left = tf.floor(source)
    return (left + 1.0 - source) * _gathered(belief, left) + (source - left) * _gathered(belief, left + 1.0)


def _gathered(belief, cells):
    """The belief at whole `cells`; nothing outside the grid."""
    inside = (cells >= 0.0) & (cells < _CELLS)
    at = tf.clip_by_value(tf.cast(cells, tf.int32), 0, _CELLS - 1)
    return tf.where(inside, tf.gather(belief, at, axis=2, batch_dims=2), 0.0)


def _likelihood(mean, variance, cosine, sine, coherence):
    """`(AXES, cells)`: of each drift, given the batch's mean shift from the origin, and its fraction; at most 1."""
    by_mean = -0.5 * tf.square(mean[:, tf.newaxis] - _OFFSETS) / variance[:, tf.newaxis]
    by_mean = tf.exp(by_mean - tf.reduce_max(by_mean, axis=-1, keepdims=True))
    # Two batches agree by the square of how often each tells.
    telling = tf.sqrt(tf.where(coherence > _LEAST_COHERENCE, tf.minimum(coherence, 1.0), 0.0))[:, tf.newaxis]
    direction = tf.math.atan2(sine, cosine)[:, tf.newaxis]
    by_fraction = tf.exp(_CONCENTRATION * (tf.cos(2.0 * np.pi * _OFFSETS - direction) - 1.0))
    by_fraction = telling * by_fraction + 1.0 - telling
    return (1.0 - _OUTLIERS) * by_mean * by_fraction + _OUTLIERS


def _centered(belief, origin):
    """The same belief on a grid whose middle is within 2 px of its mean."""
    mean = tf.reduce_sum(belief * _OFFSETS, axis=[1, 2])
    step = tf.where(tf.abs(mean) > 2.0, tf.round(mean), 0.0)
    cells = tf.range(_CELLS, dtype=tf.float32) + _cellwise(step) * _CELLS_PER_PIXEL + tf.zeros_like(belief)
    moved = tf.maximum(_gathered(belief, cells), 1e-9)
    return moved / tf.reduce_sum(moved, axis=[1, 2], keepdims=True), origin + step
