import numpy as np
import pytest
import tensorflow as tf

from tfalign import drift


def step(state, shifts, confidence=1.0, *, warmup_steps=0, subpixel=False):
    shifts = np.asarray(shifts, np.float32)
    sums = drift.batch_sums(
        tf.constant(shifts), tf.fill([len(shifts)], tf.constant(confidence, tf.float32)), min_confidence=0.5
    )
    return drift.update(state, sums, warmup_steps=warmup_steps, subpixel=subpixel)


def simulate(rng, *, follow, batch, draw, steps=1500, offset=0.0, bound=8, warmup_steps=0, subpixel=False, pin=True):
    """A network that sits `offset` px off and moves the share `follow` of the way to its targets: its offsets."""
    state, offsets = drift.initial((bound, bound)), []
    update = tf.function(lambda state, sums: drift.update(state, sums, warmup_steps=warmup_steps, subpixel=subpixel))
    for _ in range(steps):
        true = draw(batch)
        seen = true + offset + 0.05 * rng.standard_normal((batch, 2))
        applied = np.zeros(2)
        if pin:
            applied = drift.correction(state, rank=2, subpixel=subpixel).numpy()
        used = seen if subpixel else np.round(seen)
        offset = offset + follow * (np.mean(used - applied - true, axis=0) - offset)
        sums = drift.batch_sums(tf.constant(seen, tf.float32), tf.ones([batch]), min_confidence=0.5)
        state = update(state, sums)
        offsets.append(offset)
    return np.array(offsets)


def whole_pixels(rng, bound=8, labels=600):
    """Shifts of labels that average to exactly zero, seen in a new order each epoch."""
    half = rng.integers(-bound, bound + 1, (labels // 2, 2))
    shifts, queue = np.concatenate([half, -half]).astype(float), []

    def draw(batch):
        while len(queue) < batch:
            queue.extend(rng.permutation(shifts))
        return np.array([queue.pop() for _ in range(batch)])

    return draw


def test_aligned_labels_correct_at_once(rng):
    offsets = simulate(rng, follow=0.1, batch=16, draw=lambda n: np.zeros((n, 2)), steps=150, offset=2.0)
    assert np.max(np.abs(offsets[-50:])) < 0.1


@pytest.mark.parametrize("batch", [16, 4])
@pytest.mark.parametrize("follow", [0.03, 0.1])
def test_a_network_beside_its_input_comes_back_and_stays(rng, batch, follow):
    offsets = simulate(rng, follow=follow, batch=batch, draw=whole_pixels(rng), offset=1.0)
    assert np.max(np.abs(offsets[-500:])) < 0.1
    assert (
        np.min(np.abs(simulate(rng, follow=follow, batch=batch, draw=whole_pixels(rng), offset=1.0, pin=False))) > 0.9
    )


def test_single_labels_and_single_slides_are_not_followed(rng):
    labels = whole_pixels(rng)
    for draw in (labels, lambda n: np.repeat(labels(1), n, axis=0)):
        offsets = simulate(rng, follow=0.05, batch=1 if draw is labels else 8, draw=draw)
        assert np.mean(np.abs(offsets) > 0.5) < 0.02


def test_fractions_of_a_pixel_are_pinned_in_the_mean(rng):
    offsets = simulate(
        rng,
        follow=0.05,
        batch=16,
        draw=lambda n: np.clip(4 * rng.standard_normal((n, 2)), -12, 12),
        subpixel=True,
        offset=1.0,
    )
    assert np.sqrt(np.mean(np.square(offsets[-700:]))) < 0.35


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_unseen_motion_does_not_make_the_correction_swing(seed):
    """Labels off by fractions tell nothing of the network's fraction: its motion must be expected, or it overshoots."""
    rng = np.random.default_rng(seed)
    offsets = simulate(rng, follow=0.05, batch=16, draw=lambda n: rng.uniform(-8, 8, (n, 2)), steps=1000, offset=1.0)
    assert np.mean(np.abs(offsets[-500:]) > 0.6) < 0.05


def test_auto_warmup_waits_for_confidence_but_not_long():
    state = drift.initial((8,))
    for _ in range(13):
        state = step(state, [[0.0, 0.0]], warmup_steps="auto")
    assert state.ready[0] == 0
    state = step(state, [[0.0, 0.0]], warmup_steps="auto")
    assert state.ready[0] == 1
    doubtful = drift.initial((8,))
    for _ in range(99):
        doubtful = step(doubtful, [[0.0, 0.0]], confidence=0.6, warmup_steps="auto")
    assert doubtful.ready[0] == 0
    doubtful = step(doubtful, [[0.0, 0.0]], confidence=0.6, warmup_steps="auto")
    assert doubtful.ready[0] == 1


def test_a_given_warmup_counts_batches():
    state = drift.initial((8,))
    for expected in (0, 0, 1):
        state = step(state, [[1.0, 1.0]], warmup_steps=3)
        assert state.ready[0] == expected


def test_unknown_and_non_finite_shifts_do_not_count():
    state = step(drift.initial((8, 8)), [[1.0, 2.0]] * 4)
    after = step(state, [[5.0, 5.0]], confidence=0.2)
    np.testing.assert_array_equal(after.mean, state.mean)
    np.testing.assert_array_equal(after.variance, state.variance)
    for bad in (np.nan, np.inf):
        mixed = drift.batch_sums(tf.constant([[bad, 0.0], [1.0, 2.0]]), tf.ones([2]), min_confidence=0.5)
        good = drift.batch_sums(tf.constant([[1.0, 2.0]]), tf.ones([1]), min_confidence=0.5)
        for one, other in zip(mixed, good):
            np.testing.assert_array_equal(one, other)
        unchanged = drift.update(
            state,
            drift.batch_sums(tf.constant([[bad, bad]]), tf.ones([1]), min_confidence=0.5),
            warmup_steps=0,
            subpixel=False,
        )
        np.testing.assert_array_equal(drift.pack(unchanged), drift.pack(state))


def test_sums_of_replicas_add_up(rng):
    shifts, confidence = rng.standard_normal((6, 2)).astype(np.float32), rng.uniform(0.3, 1, 6).astype(np.float32)
    whole = drift.batch_sums(tf.constant(shifts), tf.constant(confidence), min_confidence=0.5)
    parts = [
        drift.batch_sums(tf.constant(shifts[cut]), tf.constant(confidence[cut]), min_confidence=0.5)
        for cut in (slice(0, 1), slice(1, 6), slice(6, 6))
    ]
    for total, pieces in zip(whole, zip(*parts)):
        np.testing.assert_allclose(total, sum(pieces), rtol=1e-5)


def test_state_packs_and_unpacks(rng):
    packed = rng.standard_normal(drift.STATE_SHAPE).astype(np.float32)
    np.testing.assert_array_equal(drift.pack(drift.unpack(tf.constant(packed))), packed)


def test_modes_agree(rng, run):
    sums = drift.batch_sums(tf.constant(rng.standard_normal((5, 2)), tf.float32), tf.ones([5]), min_confidence=0.5)
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
