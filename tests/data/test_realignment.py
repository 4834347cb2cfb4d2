import keras
import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

import tfalign.data
from tfalign.data import misalign
from tfalign.data.realignment import Pool
from tfalign.ops import registration


def identity(channels, rank=2):
    """A network whose prediction is its input."""
    inputs = keras.Input((None,) * rank + (channels,))
    return keras.Model(inputs, keras.layers.Activation("linear")(inputs))


def scenes(rng, count, size, rank=2):
    fields = rng.standard_normal((count,) + (size,) * rank + (1,))
    return scipy.ndimage.gaussian_filter(fields, (0, *[1.5] * rank, 0)).astype(np.float32)


def moved_pairs(rng, shifts, *, size=32, margin=4):
    """Inputs, and labels with a margin whose content lies `shifts` further down/right."""
    shifts = np.asarray(shifts)
    rank = shifts.shape[1]
    fields = scenes(rng, len(shifts), size + 40, rank)
    begin = 20
    inputs = fields[(slice(None), *[slice(begin, begin + size)] * rank)]
    labels = [
        field[tuple(slice(begin - margin - t, begin + size + margin - t) for t in shift)]
        for field, shift in zip(fields, shifts)
    ]
    return inputs, np.stack(labels), fields


def batches(*arrays, batch=4, names=None):
    if names is not None:
        arrays = (*arrays, {"name": np.array(names)})
    return tf.data.Dataset.from_tensor_slices(arrays).batch(batch)


def gathered(dataset):
    _, labels, found = zip(*dataset)
    return np.concatenate(labels), {key: np.concatenate([one[key] for one in found]) for key in found[0]}


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_every_patch_is_laid_back_on_its_input(rng, rank):
    shifts = rng.integers(-3, 4, (6, rank))
    inputs, labels, _ = moved_pairs(rng, shifts, size={1: 120, 2: 32, 3: 16}[rank])
    repaired, found = gathered(tfalign.data.realign(batches(inputs, labels), identity(1, rank), max_shift=4))
    np.testing.assert_array_equal(found["translation"], shifts)
    assert np.min(found["confidence"]) > 0.9
    assert repaired.shape == labels.shape
    inner = (slice(None), *[slice(4, -4)] * rank)
    known = np.isfinite(repaired[inner])
    np.testing.assert_array_equal(repaired[inner][known], inputs[known])
    assert 0.7 < np.mean(np.isfinite(repaired)) < 1.0


def test_the_networks_own_offset_is_not_the_labels_fault(rng):
    inputs, labels, _ = moved_pairs(rng, [[2, -1]] * 4)
    predicted = np.roll(inputs, (-1, 0), axis=(1, 2))  # content one pixel further up: the label seems further down
    dataset = batches(predicted, labels)
    _, found = gathered(tfalign.data.realign(dataset, identity(1), max_shift=5, offset=(1.0, 0.0)))
    np.testing.assert_array_equal(found["translation"], [[2, -1]] * 4)


def test_one_shift_for_a_file_and_for_the_whole(rng):
    of_file = np.array([[3, -2], [-1, 1]])
    shifts = np.repeat(of_file, 5, axis=0)
    inputs, labels, _ = moved_pairs(rng, shifts)
    labels[2] = rng.standard_normal(labels[2].shape)  # alone it would tell nothing
    labels[3] = 0.5
    names = ["a"] * 5 + ["b"] * 5
    dataset = batches(inputs, labels, names=names, batch=3)
    _, found = gathered(tfalign.data.realign(dataset, identity(1), max_shift=4, per="file"))
    np.testing.assert_array_equal(found["translation"], shifts)
    assert np.min(found["confidence"]) > 0.9
    assert list(found["name"]) == [name.encode() for name in names]

    inputs, labels, _ = moved_pairs(rng, [[2, 2]] * 6)
    _, found = gathered(tfalign.data.realign(batches(inputs, labels), identity(1), max_shift=4, per="dataset"))
    np.testing.assert_array_equal(found["translation"], [[2, 2]] * 6)


