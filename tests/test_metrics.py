"""Metrics in place and after registration, against Keras on what counts, scikit-image, and known shifts."""

import inspect

import keras
import numpy as np
import pytest
import skimage.metrics
import tensorflow as tf

import tfalign
from tfalign import _keras, metrics
from tfalign.metrics import pairs
from tfalign.ops import filters, geometry

NAN = np.nan


def value(metric):
    return np.asarray(tf.convert_to_tensor(metric.result()))


def of_batch(metric, label, prediction, **weights):
    metric.update_state(label, prediction, **weights)
    return value(metric)


def centre(values, sizes):
    """The shared grid, index by index: the middle pixel is size // 2."""
    for axis, size in enumerate(sizes, start=1):
        start = values.shape[axis] // 2 - size // 2
        values = np.take(values, np.arange(start, start + size), axis)
    return values


def rows(values):
    return values.reshape(-1, values.shape[-1])


def fields(rng, sizes, channels=1, batch=3):
    return rng.uniform(0, 1, (batch, *sizes, channels)).astype(np.float32)


def moved(field, shifts, size, margin):
    """Inputs of `size`, and labels with a margin that lie `shifts` further down/right."""
    middle, half = field.shape[1] // 2, size // 2
    label_half = half + margin
    inputs = field[:, middle - half : middle + half, middle - half : middle + half]
    labels = np.stack(
        [
            sample[middle - label_half - y : middle + label_half - y, middle - label_half - x : middle + label_half - x]
            for sample, (y, x) in zip(field, shifts)
        ]
    )
    return inputs, labels


SHIFTS = np.array([[2, -1], [0, 3], [-3, 1]])


# In place.

KERAS_METRICS = {
    "mae": lambda: keras.metrics.MeanAbsoluteError(),
    "rmse": lambda: keras.metrics.RootMeanSquaredError(),
    "auc": lambda: keras.metrics.AUC(num_thresholds=20),
    "r2": lambda: keras.metrics.R2Score(),
    "iou": lambda: keras.metrics.OneHotMeanIoU(num_classes=2),
}


@pytest.mark.parametrize(
    ("name", "label_size", "size"),
    [(name, (7, 9), (10, 6)) for name in KERAS_METRICS]
    + [("mae", *sizes) for sizes in [((10, 9), (7, 6)), ((7, 6), (10, 9)), ((12,), (7,)), ((4, 5, 6), (5, 4, 3))]],
)
def test_in_place_is_the_metric_on_the_shared_centre(rng, name, label_size, size):
    label = np.round(fields(rng, label_size, channels=2))
    prediction = fields(rng, size, channels=2)
    shared = np.minimum(label_size, size)
    expected = of_batch(KERAS_METRICS[name](), rows(centre(label, shared)), rows(centre(prediction, shared)))
    found = of_batch(metrics.InPlace(KERAS_METRICS[name]()), label, prediction)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["mae", "rmse", "auc", "r2"])
def test_pixels_that_do_not_count_are_left_out_and_others_weigh(rng, name):
    label, prediction = np.round(fields(rng, (8, 7))), fields(rng, (8, 7))
    graded = rng.choice([0.0, 0.25, 1.0], label.shape).astype(np.float32)
    graded[0, 1, 1] = NAN
    label[1, 2:4] = NAN
    label[2, 5] = 255.0
    anchors = np.ones_like(label)
    weights = np.float32([1.0, 0.5, 2.0])
    counts = np.isfinite(label) & (label != 255.0) & (graded > 0)
    weight = (graded * weights[:, None, None, None])[counts]
    expected = of_batch(
        KERAS_METRICS[name](), label[counts][:, None], prediction[counts][:, None], sample_weight=weight
    )
    metric = metrics.InPlace(KERAS_METRICS[name](), label_extras=("anchor", "mask"), ignore_class=255)
    together = np.concatenate([label, anchors, graded], axis=-1)
    np.testing.assert_allclose(of_batch(metric, together, prediction, sample_weight=weights), expected, rtol=1e-5)


def test_integer_metrics_take_rounded_weights(rng):
    label, scores = rng.integers(0, 3, (2, 6, 6)), fields(rng, (6, 6), channels=3, batch=2)
    given = label.astype(np.float32)
    given[0, :3] = NAN
    counts = np.isfinite(given)
    make = lambda: keras.metrics.MeanIoU(num_classes=3, sparse_y_pred=False)  # noqa: E731
    expected = of_batch(make(), label[counts], scores[counts])
    np.testing.assert_allclose(of_batch(metrics.InPlace(make()), given, scores), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["accuracy", "acc"])
