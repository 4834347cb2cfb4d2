"""The cells: how labels are moved and spoiled, and what tfalign is told."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.quality.tasks import Task
from tfalign.data import misalign

_LEAST_REACH = 10 + 8  # pixels around a patch; with the same reach, cells have the same patches
_REGION = 128  # px, of one shift in M11


class Patches(NamedTuple):
    """Training data of a cell.

    Attributes:
        inputs: `(count, *patch, channels)`.
        labels: `(count, *(patch + 2 margin), channels)` float32, moved.
        true_labels: the same places and sizes, aligned: everything of the cell except the geometry.
        transforms: `(count, d+1, d+1)`, the truth, or None where no transform says it.
        is_wrong: `(count,)`: the label is of another scene.
        scenes: `(count,)`: which scene a patch is from.
        corners: `(count, d)`: its first pixel there.
        fields: `(count, *patch, d)`, where labels are bent: what lays each back, pixels; NaN where nothing does.
    """

    inputs: np.ndarray
    labels: np.ndarray
    true_labels: np.ndarray
    transforms: np.ndarray | None
    is_wrong: np.ndarray
    scenes: np.ndarray
    corners: np.ndarray
    fields: np.ndarray | None = None


class Cell(NamedTuple):
    """One kind of misalignment.

    `draw(rng, count, rank)` gives the transforms; `spoil(rng, labels)` what else happens to a stack of labels, moved
    and aligned ones alike, or None.
    """

    name: str
    title: str
    draw: Callable[[np.random.Generator, int, int], np.ndarray]
    loss: dict[str, Any]  # what tfalign is told
    target: tuple[float, float]  # gap recovered: median, worst seed
    spoil: Callable[[np.random.Generator, np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    margin: int = 10
    patch: int | None = None  # instead of the task's, as the next one
    batch: int | None = None
    one_shift_per_batch: bool = False
    one_shift_per_region: bool = False
    flips: bool = False
    elastic: tuple[float, float] | None = None  # RMS and correlation length, pixels, of displacements; instead of draw
    ranks: tuple[int, ...] = (1, 2, 3)
    moved_back: bool = False  # the target is for predictions after the best global move
    data_seed: int | None = None  # the same patches for every seed
    oracle_of: str | None = None  # the cell whose plain arm is this one's oracle
    plain_of: str | None = None  # the cell that has the same plain and oracle arms
    version: int = 2


def _aligned(rng, count, rank):
    return misalign.make_transforms(np.zeros((count, rank)))


def _pairs(rng, count, rank):
    return misalign.draw_shifts(count, rank=rank, max_shift=8, paired=True, seed=rng)


def _independent(rng, count, rank):
    return misalign.draw_shifts(count, rank=rank, max_shift=8, seed=rng)


def _biased(rng, count, rank):
    return misalign.draw_shifts(count, rank=rank, max_shift=8, mean=3, paired=True, seed=rng)


def _gaussian(rng, count, rank):
    return misalign.draw_gaussian_shifts(count, rank=rank, sigma=4, paired=True, seed=rng)


def _turned(rng, count, rank):
    return misalign.draw_affine(count, rank=rank, max_rotation=5, max_shift=8, paired=True, seed=rng)


def _turned_more(rng, count, rank):
    return misalign.draw_rotations(count, rank=rank, max_rotation=15, paired=True, seed=rng)


def _affine(rng, count, rank):
    return misalign.draw_affine(
        count, rank=rank, max_shift=8, max_rotation=5, max_scale=0.10, max_shear=5, paired=True, seed=rng
    )


def _noisy(snr_db):
    def spoil(rng, labels):
        return misalign.add_noise(labels, snr_db=snr_db, seed=rng), np.zeros(len(labels), bool)

    return spoil


def _swapped(rng, labels):
    return misalign.swap_scenes(labels, share=0.2, seed=rng)[:2]


_TEN, _THIRTEEN = {"max_shift": 10}, {"max_shift": 13}
_M1 = {"draw": _pairs, "loss": _TEN, "target": (0.98, 0.95)}
_TURNING = {"ranks": (2, 3)}
CELLS = {
    cell.name: cell
    for cell in (
        Cell("M0", "aligned", _aligned, _TEN, (0.0, 0.0), oracle_of="M0"),
        Cell("M0n", "aligned, no margin", _aligned, _TEN, (0.0, 0.0), margin=0, plain_of="M0"),
        Cell("M1", "whole-pixel ±8", **_M1, oracle_of="M0"),
        Cell("M1n", "±8, no margin", **_M1, margin=0, plain_of="M1"),
        Cell("M1r", "±8, not paired", _independent, _TEN, (0.98, -np.inf), oracle_of="M0", moved_back=True),
        Cell("M1b1", "±8, batch 1", **_M1, batch=1),
        Cell("M1b2", "±8, batch 2", **_M1, batch=2),
        Cell("M1b4", "±8, batch 4", **_M1, batch=4),
        Cell("M1s", "±8, one shift per batch", **_M1, one_shift_per_batch=True),
        Cell("M2", "sub-pixel, s.d. 4", _gaussian, {**_THIRTEEN, "subpixel": True}, (0.97, 0.94), margin=13),
        Cell("M3f", "mean 3, ±8, flips", _biased, _THIRTEEN, (0.95, -np.inf), margin=13, flips=True),
        Cell("M3", "mean 3, ±8", _biased, _THIRTEEN, (0.97, -np.inf), margin=13, moved_back=True),
        Cell("M4", "±5 deg and ±8", _turned, {**_TEN, "max_rotation": 7}, (0.95, -np.inf), **_TURNING),
        Cell("M4r", "±15 deg", _turned_more, {**_TEN, "max_rotation": 20}, (0.93, -np.inf), **_TURNING),
        Cell(
            "M5",
            "affine",
            _affine,
            {**_TEN, "max_rotation": 7, "max_scale": 0.15, "max_shear": 7},
            (0.90, -np.inf),
            **_TURNING,
        ),
        Cell("M6", "elastic, RMS 2 px", _aligned, _TEN, (0.95, -np.inf), elastic=(2, 16), ranks=(2,)),
        Cell("M6b", "elastic, RMS 4 px", _aligned, _TEN, (0.90, -np.inf), elastic=(4, 24), ranks=(2,)),
        Cell("M6c", "elastic, RMS 8 px", _aligned, _TEN, (0.80, -np.inf), elastic=(8, 32), ranks=(2,)),
        Cell("M7", "±8, noise 20 dB", **_M1, spoil=_noisy(20)),
        Cell("M7b", "±8, noise 0 dB", _pairs, _TEN, (0.95, -np.inf), spoil=_noisy(0)),
        Cell("M7c", "±8, noise -10 dB", _pairs, _TEN, (0.90, -np.inf), spoil=_noisy(-10)),
        Cell("M8", "±8, 20 % other scenes", _pairs, _TEN, (0.90, -np.inf), spoil=_swapped),
        Cell("M10", "±8, 20 inits", **_M1, data_seed=0, oracle_of="M10o"),
        Cell("M10o", "aligned, 20 inits", _aligned, _TEN, (0.0, 0.0), data_seed=0, oracle_of="M10o"),
        Cell(
            "M11", "±8 per 128-px region", _pairs, _TEN, (0.90, -np.inf), patch=64, ranks=(2,),
            one_shift_per_region=True,
        ),
    )
}  # fmt: skip


def patches(task: Task, cell: Cell, seed: int) -> Patches:
    """Cuts the training patches of a task with the labels of a cell; drawn once and frozen."""
    seed = cell.data_seed if cell.data_seed is not None else seed
    scenes, _ = task.scenes(seed)
    rank = scenes[0].input.ndim - 1
    batch = cell.batch or task.batch
    count = task.patches // (2 * batch) * 2 * batch if cell.one_shift_per_batch else task.patches
    inner = (cell.patch or task.patch,) * rank
    outer = tuple(size + 2 * cell.margin for size in inner)
    draw_rng = np.random.default_rng([41, seed])
    if cell.one_shift_per_region:
        transforms = None
        moved_scenes = [_moved_by_region(cell, draw_rng, scene.truth) for scene in scenes]
        reach = np.array(outer) // 2 + 8
    elif cell.elastic:
        transforms, (rms, length) = None, cell.elastic
        options = {"shape": outer, "rms": rms, "correlation_length": length, "paired": True}
        bent = draw_rng.permutation(misalign.draw_elastic(count, seed=draw_rng, **options))
        reach = misalign.reach(bent, shape=outer)
    else:
        draws = cell.draw(draw_rng, count // batch if cell.one_shift_per_batch else count, rank)
        transforms = np.repeat(draws, batch, axis=0) if cell.one_shift_per_batch else draw_rng.permutation(draws)
        reach = misalign.reach(transforms, shape=outer)
    reach = np.maximum(reach, np.array(inner) // 2 + _LEAST_REACH)
    # The places do not depend on the draws, so that cells of one reach differ in the moves alone.
    place_rng = np.random.default_rng([40, seed])
    chosen = place_rng.integers(0, len(scenes), count)
    uniform = place_rng.uniform(0, 1, (count, rank))
    inputs, labels, true_labels, corners, fields = [], [], [], [], []
    for sample, (index, place) in enumerate(zip(chosen, uniform)):
        scene = scenes[index]
        center = reach + np.floor(place * (np.array(scene.input.shape[:-1]) - 2 * reach)).astype(int)
        inputs.append(misalign.cut(scene.input, shape=inner, center=center))
        true_labels.append(misalign.cut(scene.truth, shape=outer, center=center))
        if cell.elastic:
            label, field = misalign.misaligned(scene.truth, bent[sample], shape=outer, center=center)
            labels.append(label)
            fields.append(misalign.cut(field, shape=inner, center=np.array(outer) // 2))
        elif transforms is None:
            labels.append(misalign.cut(moved_scenes[index], shape=outer, center=center))
        else:
            labels.append(misalign.misaligned(scene.truth, transforms[sample], shape=outer, center=center)[0])
        corners.append(center - np.array(inner) // 2)
    moved, aligned = (np.stack(some).astype(np.float32) for some in (labels, true_labels))
    is_wrong = np.zeros(count, bool)
    if cell.spoil:
        moved, is_wrong = cell.spoil(np.random.default_rng([42, seed]), moved)
        aligned, _ = cell.spoil(np.random.default_rng([42, seed]), aligned)
    return Patches(
        np.stack(inputs),
        moved,
        aligned,
        transforms,
        is_wrong,
        chosen,
        np.array(corners),
        np.float32(fields) if fields else None,
    )


def _moved_by_region(cell, rng, truth):
    """A scene whose regions are shifted, each by its own draw; near the border it is not to be used."""
    ids = misalign.region_ids(truth.shape[:-1], size=_REGION)
    shifts = cell.draw(rng, ids.max() + 1, truth.ndim - 1)[:, :-1, -1].astype(int)
    at = np.indices(ids.shape) - np.moveaxis(misalign.per_group(shifts, ids), -1, 0)
    return truth[tuple(np.clip(one, 0, size - 1) for one, size in zip(at, ids.shape))]
