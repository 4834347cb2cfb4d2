"""One file -> one array `(*spatial, channels)`: pictures, volumes, recordings, spectra, arrays.

Integers keep the type of the file, booleans become uint8, floats float32. What is damaged, empty or oversized raises
`BadFileError`. Sizes are taken from the header and checked before anything is decoded; nothing is ever unpickled.

| suffix | array |
|---|---|
| .png .jpg .jpeg .bmp | `(rows, cols, channels)`, turned as its EXIF orientation says, the way a viewer shows it |
| .tif .tiff | the same; many pages are a volume `(planes, rows, cols, channels)` |
| .wav .flac | `(samples, channels)` float32 in [-1, 1] |
| .csv .tsv | a spectrum `(rows, columns)` float32; a first column headed as one of `tables.AXES` is left out |
| .npy .npz | as it is, see `rank`; an .npz holds one array |

Alpha channels are left out. A palette is looked up, unless `indexed`. One bit becomes 0 and 1.
"""

import contextlib
import math
import struct
import zipfile
from pathlib import Path

import numpy as np
import soundfile
import tensorflow as tf
import tifffile
from PIL import Image

from tfalign import _checks
from tfalign.data import tables

MAX_PIXELS = 2**29  # times channels: 2 GiB of float32, and where Pillow's own guard stops a colour picture
PICTURES = ("PNG", "JPEG", "BMP")
_ORIENTATION = 274  # the tag of EXIF and of TIFF
_UNKNOWN_LENGTH = "4294967295"  # what a recorder writes that cannot go back to fill in the length


class BadFileError(ValueError):
    """A file that cannot be used.

    Attributes:
        path: str, the file, with what is meant inside it.
        reason: str, what is wrong with it, and what to do where that is known.
    """

    def __init__(self, path, reason):
        super().__init__(
            _checks.message(f"A file cannot be used: {reason}.", {"path": str(path)}, "Repair it or leave it out.")
        )
        self.path, self.reason = str(path), reason

    def __reduce__(self):
        return type(self), (self.path, self.reason)


def read(path, *, rank=None, indexed=False, max_pixels=MAX_PIXELS):
    """Reads one file, by its suffix.

    Args:
        path: the file.
        rank: number of spatial axes, for .npy and .npz only: an array with `rank` axes gains the channel axis. None
            takes them as `(*spatial, channels)`, and one axis as samples.
        indexed: True gives the indices of a picture with a palette (class maps) instead of its colours.
        max_pixels: most pixels times channels that a header may declare; guards against decompression bombs.

    Returns:
        `(*spatial, channels)` with 1 to 3 spatial axes.

    Raises:
        BadFileError: the file is missing, empty, damaged, too large, of an unknown format, or holds no real numbers.
    """
    path = Path(path)
    decode = _DECODERS.get(path.suffix.lower())
    if decode is None:
        raise BadFileError(path, f"no format is known by the suffix {path.suffix!r}, only {' '.join(_DECODERS)}")
    with decoding(path):
        if path.stat().st_size == 0:
            raise BadFileError(path, "the file is empty")
        array = decode(path, indexed, max_pixels)
    return canonical(array, path, rank=rank if path.suffix.lower() in (".npy", ".npz") else None)


@contextlib.contextmanager
def decoding(path):
    """Turns whatever a decoder raises into a `BadFileError`."""
    try:
        yield
    except (BadFileError, ImportError):
        raise
    except Exception as error:  # damaged data makes decoders raise SyntaxError, IndexError, struct.error, zlib.error …
        raise BadFileError(path, f"it cannot be decoded ({type(error).__name__}: {error})") from error


def canonical(array, path, *, rank=None):
    """An array as `(*spatial, channels)` in native byte order: integers, or float32."""
    if array.dtype.kind not in "biuf":
        raise BadFileError(path, f"it holds {array.dtype}, not real numbers")
    if array.ndim == (rank or 1):
        array = array[..., np.newaxis]
    if not 2 <= array.ndim <= 4:
        raise BadFileError(path, f"its shape {array.shape} has not 1 to 3 spatial axes and a channel axis")
    if array.size == 0:
        raise BadFileError(path, f"its shape {array.shape} holds no pixel")
    types = {"b": np.uint8, "f": np.float32}
    return array.astype(types.get(array.dtype.kind, array.dtype.newbyteorder("=")), copy=False)


def check_size(path, shape, max_pixels):
    """Refuses a shape of more than `max_pixels` values."""
    if math.prod(shape) > max_pixels:
        values = f"{' x '.join(map(str, shape))} = {math.prod(shape)} values"
        raise BadFileError(
            path, f"its header declares {values}, more than max_pixels={max_pixels}; raise it for this size"
        )


def member_header(archive, name):
    """Shape and type of one array of an open .npz."""
    with archive.open(name) as stream:
        version = np.lib.format.read_magic(stream)
        headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = headers[version](stream)
        return shape, dtype


def read_member(archive, name, max_pixels, *, path):
    """One array of an open .npz, its header checked first."""
    shape, dtype = member_header(archive, name)
    _check_header(path, shape, dtype, max_pixels)
    with archive.open(name) as stream:
        array = np.lib.format.read_array(stream, allow_pickle=False)
        if stream.read(1):  # reading on to the end also compares the checksum
            raise BadFileError(path, "it holds more than its header declares")
    return array


def _check_header(path, shape, dtype, max_pixels):
    if dtype.hasobject or dtype.names:
        raise BadFileError(path, f"it holds {dtype}, and nothing is unpickled; save a plain array")
    check_size(path, shape, max_pixels)


def _npy(path, indexed, max_pixels):
    # A map allocates nothing, and fails where the file is shorter than its header declares.
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    _check_header(path, array.shape, array.dtype, max_pixels)
    return np.array(array)


