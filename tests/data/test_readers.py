import csv
import json
import pickle
import unicodedata

import numpy as np
import pytest
import soundfile
import tifffile
from PIL import Image

from tfalign.data import BadFileError, Example, Pair, Pairs, Skipped, read_pairs, tables


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".npy", ".npz"):
        (np.save if path.suffix == ".npy" else np.savez)(path, array)
    elif path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, array, photometric="minisblack")
    else:
        Image.fromarray(array).save(path)
    return array


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def gray(rng):
    return lambda *shape: rng.integers(1, 256, shape or (8, 9), dtype=np.uint8)


@pytest.fixture
def folders(tmp_path):
    return tmp_path / "inputs", tmp_path / "labels"


def names(pairs):
    return [pair.name for pair in pairs]


def skipped(pairs):
    """Names of the files skipped, with their reasons."""
    return {path.replace("\\", "/").rpartition("/")[-1]: reason for path, reason in pairs.skipped}


class TestFolders:
    def test_files_are_matched_by_name_whatever_the_suffix(self, folders, gray):
        inputs, labels = folders
        truth = {}
        for name, suffix, of_label in [
            ("a b", ".png", ".tif"),
            ("ä ß 漢字", ".tif", ".png"),
            ("sub folder/a b", ".npy", ".npz"),
            ("scan.1", ".PNG", ".png"),
            ("scan.2", ".ome.tif", ".png"),
            ("alone", ".png", None),
        ]:
            truth[name] = gray(8, 9, 3) if suffix == ".npy" else gray(), gray() if of_label else None
            save(inputs / f"{name}{suffix}", truth[name][0])
            if of_label:
                save(labels / f"{name}{of_label}", truth[name][1])
        pairs = read_pairs(inputs, str(labels))
        assert names(pairs) == sorted(truth)
        assert not pairs.skipped
        for pair, example in zip(pairs, pairs.examples()):
            assert isinstance(pair, Pair)
            assert isinstance(example, Example)
            of_input, of_label = truth[pair.name]
            np.testing.assert_array_equal(example.input, of_input.reshape(8, 9, -1))
            assert example.input.dtype == np.uint8
            if of_label is None:
                assert pair.label is None
                assert example.label is None
            else:
                np.testing.assert_array_equal(example.label[..., 0], of_label)

    def test_accents_of_another_system(self, folders, gray):
        inputs, labels = folders
        save(inputs / f"{unicodedata.normalize('NFC', 'é ö')}.png", gray())
        save(labels / f"{unicodedata.normalize('NFD', 'é ö')}.png", gray())
        (pair,) = read_pairs(inputs, labels)
        assert pair.name == unicodedata.normalize("NFC", "é ö")
        assert pair.label is not None

    def test_hidden_files_do_not_count(self, folders, gray):
        inputs, _ = folders
        save(inputs / "a.png", gray())
        save(inputs / ".thumbs" / "b.png", gray())
        write(inputs / "._a.png", "")
        pairs = read_pairs(inputs)
        assert names(pairs) == ["a"]
        assert not pairs.skipped

    def test_ambiguous_names(self, folders, gray):
        inputs, labels = folders
        for name in ("a.png", "a.tif", "b.png", "c.png"):
            save(inputs / name, gray())
        for name in ("a.png", "b.png", "b.tif", "c.png"):
            save(labels / name, gray())
        pairs = read_pairs(inputs, labels)
        assert names(pairs) == ["c"]
        found = [(path.rpartition("inputs")[-1].rpartition("labels")[-1][1:], reason) for path, reason in pairs.skipped]
        assert [name for name, _ in found] == ["a.png", "a.tif", "b.png", "b.tif"]
        assert all("several inputs are called 'a', also" in reason for _, reason in found[:2])
        assert all("several labels are called 'b', also" in reason for _, reason in found[2:])

    def test_labels_without_input_and_unknown_formats(self, folders, gray):
        inputs, labels = folders
        save(inputs / "a.png", gray())
        save(labels / "b b.png", gray())
        write(labels / "read me.txt", "hello")
        pairs = read_pairs(inputs, labels)
        assert names(pairs) == ["a"]
        assert pairs[0].label is None
        assert skipped(pairs) == {
            "b b.png": "no input is called 'b b'",
            "read me.txt": "no format is known by the suffix '.txt'",
        }

    @pytest.mark.parametrize("inner", ["labels", "inputs"])
    def test_one_folder_inside_the_other(self, tmp_path, gray, inner):
        inputs, labels = (tmp_path / inner if role == inner else tmp_path for role in ("inputs", "labels"))
        save(inputs / "a.png", gray())
        save(labels / "a.tif", gray())
        for places in ((inputs, labels), (inputs, labels / ".." / labels.name)):
            pairs = read_pairs(*places)
            assert names(pairs) == ["a"]
            assert pairs[0].label is not None
            assert not pairs.skipped
        table = write(inputs / "all.csv", "name,row,col\na.png,1,1\n")
        assert "all" not in names(read_pairs(inputs, table))

    def test_one_file(self, folders, gray):
        inputs, labels = folders
        of_input, of_label = save(inputs / "photo.png", gray()), save(labels / "mask.tif", gray())
        (example,) = read_pairs(inputs / "photo.png", labels / "mask.tif").examples()
        assert example.name == "photo"
        np.testing.assert_array_equal(example.input[..., 0], of_input)
        np.testing.assert_array_equal(example.label[..., 0], of_label)
        (example,) = read_pairs(inputs / "photo.png").examples()
        assert example.label is None

    def test_palettes_are_colours_in_inputs_and_classes_in_labels(self, folders):
        inputs, labels = folders
        image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8)).convert("P")
        image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
        for folder in folders:
            folder.mkdir()
            image.save(folder / "a.png")
        (example,) = read_pairs(inputs, labels).examples()
        assert example.input[1, 0].tolist() == [70, 80, 90]
        assert example.label[..., 0].tolist() == [[0, 1], [2, 1]]


