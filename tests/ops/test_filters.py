import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage, signal

import tfalign
from tfalign.ops import filters, geometry

SHAPES = {1: (37,), 2: (14, 19), 3: (7, 9, 8)}


@pytest.fixture(params=[1, 2, 3])
def image(request, rng):
    return rng.normal(size=(2, *SHAPES[request.param], 2)).astype(np.float32)


def by_channel(function, image):
    """Applies a function of one grid to each sample and channel."""
    return np.stack([np.stack([function(one) for one in np.moveaxis(s, -1, 0)], axis=-1) for s in image])


def of_unknown_sizes(function, image):
    """Traces with no size known but the channels."""
    unknown = tf.TensorSpec([None] * (image.ndim - 1) + [image.shape[-1]], tf.float32)
    return tf.function(function, input_signature=[unknown])(image)


# Median.


@pytest.mark.parametrize("size", [1, 3, 5])
def test_median_equals_scipy(run, image, size):
    expected = by_channel(lambda one: ndimage.median_filter(one, size=size), image)
    np.testing.assert_array_equal(run(lambda x: filters.median(x, size=size), image), expected)


def test_median_of_an_uneven_box_on_unknown_sizes(rng):
    image = rng.normal(size=(1, 9, 12, 1)).astype(np.float32)
    expected = by_channel(lambda one: ndimage.median_filter(one, size=(3, 5)), image)
    found = of_unknown_sizes(lambda x: filters.median(x, size=(3, 5)), image)
    np.testing.assert_array_equal(found, expected)


def test_median_removes_single_hot_pixels():
    image = np.zeros((1, 9, 9, 1), np.float32)
    image[0, 4, 4] = 1000.0
    assert not filters.median(image).numpy().any()


# Gaussian.


@pytest.mark.parametrize("sigma", [0.6, 2.0, 7.0])
def test_gaussian_equals_scipy_also_where_the_kernel_is_longer_than_the_axis(run, image, sigma):
    expected = by_channel(lambda one: ndimage.gaussian_filter(one.astype(float), sigma), image)
    np.testing.assert_allclose(run(lambda x: filters.gaussian(x, sigma=sigma), image), expected, atol=2e-6)


def test_gaussian_of_one_axis_on_unknown_sizes(rng):
    image = rng.normal(size=(1, 9, 12, 1)).astype(np.float32)
    expected = by_channel(lambda one: ndimage.gaussian_filter1d(one.astype(float), 1.5, axis=1), image)
    found = of_unknown_sizes(lambda x: filters.gaussian(x, sigma=(0.0, 1.5)), image)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_double_precision_stays(rng):
    image = rng.normal(size=(1, 40, 1))
    expected = by_channel(lambda one: ndimage.gaussian_filter(one, 2.0), image)
    np.testing.assert_allclose(filters.gaussian(image, sigma=2.0), expected, atol=1e-14)


# Band-pass.


@pytest.mark.parametrize(("low", "high"), [(0.05, 0.2), (None, 0.1), (0.2, None)])
def test_band_pass_equals_scipy(run, rng, low, high):
    values = rng.normal(size=(2, 300, 2)).astype(np.float32)
    edges = [edge for edge in (low, high) if edge]
    taps = signal.firwin(51, edges, pass_zero=low is None, fs=1.0)
    expected = by_channel(lambda one: ndimage.convolve1d(one.astype(float), taps, mode="reflect"), values)
    found = run(lambda x: filters.band_pass(x, low=low, high=high, taps=51), values)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_band_pass_keeps_the_band_where_it_is():
    at = np.arange(2000) / 500.0  # seconds
    inside, slow, fast = (np.sin(2 * np.pi * f * at + 0.3) for f in (20.0, 2.0, 90.0))
    values = (inside + slow + fast)[np.newaxis, :, np.newaxis].astype(np.float32)
    found = filters.band_pass(values, low=10.0, high=40.0, sampling_rate=500.0, taps=301)[0, 300:-300, 0]
    np.testing.assert_allclose(found, inside[300:-300], atol=5e-3)


# Resampling.


