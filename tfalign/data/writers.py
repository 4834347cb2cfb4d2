"""One array -> one file in the format of another, whose type, header and rate it keeps; see `tfalign.data.formats`.

Each file is written beside and renamed. What the format cannot hold is said: integers for pictures, [-1, 1] for sound.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import tensorflow as tf
import tifffile
from PIL import Image

from tfalign import _checks
from tfalign.data import formats, tables


def write_like(original, path, array):
    """Writes `(*spatial, channels)` to `path`, as the file `original` was written.

    Palettes and single bits stay, and so does an alpha channel of the same size, as it was. JPEG is written at quality
    95, without chroma subsampling.

    Args:
        original: a file of `tfalign.data.formats`; of another kind, or None, the array is written as .npy.
        path: where to; its suffix becomes that of `original`, or .npy.
        array: in the type that `formats.read` gave; NaN where nothing is known, which only floating formats can hold.

    Returns:
        The path written.

    Raises:
        ValueError: the format cannot hold the array.
    """
    suffix = suffix_like(original)
    write, path = _ENCODERS[suffix], Path(f"{path}{suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"part-{path.name}")
    try:
        write(original, beside, array)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def suffix_like(original):
    """The suffix of what is written like a file, or None."""
    suffix = "" if original is None else Path(original).suffix.lower()
    return suffix if suffix in _ENCODERS else ".npy"


def _npy(original, path, array):
    np.save(path, array, allow_pickle=False)


def _npz(original, path, array):
    np.savez(path, array)


def _picture(original, path, array):
    depth = array.dtype.itemsize
    if array.dtype.kind != "u" or depth > 2 or array.ndim != 3 or array.shape[-1] not in (1, 3):
        received = {"path": str(path), "shape": array.shape, "dtype": array.dtype.name}
        raise ValueError(_checks.message("A picture must be uint8 or uint16 with 1 or 3 channels.", received))
    if depth == 2 and array.shape[-1] == 3:
        path.write_bytes(tf.io.encode_png(array).numpy())
        return
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if path.suffix.lower() in (".jpg", ".jpeg") else {}
    image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
    if depth == 1 and Path(original).exists():
        with Image.open(original, formats=formats.PICTURES) as like:
            image = _in_mode_of(like, image, array)
    image.save(path, **options)


def _in_mode_of(like, image, array):
    """A picture of bytes with the palette or the alpha of another, or in single bits as that."""
    if like.mode == "P" and image.mode == "L":
        image.putpalette(like.getpalette())
    elif like.mode == "1" and image.mode == "L" and array.max() <= 1:
        image = Image.fromarray(array[..., 0] > 0)
    elif like.mode == image.mode + "A" and like.size == image.size:
        image.putalpha(like.getchannel("A"))
    return image


def _tiff(original, path, array):
    volume, channels = array.ndim == 4, array.shape[-1]
    values = array[..., 0] if channels == 1 else array
    tifffile.imwrite(
        path,
        values,
        photometric="rgb" if channels == 3 and array.dtype.kind == "u" else "minisblack",
        planarconfig=None if channels == 1 else "contig",
        compression="zlib",
        metadata={"axes": ("Z" if volume else "") + "YX" + ("S" if channels > 1 else "")},
    )


def _recording(original, path, array):
    known = soundfile.info(original)
    values = np.clip(np.nan_to_num(array), -1.0, 1.0)
    soundfile.write(path, values, known.samplerate, subtype=known.subtype, format=known.format)


def _spectrum(original, path, array):
    tables.write_numbers(original, path, array)


_ENCODERS = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".bmp"), _picture),
    **dict.fromkeys((".tif", ".tiff"), _tiff),
    **dict.fromkeys((".wav", ".flac"), _recording),
    **dict.fromkeys((".csv", ".tsv"), _spectrum),
    ".npy": _npy,
    ".npz": _npz,
}