def test_accuracy_is_chosen_by_the_channels(rng, name):
    scores, single = fields(rng, (6, 5), channels=3), fields(rng, (6, 5))
    classes = rng.integers(0, 3, (3, 6, 5))
    right = np.mean(np.argmax(scores, -1) == classes)
    for label in (classes, classes[..., None].astype(np.float32), np.eye(3)[classes]):
        assert of_batch(metrics.InPlace(name), label, scores) == pytest.approx(right, abs=1e-6)
    binary = np.round(fields(rng, (6, 5)))
    expected = np.mean((single > 0.5) == (binary > 0.5))
    assert of_batch(metrics.InPlace(name), binary, single) == pytest.approx(expected, abs=1e-6)


def mean_per_picture(y_true, y_pred):
    return tf.reduce_mean(tf.abs(y_true - y_pred), axis=[1, 2, 3])


def one_for_all(y_true, y_pred):
    return tf.reduce_max(tf.abs(y_true - y_pred))


def per_pixel(y_true, y_pred):
    return tf.reduce_mean(tf.abs(y_true - y_pred), axis=-1)


def test_functions_of_pictures(rng):
    label, prediction = fields(rng, (6, 6)), fields(rng, (6, 6))
    label[0, 2] = NAN
    weights = np.float32([1, 2, 0])
    error = np.where(np.isnan(label), 0.0, np.abs(label - prediction))
    for function, each in ((mean_per_picture, error.mean(axis=(1, 2, 3))), (one_for_all, error.max(axis=(1, 2, 3)))):
        found = of_batch(metrics.InPlace(function, spatial=True), label, prediction, sample_weight=weights)
        assert found == pytest.approx(np.average(each, weights=weights), rel=1e-5)
    found = of_batch(metrics.InPlace(per_pixel), label, prediction)
    assert found == pytest.approx(np.nanmean(np.abs(label - prediction)), rel=1e-5)


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (lambda: metrics.InPlace(one_for_all), r"one value for each row.*its shape=\(\).*spatial=True"),
        (lambda: metrics.InPlace(per_pixel, spatial=True), r"one value for each picture.*spatial=False"),
    ],
)
def test_a_function_of_the_wrong_kind(rng, metric, text):
    with pytest.raises(ValueError, match=text):
        metric().update_state(fields(rng, (6, 6)), fields(rng, (6, 6)))


def test_it_sees_the_drift_that_the_aligned_loss_does_not(rng):
    """A network whose output is one pixel off, on labels that lie right."""
    inputs, labels = moved(fields(rng, (32, 32)), [[0, 0]] * 3, 16, 3)
    prediction = labels[:, 2:-4, 3:-3]
    assert float(np.max(tfalign.shift_invariant_loss(labels, prediction, max_shift=2))) < 1e-6
    assert of_batch(metrics.ShiftInvariant("mae", max_shift=2), labels, prediction) < 1e-6
    assert of_batch(metrics.InPlace("mae"), labels, prediction) == pytest.approx(
        np.abs(inputs - prediction).mean(), rel=1e-5
    )


def test_non_finite_predictions_show_and_empty_labels_do_not_count(rng):
    label, prediction = fields(rng, (12, 12)), fields(rng, (12, 12))
    label[0] = NAN
    made = [metrics.InPlace("mae"), metrics.ShiftInvariant("mae", max_shift=2), metrics.PSNR(), metrics.SSIM()]
    for metric in made:
        both = of_batch(metric, label, prediction)
        metric.reset_state()
        assert np.isfinite(both)
        assert both == pytest.approx(of_batch(metric, label[1:], prediction[1:]), rel=1e-5)
        metric.reset_state()
        assert of_batch(metric, label[:1], prediction[:1]) == 0.0
        prediction_with_hole = prediction.copy()
        prediction_with_hole[1, 5, 5] = NAN
        assert np.isnan(of_batch(metric, label, prediction_with_hole))
        metric.reset_state()
        assert value(metric) == 0.0


# After registration.


@pytest.mark.parametrize("margin", [0, 3])
def test_registered_metrics_find_known_shifts(rng, margin):
    inputs, labels = moved(fields(rng, (40, 40)), SHIFTS, 16, margin)
    options = {"max_shift": 3, "min_overlap": 0.4}
    assert of_batch(metrics.ShiftInvariant("mae", **options), labels, inputs) < 1e-6
    assert of_batch(metrics.MeanShift(**options), labels, inputs) == pytest.approx(
        np.linalg.norm(SHIFTS, axis=1).mean(), abs=0.05
    )
    for axis in (0, 1):
        found = of_batch(metrics.MeanShift(axis=axis, **options), labels, inputs)
        assert found == pytest.approx(SHIFTS[:, axis].mean(), abs=0.05)
    assert of_batch(metrics.ShiftAtBound(**options), labels, inputs) == pytest.approx(2 / 3)
    assert of_batch(metrics.ShiftAtBound(max_shift=(4, 4), min_overlap=0.4), labels, inputs) == 0.0


