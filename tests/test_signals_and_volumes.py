"""Recordings, spectra and volumes: a network fits on labels that are off, and their shifts are recovered."""

import keras
import numpy as np
import scipy.ndimage
import tensorflow as tf

import tfalign
from tfalign.data import patches


def fitted(inputs, labels, *, rank, steps, max_shift, **network):
    """A small network trained on labels that are off by up to `max_shift`, and its loss."""
    keras.utils.set_random_seed(0)
    model = tfalign.models.unet(rank, inputs.shape[-1], labels.shape[-1], filters=8, depth=2, **network)
    loss = tfalign.ShiftInvariantLoss("mse", max_shift=max_shift)
    model.compile(keras.optimizers.Adam(3e-3), loss=loss)
    dataset = tf.data.Dataset.from_tensor_slices((inputs, labels)).shuffle(len(inputs), seed=0).repeat()
    model.fit(dataset.batch(16, drop_remainder=True), epochs=1, steps_per_epoch=steps, verbose=0)
    return model, loss


def recovered(model, loss, inputs, labels, **options):
    """The misalignment of each label, taken from the trained network."""
    dataset = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(32)
    offset = loss.drift[: inputs.ndim - 2].round()
    found = [one["translation"] for _, _, one in tfalign.data.realign(dataset, model, offset=offset, **options)]
    return np.concatenate(found)


def paired(rng, count, rank, bound):
    """Shifts whose mean is 0."""
    half = rng.integers(-bound, bound + 1, (count // 2, rank))
    return np.concatenate([half, -half])


def test_a_recording_with_jittered_events(rng):
    """A pulse rides on a wandering base line and noise; its label, a heat-map of the onset, is up to 12 samples off."""
    length, clip, bound, margin = 20000, 128, 12, 16
    onsets = np.arange(40, length - 40, 53)
    onsets = onsets + rng.integers(-12, 13, len(onsets))
    events = np.zeros(length)
    events[onsets] = 1
    pulse = np.exp(-np.arange(20) / 5) * np.sin(np.arange(20))
    recording = (
        np.convolve(events, pulse)[:length] + np.sin(np.arange(length) / 90) + 0.05 * rng.standard_normal(length)
    )
    heat = scipy.ndimage.gaussian_filter1d(events, 2.0) * 5
    tiles = patches.tile((length,), size=clip, overlap=32)
    middle = range(1, len(tiles) - 1)
    inputs = np.stack(list(patches.cut(recording[:, None], tiles, indices=middle))).astype(np.float32)
    shifts = paired(rng, len(inputs) // 2 * 2, 1, bound)
    inputs = inputs[: len(shifts)]
    labels = [heat[tiles[i][0] - margin - t : tiles[i][0] + clip + margin - t] for i, (t,) in zip(middle, shifts)]
    labels = np.stack(labels)[..., None].astype(np.float32)
    model, loss = fitted(inputs, labels, rank=1, steps=250, max_shift=bound + 2)
    found = recovered(model, loss, inputs, labels, max_shift=bound + 2)
    assert np.mean(np.abs(found - shifts) <= 1) > 0.9


def test_spectra_whose_axis_was_off(rng):
    """Three lines of every spectrum are named in channels of the label, which was calibrated up to 6 channels off."""
    count, length, bound, margin = 240, 96, 6, 8
    at = np.arange(-margin - bound, length + margin + bound)
    centers = np.sort(rng.uniform(12, length - 12, (count, 3)), axis=1)
    widths, heights = np.array([1.5, 3.0, 5.0]), rng.uniform(0.6, 1.0, (count, 3))
    lines = heights[:, None] * np.exp(-0.5 * ((at[:, None] - centers[:, None]) / widths) ** 2)
    spectra = lines.sum(axis=-1, keepdims=True) + 0.02 * rng.standard_normal((count, len(at), 1))
    shifts = paired(rng, count, 1, bound)
    first = margin + bound
    inputs = spectra[:, first : first + length].astype(np.float32)
    begin = [bound - t for (t,) in shifts]
    labels = np.stack([one[b : b + length + 2 * margin] for one, b in zip(lines, begin)]).astype(np.float32)
    model, loss = fitted(inputs, labels, rank=1, steps=250, max_shift=bound + 2)
    found = recovered(model, loss, inputs, labels, max_shift=bound + 2)
    assert np.mean(np.abs(found - shifts) <= 1) > 0.9


def test_volumes_whose_labels_were_moved(rng):
    """Bright blobs in noise; their masks are up to 2 voxels off on every axis."""
    count, size, bound, margin = 64, 12, 2, 3
    full = size + 2 * (margin + bound)
    blobs = scipy.ndimage.gaussian_filter(rng.standard_normal((count,) + (full,) * 3 + (1,)), (0, 2, 2, 2, 0))
    masks = (blobs > blobs.std()).astype(np.float32)
    volumes = masks + 0.2 * rng.standard_normal(masks.shape)
    shifts = paired(rng, count, 3, bound)
    first = margin + bound
    inner = (slice(first, first + size),) * 3
    inputs = volumes[(slice(None), *inner)].astype(np.float32)
    labels = [
        one[tuple(slice(bound - t, bound - t + size + 2 * margin) for t in shift)] for one, shift in zip(masks, shifts)
    ]
    model, loss = fitted(inputs, np.stack(labels), rank=3, steps=180, max_shift=bound + 1)
    found = recovered(model, loss, inputs, np.stack(labels), max_shift=bound + 1)
    assert np.mean(np.all(np.abs(found - shifts) <= 1, axis=1)) > 0.9
