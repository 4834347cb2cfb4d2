"""Pairs of an input and its label, found but not opened, and what is skipped."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfalign import _files
from tfalign.data import slides, sources, tfds
from tfalign.data.formats import BadFileError


class Pair(NamedTuple):
    """Where one input and its label come from; nothing is opened yet.

    Attributes:
        name: of the input: its path inside the folder, with / and without suffix; unique in its `Pairs`.
        input: a source, with `path` (of the file and what is meant inside it) and `read()`; see `tfalign.data.sources`.
        label: a source, or None.
    """

    name: str
    input: sources.File | sources.Member | slides.Region | tfds.Feature
    label: sources.File | sources.Member | sources.Drawn | sources.Computed | slides.Region | tfds.Feature | None


class Example(NamedTuple):
    """What a pair holds.

    Attributes:
        name: that of the pair.
        input: `(*spatial, channels)`, float32 or the integer type of the file.
        label: likewise, or None; class and instance maps are integers.
    """

    name: str
    input: np.ndarray
    label: np.ndarray | None


class Skipped(NamedTuple):
    """A file that is left out, and why."""

    path: str
    reason: str


class Pairs(Sequence):
    """A sequence of `Pair`s; a slice is one too. Files are opened when they are read.

    Attributes:
        skipped: list of `Skipped`, one for each file left out; grows as damaged files are found in reading. Slices and
            selections share it.
    """

    def __init__(self, pairs, *, skipped, max_margin=0, rank=None, strict=False):
        self._pairs = tuple(pairs)
        self.skipped = skipped
        self._options = {"max_margin": max_margin, "rank": rank, "strict": strict}

    @property
    def strict(self):
        """Whether the first file that would be skipped raises."""
        return self._options["strict"]

    @property
    def settings(self):
        """What else tells how examples are read, for a fingerprint."""
        return repr((self._options["rank"], self._options["max_margin"]))

    def __len__(self):
        return len(self._pairs)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return Pairs(self._pairs[index], skipped=self.skipped, **self._options)
        return self._pairs[index]

    def __repr__(self):
        labelled = sum(pair.label is not None for pair in self)
        return f"Pairs({len(self)} inputs, {labelled} with labels, {len(self.skipped)} files skipped)"

    def select(self, keep):
        """The pairs for which `keep(pair)` is true, e.g. `lambda pair: pair.label is not None`, as `Pairs`."""
        return Pairs(filter(keep, self), skipped=self.skipped, **self._options)

    def read(self, index):
        """The `Example` of one pair.

        Raises:
            BadFileError: a file is damaged, or label and input do not match, see `read_pairs`. `skipped` lists it.
        """
        pair = self._pairs[index]
        try:
            return self._example(pair)
        except BadFileError as error:
            self.note_skipped(error.path, error.reason)
            raise

    def note_skipped(self, path, reason):
        """Lists a file as skipped, once."""
        skipped = Skipped(str(path), reason)
        if skipped not in self.skipped:
            self.skipped.append(skipped)

    def examples(self):
        """Yields the `Example` of each pair in turn, without those that cannot be read.

        Raises:
            BadFileError: at the first that cannot be read, if strict.
        """
        for index in range(len(self)):
            try:
                example = self.read(index)
            except BadFileError:
                if self._options["strict"]:
                    raise
                continue
            yield example

    def write_skipped(self, folder):
        """Writes `skipped.csv`, the columns path and reason, into a folder in one step, and returns its path."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([Skipped._fields, *self.skipped])
        path = Path(folder) / "skipped.csv"
        # Names that are no Unicode, as old archives leave them, are written with \\x.
        _files.write_text(path, text.getvalue().encode("utf-8", "backslashreplace").decode("utf-8"))
        return path

    def _example(self, pair):
        rank, max_margin = self._options["rank"], self._options["max_margin"]
        array = pair.input.read()
        if rank is not None and array.ndim - 1 != rank:
            raise BadFileError(
                pair.input.path, f"its shape {array.shape} has {array.ndim - 1} spatial axes, not {rank}"
            )
        if pair.label is None:
            return Example(pair.name, array, None)
        label = pair.label.read(array)
        sizes = f"label {label.shape}, input {array.shape}"
        if label.ndim != array.ndim:
            raise BadFileError(pair.label.path, f"label and input differ in rank ({sizes})")
        margins = [abs(of_label - of_input) for of_label, of_input in zip(label.shape[:-1], array.shape[:-1])]
        if max(margins) > 2 * max_margin:
            reason = f"label and input differ by more than max_margin={max_margin} pixels a side ({sizes})"
            raise BadFileError(pair.label.path, reason)
        return Example(pair.name, array, label)
