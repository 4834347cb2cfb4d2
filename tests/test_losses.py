import keras
import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

import tfalign
from tests import reference
from tests.conftest import MODES, in_modes
from tfalign import drift

PIXEL_LOSSES = {
    "mae": lambda y, p: np.abs(y - p).mean(axis=-1),
    "mse": lambda y, p: np.square(y - p).mean(axis=-1),
    "binary_crossentropy": lambda y, p: -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(axis=-1),
}


@keras.saving.register_keras_serializable(package="tests")
def quartic(y_true, y_pred):
    return tf.reduce_mean((y_true - y_pred) ** 4, axis=-1)


def shifted_pair(rng, shift=(2, -1), size=12, margin=3, channels=2, batch=3):
    """Predictions, and their own content as labels moved by `shift`, with a margin."""
    field = rng.uniform(0.05, 0.95, (batch, 48, 48, channels)).astype(np.float32)
    y = x = 24 - size // 2
    prediction = field[:, y : y + size, x : x + size]
    big = size + 2 * margin
    y, x = y - margin - shift[0], x - margin - shift[1]
    return field[:, y : y + big, x : x + big].copy(), prediction.copy()


@pytest.mark.parametrize(
    ("run", "base", "margin"),
    in_modes([(base, margin) for base in PIXEL_LOSSES for margin in (0, 3)], ["mae", "binary_crossentropy"]),
    indirect=["run"],
)
def test_the_function_equals_the_reference(rng, run, base, margin):
    label, prediction = shifted_pair(rng, margin=margin)
    prediction = np.clip(prediction + 0.05 * rng.standard_normal(prediction.shape), 0.02, 0.98).astype(np.float32)
    loss = run(lambda y, p: tfalign.shift_invariant_loss(y, p, base, max_shift=3), label, prediction)
    assert loss.shape == (3,)
    for sample in range(3):
        expected = reference.aligned_loss(label[sample], prediction[sample], (3, 3), "ncc", PIXEL_LOSSES[base])
        np.testing.assert_allclose(loss[sample], expected, rtol=1e-4)


def test_a_perfect_but_moved_label_costs_nothing(rng, run):
    label, prediction = shifted_pair(rng)
    loss = run(lambda y, p: tfalign.shift_invariant_loss(y, p, max_shift=3), label, prediction)
    np.testing.assert_array_equal(loss, np.zeros(3))
    assert np.min(np.abs(label[:, 3:-3, 3:-3] - prediction).mean(axis=(1, 2, 3))) > 0.1


SIMILARITIES = ["mae", "mi", "nmi", "joint_entropy", "phase", "overlap", "cross_entropy"]


@pytest.mark.parametrize(
    ("run", "similarity"), in_modes([(name,) for name in SIMILARITIES], ["mi", "phase"]), indirect=["run"]
)
def test_every_similarity_finds_a_moved_label(rng, run, similarity):
    classes = (rng.random((3, 30, 30, 1)) > 0.5).astype(np.float32)
    label, prediction = classes, np.roll(classes, (-2, 1), axis=(1, 2))[:, 3:27, 3:27] * 0.98 + 0.01
    loss = run(
        lambda a, b: tfalign.shift_invariant_loss(a, b, "mae", max_shift=3, similarity=similarity), label, prediction
    )
    np.testing.assert_allclose(loss, np.full(3, 0.01), atol=1e-6)


BASES_WITH_A_MAP = {
    "mae": (keras.losses.MeanAbsoluteError(), PIXEL_LOSSES["mae"]),
    "mean_squared_error": (keras.losses.MeanSquaredError(), PIXEL_LOSSES["mse"]),
    "binary_crossentropy": (keras.losses.BinaryCrossentropy(), PIXEL_LOSSES["binary_crossentropy"]),
    "categorical_crossentropy": (keras.losses.CategoricalCrossentropy(), lambda y, p: -(y * np.log(p)).sum(axis=-1)),
}


