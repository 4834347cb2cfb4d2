"""The soft choice: labels at all their shifts at once."""

import keras
import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

import tfalign
from tests import reference
from tests.conftest import in_modes
from tests.test_loss_geometry import made, turned_pair
from tfalign import drift

BOUND = 3
MASKS = {"holes": [0.0, *[1.0] * 6], "graded": [0.0, 0.3, 0.3, *[1.0] * 4]}


def noisy_pair(rng, *, noise, margin=BOUND, size=14, batch=3, mask=None):
    """Labels of the predictions' content, moved by up to 2 px, under noise that leaves their shifts open."""
    field = scipy.ndimage.gaussian_filter(rng.standard_normal((batch, 60, 60, 2)), (0, 1.5, 1.5, 0))
    field = np.float32(0.5 + 0.1 * field / field.std())
    prediction = field[:, 20 : 20 + size, 20 : 20 + size]
    outer = size + 2 * margin
    label = np.stack(
        [
            one[20 - margin - y : 20 - margin - y + outer, 20 - margin - x : 20 - margin - x + outer]
            for one, (y, x) in zip(field, [(1, -2), (0, 2), (-2, 1)])
        ]
    )
    label = np.float32(np.clip(label + noise * rng.standard_normal(label.shape), 0.01, 0.99))
    weight = rng.choice(MASKS[mask], label.shape[:-1]) if mask else np.ones(label.shape[:-1])
    return label, prediction, np.float32(weight)


def of_each_sample(y_true, y_pred):
    return tf.reduce_mean(tf.square(y_true - y_pred), axis=[1, 2, 3])


def posteriors(label, prediction, weight):
    found = tfalign.register(prediction, label, max_shift=BOUND, moving_mask=weight, return_map=True)
    return found.posterior_map.numpy()


def expected_label(label, weight, posterior, size):
    """In loops over pixels and shifts: the weighted mean over those that find a value, and its weight."""
    mean, total, share = np.zeros((*size, label.shape[-1])), np.zeros(size), np.zeros(size)
    for index in np.ndindex(*size):
        for step in np.ndindex(*posterior.shape):
            at = tuple(
                i + m // 2 - n // 2 + s - bound
                for i, m, n, s, bound in zip(index, label.shape, size, step, [BOUND, BOUND])
            )
            if all(0 <= i < m for i, m in zip(at, label.shape)) and weight[at] > 0:
                mean[index] += posterior[step] * weight[at] * label[at]
                total[index] += posterior[step] * weight[at]
                share[index] += posterior[step]
    known = share > 0.5
    return np.where(known[..., None], mean / np.maximum(total, 1e-9)[..., None], 0.0), np.where(known, total, 0.0)


@pytest.mark.parametrize(
    ("run", "kind", "base", "margin", "mask"),
    in_modes(
        [
            ("mean", base, *labels)
            for base in ("mse", "binary_crossentropy")
            for labels in ((3, None), (0, "holes"), (3, "graded"))
        ]
    ),
    indirect=["run"],
)
def test_the_mean_label_equals_loops(rng, run, kind, base, margin, mask):
    label, prediction, weight = noisy_pair(rng, noise=0.8, margin=margin, mask=mask)
    y_true = np.concatenate([label, weight[..., np.newaxis]], axis=-1)
    options = {"max_shift": BOUND, "assignment": "soft", "label_extras": ("mask",)}
    loss = run(lambda y, p: tfalign.shift_invariant_loss(y, p, base, **options), y_true, prediction)
    posterior = posteriors(label, prediction, weight)
    assert np.max(posterior) < 0.9
    for sample in range(3):
        mean, share = expected_label(label[sample], weight[sample], posterior[sample], prediction.shape[1:-1])
        p = prediction[sample].astype(float)
        if base == "mse":
            each = np.square(mean - p).mean(axis=-1)
        else:
            each = -(mean * np.log(p) + (1 - mean) * np.log(1 - p)).mean(axis=-1)
        np.testing.assert_allclose(loss[sample], np.sum(share * each) / np.sum(share), rtol=1e-3)


