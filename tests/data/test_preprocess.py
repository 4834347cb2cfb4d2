import dataclasses
import json

import keras
import numpy as np
import pytest
import skimage.color
import skimage.data
import tensorflow as tf

import tfalign
from tfalign.data import preprocess, steps
from tfalign.data.preprocess import (
    BandPass,
    CropOrPad,
    Gaussian,
    Median,
    Percentiles,
    Preprocessing,
    Resample,
    Scale,
    SeparateStains,
    ZScore,
)
from tfalign.export import export_serving
from tfalign.ops import geometry

SHAPES = {1: (41,), 2: (13, 17), 3: (6, 9, 7)}
# Every step with options that are not its defaults, fitted ones included.
EVERY_STEP = (
    Scale(low=-1.0, high=3.0),
    Percentiles(low=2.0, high=95.0, per_channel=False, clip=True),
    Percentiles(over="data", bounds=((0.0, 0.1, 0.2), (1.0, 1.1, 1.2))),
    ZScore(per_channel=False),
    ZScore(over="data", mean=(0.1, 0.2, 0.3), deviation=(1.0, 2.0, 3.0)),
    Median(size=(3, 1)),
    Gaussian(sigma=(0.5, 1.0)),
    BandPass(low=1.0, high=3.0, sampling_rate=10.0, taps=21),
    SeparateStains(stains="hdx", white=255.0, keep=(2, 0)),
    Resample(factor=(0.5, 2.0)),
    Resample(size=(8, 9)),
    CropOrPad(size=(12, 20)),
)


@pytest.fixture(params=[1, 2, 3])
def image(request, rng):
    return (5 + 3 * rng.normal(size=(2, *SHAPES[request.param], 3))).astype(np.float32)


def space(image):
    return tuple(range(1, image.ndim - 1))


# Normalising.


def test_percentiles_equal_numpy(run, image):
    low, high = np.percentile(image, (1.5, 98.0), axis=space(image), keepdims=True)
    found = run(Preprocessing((Percentiles(low=1.5, high=98.0),)), image)
    np.testing.assert_allclose(found, (image - low) / (high - low), atol=2e-6)
    low, high = np.percentile(image, (10, 90), axis=(*space(image), -1), keepdims=True)
    found = run(Preprocessing((Percentiles(low=10, high=90, per_channel=False, clip=True),)), image)
    np.testing.assert_allclose(found, np.clip((image - low) / (high - low), 0, 1), atol=2e-6)


def test_z_scores_equal_numpy(run, image):
    for per_channel in (True, False):
        axes = space(image) if per_channel else (*space(image), -1)
        double = image.astype(float)
        expected = (double - double.mean(axis=axes, keepdims=True)) / double.std(axis=axes, keepdims=True)
        found = run(Preprocessing((ZScore(per_channel=per_channel),)), image)
        np.testing.assert_allclose(found, expected, atol=5e-6)


@pytest.mark.parametrize("step", [Percentiles(), ZScore()])
def test_flat_and_unknown_pixels_spoil_nothing(rng, step):
    image = rng.normal(size=(2, 20, 3)).astype(np.float32)
    whole = Preprocessing((step,))(image[:, :15]).numpy()
    image[:, 15:, 0], image[:, 15:, 1], image[:, 15:, 2] = np.nan, np.inf, -np.inf
    found = Preprocessing((step,))(image).numpy()
    np.testing.assert_allclose(found[:, :15], whole, atol=1e-6)
    assert not np.isfinite(found[:, 15:]).any()
    for value in (0.0, 1e-30, 0.1, -3e8):
        assert not Preprocessing((step,))(np.full((1, 9, 2), value, np.float32)).numpy().any()
    assert np.isnan(Preprocessing((step,))(np.full((1, 9, 2), np.nan, np.float32))).all()