@pytest.mark.parametrize(
    ("run", "name", "as_instance"),
    in_modes([(name, one) for name in BASES_WITH_A_MAP for one in (False, True)], ["mae", "categorical_crossentropy"]),
    indirect=["run"],
)
def test_the_base_as_similarity_finds_its_smallest_value(rng, run, name, as_instance):
    """Against every crop of the label: of noise, so that other measures would choose other shifts."""
    instance, pixel_loss = BASES_WITH_A_MAP[name]
    prediction = rng.uniform(0.05, 0.95, (4, 12, 12, 3)).astype(np.float32)
    label = rng.uniform(0.0, 1.0, (4, 18, 18, 3)).astype(np.float32)
    if name == "categorical_crossentropy":
        prediction /= prediction.sum(axis=-1, keepdims=True)
        label /= label.sum(axis=-1, keepdims=True)
    base = instance if as_instance else name
    loss = run(
        lambda y, p: tfalign.shift_invariant_loss(y, p, base, max_shift=3, similarity="base", min_confidence=0.0),
        label,
        prediction,
    )
    crops = [label[:, y : y + 12, x : x + 12] for y in range(7) for x in range(7)]
    every = np.stack([pixel_loss(crop, prediction).mean(axis=(1, 2)) for crop in crops])
    np.testing.assert_allclose(loss, every.min(axis=0), rtol=1e-4)


