import json

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf
from PIL import Image

import tfalign
from tests.data.test_realignment import identity
from tfalign.data import BadFileError, formats, misalign, misalign_files, read_pairs, realign_files


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


def pictures(rng, folder, count=3, size=60):
    """Spots, and where they are: in a .csv each, in one for all, and in COCO as boxes and run lengths."""
    (folder / "inputs").mkdir(parents=True)
    (folder / "labels").mkdir()
    images, annotations, rows = [], [], []
    for number in range(count):
        image = np.zeros((size, size), np.uint8)
        for place in rng.permutation(9)[:4]:
            y, x = (22 + 7 * int(step) for step in divmod(place, 3))
            image[y - 2 : y + 3, x - 2 : x + 3] = 255
            rows.append((f"{number}", y, x))
            mask = np.zeros((size, size), bool)
            mask[y - 2 : y + 3, x - 2 : x + 3] = True
            flat = mask.T.ravel()
            counts = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
            box = [x - 2, y - 2, 5, 5]
            for shape in ({"segmentation": {"counts": counts, "size": [size, size]}}, {"bbox": box}):
                annotations.append({"image_id": number, "category_id": 1, **shape})
        images.append({"id": number, "file_name": f"{number}.png", "height": size, "width": size})
        Image.fromarray(image).save(folder / "inputs" / f"{number}.png")
        text = "row,col\n" + "".join(f"{y},{x}\n" for name, y, x in rows if name == str(number))
        (folder / "labels" / f"{number}.csv").write_text(text)
    (folder / "all.csv").write_text("name,row,col\n" + "".join(f"{name}.png,{y},{x}\n" for name, y, x in rows))
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "spot"}]}
    (folder / "coco.json").write_text(json.dumps(content))


@pytest.mark.parametrize("labels", ["labels", "all.csv", "coco.json"])
def test_positions_stay_positions(rng, tmp_path, labels):
    pictures(rng, tmp_path)
    drawing = {"kind": "masks", "radius": 1}
    pairs = read_pairs(tmp_path / "inputs", tmp_path / labels, positions=drawing)
    transforms = misalign.draw_shifts(3, rank=2, max_shift=3, seed=3)
    rows = misalign_files(pairs, tmp_path / "to", transforms)
    assert [row["label"] for row in rows] == {
        "labels": [f"labels/{number}.csv" for number in range(3)]
    }.get(labels, [f"labels/{labels}"] * 3)  # fmt: skip
    moved = tmp_path / "to" / "labels" if labels == "labels" else tmp_path / "to" / rows[0]["label"]
    found = read_pairs(tmp_path / "to" / "inputs", moved, positions=drawing).examples()
    for example, transform in zip(found, transforms, strict=True):
        spots = example.input[..., 0] > 0
        if labels != "coco.json":  # a cross for each position
            spots = scipy.ndimage.binary_dilation(scipy.ndimage.minimum_filter(spots, 5))
        laid_back, _ = tfalign.warp(example.label[np.newaxis], tf.constant(transform[np.newaxis], tf.float32))
        np.testing.assert_array_equal(laid_back[0, ..., 0] > 0, spots)
    fields = misalign.draw_elastic(3, shape=(60, 60), rms=1.0, correlation_length=30.0)
    with pytest.raises(ValueError, match=r"Positions must be moved by transforms. Received: name='0'"):
        misalign_files(pairs, tmp_path / "bent", fields)


@pytest.mark.parametrize("shape", [(150,), (110, 116), (56, 56, 58)])
def test_bent_labels_are_laid_back_by_their_truth(rng, tmp_path, shape):
    rank = len(shape)
    fields = misalign.draw_elastic(2, shape=shape, rms=0.7, correlation_length=20.0, seed=5)
    pairs = files(rng, tmp_path / "from", shape, count=2)
    rows = misalign_files(pairs, tmp_path / "to", fields)
    for row in rows:
        assert row["transform"] == ""
        image, label, truth = (np.load(tmp_path / "to" / row[part]) for part in ("input", "label", "displacement"))
        assert label.shape[:-1] == truth.shape[:-1] == image.shape[:-1]
        known = np.isfinite(truth).all(axis=-1)
        aligned, _ = tfalign.warp(label[np.newaxis], np.nan_to_num(truth)[np.newaxis], interpolation="cubic")
        error = np.abs(aligned[0].numpy() - image)[known].mean()
        assert error < 0.2 * np.abs(label - image)[known].mean()
        assert truth.shape[-1] == rank


def test_a_damaged_file_is_skipped_and_what_is_done_stays(rng, tmp_path):
    pairs = files(rng, tmp_path / "from", (40, 40))
    (tmp_path / "from" / "labels" / "1.npy").write_bytes(b"damaged")
    transforms = misalign.draw_shifts(3, rank=2, max_shift=3, seed=1)
    rows = misalign_files(pairs, tmp_path / "to", transforms)
    assert [row["name"] for row in rows] == ["0", "2"]
    assert [path.rpartition("/")[-1] for path, _ in pairs.skipped] == ["1.npy"]
    strict = read_pairs(tmp_path / "from" / "inputs", tmp_path / "from" / "labels", strict=True)
    with pytest.raises(BadFileError, match=r"1\.npy"):
        misalign_files(strict, tmp_path / "strict", transforms)

    def times():
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "to" / "labels").iterdir()}

    before = times()
    assert misalign_files(pairs, tmp_path / "to", transforms) == rows
    assert times() == before
    (tmp_path / "to" / "labels" / "0.npy").unlink()
    np.save(tmp_path / "from" / "labels" / "1.npy", np.load(tmp_path / "from" / "inputs" / "1.npy"))
    assert len(misalign_files(pairs, tmp_path / "to", transforms)) == 3
    assert times()["2.npy"] == before["2.npy"]
    transforms[2, 0, 2] += 1
    misalign_files(pairs, tmp_path / "to", transforms)
    assert times()["2.npy"] != before["2.npy"]


def test_what_does_not_fit_is_said(rng, tmp_path):
    pairs = files(rng, tmp_path / "from", (20, 20))
    with pytest.raises(ValueError, match="labelled pairs=3"):
        misalign_files(pairs, tmp_path / "to", misalign.draw_shifts(2, rank=2, max_shift=1))
    with pytest.raises(ValueError, match="leave some"):
        misalign_files(pairs, tmp_path / "to", misalign.make_transforms(np.full((3, 2), 30.0)))
