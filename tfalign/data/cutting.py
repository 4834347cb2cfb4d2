"""From one example as it is read to its patches: prepared, split by region where wanted, cut with a label margin."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from tfalign import _checks
from tfalign.data import patches, split
from tfalign.data.preprocess import Preprocessing
from tfalign.data.steps import as_tuples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cutting:
    """How files become patches; the same settings and files give the same patches.

    Attributes:
        preprocessing: of inputs, whole ones; it may need to be fitted. Where it moves pixels, the label goes along.
        label_preprocessing: of labels, e.g. `Preprocessing((Scale(high=255),))`; not for class maps.
        patch_size, patch_count, patch_overlap, max_size, max_pixels: see `tfalign.data.patches.tile`. By default
            nothing is cut.
        margin: pixels by which a label patch is larger on each side, one number or one per axis: as many as labels are
            to be moved. Beyond its file a label is NaN, which the loss leaves out.
        ignore_class: makes labels class maps, int32, that are this class beyond their file.
        fractions: of training, validation and test set.
        split_by: "file", or "region": bands across the longest axis of each file. No pixel of one set, filtered or in a
            margin, is one of another's; a label then counts as far as its input.
        seed: of the split and of the order of patches.
    """

    preprocessing: Preprocessing = dataclasses.field(default_factory=Preprocessing)
    label_preprocessing: Preprocessing = dataclasses.field(default_factory=Preprocessing)
    patch_size: int | tuple | None = None
    patch_count: int | tuple | None = None
    patch_overlap: int | tuple = 0
    max_size: int | tuple | None = None
    max_pixels: int | None = None
    margin: int | tuple = 0
    ignore_class: int | None = None
    fractions: tuple = (0.8, 0.1, 0.1)
    split_by: str = "file"
    seed: int = 0

    def __post_init__(self):
        _checks.choice("split_by", self.split_by, ("file", "region"))
        split.checked(self.fractions)
        _checks.whole_number("seed", self.seed, at_least=0)
        margins = self.margin if isinstance(self.margin, (tuple, list)) else (self.margin,)
        _checks.pixels_per_axis("margin", self.margin, len(margins))
        if self.label_preprocessing.unfitted is not None or self.label_preprocessing.moves_pixels:
            raise ValueError(
                _checks.message(
                    "`label_preprocessing` must be fitted, and move no pixels.",
                    {"label_preprocessing": self.label_preprocessing},
                    "Labels go where `preprocessing` moves inputs.",
                )
            )
        if self.ignore_class is not None and self.label_preprocessing.steps:
            received = {"ignore_class": self.ignore_class, "label_preprocessing": self.label_preprocessing}
            raise ValueError(_checks.message("Class maps must stay as they are.", received, "Leave out one of them."))

    def get_config(self):
        """Every setting, as JSON can hold it."""
        config = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: value.get_config() if isinstance(value, Preprocessing) else value for name, value in config.items()
        }

    @classmethod
    def from_config(cls, config):
        """The settings of `get_config`."""
        arguments = {name: as_tuples(value) for name, value in config.items()}
        for name in ("preprocessing", "label_preprocessing"):
            if name in arguments:
                arguments[name] = Preprocessing.from_config(arguments[name])
        return cls(**arguments)


class Patch(NamedTuple):
    """A patch of one file.

    Attributes:
        input: `(*patch_size, channels)` float32.
        label: `(*(patch_size + 2 margin), channels)` float32, or int32 for class maps.
        start: first index of the input patch, per axis, in what it was cut from: the prepared file, or region; negative
            in its padding.
        content: see `tfalign.data.patches.content`.
    """

    input: np.ndarray
    label: np.ndarray
    start: tuple
    content: float


def parts(shape, cutting, *, number, set_name):
    """The sets that the file `number` gives patches to, with the slices of each: `[(set name, slices)]`."""
    if cutting.split_by == "file":
        return [(set_name, (slice(None),) * len(shape))]
    return split.by_region(shape, fractions=cutting.fractions, number=number, seed=cutting.seed)


def cut_example(image, label, cutting, *, number, set_name):
    """Cuts one file into patches, in an order drawn for each file, so that neighbours do not follow each other.

    Args:
        image, label: `(*spatial, channels)`, on one centre.
        cutting: `Cutting`, fitted.
        number: of the file, for the draws.
        set_name: of the file; by region, it has several and this is not used.

    Yields:
        `(set name, Patch)`.
    """
    shape = image.shape[:-1]
    fill = math.nan if cutting.ignore_class is None else cutting.ignore_class
    label = label.astype(np.float32 if cutting.ignore_class is None else np.int32)
    if cutting.split_by == "region":
        (label,) = patches.cut(label, patches.tile(shape), fill=fill)
    rng = np.random.default_rng([cutting.seed, number])
    for name, region in parts(shape, cutting, number=number, set_name=set_name):
        part = label if cutting.split_by == "file" else label[region]
        inputs, labels = _prepared(image[region], part, cutting, fill)
        tiles = patches.tile(
            inputs.shape[:-1],
            size=cutting.patch_size,
            count=cutting.patch_count,
            overlap=cutting.patch_overlap,
            max_size=cutting.max_size,
            max_pixels=cutting.max_pixels,
        )
        margins = _checks.pixels_per_axis("margin", cutting.margin, len(shape))
        larger = tuple(size + 2 * margin for size, margin in zip(tiles.size, margins))
        order = rng.permutation(len(tiles)).tolist()
        pairs = zip(
            order,
            patches.cut(inputs, tiles, indices=order),
            patches.cut(labels, tiles, size=larger, fill=fill, indices=order),
        )
        for index, window, target in pairs:
            content = patches.content(target, ignore_class=cutting.ignore_class)
            yield name, Patch(window, target, tiles[index], content)


def _prepared(image, label, cutting, fill):
    """Input and label `(*spatial, channels)` after preprocessing, float32 and the label's type."""
    inputs = cutting.preprocessing(image[np.newaxis]).numpy()[0]
    is_class_map = cutting.ignore_class is not None
    placed = cutting.preprocessing.place(
        label[np.newaxis], interpolation="nearest" if is_class_map else "linear", fill_value=fill
    )
    return inputs, placed.numpy()[0] if is_class_map else cutting.label_preprocessing(placed).numpy()[0]
