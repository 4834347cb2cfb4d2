"""Data: sources, what is cut from them, and what is done to it on the way to the network."""

import importlib.util

from tfalign.data import augment, misalign, patches, pipeline, preprocess, stain
from tfalign.data.augment import flips
from tfalign.data.formats import BadFileError
from tfalign.data.misalign_files import misalign_files
from tfalign.data.offset import OffsetCheck, offset_check
from tfalign.data.pairs import Example, Pair, Pairs, Skipped
from tfalign.data.patches import stitch
from tfalign.data.readers import read_pairs
from tfalign.data.realignment import realign
from tfalign.data.repair import realign_files

# Registers the set "tfalign_stain".
if importlib.util.find_spec("tensorflow_datasets") is not None:
    from tfalign.data import stain_dataset  # noqa: F401

__all__ = [
    "BadFileError",
    "Example",
    "OffsetCheck",
    "Pair",
    "Pairs",
    "Skipped",
    "augment",
    "flips",
    "misalign",
    "misalign_files",
    "offset_check",
    "patches",
    "pipeline",
    "preprocess",
    "read_pairs",
    "realign",
    "realign_files",
    "stain",
    "stitch",
]
