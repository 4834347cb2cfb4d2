"""Where one input or label comes from. Each source has a `path` for messages and `read(like=None)`.

`read` gives `(*spatial, channels)` or raises `BadFileError`; a label is read like its input, an array. `settings`, as
JSON can hold them, tell how it is read, besides the path.
"""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfalign.data import fingerprints, formats, marks, positions
from tfalign.data.formats import BadFileError


class File(NamedTuple):
    """A file of `tfalign.data.formats`; as a label, palettes stay indices and arrays take the rank of the input."""

    path: Path
    rank: int | None
    max_pixels: int

    @property
    def settings(self):
        """Rank and bound."""
        return [self.rank, self.max_pixels]

    def read(self, like=None):
        """The array."""
        rank = self.rank if like is None else like.ndim - 1
        return formats.read(self.path, rank=rank, indexed=like is not None, max_pixels=self.max_pixels)


class Archive:
    """The arrays of an .npz file by their names."""

    def __init__(self, path, max_pixels):
        self.path, self.max_pixels = path, max_pixels
        self._kept: dict = {}
        with formats.decoding(path), zipfile.ZipFile(path) as archive:
            self.names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]

    def shape(self, name):
        """The shape of an array, from its header."""
        with formats.decoding(self.path), zipfile.ZipFile(self.path) as archive:
            return formats.member_header(archive, f"{name}.npy")[0]

    def read(self, name):
        """An array."""
        with formats.decoding(self.path), zipfile.ZipFile(self.path) as archive:
            return formats.read_member(archive, f"{name}.npy", self.max_pixels, path=f"{self.path}: {name}")

    def sample(self, name, index):
        """One sample along the first axis. A compressed array is unpacked as a whole: it is kept."""
        if name not in self._kept:
            self._kept[name] = self.read(name)
        return np.array(self._kept[name][index])


class Member(NamedTuple):
    """An array of an archive, or with a `number` one sample along its first axis."""

    archive: Archive
    name: str
    rank: int | None
    number: int | None = None

    @property
    def path(self):
        """The archive and the array in it, for messages."""
        return f"{self.archive.path}: {self.name}" + ("" if self.number is None else f"[{self.number}]")

    @property
    def settings(self):
        """Rank and bound."""
        return [self.rank, self.archive.max_pixels]

    def read(self, like=None):
        """The array."""
        whole = self.number is None
        array = self.archive.read(self.name) if whole else self.archive.sample(self.name, self.number)
        return formats.canonical(array, self.path, rank=self.rank if like is None else like.ndim - 1)


class Drawn(NamedTuple):
    """Positions as a map of the size of the input.

    Attributes:
        path: what the positions come from.
        drawing: `marks.Drawing`.
        marks: None reads them from the file.
        shape: spatial sizes that the file gives for its input, or None.
        placing: `(offset, scale)` of a part of a slide, see `marks.moved`, or None.
    """

    path: str
    drawing: marks.Drawing
    marks: list | None = None
    shape: tuple | None = None
    placing: tuple | None = None

    @property
    def settings(self):
        """How it is drawn."""
        return repr(self.drawing)

    def parts(self, regions):
        """The labels of the regions of a slide, each with the marks that may touch it."""
        found = self._marks()
        reach = self.drawing.radius * (4 if self.drawing.kind == "heatmap" else 1)
        parts = []
        with formats.decoding(self.path):
            low, high = marks.bounds(found)
            for region in regions:
                offset, scale = region.placing
                touches = (high * scale + offset >= -reach) & (low * scale + offset <= np.array(region.shape) + reach)
                near = [found[number] for number in np.flatnonzero(touches.all(axis=-1))]
                parts.append(self._replace(marks=near, placing=region.placing))
        return parts

    def read(self, like=None):
        """The map."""
        shape = like.shape[:-1]
        if self.shape is not None and self.shape != shape:
            raise BadFileError(self.path, f"its positions are of an input of the size {self.shape}, not {shape}")
        found = self._marks()
        if self.placing is not None:
            found = marks.moved(found, offset=self.placing[0], scale=self.placing[1])
        try:
            drawn = marks.rasterise(found, shape, self.drawing)
        except ValueError as error:
            raise BadFileError(self.path, str(error).rstrip(".")) from error
        if found and self.placing is None and not drawn.any():
            raise BadFileError(self.path, f"none of its {len(found)} positions lies inside the input of size {shape}")
        return drawn

    def _marks(self):
        with formats.decoding(self.path):
            return positions.read(self.path, self.drawing) if self.marks is None else self.marks


class Computed(NamedTuple):
    """A label computed from its input by a recipe."""

    path: str
    recipe: Callable

    @property
    def settings(self):
        """The recipe."""
        return fingerprints.of_function(self.recipe)

    def read(self, like=None):
        """The label."""
        try:
            label = np.asarray(self.recipe(like))
        except (ValueError, IndexError) as error:
            raise BadFileError(self.path, f"the recipe does not fit it: {str(error).rstrip('.')}") from error
        return formats.canonical(label, self.path, rank=like.ndim - 1)