def test_sparse_labels_and_logits_are_registered_by_their_base(rng):
    classes = rng.integers(0, 3, (4, 18, 18, 1))
    logits = 4 * keras.utils.to_categorical(classes[:, 5:17, 2:14, 0], 3).astype(np.float32)
    logits += rng.standard_normal(logits.shape).astype(np.float32)
    base = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss = tfalign.shift_invariant_loss(classes, logits, base, max_shift=3, similarity="base")
    crop = classes[:, 5:17, 2:14]
    np.testing.assert_allclose(loss, np.mean(base.call(crop[..., 0], logits), axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize("base", ["huber", keras.losses.BinaryCrossentropy(label_smoothing=0.1), quartic])
def test_a_base_without_a_map_is_refused_as_similarity(base):
    with pytest.raises(ValueError, match="mean absolute error"):
        tfalign.ShiftInvariantLoss(base, similarity="base")


def test_the_given_drift_is_taken_out(rng):
    label, prediction = shifted_pair(rng)
    loss = tfalign.shift_invariant_loss(label, prediction, max_shift=3, drift=(1.0, 0.0))
    for sample in range(3):
        options = {"drift": np.array([1, 0])}
        expected = reference.aligned_loss(
            label[sample], prediction[sample], (3, 3), "ncc", PIXEL_LOSSES["mae"], **options
        )
        np.testing.assert_allclose(loss[sample], expected, rtol=1e-4)
    assert np.min(loss) > 0.1


def test_the_gradient_equals_that_of_the_base_on_the_aligned_label(rng, run):
    label, prediction = shifted_pair(rng, shift=(1, 2))
    noisy = prediction + 0.05 * rng.standard_normal(prediction.shape).astype(np.float32)

    def gradient(y, p):
        with tf.GradientTape() as tape:
            tape.watch(p)
            loss = tfalign.shift_invariant_loss(y, p, "mse", max_shift=3)
        return tape.gradient(loss, p)

    expected = 2 * (noisy - prediction) / prediction[0].size
    np.testing.assert_allclose(run(gradient, label, noisy), expected, atol=1e-6)


@pytest.mark.parametrize("run", MODES[1:], indirect=True)  # a hundred steps
def test_the_gradient_is_small_at_first_and_rises_to_that_of_the_base(rng, run):
    label, prediction = shifted_pair(rng, shift=(0, 0))
    noisy = prediction + 0.05 * rng.standard_normal(prediction.shape).astype(np.float32)
    loss = tfalign.ShiftInvariantLoss("mse", max_shift=3, warmup_steps=2)
    assert loss.state is not None  # made before any function is traced

    def gradient(y, p):
        with tf.GradientTape() as tape:
            tape.watch(p)
            value = loss(y, p)
        return tape.gradient(value, p)

    full = 2 * (noisy - prediction) / prediction.size
    shares = [float(np.sum(run(gradient, label, noisy) * full) / np.sum(full**2)) for _ in range(104)]
    np.testing.assert_allclose(shares[:2], [0.3, 0.3], atol=1e-4)
    np.testing.assert_allclose(shares[2:102], 0.3 + 0.007 * np.arange(1, 101), atol=1e-4)
    np.testing.assert_allclose(shares[102:], 1.0, atol=1e-4)


def test_without_a_warmup_the_gradient_is_that_of_the_base_at_once(rng):
    label, prediction = shifted_pair(rng, shift=(0, 0))
    variable = tf.Variable(prediction + np.float32(0.05))
    with tf.GradientTape() as tape:
        value = tfalign.ShiftInvariantLoss("mse", max_shift=3, warmup_steps=0)(label, variable)
    np.testing.assert_allclose(
        tape.gradient(value, variable), np.full_like(prediction, 0.1 / prediction.size), rtol=1e-3
    )


def test_non_finite_label_pixels_are_left_out(rng, run):
    label, prediction = shifted_pair(rng, shift=(0, 0))
    prediction = prediction + 0.01
    label[:, 5, 6, 0] = np.nan
    label[:, 9, 9, 1] = np.inf
    loss = run(lambda y, p: tfalign.shift_invariant_loss(y, p, max_shift=3), label, prediction)
    np.testing.assert_allclose(loss, np.full(3, 0.01), rtol=1e-4)


@pytest.mark.parametrize(
    ("run", "kind", "fill", "subpixel"),
    in_modes([("blank", fill, subpixel) for fill in (0.0, 0.3, np.nan, np.inf, 1e30) for subpixel in (True, False)]),
    indirect=["run"],
)
def test_blank_labels_give_a_finite_loss_and_gradient(rng, run, kind, fill, subpixel):
    _, prediction = shifted_pair(rng)
    label = np.full((3, 18, 18, 2), fill, np.float32)
    loss_object = tfalign.ShiftInvariantLoss(max_shift=3, subpixel=subpixel, warmup_steps=0)

    def value_and_gradient(y, p):
        with tf.GradientTape() as tape:
            tape.watch(p)
            loss = loss_object(y, p)
        return loss, tape.gradient(loss, p)

    loss, gradient = run(value_and_gradient, label, prediction)
    assert np.isfinite(loss)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_allclose(loss_object.drift, [0, 0, 0], atol=1e-6)


@pytest.mark.parametrize("label_is_blank", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_prediction_is_not_hidden(rng, bad, label_is_blank):
    label, prediction = shifted_pair(rng)
    prediction[1, 4, 4, 0] = bad
    if label_is_blank:
        label[:] = np.nan
    loss_object = tfalign.ShiftInvariantLoss(max_shift=3, warmup_steps=0, reduction="none")
    variable = tf.Variable(prediction)
    with tf.GradientTape() as tape:
        loss = loss_object(label, variable)
    tape.gradient(loss, variable)
    assert np.isfinite(loss).tolist() == [True, False, True]
    assert np.all(np.isfinite(loss_object.state))


def test_class_ids_and_logits(rng):
    scores = rng.standard_normal((2, 30, 30, 4)).astype(np.float32) * 3
    ids = scores.argmax(axis=-1)
    prediction = scores[:, 8:20, 8:20]
    base = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for label in (ids[:, 3:23, 6:26], ids[:, 3:23, 6:26, np.newaxis]):
        loss = tfalign.shift_invariant_loss(label, prediction, base, max_shift=3)
        centered = ids[:, 8:20, 8:20]
        expected = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(centered, prediction)
        np.testing.assert_allclose(np.mean(loss), expected, rtol=1e-5)


class OnLogits(keras.losses.Loss):
    """A loss of somebody else's that takes each channel as a logit of its own."""

    def call(self, y_true, y_pred):
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(y_true, y_pred), axis=-1)

    def get_config(self):
        return {**super().get_config(), "from_logits": True}


@pytest.mark.parametrize("base", [OnLogits(), keras.losses.BinaryCrossentropy(from_logits=True)])
def test_single_logits_are_compared_as_probabilities(rng, base):
    label = (rng.random((2, 30, 30, 1)) > 0.5).astype(np.float32)
    prediction = 6.0 * label[:, 8:20, 8:20] - 3.0
    loss = tfalign.shift_invariant_loss(label[:, 3:23, 6:26], prediction, base, max_shift=3)
    np.testing.assert_allclose(loss, np.full(2, np.log1p(np.exp(-3.0))), rtol=1e-4)


@pytest.mark.parametrize("rank", [1, 3])
def test_signals_and_volumes(rng, rank):
    size = {1: 64, 3: 12}[rank]
    field = rng.standard_normal((2, *(size + 12,) * rank, 1)).astype(np.float32)
    inner = (slice(None), *(slice(6, 6 + size),) * rank)
    label = (slice(None), *(slice(1, 7 + size),) * rank)
    loss = tfalign.shift_invariant_loss(field[label], field[inner], max_shift=2)
    np.testing.assert_array_equal(loss, np.zeros(2))


def test_a_label_without_a_channel_axis(rng):
    label, prediction = shifted_pair(rng, channels=1)
    with_axis = tfalign.shift_invariant_loss(label, prediction, max_shift=3)
    np.testing.assert_array_equal(tfalign.shift_invariant_loss(label[..., 0], prediction, max_shift=3), with_axis)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.float16, bool])
