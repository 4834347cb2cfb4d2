import pickle
import struct
import zipfile
import zlib

import numpy as np
import pytest
import soundfile
import tensorflow as tf
import tifffile
from PIL import Image

from tfalign.data import formats
from tfalign.data.formats import BadFileError, read


@pytest.fixture
def gray(rng):
    return rng.integers(0, 256, (13, 17, 1), dtype=np.uint8)


@pytest.fixture
def color(rng):
    return rng.integers(0, 256, (13, 17, 3), dtype=np.uint8)


def same(found, expected):
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def png(width, height, *, depth=8, color_type=0, data=b""):
    """A PNG file, its header as told."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


class TestPictures:
    @pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".tif", ".tiff"])
    def test_8_bits(self, tmp_path, gray, color, suffix):
        same(read(save(tmp_path / f"gray{suffix}", gray[..., 0])), gray)
        same(read(save(tmp_path / f"color{suffix}", color)), color)

    def test_jpeg(self, tmp_path):
        smooth = np.add.outer(np.arange(32), np.arange(40)).astype(np.uint8)
        found = read(save(tmp_path / "a.jpg", smooth, quality=95))
        assert found.shape == (32, 40, 1)
        np.testing.assert_allclose(found[..., 0], smooth, atol=3)
        found = read(save(tmp_path / "b.jpeg", np.dstack([smooth, smooth, smooth]), quality=95))
        np.testing.assert_allclose(found, np.dstack([smooth] * 3), atol=3)

    def test_16_bits(self, tmp_path, rng):
        deep = rng.integers(0, 65536, (9, 7, 1), dtype=np.uint16)
        same(read(save(tmp_path / "deep.png", deep[..., 0])), deep)
        # Pillow alone would cut these to 8 bits.
        for channels in (2, 3, 4):
            deep = rng.integers(0, 65536, (9, 7, channels), dtype=np.uint16)
            tf.io.write_file(str(tmp_path / "color.png"), tf.io.encode_png(deep))
            same(read(tmp_path / "color.png"), deep[..., : 1 if channels == 2 else 3])

    def test_1_bit_becomes_0_and_1(self, tmp_path, gray):
        for suffix in (".png", ".tif"):
            same(read(save(tmp_path / f"a{suffix}", gray[..., 0] > 128)), (gray > 128).astype(np.uint8))

    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    def test_palette_is_colour_in_inputs_and_indices_in_labels(self, tmp_path, suffix):
        indices = np.array([[0, 1], [2, 1]], np.uint8)
        image = Image.fromarray(indices).convert("P")
        image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
        image.save(tmp_path / f"a{suffix}")
        same(read(tmp_path / f"a{suffix}", indexed=True), indices[..., np.newaxis])
        palette = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], np.uint8)
        same(read(tmp_path / f"a{suffix}"), palette[indices])

    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    def test_alpha_is_left_out(self, tmp_path, color, gray, suffix):
        alpha = gray[..., 0]
        same(read(save(tmp_path / f"a{suffix}", np.dstack([color, alpha]))), color)
        Image.merge("LA", [Image.fromarray(color[..., 0]), Image.fromarray(alpha)]).save(tmp_path / f"b{suffix}")
        same(read(tmp_path / f"b{suffix}"), color[..., :1])

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_orientation_is_that_of_a_viewer(self, tmp_path, suffix, orientation):
        """Pillow's own turning is the reference."""
        picture = np.zeros((16, 24), np.uint8)
        picture[:8, :8] = 200
        picture[:8, 16:] = 100
        options = {"compression": "tiff_deflate"} if suffix == ".tif" else {}
        image = Image.fromarray(picture)
        exif = image.getexif()
        exif[274] = orientation
        image.save(tmp_path / f"a{suffix}", exif=exif, **options)
        method = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(orientation)
        expected = image if method is None else image.transpose(Image.Transpose(method))
        np.testing.assert_allclose(read(tmp_path / f"a{suffix}")[..., 0], np.array(expected), atol=4)

    def test_cmyk_becomes_rgb(self, tmp_path, color):
        image = Image.fromarray(color).convert("CMYK")
        image.save(tmp_path / "a.jpg")
        assert read(tmp_path / "a.jpg").shape == (13, 17, 3)

    def test_animation_is_refused(self, tmp_path, gray):
        frames = [Image.fromarray(gray[..., 0]), Image.fromarray(255 - gray[..., 0])]
        frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
        with pytest.raises(BadFileError, match=r"an animation of 2 pictures"):
            read(tmp_path / "a.png")


