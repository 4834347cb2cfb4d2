import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tfalign import drift


@tf.function(autograph=False, reduce_retracing=True)
def _updated(state, shifts, confidence, *, warmup_steps, subpixel):
    sums = drift.batch_sums(shifts, confidence, min_confidence=0.5)
    return drift.update(state, sums, warmup_steps=warmup_steps, subpixel=subpixel)


def step(state, shifts, confidence=1.0, *, warmup_steps=0, subpixel=False):
    shifts = tf.constant(np.asarray(shifts, np.float32))
    confidence = tf.fill([len(shifts)], tf.constant(confidence, tf.float32))
    return _updated(state, shifts, confidence, warmup_steps=warmup_steps, subpixel=subpixel)


class _Smooth:
    """A network whose picture moves as a whole, with the momentum of the usual optimizers."""

    def __init__(self, offset, follow, momentum):
        self.offset, self.velocity, self.follow, self.momentum = np.full(2, float(offset)), 0.0, follow, momentum

    def step(self, targets):
        pull = self.follow * (np.mean(targets, axis=0) - self.offset)
        self.velocity = self.momentum * self.velocity + (1 - self.momentum) * pull
        self.offset = self.offset + self.velocity


class _Fading:
    """A network that cross-fades between whole-pixel places, as thin structures do; seen where the sum peaks."""

    reach, blur = 12, np.array([0.2, 0.6, 1.0, 0.6, 0.2])

    def __init__(self, offset, follow, momentum):
        self.weights = np.zeros((2, 2 * self.reach + 1))
        self.weights[:, self.reach + offset] = 1.0
        self.velocity, self.follow, self.momentum = 0.0, follow, momentum

    @property
    def offset(self):
        return np.array([self._peak(np.convolve(weights, self.blur, "same")) for weights in self.weights])

    def _peak(self, seen):
        at = int(np.clip(np.argmax(seen), 1, len(seen) - 2))
        before, middle, after = seen[at - 1 : at + 2]
        return at - self.reach + np.clip(0.5 * (before - after) / (before - 2 * middle + after), -0.499, 0.499)

    def step(self, targets):
        share = np.zeros_like(self.weights)
        for axis, places in enumerate(np.clip(targets, -self.reach, self.reach - 1e-6).T):
            left = np.floor(places).astype(int)
            np.add.at(share[axis], left + self.reach, (left + 1 - places) / len(places))
            np.add.at(share[axis], left + 1 + self.reach, (places - left) / len(places))
        self.velocity = self.momentum * self.velocity + (1 - self.momentum) * self.follow * (share - self.weights)
        self.weights = self.weights + self.velocity


@tf.function(autograph=False)
def _filtered(state, seen, *, subpixel, **told):
    """What a training step makes of the shifts that it sees: the state, what is taken out of labels, the estimate."""
    sums = drift.batch_sums(seen, tf.ones_like(seen[:, 0]), min_confidence=0.5, **told)
    state = drift.update(state, sums, warmup_steps=0, subpixel=subpixel)
    return state, drift.correction(state, rank=2, subpixel=subpixel), -state.mean[:2]


def simulate(network, draw, *, batch, steps, seed=0, subpixel=False, pin=True, noise=0.05, anchors=None):
    """Trains a simulated network: its offset from its input after every step, and the filter's estimate of it.

    With `anchors`, their share, some labels lie right and are known to.
    """
    rng = np.random.default_rng(seed)
    state, corrected, offsets, estimates = drift.initial((8, 8)), np.zeros(2), [], []
    for _ in range(steps):
        true, before = draw(batch), network.offset
        is_anchor = rng.random((batch, 1)) < (anchors or 0.0)
        true = np.where(is_anchor, 0.0, true)
        seen = true - before + noise * rng.standard_normal((batch, 2))
        moved = (seen if subpixel else np.round(seen)) - corrected
        network.step(true - np.where(is_anchor, 0.0, moved))
        told = {} if anchors is None else {"anchored": tf.constant(is_anchor[:, 0])}
        state, correction, estimate = _filtered(state, tf.constant(seen, tf.float32), subpixel=subpixel, **told)
        corrected = correction.numpy() if pin else corrected
        offsets.append(before)
        estimates.append(estimate.numpy())
    return np.array(offsets), np.array(estimates)