def test_labels_that_cannot_be_told_stay_where_they_are(rng):
    inputs, labels, _ = moved_pairs(rng, [[2, 1]] * 4)
    labels[:] = rng.standard_normal(labels.shape)
    labels[0] = 1.0
    for per in ("patch", "dataset"):
        options = {"max_shift": 4, "per": per, "min_confidence": 0.9}
        repaired, found = gathered(tfalign.data.realign(batches(inputs, labels), identity(1), **options))
        np.testing.assert_array_equal(found["translation"], np.zeros((4, 2)))
        np.testing.assert_array_equal(repaired, labels)


def test_fractions_of_a_pixel(rng):
    inputs, labels, fields = moved_pairs(rng, [[0, 0]] * 4)
    labels = np.stack([scipy.ndimage.shift(field, (0.4, -1.3, 0), order=5)[16:56, 16:56] for field in fields])
    dataset = batches(inputs, labels)
    repaired, found = gathered(tfalign.data.realign(dataset, identity(1), max_shift=4, subpixel=True))
    np.testing.assert_allclose(found["translation"], [[0.4, -1.3]] * 4, atol=0.05)
    assert np.nanmean(np.abs(repaired[:, 6:-6, 6:-6] - inputs[:, 2:-2, 2:-2])) < 0.1 * inputs.std()


def test_turned_maps_are_turned_back(rng):
    fields = (scenes(rng, 3, 120) > 0).astype(np.int32)
    transforms = misalign.make_transforms([[1, -2], [0, 3], [0, 0]], rotation=[[3.0], [-2.0], [0.0]])
    inputs = np.stack([misalign.cut(field, shape=(64, 64), center=(60, 60)) for field in fields]).astype(np.float32)
    labels = [misalign.misaligned(f, t, shape=(76, 76), center=(60, 60))[0] for f, t in zip(fields, transforms)]
    labels = np.stack(labels)
    # The network's own offset is not the label's fault.
    predicted = np.roll(inputs, (-1, 0), axis=(1, 2))
    dataset, options = batches(predicted, labels), {"max_shift": 6, "max_rotation": 4.0, "offset": (1.0, 0.0)}
    repaired, found = gathered(tfalign.data.realign(dataset, identity(1), **options))
    np.testing.assert_allclose(found["transform"], transforms, atol=0.15)
    np.testing.assert_array_equal(found["translation"], found["transform"][:, :2, 2])
    assert repaired.dtype == labels.dtype
    inner = (slice(None), slice(10, -10), slice(10, -10))
    error, before = (np.abs(one[:, 6:-6, 6:-6].astype(float) - inputs)[inner].mean() for one in (repaired, labels))
    assert error < 0.2 * before
    np.testing.assert_array_equal(found["transform"][2], np.eye(3))


def test_class_maps_keep_their_classes(rng):
    shifts = rng.integers(-3, 4, (4, 2))
    _, _, fields = moved_pairs(rng, shifts)
    maps = np.digitize(fields, np.quantile(fields, [0.3, 0.7])).astype(np.int32)
    probabilities = np.eye(3, dtype=np.float32)[maps[:, 20:52, 20:52, 0]]
    labels = np.stack([one[16 - y : 56 - y, 16 - x : 56 - x] for one, (y, x) in zip(maps, shifts)])
    labels[:, :2, :2] = 255
    dataset = batches(probabilities, labels)
    repaired, found = gathered(tfalign.data.realign(dataset, identity(3), max_shift=4, ignore_class=255))
    np.testing.assert_array_equal(found["translation"], shifts)
    assert repaired.dtype == np.int32
    assert set(np.unique(repaired)) == {0, 1, 2, 255}
    inner = repaired[:, 4:-4, 4:-4]
    np.testing.assert_array_equal(inner[inner < 255], maps[:, 20:52, 20:52][inner < 255])


def discs(places, size):
    at = np.stack(np.indices((size, size)), axis=-1)
    label = np.zeros((size, size, 1), np.int32)
    for number, (row, col, radius) in enumerate(places, 1):
        label[np.hypot(*(at - [row, col]).transpose(2, 0, 1)) < radius] = 3 * number
    return label