def test_of_other_bases_the_likeliest_shifts_are_averaged(rng, run):
    label, prediction, weight = noisy_pair(rng, noise=0.8)
    loss = run(
        lambda y, p: tfalign.shift_invariant_loss(y, p, "mae", max_shift=BOUND, assignment="soft"), label, prediction
    )
    for sample, posterior in enumerate(posteriors(label, prediction, weight)):
        likeliest = np.argsort(posterior.ravel())[::-1][:8]
        total = 0.0
        for index in likeliest:
            shift = np.array(np.unravel_index(index, posterior.shape)) - BOUND
            ones = np.ones(prediction.shape[1:-1]), np.ones(label.shape[1:-1])
            left, right, _ = reference.overlap_values(prediction[sample], label[sample], *ones, shift)
            total += posterior.flat[index] * np.abs(left - right).mean()
        np.testing.assert_allclose(loss[sample], total / posterior.flat[likeliest].sum(), rtol=1e-3)


@pytest.mark.parametrize("base", ["mse", "binary_crossentropy"])
def test_a_weight_counts_however_little(rng, base):
    """Without a shift as in the hard choice; a label is not lost where all of its pixels weigh little."""
    label, prediction, _ = noisy_pair(rng, noise=0.8)
    for weight in (np.where(rng.random((3, 20, 20, 1)) < 0.4, 0.2, 1.0), np.full((3, 20, 20, 1), 0.01)):
        y_true = np.float32(np.concatenate([label, weight], axis=-1))
        soft, hard = (
            tfalign.shift_invariant_loss(
                y_true, prediction, base, max_shift=0, assignment=assignment, label_extras=("mask",)
            )
            for assignment in ("soft", "hard")
        )
        np.testing.assert_allclose(soft, hard, rtol=1e-3)


@pytest.mark.parametrize("base", ["mse", "mae"])
def test_a_clear_shift_is_the_hard_choice(rng, base):
    label, prediction, _ = noisy_pair(rng, noise=0.01, size=24)
    soft, hard = (
        tfalign.shift_invariant_loss(label, prediction, base, max_shift=BOUND, assignment=assignment)
        for assignment in ("soft", "hard")
    )
    np.testing.assert_allclose(soft, hard, rtol=1e-2)


def test_the_mean_label_has_the_gradient_of_all_shifts(rng):
    """Of a squared error: that of the losses of every shift, weighted by their probabilities."""
    label, prediction, weight = noisy_pair(rng, noise=0.8)
    variable = tf.Variable(prediction)
    with tf.GradientTape() as tape:
        loss = tfalign.shift_invariant_loss(label, variable, "mse", max_shift=BOUND, assignment="soft")
    posterior, gradient = posteriors(label, prediction, weight), np.zeros(prediction.shape)
    size = prediction.shape[1]
    for y, x in np.ndindex(*posterior.shape[1:]):
        difference = prediction - label[:, y : y + size, x : x + size]
        gradient += posterior[:, y, x, None, None, None] * 2 * difference / prediction[0].size
    np.testing.assert_allclose(tape.gradient(loss, variable), gradient, atol=1e-6)


@pytest.mark.parametrize("base", ["mae", "mse", of_each_sample])
def test_it_trains_under_xla(rng, base):
    """In `fit` the size of a batch is not known."""
    label, prediction, _ = noisy_pair(rng, noise=0.8)
    losses = {}
    for jit_compile in (False, True):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((14, 14, 2)), keras.layers.Conv2D(2, 3, padding="same")])
        loss = tfalign.ShiftInvariantLoss(base, max_shift=BOUND, assignment="soft", warmup_steps=0)
        model.compile("sgd", loss=loss, jit_compile=jit_compile)
        losses[jit_compile] = model.fit(prediction, label, batch_size=2, epochs=2, shuffle=False, verbose=0).history[
            "loss"
        ]
    np.testing.assert_allclose(losses[True], losses[False], rtol=1e-3)


@pytest.mark.parametrize("base", ["mse", "mae"])
def test_sizes_known_only_at_run_time(rng, base):
    label, prediction, _ = noisy_pair(rng, noise=0.8)

    def loss(y, p):
        return tfalign.shift_invariant_loss(y, p, base, max_shift=BOUND, assignment="soft")

    traced = tf.function(loss, input_signature=[tf.TensorSpec((None, None, None, 2))] * 2)
    np.testing.assert_allclose(traced(label, prediction), loss(label, prediction), rtol=1e-4)


def test_turned_labels_softly(rng):
    label, prediction = turned_pair(rng, made([[2.0, -3.0], [-4.0, 1.0]], rotation=[[5.0], [0.0]]))
    options = {"max_shift": 6, "max_rotation": 8.0}
    for base in ("mse", "mae"):
        plain = tfalign.shift_invariant_loss(label, prediction, base, max_shift=0)
        soft = tfalign.shift_invariant_loss(label, prediction, base, assignment="soft", **options)
        assert np.max(soft / plain) < 0.1


