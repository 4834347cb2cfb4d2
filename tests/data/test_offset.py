import warnings

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

from tfalign.data import offset, offset_check


def pairs(rng, *, mean, count=24, size=40, margin=8, rank=2, spread=3):
    """Inputs, and labels of the same scenes in other intensities, moved by whole pixels about a mean."""
    scenes = scipy.ndimage.gaussian_filter(rng.standard_normal((count, *(size + 60,) * rank)), (0, *(2,) * rank))
    scenes /= scenes.std()
    half = rng.integers(-spread, spread + 1, (count // 2, rank))
    shifts = np.concatenate([half, -half]) + np.asarray(mean)
    cuts = [tuple(slice(30 - margin - s, 30 - margin - s + size + 2 * margin) for s in shift) for shift in shifts]
    labels = np.stack([np.cos(1.5 * scene[cut]) for scene, cut in zip(scenes, cuts)])
    inputs = scenes[(slice(None), *(slice(30, 30 + size),) * rank)]
    return np.float32(inputs[..., np.newaxis]), np.float32(labels[..., np.newaxis])


@pytest.mark.parametrize("mean", [(3, -2), (0, 1)])
def test_a_common_offset_is_found_and_said(rng, mean):
    inputs, labels = pairs(rng, mean=mean, spread=2 if mean == (0, 1) else 3, count=64)
    with pytest.warns(UserWarning, match="On average the labels lie") as caught:
        found = offset_check((inputs, labels))
    np.testing.assert_allclose(found.offset, mean, atol=0.3)
    text = str(caught[0].message)
    assert text == found.warning
    assert ("3.0 px down" in text or "2.9 px down" in text or "3.1 px down" in text) == (mean == (3, -2))
    assert "px right" in text if mean == (0, 1) else "px left" in text
    assert found.labels > 50
    assert found.examined == 64


def test_it_is_silent_where_shifts_average_to_nothing(rng):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = offset_check(pairs(rng, mean=(0, 0)))
    np.testing.assert_allclose(found.offset, 0, atol=0.3)
    np.testing.assert_allclose(found.standard_error, 2.0 / np.sqrt(24), rtol=0.4)
    assert found.warning is None


def test_batches_of_a_data_set_up_to_a_count(rng):
    inputs, labels = pairs(rng, mean=(0, 0))
    dataset = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(5)
    assert offset_check(dataset, count=12).examined == 12


def test_class_maps_colours_masks_and_holes(rng):
    inputs, labels = pairs(rng, mean=(3, 0), count=32)
    classes = np.digitize(labels, [-0.3, 0.5]).astype(np.uint8)[..., 0]
    colour = np.concatenate([inputs, 0.5 * inputs**2, -inputs, 0 * inputs], axis=-1)
    holed = np.where(rng.random(labels.shape) < 0.02, np.nan, labels)
    mask = (rng.random(labels.shape) < 0.9).astype(np.float32)
    spoilt = np.where(mask > 0, labels, 50.0)
    masked = np.concatenate([spoilt, mask], axis=-1)
    unknown = np.where(rng.random(classes.shape) < 0.02, 255, classes)
    told = [(classes, {}), (unknown, {"ignore_class": 255}), (holed, {})]
    told += [(masked, {"label_extras": extras}) for extras in (("mask",), "mask")]
    for one, options in told:
        with pytest.warns(UserWarning, match="px down"):
            found = offset_check((colour, one), **options)
        np.testing.assert_allclose(found.offset, [3, 0], atol=0.4)


def test_what_does_not_fit_is_refused(rng):
    inputs, labels = pairs(rng, mean=(0, 0), count=4)
    for options, text in (
        ({"label_extras": ("weight",)}, r'`label_extras` must name "mask" and "anchor"'),
        ({"label_extras": ("mask",)}, r"`labels` must have channels beside their extras.*\(4, 56, 56, 1\)"),
        ({"min_confidence": 2}, "`min_confidence` must be"),
        ({"min_confidence": "auto"}, "`min_confidence` must be"),
    ):
        with pytest.raises((TypeError, ValueError), match=text):
            offset_check((inputs, labels), **options)


def test_a_few_labels_at_a_time_are_registered(rng, monkeypatch):
    """A pair of arrays is one batch of any size."""
    sizes, register = [], offset.register
    monkeypatch.setattr(
        offset,
        "register",
        lambda fixed, *more, **options: sizes.append(len(fixed)) or register(fixed, *more, **options),
    )
    assert offset_check(pairs(rng, mean=(0, 0), count=40), count=35).examined == 35
    assert sizes == [16, 16, 3]


def test_signals(rng):
    with pytest.warns(UserWarning, match=r"(2\.0|1\.9|2\.1) px later"):
        offset_check(pairs(rng, mean=(2,), rank=1, size=900, spread=1))


def test_nothing_is_said_of_what_cannot_be_told(rng):
    noise = rng.standard_normal((2, 20, 24, 24, 1))
    found = offset_check(tuple(noise), max_shift=4)
    assert found.warning is None
    assert np.all(np.isnan(found.offset)) or found.labels >= 8
    with pytest.raises(ValueError, match="`dataset` must hold labels"):
        offset_check(tf.data.Dataset.from_tensor_slices((inputs := np.zeros((4, 8, 8, 1)), inputs)).batch(2).take(0))
