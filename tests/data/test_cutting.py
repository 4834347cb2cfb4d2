import json

import numpy as np
import pytest

from tfalign.data.cutting import Cutting, cut_example, parts
from tfalign.data.preprocess import CropOrPad, Gaussian, Median, Preprocessing, Resample, Scale, ZScore


def cut_all(image, label, cutting, *, number=0, set_name="train"):
    return list(cut_example(image, label, cutting, number=number, set_name=set_name))


def coordinates(shape):
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)


@pytest.mark.parametrize("shape", [(50,), (30, 41), (12, 14, 13)])
def test_patches_of_input_and_label_with_margin(shape):
    image = coordinates(shape)
    cutting = Cutting(patch_size=9, patch_overlap=2, margin=3)
    found = cut_all(image, image + 100, cutting, set_name="test")
    assert {name for name, _ in found} == {"test"}
    rank = len(shape)
    middle = (slice(3, -3),) * rank
    starts = set()
    for _, patch in found:
        assert patch.input.dtype == patch.label.dtype == np.float32
        assert patch.input.shape == (*(9,) * rank, rank)
        assert patch.label.shape == (*(15,) * rank, rank)
        np.testing.assert_array_equal(patch.input[(0,) * rank], patch.start)
        np.testing.assert_array_equal(patch.label[middle] - 100, patch.input)
        assert np.isnan(patch.label).any() == any(
            start < 3 or start + 12 > size for start, size in zip(patch.start, shape)
        )
        assert patch.content > 2
        starts.add(patch.start)
    assert len(starts) == len(found) > 5


def test_patches_come_in_a_drawn_order_that_stays(rng):
    image = coordinates((60,))
    cutting = Cutting(patch_size=5)
    order = [patch.start for _, patch in cut_all(image, image, cutting)]
    assert order != sorted(order)
    assert order == [patch.start for _, patch in cut_all(image, image, cutting)]
    assert order != [patch.start for _, patch in cut_all(image, image, cutting, number=1)]


def test_class_maps_are_ignored_beyond_the_file():
    label = np.ones((10, 10, 1), np.uint8)
    ((_, patch),) = cut_all(label, label, Cutting(margin=2, ignore_class=-1))
    assert patch.label.dtype == np.int32
    assert np.unique(patch.label, return_counts=True)[1].tolist() == [14 * 14 - 100, 100]
    assert patch.content == 0


def test_preprocessing_takes_the_label_along(rng):
    image, classes = rng.normal(size=(20, 30, 1)), rng.integers(0, 3, (24, 34, 1))
    prepare = Preprocessing((Resample(factor=0.5), ZScore()))
    ((_, patch),) = cut_all(image, classes, Cutting(preprocessing=prepare, margin=1, ignore_class=9))
    np.testing.assert_array_equal(patch.input, prepare(image[np.newaxis])[0])
    np.testing.assert_array_equal(patch.label, classes[0:24:2, 1:34:2])
    label_preprocessing = Preprocessing((Scale(high=2),))
    cutting = Cutting(preprocessing=prepare, label_preprocessing=label_preprocessing, margin=1)
    ((_, patch),) = cut_all(image, np.full((24, 34, 1), 1, np.uint8), cutting)
    np.testing.assert_array_equal(patch.label, np.full((12, 17, 1), 0.5, np.float32))


@pytest.mark.parametrize("label_border", [0, 3])
def test_regions_of_one_file_share_no_pixel(rng, label_border):
    """What is changed inside one region changes no patch of another, through no filter, statistic or margin."""
    image = rng.normal(size=(24, 90, 1))
    label = np.pad(image, [(label_border,) * 2] * 2 + [(0, 0)], mode="edge")
    prepare = Preprocessing((Median(), Gaussian(sigma=2.0), ZScore(), CropOrPad(size=(30, 30))))
    cutting = Cutting(preprocessing=prepare, patch_size=12, patch_overlap=4, margin=5, split_by="region")
    before = cut_all(image, label, cutting, number=3)
    assert {name for name, _ in before} == {"train", "validation", "test"}
    for changed in ("train", "validation", "test"):
        other_image, other_label = image.copy(), label.copy()
        regions = dict(parts(image.shape[:-1], cutting, number=3, set_name="train"))
        region = regions[changed]
        other_image[region] += rng.normal(size=other_image[region].shape)
        columns = slice(region[1].start + label_border, region[1].stop + label_border)
        other_label[:, columns] += 7.0
        after = cut_all(other_image, other_label, cutting, number=3)
        differs = {name: False for name, _ in before}
        for (name, old), (_, new) in zip(before, after, strict=True):
            same = np.array_equal(old.input, new.input) and np.array_equal(old.label, new.label, equal_nan=True)
            differs[name] |= not same
        assert differs == {name: name == changed for name in differs}


def test_settings_are_plain_json():
    cutting = Cutting(
        preprocessing=Preprocessing((ZScore(),)), patch_size=(8, 9), margin=(1, 2), fractions=(0.5, 0.5, 0.0), seed=7
    )
    config = json.loads(json.dumps(cutting.get_config()))
    assert config["preprocessing"]["steps"][0]["step"] == "ZScore"
    assert config["patch_size"] == [8, 9]
    assert config["fractions"] == [0.5, 0.5, 0.0]
    assert config["seed"] == 7
    assert Cutting.from_config(config) == cutting
    assert Cutting.from_config({"patch_size": 8}) == Cutting(patch_size=8)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"split_by": "slide"}, ValueError, "`split_by` must be one of 'file', 'region'.*split_by='slide'"),
        ({"fractions": (0.5, 0.1, 0.1)}, ValueError, "sum to 1"),
        ({"margin": -1}, ValueError, "margin=-1"),
        ({"seed": 1.5}, TypeError, "seed=1.5"),
        ({"label_preprocessing": Preprocessing((ZScore(over="data"),))}, ValueError, "must be fitted.*over='data'"),
        ({"label_preprocessing": Preprocessing((Resample(factor=2),))}, ValueError, "move no pixels.*factor=2"),
        ({"label_preprocessing": Preprocessing((CropOrPad(size=(4,)),))}, ValueError, "move no pixels"),
        (
            {"ignore_class": 0, "label_preprocessing": Preprocessing((Scale(),))},
            ValueError,
            "Class maps must stay.*ignore_class=0",
        ),
    ],
)
def test_mistakes_are_named(options, error, text):
    with pytest.raises(error, match=text):
        Cutting(**options)
