"""A set of TensorFlow Datasets by its name (extra `datasets`)."""

import os
import threading
from typing import NamedTuple

import numpy as np

from tfalign import _checks
from tfalign.data import formats


class Split:
    """A split of a prepared set, read in the order of its files.

    Reading in order decodes each once; any other order starts again at the first.

    Args:
        name: as `tfds.builder` takes it, e.g. "oxford_iiit_pet" or "oxford_iiit_pet:4.0.0", downloaded and prepared on
            first use; or the folder of a prepared set, which ends in its version.
        split: e.g. "train", "test[:10%]".

    Raises:
        ImportError: without the extra `datasets`.
    """

    def __init__(self, name, split):
        self._tfds = tfds = _checks.extra("tensorflow_datasets", "datasets")
        self._builder = tfds.builder_from_directory(name) if os.path.isdir(name) else tfds.builder(name)
        self._builder.download_and_prepare()
        self.path = f"tfds:{name}[{split}]"
        self._name, self._split = name, split
        self._count: int | None = None
        self._lock = threading.Lock()
        self._at, self._example, self._examples = -1, None, None
        self.features = dict(self._builder.info.features)
        self.supervised = self._builder.info.supervised_keys

    def __reduce__(self):
        """Opens the set again where it is sent to: a worker process."""
        return Split, (self._name, self._split)

    def __len__(self):
        if self._count is None:
            splits = self._builder.info.splits
            # A set that was prepared elsewhere may not say how many it holds.
            self._count = splits[self._split].num_examples if splits else sum(1 for _ in self._from(0))
        return self._count

    def __getitem__(self, index):
        with self._lock:
            if index != self._at:
                examples = self._examples if index == self._at + 1 else None
                self._examples = None  # stays so if reading fails: nothing tells where it then goes on
                examples = examples or self._from(index)
                self._example, self._at = next(examples), index
                self._examples = examples
            return self._example

    def _from(self, index):
        """The examples from one on."""
        config = self._tfds.ReadConfig(try_autocache=False)  # a cache cannot begin in the middle
        examples = self._builder.as_dataset(split=self._split, shuffle_files=False, read_config=config)
        return examples.skip(index).as_numpy_iterator()


class Feature(NamedTuple):
    """One feature of one example, as a source."""

    split: Split
    number: int
    name: str
    rank: int | None
    max_pixels: int

    @property
    def path(self):
        """The set, the example and the feature, for messages."""
        return f"{self.split.path}[{self.number}]: {self.name}"

    @property
    def settings(self):
        """Rank and bound."""
        return [self.rank, self.max_pixels]

    def read(self, like=None):
        """The array `(*spatial, channels)`."""
        with formats.decoding(self.path):
            array = np.array(self.split[self.number][self.name])
        formats.check_size(self.path, array.shape, self.max_pixels)
        return formats.canonical(array, self.path, rank=self.rank if like is None else like.ndim - 1)