def test_sparse_classes_and_the_drift(rng):
    """Class numbers have no mean: the likeliest shifts, less the drift."""
    scores = 3 * rng.standard_normal((2, 30, 30, 3)).astype(np.float32)
    ids = scores.argmax(axis=-1)
    base = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    prediction = scores[:, 8:20, 8:20]
    options = {"max_shift": BOUND, "assignment": "soft", "drift": (1.0, -2.0)}
    loss = tfalign.shift_invariant_loss(ids[:, 4:22, 7:25], prediction, base, **options)
    np.testing.assert_allclose(loss, base.call(ids[:, 7:19, 10:22], prediction).numpy().mean(axis=(1, 2)), rtol=1e-3)


def test_structure_does_not_come_from_noise():
    """Labels of pure noise: their shifts stay open, so the network learns their mean; best shifts make pictures."""
    rng = np.random.default_rng(1)
    inputs = scipy.ndimage.gaussian_filter(rng.standard_normal((64, 20, 20, 1)), (0, 1.5, 1.5, 0))
    inputs = np.float32(inputs / inputs.std())
    labels = np.float32(rng.standard_normal((64, 26, 26, 1)))
    structure = {}
    for assignment in ("soft", "hard"):
        keras.utils.set_random_seed(0)
        model = tfalign.models.unet(filters=8, depth=2)
        options = {"max_shift": BOUND, "warmup_steps": 0, "min_confidence": 0.0}
        loss = tfalign.ShiftInvariantLoss("mse", assignment=assignment, **options)
        model.compile(keras.optimizers.Adam(3e-3), loss=loss)
        model.fit(inputs, labels, batch_size=16, epochs=30, verbose=0)
        structure[assignment] = float(np.std(model(inputs)))
    assert structure["soft"] < 0.04
    assert structure["hard"] > 0.07
    model_free = tfalign.register(inputs, labels, max_shift=BOUND, return_map=True).posterior_map.numpy()
    entropy = -np.sum(model_free * np.log(model_free + 1e-12), axis=(1, 2))
    assert np.mean(entropy) > 0.9 * np.log((2 * BOUND + 1) ** 2)


def mixed_labels(rng):
    """Four labels with their anchors, and predictions: a label that fits, moved, noise, a constant, anchored noise."""
    label, prediction, _ = noisy_pair(rng, noise=0.02, size=24, batch=1)
    noise = rng.random((2, *label.shape[1:])).astype(np.float32)
    label = np.concatenate([label, noise[:1], np.full_like(label, 0.3), noise[1:]])
    anchored = np.broadcast_to(np.reshape([0, 0, 0, 1], (4, 1, 1, 1)), (*label.shape[:-1], 1))
    return np.float32(np.concatenate([label, anchored], axis=-1)), np.repeat(prediction, 4, axis=0)


@pytest.mark.parametrize(
    ("run", "assignment", "base"),
    in_modes([("hard", "mae"), ("hard", "mse"), ("soft", "mse"), ("soft", "mae")]),
    indirect=["run"],
)
def test_uncertain_labels_are_left_out(rng, run, assignment, base):
    label, prediction = mixed_labels(rng)

    def value_and_gradient(y, p, uncertain):
        options = {"max_shift": BOUND, "label_extras": ("anchor",), "assignment": assignment, "uncertain": uncertain}
        with tf.GradientTape() as tape:
            tape.watch(p)
            loss = tfalign.shift_invariant_loss(y, p, base, **options)
        return loss, tape.gradient(loss, p)

    left, gradient = run(lambda y, p: value_and_gradient(y, p, "leave_out"), label, prediction)
    stays, gradient_of_all = run(lambda y, p: value_and_gradient(y, p, "stay"), label, prediction)
    counted = [0, 2, 3]
    assert np.min(stays) > 0.0
    assert left[1] == 0.0
    assert not np.any(gradient[1])
    np.testing.assert_array_equal(left.numpy()[counted], stays.numpy()[counted])
    np.testing.assert_array_equal(gradient.numpy()[counted], gradient_of_all.numpy()[counted])