def _npz(path, indexed, max_pixels):
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(names) != 1:
            raise BadFileError(path, f"it must hold one array, not {len(names)}; give the archive itself as the inputs")
        return read_member(archive, names[0], max_pixels, path=path)


def _picture(path, indexed, max_pixels):
    try:
        image = Image.open(path, formats=PICTURES)
    except Image.DecompressionBombError as error:
        raise BadFileError(path, f"{error} Raise PIL.Image.MAX_IMAGE_PIXELS for this size") from error
    with image:
        check_size(path, (image.height, image.width, len(image.getbands())), max_pixels)
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise BadFileError(path, f"it is an animation of {frames} pictures")
        orientation = image.getexif().get(_ORIENTATION, 1)
        if _is_deep_color(path, image):
            # Pillow would cut 16 bits to 8.
            array = tf.io.decode_png(path.read_bytes(), dtype=tf.uint16).numpy()
        elif image.mode in ("1", "L", "LA", "I", "I;16", "I;16B", "F", "RGB", "RGBA", "P" if indexed else None):
            array = np.array(image)
        else:
            array = np.array(image.convert("RGB"))
    array = array[..., np.newaxis] if array.ndim == 2 else array
    return _turned(array[..., : array.shape[-1] - 1 + array.shape[-1] % 2], orientation)  # LA and RGBA lose A


def _is_deep_color(path, image):
    """Whether a picture is a PNG of 16 bits and more than one channel."""
    with open(path, "rb") as stream:
        depth, color_type = stream.read(26)[24:]
    return image.format == "PNG" and depth == 16 and color_type != 0


def _turned(array, orientation):
    """Rows and columns, the last axes before the channels, as the tag of EXIF and TIFF wants them shown."""
    if orientation >= 5:
        array = np.swapaxes(array, -3, -2)
    if orientation in (3, 4, 7, 8):
        array = np.flip(array, -3)
    return np.flip(array, -2) if orientation in (2, 3, 6, 7) else array


def _tiff(path, indexed, max_pixels):
    with tifffile.TiffFile(path) as tiff:
        # Smaller copies (pyramids, thumbnails) and masks of the same picture are no pages of a volume.
        found = [one for one in tiff.series if not (one.keyframe.is_reduced or one.keyframe.is_mask)]
        if len(found) != 1:
            raise BadFileError(path, f"it holds {len(found)} pictures that do not stack into one volume; split it")
        series, page = found[0], found[0].keyframe
        check_size(path, series.shape, max_pixels)
        check_size(path, page.chunks, max_pixels)
        _check_pages(path, tiff, series)
        array, axes = series.asarray(), series.axes
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and array.dtype.kind in "bu":
            array = ~array if array.dtype.kind == "b" else 2**page.bitspersample - 1 - array
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE and not indexed:
            array, axes = (np.asarray(page.colormap).T[array] >> 8).astype(np.uint8), axes + "S"
    if "S" in axes:
        samples = array.shape[axes.index("S")]
        first_extra = samples - len(page.extrasamples)
        alpha = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
        drop = [first_extra + number for number, kind in enumerate(page.extrasamples) if kind in alpha]
        array = np.delete(array, drop, axis=axes.index("S"))
    return _turned(_channels_last(path, array, axes), page.tags.valueof(_ORIENTATION, default=1))


def _check_pages(path, tiff, series):
    """Refuses missing pages: tifffile fills them with zeros, or gives those before the chain breaks off."""
    if any(page is None for page in series.pages):
        raise BadFileError(path, "some of its pages are missing")
    tiff.filehandle.seek(tiff.pages.next_page_offset)
    (next_page,) = struct.unpack(tiff.tiff.offsetformat, tiff.filehandle.read(tiff.tiff.offsetsize))
    if next_page:
        raise BadFileError(path, f"it is cut off after {len(tiff.pages)} pages")


def _channels_last(path, array, axes):
    """Sorts axes named by tifffile (S samples and C channels, Y X, and Z, T, Q or I of pages) and drops empty ones."""
    for axis in reversed(range(len(axes))):
        if axes[axis] not in "YXSC" and array.shape[axis] == 1:
            array, axes = array.squeeze(axis), axes[:axis] + axes[axis + 1 :]
    channels = [axis for axis, name in enumerate(axes) if name in "SC"]
    spatial = [axis for axis in range(len(axes)) if axis not in channels]
    if len(spatial) > 3:
        raise BadFileError(path, f"its axes {axes} are more than three and channels; split it")
    array = array.transpose(spatial + channels)
    return array.reshape(*array.shape[: len(spatial)], -1)


def _recording(path, indexed, max_pixels):
    with soundfile.SoundFile(path) as recording:
        check_size(path, (recording.frames, recording.channels), max_pixels)
        for line in recording.extra_info.splitlines():
            # The log of libsndfile is the only place that tells: it reads what is there and goes on.
            if line.startswith("data") and "should be" in line and _UNKNOWN_LENGTH not in line:
                raise BadFileError(path, f"it is cut off ({line})")
        samples = recording.read(dtype="float32", always_2d=True)
        if len(samples) != recording.frames:
            raise BadFileError(path, f"it is cut off after {len(samples)} of {recording.frames} samples")
        return samples


def _spectrum(path, indexed, max_pixels):
    check_size(path, (path.stat().st_size // 2,), max_pixels)  # a value takes a digit and a separator
    return tables.numbers(path)


_DECODERS = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp"), _picture),
    **dict.fromkeys((".tif", ".tiff"), _tiff),
    **dict.fromkeys((".wav", ".flac"), _recording),
    **dict.fromkeys((".csv", ".tsv"), _spectrum),
    ".npy": _npy,
    ".npz": _npz,
}
SUFFIXES = tuple(_DECODERS)