class Images:
    """Images of several sizes, made when asked for; counts how often."""

    def __init__(self, rng, sizes):
        self.images = [(n + rng.gamma(2.0, size=(n, n + 2, 2)) * (1, 30)).astype(np.float32) for n in sizes]
        self.read = 0

    def __iter__(self):
        for image in self.images:
            self.read += 1
            yield image

    @property
    def pixels(self):
        return np.concatenate([image.reshape(-1, 2) for image in self.images])


def test_statistics_of_the_data_are_those_of_all_pixels(rng):
    images = Images(rng, (9, 30, 17))
    images.images[1][3, 4] = np.nan
    pixels = images.pixels[~np.isnan(images.pixels).any(axis=1)].astype(float)
    prepare = Preprocessing((Percentiles(low=5.0, over="data"), ZScore(over="data", per_channel=False))).fit(images)
    assert images.read == 6
    np.testing.assert_allclose(prepare.steps[0].bounds, np.percentile(pixels, (5.0, 99.0), axis=0), rtol=1e-6)
    low, high = np.percentile(pixels, (5.0, 99.0), axis=0)
    scaled = (pixels - low) / (high - low)
    np.testing.assert_allclose(prepare.steps[1].mean, [scaled.mean()], atol=1e-6)
    np.testing.assert_allclose(prepare.steps[1].deviation, [scaled.std()], rtol=1e-6)
    np.testing.assert_allclose(
        prepare(images.images[0][np.newaxis])[0],
        ((images.images[0] - low) / (high - low) - scaled.mean()) / scaled.std(),
        atol=1e-5,
    )


def test_one_step_may_come_twice(rng):
    step = ZScore(over="data")
    prepare = Preprocessing((step, SeparateStains(), step)).fit([rng.random((8, 8, 3))])
    assert prepare.unfitted is None
    assert prepare.steps[0] != prepare.steps[2]


def test_percentiles_of_a_sample_are_close_and_the_same_again(rng, monkeypatch):
    monkeypatch.setattr(steps, "_SAMPLE", 4000)
    images = Images(rng, (80, 60, 90, 5))
    first = Preprocessing((Percentiles(over="data"),)).fit(images)
    assert first == Preprocessing((Percentiles(over="data"),)).fit(images)
    found = [np.mean(images.pixels <= np.array(bound), axis=0) for bound in first.steps[0].bounds]
    np.testing.assert_allclose(found, [[0.01, 0.01], [0.99, 0.99]], atol=0.006)
    measures = [first.steps[0].measure(image) for image in images]
    assert max(len(keys) for keys, _ in measures) == 4000


def test_fitting_needs_images_that_can_be_read_again(rng):
    prepare = Preprocessing((ZScore(over="data"),))
    with pytest.raises(TypeError, match=r"`images` must be iterable more than once. Received: images=<list_iterator"):
        prepare.fit(iter([np.ones((4, 4, 1))]))
    for empty in ([], [np.full((4, 4, 1), np.nan)]):
        with pytest.raises(ValueError, match=r"`images` must hold finite pixels. Received: pixels=0"):
            prepare.fit(empty)
        with pytest.raises(ValueError, match=r"`images` must hold finite pixels. Received: pixels=0"):
            Preprocessing((Percentiles(over="data"),)).fit(empty)
    with pytest.raises(ValueError, match=r"must be fitted before.*step=ZScore.*Call `fit\(images\)`"):
        prepare(np.ones((1, 4, 4, 1)))


# Stains.


@pytest.mark.parametrize("stains", steps.STAINS)
def test_stains_equal_scikit_image(run, stains):
    rgb = skimage.data.immunohistochemistry()[100:164, 200:280]
    expected = skimage.color.separate_stains(rgb, getattr(skimage.color, f"{stains}_from_rgb"))
    prepare = Preprocessing((SeparateStains(stains=stains, white=255.0),))
    np.testing.assert_allclose(run(prepare, rgb[np.newaxis])[0], expected, atol=1e-5)


def test_haematoxylin_equals_scikit_image_down_to_black(rng):
    rgb = rng.random((20, 30, 3)).astype(np.float32)
    rgb[:3] = 0.0
    prepare = Preprocessing((SeparateStains(keep=(2, 0)),))
    np.testing.assert_allclose(prepare(rgb[np.newaxis])[0], skimage.color.rgb2hed(rgb)[..., [2, 0]], atol=1e-5)


