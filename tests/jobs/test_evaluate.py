import numpy as np
import pytest

from tfalign.data import stain
from tfalign.jobs import evaluate


def test_a_perfect_prediction_scores_perfectly():
    truth = stain.tissue()[1][:64, :64]
    metrics = evaluate.image_metrics(truth + 1e-4, truth)
    assert metrics["psnr"] > 75
    assert metrics["ssim"] > 0.999
    np.testing.assert_allclose(metrics["sharpness"], 1.0, atol=1e-2)
    np.testing.assert_allclose(metrics["drift"], [0, 0], atol=1e-2)


def test_a_moved_prediction_is_seen_and_moved_back():
    truth = stain.tissue()[1][100:200, 100:220]
    moved = np.roll(truth, (2, -1), axis=(0, 1))
    metrics = evaluate.image_metrics(moved, truth)
    np.testing.assert_allclose(metrics["drift"], [2, -1], atol=0.1)
    assert metrics["psnr"] < 25
    assert metrics["psnr_moved_back"] > 80


def test_a_blurred_prediction_is_less_sharp():
    truth = stain.tissue()[1][100:200, 100:220]
    blurred = sum(np.roll(truth, shift, axis=0) for shift in range(-4, 5)) / 9
    assert evaluate.sharpness(blurred, truth) < 0.5


def test_gap_recovered():
    assert evaluate.gap_recovered(20.0, 20.0, 30.0) == 0
    assert evaluate.gap_recovered(30.0, 20.0, 30.0) == 1
    assert evaluate.gap_recovered(19.0, 20.0, 30.0) == pytest.approx(-0.1)
