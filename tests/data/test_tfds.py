import pickle
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfalign.data import BadFileError, read_pairs
from tfalign.data.cutting import Cutting
from tfalign.data.pipeline import dataset, prepare

datasets = pytest.importorskip("tensorflow_datasets")


class Dots(datasets.core.GeneratorBasedBuilder):
    """Ten pictures of random sizes with masks and recordings, in several files."""

    VERSION = datasets.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": datasets.features.Image(shape=(None, None, 3)),
            "mask": datasets.features.Tensor(shape=(None, None), dtype=np.int32, encoding="zlib"),
            "signal": datasets.features.Tensor(shape=(None,), dtype=np.float32),
            "kind": datasets.features.ClassLabel(num_classes=3),
        }
        features = datasets.features.FeaturesDict(features)
        return datasets.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "mask"))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(10), "test": self._generate_examples(3)}

    def _generate_examples(self, count):
        rng = np.random.default_rng(count)
        for number in range(count):
            shape = tuple(rng.integers(5, 9, 2))
            yield (
                number,
                {
                    "image": rng.integers(0, 256, (*shape, 3), dtype=np.uint8),
                    "mask": rng.integers(0, 3, shape, dtype=np.int32),
                    "signal": rng.normal(size=20).astype(np.float32),
                    "kind": 1,
                },
            )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    builder = Dots(data_dir=tmp_path_factory.mktemp("data"))
    config = datasets.download.DownloadConfig(num_shards=3)
    builder.download_and_prepare(download_config=config)
    return builder.data_path


def key(array):
    return array.shape, array.tobytes()


def test_supervised_keys(folder):
    pairs = read_pairs(f"tfds:{folder}")
    assert [pair.name for pair in pairs] == [f"{index:06d}" for index in range(10)]
    found = {key(example.input): example.label for example in pairs.examples()}
    loaded = list(datasets.builder_from_directory(folder).as_dataset(split="train").as_numpy_iterator())
    assert len(found) == len(loaded) == 10
    for example in loaded:
        label = found[key(example["image"])]
        assert label.dtype == np.int32
        np.testing.assert_array_equal(label[..., 0], example["mask"])
    assert not pairs.skipped


def test_any_order_and_any_pass_give_the_same(folder):
    pairs = read_pairs(f"tfds:{folder}")
    found = [key(example.input) for example in pairs.examples()]
    assert found == [key(example.input) for example in pairs.examples()]
    for index in (7, 0, 1, 9, 9, 2):
        assert key(pairs.read(index).input) == found[index]
    assert found[3:5] == [key(example.input) for example in pairs[3:5].examples()]


def test_in_order_each_is_decoded_once(folder, monkeypatch):
    pairs = read_pairs(f"tfds:{folder}")
    begun = []
    split, begin = pairs[0].input.split, pairs[0].input.split._from
    monkeypatch.setattr(split, "_from", lambda index: begun.append(index) or begin(index))
    assert len(list(pairs.examples())) == 10
    assert begun == [0]


def test_after_a_damaged_example(folder, monkeypatch):
    pairs = read_pairs(f"tfds:{folder}")
    found = [key(example.input) for example in pairs.examples()]
    split, begin = pairs[0].input.split, pairs[0].input.split._from

    class Lenient:
        """Goes on after an error, as iterators of tf.data do."""

        def __init__(self, index):
            self.examples, self.number = begin(index), index - 1

        def __next__(self):
            example = next(self.examples)
            self.number += 1
            if self.number == 3:
                raise ValueError("checksum")
            return example

    monkeypatch.setattr(split, "_from", Lenient)
    assert [key(example.input) for example in pairs.examples()] == found[:3] + found[4:]
    assert "checksum" in pairs.skipped[0].reason
    pairs.read(2)
    for _ in range(2):
        with pytest.raises(BadFileError, match=r"\[3\]: image"):
            pairs.read(3)


def test_an_example_is_the_readers_own(folder):
    pairs = read_pairs(f"tfds:{folder}")
    pairs.read(0).input[:] = 0
    assert pairs.read(0).input.any()


def test_split_and_features(folder):
    pairs = read_pairs(f"tfds:{folder}", split="test[:67%]", features=("signal", None))
    assert len(pairs) == 2
    for example in pairs.examples():
        assert example.input.shape == (20, 1)
        assert example.input.dtype == np.float32
        assert example.label is None


def test_too_large_an_example_is_skipped(folder):
    pairs = read_pairs(f"tfds:{folder}", max_pixels=6 * 8 * 3)
    found = list(pairs.examples())
    assert 0 < len(found) < 10
    assert len(found) + len(pairs.skipped) == 10
    assert all(example.input.size <= 144 for example in found)
    assert "[train][" in pairs.skipped[0].path
    assert pairs.skipped[0].path.endswith(": image")


@pytest.mark.parametrize("features", [("image", "masks"), ("image", "kind"), ("image",), (None, "mask")])
def test_features_that_are_no_maps(folder, features):
    with pytest.raises(ValueError, match=r"`features` must .* Received: features=\("):
        read_pairs(f"tfds:{folder}", features=features)


def test_labels_are_features(folder):
    with pytest.raises(ValueError, match="`labels` must be left out: `features` name those of the set"):
        read_pairs(f"tfds:{folder}", "mask")


def test_by_name():
    with datasets.testing.mock_data(num_examples=2), pytest.raises(ValueError, match=r"features=\('image', 'label'\)"):
        read_pairs("tfds:mnist")


def test_a_segmentation_set_becomes_patches(tmp_path):
    rng = np.random.default_rng(0)
    made = [(rng.integers(0, 256, (47, 60, 3), np.uint8), rng.integers(1, 4, (47, 60, 1), np.uint8)) for _ in range(3)]

    def as_dataset(builder, *args, **options):
        images, masks = (np.stack(side) for side in zip(*made))
        return tf.data.Dataset.from_tensor_slices({"image": images, "segmentation_mask": masks})

    with datasets.testing.mock_data(as_dataset_fn=as_dataset):
        pairs = read_pairs("tfds:oxford_iiit_pet", features=("image", "segmentation_mask"))
        example = pairs.read(0)
        assert example.input.dtype == example.label.dtype == np.uint8
        np.testing.assert_array_equal(example.input, made[0][0])
        np.testing.assert_array_equal(example.label, made[0][1])
        cutting = Cutting(patch_size=32, margin=4, ignore_class=255, fractions=(1, 0, 0))
        cache = prepare(pairs, tmp_path / "cache", cutting, workers=0)
    inputs, labels = next(iter(dataset(cache, "train", batch_size=2, max_blank=1.0)))
    assert (inputs.shape, labels.shape) == ((2, 32, 32, 3), (2, 40, 40, 1))
    assert labels.dtype == np.int32


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(
        ImportError, match=r"`tensorflow_datasets` must be installed.*pip install 'tfalign\[datasets\]'"
    ):
        read_pairs("tfds:mnist")


def test_pairs_go_to_other_processes(folder):
    pairs = read_pairs(f"tfds:{folder}")
    sent = pickle.loads(pickle.dumps(pairs))
    assert sent[0].input.split is sent[9].label.split
    for index in (3, 4, 0):
        np.testing.assert_array_equal(sent.read(index).input, pairs.read(index).input)
