import csv
import json

import keras
import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf
from PIL import Image

import tfalign.data
from tests.data.test_realignment import identity
from tfalign.data import BadFileError, fingerprints, formats, misalign, read_pairs, realign_files
from tfalign.data.preprocess import CropOrPad, Preprocessing, Resample, Scale

SHIFTS = {"a": (3, -2), "b b": (-1, 4), "é": (0, 0)}


def scene(rng, size=96):
    field = scipy.ndimage.gaussian_filter(rng.standard_normal((size, size, 1)), (2, 2, 0))
    return np.uint8(255 * (field - field.min()) / np.ptp(field))


@pytest.fixture
def folders(rng, tmp_path):
    """Pictures, and labels of the same whose content lies elsewhere."""
    for name in ("inputs", "labels"):
        (tmp_path / name).mkdir()
    for name, shift in SHIFTS.items():
        whole = scene(rng)
        Image.fromarray(whole[8:88, 8:88, 0]).save(tmp_path / "inputs" / f"{name}.png")
        y, x = (8 - one for one in shift)
        Image.fromarray(whole[y : y + 80, x : x + 80, 0]).save(tmp_path / "labels" / f"{name}.png")
    return tmp_path


def scaled(values):
    return np.asarray(values, np.float32) / 255


def repair(folder, pairs=None, **options):
    pairs = pairs or read_pairs(folder / "inputs", folder / "labels")
    options = {"model": identity(1), "max_shift": 6, "preprocessing": scaled, "patch_size": 40, **options}
    return realign_files(pairs, folder=folder / "out", **options)