def labels_of(rng, *, labels=600, fractions=False, per_slide=False):
    """Draws shifts of +-8 px that average to exactly zero, in a new order each epoch; one for a whole slide."""
    half = rng.uniform(-8, 8, (labels // 2, 2)) if fractions else rng.integers(-8, 9, (labels // 2, 2)).astype(float)
    shifts, queue = np.concatenate([half, -half]), []

    def draw(batch):
        wanted = 1 if per_slide else batch
        while len(queue) < wanted:
            queue.extend(rng.permutation(shifts))
        drawn = np.array([queue.pop() for _ in range(wanted)])
        return np.repeat(drawn, batch, axis=0) if per_slide else drawn

    return draw


NETWORKS = [
    pytest.param(kind, follow, momentum, id=f"{kind.__name__[1:].lower()}-{follow}-{momentum}")
    for kind in (_Smooth, _Fading)
    for follow, momentum in ((0.02, 0.0), (0.15, 0.9))
]


@pytest.mark.parametrize(("kind", "follow", "momentum"), NETWORKS)
def test_aligned_labels_correct_at_once(kind, follow, momentum):
    offsets, _ = simulate(kind(2, follow, momentum), lambda n: np.zeros((n, 2)), batch=16, steps=250)
    assert np.max(np.abs(offsets[-50:])) < 0.1


@pytest.mark.parametrize(
    ("kind", "follow", "momentum", "subpixel"),
    [(_Smooth, 0.02, 0.0, False), (_Smooth, 0.15, 0.9, True), (_Fading, 0.02, 0.0, True), (_Fading, 0.15, 0.9, False)],
)
def test_anchors_hold_the_network_whatever_the_mean_of_the_others(rng, kind, follow, momentum, subpixel):
    draw = labels_of(rng)
    options = {"batch": 16, "steps": 500, "subpixel": subpixel}
    offsets, estimates = simulate(kind(1, follow, momentum), lambda n: draw(n) + 3.0, anchors=0.02, **options)
    assert np.max(np.abs(np.mean(offsets[-100:], axis=0))) < 0.15
    assert np.max(np.abs(estimates[-100:])) < 0.6


def test_without_anchors_the_network_follows_the_mean(rng):
    draw = labels_of(rng)
    offsets, _ = simulate(_Smooth(1, 0.02, 0.0), lambda n: draw(n) + 3.0, batch=16, steps=500)
    assert np.min(np.abs(offsets[-1])) > 2.0


def test_anchors_tell_the_common_turn(rng):
    """The others are turned by 3 degrees in common, the network by 1; a batch without anchors tells nothing more."""
    turned, own = np.zeros((8, 3, 3), np.float32), np.radians(1.0)
    turned[:, 0, 0] = own + np.radians(3.0)
    turned[0, 0, 0] = own
    anchored = tf.constant([True] + [False] * 7)

    def after(state, known):
        sums = drift.batch_sums(
            tf.zeros([8, 2]), tf.ones([8]), min_confidence=0.5, anchored=known, linear=tf.constant(turned)
        )
        return drift.update(state, sums, warmup_steps=0, subpixel=True)

    state = drift.initial((8, 8), max_rotation=7.0)
    for _ in range(60):
        state = after(state, anchored)
    told = state.linear
    # What it follows itself makes a common turn look a fifth too small.
    np.testing.assert_allclose(told[0, 0, 0], own, rtol=0.3)
    np.testing.assert_array_equal(after(state, anchored & False).linear, told)


@pytest.mark.parametrize("batch", [16, 4])
@pytest.mark.parametrize(("kind", "follow", "momentum"), NETWORKS)
def test_a_network_beside_its_input_comes_back_and_stays(rng, kind, follow, momentum, batch):
    offsets, estimates = simulate(kind(1, follow, momentum), labels_of(rng), batch=batch, steps=500)
    assert np.max(np.abs(offsets[200:])) < 0.5
    assert np.max(np.abs(offsets[-100:])) < 0.05
    assert np.max(np.abs(estimates[-100:])) < 0.1


@pytest.mark.parametrize("kind", [_Smooth, _Fading])
def test_without_the_pin_nothing_brings_it_back(rng, kind):
    offsets, _ = simulate(kind(1, 0.05, 0.9), labels_of(rng), batch=16, steps=300, pin=False)
    assert np.min(np.abs(offsets)) > 0.9


@pytest.mark.parametrize("per_slide", [False, True], ids=["batch of one", "one slide per batch"])
@pytest.mark.parametrize(("kind", "follow", "momentum"), NETWORKS)
def test_single_labels_and_single_slides_are_not_followed(rng, kind, follow, momentum, per_slide):
    """The mean of a batch says next to nothing (+-5 px), and yet the network must come back by one pixel, not two."""
    draw = labels_of(rng, per_slide=per_slide, labels=72 if per_slide else 600)
    offsets, _ = simulate(kind(1, follow, momentum), draw, batch=8 if per_slide else 1, steps=800)
    assert np.max(np.abs(offsets)) < 1.3
    assert np.max(np.abs(offsets[500:])) < 0.5


@pytest.mark.parametrize(("kind", "follow", "momentum"), NETWORKS)
def test_fractions_of_a_pixel_are_pinned_in_the_mean(rng, kind, follow, momentum):
    offsets, _ = simulate(kind(1, follow, momentum), labels_of(rng, fractions=True), batch=16, steps=500, subpixel=True)
    assert np.sqrt(np.mean(np.square(offsets[-250:]))) < 0.15


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_unseen_motion_does_not_make_the_correction_swing(seed):
    """Labels off by fractions tell nothing of the network's fraction: its motion must be expected, or it overshoots."""
    draw = labels_of(np.random.default_rng(seed), fractions=True)
    offsets, _ = simulate(_Smooth(1, 0.05, 0.9), draw, batch=16, steps=1000, seed=seed)
    assert np.mean(np.abs(offsets[-500:]) > 0.6) < 0.05


@pytest.mark.parametrize("push", [0.0, 0.4, -1.3])
@pytest.mark.parametrize("coherence", [0.1, 0.8])
def test_a_step_of_the_filter_is_the_slow_truth(rng, push, coherence):
    """Against loops over cells and rates; the axes have other means."""
    state = drift.initial((8, 8))
    belief = rng.uniform(0.0, 1.0, state.belief.shape).astype(np.float32)
    belief /= belief.sum(axis=(1, 2), keepdims=True)
    state = state._replace(
        belief=tf.constant(belief),
        ready=tf.ones([3]),
        push=tf.fill([3], push / 0.9),
        coherence=tf.fill([3], coherence),
        batches=tf.fill([3], 20.0),
        previous_cosine=tf.ones([3]),
    )
    after = step(state, [[0.3, -1.4]] * 4)
    for axis, mean in enumerate((0.3, -1.4, 0.0)):
        phase = 2 * np.pi * mean
        trusted = 0.9 * coherence + 0.1 * np.cos(phase)
        expected = reference.believed(
            belief[axis].astype(float),
            0.0,
            mean=mean,
            variance=float(after.scatter[axis] / after.scatter_weight[axis]) + drift._MEASUREMENT_FLOOR,
            fraction=mean,
            telling=np.sqrt(trusted) if trusted > 0.35 else 0.0,
            push=push,
            wander=4e-4,
            rates=drift._RATES,
            shares=drift._RATE_SHARES,
            change=drift._RATE_CHANGE,
            outliers=drift._OUTLIERS,
        )
        np.testing.assert_allclose(after.belief[axis], expected, atol=2e-7, rtol=2e-4)


def test_the_grid_follows_a_drift_beyond_it(rng):
    state = drift.initial((64, 64))
    for _ in range(200):
        state = step(state, [[30.0, -41.5]] * 4)
    np.testing.assert_allclose(state.mean[:2], [30.0, -41.5], atol=0.1)
    np.testing.assert_array_equal(state.correction[:1], [30.0])
    np.testing.assert_allclose(tf.reduce_sum(state.belief, axis=[1, 2]), 1.0, rtol=1e-5)


def test_auto_warmup_waits_for_confidence_but_not_long():
    state = drift.initial((8,))
    for _ in range(13):
        state = step(state, [[0.0, 0.0]], warmup_steps="auto")
    assert state.ready[0] == 0
    state = step(state, [[0.0, 0.0]], warmup_steps="auto")
    assert state.ready[0] > 0
    doubtful = drift.initial((8,))
    for _ in range(99):
        doubtful = step(doubtful, [[0.0, 0.0]], confidence=0.6, warmup_steps="auto")
    assert doubtful.ready[0] == 0
    doubtful = step(doubtful, [[0.0, 0.0]], confidence=0.6, warmup_steps="auto")
    assert doubtful.ready[0] > 0


def test_a_given_warmup_counts_batches():
    state = drift.initial((8,))
    for expected in (0, 0, 1):
        state = step(state, [[1.0, 1.0]], warmup_steps=3)
        assert (state.ready[0] > 0) == bool(expected)


def test_unknown_and_non_finite_shifts_do_not_count():
    state = step(drift.initial((8, 8)), [[1.0, 2.0]] * 4)
    after = step(state, [[5.0, 5.0]], confidence=0.2)
    np.testing.assert_array_equal(after.mean, state.mean)
    np.testing.assert_array_equal(after.variance, state.variance)
    for bad in (np.nan, np.inf):
        mixed = drift.batch_sums(tf.constant([[bad, 0.0], [1.0, 2.0]]), tf.ones([2]), min_confidence=0.5)
        good = drift.batch_sums(tf.constant([[1.0, 2.0]]), tf.ones([1]), min_confidence=0.5)
        for one, other in zip(tf.nest.flatten(mixed), tf.nest.flatten(good)):
            np.testing.assert_array_equal(one, other)
        unchanged = drift.update(
            state,
            drift.batch_sums(tf.constant([[bad, bad]]), tf.ones([1]), min_confidence=0.5),
            warmup_steps=0,
            subpixel=False,
        )
        np.testing.assert_array_equal(drift.pack(unchanged), drift.pack(state))


def test_what_is_told_to_people(rng):
    """Running mean and spread of the shifts, and the shares of labels on the bound and known too little."""
    state = drift.initial((8, 4))
    shifts = rng.integers(-3, 4, (200, 8, 2)) + np.array([1, 0])
    shifts[:, 0] = [[8, 0]]
    shifts[:, 1] = [[0, -4]]
    confidence = np.ones((200, 8), np.float32)
    confidence[:, 2:4] = 0.2
    for one, known in zip(shifts, confidence):
        told = tf.constant(one, tf.float32), tf.constant(known)
        sums = drift.batch_sums(*told, min_confidence=0.5, max_shift=(8, 4))
        state = drift.update(state, sums, warmup_steps=0, subpixel=False)
    np.testing.assert_allclose(state.gated, 0.25, rtol=1e-4)
    np.testing.assert_allclose(state.at_bound, 0.25, rtol=1e-4)
    late = shifts[-40:][confidence[-40:] > 0.5].reshape(-1, 2)
    np.testing.assert_allclose(state.shift[:2], late.mean(axis=0), atol=0.4)
    np.testing.assert_allclose(state.spread[:2], late.std(axis=0), rtol=0.15)


def test_the_share_of_labels_in_place(rng):
    """Running, by confidence, also of labels that are gated; batches of which little is known hardly change it."""
    state, share = drift.initial((8, 8)), 0.5
    for _ in range(30):
        shifts, confidence = rng.uniform(-4, 4, (6, 2)), rng.uniform(0, 1, 6) * rng.uniform()
        mean = state.mean.numpy()
        told = tf.constant(shifts, tf.float32), tf.constant(confidence, tf.float32)
        sums = drift.batch_sums(*told, min_confidence=0.5, mean=state.mean)
        state = drift.update(state, sums, warmup_steps=0, subpixel=False)
        inside = np.all(np.abs(shifts - mean[:2]) <= 1.5, axis=1)
        share += 0.05 * np.mean(confidence * (inside - share))
        np.testing.assert_allclose(state.in_place, share, rtol=1e-4)
    assert 0.1 < share < 0.4


def test_sums_of_replicas_add_up(rng):
    shifts, confidence = rng.standard_normal((6, 2)).astype(np.float32), rng.uniform(0.3, 1, 6).astype(np.float32)
    linear = rng.standard_normal((6, 3, 3)).astype(np.float32)

    def sums(cut):
        told = (tf.constant(one[cut]) for one in (shifts, confidence))
        known = tf.constant([True, False, False, True, False, True][cut], tf.bool)
        return drift.batch_sums(*told, min_confidence=0.5, anchored=known, linear=tf.constant(linear[cut]))

    whole = sums(slice(None))
    parts = [sums(cut) for cut in (slice(0, 1), slice(1, 6), slice(6, 6))]
    for total, pieces in zip(whole, zip(*parts)):
        np.testing.assert_allclose(total, sum(pieces), rtol=1e-5)


def test_state_packs_and_unpacks(rng):
    packed = rng.standard_normal(drift.STATE_SHAPE).astype(np.float32)
    np.testing.assert_array_equal(drift.pack(drift.unpack(tf.constant(packed))), packed)


def test_modes_agree(rng, run):
    shifts, linear = (tf.constant(rng.standard_normal(shape), tf.float32) for shape in ((5, 2), (5, 3, 3)))
    anchored = tf.constant([False, True, False, False, False])
    sums = drift.batch_sums(shifts, tf.ones([5]), min_confidence=0.5, anchored=anchored, linear=linear)
    state = drift.pack(step(drift.initial((8, 8)), rng.standard_normal((5, 2))))
    expected = drift.pack(drift.update(drift.unpack(state), sums, warmup_steps="auto", subpixel=False))
    actual = run(
        lambda s, *b: drift.pack(
            drift.update(drift.unpack(s), drift.BatchSums(*b), warmup_steps="auto", subpixel=False)
        ),
        state,
        *sums,
    )
    np.testing.assert_allclose(actual, expected, atol=1e-6)
