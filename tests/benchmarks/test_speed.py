import numpy as np
import pytest
import tensorflow as tf

from benchmarks.speed import __main__ as command
from benchmarks.speed import forms, peers, steps

NEVER_WHERE_CONTENT_LEAVES = {"skimage phase", "cv2.phaseCorrelate"}  # they take the sides for periodic ones


@pytest.mark.parametrize("ways", [peers.whole_sides, peers.inner_parts])
@pytest.mark.parametrize(("shape", "bound"), [((200,), 12), ((48, 40), 5), ((24, 20, 22), 3)])
def test_tfalign_and_its_peers_answer_the_same_question(ways, shape, bound):
    pairs = peers.Pairs.made(3, shape, bound)
    times, exact = peers.compared(*ways(pairs), pairs, 1)
    assert times.keys() == exact.keys() >= {"tfalign", "tfalign, XLA"}
    assert len(times) > 2
    assert {share for name, share in exact.items() if name not in NEVER_WHERE_CONTENT_LEAVES} == {1.0}


def test_pairs_move_as_they_say():
    pairs = peers.Pairs.made(4, (20, 30), 6)
    for fixed, moving, (down, right) in zip(pairs.inner, pairs.moving, pairs.shifts):
        np.testing.assert_array_equal(moving[6 + down : 14 + down, 6 + right : 24 + right], fixed)


def test_mutual_information_equals_histograms_shift_by_shift():
    times, difference = peers.mutual_information(count=2, size=24, bound=3, repeats=1)
    assert times.keys() == {"tfalign", "np.histogram2d", "np.bincount"}
    assert difference < 1e-5


def test_a_step_and_the_loss_alone_are_timed():
    step = steps.training_step(filters=2, depth=1, size=16, batch=2, jit_compile=False, margin=2, repeats=1)
    alone = steps.loss_alone(size=16, batch=2, jit_compile=False, margin=2, repeats=1)
    assert step.keys() == alone.keys() == {"mae", "tfalign"}
    assert min(*step.values(), *alone.values()) > 0


def test_rows_say_whether_targets_are_met():
    times = {"tfalign": 2.0, "tfalign, XLA": 4.0, "peer": 1.0, "skimage masked NCC": 80.0}
    exact = {"tfalign": 1.0, "tfalign, XLA": 1.0, "peer": 0.5, "skimage masked NCC": 1.0}
    row = command.registration_row("pairs", times, exact)
    text = "\n".join(command.markdown([row]))
    assert "ratio 0.03 (target 1.00: met)" in text  # a peer that is wrong does not count
    assert "40 times faster than skimage's masked NCC (target 50: missed)" in text
    assert "| peer | 1.0 | 50 % |" in text


@pytest.mark.parametrize("name", list(forms.FORMS))
def test_all_forms_give_the_correlations_of_the_window(name):
    pairs = peers.Pairs.made(3, (28, 28), 2)
    truth = [
        [[np.sum(a * b[y : y + 24, x : x + 24]) for x in range(5)] for y in range(5)]
        for a, b in zip(pairs.inner, pairs.moving)
    ]
    found = forms.FORMS[name](tf.constant(pairs.inner), tf.constant(pairs.moving), 2)
    np.testing.assert_allclose(found, truth, atol=1e-5 * np.max(np.abs(truth)))


def test_coarse_to_fine_is_right_where_it_is_easy_and_not_where_nothing_fits():
    shares = forms.agreement(count=60, size=32, bound=8)
    assert shares["smooth noise"] == {2: 1.0, 4: 1.0}
    assert max(shares["tissue, label of another place"].values()) < 0.9
    text = "\n".join(forms.markdown({"pairs": {"FFTs (used)": 2.0, "another": 3.0}}, shares))
    assert "| another | 3.00 | 1.50 |" in text
    assert "| smooth noise | 100.00 % | 100.00 % |" in text