class TestMismatch:
    def test_sizes(self, folders, gray):
        inputs, labels = folders
        for name, shape in {"same": (8, 9), "larger": (12, 13), "smaller": (6, 5), "far": (8, 14)}.items():
            save(inputs / f"{name}.png", gray(8, 9))
            save(labels / f"{name}.png", gray(*shape))
        pairs = read_pairs(inputs, labels)
        assert [example.name for example in pairs.examples()] == ["same"]
        assert skipped(pairs).keys() == {"larger.png", "smaller.png", "far.png"}
        assert (
            "by more than max_margin=0 pixels a side (label (12, 13, 1), input (8, 9, 1))"
            in skipped(pairs)["larger.png"]
        )
        pairs = read_pairs(inputs, labels, max_margin=2)
        assert [example.name for example in pairs.examples()] == ["larger", "same", "smaller"]
        assert len(list(read_pairs(inputs, labels, max_margin=3).examples())) == 4

    def test_ranks(self, folders, gray):
        inputs, labels = folders
        save(inputs / "a.tif", gray(4, 8, 9))
        save(labels / "a.png", gray(8, 9))
        pairs = read_pairs(inputs, labels)
        with pytest.raises(BadFileError, match=r"differ in rank \(label \(8, 9, 1\), input \(4, 8, 9, 1\)\).*a\.png"):
            pairs.read(0)

    def test_rank_asked_for(self, folders, gray):
        inputs, labels = folders
        save(inputs / "flat.tif", gray(8, 9))
        save(inputs / "pages.tif", gray(4, 8, 9))
        save(inputs / "plain.npy", gray(8, 9))
        save(labels / "plain.npy", gray(8, 9))
        pairs = read_pairs(inputs, labels, rank=2)
        found = {example.name: example for example in pairs.examples()}
        assert found.keys() == {"flat", "plain"}
        assert found["plain"].input.shape == found["plain"].label.shape == (8, 9, 1)
        assert "3 spatial axes, not 2" in skipped(pairs)["pages.tif"]

    def test_label_arrays_without_a_channel_axis(self, folders, gray):
        inputs, labels = folders
        save(inputs / "a.npy", gray(8, 9, 3))
        save(labels / "a.npy", gray(8, 9))
        assert read_pairs(inputs, labels).read(0).label.shape == (8, 9, 1)


