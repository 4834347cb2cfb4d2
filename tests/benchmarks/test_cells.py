"""The cells of the quality benchmark: what is given as the truth is the truth, and arms differ in nothing else."""

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

import benchmarks.quality
import tfalign
from benchmarks.quality.cells import CELLS, patches
from benchmarks.quality.tasks import Scene, Task, event_f1
from tfalign import drift

SIZES = {1: 400, 2: 220, 3: 112}


PROBED_VERSION = 5
PROBES = [0.0161322, 0.0161285, 0.025219, 0.0161409]
PROBES += [117.5, 33, 0.0556447, -0.00552296, 0.999985, 0.999961]
PROBES += [117.5, 24, 0.0553587, -0.0046532, 0.999985, 0.0837104]
PROBES += [117.5, 36, 0.054324, -0.00896029, 0.999985, 0.0675881]


def loss_probes():
    """Numbers that change when what the loss does changes: losses of fixed data, and how the drift filter runs."""
    rng = np.random.default_rng(0)
    field = scipy.ndimage.gaussian_filter(rng.standard_normal((4, 60, 60, 2)), (0, 2, 2, 0)).astype(np.float32)
    prediction = field[:, 14:46, 14:46] + 0.02 * rng.standard_normal((4, 32, 32, 2)).astype(np.float32)
    found = []
    for label, options in (
        (field[:, 7:49, 12:54], {}),
        (field[:, 17:49, 12:44], {}),
        (field[:, 7:49, 12:54], {"subpixel": True, "drift": [0.3, -0.4]}),
        (np.where(field > 0.3, np.nan, field)[:, 7:49, 12:54], {"similarity": "mse"}),
    ):
        found.append(float(np.mean(tfalign.shift_invariant_loss(label, prediction, max_shift=6, **options))))
    for scale, batch in ((0, 16), (5, 16), (5, 1)):
        state, ready, corrected = drift.initial((8, 8)), 0.0, 0.0
        for step in range(200):
            shifts = np.round(rng.uniform(-scale, scale, (batch, 2))) + np.array([1.2, -0.4]) * np.exp(-step / 60)
            confidence = np.full(batch, 1 - np.exp(-step / 15))
            sums = drift.batch_sums(tf.constant(shifts, tf.float32), confidence, min_confidence=0.5, mean=state.mean)
            state = drift.update(state, sums, warmup_steps="auto", subpixel=False)
            ready, corrected = ready + float(state.ready[0]), corrected + float(tf.reduce_sum(state.correction))
        found += [ready, corrected, *state.mean.numpy()[:2], state.coherence.numpy()[0], state.in_place.numpy()[0]]
    return found


def test_the_loss_does_what_its_version_did():
    assert benchmarks.quality.LOSS_VERSION == PROBED_VERSION
    np.testing.assert_allclose(
        loss_probes(), PROBES, rtol=1e-3, atol=1e-4, err_msg="count LOSS_VERSION up and measure again"
    )


def task(rank):
    """Two smooth scenes whose input is half their truth."""

    def scenes(seed):
        rng = np.random.default_rng(seed)
        fields = [rng.standard_normal((SIZES[rank],) * rank + (1,)).astype(np.float32) for _ in range(2)]
        fields = [scipy.ndimage.gaussian_filter(field, (1.5,) * rank + (0,)) for field in fields]
        return [Scene(0.5 * field, field) for field in fields], []

    return Task("X", "smooth noise", scenes, score=lambda *_: 0.0, unit="", patch=16, patches=12, batch=2, rank=rank)


CASES = [(name, rank) for name, cell in CELLS.items() for rank in cell.ranks]


