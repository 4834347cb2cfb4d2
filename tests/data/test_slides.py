import json

import numpy as np
import pytest
import tifffile

from tfalign.data import pipeline, read_pairs, slides
from tfalign.data.formats import BadFileError

pytest.importorskip("openslide")


def write_pyramid(path, array, *, levels=2):
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            options = {"subfiletype": 1} if level else {}
            writer.write(array[:: 2**level, :: 2**level], photometric="rgb", tile=(64, 64), **options)
    return path


@pytest.fixture
def picture(rng):
    return rng.integers(0, 256, (200, 300, 3), dtype=np.uint8)


@pytest.mark.parametrize("level", [0, 1])
def test_tiles_put_together_are_the_level(tmp_path, picture, level):
    write_pyramid(tmp_path / "Schnitt ä.tif", picture)
    pairs = read_pairs(tmp_path, slide_level=level, slide_tile=64)
    expected = picture[:: 2**level, :: 2**level]
    found = np.zeros_like(expected)
    for pair, example in zip(pairs, pairs.examples()):
        (row, col), (rows, cols) = pair.input.origin, pair.input.shape
        assert example.name == f"Schnitt ä_{row:06d}_{col:06d}"
        assert example.input.shape == (rows, cols, 3)
        found[row : row + rows, col : col + cols] = example.input
    np.testing.assert_array_equal(found, expected)
    assert len(pairs) == {0: 4 * 5, 1: 2 * 3}[level]


def test_a_level_as_one(tmp_path, picture):
    write_pyramid(tmp_path / "a.tif", picture)
    (example,) = read_pairs(tmp_path, slide_level=1).examples()
    assert example.name == "a"
    np.testing.assert_array_equal(example.input, picture[::2, ::2])
    (example,) = read_pairs(tmp_path).examples()
    np.testing.assert_array_equal(example.input, picture)


def test_a_slide_as_label(tmp_path, picture):
    for name, array in {"inputs": picture, "labels": 255 - picture}.items():
        (tmp_path / name).mkdir()
        write_pyramid(tmp_path / name / "a.tif", array)
    pairs = read_pairs(tmp_path / "inputs", tmp_path / "labels", slide_tile=128)
    for example in pairs.examples():
        np.testing.assert_array_equal(example.label, 255 - example.input)
    write_pyramid(tmp_path / "labels" / "a.tif", picture[:100])
    with pytest.raises(BadFileError, match="not of the size of its slide"):
        read_pairs(tmp_path / "inputs", tmp_path / "labels", slide_tile=128, strict=True)


def test_a_tiled_slide_needs_a_label_that_has_parts(tmp_path, picture):
    for name in ("inputs", "labels"):
        (tmp_path / name).mkdir()
    write_pyramid(tmp_path / "inputs" / "a.tif", picture)
    np.save(tmp_path / "labels" / "a.npy", picture)
    (example,) = read_pairs(tmp_path / "inputs", tmp_path / "labels", slide_level=0).examples()
    np.testing.assert_array_equal(example.label, picture)
    with pytest.raises(BadFileError, match=r"must be a slide or positions.*a\.npy"):
        read_pairs(tmp_path / "inputs", tmp_path / "labels", slide_tile=128, strict=True)