def test_an_instance_is_looked_at_with_its_surroundings_alone(rng, monkeypatch):
    """Many instances must not take a map of the whole each."""
    sizes, register = [], registration.register

    def noting(fixed, moving, **options):
        note = tf.py_function(lambda shape: sizes.append(shape.numpy()), [tf.shape(fixed)], [])
        with tf.control_dependencies([note]):
            return register(tf.identity(fixed), moving, **options)

    monkeypatch.setattr(registration, "register", noting)
    places = [(row, col, 3) for row in range(4, 80, 15) for col in range(4, 80, 15)]
    label = discs([(row + 1, col - 1, radius) for row, col, radius in places], 80)
    true = discs(places, 80)
    # A label with a margin of 2 px around what is predicted.
    dataset = batches((true > 0).astype(np.float32)[np.newaxis, 2:-2, 2:-2], label[np.newaxis])
    repaired, _ = gathered(tfalign.data.realign(dataset, identity(1), max_shift=2, per="instance"))
    np.testing.assert_array_equal(repaired[0, 10:-10, 10:-10], true[10:-10, 10:-10])
    assert len(sizes) == len(places)
    assert np.max(sizes) <= 5 + 2 * 6


def test_instances_move_by_themselves(rng):
    true = discs([(14, 14, 6), (14, 44, 5), (44, 30, 8)], 60)
    shifts = [(2, -1), (-2, 2), (1, 3)]
    places = zip([(14, 14, 6), (14, 44, 5), (44, 30, 8)], shifts)
    label = discs([(row + y, col + x, radius) for (row, col, radius), (y, x) in places], 60)
    foreground = scipy.ndimage.gaussian_filter((true > 0).astype(np.float32), (0.7, 0.7, 0))
    for predicted in (foreground, np.concatenate([1 - foreground, foreground], axis=-1)):
        blank = np.zeros_like(label)
        dataset = batches(np.stack([predicted, predicted]), np.stack([label, blank]))
        model = identity(predicted.shape[-1])
        repaired, found = gathered(tfalign.data.realign(dataset, model, max_shift=4, per="instance"))
        np.testing.assert_array_equal(repaired[0], true)
        for number, shift in enumerate(shifts, 1):
            np.testing.assert_array_equal(
                np.unique(found["translation"][0][true[..., 0] == 3 * number], axis=0), [shift]
            )
        assert np.min(found["confidence"][0][true[..., 0] > 0]) > 0.5
        np.testing.assert_array_equal(repaired[1], blank)
        assert not np.any(found["translation"][1])


def test_bad_arguments(rng):
    inputs, labels, _ = moved_pairs(rng, [[0, 0]] * 2)
    dataset = batches(inputs, labels)
    with pytest.raises(ValueError, match="`per`"):
        tfalign.data.realign(dataset, identity(1), max_shift=2, per="pixel")
    with pytest.raises(ValueError, match="origin=True"):
        tfalign.data.realign(dataset, identity(1), max_shift=2, per="file")
    with pytest.raises(ValueError, match="instance maps"):
        tfalign.data.realign(dataset, identity(1), max_shift=2, per="instance")
    with pytest.raises(ValueError, match=r"for patches only. Received: per='dataset', max_rotation=2"):
        tfalign.data.realign(dataset, identity(1), max_shift=2, per="dataset", max_rotation=2)
    with pytest.raises(ValueError, match="min_confidence"):
        tfalign.data.realign(dataset, identity(1), max_shift=2, min_confidence=2)
    with pytest.raises(ValueError, match="inputs, labels"):
        tfalign.data.realign(dataset.map(lambda x, y: x), identity(1), max_shift=2)
    with pytest.raises(ValueError, match="empty"):
        tfalign.data.realign(dataset.take(0), identity(1), max_shift=2, per="dataset")


def test_a_pool_of_nothing_has_no_shift():
    translation, confidence = Pool((2, 2)).result()
    np.testing.assert_array_equal(translation, [0, 0])
    assert confidence == 0