def triangle(values, step, size):
    """The definition, for one line: a normalised triangle about each new place."""
    last = len(values) - 1
    result = []
    for index in range(size):
        at = np.clip((index - size // 2) * step + len(values) // 2, 0, last)
        weight = np.maximum(0, 1 - np.abs(np.arange(last + 1) - at) / max(step, 1))
        result.append(np.sum(weight * values) / weight.sum())
    return np.array(result)


@pytest.mark.parametrize(("step", "size"), [(1.0, 37), (0.5, 74), (2.0, 18), (3.3, 9), (0.7, 61), (2.0, 30)])
def test_resampling_equals_its_definition(run, rng, step, size):
    values = rng.normal(size=(2, 37, 2)).astype(np.float32)
    expected = by_channel(lambda one: triangle(one, step, size), values)
    found = run(lambda x: filters.resample(x, step=[step], output_shape=[size]), values)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_finer_grids_equal_a_warp(rng, rank):
    image = rng.normal(size=(2, *SHAPES[rank], 1)).astype(np.float32)
    shape = [2 * size - 1 for size in SHAPES[rank]]
    transform = geometry.make(np.zeros((2, rank), np.float32), scale=np.full((2, rank), 0.5, np.float32))
    expected, mask = tfalign.warp(image, transform, output_shape=shape)
    found = filters.resample(image, step=[0.5] * rank, output_shape=shape)
    inside = mask.numpy() > 0
    assert inside.mean() > 0.9
    np.testing.assert_allclose(found.numpy()[inside], expected.numpy()[inside], atol=1e-6)


def test_back_and_forth_is_the_identity_on_the_pixels_kept(rng):
    image = rng.normal(size=(1, 14, 19, 1)).astype(np.float32)
    finer = filters.resample(image, step=[0.5, 0.25], output_shape=[28, 76])
    back = filters.resample(finer, step=[2.0, 4.0], output_shape=[14, 19], interpolation="nearest")
    np.testing.assert_allclose(back, image, atol=1e-6)


def test_class_maps_keep_their_classes(rng):
    classes = rng.integers(0, 200, (1, 21, 1)).astype(np.uint8)
    found = filters.resample(classes, step=[2.0], output_shape=[10], interpolation="nearest")
    assert found.dtype == tf.uint8
    np.testing.assert_array_equal(found[0, :, 0], classes[0, 0:20:2, 0])


def test_unknown_pixels_do_not_spread(rng):
    image = rng.normal(size=(1, 20, 1)).astype(np.float32)
    image[0, 7] = np.nan
    same = filters.resample(image, step=[1.0], output_shape=[20])
    np.testing.assert_array_equal(same, image)
    finer = filters.resample(image, step=[0.5], output_shape=[40])[0, :, 0].numpy()
    assert np.flatnonzero(np.isnan(finer)).tolist() == [13, 14, 15]


def test_long_signals_keep_every_sample():
    values = (np.arange(20_000_001) % 7).astype(np.int8)[np.newaxis, :, np.newaxis]
    same = filters.resample(values, step=[1.0], output_shape=[20_000_001], interpolation="nearest")
    assert np.array_equal(same, values)


# Mistakes.


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: filters.median(x, size=4), ValueError, "`size` must be odd. Received: size=4"),
        (lambda x: filters.median(x, size=2.5), TypeError, "size=2.5"),
        (lambda x: filters.gaussian(x, sigma=-1), ValueError, "sigma=-1"),
        (lambda x: filters.gaussian(x, sigma=(1, 2, 3)), ValueError, r"sigma=\(1, 2, 3\)"),
        (lambda x: filters.band_pass(x, low=0.1), ValueError, r"must be signals.*values.shape=\(1, 8, 8, 1\)"),
        (lambda x: filters.band_pass(x[0]), ValueError, "low=None, high=None"),
        (lambda x: filters.band_pass(x[0], low=0.3, high=0.2), ValueError, "low=0.3, high=0.2"),
        (lambda x: filters.band_pass(x[0], high=0.5), ValueError, "sampling_rate / 2.*high=0.5"),
        (lambda x: filters.resample(x, step=[1, 1], output_shape=[8, 8], interpolation="cubic"), ValueError, "'cubic'"),
    ],
)
def test_bad_options(call, error, text):
    with pytest.raises(error, match=text):
        call(np.zeros((1, 8, 8, 1), np.float32))