def test_label_types(rng, dtype):
    field = rng.integers(0, 2, (2, 30, 30, 1))
    label, prediction = field[:, 4:22, 5:23].astype(dtype), field[:, 8:20, 9:21].astype(np.float32)
    np.testing.assert_array_equal(tfalign.shift_invariant_loss(label, prediction, max_shift=3), np.zeros(2))


def test_reductions(rng):
    label, prediction = shifted_pair(rng)
    prediction = prediction + 0.1 * rng.standard_normal(prediction.shape).astype(np.float32)
    each = tfalign.ShiftInvariantLoss(max_shift=3, reduction="none")(label, prediction)
    assert each.shape == (3,)
    for reduction, expected in {
        "sum": np.sum(each),
        "sum_over_batch_size": np.mean(each),
        "mean": np.mean(each),
    }.items():
        loss = tfalign.ShiftInvariantLoss(max_shift=3, reduction=reduction)(label, prediction)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
    none = tfalign.ShiftInvariantLoss(max_shift=3, reduction=None)(label, prediction)
    np.testing.assert_array_equal(none, each)


def test_sample_weights(rng):
    label, prediction = shifted_pair(rng)
    prediction = prediction + 0.1 * rng.standard_normal(prediction.shape).astype(np.float32)
    each = tfalign.ShiftInvariantLoss(max_shift=3, reduction="none")(label, prediction)
    for weight in (np.float32([0, 1, 2]), np.float32([[0], [1], [2]])):
        loss = tfalign.ShiftInvariantLoss(max_shift=3, reduction="sum")(label, prediction, weight)
        np.testing.assert_allclose(loss, each[1] + 2 * each[2], rtol=1e-5)


@pytest.mark.parametrize("run", ["eager", "graph", "xla"], indirect=True)
@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_a_label_of_weight_0_tells_nothing(rng, run, kind):
    """Neither the drift nor, of a batch that moves as one, where the others lie; as if it had no values."""
    field = scipy.ndimage.gaussian_filter(rng.standard_normal((8, 24, 24, 1)), (0, 1.5, 1.5, 0))
    prediction = np.float32(field > 0) if kind is np.int32 else np.float32(field)
    moved = [np.roll(one, (3, 0) if number < 5 else (0, 1), axis=(0, 1)) for number, one in enumerate(prediction)]
    labels, weight = np.asarray(moved, kind), np.float32([0, 0, 0, 0, 0, 2, 1, 1])

    def state_after(labels, weight, pool):
        loss = tfalign.ShiftInvariantLoss("mae", max_shift=4, warmup_steps=0, pool=pool)

        def step(y, p, w):
            with tf.GradientTape() as tape:
                tape.watch(p)
                value = loss(y, p, w)
            return value, tape.gradient(value, p)

        for _ in range(3):
            value, gradient = run(step, labels, prediction, weight)
        return float(value), np.asarray(gradient), loss.state.numpy()

    for pool in (None, "batch"):
        told = state_after(labels, weight, pool)
        unknown = np.where(weight[:, None, None, None] > 0, labels, np.nan).astype(np.float32)
        for found, expected in zip(told, state_after(unknown, np.maximum(weight, 1), pool)):
            np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(drift.unpack(told[2]).shift[:2], [0, 1], atol=0.3)
        everyone = state_after(labels, np.ones(8, np.float32), pool)
        assert drift.unpack(everyone[2]).shift[0] > 1
    assert tfalign.ShiftInvariantLoss("mae", max_shift=4)(labels, prediction, 0.0) == 0.0


