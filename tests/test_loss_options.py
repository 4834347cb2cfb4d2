"""Every pair of the loss's options: what is valid equals loops over samples and shifts, what is not is refused."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfalign
from tests import reference
from tests.test_loss_geometry import made as made_transforms
from tests.test_loss_geometry import turned_pair
from tfalign import drift


def dice(y_true, y_pred):
    """Over the whole batch, as Keras's own is."""
    total = tf.reduce_sum(y_true) + tf.reduce_sum(y_pred)
    return 1.0 - (2.0 * tf.reduce_sum(y_true * y_pred) + 1e-7) / (total + 1e-7)


def distance(y_true, y_pred):
    """One value for each sample."""
    return tf.sqrt(tf.reduce_sum(tf.square(y_true - y_pred), axis=list(range(1, y_pred.shape.rank))) + 1e-12)


def _mean(pixel_loss):
    return lambda y, p, w: np.sum(w * pixel_loss(y, p)) / np.sum(w)


BASES = {
    "mae": ("mae", _mean(lambda y, p: np.abs(y - p).mean(axis=-1))),
    "mse": ("mse", _mean(lambda y, p: np.square(y - p).mean(axis=-1))),
    "binary": (
        keras.losses.BinaryCrossentropy(),
        _mean(lambda y, p: -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean(axis=-1)),
    ),
    "categorical": (
        "categorical_crossentropy",
        _mean(lambda y, p: -(y * np.log(p / p.sum(-1, keepdims=True))).sum(-1)),
    ),
    "dice": (dice, lambda y, p, w: 1 - 2 * np.sum(w[:, None] ** 2 * y * p) / np.sum(w[:, None] * (y + p))),
    "distance": (distance, lambda y, p, w: np.sqrt(np.sum(np.square(w[:, None] * (y - p))))),
}
# What the base is registered by where it is its own measure.
ITS_OWN = {"mae": "mae", "mse": "mse", "binary": "binary_cross_entropy", "categorical": "cross_entropy"}
VALUES = {
    "base": list(BASES),
    "similarity": ["ncc", "cc", "mse", "mae", "overlap", "base"],
    "moving": ["label", "prediction"],
    "groups": [None, [(1,), (0, 2)]],
    "pool": [None, "batch"],
    "crop": [0, 2, "max_shift"],
    "fill": [None, 0.3, "mean", "median", "min", "excluded_mean", "excluded_median"],
    "label_extras": [(), ("mask",), ("anchor",), ("anchor", "mask")],
    "margin": [-1, 0, 3],
}


def is_valid(case):
    return not (
        (case.get("base") == "categorical" and case.get("groups"))
        or (case.get("similarity") == "base" and case.get("base") in ("dice", "distance"))
        or (str(case.get("fill")).startswith("excluded") and case.get("crop") == 0)
    )


def covering():
    """Cases that hold every valid pair of values, found greedily."""
    names = list(VALUES)
    wanted = {
        frozenset([(a, str(x)), (b, str(y))])
        for a, b in itertools.combinations(names, 2)
        for x, y in itertools.product(VALUES[a], VALUES[b])
        if is_valid({a: x, b: y})
    }
    rng, cases = np.random.default_rng(0), []

    def pairs(case):
        return {frozenset(pair) for pair in itertools.combinations([(n, str(v)) for n, v in case.items()], 2)}

    while wanted:
        drawn = [{name: VALUES[name][rng.integers(len(VALUES[name]))] for name in names} for _ in range(300)]
        best = max(filter(is_valid, drawn), key=lambda case: len(pairs(case) & wanted))
        if pairs(best) & wanted:
            cases.append(best)
            wanted -= pairs(best)
    return cases


CASES = covering()
BOUND = 2


