import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tfalign import drift, linear_drift
from tfalign.ops import geometry


def transforms(rank, rotation, scale, shear):
    """One for each row of the angles in degrees and the factors."""
    planes = rank * (rank - 1) // 2
    return geometry.make(
        np.zeros((len(scale), rank), np.float32),
        rotation=np.float32(rotation)[:, :planes] if planes else None,
        scale=np.float32(scale)[:, :rank],
        shear=np.float32(shear)[:, :planes] if planes else None,
    )


def step(state, transform, confidence=1.0):
    count = transform.shape[0]
    sums = drift.batch_sums(
        tf.zeros([count, transform.shape[-1] - 1]),
        tf.fill([count], confidence),
        min_confidence=0.5,
        linear=linear_drift.parameters(transform),
    )
    return drift.update(state, sums, warmup_steps=0, subpixel=True)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_parameters_are_those_that_transforms_are_made_of(rng, rank):
    rotation, shear = (rng.uniform(-9, 9, (4, 3)) for _ in range(2))
    scale = rng.uniform(0.8, 1.2, (4, 3))
    found = linear_drift.parameters(transforms(rank, rotation, scale, shear))
    planes = rank * (rank - 1) // 2
    expected = np.stack([np.radians(rotation), np.log(scale), np.radians(shear)], axis=-1)
    expected[:, planes:, 0], expected[:, rank:, 1], expected[:, planes:, 2] = 0, 0, 0
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_steps_are_the_slow_truth(rng, run):
    angles = rng.uniform(-5, 6, (12, 4, 3))
    ones = np.ones((4, 3))
    state = drift.initial((8, 8), max_rotation=7.0)
    packed = drift.pack(state)

    def steps(packed, made):
        state = drift.unpack(packed)
        for number in range(12):
            state = step(state, made[number])
        return drift.pack(state)

    made = tf.stack([transforms(2, one, ones, 0 * ones) for one in angles])
    found = drift.unpack(run(steps, packed, made)).linear
    mean, variance = reference.linear_drift(np.radians(angles[:, :, 0]), bounds=np.radians(7.0))
    np.testing.assert_allclose(found[0, 0, 0], mean, rtol=1e-3)
    np.testing.assert_allclose(found[0, 1, 0], variance, rtol=1e-3)
    np.testing.assert_allclose(found[:, 0, 1:], np.zeros((3, 2)), atol=1e-6)


def test_labels_that_are_not_known_tell_nothing(rng):
    state = drift.initial((8, 8), max_rotation=7.0)
    turned = transforms(2, np.full((4, 3), 5.0), np.ones((4, 3)), np.zeros((4, 3)))
    np.testing.assert_array_equal(step(state, turned, confidence=0.2).linear, state.linear)
    assert step(state, turned).linear[0, 0, 0] > 0.005


def test_a_state_keeps_it(rng):
    state = step(drift.initial((8, 8), max_rotation=7.0, max_scale=0.1), transforms(2, *rng.uniform(1, 2, (3, 4, 3))))
    again = drift.unpack(drift.pack(state))
    np.testing.assert_array_equal(again.linear, state.linear)
    assert np.any(state.linear[:, 0] != 0)


@pytest.mark.parametrize("scatter", [0.0, 5.0])
@pytest.mark.parametrize(("follow", "momentum"), [(0.02, 0.0), (0.15, 0.9)])
def test_a_turned_network_comes_back_and_does_not_swing(rng, scatter, follow, momentum):
    """A simulated network that is turned by 4 degrees and follows its labels."""
    angle, velocity, state, angles = 4.0, 0.0, drift.initial((8, 8), max_rotation=10.0), []
    update = tf.function(step)
    for _ in range(600):
        true = scatter * rng.uniform(-1, 1, 16)
        seen = np.zeros((16, 3))
        seen[:, 0] = true + angle + 0.1 * rng.standard_normal(16)
        wanted = np.mean(seen[:, 0] - np.degrees(state.linear[0, 0, 0]) - true)
        velocity = momentum * velocity + (1 - momentum) * follow * (wanted - angle)
        state = update(state, transforms(2, seen, np.ones((16, 3)), np.zeros((16, 3))))
        angle += velocity
        angles.append(angle)
    assert abs(np.mean(angles[-200:])) < 0.1
    assert np.max(np.abs(angles[-200:])) < 0.6
    assert np.min(angles) > -1.6


def test_what_is_taken_out_is_the_mean(rng):
    state = drift.initial((8, 8), max_rotation=9.0, max_scale=0.2, max_shear=9.0)
    turned = transforms(2, np.full((8, 3), 4.0), np.full((8, 3), 1.1), np.full((8, 3), 3.0))
    for _ in range(300):
        state = step(state, turned)
    network = linear_drift.transform(state.linear, tf.constant([[2.0, -1.0]]))
    np.testing.assert_allclose(network[0, :2, :2], turned[0, :2, :2], atol=0.02)
    np.testing.assert_array_equal(network[0, :2, 2], [2.0, -1.0])