def test_labels_are_written_back_in_their_format(folders):
    rows = repair(folders)
    assert {row["name"]: (row["row"], row["col"]) for row in rows} == SHIFTS
    assert min(row["confidence"] for row in rows) > 0.9
    for name, (y, x) in SHIFTS.items():
        image, repaired = (formats.read(folders / part / f"{name}.png") for part in ("inputs", "out"))
        assert repaired.dtype == np.uint8
        top, left = max(-y, 0), max(-x, 0)
        inner = (slice(top, 80 - abs(y) + top), slice(left, 80 - abs(x) + left))
        np.testing.assert_array_equal(repaired[inner], image[inner])
        outside = np.ones((80, 80, 1), bool)
        outside[inner] = False
        assert not repaired[outside].any()
    with open(folders / "out" / "alignment.csv", encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert [row["file"] for row in table] == ["a.png", "b b.png", "é.png"]
    assert [(float(row["row"]), float(row["col"])) for row in table] == list(SHIFTS.values())


def test_a_parquet_table(folders):
    import pyarrow.parquet

    rows = repair(folders, table="t.parquet")
    assert pyarrow.parquet.read_table(folders / "out" / "t.parquet").to_pylist() == rows


def test_it_goes_on_where_it_was_stopped(folders):
    calls, last = [], [2]

    def counted(values):
        calls.append(1)
        if len(calls) == last[0]:
            raise KeyboardInterrupt
        return scaled(values)

    with pytest.raises(KeyboardInterrupt):
        repair(folders, preprocessing=counted)
    last.clear()
    last.append(0)
    assert not (folders / "out" / "alignment.csv").exists()
    journal = folders / "out" / "alignment.jsonl"
    journal.write_text(journal.read_text() + '{"name": "half')
    calls.clear()
    assert len(repair(folders, preprocessing=counted)) == 3
    assert len(calls) == 2
    (folders / "out" / "é.png").unlink()
    repair(folders, preprocessing=counted)
    assert len(calls) == 3
    assert (folders / "out" / "é.png").exists()
    for others in ({"max_shift": 5}, {"preprocessing": scaled}, {"model": lambda values, training: values[:, ::-1]}):
        with pytest.raises(ValueError, match=f"other settings.*that differ=\\['{next(iter(others))}'\\]"):
            repair(folders, **{"preprocessing": counted, **others})


def test_what_changed_is_repaired_again(folders):
    before = {row["name"]: row for row in repair(folders)}
    whole = formats.read(folders / "inputs" / "a.png")
    Image.fromarray(np.roll(whole, (1, 1), axis=(0, 1))[..., 0]).save(folders / "labels" / "a.png")
    after = {row["name"]: row for row in repair(folders)}
    assert (after["a"]["row"], after["a"]["col"]) == (1, 1)
    assert after["b b"] == before["b b"]
    assert len((folders / "out" / "alignment.jsonl").read_text().splitlines()) == 1 + 4


def test_models_are_told_apart_by_their_weights():
    inputs = keras.Input((None, None, 1))
    model = keras.Model(inputs, keras.layers.Conv2D(1, 3)(inputs))
    before = fingerprints.of_model(model)
    assert before == fingerprints.of_model(model)
    model.set_weights([2 * weight + 1 for weight in model.get_weights()])
    assert fingerprints.of_model(model) != before


def test_one_shift_for_all(folders):
    for name in SHIFTS:
        moved = np.roll(formats.read(folders / "inputs" / f"{name}.png"), (2, 1), axis=(0, 1))
        Image.fromarray(moved[..., 0]).save(folders / "labels" / f"{name}.png")
    calls = []

    def counted(values):
        calls.append(1)
        return scaled(values)

    for expected in (3, 3):  # nothing is predicted again
        rows = repair(folders, per="dataset", preprocessing=counted)
        assert [(row["row"], row["col"]) for row in rows] == [(2, 1)] * 3
        assert len(calls) == expected
    (folders / "out" / "a.png").unlink()
    assert repair(folders, per="dataset", preprocessing=counted) == rows
    assert len(calls) == 3
    with pytest.raises(ValueError, match="More than shifts"):
        repair(folders, per="dataset", max_rotation=5.0)


def test_damaged_files_are_listed_and_labels_without_input_left(folders):
    (folders / "labels" / "a.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((80, 80), np.uint8)).save(folders / "inputs" / "alone.png")
    pairs = read_pairs(folders / "inputs", folders / "labels")
    rows = repair(folders, pairs)
    assert [row["name"] for row in rows] == ["b b", "é"]
    assert [one.path.rpartition("/")[-1] for one in pairs.skipped] == ["a.png"]
    with pytest.raises(BadFileError, match=r"a\.png"):
        repair(folders, read_pairs(folders / "inputs", folders / "labels", strict=True))


def test_a_label_that_tells_nothing_stays(folders):
    Image.fromarray(np.full((80, 80), 7, np.uint8)).save(folders / "labels" / "a.png")
    row = repair(folders)[0]
    assert (row["row"], row["col"], row["confidence"]) == (0, 0, 0)
    np.testing.assert_array_equal(formats.read(folders / "out" / "a.png"), np.full((80, 80, 1), 7))


@pytest.mark.parametrize(
    ("step", "shift", "bound"),
    [
        (Resample(factor=0.5), (4, -2), 3),
        (Resample(size=(160, 40)), (3, 2), (8, 3)),
        (CropOrPad(size=(64, 90)), (3, -2), 4),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_preprocessing_that_changes_sizes(rng, tmp_path, step, shift, bound, dtype):
    for name in ("inputs", "labels"):
        (tmp_path / name).mkdir()
    whole = scene(rng, 120).astype(dtype)
    y, x = (20 - one for one in shift)
    np.save(tmp_path / "inputs" / "a.npy", whole[20:100, 20:100])
    np.save(tmp_path / "labels" / "a.npy", whole[y : y + 80, x : x + 80])
    steps = Preprocessing((Scale(high=255.0), step))
    (row,) = repair(tmp_path, preprocessing=steps, max_shift=bound)
    assert (row["row"], row["col"]) == shift
    repaired = np.load(tmp_path / "out" / "a.npy")
    assert repaired.dtype == dtype
    np.testing.assert_array_equal(repaired[10:-10, 10:-10], whole[30:90, 30:90])


def turned_labels(rng, folder, count, *, rotation, shift=(1.0, -2.0)):
    """Pictures of spots, and labels of the same that lie turned and shifted: `transform` takes one to the other."""
    transform = misalign.make_transforms([shift], rotation=[[rotation]])[0]
    for name in ("inputs", "labels"):
        (folder / name).mkdir()
    for number in range(count):
        whole = scipy.ndimage.gaussian_filter(rng.standard_normal((200, 200, 1)), (2, 2, 0)).astype(np.float32)
        np.save(folder / "inputs" / f"{number}.npy", misalign.cut(whole, shape=(96, 96), center=(100, 100)))
        label, _ = misalign.misaligned(whole, transform, shape=(96, 96), center=(100, 100))
        np.save(folder / "labels" / f"{number}.npy", label)
    return transform


def test_turned_labels_are_turned_back(rng, tmp_path):
    turned_labels(rng, tmp_path, 1, rotation=4.0)
    bounds = {"max_rotation": 6.0, "max_scale": 0.05, "max_shear": 2.0}
    (row,) = repair(tmp_path, preprocessing=None, **bounds, patch_size=64)
    assert list(row) == [
        "name", "file", "row", "col", "rotation", "shear", "scale_row", "scale_col", "confidence"
    ]  # fmt: skip
    found = [row[name] for name in list(row)[2:8]]
    np.testing.assert_allclose(found, [1, -2, 4, 0, 1, 1], atol=0.15)
    image, label = (np.load(tmp_path / part / "0.npy")[12:-12, 12:-12] for part in ("inputs", "labels"))
    repaired = np.load(tmp_path / "out" / "0.npy")[12:-12, 12:-12]
    assert np.abs(repaired - image).mean() < 0.15 * np.abs(label - image).mean()
    # What the model is given is half as large, and off by its own (1, 0).
    options = {"preprocessing": Preprocessing((Resample(factor=0.5),)), "offset": (1.0, 0.0), "max_shift": 4}
    pairs = read_pairs(tmp_path / "inputs", tmp_path / "labels")
    (row,) = realign_files(
        pairs, lambda values, training: tf.roll(values, -1, axis=1), tmp_path / "half", **options, max_rotation=6.0
    )
    np.testing.assert_allclose([row["row"], row["col"], row["rotation"]], [1, -2, 4], atol=0.4)


def test_a_table_must_not_take_the_place_of_a_label(spots):
    folder, _, given = spots
    (folder / "labels").mkdir()
    (folder / "inputs" / "b.png").rename(folder / "inputs" / "alignment.png")
    text = "row,col\n" + "".join(f"{y},{x}\n" for y, x in given["b"])
    (folder / "labels" / "alignment.csv").write_text(text)
    pairs = read_pairs(folder / "inputs", folder / "labels", positions=DISCS)
    with pytest.raises(ValueError, match=r"must not be the name of a label. Received: table='alignment.csv'"):
        repair(folder, pairs)
    (row,) = repair(folder, pairs, table="shifts.csv")
    assert row["file"] == "alignment.csv"
    assert (folder / "out" / "alignment.csv").read_text().startswith("row,col\n")


def test_turned_positions_are_turned_back_and_keep_decimal_commas(rng, spots):
    folder, places, _ = spots
    transform = misalign.make_transforms([[1.0, -1.0]], rotation=[[5.0]])[0]
    (folder / "labels").mkdir()
    for name, centers in places.items():
        moved = (centers - 40) @ transform[:2, :2].T + transform[:2, 2] + 40
        rows = [f"spot;{y:.6f};{x:.6f}\n".replace(".", ",") for y, x in moved]
        (folder / "labels" / f"{name}.csv").write_text("class;row;col\n" + "".join(rows))
    pairs = read_pairs(folder / "inputs", folder / "labels", positions=DISCS)
    rows = repair(folder, pairs, max_rotation=8.0)
    np.testing.assert_allclose([[row["row"], row["col"], row["rotation"]] for row in rows], [[1, -1, 5]] * 2, atol=0.3)
    for name, centers in places.items():
        text = (folder / "out" / f"{name}.csv").read_text()
        assert "." not in text
        found = [[float(cell.replace(",", ".")) for cell in line.split(";")[1:]] for line in text.splitlines()[1:]]
        np.testing.assert_allclose(found, centers, atol=0.5)


def test_a_preprocessing_must_keep_the_sizes(folders):
    with pytest.raises(ValueError, match="keep the sizes"):
        repair(folders, preprocessing=lambda values: scaled(values)[:, ::2])


@pytest.fixture
def spots(rng, tmp_path):
    """Discs, and where they are said to be: 2 px further down, 1 px further left."""
    (tmp_path / "inputs").mkdir()
    places = {name: rng.uniform(15, 65, (6, 2)).round() for name in ("a", "b")}
    for name, centers in places.items():
        at = np.stack(np.indices((80, 80)), axis=-1)
        image = np.zeros((80, 80), np.uint8)
        for center in centers:
            image[np.hypot(*(at - center).transpose(2, 0, 1)) <= 4] = 255
        Image.fromarray(image).save(tmp_path / "inputs" / f"{name}.png")
    return tmp_path, places, {name: centers + [2, -1] for name, centers in places.items()}


DISCS = {"kind": "masks", "radius": 4}


@pytest.mark.parametrize("shared", [True, False])
def test_positions_in_tables_stay_positions(spots, shared):
    folder, places, given = spots
    (folder / "labels").mkdir()
    for name, centers in given.items():
        rows = [f"{name if shared else 'spot'},{x:g},{y:g}\n" for y, x in centers]
        with open(folder / "labels" / ("all.csv" if shared else f"{name}.csv"), "a") as stream:
            if stream.tell() == 0:
                stream.write("name,X,Y\n" if shared else "class,X,Y\n")
            stream.writelines(rows)
    labels = folder / "labels" / "all.csv" if shared else folder / "labels"
    rows = repair(folder, read_pairs(folder / "inputs", labels, positions=DISCS))
    assert [(row["row"], row["col"]) for row in rows] == [(2, -1)] * 2
    found = {name: [] for name in places}
    for path in sorted((folder / "out").glob("*.csv")):
        if path.name != "alignment.csv":
            for row in csv.DictReader(path.open()):
                found[row["name"] if shared else path.stem].append((float(row["Y"]), float(row["X"])))
    for name, centers in places.items():
        np.testing.assert_allclose(found[name], centers)


def test_geojson_stays_geojson(spots):
    folder, places, given = spots
    (folder / "labels").mkdir()
    for name, centers in given.items():
        points = [{"type": "Point", "coordinates": [x + 0.5, y + 0.5]} for y, x in centers]
        features = [{"type": "Feature", "properties": {"name": "spot"}, "geometry": point} for point in points]
        collection = {"type": "FeatureCollection", "features": features}
        (folder / "labels" / f"{name}.geojson").write_text(json.dumps(collection))
    repair(folder, read_pairs(folder / "inputs", folder / "labels", positions=DISCS))
    for name, centers in places.items():
        features = json.loads((folder / "out" / f"{name}.geojson").read_text())["features"]
        found = [feature["geometry"]["coordinates"][::-1] for feature in features]
        np.testing.assert_allclose(found, centers + 0.5)
        assert features[0]["properties"] == {"name": "spot"}


def test_coco_stays_coco(spots):
    folder, places, given = spots
    images, annotations = [], []
    for name, centers in places.items():
        image = np.zeros((80, 80), np.uint8)
        for y, x in centers.astype(int):
            image[y - 4 : y + 5, x - 4 : x + 5] = 255
        Image.fromarray(image).save(folder / "inputs" / f"{name}.png")
    for number, (name, centers) in enumerate(given.items()):
        images.append({"id": number, "file_name": f"{name}.png", "height": 80, "width": 80})
        for y, x in centers:
            mask = np.zeros((80, 80), bool)
            mask[int(y) - 4 : int(y) + 5, int(x) - 4 : int(x) + 5] = True
            flat = mask.T.ravel()
            counts = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
            box = [x - 4.0, y - 4.0, 9.0, 9.0]
            ring = [x - 4.0, y - 4.0, x + 5.0, y - 4.0, x + 5.0, y + 5.0, x - 4.0, y + 5.0]
            for segmentation in ({"counts": counts, "size": [80, 80]}, [ring], None):
                annotations.append({"image_id": number, "bbox": box, "category_id": 1, "segmentation": segmentation})
    annotations[0]["keypoints"] = [9, 9, 2, 0, 0, 0]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "spot"}]}
    (folder / "labels.json").write_text(json.dumps(content))
    rows = repair(folder, read_pairs(folder / "inputs", folder / "labels.json", positions={"kind": "masks"}))
    assert [(row["row"], row["col"]) for row in rows] == [(2, -1)] * 2
    assert {row["file"] for row in rows} == {"labels.json"}
    found = json.loads((folder / "out" / "labels.json").read_text())
    centers = np.repeat(np.concatenate(list(places.values())), 3, axis=0)
    for annotation, (y, x) in zip(found["annotations"], centers):
        assert annotation["bbox"] == [x - 4, y - 4, 9, 9]
        if isinstance(annotation["segmentation"], list):
            assert annotation["segmentation"][0][:4] == [x - 4, y - 4, x + 5, y - 4]
        elif annotation["segmentation"]:
            counts = annotation["segmentation"]["counts"]
            mask = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(80, 80).T
            np.testing.assert_array_equal(np.argwhere(mask).min(axis=0), [y - 4, x - 4])
            assert mask.sum() == 81
    assert found["annotations"][0]["keypoints"] == [10, 7, 2, 0, 0, 0]


def test_recordings_and_volumes(rng, tmp_path):
    for name in ("inputs", "labels"):
        (tmp_path / name).mkdir()
    wave = scipy.ndimage.gaussian_filter1d(rng.standard_normal((2100, 1)), 4, axis=0).astype(np.float32)
    np.save(tmp_path / "inputs" / "r.npy", wave[50:2050])
    np.save(tmp_path / "labels" / "r.npy", wave[43:2043])
    options = {"max_shift": 10, "patch_size": 300}
    rows = realign_files(
        read_pairs(tmp_path / "inputs", tmp_path / "labels"), identity(1, 1), tmp_path / "out", **options
    )
    assert rows[0]["sample"] == 7
    repaired = np.load(tmp_path / "out" / "r.npy")
    assert np.isnan(repaired).sum() == 7
    np.testing.assert_array_equal(repaired[:-7], wave[50:2043])
    volume = scipy.ndimage.gaussian_filter(rng.standard_normal((30, 30, 30, 1)), (1, 1, 1, 0)).astype(np.float32)
    np.save(tmp_path / "inputs" / "r.npy", volume[5:25, 5:25, 5:25])
    np.save(tmp_path / "labels" / "r.npy", volume[4:24, 7:27, 5:25])
    pairs = read_pairs(tmp_path / "inputs", tmp_path / "labels")
    rows = realign_files(pairs, identity(1, 3), tmp_path / "volumes", max_shift=3, patch_size=16)
    assert [rows[0][axis] for axis in ("plane", "row", "col")] == [1, -2, 0]


def test_it_is_public():
    assert tfalign.data.realign_files is realign_files