class TestTiff:
    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int16", "int32", "float32"])
    @pytest.mark.parametrize("byteorder", ["<", ">"])
    def test_types_and_byte_orders(self, tmp_path, rng, dtype, byteorder):
        array = (rng.normal(size=(9, 7, 1)) * 50 + 100).astype(dtype)
        tifffile.imwrite(tmp_path / "a.tif", array[..., 0], byteorder=byteorder)
        same(read(tmp_path / "a.tif"), array)

    def test_half_and_double_become_float32(self, tmp_path, rng):
        for dtype in ("float16", "float64"):
            array = rng.normal(size=(9, 7)).astype(dtype)
            tifffile.imwrite(tmp_path / "a.tif", array)
            same(read(tmp_path / "a.tif")[..., 0], array.astype(np.float32))

    @pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits", "tiff_lzma"])
    def test_compressions(self, tmp_path, color, compression):
        same(read(save(tmp_path / "a.tif", color, compression=compression)), color)

    def test_jpeg_inside(self, tmp_path):
        smooth = np.dstack([np.add.outer(np.arange(32), np.arange(48)).astype(np.uint8)] * 3)
        np.testing.assert_allclose(read(save(tmp_path / "a.tif", smooth, compression="jpeg")), smooth, atol=4)

    @pytest.mark.parametrize("planarconfig", ["contig", "separate"])
    @pytest.mark.parametrize("tile", [None, (16, 16)])
    def test_rgb_by_pixels_and_by_planes(self, tmp_path, color, planarconfig, tile):
        array = color if planarconfig == "contig" else np.moveaxis(color, -1, 0)
        tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", planarconfig=planarconfig, tile=tile)
        same(read(tmp_path / "a.tif"), color)

    def test_many_pages_are_a_volume(self, tmp_path, rng):
        volume = rng.integers(0, 65536, (5, 9, 7, 1), dtype=np.uint16)
        tifffile.imwrite(tmp_path / "a.tif", volume[..., 0], photometric="minisblack")
        same(read(tmp_path / "a.tif"), volume)
        pages = [Image.fromarray(page[..., 0]) for page in volume]
        pages[0].save(tmp_path / "b.tif", save_all=True, append_images=pages[1:])
        same(read(tmp_path / "b.tif"), volume)

    def test_channels_of_imagej(self, tmp_path, rng):
        stack = rng.integers(0, 65536, (5, 2, 9, 7), dtype=np.uint16)
        tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata={"axes": "ZCYX"}, ome=True)
        same(read(tmp_path / "a.ome.tif"), np.moveaxis(stack, 1, -1))
        tifffile.imwrite(tmp_path / "b.tif", stack, metadata={"axes": "ZCYX"}, imagej=True)
        same(read(tmp_path / "b.tif"), np.moveaxis(stack, 1, -1))
        tifffile.imwrite(tmp_path / "c.tif", stack[0], metadata={"axes": "CYX"}, imagej=True)
        same(read(tmp_path / "c.tif"), np.moveaxis(stack[0], 0, -1))

    def test_white_is_0(self, tmp_path, gray):
        tifffile.imwrite(tmp_path / "a.tif", gray[..., 0], photometric="miniswhite")
        same(read(tmp_path / "a.tif"), 255 - gray)

    def test_spectral_bands_are_no_alpha(self, tmp_path, rng):
        bands = rng.integers(0, 256, (9, 7, 6), dtype=np.uint8)
        options = {"photometric": "minisblack", "planarconfig": "contig"}
        tifffile.imwrite(tmp_path / "a.tif", bands, extrasamples=["unspecified"] * 5, **options)
        same(read(tmp_path / "a.tif"), bands)

    def test_the_finest_level_of_a_pyramid(self, tmp_path, color):
        big = np.tile(color, (4, 4, 1))
        for name, options in {"sub": {"subifds": 1}, "flat": {}}.items():
            with tifffile.TiffWriter(tmp_path / f"{name}.tif") as writer:
                writer.write(big, photometric="rgb", tile=(16, 16), **options)
                writer.write(big[::2, ::2], photometric="rgb", tile=(16, 16), subfiletype=1)
            same(read(tmp_path / f"{name}.tif"), big)

    def test_a_thumbnail_and_a_mask_are_no_pages(self, tmp_path, color, gray):
        with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
            writer.write(color, photometric="rgb")
            writer.write(color[:4, :5], photometric="rgb", subfiletype=1)
            writer.write(gray[..., 0] > 128, photometric="mask", subfiletype=4)
        same(read(tmp_path / "a.tif"), color)

    def test_pages_that_do_not_stack(self, tmp_path, gray):
        with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
            writer.write(gray[..., 0])
            writer.write(gray[:5, :5, 0])
        with pytest.raises(BadFileError, match=r"holds 2 pictures that do not stack.*a\.tif"):
            read(tmp_path / "a.tif")

    def test_pages_in_another_file_that_is_gone(self, tmp_path, gray):
        """A set of OME files names the others."""
        plane = '<TiffData IFD="0" FirstZ="{}" PlaneCount="1"><UUID FileName="{}">urn:uuid:{}</UUID></TiffData>'
        planes = plane.format(0, "a.ome.tif", 1) + plane.format(1, "gone.ome.tif", 2)
        sizes = 'SizeX="17" SizeY="13" SizeZ="2" SizeC="1" SizeT="1"'
        content = (
            '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">'
            f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" {sizes}>'
            f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>'
        )
        tifffile.imwrite(tmp_path / "a.ome.tif", gray[..., 0], description=content, metadata=None)
        with pytest.raises(BadFileError, match="some of its pages are missing"):
            read(tmp_path / "a.ome.tif")

    def test_four_spatial_axes(self, tmp_path):
        array = np.zeros((2, 3, 8, 8), np.uint8)
        tifffile.imwrite(tmp_path / "a.tif", array, metadata={"axes": "TZYX"}, imagej=True)
        with pytest.raises(BadFileError, match="TZYX"):
            read(tmp_path / "a.tif")


