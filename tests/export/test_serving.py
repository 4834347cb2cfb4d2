"""What an export writes, and which options it refuses. Its answers: `test_runtime`."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfalign
from tests.export import networks
from tfalign.data.preprocess import Preprocessing, PreprocessingLayer, ZScore, with_preprocessing
from tfalign.export import ModelCard, grid, options, requests, serving
from tfalign.export import card as cards


def loaded(path):
    return tf.saved_model.load(str(path)).signatures


def halved(inputs):
    return 0.5 * inputs


def to_gray(inputs):
    return tf.reduce_mean(inputs, axis=-1, keepdims=True)


def test_versions_count_up_and_nothing_else_is_left(tmp_path):
    model, base = networks.unet(), tmp_path / "served"
    versions = [tfalign.export_serving(model, base, warmup=()) for _ in range(2)]
    versions.append(tfalign.export_serving(model, base, warmup=(), version=7))
    (base / "²").mkdir()
    versions.append(tfalign.export_serving(model, base, warmup=()))
    assert [path.name for path in versions] == ["1", "2", "7", "8"]
    assert sorted(entry.name for entry in base.iterdir()) == ["1", "2", "7", "8", "²"]


def test_a_folder_of_a_version_is_complete_and_names_no_path_of_its_maker(tmp_path):
    path = tfalign.export_serving(networks.unet(), tmp_path / "stain", warmup=[(8, 8)], register={"max_shift": 2})
    files = {str(entry.relative_to(path)) for entry in path.rglob("*") if entry.is_file()}
    assert files - {"fingerprint.pb"} == {
        "README.md",
        "batching_params.pbtxt",
        "saved_model.pb",
        "variables/variables.index",
        "variables/variables.data-00000-of-00001",
        "assets.extra/request.json",
        "assets.extra/request.pb",
        "assets.extra/tf_serving_warmup_requests",
    }
    assert "* **Registration**: max_shift=2\n" in (path / "README.md").read_text()
    for file in path.rglob("*"):
        if file.is_file():
            assert str(tmp_path).encode() not in file.read_bytes()
            assert os.path.dirname(tfalign.__file__).encode() not in file.read_bytes()


def test_the_training_state_stays_behind(tmp_path, rng):
    model = networks.unet()
    model.compile("adam", loss=tfalign.ShiftInvariantLoss("mae", max_shift=2))
    model.fit(rng.random((2, 8, 8, 1)), rng.random((2, 8, 8, 2)), verbose=0)
    path = tfalign.export_serving(model, tmp_path, warmup=())
    names = [name for name, _ in tf.train.list_variables(str(path / "variables/variables"))]
    assert len([name for name in names if not name.startswith("_CHECKPOINTABLE")]) == len(model.weights)


KILLED = """
    import os, signal, sys
    from tests.export import networks
    from tfalign.export import serving

    def killed(folder, *arguments):
        assert (folder.parent / "saved_model.pb").exists()
        os.kill(os.getpid(), signal.SIGKILL)

    serving._write_requests = killed
    serving.export_serving(networks.unet(), sys.argv[1], warmup=())