# Sizes: the label goes with the input.


@pytest.mark.parametrize(
    "step", [Resample(factor=0.5), Resample(factor=1.7), Resample(factor=2), CropOrPad(size=(24,))]
)
def test_labels_go_where_their_inputs_go(rng, step):
    rank = 2
    grid = geometry.centered_grid((31, 42), tf.float32)[tf.newaxis]
    wide = geometry.centered_grid((40, 50), tf.float32)[tf.newaxis]  # a label with a border of its own
    prepare = Preprocessing((step,))
    moved, label = prepare(grid).numpy()[0], prepare.place(wide, fill_value=-99.0).numpy()[0]
    at = np.array(moved.shape[:rank]) // 2
    other = np.array(label.shape[:rank]) // 2
    reach = 7
    near, far = (tuple(slice(c - reach, c + reach) for c in center) for center in (at, other))
    np.testing.assert_allclose(label[far], moved[near], atol=1e-5)
    factor = getattr(step, "factor", 1)
    np.testing.assert_allclose(moved[tuple(at + 1)], [1 / factor] * 2, atol=1e-5)


def test_one_size_for_all(rng):
    prepare = Preprocessing((Resample(size=(20, 10)),))
    for size in ((40, 40), (13, 9)):
        image = rng.normal(size=(1, *size, 1)).astype(np.float32)
        assert prepare(image).shape == (1, 20, 10, 1)
        label = prepare.place((image > 0).astype(np.uint8), interpolation="nearest")
        assert label.dtype == tf.uint8
        assert label.shape == (1, 20, 10, 1)
        assert set(np.unique(label)) == {0, 1}
    padded = Preprocessing((CropOrPad(size=(6, 4)),)).place(np.ones((1, 3, 9, 1), np.uint8), fill_value=255)
    assert padded[0, :, 0, 0].numpy().tolist() == [255, 255, 1, 1, 1, 255]
    values = Preprocessing((CropOrPad(size=(6, 4)),)).place(np.ones((1, 3, 9, 1), np.float32))
    assert np.isnan(values[0, :, 0, 0]).tolist() == [True, True, False, False, False, True]


def test_values_of_labels_are_left_alone(rng):
    label = rng.random((1, 9, 9, 3)).astype(np.float32)
    prepare = Preprocessing((Scale(high=9.0), Percentiles(), ZScore(), Median(), Gaussian(), SeparateStains()))
    np.testing.assert_array_equal(prepare.place(label), label)


# The object, and the model that it becomes part of.


