import numpy as np
import pytest

from benchmarks.quality import runs, tables
from benchmarks.quality.__main__ import FORMS, wanted
from benchmarks.quality.arms import ARMS
from benchmarks.quality.cells import CELLS, patches
from benchmarks.quality.tasks import TASKS


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Every task shrunk to a few steps, with records of its own."""
    monkeypatch.setattr(runs, "RECORDS", tmp_path)
    for name, task in TASKS.items():
        monkeypatch.setitem(TASKS, name, task._replace(steps=30, patches=16, batch=8, filters=2, depth=2))


@pytest.mark.parametrize("cell", list(CELLS))
def test_labels_lie_where_the_truth_says(cell):
    task = TASKS["T0"]._replace(patches=32)
    data = patches(task, CELLS[cell], 3)
    margin, size = CELLS[cell].margin, task.patch
    if margin:
        for label, true, shift in zip(data.labels, data.true_labels, data.translations):
            start = margin + shift
            moved_back = label[start[0] : start[0] + size, start[1] : start[1] + size]
            np.testing.assert_array_equal(moved_back, true[margin:-margin, margin:-margin])
    assert (
        np.abs(
            data.inputs - data.true_labels.mean(-1, keepdims=True)[:, margin:][:, :size, margin:][:, :, :size]
        ).mean()
        < 0.02
    )


def test_places_and_truths_are_the_same_in_every_cell():
    task = TASKS["T3"]._replace(patches=32)
    one, other = patches(task, CELLS["M0"], 1), patches(task, CELLS["M1b1"], 1)
    np.testing.assert_array_equal(one.inputs, other.inputs)
    np.testing.assert_array_equal(one.true_labels, other.true_labels)
    assert not one.translations.any()
    assert np.abs(other.translations).max() == 8


def test_pairs_average_to_zero_and_batches_share_a_shift():
    task = TASKS["T0"]._replace(patches=64)
    assert not patches(task, CELLS["M1"], 0).translations.mean(axis=0).any()
    shared = patches(task, CELLS["M1s"], 0).translations.reshape(-1, task.batch, 2)
    assert np.all(shared == shared[:, :1])
    assert not shared.mean(axis=(0, 1)).any()
    assert len(np.unique(shared[:, 0], axis=0)) > 1


@pytest.mark.parametrize("arm", list(ARMS))
def test_every_arm_trains_and_keeps_its_record(small, arm):
    run = runs.Run("T1", "M1", arm, 0)
    record = runs.do(run)
    assert np.isfinite(record["score"])
    assert record["score_moved_back"] >= record["score"] - 3
    assert len(record["curve"]["score"]) == 30
    runs.RECORDS.joinpath("x").write_text("")
    assert runs.load(run) == record
    assert runs.do(run) == record


def test_true_shifts_through_our_crop_are_the_aligned_labels():
    task, cell = TASKS["T0"]._replace(patches=16), CELLS["M1"]
    data = patches(task, cell, 0)
    labels, _ = ARMS["oracle-shift"].prepare(task, cell, data)
    aligned, _ = ARMS["oracle"].prepare(task, cell, data)
    np.testing.assert_array_equal(labels, aligned)


def test_records_name_what_made_them(monkeypatch):
    run = runs.Run("T1", "M1", "tfalign", 0)
    before = runs.path(run)
    assert runs.path(run._replace(seed=1)) != before
    monkeypatch.setitem(TASKS, "T1", TASKS["T1"]._replace(steps=7))
    assert runs.path(run) != before
    monkeypatch.undo()
    assert runs.path(run) == before
    monkeypatch.setattr(runs, "_loss_sources", lambda: "other")
    assert runs.path(run) != before
    assert runs.path(run._replace(arm="plain")) == runs.path(run._replace(arm="plain"))
    assert "sources" not in runs.key(run._replace(arm="plain"))


def test_aligned_labels_are_trained_once():
    one = tables.canonical(runs.Run("T1", "M1r", "oracle", 2))
    assert one == runs.Run("T1", "M0", "plain", 2)
    assert tables.canonical(runs.Run("T1", "M1b2", "oracle", 2)).cell == "M1b2"
    assert tables.canonical(runs.Run("T1", "M1n", "plain", 2)) == runs.Run("T1", "M1", "plain", 2)
    assert tables.canonical(runs.Run("T1", "M1n", "tfalign", 2)).cell == "M1n"


def test_the_quick_form_is_four_runs():
    assert len(set(wanted(**FORMS["quick"]))) == 4


def record(score, drift=(0.0, 0.0)):
    return {
        "score": score,
        "score_moved_back": score + 1,
        "score_at_a_third": score - 1,
        "drift": list(drift),
        "milliseconds_per_step": 10.0,
        "sharpness": 1.0,
    }


def test_tables(monkeypatch, tmp_path):
    scores = {("M1", "plain"): 20.0, ("M0", "plain"): 30.0, ("M1", "tfalign"): 29.0, ("M0", "tfalign"): 29.5}
    monkeypatch.setattr(
        runs,
        "load",
        lambda run: (
            record(scores[run.cell, run.arm] + 0.1 * run.seed, (0.3, 0.4)) if (run.cell, run.arm) in scores else None
        ),
    )
    rows = tables.summarise(["T1"], ["M0", "M1"], ["plain", "oracle", "tfalign"], range(3))
    by_name = {(row["cell"], row["arm"]): row for row in rows}
    np.testing.assert_allclose(by_name["M1", "tfalign"]["gap_recovered"], 0.9)
    assert set(by_name) == {("M0", "tfalign"), ("M1", "tfalign")}
    np.testing.assert_allclose(by_name["M0", "tfalign"]["minus_plain"], -0.5)
    np.testing.assert_allclose(by_name["M1", "tfalign"]["drift"], 0.5)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    tables.write(rows, "some", "a command")
    text = (tmp_path / "some.md").read_text()
    assert "0.900 / 0.900" in text
    assert text.count("| no |") == 2
    assert (tmp_path / "some.png").exists()
