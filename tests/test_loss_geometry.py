"""Rotation, scale and shear inside the loss, and both sides that may move."""

import keras
import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

import tfalign
from tfalign._aligned_loss import loss_on_overlap
from tfalign._label_parts import Parts
from tfalign._label_search import Search
from tfalign._pixel_loss import PixelLoss
from tfalign.data import misalign
from tfalign.ops import geometry

TURNS = {"max_shift": 6, "max_rotation": 8.0}
MODES = ["label", "prediction"]


def turned_pair(rng, transforms, *, size=40, margin=10, channels=1, sigma=2.5):
    """Predictions of smooth scenes, and labels of the same that lie at `transforms` (1 for each), with a margin."""
    rank = transforms.shape[-1] - 1
    shape = (len(transforms), *(4 * size,) * rank, channels)
    scenes = scipy.ndimage.gaussian_filter(rng.standard_normal(shape), (0, *(sigma,) * rank, 0))
    scenes = (0.5 + 0.15 * scenes / scenes.std()).astype(np.float32)
    outer, middle = (size + 2 * margin,) * rank, (2 * size,) * rank
    labels = [
        misalign.misaligned(scene, transform, shape=outer, center=middle)[0]
        for scene, transform in zip(scenes, transforms)
    ]
    inner = np.stack([misalign.cut(scene, shape=(size,) * rank, center=middle) for scene in scenes])
    return np.stack(labels).astype(np.float32), inner.astype(np.float32)


def made(translation, **parameters):
    """Transforms, NumPy; `parameters` as rows of degrees and factors."""
    parameters = {name: np.float32(value) for name, value in parameters.items()}
    return geometry.make(np.float32(translation), **parameters).numpy()


AFFINE = made(
    [[2.0, -3.0], [-1.5, 0.5]],
    rotation=[[5.0], [-4.0]],
    scale=[[1.05, 0.97], [0.95, 1.04]],
    shear=[[2.0], [-3.0]],
)


@pytest.mark.parametrize(
    ("run", "moving"),
    [("eager", "label"), ("eager", "prediction"), ("graph", "prediction"), ("xla", "label")],
    indirect=["run"],
)
def test_turned_labels_cost_next_to_nothing(rng, run, moving):
    label, prediction = turned_pair(rng, made([[2.0, -3.0], [-4.0, 1.0]], rotation=[[5.0], [-6.0]]))
    loss = run(lambda y, p: tfalign.shift_invariant_loss(y, p, "mae", moving=moving, **TURNS), label, prediction)
    by_shift = tfalign.shift_invariant_loss(label, prediction, "mae", max_shift=6)
    assert np.min(by_shift) > 0.02
    assert np.max(loss) < 0.002


@pytest.mark.parametrize("moving", MODES)
def test_all_of_it_at_once(rng, moving):
    label, prediction = turned_pair(rng, AFFINE)
    bounds = {**TURNS, "max_scale": 0.08, "max_shear": 5.0}
    assert np.max(tfalign.shift_invariant_loss(label, prediction, "mae", moving=moving, **bounds)) < 0.003


def test_stretched_signals_and_turned_volumes(rng):
    label, prediction = turned_pair(rng, made([[3.0], [-2.0]], scale=[[1.06], [0.95]]), size=128, margin=16)
    assert np.max(tfalign.shift_invariant_loss(label, prediction, max_shift=6, max_scale=0.1)) < 0.003
    turned = made([[1.0, -2.0, 1.0]], rotation=[[4.0, -3.0, 5.0]])
    label, prediction = turned_pair(rng, turned, size=20, margin=4)
    assert np.max(tfalign.shift_invariant_loss(label, prediction, max_shift=3, max_rotation=8.0)) < 0.004


@pytest.mark.parametrize("shift", [[0.0, 0.0], [3.0, -2.0]])
def test_labels_that_are_only_shifted_stay_sharp(rng, shift):
    label, prediction = turned_pair(rng, made([shift], rotation=[[0.0]]))
    assert np.max(tfalign.shift_invariant_loss(label, prediction, **TURNS)) < 3e-4