@pytest.mark.parametrize("shape", [(3, 12, 12), (3, 3), (3, 12, 12, 1)])
def test_weights_per_pixel_raise_and_name_the_remedy(rng, shape):
    label, prediction = shifted_pair(rng)
    with pytest.raises(ValueError, match=r"`sample_weight` must have the shape \(batch,\).*label_extras"):
        tfalign.ShiftInvariantLoss(max_shift=3)(label, prediction, np.ones(shape, np.float32))


def test_default_bounds_are_clipped_to_small_patches_and_explicit_ones_refused(rng):
    tiny = rng.standard_normal((2, 6, 6, 1)).astype(np.float32)
    assert np.all(np.isfinite(tfalign.shift_invariant_loss(tiny, tiny)))
    assert np.all(np.isfinite(tfalign.shift_invariant_loss(tiny[:, :1, :1], tiny[:, :1, :1])))
    with pytest.raises(ValueError, match=r"`max_shift` must leave an overlap.*max_shift=\(8, 8\)"):
        tfalign.shift_invariant_loss(tiny, tiny, max_shift=8)


def test_training_steps_move_the_state_and_evaluation_does_not(rng, run):
    label, prediction = shifted_pair(rng)
    loss_object = tfalign.ShiftInvariantLoss(max_shift=3, warmup_steps=0)

    def training(y, p):
        with tf.GradientTape() as tape:
            tape.watch(p)
            loss = loss_object(y, p)
        return tape.gradient(loss, p)

    def evaluation(y, p):
        return loss_object(y, p)

    run(evaluation, label, prediction)
    before = loss_object.state.numpy().copy()
    run(evaluation, label, prediction)
    np.testing.assert_array_equal(loss_object.state, before)
    run(training, label, prediction)
    assert np.any(loss_object.state.numpy() != before)
    assert np.sign(np.round(loss_object.drift, 3)).tolist() == [1, -1, 0]


def test_warmup_reads_the_label_in_place(rng):
    label, prediction = shifted_pair(rng)
    plain = np.abs(label[:, 3:-3, 3:-3] - prediction).mean()
    np.testing.assert_allclose(tfalign.ShiftInvariantLoss(max_shift=3)(label, prediction), plain, rtol=1e-5)
    np.testing.assert_array_equal(tfalign.ShiftInvariantLoss(max_shift=3, warmup_steps=0)(label, prediction), 0)


def test_center_takes_a_common_shift_out(rng):
    label, prediction = shifted_pair(rng)
    plain = np.abs(label[:, 3:-3, 3:-3] - prediction).mean()
    for center, expected in ((True, plain), (False, 0.0)):
        loss_object = tfalign.ShiftInvariantLoss(max_shift=3, warmup_steps=0, center=center)
        assert loss_object.state is not None  # made before a function is traced

        @tf.function
        def step(y, p, loss_object=loss_object):
            with tf.GradientTape() as tape:
                tape.watch(p)
                loss = loss_object(y, p)
            tape.gradient(loss, p)
            return loss

        for _ in range(40):
            loss = step(tf.constant(label), tf.constant(prediction))
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        np.testing.assert_allclose(loss_object.drift[:2], [2, -1], atol=0.2)