def made(rng, margin, size=11, batch=3):
    """Labels that lie up to two pixels off the predictions' content, blurred a little; a mask with holes; anchors."""
    field = rng.uniform(0.05, 0.95, (batch, 40, 40, 3))
    field = (field + np.roll(field, 1, axis=1) + np.roll(field, 1, axis=2)) / 3
    begin, outer = 15, size + 2 * margin
    prediction = np.clip(
        field[:, begin : begin + size, begin : begin + size] + rng.normal(0, 0.03, (3, size, size, 3)), 0.02, 0.98
    )
    label = [
        one[begin - margin - y : begin - margin - y + outer, begin - margin - x : begin - margin - x + outer]
        for one, (y, x) in zip(field, [(1, -2), (0, 2), (-2, 1)])
    ]
    mask = np.where(rng.random((batch, outer, outer)) < 0.1, 0.0, rng.uniform(0.3, 1.0, (batch, outer, outer)))
    return np.float32(label), np.float32(prediction), np.float32(mask), np.array([False, True, False])


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_valid_pairs_equal_the_loops(rng, case):
    case = dict(case)
    label, prediction, mask, anchored = made(rng, case.pop("margin"))
    if case["base"] == "categorical":
        label, prediction = (side / side.sum(axis=-1, keepdims=True) for side in (label, prediction))
    extras = case["label_extras"]
    appended = {"mask": mask, "anchor": np.ones_like(mask) * anchored[:, None, None]}
    y_true = np.concatenate([label, *(appended[name][..., np.newaxis] for name in extras)], axis=-1)
    base, slow_base = BASES[case.pop("base")]
    loss = tfalign.shift_invariant_loss(y_true, prediction, base, max_shift=BOUND, min_confidence=0.0, **case)
    name = next(name for name, (one, _) in BASES.items() if one is base)
    expected = reference.whole_pixel_losses(
        label,
        prediction,
        slow_base,
        max_shift=(BOUND, BOUND),
        similarity=ITS_OWN[name] if case["similarity"] == "base" else case["similarity"],
        weights=mask if "mask" in extras else np.ones_like(mask),
        crop=BOUND if case["crop"] == "max_shift" else case["crop"],
        fill=case["fill"],
        pool=case["pool"],
        groups=case["groups"],
        still=anchored if "anchor" in extras else np.zeros(3, bool),
    )
    np.testing.assert_allclose(loss, expected, rtol=2e-4)


TOGETHER = {
    "per sample": {
        "base": distance,
        "similarity": "mse",
        "groups": [(1,), (0, 2)],
        "pool": "batch",
        "crop": "max_shift",
        "fill": "excluded_median",
        "label_extras": ("anchor", "mask"),
    },
    "per batch": {"base": dice, "moving": "prediction", "fill": "min", "label_extras": ("anchor", "mask")},
}


def with_extras(rng):
    """Labels with anchor and mask, and predictions."""
    label, prediction, mask, anchored = made(rng, margin=3)
    return np.concatenate(
        [label, np.ones_like(label[..., :1]) * anchored[:, None, None, None], mask[..., None]], axis=-1
    ), prediction


@pytest.mark.parametrize("name", list(TOGETHER))
def test_modes_agree(rng, run, name):
    y_true, prediction = with_extras(rng)

    def value_and_gradient(y, p):
        with tf.GradientTape() as tape:
            tape.watch(p)
            loss = tfalign.shift_invariant_loss(y, p, max_shift=BOUND, min_confidence=0.0, **TOGETHER[name])
        return loss, tape.gradient(loss, p)

    tensors = tf.constant(y_true), tf.constant(prediction)
    for found, expected in zip(run(value_and_gradient, *tensors), value_and_gradient(*tensors)):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", list(TOGETHER))
def test_sizes_known_only_at_run_time(rng, name):
    y_true, prediction = with_extras(rng)

    def loss(y, p):
        return tfalign.shift_invariant_loss(y, p, max_shift=BOUND, min_confidence=0.0, **TOGETHER[name])

    traced = tf.function(loss, input_signature=[tf.TensorSpec((None, None, None, n)) for n in (5, 3)])
    np.testing.assert_allclose(traced(y_true, prediction), loss(y_true, prediction), rtol=1e-3, atol=1e-5)


