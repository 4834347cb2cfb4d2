"""A real virtual-staining task from one picture inside scikit-image: gray tissue -> its colour stain."""

from typing import NamedTuple

import numpy as np
import skimage.data

from tfalign import _checks

TRAIN_ROWS = 352  # of 512; the rows below are held out


class StainPatches(NamedTuple):
    """Training patches with their moved labels.

    Attributes:
        inputs: `(count, size, size, 1)` float32 in [0, 1], gray.
        labels: `(count, size + 2 margin, size + 2 margin, 3)` float32 in [0, 1], colour, moved by `translations`.
        translations: `(count, 2)` int, pixels: how far down/right of its input each label lies.
    """

    inputs: np.ndarray
    labels: np.ndarray
    translations: np.ndarray


def tissue():
    """Gray input `(512, 512, 1)` and colour stain `(512, 512, 3)`, float32 in [0, 1], exactly aligned.

    The picture is `skimage.data.immunohistochemistry()`; the gray input is the mean of its channels.
    """
    stain = skimage.data.immunohistochemistry().astype(np.float32) / 255.0
    return stain.mean(axis=-1, keepdims=True), stain


def training_patches(*, count=600, size=64, max_shift=8, margin=None, moved=True, seed=0):
    """Cuts patches anywhere in the training rows, each label moved by its own whole-pixel shift.

    Labels are cut from the full picture after the move, so no padding tells the shift.

    Args:
        count: number of patches.
        size: pixels a side of an input.
        max_shift: each axis of a shift is drawn uniformly from -max_shift .. max_shift, once.
        margin: extra pixels on each side of a label; by default `max_shift`, so that moving it back loses nothing.
        moved: False leaves the labels where they belong (the same patches, shifts of zero).
        seed: of every draw.

    Returns:
        `StainPatches`.

    Raises:
        ValueError: patches with their margins do not fit into the training rows.
    """
    gray, stain = tissue()
    margin = max_shift if margin is None else margin
    reach = margin + max_shift
    rows, columns = TRAIN_ROWS - size - 2 * reach, stain.shape[1] - size - 2 * reach
    if rows < 1 or columns < 1:
        raise ValueError(
            _checks.message(
                f"A patch with its margin and shift must fit into {TRAIN_ROWS} rows.",
                {"size": size, "max_shift": max_shift, "margin": margin},
                "Use smaller patches or shifts.",
            )
        )
    rng = np.random.default_rng(seed)
    corners = np.stack([rng.integers(0, rows, count), rng.integers(0, columns, count)], axis=-1) + reach
    translations = rng.integers(-max_shift, max_shift + 1, (count, 2)) * int(moved)
    label_corners = corners - margin - translations
    return StainPatches(
        inputs=np.stack([gray[y : y + size, x : x + size] for y, x in corners]),
        labels=np.stack([stain[y : y + size + 2 * margin, x : x + size + 2 * margin] for y, x in label_corners]),
        translations=translations,
    )


def held_out():
    """The held-out rows: gray input `(1, 160, 512, 1)` and its true stain `(1, 160, 512, 3)`."""
    gray, stain = tissue()
    return gray[np.newaxis, TRAIN_ROWS:], stain[np.newaxis, TRAIN_ROWS:]