OPTIONS = {
    "max_shift": (3, 2),
    "max_rotation": 4.0,
    "max_scale": 0.1,
    "max_shear": 2.0,
    "assignment": "soft",
    "similarity": "mse",
    "subpixel": True,
    "center": False,
    "groups": ((1,), (0, 2)),
    "pool": "batch",
    "min_overlap": 0.4,
    "crop": (1, 2),
    "fill": "excluded_median",
    "label_extras": ("mask", "anchor"),
    "ignore_class": 9,
    "min_confidence": 0.25,
    "uncertain": "leave_out",
    "warmup_steps": 7,
    "name": "ours",
    "reduction": "sum",
    "dtype": "float64",
}


@pytest.mark.parametrize("base", ["mse", keras.losses.BinaryCrossentropy(label_smoothing=0.1), quartic])
def test_config_round_trip(base):
    loss_object = tfalign.ShiftInvariantLoss(base, **OPTIONS)
    serialized = keras.saving.serialize_keras_object(loss_object)
    again = keras.saving.deserialize_keras_object(serialized)
    config = again.get_config()
    assert config == loss_object.get_config()
    for option, value in OPTIONS.items():
        assert config[option] == value or tuple(config[option]) == value


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"max_shift": -1}, ValueError, "`max_shift` must be >= 0. Received: max_shift=-1"),
        ({"max_shift": ()}, ValueError, r"max_shift=\(\)"),
        ({"base": keras.losses.MeanAbsoluteError}, TypeError, "`base` must be the name"),
        ({"max_shift": True}, TypeError, "`max_shift` must be a whole number"),
        ({"similarity": "best"}, ValueError, "similarity='best'"),
        ({"min_overlap": 2}, ValueError, "min_overlap=2"),
        ({"min_confidence": -0.1}, ValueError, 'min_confidence=-0.1.*"auto"'),
        ({"min_confidence": "low"}, TypeError, "`min_confidence` must be a number.*'low'"),
        ({"warmup_steps": -1}, ValueError, "warmup_steps=-1"),
        ({"warmup_steps": "soon"}, TypeError, "`warmup_steps` must be a whole number.*'soon'.*\"auto\""),
        ({"base": 3}, TypeError, "`base` must be the name of a Keras loss.*base=3"),
        ({"base": "no_such_loss"}, ValueError, "no_such_loss"),
        ({"dtype": "float16"}, ValueError, "dtype='float16'"),
        ({"groups": [(0, 0)]}, ValueError, r"`groups` must name each channel once.*\[\(0, 0\)\]"),
        (
            {"groups": [(0,)], "base": "categorical_crossentropy"},
            ValueError,
            r"`groups` needs a base.*groups=\[\(0,\)\]",
        ),
        ({"pool": "all"}, ValueError, "pool='all'"),
        ({"crop": -1}, ValueError, "`crop` must be >= 0. Received: crop=-1"),
        ({"crop": 0.5}, TypeError, "`crop` must be a whole number.*0.5"),
        ({"fill": "mode"}, ValueError, "`fill` must be one of.*'mode'"),
        ({"fill": np.nan}, ValueError, "`fill` must be.*fill=nan"),
        ({"fill": "excluded_mean"}, ValueError, "needs a `crop`.*fill='excluded_mean', crop=0"),
        ({"label_extras": ("masks",)}, ValueError, r'`label_extras` must name "mask" and "anchor".*masks'),
        ({"label_extras": ("mask", "mask")}, ValueError, "each at most once"),
        ({"label_extras": None}, ValueError, "each at most once.*label_extras=None"),
        ({"label_extras": [["mask"]]}, ValueError, "each at most once"),
        ({"groups": 3}, ValueError, "`groups` must name each channel once.*groups=3"),
        ({"groups": [("a",)]}, ValueError, "`groups` must name each channel once.*'a'"),
        ({"max_scale": 20}, ValueError, "`max_scale` must be >= 0.0 and <= 9.0.*max_scale=20"),
        ({"ignore_class": "void"}, TypeError, "`ignore_class` must be a number.*'void'"),
        ({"base": tfalign.ShiftInvariantLoss()}, TypeError, "`base` must be a loss that aligns nothing itself"),
        ({"reduction": "median"}, ValueError, "reduction='median'"),
    ],
)
def test_bad_options(options, error, text):
    with pytest.raises(error, match=text):
        tfalign.ShiftInvariantLoss(**options)


