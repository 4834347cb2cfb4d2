import numpy as np
import pytest
import soundfile
import tifffile
from PIL import Image

from tfalign.data import formats, writers


def picture(rng, shape, dtype):
    return rng.integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("a.png", (5, 6, 1), np.uint8),
        ("a.png", (5, 6, 3), np.uint8),
        ("a.png", (5, 6, 1), np.uint16),
        ("a.png", (5, 6, 3), np.uint16),
        ("a.bmp", (5, 6, 3), np.uint8),
        ("a.tif", (5, 6, 1), np.uint16),
        ("a.TIFF", (5, 6, 3), np.uint8),
        ("a.tif", (4, 5, 6, 1), np.int32),
        ("a.tif", (4, 5, 6, 2), np.uint8),
        ("a.npy", (5, 6, 2), np.int64),
        ("a.npz", (5, 6, 2), np.int16),
    ],
)
def test_integers_come_back_as_they_were(rng, tmp_path, name, shape, dtype):
    array = picture(rng, shape, dtype)
    path = writers.write_like(tmp_path / name, tmp_path / "new" / "é a", array)
    assert path == tmp_path / "new" / f"é a{(tmp_path / name).suffix.lower()}"
    found = formats.read(path)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, array)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["a.tif", "a.npy"])
def test_floats_keep_their_nan(rng, tmp_path, name):
    array = rng.standard_normal((5, 6, 2)).astype(np.float32)
    array[0] = np.nan
    found = formats.read(writers.write_like(tmp_path / name, tmp_path / "new", array))
    np.testing.assert_array_equal(found, array)


def test_jpeg_keeps_what_it_can(rng, tmp_path):
    array = np.linspace(0, 255, 64 * 64).reshape(64, 64, 1).astype(np.uint8)
    found = formats.read(writers.write_like("a.jpg", tmp_path / "new", array))
    assert np.max(np.abs(found.astype(int) - array)) < 8


@pytest.mark.parametrize(("name", "subtype"), [("a.wav", "PCM_24"), ("a.flac", "PCM_16")])
def test_a_recording_keeps_rate_and_depth(rng, tmp_path, name, subtype):
    sound = rng.uniform(-0.9, 0.9, (300, 2))
    soundfile.write(tmp_path / name, sound, 12345, subtype=subtype)
    array = formats.read(tmp_path / name)
    array[:4] = np.nan
    path = writers.write_like(tmp_path / name, tmp_path / "new", array)
    known = soundfile.info(path)
    assert (known.samplerate, known.subtype) == (12345, subtype)
    np.testing.assert_allclose(formats.read(path), np.nan_to_num(array), atol=2**-15)


@pytest.mark.parametrize(
    "text",
    [
        "wavelength (nm),a,b\n400,1.5,2\n401,2.5,3\n402,-1,4\n",
        "wavelength;a;b\n400,5;1,5;2,25\n401;2,5;3\n402;1;4\n",
        "1,2\n3,4\n5,6\n",
    ],
)
def test_a_spectrum_keeps_its_headings_and_axis(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    array = formats.read(tmp_path / "a.csv")
    same = writers.write_like(tmp_path / "a.csv", tmp_path / "same", array)
    assert formats.read(same).tolist() == array.tolist()
    moved = writers.write_like(tmp_path / "a.csv", tmp_path / "moved", array[::-1])
    assert formats.read(moved).tolist() == array[::-1].tolist()
    if text.startswith("w"):
        assert moved.read_text().splitlines()[0] == text.splitlines()[0]
        assert moved.read_text().splitlines()[1].startswith(text.splitlines()[1][:3])
    with pytest.raises(ValueError, match="rows"):
        writers.write_like(tmp_path / "a.csv", tmp_path / "short", array[1:])


def test_what_no_picture_can_hold_is_refused_and_leaves_nothing(rng, tmp_path):
    with pytest.raises(ValueError, match=r"uint8 or uint16.*float32"):
        writers.write_like("a.png", tmp_path / "new", rng.random((4, 4, 1)).astype(np.float32))
    assert list(tmp_path.iterdir()) == []


def test_without_an_original_it_is_an_array(rng, tmp_path):
    path = writers.write_like(None, tmp_path / "a.b", np.ones((3, 3, 1), np.float32))
    assert path.name == "a.b.npy"


def test_a_volume_says_which_axis_is_which(rng, tmp_path):
    path = writers.write_like("a.tif", tmp_path / "new", picture(rng, (4, 5, 6, 1), np.uint8))
    with tifffile.TiffFile(path) as tiff:
        assert tiff.series[0].axes == "ZYX"
        assert len(tiff.pages) == 4


def test_comments_of_a_spectrum_stay(tmp_path):
    text = "# instrument 7\nwavenumber;counts\n400;1,5\n# a gap\n401;2,5\n"
    (tmp_path / "a.csv").write_text(text)
    array = formats.read(tmp_path / "a.csv")
    moved = writers.write_like(tmp_path / "a.csv", tmp_path / "moved", array[::-1]).read_text()
    assert moved == "# instrument 7\n# a gap\nwavenumber;counts\n400;2,5\n401;1,5\n"


@pytest.mark.parametrize(
    ("mode", "suffix"), [("P", ".png"), ("1", ".png"), ("LA", ".png"), ("RGBA", ".png"), ("P", ".bmp"), ("1", ".bmp")]
)
def test_a_picture_keeps_its_mode(rng, tmp_path, mode, suffix):
    values = rng.integers(0, 2, (6, 5), dtype=np.uint8)
    original = Image.fromarray(values if mode == "P" else 255 * values).convert(mode)
    if mode == "P":
        original = Image.fromarray(values)
        original.putpalette([0, 0, 0, 255, 0, 0])
    elif mode != "1":
        original.putalpha(Image.fromarray(rng.integers(0, 256, (6, 5), dtype=np.uint8)))
    original.save(tmp_path / f"a{suffix}")
    array = formats.read(tmp_path / f"a{suffix}", indexed=True)[::-1]
    path = writers.write_like(tmp_path / f"a{suffix}", tmp_path / "new", array)
    np.testing.assert_array_equal(formats.read(path, indexed=True), array)
    with Image.open(path) as found, Image.open(tmp_path / f"a{suffix}") as like:
        assert found.mode == like.mode == mode
        assert found.getpalette() == like.getpalette()
        if mode in ("LA", "RGBA"):
            np.testing.assert_array_equal(found.getchannel("A"), like.getchannel("A"))


def test_what_single_bits_cannot_hold_makes_bytes(tmp_path):
    Image.fromarray(np.eye(4) > 0).save(tmp_path / "a.png")
    array = np.uint8([[[0], [1], [255]]])
    path = writers.write_like(tmp_path / "a.png", tmp_path / "new", array)
    np.testing.assert_array_equal(formats.read(path), array)


def test_a_palette_becomes_its_indices(tmp_path):
    indexed = Image.fromarray(np.uint8([[0, 1], [2, 1]]), mode="P")
    indexed.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    indexed.save(tmp_path / "a.png")
    array = formats.read(tmp_path / "a.png", indexed=True)
    path = writers.write_like(tmp_path / "a.png", tmp_path / "new", array)
    np.testing.assert_array_equal(formats.read(path, indexed=True), array)