class TestRecordings:
    @pytest.mark.parametrize(
        ("suffix", "subtype", "step"),
        [
            (".wav", "PCM_U8", 2**-7),
            (".wav", "PCM_16", 2**-15),
            (".wav", "PCM_24", 2**-23),
            (".wav", "PCM_32", 2**-24),
            (".wav", "FLOAT", 0),
            (".flac", "PCM_16", 2**-15),
            (".flac", "PCM_24", 2**-23),
        ],
    )
    @pytest.mark.parametrize("channels", [1, 2])
    def test_round_trip(self, tmp_path, rng, suffix, subtype, step, channels):
        samples = rng.uniform(-0.9, 0.9, (500, channels)).astype(np.float32)
        soundfile.write(tmp_path / f"a{suffix}", samples, 8000, subtype=subtype)
        found = read(tmp_path / f"a{suffix}")
        assert found.dtype == np.float32
        assert found.shape == (500, channels)
        np.testing.assert_allclose(found, samples, atol=step)

    def test_a_recorder_that_knows_no_length(self, tmp_path, rng):
        soundfile.write(tmp_path / "a.wav", rng.uniform(-1, 1, 100), 8000)
        content = bytearray((tmp_path / "a.wav").read_bytes())
        content[4:8] = content[40:44] = b"\xff" * 4
        (tmp_path / "b.wav").write_bytes(content)
        same(read(tmp_path / "b.wav"), read(tmp_path / "a.wav"))