@pytest.mark.parametrize("run", ["eager", "graph"], indirect=True)
def test_moving_the_prediction_by_whole_pixels_is_moving_the_label(rng, run):
    label, prediction = turned_pair(rng, made([[3.0, -2.0], [0.0, 5.0]]), margin=6)
    noisy = prediction + 0.01 * rng.standard_normal(prediction.shape).astype(np.float32)
    losses = [
        run(lambda y, p, moving=moving: tfalign.shift_invariant_loss(y, p, max_shift=6, moving=moving), label, noisy)
        for moving in MODES
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert np.min(losses[0]) > 0.005


@pytest.mark.parametrize("subpixel", [False, True])
def test_the_gradient_passes_through_the_moved_prediction(rng, subpixel):
    """Against finite differences, of given moves."""
    moves = made([[2.0, -1.0]], rotation=[[4.0 * subpixel]])
    label, prediction = turned_pair(rng, moves, size=20, margin=5)
    direction = rng.standard_normal(prediction.shape).astype(np.float32)
    bounds = {"max_shift": 4, "max_rotation": 0.0, "max_scale": 0.0, "max_shear": 0.0, "similarity": "ncc"}
    options = {
        "min_overlap": 0.5,
        "min_confidence": 0.5,
        "pool": None,
        "crop": 0,
        "fill": None,
        "assignment": "hard",
        "uncertain": "stay",
    }
    search = Search.checked(moving="prediction", subpixel=subpixel, **options, **bounds)
    label = tf.constant(label)
    valid = tf.ones_like(label)

    def loss(p):
        return loss_on_overlap(Parts(label, valid, None, None, p), moves, PixelLoss.resolved("mse"), search)

    noisy = tf.constant(prediction + 0.05 * direction[::-1, ::-1])
    with tf.GradientTape() as tape:
        tape.watch(noisy)
        value = loss(noisy)
    slope = float(tf.reduce_sum(tape.gradient(value, noisy) * direction))
    expected = float((loss(noisy + 1e-2 * direction) - loss(noisy - 1e-2 * direction))[0]) / 2e-2
    assert abs(expected) > 1e-3
    np.testing.assert_allclose(slope, expected, rtol=1e-3)


def test_a_turned_mask_stays_a_probability_and_class_numbers_stay_whole(rng):
    smooth, prediction = turned_pair(rng, made([[1.0, 2.0]], rotation=[[5.0]]))
    seen = []

    def base(y_true, y_pred):
        seen.append(y_true)
        return tf.reduce_mean(tf.abs(y_true - y_pred), axis=-1)

    mask, chance = (smooth > 0.5).astype(np.float32), 1 / (1 + np.exp(-60 * (prediction - 0.5)))
    loss = tfalign.shift_invariant_loss(mask, chance, base, **TURNS)
    assert np.max(loss) < 0.06
    assert np.min(seen[0]) >= 0.0
    assert np.max(seen[0]) <= 1.0
    ids = np.digitize(smooth[..., 0], [0.4, 0.6])
    scores = -40 * np.abs(prediction - np.float32([0.3, 0.5, 0.7]))
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    turned = tfalign.shift_invariant_loss(ids, scores, sparse, **TURNS)
    in_place = tfalign.shift_invariant_loss(ids, scores, sparse, max_shift=0)
    assert np.all(turned < 0.5 * in_place)


def test_holes_of_a_turned_label_do_not_count(rng):
    label, prediction = turned_pair(rng, made([[2.0, -3.0]], rotation=[[5.0]]))
    label[:, 20:30, 25:40] = np.nan
    label[:, 40, 8] = np.inf
    assert np.max(tfalign.shift_invariant_loss(label, prediction, "mae", **TURNS)) < 0.004


@pytest.mark.parametrize("fill", [0.3, np.nan])
@pytest.mark.parametrize("moving", MODES)
def test_nothing_to_align_is_finite(rng, fill, moving):
    label, prediction = np.full((2, 30, 30, 1), fill, np.float32), rng.random((2, 20, 20, 1)).astype(np.float32)
    prediction[1] = 0.5
    loss_object = tfalign.ShiftInvariantLoss("mae", moving=moving, warmup_steps=0, **TURNS)
    with tf.GradientTape() as tape:
        variable = tf.Variable(prediction)
        loss = loss_object(label, variable)
    assert np.isfinite(loss)
    assert np.all(np.isfinite(tape.gradient(loss, variable)))
    assert np.all(np.isfinite(loss_object.state))


def test_a_non_finite_prediction_is_not_hidden(rng):
    label, prediction = turned_pair(rng, made([[1.0, 2.0]], rotation=[[5.0]]))
    prediction[0, 3, 4] = np.nan
    for moving in MODES:
        loss_object = tfalign.ShiftInvariantLoss("mae", moving=moving, warmup_steps=0, **TURNS)
        variable = tf.Variable(prediction)
        with tf.GradientTape() as tape:
            loss = loss_object(label, variable)
        tape.gradient(loss, variable)
        assert np.isnan(loss)
        assert np.all(np.isfinite(loss_object.state))


def test_a_common_turn_is_taken_out(rng):
    """All labels lie alike beside the predictions: it is the network that is turned, and the loss must say so."""
    label, prediction = turned_pair(rng, made([[2.0, -1.0]] * 2, rotation=[[4.0]] * 2))
    plain = float(np.mean(tfalign.shift_invariant_loss(label, prediction, max_shift=0)))
    for center in (True, False):
        loss_object = tfalign.ShiftInvariantLoss(warmup_steps=0, center=center, **TURNS)
        variable = tf.Variable(prediction)

        @tf.function
        def train(loss_object=loss_object, variable=variable):
            with tf.GradientTape() as tape:
                loss = loss_object(label, variable)
            tape.gradient(loss, variable)
            return loss

        assert loss_object.state is not None
        losses = [float(train()) for _ in range(60)]
        found = loss_object.drift_geometry
        np.testing.assert_allclose(found.rotation, [3.5, 0.0, 0.0], atol=0.6)  # these predictions do not follow
        np.testing.assert_allclose(found.translation[:2], [2.0, -1.0], atol=0.2)
        np.testing.assert_array_equal(found.scale, [1.0, 1.0, 1.0])
        assert losses[-1] > 0.8 * plain if center else losses[-1] < 0.1 * plain


def test_a_given_transform_is_taken_out(rng):
    transform = made([[2.0, -1.0]], rotation=[[4.0]])
    label, prediction = turned_pair(rng, transform)
    taken = tfalign.shift_invariant_loss(label, prediction, drift=transform[0], **TURNS)
    in_place = tfalign.shift_invariant_loss(label, prediction, max_shift=0)
    np.testing.assert_allclose(taken, in_place, rtol=0.05)


@pytest.mark.parametrize("way", ["jit_compile", "run_eagerly", "mixed_float16", "one_axis"])
def test_it_trains(rng, way, tmp_path):
    keras.utils.set_random_seed(3)
    rank = 1 if way == "one_axis" else 2
    label, inputs = turned_pair(rng, np.tile(np.eye(rank + 1, dtype=np.float32), (4, 1, 1)), size=24, margin=4)
    bounds = {"max_shift": 3, "max_scale": 0.1} if rank == 1 else {"max_shift": 3, "max_rotation": 6.0}
    loss = tfalign.ShiftInvariantLoss("mse", warmup_steps=1, **bounds)
    if way == "mixed_float16":
        keras.mixed_precision.set_global_policy(way)
    try:
        model = tfalign.models.unet(rank, filters=4, depth=1)
        options = {way: True} if way in ("jit_compile", "run_eagerly") else {}
        model.compile("adam", loss=loss, **options)
        history = model.fit(inputs, label, batch_size=2, epochs=2, verbose=0).history["loss"]
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert np.all(np.isfinite(history))
    assert loss.is_ready
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.loss.state, loss.state)
    assert again.loss.get_config() == loss.get_config()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_rotation": -1}, "max_rotation=-1"),
        ({"max_rotation": 200}, "max_rotation=200"),
        ({"max_scale": -0.1}, "max_scale=-0.1"),
        ({"max_shear": 50}, "max_shear=50"),
        ({"moving": "both"}, "moving='both'"),
    ],
)
def test_bad_options(options, text):
    with pytest.raises(ValueError, match=text):
        tfalign.ShiftInvariantLoss(**options)


def test_signals_have_no_rotation():
    with pytest.raises(ValueError, match="`max_rotation` and `max_shear` must be 0 for signals"):
        tfalign.ShiftInvariantLoss(max_rotation=5)(np.zeros((2, 64, 1)), np.zeros((2, 64, 1)))
