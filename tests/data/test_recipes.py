import numpy as np
import pytest
import skimage.color
import skimage.data
import skimage.filters

from tfalign.data import recipes


def test_threshold_of_two_levels():
    image = np.full((8, 9, 1), 40, np.uint8)
    image[2:5, 3:7] = 200
    for value in ("otsu", "li", "yen", 100):
        label = recipes.threshold(image, value=value)
        assert label.dtype == np.uint8
        np.testing.assert_array_equal(label, image == 200)
    np.testing.assert_array_equal(recipes.threshold(image, value=100, above=False), image == 40)


@pytest.mark.parametrize("shape", [(50, 2), (20, 21, 2), (9, 8, 7, 2)])
def test_any_rank_and_one_channel(rng, shape):
    image = rng.normal(size=shape).astype(np.float32)
    np.testing.assert_array_equal(recipes.threshold(image, value=0.0, channel=1), image[..., 1:] > 0)
    np.testing.assert_array_equal(recipes.threshold(image, value=0.0)[..., 0], image.mean(axis=-1) > 0)


def test_small_parts_are_taken_away_and_noise_is_smoothed(rng):
    image = np.zeros((20, 20, 1))
    image[2:8, 2:8] = image[15, 15] = image[12:14, 3] = 1.0
    expected = np.zeros((20, 20, 1))
    expected[2:8, 2:8] = 1
    np.testing.assert_array_equal(recipes.threshold(image, value=0.5, min_size=3), expected)
    assert recipes.threshold(image, value=0.5, min_size=2).sum() == 36 + 2
    assert recipes.threshold(image, value=0.5, min_size=1).sum() == 36 + 3
    assert recipes.threshold(image, value=0.5, sigma=1.5)[15, 15] == 0


@pytest.mark.parametrize("value", ["otsu", "li", "triangle", "yen"])
def test_one_value_has_no_threshold(value):
    assert not recipes.threshold(np.full((5, 5, 1), 7.0), value=value).any()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_stains_are_those_of_scikit_image(dtype):
    tissue = skimage.data.immunohistochemistry()[:60, :70]
    scale = {"uint8": 1, "uint16": 257, "float32": 1 / 255}[dtype]
    image = (tissue.astype(float) * scale).astype(dtype)
    for number, stain in enumerate(recipes.STAINS):
        amount = recipes.stain(image, stain=stain, value=None)
        expected = skimage.color.rgb2hed(tissue)[..., number]
        assert amount.dtype == np.float32
        np.testing.assert_allclose(amount[..., 0], expected, atol=1e-4)
        label = recipes.stain(image, stain=stain)
        np.testing.assert_array_equal(label[..., 0], amount[..., 0] > skimage.filters.threshold_otsu(amount))


def test_resolve():
    image = skimage.data.immunohistochemistry()[:30, :30]
    np.testing.assert_array_equal(recipes.resolve("stain")(image), recipes.stain(image))
    found = recipes.resolve({"name": "stain", "stain": "dab", "value": 0.05})(image)
    np.testing.assert_array_equal(found, recipes.stain(image, stain="dab", value=0.05))
    assert recipes.resolve(np.negative) is np.negative


@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        ("magic", r"`recipe` must be one of 'stain', 'threshold'. Received: recipe='magic'"),
        ({"stain": "dab"}, "Received: recipe=None"),
        ({"name": "threshold", "level": 3}, "options of recipe 'threshold'` must be one of 'value', 'above'"),
    ],
)
def test_unknown_recipe_or_option(recipe, match):
    with pytest.raises(ValueError, match=match):
        recipes.resolve(recipe)


def test_inputs_that_do_not_fit():
    with pytest.raises(ValueError, match=r"colour picture. Received: image.shape=\(5, 5, 1\)"):
        recipes.stain(np.zeros((5, 5, 1)))
    with pytest.raises(ValueError, match="`stain` must be one of"):
        recipes.stain(np.zeros((5, 5, 3)), stain="ink")
    with pytest.raises(ValueError, match="`value` must be one of"):
        recipes.threshold(np.zeros((5, 5, 3)), value="best")
