import json

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

import tfalign
from tests.data.test_realignment import identity
from tfalign.data import formats, misalign, misalign_files, read_pairs, realign_files


def files(rng, folder, shape, dtype=np.float32, count=3):
    for name in ("inputs", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        field = scipy.ndimage.gaussian_filter(rng.standard_normal((*shape, 1)), (*[2] * len(shape), 0))
        values = field if dtype is np.float32 else 40 * (field - field.min()) / np.ptp(field)
        for part in ("inputs", "labels"):
            np.save(folder / part / f"{number}.npy", values.astype(dtype))
    return read_pairs(folder / "inputs", folder / "labels")


@pytest.mark.parametrize("shape", [(90,), (60, 66), (24, 24, 26)])
def test_moved_files_are_laid_back_by_their_table(rng, tmp_path, shape):
    rank = len(shape)
    transforms = misalign.draw_shifts(3, rank=rank, max_shift=3, seed=1)
    rows = misalign_files(files(rng, tmp_path / "from", shape), tmp_path / "to", transforms)
    assert [json.loads(row["transform"]) for row in rows] == transforms.round(9).tolist()
    for row, transform in zip(rows, transforms):
        image, label = (formats.read(tmp_path / "to" / row[part]) for part in ("input", "label"))
        assert image.shape == label.shape
        assert min(shape) - 2 * 4 <= min(image.shape[:-1]) <= min(shape)
        aligned, mask = tfalign.warp(label[np.newaxis], tf.constant(transform[np.newaxis], tf.float32))
        np.testing.assert_array_equal(aligned[0][mask[0] > 0], image[mask[0].numpy() > 0])
    found = realign_files(
        read_pairs(tmp_path / "to" / "inputs", tmp_path / "to" / "labels", rank=rank),
        identity(1, rank), tmp_path / "repaired", max_shift=4, patch_size=16 if rank == 3 else 48,
    )  # fmt: skip
    axes = [axis for axis in ("sample", "plane", "row", "col") if axis in found[0]]
    assert [[row[axis] for axis in axes] for row in found] == transforms[:, :-1, -1].tolist()


def test_turned_class_maps_keep_their_type(rng, tmp_path):
    pairs = files(rng, tmp_path / "from", (60, 60), dtype=np.uint8)
    transforms = misalign.draw_affine(3, rank=2, max_shift=2, max_rotation=10, seed=2)
    rows = misalign_files(pairs, tmp_path / "to", transforms, table="truth.csv")
    label = formats.read(tmp_path / "to" / rows[0]["label"])
    assert label.dtype == np.uint8
    assert (tmp_path / "to" / "truth.csv").exists()
    image = formats.read(tmp_path / "to" / rows[0]["input"])
    aligned, mask = tfalign.warp(label[np.newaxis], tf.constant(transforms[:1], tf.float32), interpolation="nearest")
    agree = np.abs(aligned[0].numpy().astype(int) - image)[mask[0].numpy() > 0]
    assert np.mean(agree) < 0.7 * np.mean(np.abs(label.astype(int) - image))


def test_what_does_not_fit_is_said(rng, tmp_path):
    pairs = files(rng, tmp_path / "from", (20, 20))
    with pytest.raises(ValueError, match="labelled pairs=3"):
        misalign_files(pairs, tmp_path / "to", misalign.draw_shifts(2, rank=2, max_shift=1))
    with pytest.raises(ValueError, match="leave some"):
        misalign_files(pairs, tmp_path / "to", misalign.make_transforms(np.full((3, 2), 30.0)))