class TestDamage:
    @pytest.fixture
    def damaged(self, folders, gray):
        """Inputs a to e; b and the label of c are cut off, d is empty, e too large."""
        inputs, labels = folders
        for name in "abcde":
            save(inputs / f"{name}.png", gray() if name != "e" else gray(100, 100))
            save(labels / f"{name}.png", gray() if name != "e" else gray(100, 100))
        for path in (inputs / "b.png", labels / "c.png"):
            path.write_bytes(path.read_bytes()[:-40])
        (inputs / "d.png").write_bytes(b"")
        return inputs, labels

    def test_is_skipped_and_listed_once(self, damaged, tmp_path):
        pairs = read_pairs(*damaged, max_pixels=1000)
        assert len(pairs) == 5
        assert not pairs.skipped  # no file has been opened
        for _ in range(2):
            assert [example.name for example in pairs.examples()] == ["a"]
        assert len(pairs.skipped) == 4
        assert all(isinstance(entry, Skipped) for entry in pairs.skipped)
        assert skipped(pairs)["d.png"] == "the file is empty"
        assert "max_pixels=1000" in skipped(pairs)["e.png"]
        assert pairs.skipped[1].path == str(damaged[1] / "c.png")
        path = pairs.write_skipped(tmp_path)
        with open(path, encoding="utf-8", newline="") as stream:
            rows = list(csv.reader(stream))
        assert rows[0] == ["path", "reason"]
        assert rows[1:] == [list(entry) for entry in pairs.skipped]
        assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["skipped.csv"]

    def test_reading_one_raises(self, damaged):
        pairs = read_pairs(*damaged)
        assert pairs.read(0).name == "a"
        with pytest.raises(BadFileError, match=r"cannot be decoded.* Received: path='.*b\.png'. Repair it or leave it"):
            pairs.read(1)
        assert skipped(pairs).keys() == {"b.png"}

    def test_strict_stops_at_the_first(self, damaged, gray):
        pairs = read_pairs(*damaged, strict=True)
        examples = pairs.examples()
        assert next(examples).name == "a"
        with pytest.raises(BadFileError, match=r"b\.png"):
            next(examples)
        save(damaged[1] / "z.png", gray())
        with pytest.raises(BadFileError, match=r"no input is called 'z'"):
            read_pairs(*damaged, strict=True)

    def test_names_that_are_no_unicode(self, folders, tmp_path, gray):
        save(folders[0] / "a.png", gray())
        try:
            write(folders[0] / "b\udce4.png", "")
        except OSError:
            pytest.skip("this file system knows no such names")
        pairs = read_pairs(folders[0])
        assert names(pairs) == ["a"]
        assert "b\\udce4.png,its name is no Unicode text" in pairs.write_skipped(tmp_path).read_text(encoding="utf-8")

    def test_missing_since(self, damaged):
        pairs = read_pairs(*damaged)
        (damaged[0] / "a.png").unlink()
        with pytest.raises(BadFileError, match="FileNotFoundError"):
            pairs.read(0)


class TestPairs:
    @pytest.fixture
    def pairs(self, folders, gray):
        inputs, labels = folders
        for name in "abcd":
            save(inputs / f"{name}.png", gray())
        save(labels / "b.png", gray())
        (inputs / "c.png").write_bytes(b"")
        return read_pairs(inputs, labels)

    def test_slices_and_selections(self, pairs):
        assert isinstance(pairs[1:3], Pairs)
        assert names(pairs[1:3]) == ["b", "c"]
        assert pairs[-1].name == "d"
        labelled = pairs.select(lambda pair: pair.label is not None)
        assert names(labelled) == ["b"]
        assert labelled.read(0).label is not None
        assert repr(pairs) == "Pairs(4 inputs, 1 with labels, 0 files skipped)"

    def test_they_share_what_is_skipped_and_strict(self, pairs):
        assert len(list(pairs[2:].select(lambda pair: True).examples())) == 1
        assert skipped(pairs).keys() == {"c.png"}
        strict = read_pairs(pairs[0].input.path.parent, strict=True)
        with pytest.raises(BadFileError):
            list(strict[1:].select(lambda pair: True).examples())

    def test_they_pass_to_another_process(self, pairs):
        found = pickle.loads(pickle.dumps(pairs))
        np.testing.assert_array_equal(found.read(1).label, pairs.read(1).label)


