"""The cells: how labels are moved, and what tfalign is told."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.quality.tasks import Task


class Patches(NamedTuple):
    """Training data of a cell.

    Attributes:
        inputs: `(count, *patch, channels)`.
        labels: `(count, *(patch + 2 margin), channels)`, moved.
        true_labels: the same places and sizes, aligned: everything of the cell except the geometry.
        translations: `(count, d)` pixels, the truth.
    """

    inputs: np.ndarray
    labels: np.ndarray
    true_labels: np.ndarray
    translations: np.ndarray


class Cell(NamedTuple):
    """One kind of misalignment."""

    name: str
    title: str
    draw: Callable[[np.random.Generator, int, int], np.ndarray]  # generator, count, rank -> translations
    loss: dict[str, Any]  # what tfalign is told
    target: tuple[float, float]  # gap recovered: median, worst seed
    margin: int = 10
    batch: int | None = None  # instead of the task's
    one_shift_per_batch: bool = False
    version: int = 1


def paired_shifts(rng, count, rank, bound=8):
    """Whole-pixel shifts, uniform on -bound .. bound, in pairs t, -t: their mean is exactly zero."""
    half = rng.integers(-bound, bound + 1, (count // 2, rank))
    return rng.permutation(np.concatenate([half, -half]))


def independent_shifts(rng, count, rank, bound=8):
    """The same without pairs: the mean of N shifts is off by about s / sqrt(N)."""
    return rng.integers(-bound, bound + 1, (count, rank))


def no_shifts(rng, count, rank):
    """Aligned labels."""
    return np.zeros((count, rank), int)


_ten = {"max_shift": 10}
CELLS = {
    cell.name: cell
    for cell in (
        Cell("M0", "aligned", no_shifts, _ten, (0.0, 0.0)),
        Cell("M0n", "aligned, no margin", no_shifts, _ten, (0.0, 0.0), margin=0),
        Cell("M1", "whole-pixel ±8", paired_shifts, _ten, (0.98, 0.95)),
        Cell("M1n", "M1, no margin", paired_shifts, _ten, (0.98, 0.95), margin=0),
        Cell("M1r", "M1, independent", independent_shifts, _ten, (0.98, 0.95)),
        Cell("M1b1", "M1, batch 1", paired_shifts, _ten, (0.98, 0.95), batch=1),
        Cell("M1b2", "M1, batch 2", paired_shifts, _ten, (0.98, 0.95), batch=2),
        Cell("M1b4", "M1, batch 4", paired_shifts, _ten, (0.98, 0.95), batch=4),
        Cell("M1s", "M1, one shift per batch", paired_shifts, _ten, (0.98, 0.95), one_shift_per_batch=True),
    )
}


def patches(task: Task, cell: Cell, seed: int) -> Patches:
    """Cuts the training patches of a task with the labels of a cell; drawn once and frozen."""
    rng = np.random.default_rng([40, seed])
    scenes, _ = task.scenes(seed)
    rank = scenes[0].input.ndim - 1
    batch = cell.batch or task.batch
    count = task.patches // (2 * batch) * 2 * batch if cell.one_shift_per_batch else task.patches
    draws = count // batch if cell.one_shift_per_batch else count
    # The places do not depend on the cell, so that its arms differ in nothing else.
    scene_index = rng.integers(0, len(scenes), count)
    uniform = rng.uniform(0, 1, (count, rank))
    translations = cell.draw(np.random.default_rng([41, seed]), draws, rank)
    if cell.one_shift_per_batch:
        translations = np.repeat(translations, batch, axis=0)
    reach = 10 + 8
    inputs, labels, true_labels = [], [], []
    for index, place, shift in zip(scene_index, uniform, translations):
        scene = scenes[index]
        free = np.array(scene.input.shape[:-1]) - task.patch - 2 * reach
        corner = reach + np.floor(place * free).astype(int)
        inputs.append(_cut(scene.input, corner, task.patch))
        labels.append(_cut(scene.truth, corner - cell.margin - shift, task.patch + 2 * cell.margin))
        true_labels.append(_cut(scene.truth, corner - cell.margin, task.patch + 2 * cell.margin))
    return Patches(np.stack(inputs), np.stack(labels), np.stack(true_labels), translations)


def _cut(image, corner, size):
    return image[tuple(slice(start, start + size) for start in corner)]