def test_only_the_overlap_of_a_moved_label_counts(rng):
    """Against the values that a known shift lays on one another."""
    inputs, labels = moved(fields(rng, (40, 40)), SHIFTS, 16, 0)
    noise = rng.normal(0, 0.02, inputs.shape).astype(np.float32)
    prediction = inputs + noise
    pieces = [
        np.abs(noise[n, max(0, -y) : 16 - max(0, y), max(0, -x) : 16 - max(0, x)]).ravel()
        for n, (y, x) in enumerate(SHIFTS)
    ]
    expected = np.concatenate(pieces).mean()
    found = of_batch(metrics.ShiftInvariant("mae", max_shift=3), labels, prediction)
    assert found == pytest.approx(expected, rel=1e-4)
    psnr = of_batch(metrics.ShiftInvariant(metrics.PSNR(), max_shift=3), labels, prediction)
    error = [np.mean(np.square(noise[n, max(0, -y) : 16 - max(0, y), max(0, -x) : 16 - max(0, x)])) for n, (y, x) in
             enumerate(SHIFTS)]  # fmt: skip
    assert psnr == pytest.approx(np.mean(-10 * np.log10(error)), rel=1e-4)


def test_anchored_and_unsure_labels_stay(rng):
    inputs, labels = moved(fields(rng, (40, 40)), SHIFTS, 16, 3)
    in_place = of_batch(metrics.InPlace("mae"), labels, inputs)
    anchored = np.concatenate([labels, np.ones_like(labels)], axis=-1)
    metric = metrics.ShiftInvariant("mae", max_shift=3, label_extras="anchor")
    assert of_batch(metric, anchored, inputs) == pytest.approx(in_place, rel=1e-5)
    metric.reset_state()
    anchored[..., 1] = 0.0
    assert of_batch(metric, anchored, inputs) < 1e-6
    flat = np.zeros_like(labels)
    assert of_batch(metrics.ShiftInvariant("mae", max_shift=3), flat, inputs) == pytest.approx(inputs.mean(), rel=1e-5)
    assert of_batch(metrics.MeanShift(max_shift=3, min_confidence=0.0), flat, inputs) == 0.0
    at_bound = metrics.ShiftAtBound(max_shift=2)
    mixed = np.concatenate([labels[2:], flat])
    assert of_batch(at_bound, mixed, np.concatenate([inputs[2:], inputs])) == 1.0


def test_a_label_that_is_not_known_well_stays(rng):
    """One that shows something else lies best somewhere, by chance."""
    inputs, labels = fields(rng, (16, 16)), fields(rng, (22, 22))
    in_place = of_batch(metrics.InPlace("mae"), labels, inputs)
    for least, stays in ((0.9, True), (0.0, False)):
        found = of_batch(metrics.ShiftInvariant("mae", max_shift=3, min_confidence=least), labels, inputs)
        assert (abs(found - in_place) < 1e-6) == stays


def test_graded_weights_move_with_the_label(rng):
    inputs, labels = moved(fields(rng, (40, 40)), SHIFTS, 16, 3)
    mask = np.ones_like(labels)
    mask[:, 8:13, 8:13] = 0.25
    wrong = np.where(mask < 1, labels + 0.3, labels)
    metric = metrics.ShiftInvariant("mae", max_shift=3, label_extras=("mask",))
    # The square of 5 x 5 lies within each prediction.
    expected = 0.3 * 0.25 * 25 / (256 - 0.75 * 25)
    assert of_batch(metric, np.concatenate([wrong, mask], axis=-1), inputs) == pytest.approx(expected, rel=1e-4)


def test_what_is_hidden_does_not_reach_the_registration_or_the_splines(rng):
    field = filters.gaussian(fields(rng, (40, 40)), sigma=1.5).numpy()
    inputs, labels = moved(field, SHIFTS, 16, 3)
    hidden = np.zeros(labels.shape, bool)
    hidden[:, 4:12, 6:14] = True
    wrong = np.where(hidden, NAN, labels)
    pair = pairs.paired(wrong, inputs)
    search = pairs.Search.checked(max_shift=3)
    np.testing.assert_allclose(pairs.registered(pair, search, subpixel=True).score, 1.0, atol=1e-5)
    # By fractions of a pixel that come out as a hundredth.
    found = of_batch(metrics.ShiftInvariant("mae", max_shift=3, subpixel=True), wrong, inputs)
    assert found < 0.02 * labels.std()