class TestSpectra:
    @pytest.mark.parametrize(
        "text",
        [
            "1,0.5\n2,0.25\n",
            "a,b\n1,0.5\n2,0.25\n",
            "\ufeff# measured today\na;b\n1;0,5\n2;0,25\n",
            "Wavelength (nm)\ta\tb\n400\t1\t0.5\n401\t2\t0.25\n",
            '"wave number [1/cm]","a","b"\r\n400,"1",0.5\r\n401,2,0.25\r\n',
        ],
    )
    def test_columns_are_channels(self, tmp_path, text):
        (tmp_path / "a.csv").write_text(text, encoding="utf-8")
        same(read(tmp_path / "a.csv"), np.array([[1, 0.5], [2, 0.25]], np.float32))

    def test_another_encoding_and_not_a_number(self, tmp_path):
        (tmp_path / "a.csv").write_bytes("energy (µeV);b\n1;nan\n2;3\n".encode("latin-1"))
        same(read(tmp_path / "a.csv"), np.array([[np.nan], [3]], np.float32))

    def test_an_axis_alone_is_a_channel(self, tmp_path):
        (tmp_path / "a.tsv").write_text("time\n1\n2\n")
        same(read(tmp_path / "a.tsv"), np.array([[1], [2]], np.float32))

    @pytest.mark.parametrize("text", ["a,b\n1,2\n3\n", "a\n1\n\ntwo\n", "only words\n", "\n\n", "# remark\n"])
    def test_damaged(self, tmp_path, text):
        (tmp_path / "a.csv").write_text(text)
        with pytest.raises(BadFileError, match=r"a\.csv"):
            read(tmp_path / "a.csv")


class TestArrays:
    @pytest.mark.parametrize("suffix", [".npy", ".npz"])
    @pytest.mark.parametrize(
        ("dtype", "kept"), [("bool", "uint8"), (">i2", "int16"), ("int64", "int64"), ("float64", "float32")]
    )
    def test_types(self, tmp_path, rng, suffix, dtype, kept):
        array = rng.integers(0, 2, (4, 5, 3)).astype(dtype)
        (np.save if suffix == ".npy" else np.savez_compressed)(tmp_path / f"a{suffix}", array)
        found = read(tmp_path / f"a{suffix}")
        same(found, array.astype(kept))
        assert found.dtype.isnative

    def test_fortran_order(self, tmp_path, rng):
        array = np.asfortranarray(rng.normal(size=(4, 5, 3)).astype(np.float32))
        np.save(tmp_path / "a.npy", array)
        np.savez(tmp_path / "a.npz", array)
        same(read(tmp_path / "a.npy"), array)
        same(read(tmp_path / "a.npz"), array)

    def test_rank_tells_what_the_last_axis_is(self, tmp_path):
        np.save(tmp_path / "a.npy", np.zeros((4, 5)))
        np.save(tmp_path / "b.npy", np.zeros(4))
        assert read(tmp_path / "a.npy").shape == (4, 5)
        assert read(tmp_path / "a.npy", rank=2).shape == (4, 5, 1)
        assert read(tmp_path / "b.npy").shape == (4, 1)

    @pytest.mark.parametrize("shape", [(), (2, 3, 4, 5, 6), (0, 3), (3, 0)])
    def test_shapes_that_are_no_sample(self, tmp_path, shape):
        np.save(tmp_path / "a.npy", np.zeros(shape))
        with pytest.raises(BadFileError, match="its shape"):
            read(tmp_path / "a.npy")

    @pytest.mark.parametrize("array", [np.array(["a", "b"]), np.zeros(3, complex), np.zeros(3, [("x", "f4")])])
    @pytest.mark.parametrize("suffix", [".npy", ".npz"])
    def test_no_real_numbers(self, tmp_path, array, suffix):
        (np.save if suffix == ".npy" else np.savez)(tmp_path / f"a{suffix}", array)
        with pytest.raises(BadFileError, match="it holds"):
            read(tmp_path / f"a{suffix}")

    @pytest.mark.parametrize("suffix", [".npy", ".npz"])
    def test_a_pickle_is_not_opened(self, tmp_path, suffix):
        class Trap:
            def __reduce__(self):
                return (tmp_path / "sprung").touch, ()

        array = np.empty(1, object)
        array[0] = Trap()
        (np.save if suffix == ".npy" else np.savez)(tmp_path / f"a{suffix}", array)
        with pytest.raises(BadFileError, match=r"unpickled|Python objects"):
            read(tmp_path / f"a{suffix}")
        assert not (tmp_path / "sprung").exists()
        (tmp_path / "b.npy").write_bytes(pickle.dumps(Trap()))
        with pytest.raises(BadFileError, match="cannot be decoded"):
            read(tmp_path / "b.npy")
        assert not (tmp_path / "sprung").exists()

    def test_an_archive_of_several_arrays_is_no_sample(self, tmp_path):
        np.savez(tmp_path / "a.npz", a=np.zeros(3), b=np.zeros(3))
        with pytest.raises(BadFileError, match="one array, not 2"):
            read(tmp_path / "a.npz")


