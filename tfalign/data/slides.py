"""Whole-slide images, through OpenSlide (extra `slides`): one level of the pyramid, whole or in tiles."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tfalign import _checks
from tfalign.data import formats

SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide")


class Region(NamedTuple):
    """A part of one level of a slide, as a source of `(rows, cols, 3)` uint8.

    Attributes:
        file: the slide.
        level: of its pyramid, 0 is the finest.
        downsample: pixels of level 0 in one pixel of this level.
        origin: `(row, col)` of its first pixel, in pixels of this level.
        shape: `(rows, cols)`, in pixels of this level.
        max_pixels: see `tfalign.data.formats.read`.
    """

    file: Path
    level: int
    downsample: float
    origin: tuple
    shape: tuple
    max_pixels: int = formats.MAX_PIXELS

    @property
    def path(self):
        """The slide and the part of it, for messages."""
        return f"{self.file}: level {self.level}, row {self.origin[0]}, col {self.origin[1]}"

    @property
    def settings(self):
        """Size and bound."""
        return [list(self.shape), self.max_pixels]

    def read(self, like=None):
        """The pixels; where the scanner saw nothing, the slide's background colour, white if it names none.

        Raises:
            BadFileError: the slide is damaged, or the region too large.
        """
        formats.check_size(self.file, (*self.shape, 3), self.max_pixels)
        with formats.decoding(self.path), _open(self.file) as slide:
            row, col = (round(start * self.downsample) for start in self.origin)
            seen = slide.read_region((col, row), self.level, self.shape[::-1])
            color = "#" + slide.properties.get("openslide.background-color", "ffffff")
            return np.array(Image.alpha_composite(Image.new("RGBA", seen.size, color), seen).convert("RGB"))

    @property
    def placing(self):
        """`(offset, scale)` that take positions on level 0 here: scale * position + offset, pixel centres."""
        return 0.5 / self.downsample - 0.5 - np.array(self.origin), 1.0 / self.downsample


def is_slide(path):
    """Whether OpenSlide reads the file, by its suffix, or for a TIFF by its content."""
    path = Path(path)
    if path.suffix.lower() in (".tif", ".tiff"):
        return _checks.extra("openslide", "slides").OpenSlide.detect_format(str(path)) is not None
    return path.suffix.lower() in SUFFIXES


def regions(path, *, level=0, tile=None, max_pixels=formats.MAX_PIXELS):
    """The parts of one level of a slide: one, or tiles of `tile` pixels a side, smaller at the right and the bottom.

    Raises:
        BadFileError: the slide is damaged or has no such level.
    """
    with formats.decoding(path), _open(path) as slide:
        if level >= slide.level_count:
            raise formats.BadFileError(path, f"it has {slide.level_count} levels, none is slide_level={level}")
        cols, rows = slide.level_dimensions[level]
        downsample = slide.level_downsamples[level]
    heights, widths = tile or rows, tile or cols
    return [
        Region(
            Path(path), level, downsample, (row, col), (min(heights, rows - row), min(widths, cols - col)), max_pixels
        )
        for row in range(0, rows, heights)
        for col in range(0, cols, widths)
    ]


def _open(path):
    return _checks.extra("openslide", "slides").OpenSlide(str(path))