def test_an_activation_registers_probabilities(rng):
    inputs, labels = moved(fields(rng, (40, 40), channels=3), SHIFTS, 16, 3)
    for name, logits, probabilities in (
        ("softmax", np.log(inputs + 0.1), (inputs + 0.1) / np.sum(inputs + 0.1, axis=-1, keepdims=True)),
        ("sigmoid", np.log(inputs + 0.1) - np.log(1.1 - inputs), (inputs + 0.1) / 1.2),
    ):
        plain = pairs.Search.checked(max_shift=3, similarity="mse")
        expected = pairs.registered(pairs.paired(labels, probabilities), plain, subpixel=False)
        found = pairs.registered(pairs.paired(labels, logits), plain._replace(activation=name), subpixel=False)
        np.testing.assert_allclose(found.score, expected.score, rtol=1e-4)


def test_class_numbers_that_do_not_count_need_not_be_classes(rng):
    classes, scores = rng.integers(0, 3, (2, 6, 6)), fields(rng, (6, 6), channels=3, batch=2) + 0.1
    scores /= scores.sum(axis=-1, keepdims=True)
    shown = classes.copy()
    shown[0, :2] = 255
    metric = metrics.InPlace("sparse_categorical_crossentropy", ignore_class=255)
    chosen = np.take_along_axis(scores, classes[..., None], -1)[..., 0]
    expected = -np.log(chosen)[shown != 255].mean()
    assert of_batch(metric, shown, scores) == pytest.approx(expected, rel=1e-4)


def test_a_mask_moves_with_its_label(rng):
    inputs, labels = moved(fields(rng, (40, 40)), SHIFTS, 16, 3)
    # Wrong where the mask is 0: a square that lies elsewhere on each prediction.
    mask = np.ones_like(labels)
    mask[:, 8:13, 8:13] = 0.0
    wrong = np.where(mask > 0, labels, 7.0)
    metric = metrics.ShiftInvariant("mae", max_shift=3, label_extras=("mask",))
    assert of_batch(metric, np.concatenate([wrong, mask], axis=-1), inputs) < 1e-6
    assert of_batch(metrics.ShiftInvariant("mae", max_shift=3), np.where(mask > 0, labels, NAN), inputs) < 1e-6


@pytest.mark.parametrize("kind", ["numbers", "one hot", "logits"])
def test_class_maps_are_registered(rng, kind):
    """Regions of three classes, and predictions that know them."""
    blobs = tf.image.resize(rng.integers(0, 3, (3, 12, 12, 1)), (48, 48), method="nearest").numpy()[..., 0]
    classes, labels = moved(blobs[..., None], SHIFTS, 24, 3)
    prediction = np.eye(3, dtype=np.float32)[classes[..., 0]] * 0.8 + 0.1
    options = {"max_shift": 3}
    if kind == "one hot":
        labels = np.eye(3, dtype=np.float32)[labels[..., 0]]
    if kind == "logits":
        prediction = 20.0 * prediction - 10.0
        options["activation"] = "softmax"
    assert of_batch(metrics.ShiftInvariant("accuracy", **options), labels, prediction) == pytest.approx(1.0)
    assert of_batch(metrics.InPlace("accuracy"), labels, prediction) < 0.95


def test_labels_off_by_fractions_and_turned(rng):
    field = filters.gaussian(fields(rng, (48, 48), batch=2), sigma=2.0).numpy()
    inputs = field[:, 8:40, 8:40]
    shifts, angles = np.float32([[0.5, 1.25], [-1.5, 0.75]]), np.float32([[4.0], [-3.0]])
    transform = geometry.make(shifts, rotation=angles)
    # The label lies at T of the input, so it is read through the inverse.
    labels, _ = tfalign.warp(field, geometry.invert(transform), output_shape=(40, 40), interpolation="cubic")
    in_place, whole, exact = (
        of_batch(metric, labels, inputs)
        for metric in (
            metrics.InPlace("mae"),
            metrics.ShiftInvariant("mae", max_shift=3),
            metrics.ShiftInvariant("mae", max_shift=3, max_rotation=6.0),
        )
    )
    assert exact < 0.1 * whole < 0.1 * in_place