@pytest.mark.parametrize(
    ("label", "prediction", "options", "text"),
    [
        ((2, 8, 8, 3), (2, 8, 8, 2), {}, r"`y_true` must have the rank of `y_pred` and its channels.*\(2, 8, 8, 3\)"),
        ((2, 8), (2, 8, 8, 2), {}, r"`y_true` must have the rank"),
        ((2, 8), (2, 8), {}, r"`y_pred` must have the shape.*y_pred.shape=\(2, 8\)"),
        (
            (2, 8, 8, 2),
            (2, 8, 8, 2),
            {"base": lambda y, p: tf.reduce_mean(y - p, axis=(1, 2))},
            r"one value per pixel.*shape=\(2, 2\)",
        ),
        ((2, 8, 8, 2), (2, 8, 8, 2), {"label_extras": ("mask",)}, r"its channels, and one of \"mask\".*\(2, 8, 8, 2\)"),
        ((2, 8, 8, 2), (2, 8, 8, 2), {"groups": [(0,)]}, r"`groups` must name each channel once.*channels=2"),
        (
            (2, 8, 8, 2),
            (2, 8, 8, 2),
            {"drift": np.zeros(3, np.float32)},
            r"`drift` must be one number per spatial axis.*drift.shape=\(3,\).*loss.drift\[:2\]",
        ),
        (
            (2, 8, 8, 2),
            (2, 8, 8, 2),
            {"drift": [1.0]},
            r"`drift` must be one number per spatial axis.*drift.shape=\(1,\)",
        ),
        ((2, 8, 8, 2), (2, 8, 8, 2), {"crop": 4}, r"`crop` must leave something.*crop=4.*\(2, 8, 8, 2\)"),
    ],
)
def test_bad_shapes(label, prediction, options, text):
    with pytest.raises(ValueError, match=text):
        tfalign.shift_invariant_loss(np.zeros(label), np.zeros(prediction), **options)


def test_a_keras_mask_is_refused(rng):
    inputs = keras.Input((8, 2))
    outputs = keras.layers.Dense(1)(keras.layers.Masking()(inputs))
    model = keras.Model(inputs, outputs)
    with pytest.raises(ValueError, match=r"`y_pred` must not carry a Keras mask.*NaN"):
        tfalign.ShiftInvariantLoss(max_shift=1)(np.zeros((8, 8, 1), np.float32), model(np.zeros((8, 8, 2), np.float32)))


def test_ignored_classes_do_not_count(rng):
    ids, scores = rng.integers(0, 3, (2, 16, 16)), rng.standard_normal((2, 16, 16, 3)).astype(np.float32)
    ids[:, 9:] = -1
    base = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    loss = tfalign.ShiftInvariantLoss(base)(ids, scores)
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(ids[:, :9], scores[:, :9])
    np.testing.assert_allclose(loss, plain, rtol=1e-5)


def test_a_base_need_not_be_hashable(rng):
    class Difference:
        __hash__ = None

        def __call__(self, y_true, y_pred):
            return tf.reduce_mean(tf.abs(y_true - y_pred), axis=-1)

    label, prediction = shifted_pair(rng)
    np.testing.assert_array_equal(tfalign.shift_invariant_loss(label, prediction, Difference(), max_shift=3), [0, 0, 0])