def test_uncertain_labels_are_left_out_once_others_are_aligned(rng):
    label, prediction = mixed_labels(rng)
    options = {"label_extras": ("anchor",), "uncertain": "leave_out", "warmup_steps": 2, "reduction": "none"}
    loss = tfalign.ShiftInvariantLoss("mae", max_shift=BOUND, **options)
    costs = []
    for _ in range(4):
        variable = tf.Variable(prediction)
        with tf.GradientTape() as tape:
            value = loss(label, variable)
        tape.gradient(value, variable)
        costs.append(float(value[1]))
    assert np.all(np.array(costs[:2]) > 0.1)
    assert costs[2:] == [0.0, 0.0]
    with pytest.raises(ValueError, match="uncertain='drop'"):
        tfalign.ShiftInvariantLoss(uncertain="drop")


def test_none_is_left_out_where_nearly_all_would_be(rng):
    """Else a network that cannot be registered yet would never learn: all cost nothing, for ever."""
    label, prediction, _ = noisy_pair(rng, noise=0.02, size=24)
    noise = rng.random(label.shape).astype(np.float32)
    loss = tfalign.ShiftInvariantLoss(
        "mae", max_shift=BOUND, uncertain="leave_out", min_confidence=0.5, warmup_steps=2, reduction="none"
    )
    costs = []
    for labels in [noise] * 6 + [label] * 40 + [noise]:
        variable = tf.Variable(prediction)
        with tf.GradientTape() as tape:
            value = loss(labels, variable)
        tape.gradient(value, variable)
        costs.append(value.numpy())
    assert np.min(costs[:6]) > 0.1
    assert loss.share_gated < 0.9
    assert np.all(costs[-1] == 0.0)


@pytest.mark.parametrize("run", ["eager", "graph", "xla"], indirect=True)
def test_a_label_of_which_little_is_known_stays_where_most_lie_in_place_and_moves_where_few_do(rng, run):
    label, prediction, _ = noisy_pair(rng, noise=0.6)
    confidence = tfalign.register(prediction, label, max_shift=BOUND).confidence
    assert np.all((confidence > 0.1) & (confidence < 0.5))

    def costs(share, y, p):
        loss = tfalign.ShiftInvariantLoss("mae", max_shift=BOUND, warmup_steps=0, center=False)
        state = drift.initial((BOUND, BOUND))
        loss._state = drift.pack(state._replace(in_place=tf.fill([3], share)))
        return loss.call(y, p)

    for share, least in ((0.01, 0.0), (0.25, 0.25), (0.97, 1.0)):
        expected = tfalign.shift_invariant_loss(label, prediction, "mae", max_shift=BOUND, min_confidence=least)
        np.testing.assert_allclose(run(costs, np.float32(share), label, prediction), expected, rtol=1e-5)


def test_the_gate_that_is_found_by_itself(rng):
    """From 0.5 towards the share of labels that lie in place, but within 0.1 and 0.5; one for each group."""
    gates = []
    for groups, reach in ((None, 3), (None, 0), ([(0,), (1,)], 3)):
        loss = tfalign.ShiftInvariantLoss("mae", max_shift=BOUND, warmup_steps=0, groups=groups)
        assert np.all(loss.least_confidence == 0.5)
        for _ in range(60):
            _, prediction, _ = noisy_pair(rng, noise=0.01)
            moved = [np.roll(one, tuple(rng.integers(-reach, reach + 1, 2)), axis=(0, 1)) for one in prediction]
            variable = tf.Variable(prediction)
            with tf.GradientTape() as tape:
                value = loss(np.stack(moved), variable)
            tape.gradient(value, variable)
        gates.append(loss.least_confidence)
    assert 0.1 <= gates[0] < 0.35
    assert gates[1] == 0.5
    assert gates[2].shape == (2,)
    assert np.all(gates[2] < 0.35)
    assert tfalign.ShiftInvariantLoss(min_confidence=0.3).least_confidence == 0.3


def test_a_prediction_that_is_not_finite_is_seen_where_its_label_is_left_out(rng):
    label, prediction = mixed_labels(rng)
    prediction[1, 3, 3] = np.nan
    options = {"max_shift": BOUND, "label_extras": ("anchor",), "uncertain": "leave_out"}
    loss = tfalign.shift_invariant_loss(label, prediction, "mae", **options).numpy()
    assert np.isfinite(loss).tolist() == [True, False, True, True]


def test_it_is_refused_for_moved_predictions():
    with pytest.raises(ValueError, match=r'assignment="soft".*Received: assignment=.soft., moving=.prediction.'):
        tfalign.ShiftInvariantLoss(assignment="soft", moving="prediction")
    with pytest.raises(ValueError, match="assignment='softly'"):
        tfalign.ShiftInvariantLoss(assignment="softly")