"""


def test_a_killed_export_leaves_no_version(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [entry.name for entry in tmp_path.iterdir()]
    assert len(left) == 1
    assert left[0].startswith(".part-")
    assert tfalign.export_serving(networks.unet(), tmp_path, warmup=()).name == "1"


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(serving, "_write_requests", full)
    with pytest.raises(OSError, match="No space"):
        tfalign.export_serving(networks.unet(), tmp_path, warmup=())
    assert not list(tmp_path.iterdir())


def test_a_number_taken_by_another_export_meanwhile(tmp_path, monkeypatch):
    next_version, offered = options.next_version, []

    def late(directory):
        offered.append(next_version(directory) if offered else 1)
        return offered[-1]

    (tmp_path / "1/variables").mkdir(parents=True)
    monkeypatch.setattr(options, "next_version", late)
    assert tfalign.export_serving(networks.unet(), tmp_path, warmup=()).name == "2"
    assert offered == [1, 2]


@pytest.mark.parametrize("moved", [(1, -2), (0, 0), (-1, 2)])
def test_a_whole_offset_is_taken_out(tmp_path, rng, moved):
    inputs = rng.random((2, 9, 12, 1)).astype(np.float32)
    model = networks.shifting(moved)
    # The prediction lies further down/right, as the option has it.
    assert tfalign.register(inputs, model(inputs), max_shift=2).translation.numpy().round().tolist() == [[*moved]] * 2
    path = tfalign.export_serving(model, tmp_path, offset=moved, warmup=())
    result = loaded(path)["serving_default"](inputs=tf.constant(inputs))["prediction"].numpy()
    inner = (slice(None), slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(result[inner], inputs[inner], atol=1e-6)
    # Beyond the border of the prediction: that border.
    if moved[0] == 1:
        np.testing.assert_array_equal(result[:, -1], result[:, -2])


def test_a_fraction_of_a_pixel_is_taken_out(tmp_path):
    rows, columns = np.meshgrid(np.arange(9.0), np.arange(12.0), indexing="ij")
    inputs = (rows + 10.0 * columns).astype(np.float32)[np.newaxis, ..., np.newaxis]
    path = tfalign.export_serving(networks.shifting((0, 0)), tmp_path, offset=(0.25, -1.5), warmup=())
    result = loaded(path)["serving_default"](inputs=tf.constant(inputs))["prediction"].numpy()
    expected = inputs + 0.25 - 15.0
    np.testing.assert_allclose(result[0, 1:-1, 2:-1], expected[0, 1:-1, 2:-1], atol=1e-4)


def test_the_drift_of_a_loss_is_minus_the_offset(tmp_path, rng):
    model, moved = networks.shifting((1, -2)), (1, -2)
    loss = tfalign.ShiftInvariantLoss("mae", max_shift=4)
    model.compile(keras.optimizers.SGD(0.0), loss=loss)
    pictures = rng.random((16, 24, 24, 1)).astype(np.float32)
    # True shifts with a mean of zero.
    shifts = np.array([(1, 0), (-1, 0), (0, 1), (0, -1)] * 4)
    labels = np.stack([np.roll(picture, shift, axis=(0, 1)) for picture, shift in zip(pictures, shifts)])
    for _ in range(12):
        model.train_on_batch(pictures, labels)
    np.testing.assert_allclose(-loss.drift[:2], moved, atol=0.3)
    path = tfalign.export_serving(model, tmp_path, offset=np.round(-loss.drift[:2]), warmup=())
    result = loaded(path)["serving_default"](inputs=tf.constant(pictures))["prediction"].numpy()
    np.testing.assert_allclose(result[:, 2:-2, 2:-2], pictures[:, 2:-2, 2:-2], atol=1e-5)


def test_stride_none_exports_what_is_no_dense_prediction(tmp_path, rng):
    path = tfalign.export_serving(networks.enlarging(), tmp_path, stride=None, warmup=())
    inputs = rng.random((1, 5, 6, 1)).astype(np.float32)
    result = loaded(path)["serving_default"](inputs=tf.constant(inputs))["prediction"]
    assert result.shape == (1, 10, 12, 1)


def test_half_precision_networks_answer_in_float32(tmp_path, rng):
    inputs = keras.Input((None, None, 1))
    model = keras.Model(inputs, keras.layers.Conv2D(1, 3, padding="same", dtype="mixed_float16")(inputs))
    grid = rng.random((1, 5, 6, 1)).astype(np.float32)
    path = tfalign.export_serving(model, tmp_path, warmup=())
    result = loaded(path)["serving_default"](inputs=tf.constant(grid))["prediction"]
    assert result.dtype == tf.float32
    np.testing.assert_array_equal(result, tf.cast(model(grid), tf.float32))


def test_the_sample_requests_are_requests(tmp_path, rng):
    model = networks.unet(padding="valid")
    path = tfalign.export_serving(model, tmp_path / "served", warmup=())
    body = json.loads((path / "assets.extra/request.json").read_text())
    assert body["signature_name"] == "serving_default"
    inputs = np.array(body["instances"], np.float32)
    assert inputs.shape == (1, 24, 24, 1)
    assert loaded(path)["serving_default"](inputs=tf.constant(inputs))["prediction"].shape == (1, 8, 8, 2)
    predict_pb2, _ = requests.needed_serving_api()
    request = predict_pb2.PredictRequest.FromString((path / "assets.extra/request.pb").read_bytes())
    assert (request.model_spec.name, request.model_spec.signature_name) == ("served", "serving_default")
    np.testing.assert_allclose(tf.make_ndarray(request.inputs["inputs"]), inputs, atol=1e-3)
    assert not (path / "assets.extra" / requests.WARMUP_FILE).exists()


def test_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis.predict_pb2", None)
    path = tfalign.export_serving(networks.unet(), tmp_path)
    assert {entry.name for entry in (path / "assets.extra").iterdir()} == {"request.json"}
    assert "**Warm-up requests**: none" in (path / "README.md").read_text()
    with pytest.raises(ImportError, match=r"tfalign\[serving\]"):
        tfalign.export_serving(networks.unet(), tmp_path, warmup=[(8, 8)])
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]


def test_the_card_says_what_it_is(tmp_path):
    card = ModelCard(
        what="Tissue to stain.",
        data="One picture.",
        metrics="PSNR 30 dB.",
        command="tfalign demo",
        input_channels="gray",
        licence="Apache-2.0",
    )
    path = tfalign.export_serving(
        networks.pooled(),
        tmp_path / "stain",
        tile=30,
        tile_overlap=9,
        preprocess=halved,
        offset=(1, -0.5),
        image_range=(-1, 1),
        warmup=[(64, 64)],
        card=card,
    )
    text = (path / "README.md").read_text()
    for line in (
        "# stain",
        "Tissue to stain.",
        "| `serving_default` | `inputs` float32 (?, ?, ?, 1) | `prediction` float32 (?, ?, ?, 2) |",
        "| `encoded` | `images` string (?) | `prediction` float32 (?, ?, ?, 2) |",
        "* **Sizes**: any; the network takes (multiples of 4, multiples of 4), images are extended and cropped back "
        "inside; a prediction has (0, 0) pixels less than its input",
        "* **Tiles**: 32 px sharing 9, 32 px sharing 9; borders reach (12, 12) px far: seams may show, share three "
        "times that",
        "* **Preprocessing**: inside, of the whole image, on whose result a prediction lies: `halved`",
        "* **Offset taken out (pixels, down/right)**: 1, -0.5",
        "* **Image files**: the darkest code becomes -1, the brightest 1",
        "* **Warm-up requests**: (64, 64)",
        "One picture.",
        "Reproduced by `tfalign demo`.",
        "Apache-2.0",
        f"tensorflow {tf.__version__}",
    ):
        assert line in text
    # What its author left out is seen to be missing.
    assert "## Limits\n\nNot stated." in text


@pytest.mark.parametrize(
    ("tiling", "reach", "text"),
    [
        (None, 12, "none"),
        (((64, 36), (64, 36)), 12, "borders reach (12, 12) px far: predictions are those of the whole image"),
        (((64, 36), (64, 35)), 12, "borders reach (12, 12) px far: seams may show, share three times that"),
        (((64, 36), (64, 36)), None, "the network sees further than a tile: not what it makes of the whole image"),
    ],
)
def test_the_card_says_whether_tiles_show(tiling, reach, text):
    assert cards.tiles_in_words(tiling, (grid.Axis(stride=4, period=4, reach=reach),) * 2).endswith(text)


def test_a_preprocessing_at_the_front_sees_the_image_before_it_is_padded_and_cut(tmp_path, rng):
    network, prepare = networks.pooled(), Preprocessing((ZScore(),))
    slope = np.linspace(0.0, 3.0, 90).reshape(-1, 1)
    inputs = (rng.random((1, 75, 90, 1)) * slope).astype(np.float32)
    expected = tfalign.export_serving(network, tmp_path / "a", preprocess=prepare, warmup=(), tile=48)
    path = tfalign.export_serving(with_preprocessing(network, prepare), tmp_path / "b", warmup=(), tile=48)
    results = [loaded(one)["serving_default"](inputs=tf.constant(inputs))["prediction"] for one in (path, expected)]
    np.testing.assert_allclose(*results, atol=1e-6)
    # The network alone on the prepared image, which mirrors do not change.
    whole = network(np.pad(prepare(inputs), [(0, 0), (0, 1), (0, 2), (0, 0)], mode="reflect")).numpy()[:, :75, :90]
    np.testing.assert_allclose(results[0], whole, atol=1e-5)
    assert f"a prediction lies: `{prepare}`" in (path / "README.md").read_text()


def test_steps_before_a_preprocessing_at_the_front(tmp_path, rng):
    network, prepare = networks.pooled(), Preprocessing((ZScore(),))
    inputs = rng.random((1, 8, 12, 3)).astype(np.float32)
    path = tfalign.export_serving(
        with_preprocessing(network, prepare), tmp_path, preprocess=to_gray, input_channels=3, warmup=()
    )
    result = loaded(path)["serving_default"](inputs=tf.constant(inputs))["prediction"]
    np.testing.assert_allclose(result, network(prepare(to_gray(inputs))), atol=1e-6)
    assert f"`to_gray`, then `{prepare}`" in (path / "README.md").read_text()


def test_the_batching_example_is_what_the_server_reads(tmp_path):
    path = tfalign.export_serving(networks.unet(), tmp_path, warmup=())
    fields = [line.split()[0] for line in (path / "batching_params.pbtxt").read_text().splitlines() if line[0] != "#"]
    # Of session_bundle_config.proto, BatchingParameters.
    assert fields == ["max_batch_size", "batch_timeout_micros", "max_enqueued_batches"]


def named(inputs=False):
    tensor = keras.Input((None, None, 1), name="image")
    output = keras.layers.Conv2D(1, 3, padding="same")(tensor)
    return keras.Model({"image": tensor}, output) if inputs else keras.Model(tensor, {"stain": output})


def wrapped():
    inputs = keras.Input((None, None, 1))
    return keras.Model(inputs, networks.prepared()(inputs))


def beside():
    """What is prepared joins what is not."""
    inputs = keras.Input((None, None, 1))
    layer = PreprocessingLayer(Preprocessing((ZScore(),)))
    return keras.Model(inputs, keras.layers.Add()([inputs, layer(inputs)]))


def in_python(inputs):
    return tf.ensure_shape(tf.py_function(lambda array: 2.0 * array, [inputs], tf.float32), inputs.shape)


def in_numpy(inputs):
    return tf.ensure_shape(tf.numpy_function(lambda array: 2.0 * array, [inputs], tf.float32), inputs.shape)


def in_python_in_a_loop(inputs):
    return tf.map_fn(in_python, inputs)


def in_python_in_a_layer():
    return keras.Sequential(
        [keras.Input((None, None, 1)), keras.layers.Lambda(in_python, output_shape=(None, None, 1))]
    )


def two_inputs():
    inputs = [keras.Input((None, None, 1)) for _ in range(2)]
    return keras.Model(inputs, keras.layers.Concatenate()(inputs))


@pytest.mark.parametrize(
    ("make", "settings", "error", "text"),
    [
        (networks.unet, {"version": 1}, ValueError, "version=1.*Leave it out"),
        (networks.unet, {"version": 0}, ValueError, "version=0"),
        (networks.unet, {"version": "1"}, TypeError, "version='1'"),
        (two_inputs, {}, ValueError, "one input.*keras.Model"),
        (lambda: keras.Sequential([keras.layers.Dense(1)]), {}, ValueError, "must be a built Keras model"),
        (networks.enlarging, {}, ValueError, "stride=None exports it as it is"),
        (networks.enlarging, {"stride": None, "tile": 32}, ValueError, "`stride` must not be None.*tile=32"),
        (networks.enlarging, {"stride": None, "offset": 1}, ValueError, "`stride` must not be None"),
        (networks.unet, {"tile": 16, "tile_overlap": 16}, ValueError, "tile=16, tile_overlap=16"),
        (lambda: networks.unet(padding="valid"), {"tile": 16}, ValueError, "tile=16.*lost=16"),
        (networks.unet, {"tile": 16.5}, TypeError, "tile=16.5"),
        (networks.unet, {"tile": 0}, ValueError, "tile=0"),
        (networks.unet, {"tile": 32, "tile_overlap": (4, -4)}, ValueError, "tile_overlap=-4"),
        (networks.unet, {"tile": (32, 32, 32)}, ValueError, r"tile=\(32, 32, 32\)"),
        (networks.unet, {"offset": (1, 2, 3)}, ValueError, r"offset=\(1, 2, 3\)"),
        (networks.unet, {"offset": float("nan")}, ValueError, "offset=nan"),
        (networks.unet, {"offset": "left"}, ValueError, "offset='left'"),
        (networks.unet, {"input_channels": 0}, ValueError, "input_channels=0"),
        (networks.unet, {"preprocess": lambda x: x[..., 0]}, ValueError, "`preprocess` must give.*None, None, None"),
        (networks.unet, {"input_channels": 3}, ValueError, "`preprocess` must give what the model takes"),
        (networks.unet, {"image_range": (0, "1")}, TypeError, "image_range='1'"),
        (networks.unet, {"image_range": (0, 1, 2)}, ValueError, r"two finite numbers.*image_range=\(0, 1, 2\)"),
        (networks.unet, {"image_range": 1.0}, ValueError, "two finite numbers.*image_range=1.0"),
        (networks.unet, {"image_range": (0, float("nan"))}, ValueError, r"two finite.*image_range=\(0, nan\)"),
        (
            networks.unet,
            {"version": 2**63},
            ValueError,
            "<= 9223372036854775807. Received: version=9223372036854775808",
        ),
        (named, {}, ValueError, "no dict.*keras.Model"),
        (lambda: named(inputs=True), {}, ValueError, "no dict.*keras.Model"),
        (wrapped, {}, ValueError, "preprocessing at its front.*preprocess="),
        (beside, {}, ValueError, "preprocessing at its front.*preprocess="),
        (networks.unet, {"preprocess": in_python}, ValueError, r"no server runs Python.*operations=\['EagerPyFunc'\]"),
        (networks.unet, {"preprocess": in_numpy}, ValueError, r"no server runs Python.*operations=\['PyFunc'\]"),
        (networks.unet, {"preprocess": in_python_in_a_loop}, ValueError, "no server runs Python"),
        (in_python_in_a_layer, {}, ValueError, "no server runs Python"),
        (networks.unet, {"card": "Stain."}, TypeError, "ModelCard. Received: card='Stain.'"),
        (networks.unet, {"preprocess": 3}, TypeError, "preprocess=3"),
        (networks.unet, {"register": 8}, TypeError, "`register` must be a dict.*register=8"),
        (networks.unet, {"tile_overlap": 8}, ValueError, "`tile_overlap` needs `tile`.*tile_overlap=8"),
        (networks.unet, {"tile": 24}, ValueError, "tile=24, tile_overlap=27, lost=0, period=2. Borders reach 9"),
        (networks.unet, {"warmup": None}, ValueError, "warmup=None"),
        (networks.unet, {"warmup": (256, 128)}, ValueError, r"as \[\(64, 64\)\].*warmup=\(256, 128\)"),
        (networks.unet, {"register": {"max_shift": -1}}, ValueError, "max_shift=-1"),
        (networks.unet, {"register": {"max_shft": 1}}, TypeError, "max_shft"),
        (networks.unet, {"warmup": [(8, 8, 8)]}, ValueError, r"warmup=\[\(8, 8, 8\)\]"),
        (lambda: networks.unet(padding="valid"), {"warmup": [(8, 8)]}, ValueError, r"warmup=\(8, 8\)"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(tmp_path, make, settings, error, text):
    (tmp_path / "1").mkdir()
    with pytest.raises(error, match=text):
        tfalign.export_serving(make(), tmp_path, **settings)
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]


def test_options_are_named():
    with pytest.raises(TypeError):
        tfalign.export_serving(networks.unet(), "served", 1)