def test_what_is_cut_off_or_masked_gets_no_gradient(rng):
    label, prediction, mask, _ = made(rng, margin=0)
    mask[:, 4:6] = 0.0
    variable = tf.Variable(prediction)
    y_true = np.concatenate([label, mask[..., np.newaxis]], axis=-1)
    options = {"max_shift": 0, "crop": 2, "label_extras": ("mask",)}
    with tf.GradientTape() as tape:
        loss = tfalign.shift_invariant_loss(y_true, variable, "mse", **options)
    is_inner = np.zeros(prediction.shape[1:-1], bool)
    is_inner[2:-2, 2:-2] = True
    is_told = is_inner & (mask > 0)
    np.testing.assert_array_equal(np.any(tape.gradient(loss, variable).numpy() != 0, axis=-1), is_told)


@pytest.mark.parametrize("moving", ["label", "prediction"])
def test_graded_masks_move_with_labels_by_fractions(rng, moving):
    """A mask of equal values is none; one of a wave weighs the label's errors, wherever the label lies."""
    label, prediction, _, _ = made(rng, margin=3)
    options = {"subpixel": True, "max_shift": BOUND, "min_confidence": 0.0, "moving": moving}
    plain = tfalign.shift_invariant_loss(label, prediction, **options)
    half = np.full_like(label[..., :1], 0.5)
    masked = tfalign.shift_invariant_loss(
        np.concatenate([label, half], axis=-1), prediction, label_extras=("mask",), **options
    )
    np.testing.assert_allclose(masked, plain, rtol=1e-4)


def test_anchors_tell_the_drift_and_stay(rng):
    """All labels lie 2 px down of a network that lies 1 px right, but the anchor, which lies on the input."""
    field = rng.uniform(0.05, 0.95, (6, 40, 40, 1)).astype(np.float32)
    prediction = field[:, 10:26, 9:25]
    label = np.stack([one[5:27, 7:29] for one in field])
    label[0] = field[0, 7:29, 7:29]
    anchor = np.zeros_like(label)
    anchor[0] = 1.0
    y_true = np.concatenate([label, anchor], axis=-1)
    loss_object = tfalign.ShiftInvariantLoss(max_shift=4, warmup_steps=0, label_extras=("anchor",), reduction="none")
    variable = tf.Variable(prediction)
    for _ in range(20):
        with tf.GradientTape() as tape:
            loss = loss_object(y_true, variable)
        tape.gradient(loss, variable)
    np.testing.assert_allclose(loss_object.drift[:2], [0.0, -1.0], atol=0.1)
    in_place = np.abs(field[:, 10:26, 10:26] - prediction).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(loss, in_place, rtol=1e-5)


@pytest.mark.parametrize("anchors", [8, 2])
def test_of_labels_that_move_as_one_anchors_tell_the_drift_if_all_are(rng, anchors):
    """The network lies 1 px right. Two anchors among labels that lie 4 px down stay, but do not tell it."""
    field = rng.uniform(0.05, 0.95, (8, 40, 40, 1)).astype(np.float32)
    prediction = field[:, 10:26, 9:25]
    label = np.stack([one[3 + 4 * (n < anchors) : 25 + 4 * (n < anchors), 7:29] for n, one in enumerate(field)])
    anchor = np.zeros_like(label)
    anchor[:anchors] = 1.0
    options = {"label_extras": ("anchor",), "pool": "batch", "warmup_steps": 0, "reduction": "none"}
    loss_object = tfalign.ShiftInvariantLoss(max_shift=5, **options)
    variable = tf.Variable(prediction)
    for _ in range(6):
        with tf.GradientTape() as tape:
            loss = loss_object(np.concatenate([label, anchor], axis=-1), variable)
        tape.gradient(loss, variable)
    in_place = np.abs(field[:, 10:26, 10:26] - prediction).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(loss[:anchors], in_place[:anchors], rtol=1e-5)
    is_pinned = drift.unpack(loss_object.state).anchored[0] > 0.0
    assert is_pinned == (anchors == 8)
    if is_pinned:
        np.testing.assert_allclose(loss_object.drift[:2], [0.0, -1.0], atol=0.1)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_groups_in_fit_have_a_drift_each_that_is_saved(rng, tmp_path, jit_compile):
    """The first channel's labels lie on the input, the second's in common 2 px further down."""
    scenes = rng.uniform(0.0, 1.0, (16, 30, 30, 1)).astype(np.float32)
    inputs = scenes[:, 5:25, 5:25]
    labels = np.concatenate([scenes[:, 2:28, 2:28], scenes[:, 0:26, 2:28]], axis=-1)
    y_true = np.concatenate([labels, np.ones_like(labels[..., :1])], axis=-1)
    model = keras.Sequential([keras.Input((None, None, 1)), keras.layers.Conv2D(2, 1, kernel_initializer="ones")])
    options = {"groups": [(0,), (1,)], "label_extras": ("mask",), "warmup_steps": 0}
    loss = tfalign.ShiftInvariantLoss(max_shift=3, **options)
    model.compile(keras.optimizers.SGD(1e-6), loss=loss, jit_compile=jit_compile)
    history = model.fit(inputs, y_true, batch_size=8, epochs=6, verbose=0)
    assert np.all(np.isfinite(history.history["loss"]))
    np.testing.assert_allclose(loss.drift, [[0, 0, 0], [2, 0, 0]], atol=0.3)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras").loss
    np.testing.assert_allclose(again.drift, loss.drift)
    assert again.get_config() == loss.get_config()


