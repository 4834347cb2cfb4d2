import math

import pytest

from tfalign.jobs import config, stopping


def judged(values, monitor="val_loss", ready=None, **options):
    settings = config.from_mapping({"inputs": "a", "labels": "b", **options})
    rows = [{"epoch": epoch, "loss": 1.0, monitor: value} for epoch, value in enumerate(values)]
    for row, is_ready in zip(rows, ready or ()):
        row["alignment_ready"] = is_ready
    return stopping.judge(rows, settings, monitor)


def test_the_best_epoch_is_the_lowest_or_for_scores_the_highest():
    assert judged([3.0, 1.0, 2.0]).best_epoch == 1
    assert judged([1.0, 3.0, 2.0], monitor="val_in_place_psnr").best_epoch == 1
    assert judged([2.0, 2.0]).best_epoch == 0
    assert judged([]) == stopping.Verdict(None, 1e-3, None)
    assert judged([None, 4.0]).best_epoch == 1


def test_epochs_before_alignment_do_not_count_once_it_has_begun():
    assert judged([0.1, 0.2, 0.3, 0.25], ready=[0.0, 0.0, 1.0, 1.0]).best_epoch == 3
    assert judged([0.2, 0.1, 0.3], ready=[0.0, 0.0, 0.0]).best_epoch == 1
    assert judged([0.1] + [0.3] * 3, ready=[0.0] + [1.0] * 3, stop_patience=3).stop is None


def test_the_rate_falls_on_a_plateau():
    options = {"learning_rate": 0.8, "reduce_patience": 2, "reduce_factor": 0.5}
    assert judged([3.0, 2.0, 2.5], **options).learning_rate == 0.8
    assert judged([3.0, 2.0, 2.5, 2.5], **options).learning_rate == 0.4
    assert judged([3.0, 2.0, 2.5, 2.5, 2.5], **options).learning_rate == 0.4
    assert judged([3.0, 2.0, 2.5, 2.5, 2.5, 2.5], **options).learning_rate == 0.2
    assert judged([2.0] * 60, **options, stop_patience=None).learning_rate == pytest.approx(0.8e-3)
    assert judged([3.0] * 9, **options, schedule="constant").learning_rate == 0.8


def test_the_cosine_ends_at_nothing():
    options = {"schedule": "cosine", "epochs": 4, "learning_rate": 1.0}
    assert judged([], **options).learning_rate == 1.0
    assert judged([1.0] * 2, **options).learning_rate == pytest.approx(0.5)
    assert judged([1.0] * 4, **options).learning_rate == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("values", "options", "reason"),
    [
        ([1.0, 2.0, 2.0], {"stop_patience": 2}, "no improvement"),
        ([1.0, 2.0], {"stop_patience": 2}, None),
        ([1.0, 2.0, 2.0], {"stop_patience": None}, None),
        ([0.5, 0.09], {"stop_below": 0.1}, "threshold reached"),
        ([0.05, 0.2], {"stop_below": 0.1}, None),
        ([2.0, 1.001, 1.0, 1.0005], {"stop_change": 0.01, "stop_change_epochs": 3}, "converged"),
        ([1.0, 1.0005], {"stop_change": 0.01, "stop_change_epochs": 3}, None),
        ([2.0, 1.5, 1.0], {"stop_change": 0.01, "stop_change_epochs": 3}, None),
    ],
)
def test_reasons_to_stop(values, options, reason):
    assert judged(values, **options).stop == reason


def test_scores_stop_above_their_threshold():
    assert judged([20.0, 31.0], monitor="val_in_place_psnr", stop_below=30.0).stop == "threshold reached"
    assert judged([20.0, 29.0], monitor="val_in_place_psnr", stop_below=30.0).stop is None


def test_a_loss_that_is_no_number_stops():
    settings = config.from_mapping({"inputs": "a", "labels": "b"})
    for loss in (math.nan, None):
        rows = [{"epoch": 0, "loss": 1.0, "val_loss": 1.0}, {"epoch": 1, "loss": loss, "val_loss": loss}]
        verdict = stopping.judge(rows, settings, "val_loss")
        assert verdict.stop == "diverged"
        assert verdict.best_epoch == 0


def test_an_unknown_column_is_named():
    with pytest.raises(ValueError, match=r"`monitor` must be a column.*val_psnr.*val_loss"):
        stopping.judge([{"epoch": 0, "loss": 1.0, "val_loss": 1.0}], config.from_mapping({"inputs": "a"}), "val_psnr")