@pytest.mark.parametrize("level", [0, 1])
def test_positions_are_those_of_level_0(tmp_path, picture, level):
    for name in ("inputs", "labels"):
        (tmp_path / name).mkdir()
    write_pyramid(tmp_path / "inputs" / "a.tif", picture)
    ring = [[61, 41], [141, 41], [141, 121], [61, 121], [61, 41]]
    content = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
    (tmp_path / "labels" / "a.geojson").write_text(json.dumps(content))
    pairs = read_pairs(tmp_path / "inputs", tmp_path / "labels", slide_level=level, slide_tile=64)
    found = np.zeros(tuple(size // 2**level for size in picture.shape[:2]), int)
    for pair, example in zip(pairs, pairs.examples()):
        (row, col), (rows, cols) = pair.input.origin, pair.input.shape
        found[row : row + rows, col : col + cols] = example.label[..., 0]
    rows, cols = ((np.arange(size) + 0.5) * 2**level for size in found.shape)  # the pixels' centres on level 0
    inside = ((rows >= 41) & (rows <= 121))[:, np.newaxis] & (cols >= 61) & (cols <= 141)
    np.testing.assert_array_equal(found, inside)
    assert not pairs.skipped


@pytest.mark.parametrize("kind", ["classes", "heatmap"])
def test_tiles_show_what_begins_beyond_them(tmp_path, picture, kind):
    for name in ("inputs", "labels"):
        (tmp_path / name).mkdir()
    write_pyramid(tmp_path / "inputs" / "a.tif", picture)
    (tmp_path / "labels" / "a.csv").write_text("x,y\n62.5,70\n130,63\n")
    places = tmp_path / "inputs", tmp_path / "labels"
    (whole,) = read_pairs(*places, slide_level=0, positions={"kind": kind, "radius": 5}).examples()
    pairs = read_pairs(*places, slide_tile=64, positions={"kind": kind, "radius": 5})
    for pair, example in zip(pairs, pairs.examples()):
        (row, col), (rows, cols) = pair.input.origin, pair.input.shape
        np.testing.assert_allclose(example.label, whole.label[row : row + rows, col : col + cols], atol=4e-4)
    assert [len(pair.label.marks) for pair in pairs] != [2] * len(pairs)


def test_damaged_positions_of_a_slide(tmp_path, picture):
    for name in ("inputs", "labels"):
        (tmp_path / name).mkdir()
    for name in ("a", "b", "c"):
        write_pyramid(tmp_path / "inputs" / f"{name}.tif", picture)
    (tmp_path / "labels" / "a.csv").write_text("x,y\n1,one\n")
    (tmp_path / "labels" / "b.csv").write_text("x,y,z\n1,1,1\n")
    pairs = read_pairs(tmp_path / "inputs", tmp_path / "labels", slide_tile=256)
    assert {pair.name.partition("_")[0] for pair in pairs} == {"c"}
    assert [entry.path[-5:] for entry in pairs.skipped] == ["a.csv", "b.csv"]


def test_what_cannot_be_read(tmp_path, picture):
    write_pyramid(tmp_path / "a.tif", picture)
    (tmp_path / "b.svs").write_bytes(b"no slide" * 100)
    pairs = read_pairs(tmp_path, slide_tile=128, max_pixels=128 * 128 * 3)
    assert len(list(pairs.examples())) == 6
    (skipped,) = pairs.skipped
    assert skipped.path.endswith("b.svs")
    with pytest.raises(ValueError, match="2 levels, none is slide_level=5"):
        read_pairs(tmp_path / "a.tif", slide_level=5)
    with pytest.raises(BadFileError, match="max_pixels=1000"):
        read_pairs(tmp_path / "a.tif", slide_level=1, max_pixels=1000).read(0)


def test_the_tiles_of_a_slide_stay_in_one_set(tmp_path, picture):
    for name in ("inputs", "labels"):
        (tmp_path / name).mkdir()
        for slide in "abcd":
            write_pyramid(tmp_path / name / f"{slide}.tif", picture)
    pairs = read_pairs(tmp_path / "inputs", tmp_path / "labels", slide_tile=128)
    assert len(pairs) == 4 * 6
    cutting = pipeline.Cutting(patch_size=64, fractions=(0.5, 0.25, 0.25))
    cache = pipeline.prepare(pairs, tmp_path / "cache", cutting, workers=0)
    sets = {}
    for name in cache.shards:
        for *_, where in pipeline.dataset(cache, name, batch_size=1, max_blank=1.0, origin=True):
            sets.setdefault(where["name"].numpy()[0].decode()[0], set()).add(name)
    assert sorted(map(sorted, sets.values())) == [["test"], ["train"], ["train"], ["validation"]]
    alone = pairs.select(lambda pair: pair.name.startswith("a"))
    with pytest.raises(ValueError, match=r"3 sets need as many files. Received: files or groups=1.*Split by region"):
        pipeline.prepare(alone, tmp_path / "cache", cutting, workers=0)
    by_tile = pipeline.prepare(alone, tmp_path / "cache", cutting, workers=0, groups=range(6))
    assert all(by_tile.shards.values())


def test_what_the_scanner_did_not_see_is_white(tmp_path, picture):
    write_pyramid(tmp_path / "a.tif", picture)
    outside = slides.Region(tmp_path / "a.tif", 0, 1.0, (190, 290), (20, 20))
    found = outside.read()
    np.testing.assert_array_equal(found[:10, :10], picture[190:, 290:])
    assert (found[10:] == 255).all()


def test_a_whole_picture_stays_what_it_is(tmp_path, picture):
    tifffile.imwrite(tmp_path / "a.tif", picture[..., 0].astype(np.uint16) * 100, tile=(64, 64))
    assert slides.is_slide(tmp_path / "a.tif")
    (example,) = read_pairs(tmp_path).examples()
    assert example.input.dtype == np.uint16