def test_splines_stay_inside_the_range_of_a_label(rng):
    steps = np.tile(np.float32(np.arange(24) >= 12)[None, :, None, None], (1, 1, 24, 1)) * fields(rng, (1, 24), batch=1)
    pair = pairs.paired(steps, np.roll(steps, 1, axis=1))
    search = pairs.Search.checked(max_shift=2, max_scale=0.02)
    laid = pairs.aligned(pair, search, subpixel=True, min_confidence=0.0)
    assert steps.min() <= laid.label.numpy().min()
    assert laid.label.numpy().max() <= steps.max()


# Pictures.


@pytest.mark.parametrize("size", [(40,), (20, 17), (12, 13, 14)])
def test_psnr_and_ssim_are_those_of_scikit_image(rng, size):
    label, prediction = 255 * fields(rng, size, channels=2), 255 * fields(rng, size, channels=2)
    prediction = 0.3 * prediction + 0.7 * label
    weights = np.float32([1, 0, 3])
    options = {"data_range": 255.0, "channel_axis": -1}
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    ssim = [skimage.metrics.structural_similarity(x, y, **options, **gaussian) for x, y in zip(label, prediction)]
    psnr = [skimage.metrics.peak_signal_noise_ratio(x, y, data_range=255.0) for x, y in zip(label, prediction)]
    for metric, expected in ((metrics.SSIM(max_value=255), ssim), (metrics.PSNR(max_value=255), psnr)):
        assert of_batch(metric, label, prediction) == pytest.approx(np.mean(expected), rel=1e-4)
        metric.reset_state()
        found = of_batch(metric, label, prediction, sample_weight=weights)
        assert found == pytest.approx(np.average(expected, weights=weights), rel=1e-4)


def test_ssim_is_that_of_tensorflow(rng):
    label, prediction = fields(rng, (20, 18)), fields(rng, (20, 18))
    prediction = 0.3 * prediction + 0.7 * label
    options = {"filter_size": 7, "filter_sigma": 1.2, "k1": 0.02, "k2": 0.05}
    expected = tf.reduce_mean(tf.image.ssim(label, prediction, 2.0, **options))
    assert of_batch(metrics.SSIM(max_value=2.0, **options), label, prediction) == pytest.approx(
        float(expected), rel=1e-4
    )


