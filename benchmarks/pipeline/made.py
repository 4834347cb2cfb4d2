"""Examples that need no disk."""

from typing import NamedTuple

import numpy as np

FILE = 1024  # pixels a side of a file


class _Source(NamedTuple):
    path: str


class _Pair(NamedTuple):
    name: str
    input: _Source
    label: _Source


class Made:
    """Pairs that are made when they are read: noise, of `FILE` pixels a side."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        name = f"made-{index}"
        return _Pair(name, _Source(name), _Source(name))

    def read(self, index):
        """The example."""
        image = np.random.default_rng(index).integers(0, 256, (FILE, FILE, 1), dtype=np.uint8)
        return f"made-{index}", image, image
