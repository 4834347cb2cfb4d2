"""Patches that break things: no exception, and no NaN but from a NaN prediction."""

import numpy as np
import pytest
import tensorflow as tf

import tfalign
from tests.conftest import MODES
from tfalign.ops.registration import SIMILARITIES

SIZE, MARGIN = 12, 2
MEASURES = [*SIMILARITIES, "base"]


def one_pixel(rng, shape):
    values = np.zeros(shape)
    values[tuple(rng.integers(0, size) for size in shape[:-1])] = rng.choice([1.0, -1.0, 1e4])
    return values


def holed(value):
    def kind(rng, shape):
        return np.where(rng.random((*shape[:-1], 1)) < rng.choice([0.02, 0.5, 0.98]), value, rng.random(shape))

    return kind


FINITE = {
    "blank": lambda rng, shape: np.full(shape, rng.choice([0.0, 0.5, 1.0, -3.0])),
    "saturated": lambda rng, shape: np.clip(rng.normal(0.5, 5.0, shape), 0.0, 1.0),
    "one pixel": one_pixel,
    "stripes": lambda rng, shape: (
        np.broadcast_to((np.arange(shape[1]) % rng.integers(1, 5) == 0)[:, None], shape) * 1.0
    ),
    "checker": lambda rng, shape: np.broadcast_to(np.indices(shape[:-1]).sum(axis=0)[..., None] % 2, shape) * 1.0,
    "ramp": lambda rng, shape: np.broadcast_to(np.arange(shape[0])[:, None, None] * 1e-3, shape),
    "noise": lambda rng, shape: rng.random(shape),
    "huge": lambda rng, shape: rng.normal(0.0, 10.0 ** rng.integers(5, 18), shape),
    "tiny": lambda rng, shape: rng.normal(0.0, 10.0 ** -rng.integers(5, 40), shape),
    "large offset": lambda rng, shape: 3e4 + rng.random(shape),
    "two scales": lambda rng, shape: rng.random(shape) * 10.0 ** rng.integers(-8, 8, shape),
}
ONLY_LABELS = {
    "nan": holed(np.nan),
    "inf": holed(np.inf),
    "minus inf": holed(-np.inf),
    "all nan": lambda rng, shape: np.full(shape, np.nan),
    "largest": lambda rng, shape: rng.choice([-1.0, 1.0], shape) * 3e38,
}
MASKS = [
    lambda rng, shape: np.zeros(shape),
    lambda rng, shape: np.ones(shape),
    lambda rng, shape: (rng.random(shape) < 0.02) * 1.0,
    lambda rng, shape: rng.random(shape),
    lambda rng, shape: np.full(shape, 1e-30),
    lambda rng, shape: holed(np.nan)(rng, shape),
]


def generated(count, *, size=SIZE, seed=0, whole=False):
    """Labels with a mask behind their two channels, and predictions, drawn from every kind; `whole` without holes.

    A batch where every pixel counts is registered by other sums than one with holes.
    """
    rng = np.random.default_rng(seed)
    labels, predictions = [], []
    kinds = [*FINITE.values()] if whole else [*FINITE.values(), *ONLY_LABELS.values()]
    masks, largest = ([lambda rng, shape: np.ones(shape)], 1e14) if whole else (MASKS, np.inf)
    for number in range(count):
        outer = (size + 2 * MARGIN,) * 2
        label = kinds[number % len(kinds)](rng, (*outer, 2))
        mask = masks[rng.integers(len(masks))](rng, (*outer, 1))
        labels.append(np.concatenate([label, mask], axis=-1))
        predictions.append(list(FINITE.values())[rng.integers(len(FINITE))](rng, (size, size, 2)))
    return tuple(np.float32(np.clip(sides, -largest, largest)) for sides in (labels, predictions))


def halves(count, precision=np.float16):
    """The same in another precision, predictions within half precision; labels beyond it are infinite there."""
    labels, predictions = generated(count)
    with np.errstate(over="ignore"):
        return labels.astype(precision), np.clip(predictions, -6e4, 6e4).astype(precision)


def check(*batches, mode, **options):
    """A step of the loss on each `(labels, predictions)`: what it gives is finite."""
    loss_object = tfalign.ShiftInvariantLoss(label_extras=("mask",), reduction="none", warmup_steps=0, **options)
    assert np.all(np.isfinite(loss_object.state))  # made before any function is traced

    def step(label, prediction):
        with tf.GradientTape() as tape:
            tape.watch(prediction)
            loss = loss_object(label, prediction)
        return loss, tape.gradient(loss, prediction)

    if mode != "eager":
        step = tf.function(step, jit_compile=mode == "xla")
    for labels, predictions in batches:
        loss, gradient = step(tf.constant(labels), tf.constant(predictions))
        assert np.all(np.isfinite(loss))
        assert np.all(np.isfinite(gradient))
        assert np.all(np.isfinite(loss_object.state))
        assert np.max(np.abs(loss_object.drift)) <= MARGIN + 1.0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure(measure, mode):
    if mode != "eager" and measure != "ncc":
        pytest.skip("compiled for one of them here, for all by make test-slow")
    check(generated(300), generated(300, whole=True), mode=mode, similarity=measure, max_shift=MARGIN)


@pytest.mark.parametrize("base", ["mse", "mae"])
def test_the_soft_choice(base):
    labels, predictions = generated(300)
    # Squares of huge predictions overflow, as those of Keras's own loss do.
    predictions = np.clip(predictions, -1e9, 1e9)
    check((np.clip(labels, -1e9, 1e9), predictions), mode="eager", base=base, max_shift=MARGIN, assignment="soft")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("assignment", ["hard", "soft"])
@pytest.mark.parametrize("mode", ["eager", "xla"])
@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_on_ten_thousand(measure, mode, assignment, dtype):
    options = {"similarity": measure, "max_shift": MARGIN, "assignment": assignment, "dtype": dtype}
    check(*(generated(2000, seed=seed, whole=seed == 4) for seed in range(5)), mode=mode, **options)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("assignment", ["hard", "soft"])
@pytest.mark.parametrize("mode", ["eager", "xla"])
@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_on_few_pixels(measure, mode, assignment, size):
    check(generated(300, size=size), mode=mode, similarity=measure, max_shift=1, assignment=assignment)


@pytest.mark.slow
@pytest.mark.parametrize("assignment", ["hard", "soft"])
@pytest.mark.parametrize("mode", ["eager", "xla"])
@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_in_half_precision(measure, mode, assignment):
    check(halves(1000), mode=mode, similarity=measure, max_shift=MARGIN, assignment=assignment)


OPTIONS = [{}, {"subpixel": True}, {"moving": "prediction"}, {"max_rotation": 5.0}, {"assignment": "soft"}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_patches_of_a_few_pixels(size, options):
    check(generated(60, size=size), mode="eager", max_shift=1, **options)


@pytest.mark.parametrize("options", [{"subpixel": True}, {"max_rotation": 5.0, "max_scale": 0.1}, {"fill": "median"}])
@pytest.mark.parametrize("precision", [np.float16, np.float64])
def test_other_precisions(options, precision):
    check(halves(100, precision), mode="eager", max_shift=MARGIN, **options)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_nan_prediction_is_seen_in_its_own_sample_alone(measure):
    labels, predictions = generated(48)
    predictions[5, 3, 3, 1] = np.nan
    loss_object = tfalign.ShiftInvariantLoss(
        label_extras=("mask",), reduction="none", warmup_steps=0, similarity=measure, max_shift=MARGIN
    )
    assert np.isfinite(loss_object(labels, predictions)).tolist() == [number != 5 for number in range(48)]