def test_ssim_leaves_out_windows_with_unknown_pixels(rng):
    label, prediction = fields(rng, (24, 20), batch=1), fields(rng, (24, 20), batch=1)
    _, full = skimage.metrics.structural_similarity(
        label[0, ..., 0], prediction[0, ..., 0], data_range=1.0, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    holed = label.copy()
    holed[0, 3, 4] = NAN
    inner = np.zeros((24, 20), bool)
    inner[5:-5, 5:-5] = True
    inner[:9, :10] = False
    assert of_batch(metrics.SSIM(), holed, prediction) == pytest.approx(full[inner].mean(), rel=1e-3)


def test_psnr_on_the_pixels_that_count(rng):
    label, prediction = fields(rng, (9, 9), batch=1), fields(rng, (5, 5), batch=1)
    label[0, 4, 4] = NAN
    error = np.nanmean(np.square(centre(label, (5, 5)) - prediction))
    assert of_batch(metrics.PSNR(), label, prediction) == pytest.approx(-10 * np.log10(error), rel=1e-5)
    assert of_batch(metrics.PSNR(max_value=4.0), prediction, prediction) == pytest.approx(138.47, abs=0.01)


# Inside Keras.


def all_metrics():
    options = {"label_extras": ["mask"]}
    search = {"max_shift": 2, **options}
    return [
        metrics.InPlace("mae", **options),
        metrics.ShiftInvariant("mse", **search),
        metrics.PSNR(max_value=2.0, **options),
        metrics.SSIM(filter_size=5, **options),
        metrics.MeanShift(**search),
        metrics.MeanShift(axis=1, **search),
        metrics.ShiftAtBound(**search),
    ]


NAMES = ["in_place_mae", "shift_invariant_mse", "psnr", "ssim", "mean_shift", "mean_shift_1", "shift_at_bound"]


@pytest.fixture
def data(rng):
    inputs, labels = moved(fields(rng, (32, 32), batch=6), np.tile(SHIFTS - [[0, 1]], (2, 1)).clip(-2, 2), 16, 2)
    mask = rng.choice([0.0, 0.5, 1.0], labels.shape, p=[0.1, 0.1, 0.8]).astype(np.float32)
    return inputs, np.concatenate([labels, mask], axis=-1)


def some_metrics(names):
    """Fewer take less time to trace and compile."""
    of_name = {metric.name: metric for metric in all_metrics()}
    return [of_name[name] for name in names]


def expected_values(data, weights=None, names=NAMES):
    """Of a network that gives its input, all samples at once."""
    inputs, labels = data
    return [float(of_batch(metric, labels, inputs, sample_weight=weights)) for metric in some_metrics(names)]


def test_the_same_in_every_mode(run, data):
    inputs, labels = data
    names = [name for name in NAMES if name != "mean_shift"]
    made = some_metrics(names)

    def update(label, prediction):
        for metric in made:
            metric.update_state(label, prediction)
        return tf.constant(0.0)

    run(update, labels[:3], inputs[:3])
    run(update, labels[3:], inputs[3:])
    np.testing.assert_allclose(
        [value(metric) for metric in made], expected_values(data, names=names), rtol=1e-4, atol=1e-5
    )


@keras.saving.register_keras_serializable(package="tests")
def no_loss(y_true, y_pred):
    """Labels with a margin and a mask are for the metrics alone."""
    return 0.0 * tf.reduce_mean(y_pred, axis=[1, 2, 3])


def identity_network(**options):
    """Gives its input, whatever its size."""
    inputs = keras.Input((None, None, 1))
    outputs = keras.layers.Conv2D(1, 1, kernel_initializer="ones", **options)(inputs)
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit_and_evaluate(data, jit_compile):
    weights = np.float32([1, 2, 0, 1, 1, 3])
    names = ["in_place_mae", "psnr"] if jit_compile else ["in_place_mae", "ssim", "shift_invariant_mse"]
    model = identity_network()
    model.compile(
        keras.optimizers.SGD(0.0), loss=no_loss, weighted_metrics=some_metrics(names), jit_compile=jit_compile
    )
    inputs, labels = data
    history = model.fit(
        inputs, labels, batch_size=3, sample_weight=weights, validation_data=data, verbose=0, shuffle=False
    ).history
    for prefix, weight in (("", weights), ("val_", None)):
        found = [history[prefix + name][0] for name in names]
        np.testing.assert_allclose(found, expected_values(data, weight, names), rtol=1e-4, atol=1e-5)


def test_several_outputs(data):
    inputs, labels = data
    image = keras.Input((16, 16, 1))
    heads = [keras.layers.Conv2D(1, 1, kernel_initializer="ones", name=name)(image) for name in "ab"]
    model = keras.Model(image, heads)
    mine = [[metrics.InPlace("mae", label_extras=["mask"])], [metrics.PSNR(max_value=2.0, label_extras=["mask"])]]
    model.compile("sgd", loss=[no_loss, no_loss], metrics=mine)
    found = model.evaluate(inputs, [labels, labels], return_dict=True, verbose=0)
    expected = expected_values(data)
    assert found["a_in_place_mae"] == pytest.approx(expected[0], rel=1e-4)
    assert found["b_psnr"] == pytest.approx(expected[2], rel=1e-4)


def test_unknown_sizes(data):
    inputs, labels = data
    names = ["in_place_mae", "ssim", "shift_at_bound"]

    def generate():
        for size in (16, 12):
            yield inputs[:, :size, :size], labels[:, : size + 4, : size + 4]

    any_size = tf.TensorSpec((None, None, None, None), tf.float32)
    dataset = tf.data.Dataset.from_generator(
        generate, output_signature=(tf.TensorSpec((None, None, None, 1), tf.float32), any_size)
    )
    model = identity_network()
    model.compile("sgd", loss=no_loss, metrics=some_metrics(names))
    found = model.evaluate(dataset, return_dict=True, verbose=0)
    made = some_metrics(names)
    for batch_inputs, batch_labels in generate():
        for metric in made:
            metric.update_state(batch_labels, batch_inputs)
    np.testing.assert_allclose([found[name] for name in names], [value(one) for one in made], rtol=1e-4, atol=1e-5)


def test_half_types(data):
    inputs, labels = data
    names = ["in_place_mae", "psnr", "mean_shift"]
    model = identity_network(dtype="mixed_float16")
    model.compile("sgd", loss=no_loss, metrics=some_metrics(names))
    assert model(inputs[:1]).dtype == tf.float16
    found = model.evaluate(inputs, labels, return_dict=True, verbose=0)
    half = inputs.astype(np.float16).astype(np.float32)
    # Keras 2 hands labels over in the type of the predictions.
    expected = expected_values((half, labels), names=names)
    np.testing.assert_allclose([found[name] for name in names], expected, rtol=5e-3, atol=2e-3)
    assert found["psnr"] > 5.0


def test_two_replicas(two_replicas, data):
    inputs, labels = data
    names = ["in_place_mae", "psnr", "mean_shift_1"]
    with two_replicas.scope():
        model = identity_network()
        model.compile("sgd", loss=no_loss, metrics=some_metrics(names))
    # 6 samples in batches of 4: the replicas get 2 and 2, then 1 and 1.
    found = model.evaluate(inputs, labels, batch_size=4, return_dict=True, verbose=0)
    expected = expected_values(data, names=names)
    np.testing.assert_allclose([found[name] for name in names], expected, rtol=1e-4, atol=1e-5)


@keras.saving.register_keras_serializable(package="tests")
def worst_pixel(y_true, y_pred):
    return tf.reduce_max(tf.abs(y_true - y_pred), axis=[1, 2, 3])


def unusual_metrics():
    extras = {"label_extras": ["anchor", "mask"], "dtype": "float64"}
    search = {
        "max_shift": [2, 3], "max_rotation": 2.0, "max_scale": 0.1, "max_shear": 1.0, "similarity": "mse",
        "min_overlap": 0.3, "pool": "batch", "activation": "sigmoid",
    }  # fmt: skip
    return [
        metrics.InPlace("mae", name="mine", ignore_class=7, **extras),
        metrics.InPlace(worst_pixel, spatial=True, name="worst", **extras),
        metrics.ShiftInvariant(
            keras.metrics.BinaryAccuracy(threshold=0.3, name="low"),
            subpixel=True,
            min_confidence=0.25,
            **search,
            **extras,
        ),
        metrics.ShiftInvariant(metrics.PSNR(max_value=3.0), name="moved", spatial=True, ignore_class=3, **search),
        metrics.PSNR(max_value=2.0, name="peak", ignore_class=3, **extras),
        metrics.SSIM(
            max_value=2.0, filter_size=3, filter_sigma=0.7, k1=0.1, k2=0.2, name="like", ignore_class=3, **extras
        ),
        metrics.MeanShift(axis=1, min_confidence=0.1, name="shifted", ignore_class=3, **search, **extras),
        metrics.ShiftAtBound(name="bound", ignore_class=3, **search, **extras),
    ]


def test_configs_are_complete():
    told = {}
    for metric in unusual_metrics():
        config = metric.get_config()
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
        assert type(again) is type(metric)
        assert again.get_config() == config
        for name, one in inspect.signature(type(metric)).parameters.items():
            if one.kind is not one.VAR_KEYWORD:
                told.setdefault((type(metric).__name__, name), []).append(config[name] != one.default)
    # Each option was tried with a value that is not its default.
    assert [option for option, seen in told.items() if not any(seen)] == []


def test_a_loaded_model_has_its_metrics(data, tmp_path):
    model = identity_network()
    mine = some_metrics(["in_place_mae", "shift_invariant_mse"])
    mine.append(metrics.InPlace(worst_pixel, spatial=True, label_extras=["mask"], name="worst"))
    model.compile("sgd", loss=no_loss, metrics=mine)
    expected = model.evaluate(*data, return_dict=True, verbose=0)
    model.save(tmp_path / "model.keras")
    found = keras.models.load_model(tmp_path / "model.keras").evaluate(*data, return_dict=True, verbose=0)
    assert set(found) >= {"in_place_mae", "shift_invariant_mse", "worst"}
    np.testing.assert_allclose([found[name] for name in expected], list(expected.values()), rtol=1e-5)


def test_callbacks_know_which_way_is_better(data):
    """Keras 3 asks the metric, and raises if it does not know."""
    inputs, labels = data
    for metric, better in (
        (metrics.InPlace("mae", label_extras="mask"), np.less),
        (metrics.PSNR(label_extras="mask"), np.greater if _keras.IS_KERAS_3 else None),
        (metrics.InPlace(keras.metrics.BinaryAccuracy(), name="right", label_extras="mask"), None),
    ):
        model = identity_network()
        model.compile("sgd", loss=no_loss, metrics=[metric], run_eagerly=True)
        stop = keras.callbacks.EarlyStopping(metric.name, mode="auto" if better else "max")
        model.fit(inputs, labels, callbacks=[stop], verbose=0)
        # Of NumPy in Keras 2, of Keras in Keras 3.
        assert bool(stop.monitor_op(1.0, 2.0)) == (better is np.less)


def test_options_are_keyword_only():
    for name in metrics.__all__:
        parameters = list(inspect.signature(getattr(metrics, name)).parameters.values())
        positional = [one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
        assert positional == (["metric"] if name in ("InPlace", "ShiftInvariant") else [])


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: metrics.InPlace(3), TypeError, "`metric` must be the name.*metric=3"),
        (lambda: metrics.InPlace(keras.metrics.MeanSquaredError), TypeError, "`metric` must be the name"),
        (lambda: metrics.InPlace("mae", label_extras=("weight",)), ValueError, "`label_extras`.*weight"),
        (lambda: metrics.InPlace("mae", label_extras=("mask", "mask")), ValueError, "`label_extras`.*at most once"),
        (lambda: metrics.ShiftInvariant("mae", max_shift=-1), ValueError, "`max_shift` must be >= 0.*max_shift=-1"),
        (lambda: metrics.ShiftInvariant("mae", max_shift=1.5), TypeError, "`max_shift`.*1.5"),
        (lambda: metrics.MeanShift(max_shift=2, similarity="base"), ValueError, "`similarity` must be one of.*'base'"),
        (lambda: metrics.MeanShift(max_shift=2, axis=3), ValueError, "`axis` must be one of.*axis=3"),
        (lambda: metrics.ShiftAtBound(max_shift=2, best=1), TypeError, "best"),
        (lambda: metrics.ShiftInvariant("mae", max_shift=1, min_confidence=2), ValueError, "`min_confidence`.*<= 1"),
        (lambda: metrics.PSNR(max_value=0), ValueError, "`max_value` must be > 0.*0"),
        (lambda: metrics.SSIM(filter_size=4), ValueError, "`filter_size` must be odd.*4"),
        (lambda: metrics.SSIM(filter_sigma=0.0), ValueError, "`filter_sigma` must be > 0"),
    ],
)
def test_bad_options(make, error, text):
    with pytest.raises(error, match=text):
        make()