@pytest.mark.parametrize(("name", "rank"), CASES)
def test_aligned_labels_lie_on_their_inputs_and_the_truth_aligns_the_others(name, rank):
    cell, made = CELLS[name], patches(task(rank), CELLS[name], seed=3)
    margin = (slice(cell.margin, -cell.margin or None),) * rank
    if cell.spoil is None:
        np.testing.assert_allclose(made.true_labels[(slice(None), *margin)], 2 * made.inputs, rtol=1e-6)
    if made.fields is not None:
        aligned, mask = tfalign.warp(made.labels, np.nan_to_num(made.fields), interpolation="cubic")
        known = (mask.numpy() > 0) & np.all(np.isfinite(made.fields), axis=-1)
        error = (aligned.numpy() - 2 * made.inputs)[..., 0][known]
        assert known.mean() > 0.9
        assert np.sqrt(np.mean(error**2)) < 0.1 * 2 * made.inputs.std()
        assert np.sqrt(np.mean(made.fields[known] ** 2)) > 0.5 * cell.elastic[0]
    if made.transforms is None:
        return
    assert made.labels.shape == made.true_labels.shape
    if cell.spoil is None or name == "M8":
        transforms = made.transforms.astype(np.float32)
        shape = made.inputs.shape[1:-1]
        aligned, mask = tfalign.warp(made.labels, transforms, output_shape=shape)
        right = ~made.is_wrong
        inside = mask.numpy()[right][..., np.newaxis] > 0
        error = np.where(inside, aligned.numpy()[right] - 2 * made.inputs[right], 0.0)
        assert inside.mean() > 0.3
        # Linear interpolation on the way back costs what it costs; whole pixels nothing.
        whole = np.array_equal(made.transforms, np.round(made.transforms))
        assert np.sqrt(np.mean(error**2)) <= (0 if whole else 0.12) * made.inputs.std() * 2


@pytest.mark.parametrize("name", [name for name, cell in CELLS.items() if cell.oracle_of or cell.plain_of])
def test_cells_that_share_an_arm_have_the_same_patches(name):
    cell = CELLS[name]
    mine = patches(task(2), cell, seed=0)
    for other in filter(None, (cell.oracle_of, cell.plain_of)):
        np.testing.assert_array_equal(mine.inputs, patches(task(2), CELLS[other], seed=0).inputs)


@pytest.mark.parametrize("name", ["M1", "M2", "M3", "M4", "M5"])
def test_pairs_average_to_the_stated_mean(name):
    shifts = patches(task(2), CELLS[name], seed=1).transforms[:, :2, 2]
    np.testing.assert_allclose(shifts.mean(axis=0), 3 if name == "M3" else 0, atol=1e-9)


def test_one_shift_per_batch_stays_in_its_batch():
    shifts = patches(task(2), CELLS["M1s"], seed=1).transforms[:, :2, 2].reshape(-1, 2, 2)
    np.testing.assert_array_equal(shifts[:, 0], shifts[:, 1])
    assert len(np.unique(shifts[:, 0], axis=0)) > 2


def test_swapped_labels_are_flagged_and_shared_with_the_oracle():
    made, clean = (patches(task(2), CELLS[name], seed=5) for name in ("M8", "M1"))
    differs = (made.true_labels != clean.true_labels).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(differs, made.is_wrong)
    assert made.is_wrong.sum() == round(0.2 * len(made.labels))


def test_regions_have_one_shift_each():
    made = patches(task(2), CELLS["M11"], seed=0)
    moved = (made.labels != made.true_labels).any(axis=(1, 2, 3))
    assert moved.mean() > 0.7


@pytest.mark.parametrize(
    ("places", "hits", "found"), [([20, 60, 100], 3, 3), ([20, 62, 103], 2, 3), ([20, 40], 1, 2), ([], 0, 0)]
)
def test_event_f1(places, hits, found):
    def heat(positions):
        away = np.arange(120)[:, np.newaxis] - np.array(positions or [-50])
        return np.exp(-0.5 * (away / 1.5) ** 2).max(axis=1, keepdims=True)

    value = event_f1([heat(places)], [heat([20, 60, 100])], tolerance=2)
    assert value == pytest.approx(200 * hits / (found + 3))