class TestDamage:
    @pytest.fixture
    def files(self, tmp_path, rng):
        noise = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
        save(tmp_path / "a.png", noise)
        save(tmp_path / "a.jpg", noise)
        save(tmp_path / "a.bmp", noise)
        tf.io.write_file(str(tmp_path / "deep.png"), tf.io.encode_png(noise.astype(np.uint16) * 257))
        tifffile.imwrite(tmp_path / "a.tif", noise, photometric="rgb", compression="zlib", rowsperstrip=4)
        tifffile.imwrite(tmp_path / "plain.tif", noise, photometric="rgb")
        pages = [Image.fromarray(noise[..., 0])] * 4
        pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:], compression="tiff_lzw")
        soundfile.write(tmp_path / "a.wav", noise.ravel() / 256 - 0.5, 8000)
        soundfile.write(tmp_path / "a.flac", noise.ravel() / 256 - 0.5, 8000)
        np.save(tmp_path / "a.npy", noise)
        np.savez_compressed(tmp_path / "a.npz", noise)
        return sorted(tmp_path.iterdir())

    def test_nothing_cut_off_passes_for_whole(self, files):
        for path in files:
            content, whole = path.read_bytes(), read(path)
            refused = []
            cuts = range(0, len(content), max(1, len(content) // 23))
            for cut in cuts:
                path.write_bytes(content[:cut])
                try:
                    same(read(path), whole)  # what is cut off was not needed, e.g. a checksum
                except BadFileError as error:
                    refused.append(error.path)
            assert len(refused) >= len(cuts) - 1, path
            assert set(refused) == {str(path)}

    def test_another_content_than_the_suffix(self, files):
        for path in files:
            path.write_text("This is a letter.\n" * 20)
            with pytest.raises(BadFileError, match="cannot be decoded"):
                read(path)

    def test_empty(self, files):
        for path in files:
            path.write_bytes(b"")
            with pytest.raises(BadFileError, match=r"the file is empty\. Received: path="):
                read(path)

    def test_a_wrong_checksum_in_an_archive(self, tmp_path):
        np.savez(tmp_path / "a.npz", np.arange(1000))
        content = bytearray((tmp_path / "a.npz").read_bytes())
        content[600] ^= 1
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(BadFileError, match="CRC"):
            read(tmp_path / "a.npz")

    def test_missing_and_unknown(self, tmp_path):
        with pytest.raises(BadFileError, match="FileNotFoundError"):
            read(tmp_path / "a.png")
        with pytest.raises(BadFileError, match=r"no format is known by the suffix '\.doc'"):
            read(tmp_path / "a.doc")

    def test_the_error_survives_a_process_pool(self):
        error = pickle.loads(pickle.dumps(BadFileError("a b.png", "it is green")))
        assert (error.path, error.reason) == ("a b.png", "it is green")
        assert str(error).startswith("A file cannot be used: it is green. Received: path='a b.png'.")


class TestBombs:
    def test_headers_are_believed_before_the_content(self, tmp_path, color):
        (tmp_path / "a.png").write_bytes(png(20000, 12000, color_type=2))
        (tmp_path / "deep.png").write_bytes(png(9000, 9000, depth=16, color_type=6))
        tifffile.imwrite(tmp_path / "a.tif", color, photometric="rgb")
        content = bytearray((tmp_path / "a.tif").read_bytes())
        with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
            for tag in ("ImageWidth", "ImageLength"):
                at = tiff.pages[0].tags[tag].valueoffset
                content[at : at + 4] = struct.pack("<I", 60000)
        (tmp_path / "a.tif").write_bytes(content)
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            header = {"descr": "<f8", "fortran_order": False, "shape": (200000, 200000, 1)}
            with archive.open("a.npy", "w") as stream:
                np.lib.format.write_array_header_1_0(stream, header)
                stream.write(bytes(1000))
        for name in ("a.png", "deep.png", "a.tif", "a.npz"):
            with pytest.raises(BadFileError, match=r"max_pixels|MAX_IMAGE_PIXELS"):
                read(tmp_path / name, max_pixels=2**26)

    def test_max_pixels_counts_channels(self, tmp_path, color):
        samples = np.zeros((100, 2))
        save(tmp_path / "a.png", color)
        tifffile.imwrite(tmp_path / "a.tif", color, photometric="rgb")
        np.save(tmp_path / "a.npy", color)
        np.savez(tmp_path / "a.npz", color)
        soundfile.write(tmp_path / "a.wav", samples, 8000)
        for name in ("a.png", "a.tif", "a.npy", "a.npz"):
            same(read(tmp_path / name, max_pixels=color.size), color)
            with pytest.raises(BadFileError, match=rf"= 663 values, more than max_pixels={color.size - 1}"):
                read(tmp_path / name, max_pixels=color.size - 1)
        assert read(tmp_path / "a.wav", max_pixels=200).shape == (100, 2)
        with pytest.raises(BadFileError, match="100 x 2 = 200 values"):
            read(tmp_path / "a.wav", max_pixels=199)

    def test_a_long_table(self, tmp_path):
        (tmp_path / "a.csv").write_text("1\n" * 1000)
        with pytest.raises(BadFileError, match="max_pixels=99"):
            read(tmp_path / "a.csv", max_pixels=99)

    def test_pillows_guard_stays(self, tmp_path, monkeypatch):
        (tmp_path / "a.png").write_bytes(png(100, 100))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(BadFileError, match="MAX_IMAGE_PIXELS for this size"):
            read(tmp_path / "a.png")

    def test_tiles_larger_than_the_picture(self, tmp_path, gray):
        tifffile.imwrite(tmp_path / "a.tif", gray[..., 0], tile=(1024, 1024), compression="zlib")
        with pytest.raises(BadFileError, match=r"1024 x 1024"):
            read(tmp_path / "a.tif", max_pixels=1000)

    def test_a_strip_that_unpacks_to_more(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), np.uint8), compression="zlib")
        content = bytearray((tmp_path / "a.tif").read_bytes())
        bomb = zlib.compress(bytes(20_000_000), 9)
        with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
            tags = tiff.pages[0].tags
            for tag, value in (("StripOffsets", len(content)), ("StripByteCounts", len(bomb))):
                at, code = tags[tag].valueoffset, "<I" if tags[tag].dtype == 4 else "<H"
                content[at : at + struct.calcsize(code)] = struct.pack(code, value)
        (tmp_path / "a.tif").write_bytes(content + bomb)
        with pytest.raises(BadFileError, match="cannot be decoded"):
            read(tmp_path / "a.tif")

    def test_an_array_in_an_archive_longer_than_its_header(self, tmp_path):
        with (
            zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("a.npy", "w") as stream,
        ):
            np.lib.format.write_array(stream, np.zeros(10))
            stream.write(bytes(10_000_000))
        with pytest.raises(BadFileError, match="more than its header"):
            read(tmp_path / "a.npz")


def test_names_with_spaces_and_accents(tmp_path, color):
    folder = tmp_path / "Ordner mit ö und 空"
    folder.mkdir()
    for suffix in (".png", ".tif"):
        same(read(save(folder / f"é ß 漢{suffix}", color)), color)
    np.save(folder / "é ß 漢.npy", color)
    same(read(folder / "é ß 漢.npy"), color)
    soundfile.write(folder / "é ß 漢.flac", np.zeros(10), 8000)
    assert read(str(folder / "é ß 漢.flac")).shape == (10, 1)


def test_every_suffix_is_told():
    with pytest.raises(BadFileError, match=r"only \.png \.jpg .* \.npz"):
        read("a.xyz")
    assert formats.MAX_PIXELS == 2**29