@pytest.mark.parametrize(
    ("make", "label", "prediction", "weight", "text"),
    [
        ("InPlace", (2, 8, 8, 2), (2, 8, 8, 3), None, r"`y_true` must have the rank.*\(2, 8, 8, 2\).*\(2, 8, 8, 3\)"),
        ("InPlace", (2, 8), (2, 8, 8, 1), None, "`y_true` must have the rank"),
        ("InPlace", (2, 8), (2, 8), None, "`y_pred` must have the shape"),
        ("InPlace", (2, 8, 8, 1), (2, 8, 8, 1), (2, 8, 8), r"`sample_weight`.*\(2, 8, 8\).*label_extras"),
        ("PSNR", (2, 8, 8, 1), (2, 8, 8, 3), None, "`y_true` must have the channels"),
        ("SSIM", (2, 8, 12, 1), (2, 8, 12, 1), None, r"`filter_size`.*filter_size=11.*\(2, 8, 12, 1\)"),
    ],
)
def test_bad_shapes(make, label, prediction, weight, text):
    metric = metrics.InPlace("mae") if make == "InPlace" else getattr(metrics, make)()
    weight = None if weight is None else np.ones(weight, np.float32)
    with pytest.raises(ValueError, match=text):
        metric.update_state(np.zeros(label, np.float32), np.zeros(prediction, np.float32), sample_weight=weight)


