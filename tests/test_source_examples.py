"""The numbers of the source's examples, each done with the package."""

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

import tfalign
from tfalign.ops import geometry, resample


@pytest.fixture
def picture(rng):
    """A smooth random field, larger than all that is cut from it."""
    field = scipy.ndimage.gaussian_filter(rng.standard_normal((300, 300)), 2.0)
    return (field / field.std()).astype(np.float32)


def cut(picture, size, shift=(0, 0)):
    """The patch whose content lies `shift` further down/right, `(1, size, size, 1)`."""
    begin = [150 - size // 2 - one for one in shift]
    return picture[begin[0] : begin[0] + size, begin[1] : begin[1] + size][None, ..., None]


def turned(picture, size, degrees):
    """The patch whose content lies turned, so that a transform of `degrees` lays it back."""
    grid = np.stack(np.meshgrid(*[np.arange(size) - size // 2] * 2, indexing="ij"))
    angle = np.deg2rad(-degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    at = np.einsum("ij,jrc->irc", turn, grid) + 150
    return scipy.ndimage.map_coordinates(picture, at, order=5)[None, ..., None].astype(np.float32)


@pytest.mark.parametrize("pixels", [10, 20])
def test_a_label_to_the_right_is_moved_left_or_the_prediction_right(picture, pixels):
    """10 px left of the one is 10 px right of the other; a label 20 px to the right is found there."""
    prediction, label = cut(picture, 100), cut(picture, 100, (0, pixels))
    found = tfalign.register(prediction, label, max_shift=24, subpixel=False)
    np.testing.assert_array_equal(found.translation, [[0, pixels]])
    aligned, mask = found.warp(label)
    np.testing.assert_array_equal(aligned, prediction * mask[..., None])
    np.testing.assert_array_equal(geometry.translation_of(found.inverse()), [[0, -pixels]])
    moved, mask = tfalign.warp(prediction, found.inverse())
    np.testing.assert_array_equal(moved, label * mask[..., None])
    np.testing.assert_allclose(found.overlap, (100 - pixels) / 100, rtol=1e-6)


@pytest.mark.parametrize("degrees", [5.0, -5.0])
def test_mutual_information_finds_five_degrees_and_their_inverse(picture, degrees):
    """The label's intensities mean something else, so correlation cannot tell; either side can be turned."""
    prediction, label = cut(picture, 64), np.cos(1.5 * turned(picture, 84, degrees))
    found = tfalign.register(prediction, label, max_shift=4, max_rotation=8, similarity="mi")
    np.testing.assert_allclose(geometry.decompose(found.transform).rotation, [[degrees]], atol=0.5)
    np.testing.assert_allclose(geometry.decompose(found.inverse()).rotation, [[-degrees]], atol=0.5)
    np.testing.assert_allclose(found.translation, [[0, 0]], atol=0.2)
    aligned, _ = found.warp(label, interpolation="cubic")
    np.testing.assert_allclose(aligned, np.cos(1.5 * prediction), atol=0.2)


def test_a_prediction_of_100_fills_256_with_78_a_side(picture):
    prediction = tf.constant(cut(picture, 100))
    filled = resample.crop_or_pad(prediction, (256, 256))
    np.testing.assert_array_equal(filled[:, 78:178, 78:178], prediction)
    assert np.count_nonzero(filled) == np.count_nonzero(prediction)
    np.testing.assert_array_equal(resample.crop_or_pad(filled, (100, 100)), prediction)
    mask = np.zeros((1, 256, 256), np.float32)
    mask[:, 78:178, 78:178] = 1
    found = tfalign.register(filled, cut(picture, 256, (7, -9)), fixed_mask=mask, max_shift=12, subpixel=False)
    np.testing.assert_array_equal(found.translation, [[7, -9]])


@pytest.mark.parametrize("corner", [(0, 0), (0, 156), (156, 156), (40, 90)])
def test_the_best_100_of_256_wherever_it_is(picture, corner):
    """At the top-left corner first: 78 px up and left of the middle."""
    label = cut(picture, 256)
    prediction = label[:, corner[0] : corner[0] + 100, corner[1] : corner[1] + 100]
    found = tfalign.register(prediction, label, max_shift=78, subpixel=False)
    np.testing.assert_array_equal(found.translation, [np.array(corner) - 78])
    np.testing.assert_array_equal(found.warp(label)[0], prediction)


@pytest.mark.parametrize(("size", "factor"), [(96, 2.0), (40, 0.5)])
def test_a_label_of_other_sampling_is_read_at_the_prediction_s(rng, size, factor):
    """Sampled twice as finely, or half as finely, as the prediction."""
    field = scipy.ndimage.gaussian_filter(rng.standard_normal((300, 300)), 5.0)
    field /= field.std()

    def sampled(size, step):
        at = np.stack(np.meshgrid(*[(np.arange(size) - size // 2) * step + 150] * 2, indexing="ij"))
        return scipy.ndimage.map_coordinates(field, at, order=5)[None, ..., None].astype(np.float32)

    prediction, label = sampled(48, 2.0), sampled(size, 2.0 / factor)
    transform = geometry.make(tf.zeros([1, 2]), scale=tf.fill([1, 2], factor))
    resampled, mask = tfalign.warp(label, transform, output_shape=(48, 48), interpolation="cubic")
    np.testing.assert_allclose(resampled, prediction * mask[..., None], atol=0.05)
    assert np.mean(mask) > 0.9
    found = tfalign.register(prediction, label, max_shift=1, max_scale=1.1)
    np.testing.assert_allclose(geometry.decompose(found.transform).scale, [[factor, factor]], rtol=0.005)