INTERPOLATED = [
    {"subpixel": True, "groups": [(0,), (1,)], "crop": 3},
    {"subpixel": True, "pool": "batch", "fill": "mean", "moving": "prediction"},
    {"max_rotation": 8.0, "groups": [(0,), (1,)], "label_extras": ("mask",)},
    {"max_rotation": 8.0, "pool": "batch", "moving": "prediction", "label_extras": ("mask",)},
    {"max_rotation": 8.0, "crop": "max_shift", "base": distance, "similarity": "mse"},
    {"max_rotation": 8.0, "max_scale": 0.1, "fill": 0.5, "label_extras": ("anchor",)},
]


@pytest.mark.parametrize("options", INTERPOLATED, ids=lambda options: "-".join(options))
def test_labels_moved_by_fractions_or_turned_cost_next_to_nothing(rng, options):
    """All labels alike, so that a common move is right as well."""
    turn = [4.0] if options.get("max_rotation") else [0.0]
    transforms = np.repeat(made_transforms([[2.0, -1.5]], rotation=[turn]), 2, axis=0)
    label, prediction = turned_pair(rng, transforms, channels=2)
    plain = tfalign.shift_invariant_loss(label, prediction, options.get("base", "mae"), max_shift=0)
    if "label_extras" in options:
        value = {"mask": 0.7, "anchor": 0.0}[options["label_extras"][0]]
        label = np.concatenate([label, np.full_like(label[..., :1], value)], axis=-1)
    # What is filled does not turn with the picture: a fill is of the source's method, not the most exact.
    least = 0.5 if "fill" in options else 0.04
    assert np.max(tfalign.shift_invariant_loss(label, prediction, max_shift=6, **options) / plain) < least


@pytest.mark.parametrize("options", [{"assignment": "soft"}, *INTERPOLATED], ids=lambda options: "-".join(options))
def test_float64_in_a_graph(rng, options):
    loss_object = tfalign.ShiftInvariantLoss(**{"base": "mse", **options}, max_shift=2, dtype="float64")
    assert loss_object.state.shape.rank > 0  # made before any function is traced

    def step(label, prediction):
        with tf.GradientTape() as tape:
            tape.watch(prediction)
            loss = loss_object(label, prediction)
        return loss, tape.gradient(loss, prediction)

    channels = 2 + len(options.get("label_extras", ()))
    sides = (tf.TensorSpec([3, 20, 20, channels], tf.float64), tf.TensorSpec([3, 16, 16, 2], tf.float64))
    loss, gradient = tf.function(step).get_concrete_function(*sides).structured_outputs
    assert loss.dtype == gradient.dtype == tf.float64
