import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import tfalign
from tfalign.data import stain, stain_dataset
from tfalign.data.stain_dataset import TfalignStain

COUNTS = {"train": 8, "validation": 6, "test": 4}


@pytest.fixture(scope="module", autouse=True)
def few_examples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TfalignStain, "COUNTS", COUNTS)
        yield


class TestByTheRulesOfTfds(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = TfalignStain
    BUILDER_CONFIG_NAMES_TO_TEST = ["whole_pixel", "elastic"]  # noqa: RUF012
    SPLITS = COUNTS
    EXAMPLE_DIR = str(Path(__file__).parent)  # nothing is downloaded
    SKIP_CHECKSUMS = True


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Of every config and split, loaded as a user does."""
    folder = tmp_path_factory.mktemp("tfds")

    def load(config, split):
        data = tfds.load(f"tfalign_stain/{config}", split=split, data_dir=folder)
        return [tfds.as_numpy(example) for example in data]

    return load


@pytest.mark.parametrize("config", [name for name in stain_dataset.MISALIGNMENTS if name != "elastic"])
def test_labels_are_laid_back_by_their_truth(examples, config):
    for split, count in COUNTS.items():
        found = examples(config, split)
        assert len(found) == count
        moved = sum(not np.array_equal(example["transform"], np.eye(3)) for example in found)
        assert moved >= (0 if config == "aligned" else count - 2)  # a draw may be 0
        for example in found:
            aligned, mask = tfalign.warp(
                example["label"][np.newaxis], example["transform"][np.newaxis], output_shape=(64, 64)
            )
            inside = mask.numpy()[0] > 0
            assert inside.mean() > 0.95
            error = np.abs(aligned.numpy()[0] - example["truth"])[inside].mean()
            whole = config in ("whole_pixel", "aligned", "biased")
            assert error < (1e-7 if whole else 0.03)
            np.testing.assert_array_equal(example["translation"], example["transform"][:2, 2])
            np.testing.assert_allclose(example["truth"].mean(axis=-1, keepdims=True), example["input"], atol=1e-6)


def test_elastic_labels_are_laid_back_by_their_displacement(examples):
    for example in examples("elastic", "train"):
        displacement = np.nan_to_num(example["displacement"])
        known = np.isfinite(example["displacement"]).all(axis=-1)[8:-8, 8:-8]
        aligned, _ = tfalign.warp(example["label"][np.newaxis], displacement[np.newaxis])
        assert known.mean() > 0.95
        inner = aligned.numpy()[0, 8:-8, 8:-8]
        assert np.abs(inner - example["truth"])[known].mean() < 0.03
        assert np.abs(example["label"][8:-8, 8:-8] - example["truth"]).mean() > 0.04


def test_registration_finds_the_shifts(examples):
    found = examples("whole_pixel", "train")
    gray = np.stack([example["label"].mean(axis=-1, keepdims=True) for example in found])
    inputs = np.stack([example["input"] for example in found])
    registered = tfalign.register(inputs, gray, max_shift=8, subpixel=False)
    translations = np.stack([example["translation"] for example in found])
    np.testing.assert_array_equal(registered.translation, translations)
    assert np.abs(translations).max() > 4
    np.testing.assert_array_equal(translations.sum(axis=0), 0)


@pytest.mark.parametrize("config", stain_dataset.MISALIGNMENTS)
def test_splits_take_their_rows_alone(examples, config):
    gray = stain.tissue()[0]
    for split, (first, last) in stain_dataset.ROWS.items():
        for example in examples(config, split):
            row, column = example["center"]
            assert first <= row - 40 - 1
            assert row + 40 <= last
            np.testing.assert_array_equal(example["input"], gray[row - 32 : row + 32, column - 32 : column + 32])
    if config not in ("aligned", "elastic"):
        train, other, test = ({tuple(one["transform"].ravel()) for one in examples(config, name)} for name in COUNTS)
        assert not test <= train
        assert not other <= train
        assert not test <= other
    edges = list(stain_dataset.ROWS.values())
    assert [one[1] for one in edges[:-1]] == [other[0] for other in edges[1:]]


def test_it_is_supervised_and_trains_in_tf_data(examples, tmp_path):
    data = tfds.load("tfalign_stain", split="train", as_supervised=True, data_dir=tmp_path).batch(4)
    inputs, labels = next(iter(data))
    assert inputs.shape == (4, 64, 64, 1)
    assert labels.shape == (4, 80, 80, 3)
    assert tf.reduce_max(labels) <= 1
    loss = tfalign.ShiftInvariantLoss("mae", max_shift=8)(labels, tf.repeat(inputs, 3, axis=-1))
    assert np.isfinite(loss)


def test_the_package_works_without_tensorflow_datasets():
    script = """
        import sys
        sys.modules["tensorflow_datasets"] = None  # as if it were not installed
        import tfalign.data
        assert "tfalign.data.stain_dataset" not in sys.modules
        assert tfalign.data.stain.tissue()[0].shape == (512, 512, 1)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=Path(__file__).parents[2], check=True)


def test_it_is_registered_by_the_import_of_the_package():
    script = """
        import tensorflow_datasets as tfds
        assert "tfalign_stain" not in tfds.list_builders()
        import tfalign.data
        assert "tfalign_stain" in tfds.list_builders()
        assert tfds.builder_cls("tfalign_stain").__module__ == "tfalign.data.stain_dataset"
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=Path(__file__).parents[2], check=True)