class TestListings:
    @pytest.fixture
    def place(self, tmp_path, gray):
        for name in ("in put/a ä.png", "in put/b.png", "b mask.tif"):
            save(tmp_path / name, gray())
        return tmp_path

    @pytest.mark.parametrize("separator", [",", ";", "\t"])
    def test_csv(self, place, separator):
        rows = [["input", "Label", "more"], ["in put/a ä.png", "", "x"], ["in put/b.png", "b mask.tif", "y"]]
        path = write(place / "list.csv", "\ufeff" + "\n".join(separator.join(row) for row in rows))
        pairs = read_pairs(path)
        assert names(pairs) == ["in put/a ä", "in put/b"]
        assert [example.label is None for example in pairs.examples()] == [True, False]

    def test_parquet(self, place):
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        table = {"input": ["in put/a ä.png", "in put/b.png"], "label": [None, "b mask.tif"], "name": ["first", "2"]}
        parquet.write_table(pyarrow.table(table), place / "list.parquet")
        pairs = read_pairs(place / "list.parquet")
        assert names(pairs) == ["first", "2"]
        assert [example.label is None for example in pairs.examples()] == [True, False]

    def test_missing_and_repeated(self, place):
        rows = [
            "input,label,name",
            "in put/b.png,,x",
            "gone.png,,y",
            "in put/b.png,b mask.tif,x",
            "in put/b.png,c.png,z",
        ]
        pairs = read_pairs(write(place / "list.csv", "\n".join(rows)))
        assert names(pairs) == ["x"]
        assert skipped(pairs) == {
            "gone.png": "there is no such file",
            "c.png": "there is no such file",
            "list.csv: row 3": "several rows are called 'x'; name them in the column `name`",
        }

    def test_names_stay_inside_a_folder(self, place):
        rows = ["input,name", f"{place}/b mask.tif,", "list/../in put/b.png,", "b mask.tif,../../up/a"]
        (place / "list").mkdir()
        pairs = read_pairs(write(place / "list.csv", "\n".join(rows)))
        assert names(pairs) == [str(place / "b mask")[1:], "list/in put/b", "up/a"]
        assert len(list(pairs.examples())) == 3

    def test_a_row_without_input(self, place):
        pairs = read_pairs(write(place / "list.csv", "input,label\n,b mask.tif\nin put/b.png,\n"))
        assert names(pairs) == ["in put/b"]
        assert skipped(pairs) == {"list.csv: row 1": "it names no input"}

    def test_damaged(self, place):
        with pytest.raises(ValueError, match=r"must have the column `input`. Received: inputs=.*list\.csv"):
            read_pairs(write(place / "list.csv", "image,label\na,b\n"))
        with pytest.raises(BadFileError, match=r"row 1 has not as many cells.*list\.csv"):
            read_pairs(write(place / "list.csv", "input,label\na\n"))
        with pytest.raises(ValueError, match="`labels` must be left out: the listing has"):
            read_pairs(write(place / "list.csv", "input\nin put/b.png\n"), place)