def test_ignore_class_needs_one_channel():
    with pytest.raises(ValueError, match=r"`ignore_class` needs labels of one channel.*ignore_class=2"):
        metrics.InPlace("mae", ignore_class=2).update_state(np.zeros((1, 4, 4, 2)), np.zeros((1, 4, 4, 2)))


def test_a_missing_axis_of_signals():
    signal = np.zeros((1, 16, 1), np.float32)
    with pytest.raises(ValueError, match=r"`axis` must be one of the 1 spatial axes.*axis=1"):
        metrics.MeanShift(max_shift=2, axis=1).update_state(signal, signal)


def test_two_replicas_count_as_one_device(two_replicas, rng):
    inputs, labels = moved(fields(rng, (48, 48), batch=6), [*SHIFTS, *-SHIFTS], size=24, margin=4)

    def evaluated():
        model = keras.Sequential([keras.Input((None, None, 1)), keras.layers.Conv2D(1, 1, kernel_initializer="ones")])
        of_shifts = [metrics.MeanShift(max_shift=3), metrics.ShiftAtBound(max_shift=3)]
        pooled = metrics.ShiftInvariant("mse", max_shift=3, pool="batch", name="pooled")
        in_place = [metrics.InPlace("mae"), metrics.PSNR(), metrics.SSIM()]
        model.compile(
            loss=tfalign.ShiftInvariantLoss(max_shift=3),
            metrics=[*in_place, *of_shifts, metrics.ShiftInvariant("mae", max_shift=3), pooled],
        )
        return model.evaluate(inputs, labels, batch_size=4, return_dict=True, verbose=0)

    one = evaluated()
    with two_replicas.scope():
        two = evaluated()
    assert one.keys() == two.keys()
    assert len(one) == 8
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