@pytest.mark.parametrize(("run", "ignored"), in_modes([(255,), (-1,)], [-1]), indirect=["run"])
def test_the_option_ignores_a_class_too(rng, run, ignored):
    """Sparse labels of a base that knows nothing of it, its gradient included; and one-channel labels of any base."""
    ids, scores = rng.integers(0, 3, (2, 16, 16)), rng.standard_normal((2, 16, 16, 3)).astype(np.float32)
    ids[:, 9:] = ignored
    base = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss_object = tfalign.ShiftInvariantLoss(base, ignore_class=ignored)

    def value_and_gradient(labels, predictions):
        with tf.GradientTape() as tape:
            tape.watch(predictions)
            loss = loss_object(labels, predictions)
        return loss, tape.gradient(loss, predictions)

    loss, gradient = run(value_and_gradient, ids.astype(np.float32), scores)
    np.testing.assert_allclose(loss, base(ids[:, :9], scores[:, :9]), rtol=1e-5)
    assert np.all(np.isfinite(gradient))
    assert np.all(gradient[:, 9:] == 0)
    assert np.any(gradient[:, :9] != 0)
    mask = (ids[..., None] == 1).astype(np.float32)
    mask[:, 9:] = ignored
    loss = tfalign.ShiftInvariantLoss("mae", ignore_class=ignored)(mask, scores[..., :1])
    np.testing.assert_allclose(loss, np.abs(mask - scores[..., :1])[:, :9].mean(), rtol=1e-5)


def test_ignored_classes_need_one_channel(rng):
    label, prediction = shifted_pair(rng)
    with pytest.raises(ValueError, match="one channel"):
        tfalign.ShiftInvariantLoss(ignore_class=1)(label, prediction)


def test_default_bounds_shrink_only_where_they_must(rng):
    field = rng.standard_normal((3, 1, 70, 1)).astype(np.float32)
    loss = tfalign.shift_invariant_loss(field[:, :, 3:67], field[:, :, :64])
    np.testing.assert_array_equal(loss, np.zeros(3))


@pytest.mark.parametrize("base", ["MeanAbsoluteError", keras.losses.MeanAbsoluteError()])
def test_a_base_by_class_name_or_instance(rng, base):
    label, prediction = shifted_pair(rng)
    noisy = prediction + 0.1
    np.testing.assert_allclose(tfalign.shift_invariant_loss(label, noisy, base, max_shift=3), 0.1, rtol=1e-4)


def test_logits_of_a_subclass_are_registered_by_its_activation(rng):
    class Mine(keras.losses.BinaryCrossentropy):
        pass

    label = (rng.random((4, 64, 1)) > 0.7).astype(np.float32)
    logits = np.roll(label, 2, axis=1) * 8 - 4
    loss = tfalign.shift_invariant_loss(label, logits, Mine(from_logits=True), max_shift=4)
    np.testing.assert_allclose(loss, np.full(4, np.log1p(np.exp(-4.0))), rtol=1e-3)


def test_a_base_that_is_singular_at_zero_keeps_a_finite_gradient(rng):
    label, prediction = shifted_pair(rng)
    label[0, 8, 8] = np.nan
    variable = tf.Variable(prediction)
    with tf.GradientTape() as tape:
        loss = tfalign.shift_invariant_loss(
            label, variable, lambda y, p: tf.reduce_mean(tf.abs(y - p) / y, axis=-1), max_shift=3
        )
    assert np.all(np.isfinite(tape.gradient(loss, variable)))


def test_an_empty_batch(rng):
    for shape in ((0, 32, 1), (0, 16, 16, 1)):
        empty = np.zeros(shape, np.float32)
        assert tfalign.shift_invariant_loss(empty, empty, max_shift=3).shape == (0,)


def test_weights_as_nested_lists_are_checked(rng):
    label, prediction = shifted_pair(rng)
    with pytest.raises(ValueError, match=r"`sample_weight` must have"):
        tfalign.ShiftInvariantLoss(max_shift=3)(label, prediction, np.ones((3, 3)).tolist())
    each = tfalign.ShiftInvariantLoss(max_shift=3)(label, prediction, [1.0, 1.0, 1.0])
    assert np.isfinite(each)


def test_other_numbers_of_samples_are_refused(rng):
    label, prediction = shifted_pair(rng)
    with pytest.raises(ValueError, match=r"as many samples as `y_pred`.*\(1, 18, 18, 2\)"):
        tfalign.shift_invariant_loss(label[:1], prediction, max_shift=3)