class TestArchives:
    def test_samples(self, tmp_path, rng):
        inputs = rng.normal(size=(3, 8, 9, 2))
        labels = rng.integers(0, 5, (3, 8, 9))
        np.savez_compressed(tmp_path / "set.npz", inputs=inputs, labels=labels, names=["a", "b ö", "c"])
        pairs = read_pairs(tmp_path / "set.npz")
        assert names(pairs) == ["a", "b ö", "c"]
        for index, example in enumerate(pairs.examples()):
            np.testing.assert_array_equal(example.input, inputs[index].astype(np.float32))
            np.testing.assert_array_equal(example.label[..., 0], labels[index])
            assert example.label.dtype == np.int64
            example.input[:] = example.label[:] = 0
        assert pairs.read(1).label.any()  # a sample is the reader's own
        np.savez(tmp_path / "set.npz", inputs=inputs)
        assert names(read_pairs(tmp_path / "set.npz")) == ["000000", "000001", "000002"]
        np.savez(tmp_path / "set.npz", inputs=inputs[..., 0])
        assert read_pairs(tmp_path / "set.npz", rank=2).read(2).input.shape == (8, 9, 1)

    def test_named_arrays(self, tmp_path, gray):
        arrays = {"a": gray(5, 6, 3), "b": gray(7, 8, 3), "c": gray(3, 4, 3)}
        masks = {"a": gray(5, 6), "b": gray(7, 9), "z": gray(2, 2)}
        np.savez(tmp_path / "inputs.npz", **arrays)
        np.savez(tmp_path / "labels.npz", **masks)
        pairs = read_pairs(tmp_path / "inputs.npz", tmp_path / "labels.npz")
        assert names(pairs) == ["a", "b", "c"]
        found = {example.name: example for example in pairs.examples()}
        assert found.keys() == {"a", "c"}
        np.testing.assert_array_equal(found["a"].label[..., 0], masks["a"])
        assert found["c"].label is None
        assert skipped(pairs)["labels.npz: z"] == "no input is called 'z'"
        assert "max_margin" in skipped(pairs)["labels.npz: b"]

    def test_bombs_and_pickles(self, tmp_path):
        np.savez_compressed(tmp_path / "set.npz", inputs=np.zeros((5, 100, 100, 1)))
        pairs = read_pairs(tmp_path / "set.npz", max_pixels=49_999)
        assert list(pairs.examples()) == []
        assert "50000 values, more than max_pixels=49999" in pairs.skipped[0].reason
        np.savez(tmp_path / "set.npz", a=np.array([{}], object))
        assert list(read_pairs(tmp_path / "set.npz").examples()) == []

    def test_counts_that_differ(self, tmp_path):
        np.savez(tmp_path / "set.npz", inputs=np.zeros((3, 8, 1)), labels=np.zeros((2, 8, 1)))
        with pytest.raises(ValueError, match=r"as many labels and names as inputs. Received: .*inputs=3, labels=2"):
            read_pairs(tmp_path / "set.npz")
        np.savez(tmp_path / "set.npz", inputs=np.zeros((2, 8, 1)), names=["a", "a"])
        with pytest.raises(ValueError, match="as many labels and names"):
            read_pairs(tmp_path / "set.npz")

    def test_a_single_value_holds_no_samples(self, tmp_path):
        np.savez(tmp_path / "set.npz", inputs=np.float32(3))
        with pytest.raises(ValueError, match=r"a file that can be read.*set\.npz: inputs', reason='it is a sing"):
            read_pairs(tmp_path / "set.npz")
        with pytest.raises(BadFileError, match=r"set\.npz: inputs"):
            read_pairs(tmp_path / "set.npz", strict=True)

    def test_damaged(self, tmp_path):
        write(tmp_path / "set.npz", "no archive")
        with pytest.raises(BadFileError, match=r"BadZipFile.*set\.npz"):
            read_pairs(tmp_path / "set.npz")


