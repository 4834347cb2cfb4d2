"""Every pair of the loss's options: what is valid equals loops over samples and shifts, what is not is refused."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfalign
from tests import reference


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
