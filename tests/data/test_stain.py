import numpy as np
import pytest

import tfalign
from tfalign.data import stain


def test_patches_know_their_shifts():
    patches = stain.training_patches(count=12, size=32, max_shift=5, seed=3)
    assert patches.inputs.shape == (12, 32, 32, 1)
    assert patches.labels.shape == (12, 42, 42, 3)
    assert np.abs(patches.translations).max() == 5
    gray = patches.labels.mean(axis=-1, keepdims=True)
    found = tfalign.register(patches.inputs, gray, max_shift=5, subpixel=False)
    np.testing.assert_array_equal(found.translation, patches.translations)


def test_unmoved_patches_are_the_same_ones_aligned():
    moved = stain.training_patches(count=6, size=32, max_shift=5)
    aligned = stain.training_patches(count=6, size=32, max_shift=5, moved=False)
    np.testing.assert_array_equal(moved.inputs, aligned.inputs)
    assert not aligned.translations.any()
    np.testing.assert_allclose(aligned.labels[:, 5:-5, 5:-5].mean(axis=-1, keepdims=True), aligned.inputs, atol=1e-6)


def test_held_out_rows_are_not_trained_on():
    gray, truth = stain.held_out()
    assert gray.shape == (1, 160, 512, 1)
    assert truth.shape == (1, 160, 512, 3)
    np.testing.assert_array_equal(gray[0], stain.tissue()[0][352:])


def test_patches_that_do_not_fit():
    with pytest.raises(ValueError, match=r"must fit into 352 rows. Received: size=340"):
        stain.training_patches(size=340, max_shift=8)