class TestPositions:
    def test_one_file_for_each_input(self, folders, gray):
        inputs, labels = folders
        for name in ("a", "b", "c"):
            save(inputs / f"{name}.png", gray(8, 9))
        write(labels / "a.csv", "x,y,class\n3,1,2\n")
        content = {"type": "Point", "coordinates": [3.5, 1.5]}
        write(labels / "b.geojson", json.dumps([{"type": "Feature", "geometry": content}]))
        save(labels / "c.png", gray(8, 9))
        pairs = read_pairs(inputs, labels, positions={"radius": 1})
        first, second, third = pairs.examples()
        cross = {(0, 3), (1, 2), (1, 3), (1, 4), (2, 3)}
        assert {tuple(index[:2]) for index in np.argwhere(first.label == 2).tolist()} == cross
        assert {tuple(index[:2]) for index in np.argwhere(second.label == 1).tolist()} == cross
        assert first.label.dtype == np.int32
        assert third.label.dtype == np.uint8

    def test_coco_for_all(self, folders, gray):
        inputs, labels = folders
        for name in ("a ä", "sub/b", "c", "large"):
            save(inputs / f"{name}.png", gray(6, 8))
        sizes = {
            "a ä.jpg": (6, 8),
            "train/sub/b.png": (6, 8),
            "sub/b.png": (6, 8),
            "x/c.png": (6, 8),
            "large.png": (12, 16),
        }
        content = {
            "images": [
                {"id": number, "file_name": name, "height": height, "width": width}
                for number, (name, (height, width)) in enumerate(sizes.items())
            ],
            "annotations": [
                {"image_id": 0, "category_id": 5, "bbox": [1, 2, 3, 2]},
                {"image_id": 0, "category_id": 6, "bbox": [0, 0, 1, 1]},
            ],
            "categories": [{"id": 5, "name": "cell"}, {"id": 6, "name": "dust"}],
        }
        path = write(labels / "all.json", json.dumps(content))
        pairs = read_pairs(inputs, path, positions={"classes": ("dust", "cell")})
        found = {example.name: example.label for example in pairs.examples()}
        expected = np.zeros((6, 8, 1), int)
        expected[2:4, 1:4] = 2
        expected[0, 0] = 1
        np.testing.assert_array_equal(found["a ä"], expected)
        assert not found["sub/b"].any()
        assert not found["c"].any()
        assert found.keys() == {"a ä", "sub/b", "c"}
        reasons = {path.rpartition(": ")[-1]: reason for path, reason in pairs.skipped}
        assert reasons.keys() == {"train/sub/b.png", "large.png"}
        assert "of the size (12, 16), not (6, 8)" in reasons["large.png"]

    def test_a_table_for_all(self, folders, gray):
        inputs, labels = folders
        for name in ("a", "b"):
            save(inputs / f"{name}.png", gray())
        path = write(labels / "all.csv", "name,row,col\na.png,1,1\na.png,5,5\n")
        pairs = read_pairs(inputs, path, positions={"kind": "instances"})
        first, second = pairs.examples()
        assert np.unique(first.label).tolist() == [0, 1, 2]
        assert second.label is None

    def test_recordings_with_intervals_in_seconds(self, folders):
        inputs, labels = folders
        inputs.mkdir()
        soundfile.write(inputs / "word 1.wav", np.zeros(100), 100)
        write(labels / "word 1.csv", "start,end,class\n0.2,0.4,a\n0.6,0.65,b\n")
        options = {"scale": 100, "kind": "masks", "classes": ("a", "b", "c")}
        example = read_pairs(inputs, labels, positions=options).read(0)
        assert example.input.shape == (100, 1)
        assert example.label.shape == (100, 3)
        assert np.flatnonzero(example.label[:, 0]).tolist() == list(range(20, 41))
        assert np.flatnonzero(example.label[:, 1]).tolist() == list(range(60, 66))

    def test_spectra_with_peaks(self, folders):
        inputs, labels = folders
        write(inputs / "a.csv", "wavenumber,counts\n" + "\n".join(f"{400 + row},{row}" for row in range(50)))
        write(labels / "a.csv", "position\n12.0\n30.0\n")
        example = read_pairs(inputs, labels, positions={"kind": "heatmap", "radius": 2}).read(0)
        assert example.input[:, 0].tolist() == list(range(50))
        assert example.label.shape == (50, 1)
        assert np.flatnonzero(example.label == 1).tolist() == [12, 30]

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("x,y\n50,60\n", "none of its 1 positions lies inside the input of size (8, 9)"),
            ("x,y,z\n1,1,1\n", "must have the rank of the input"),
            ("x,y\n1,a\n", "could not convert"),
            ("x,y,class\n1,1,cat\n", "class='cat'"),
        ],
    )
    def test_that_do_not_fit(self, folders, gray, text, reason):
        inputs, labels = folders
        save(inputs / "a.png", gray())
        write(labels / "a.csv", text)
        pairs = read_pairs(inputs, labels)
        assert list(pairs.examples()) == []
        assert reason in skipped(pairs)["a.csv"]

    def test_damaged_tables_of_positions(self, folders, gray, monkeypatch):
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        inputs, labels = folders
        for name in ("a", "b", "c"):
            save(inputs / f"{name}.png", gray())
        write(labels / "a.csv", "row,col\n2,2\n")
        (labels / "b.parquet").write_bytes(b"no table")
        parquet.write_table(pyarrow.table({"row": [2.0] * 5, "col": [2.0] * 5}), labels / "c.parquet")
        pairs = read_pairs(inputs, labels)
        assert [pair.label is None for pair in pairs] == [False, True, False]
        assert len(list(pairs.examples())) == 3
        assert "cannot be decoded" in skipped(pairs)["b.parquet"]
        with pytest.raises(BadFileError, match=r"b\.parquet"):
            read_pairs(inputs, labels, strict=True)
        monkeypatch.setattr(tables, "MAX_CELLS", 9)
        monkeypatch.setattr(parquet, "read_table", pytest.fail)
        assert len(list(pairs.examples())) == 2
        assert "10 cells, more than tfalign.data.tables.MAX_CELLS=9" in skipped(pairs)["c.parquet"]

    def test_damaged_for_all(self, folders, gray):
        inputs, labels = folders
        save(inputs / "a.png", gray())
        with pytest.raises(BadFileError, match=r"JSONDecodeError.*all\.json"):
            read_pairs(inputs, write(labels / "all.json", "{"))


