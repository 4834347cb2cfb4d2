import numpy as np
import pytest
import tensorflow as tf

import tfalign
from tfalign.ops import evidence


def posterior(run, nats, enough=None, pixels=400.0, sizes=(20,)):
    nats = np.float32(nats)[np.newaxis]
    enough = np.ones(nats.shape, bool) if enough is None else np.array(enough)[np.newaxis]
    bound = nats.shape[1] // 2
    found = run(lambda a, b: evidence.posterior(a, b, tf.constant([pixels]), (bound,), sizes), nats, enough)
    return np.asarray(found[0])


def test_a_lead_counts_by_what_chance_gives(run):
    # A correlation of 0.8 over 400 pixels; the shifts are 2 apart, of 20, so they share all but a tenth.
    explained = 0.64
    top = -0.5 * 400 * np.log(1 - explained)
    nats = np.array([0.0, 0.0, top, 0.0, top - 12.0])
    variance = 2 * 0.1 * 400 * explained
    expected = np.exp(-(12.0**2) / (12.0 + 0.6 * variance))
    found = posterior(run, nats)
    np.testing.assert_allclose(found[4] / found[2], expected, rtol=1e-4)
    assert expected > 100 * np.exp(-12.0)
    assert found[0] < 1e-12


def test_shifts_that_do_not_count_have_none(run):
    found = posterior(run, [9.0, 1.0, 2.0, 1.0, 1.5], enough=[False, True, True, True, True])
    assert found[0] == 0.0
    assert np.argmax(found) == 2
    np.testing.assert_allclose(found.sum(), 1.0, rtol=1e-5)


def test_equal_evidence_is_flat(run):
    np.testing.assert_allclose(posterior(run, [3.0] * 5), np.full(5, 0.2), rtol=1e-5)
    np.testing.assert_allclose(posterior(run, [0.0] * 5, pixels=0.0), np.full(5, 0.2), rtol=1e-5)


@pytest.mark.parametrize("measure", ["ncc", "mse", "mae", "mi", "nmi", "joint_entropy"])
def test_the_shifts_of_a_periodic_picture_stay_rivals(rng, measure):
    at = 2 * np.pi * np.arange(-10, 58) / 6
    grating = np.add.outer(np.sin(at), np.sin(at))
    moving = grating + 0.3 * rng.standard_normal((8, 68, 68))
    found = tfalign.register(
        np.tile(grating[10:58, 10:58], (8, 1, 1))[..., None].astype(np.float32),
        moving[..., None].astype(np.float32),
        max_shift=10,
        similarity=measure,
    )
    # Nine shifts are equally good.
    assert np.mean(found.confidence) < 0.5


@pytest.mark.parametrize("measure", ["ncc", "mse", "mae", "mi", "nmi", "joint_entropy"])
def test_nothing_is_known_of_unrelated_labels(rng, measure):
    fixed = rng.standard_normal((8, 48, 48, 1)).astype(np.float32)
    fixed = (fixed + np.roll(fixed, 1, 1) + np.roll(fixed, 1, 2)) / 3
    moving = rng.standard_normal((8, 64, 64, 1)).astype(np.float32)
    found = tfalign.register(fixed, moving, max_shift=8, similarity=measure)
    assert np.mean(found.confidence) < 0.3


@pytest.mark.parametrize("measure", ["mi", "nmi", "joint_entropy"])
def test_remapped_intensities_are_known_by_their_information(rng, measure):
    field = rng.standard_normal((6, 70, 70, 1)).astype(np.float32)
    for _ in range(3):
        field = (field + np.roll(field, 1, 1) + np.roll(field, 1, 2)) / 3
    moving = np.abs(field / field.std())  # no correlation with the field itself
    found = tfalign.register(field[:, 11:59, 11:59], moving, max_shift=8, similarity=measure)
    np.testing.assert_allclose(found.translation, np.zeros((6, 2)), atol=0.2)
    assert np.min(found.confidence) > 0.9
    assert np.mean(tfalign.register(field[:, 11:59, 11:59], moving, max_shift=8).confidence) < 0.5
