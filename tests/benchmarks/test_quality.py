import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks.quality import offsets, runs, tables
from benchmarks.quality.__main__ import FORMS, expected
from benchmarks.quality.arms import ARMS
from benchmarks.quality.cells import CELLS, patches
from benchmarks.quality.tasks import TASKS


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Every task shrunk to a few steps, with records of its own."""
    monkeypatch.setattr(runs, "RECORDS", tmp_path / "records")
    for name, task in TASKS.items():
        monkeypatch.setitem(TASKS, name, task._replace(steps=30, patches=16, batch=8, filters=2, depth=2))


@pytest.mark.parametrize("arm", [name for name, arm in ARMS.items() if arm.around is None])
def test_every_arm_has_labels_and_a_loss_with_a_gradient(small, arm):
    cell = CELLS[{"per-image": "M11", "anchors": "M3"}.get(arm, "M1")]
    data = patches(TASKS["T1"], cell, 0)
    labels, loss = ARMS[arm].prepare(TASKS["T1"], cell, data)
    assert labels.dtype == np.float32
    assert len(labels) == len(data.inputs)
    loss = keras.losses.get(loss) if isinstance(loss, str) else loss
    predictions = tf.Variable(np.float32(np.random.default_rng(0).random((4, *data.inputs.shape[1:-1], 3))))
    with tf.GradientTape() as tape:
        value = tf.reduce_mean(loss(labels[:4], predictions))
    gradient = tape.gradient(value, predictions).numpy()
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient != 0)


@pytest.mark.parametrize("arm", ["plain", "tfalign", "anchors", "running-mean", "twins", "joint"])
def test_an_arm_trains_and_keeps_its_record(small, arm):
    cell = {"anchors": "M3", "twins": "M6", "joint": "M6"}.get(arm, "M1")
    run = runs.Run("T1", cell, arm, 0)
    record = runs.do(run)
    assert np.isfinite(record["score"])
    assert record["score_moved_back"] >= record["score"] - 3
    assert len(record["curve"]["score"]) == len(record["curve"]["offset"]) == 15
    if ARMS[arm].around is not None:
        assert record["field_error"]["folds"] == 0
        assert np.isfinite(record["field_error"]["median"])
        assert (runs.RECORDS.parent / f"bent-T1-M6-{arm}.png").exists()
    if arm == "twins":
        assert 0 < record["field_error"]["median"] < 3 * record["field_error"]["true_mean"]
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
    plain = runs.path(run._replace(arm="plain"))
    assert runs.path(run, loss_version=-1) != before
    assert runs.path(run._replace(arm="plain"), loss_version=-1) == plain


def test_aligned_labels_are_trained_once():
    assert runs.Run("T1", "M1r", "oracle", 2).canonical() == runs.Run("T1", "M0", "plain", 2)
    assert runs.Run("T1", "M1b2", "oracle", 2).canonical().cell == "M1b2"
    assert runs.Run("T1", "M1n", "plain", 2).canonical() == runs.Run("T1", "M1", "plain", 2)
    assert runs.Run("T1", "M1n", "oracle", 2).canonical() == runs.Run("T1", "M0", "plain", 2)
    assert runs.Run("T1", "M1n", "tfalign", 2).canonical().cell == "M1n"
    assert runs.Run("T1", "M10", "oracle", 7).canonical() == runs.Run("T1", "M10o", "plain", 7)


def test_the_table_of_bent_labels_has_their_fields(monkeypatch):
    scores = {"plain": 20.0, "oracle": 30.0, "twins": 29.0, "tfalign": 25.0}
    found = {"field_error": {"mean": 0.75, "median": 0.5, "true_mean": 4.0, "folds": 0.25}}
    monkeypatch.setattr(
        runs,
        "load",
        lambda run, version: (
            record(scores[run.arm]) | (found if run.arm == "twins" else {}) if run.cell == "M6b" else None
        ),
    )
    monkeypatch.setitem(CELLS, "M6b", CELLS["M6b"]._replace(oracle_of=None))
    rows = tables.summarise(["T1"], ["M6b"], ["tfalign", "twins"], 1, inits=1)
    lines = tables.bent_labels(rows).splitlines()
    assert len(lines) == 3
    assert "0.900 | 0.00 | 4.00 | 0.75 | 0.50 | 25.00 % | x1.00" in lines[2]


def test_the_table_of_wrong_labels_tells_both_measures(monkeypatch):
    """Seeds of which not all have both tell what they all have."""
    found = [{"wrong_scene_auc": 0.9 + seed / 100, "wrong_scene_auc_of_score": 0.99} for seed in range(3)]
    monkeypatch.setattr(
        runs,
        "load",
        lambda run, version: (
            record({"plain": 20.0, "oracle": 30.0, "tfalign": 29.0}[run.arm]) | {"shift_error": found[run.seed]}
        ),
    )
    (row,) = tables.summarise(["T1"], ["M8"], ["tfalign"], 3, inits=1)
    assert tables.wrong_labels([row]).splitlines()[2:] == [
        "| T1 tissue stain | tfalign | 3 | 0.910 / 0.900 | 0.990 / 0.990 |"
    ]
    del found[1]["wrong_scene_auc_of_score"]
    (row,) = tables.summarise(["T1"], ["M8"], ["tfalign"], 3, inits=1)
    assert tables.wrong_labels([row]).splitlines()[2:] == ["| T1 tissue stain | tfalign | 3 | 0.910 / 0.900 |  |"]


def test_what_tells_wrong_labels_is_counted():
    """The share of pairs in which the right one is larger, ties by half."""
    assert runs._auc(np.array([3.0, 2.0, 1.0]), np.array([1.0, 0.0])) == 5.5 / 6


def test_variants_of_the_twins_run_on_one_cell():
    variants = {run.arm: run.cell for run in expected(**FORMS["gate"]) if run.arm.startswith("twins-")}
    assert set(variants.values()) == {"M6b"}
    assert set(variants) == {name for name in ARMS if name.startswith("twins-")}


def test_biased_labels_are_warned_of_and_no_others():
    rows = offsets.checks(["T0"], ["M0", "M3"], 1)
    assert [row["warned"] for row in rows] == [[False], [True]]
    np.testing.assert_allclose(rows[0]["offset"], 0.0, atol=0.1)
    np.testing.assert_allclose(rows[1]["offset"], 3.0, atol=1.0)
    lines = offsets.markdown(rows).splitlines()
    assert [line.split("|")[-3:-1] for line in lines[2:]] == [[" 0 of 1 ", " yes "], [" 1 of 1 ", " yes "]]
    assert " no |" in offsets.markdown([{**rows[1], "warned": [False]}])


def test_forms_name_what_belongs_to_them():
    assert len(expected(**FORMS["quick"])) == 4
    gate = expected(**FORMS["gate"])
    assert len(gate) == len(set(gate))
    assert {run.arm for run in gate if run.cell == "M4"} >= {"tfalign", "oracle-shift"}
    assert "M4" not in {run.cell for run in expected(["T4"], list(CELLS), ["tfalign"], 1)}
    assert len([run for run in gate if run.cell == "M10" and run.arm == "tfalign"]) == 20
    assert not [run for run in gate if run.arm == "itk" and run.task != "T1"]
    volumes = expected(["T5"], list(CELLS), ["tfalign"], 1)
    assert "M11" not in {run.cell for run in volumes}
    assert gate[0].arm == "plain"


def test_flips_mirror_input_and_label_together():
    labels = np.arange(64 * 6 * 6, dtype=np.float32).reshape(64, 6, 6, 1)
    images, moved = next(iter(runs._dataset(labels[:, 1:-1, 1:-1], labels, 64, CELLS["M3f"], 0)))
    np.testing.assert_array_equal(images, moved[:, 1:-1, 1:-1])
    corners = moved.numpy()[:, 0, 0, 0] % 36
    assert set(corners) == {0, 5, 30, 35}
    assert min(np.sum(corners == corner) for corner in (0, 5, 30, 35)) > 5


def record(score, drift=(0.0, 0.0)):
    return {
        "key": {},
        "score": score,
        "score_moved_back": score + 1,
        "score_at_a_third": score - 1,
        "drift": list(drift),
        "milliseconds_per_step": 10.0,
        "sharpness": 1.0,
        "curve": {"step": [500, 1000], "score": [score - 1, score], "offset": [[1.0, 0.0], [0.0, 0.0]]},
    }


def test_a_seed_whose_perfect_labels_gain_nothing_has_no_gap(monkeypatch):
    """The others are told, but not at a glance, and nothing is judged; gaps that differ much are told there too."""
    scores = {("M1", "plain"): [20.0, 0.0, 20.0], ("M0", "plain"): [30.0, 0.0, 30.0]}
    scores["M1", "tfalign"] = [29.0, 25.0, 28.0]
    monkeypatch.setattr(runs, "load", lambda run, version: record(scores[run.cell, run.arm][run.seed]))
    (row,) = tables.summarise(["T3"], ["M1"], ["tfalign"], 3, inits=3)
    np.testing.assert_allclose(row["gap_recovered"], [0.9, np.nan, 0.8])
    assert row["no_gap"]
    assert "| 0.850 / 0.800 |" in tables.markdown([row])
    assert tables.markdown([row]).rstrip().endswith("| no gap |")
    assert "| no gap (3) |" in tables.glance([row], "tfalign")
    scores["M0", "plain"][1] = 2.0
    (row,) = tables.summarise(["T1"], ["M1"], ["tfalign"], 3, inits=3)
    assert "| 0.900 / 0.800 no gap (3) |" in tables.glance([row], "tfalign")


def test_a_row_is_of_the_newest_version_that_was_run_and_says_so(monkeypatch):
    """Runs of two versions are not mixed; what uses no loss of ours has no version."""
    scores = {
        ("plain", None): 20.0,
        ("oracle", None): 30.0,
        ("tfalign", 4): 29.0,
        ("tfalign", 3): 25.0,
        ("bare", 5): 28.0,
    }
    monkeypatch.setattr(tables, "LOSS_VERSION", 5)
    monkeypatch.setitem(CELLS, "M1", CELLS["M1"]._replace(oracle_of=None))

    def load(run, version):
        told = None if run.arm in {"plain", "oracle"} else version
        if (run.arm, told) not in scores or (told == 4 and run.seed):
            return None
        return record(scores[run.arm, told]) | {"key": {} if told is None else {"loss_version": told}}

    monkeypatch.setattr(runs, "load", load)
    rows = tables.summarise(["T1"], ["M1"], ["tfalign", "bare"], 3, inits=3)
    assert [(row["loss_version"], row["seeds"]) for row in rows] == [(4, [0]), (5, [0, 1, 2])]
    np.testing.assert_allclose(rows[0]["gap_recovered"], [0.9])
    assert "(1, version 4) |" in tables.glance(rows, "tfalign")
    assert "(3) |" in tables.glance(rows, "bare")
    assert "tfalign, loss of version 4 |" in tables.markdown(rows)
    assert tables.markdown(rows).count("version") == 1


def test_tables(monkeypatch, tmp_path):
    scores = {("M1", "plain"): 20.0, ("M0", "plain"): 30.0, ("M1", "tfalign"): 29.0, ("M0", "tfalign"): 29.5}
    monkeypatch.setattr(
        runs,
        "load",
        lambda run, version: (
            record(scores[run.cell, run.arm] + 0.1 * run.seed, (0.3, 0.4)) if (run.cell, run.arm) in scores else None
        ),
    )
    rows = tables.summarise(["T1"], ["M0", "M1"], ["tfalign"], 3, inits=3)
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