class TestRecipes:
    def test_label_is_computed_from_the_input(self, folders, rng):
        inputs, _ = folders
        image = np.where(rng.random((8, 9)) > 0.5, 200, 20).astype(np.uint8)
        save(inputs / "a.png", image)
        (example,) = read_pairs(inputs, recipe="threshold").examples()
        np.testing.assert_array_equal(example.label[..., 0], image == 200)
        (example,) = read_pairs(inputs, recipe={"name": "threshold", "above": False}).examples()
        np.testing.assert_array_equal(example.label[..., 0], image == 20)
        (example,) = read_pairs(inputs, recipe=lambda image: image[..., 0] / 2).examples()
        assert example.label.shape == (8, 9, 1)
        assert example.label.dtype == np.float32

    def test_inputs_that_do_not_fit_it(self, folders, gray):
        inputs, _ = folders
        save(inputs / "gray.png", gray())
        save(inputs / "color.png", gray(8, 9, 3))
        pairs = read_pairs(inputs, recipe="stain")
        assert [example.name for example in pairs.examples()] == ["color"]
        assert "colour picture" in skipped(pairs)["gray.png"]
        pairs = read_pairs(inputs, recipe={"name": "threshold", "channel": 2})
        assert [example.name for example in pairs.examples()] == ["color"]
        assert "the recipe does not fit it: index 2 is out of bounds" in skipped(pairs)["gray.png"]

    def test_instead_of_labels(self, folders, gray):
        inputs, _ = folders
        save(inputs / "a.png", gray())
        with pytest.raises(ValueError, match="`recipe` stands for `labels`"):
            read_pairs(inputs, inputs, recipe="stain")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"rank": 4}, ValueError, "rank=4"),
        ({"max_margin": -1}, ValueError, "max_margin=-1"),
        ({"max_margin": 1.5}, TypeError, "max_margin=1.5"),
        ({"max_pixels": 0}, ValueError, "max_pixels=0"),
        ({"slide_level": -1}, ValueError, "slide_level=-1"),
        ({"slide_tile": 0}, ValueError, "slide_tile=0"),
        ({"positions": {"kind": "x"}}, ValueError, "kind='x'"),
        ({"positions": {"color": "x"}}, TypeError, "color"),
        ({"recipe": "x"}, ValueError, "recipe='x'"),
    ],
)
def test_bad_options(folders, gray, options, error, match):
    save(folders[0] / "a.png", gray())
    with pytest.raises(error, match=match):
        read_pairs(folders[0], **options)


def test_nothing_to_read(tmp_path):
    with pytest.raises(ValueError, match=r"`inputs` must be a file or a folder. Received: inputs='.*gone'"):
        read_pairs(tmp_path / "gone")
    with pytest.raises(ValueError, match="`inputs` must hold a file that can be read"):
        read_pairs(tmp_path)
    write(tmp_path / "a.txt", "")
    with pytest.raises(ValueError, match=r"skipped=\[Skipped\(path='.*a\.txt'"):
        read_pairs(tmp_path)