@pytest.mark.parametrize("step", EVERY_STEP, ids=lambda step: type(step).__name__)
def test_configs_round_trip_through_json(step, rng):
    prepare = Preprocessing((step,))
    again = Preprocessing.from_config(json.loads(json.dumps(prepare.get_config())))
    assert again == prepare
    image = rng.uniform(1, 200, (1, 30, 3) if isinstance(step, BandPass) else (1, 15, 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(again(image), prepare(image))
    with pytest.raises(dataclasses.FrozenInstanceError):
        step.low = 1


def test_every_step_is_tried_here():
    assert {type(step) for step in EVERY_STEP} == set(steps.STEPS.values())


@pytest.mark.parametrize("step", EVERY_STEP, ids=lambda step: type(step).__name__)
def test_unknown_sizes_and_compilation_change_nothing(step, rng):
    image = rng.uniform(1, 200, (2, 30, 3) if isinstance(step, BandPass) else (2, 15, 16, 3)).astype(np.float32)
    prepare = Preprocessing((step,))
    expected = prepare(image).numpy()
    unknown = tf.TensorSpec([None] * (image.ndim - 1) + [3], tf.float32)
    traced = tf.function(prepare, input_signature=[unknown])
    assert traced.get_concrete_function().output_shapes[-1] == expected.shape[-1]
    np.testing.assert_allclose(traced(image), expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(tf.function(prepare, jit_compile=True)(image), expected, rtol=1e-5, atol=1e-4)


def test_an_exported_model_prepares_its_inputs(tmp_path, rng):
    images = [rng.integers(0, 255, (40, 30, 3)).astype(np.uint8) for _ in range(3)]
    prepare = Preprocessing(
        (SeparateStains(white=255.0, keep=(0, 2)), Median(), Percentiles(over="data"), ZScore())
    ).fit(images)
    model = tfalign.models.unet(input_channels=2, filters=2, depth=2)
    whole = preprocess.with_preprocessing(model, prepare)
    raw = np.stack(images[:2]).astype(np.float32)
    expected = model(prepare(raw))
    np.testing.assert_allclose(whole(raw), expected, atol=1e-6)
    whole.save(tmp_path / "whole.keras")
    again = keras.models.load_model(tmp_path / "whole.keras")
    np.testing.assert_allclose(again(raw), expected, atol=1e-6)
    assert again.layers[1].preprocessing == prepare
    served = tf.saved_model.load(str(export_serving(whole, tmp_path / "served"))).signatures["serving_default"]
    (output,) = served(tf.constant(raw)).values()
    np.testing.assert_allclose(output, expected, atol=1e-5)
    assert not np.allclose(model(raw[..., :2]), expected, atol=1e-2)


@pytest.mark.parametrize("rank", [1, 3])
def test_signals_and_volumes_become_part_of_a_model(rng, rank):
    step = BandPass(high=0.2, taps=11) if rank == 1 else Gaussian()
    model = tfalign.models.unet(rank=rank, filters=2, depth=1)
    whole = preprocess.with_preprocessing(model, Preprocessing((step, ZScore())))
    image = rng.normal(size=(2, *SHAPES[rank], 1)).astype(np.float32)
    np.testing.assert_allclose(whole(image), model(Preprocessing((step, ZScore()))(image)), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: Scale(low=1, high=1), ValueError, "`high` must be > `low`. Received: low=1, high=1"),
        (lambda: Percentiles(low=-1), ValueError, "`low` must be >= 0.*low=-1"),
        (lambda: Percentiles(low=60, high=40), ValueError, "low=60, high=40"),
        (lambda: Percentiles(over="batch"), ValueError, "`over` must be one of 'image', 'data'.*over='batch'"),
        (lambda: ZScore(over="set"), ValueError, "over='set'"),
        (lambda: Median(size=2), ValueError, "size=2"),
        (lambda: Gaussian(sigma="1"), TypeError, "sigma='1'"),
        (lambda: BandPass(), ValueError, "low=None, high=None"),
        (lambda: SeparateStains(stains="he"), ValueError, "stains='he'"),
        (lambda: SeparateStains(keep=(3,)), ValueError, r"`keep` must name.*keep=\(3,\)"),
        (lambda: SeparateStains(keep=()), ValueError, r"keep=\(\)"),
        (lambda: SeparateStains()(tf.ones((1, 4, 4, 1))), ValueError, r"R, G and B.*\(1, 4, 4, 1\)"),
        (lambda: Resample(), ValueError, "Either `factor` or `size`.*factor=None, size=None"),
        (lambda: Resample(factor=0), ValueError, "factor=0"),
        (lambda: Resample(factor=(1, 2, 3))(tf.ones((1, 4, 4, 1))), ValueError, r"each of 2 axes.*\(1, 2, 3\)"),
        (lambda: Resample(size=(0, 3)), ValueError, "size=0"),
        (lambda: CropOrPad(size=(2.5,)), TypeError, "size=2.5"),
        (lambda: Preprocessing(("median",)), TypeError, "`steps` must be of Scale.*step='median'"),
        (lambda: Preprocessing.from_config({"steps": [{"step": "Blur"}]}), ValueError, "step='Blur'"),
    ],
)
def test_mistakes_are_named(make, error, text):
    with pytest.raises(error, match=text):
        make()
