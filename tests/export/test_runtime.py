"""Every kind of export in the C++ runtime that TF Serving uses, against Keras."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf

import tfalign
from tests import c_api
from tests.export import networks
from tests.export.files import file_of

pytestmark = pytest.mark.skipif(not c_api.LIBRARY.exists(), reason="this TensorFlow has no libtensorflow_cc.so.2")


def halved(inputs):
    """A preprocessing that looks at the whole image."""
    return 0.5 * inputs - tf.reduce_mean(inputs, axis=[1, 2], keepdims=True)


def to_gray(inputs):
    return tf.reduce_mean(inputs, axis=-1, keepdims=True)


def moved(prediction):
    """Read (1, -2) pixels further on; beyond the border, the border."""
    rows, columns = (np.arange(size) for size in prediction.shape[1:3])
    return prediction[:, np.minimum(rows + 1, len(rows) - 1)][:, :, np.maximum(columns - 2, 0)]


# name -> network, options of the export, what Keras alone is fed for an input
KINDS = {
    "plain": (lambda: networks.unet(outputs=3), {"register": {"max_shift": 3}}, None),
    "signal": (lambda: networks.unet(rank=1), {"register": {"max_shift": 2, "similarity": "mse"}}, None),
    "volume": (lambda: networks.unet(rank=3, outputs=1), {"register": {"max_shift": 1, "subpixel": False}}, None),
    "unpadded": (lambda: networks.unet(padding="valid"), {}, None),
    "pooled": (networks.pooled, {"warmup": [(12, 20), (4, 4)]}, None),
    "fixed": (lambda: networks.fixed(32), {"warmup": [(32, 32)], "tile_overlap": 8}, None),
    "tiled": (networks.pooled, {"tile": 64, "tile_overlap": 40, "warmup": [(128, 96)]}, None),
    "prepared": (lambda: networks.unet(), {"preprocess": halved}, lambda inputs: halved(inputs)),
    "colours": (lambda: networks.unet(), {"preprocess": to_gray, "input_channels": 3}, lambda inputs: to_gray(inputs)),
    "carried": (networks.prepared, {"tile": 64, "warmup": [(80, 96)]}, None),
    "unet in tiles": (networks.unet, {"tile": 33, "tile_overlap": 27, "warmup": [(65, 40)]}, None),
    "moved": (networks.unet, {"offset": (1, -2), "image_range": (-1.0, 3.0)}, None),
    "half": (networks.half, {}, None),
}
AFTERWARDS = {"moved": moved}
# The runtime adds a bias before it rounds to half precision, Keras after it has.
TOLERANCES = {"half": 4e-3}


class Served:
    """An export, its runtime, and the network behind it."""

    def __init__(self, kind, folder):
        make, options, self.prepare = KINDS[kind]
        self.tolerance = TOLERANCES.get(kind, 1e-5)
        self.afterwards, self.image_range = AFTERWARDS.get(kind), options.get("image_range", (0.0, 1.0))
        self.model = make()
        self.folder = tfalign.export_serving(self.model, folder / kind, **options)
        self.session = c_api.Session(self.folder)
        self.channels = options.get("input_channels", self.model.input_shape[-1])

    def expected(self, inputs):
        prediction = self.model(inputs if self.prepare is None else self.prepare(inputs)).numpy().astype(np.float32)
        assert inputs.size < 64 or prediction.std() > 0.02, "a network that is dead proves nothing"
        return prediction if self.afterwards is None else self.afterwards(prediction)

    def of_codes(self, codes):
        """The input that 8 or 16 bit codes of image files stand for."""
        low, high = self.image_range
        return low + (high - low) * codes.astype(np.float32) / np.float32(np.iinfo(codes.dtype).max)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder, kinds = tmp_path_factory.mktemp("served"), {}

    def one(kind):
        if kind not in kinds:
            kinds[kind] = Served(kind, folder)
        return kinds[kind]

    yield one
    for one in kinds.values():
        one.session.__exit__()


@pytest.mark.parametrize("kind", KINDS)
def test_warmup_requests_are_answered_as_keras_does(served, kind):
    one = served(kind)
    replayed = c_api.replay(one.session, one.folder)
    sizes = KINDS[kind][1].get("warmup", [None])
    assert len(replayed) == len(one.session.signatures) * len(sizes)
    for request, outputs in replayed:
        assert request.model_spec.name == kind
        inputs = {name: c_api.array_of(proto) for name, proto in request.inputs.items()}
        if request.model_spec.signature_name == "register":
            found = tfalign.register(inputs["prediction"], inputs["label"], **KINDS[kind][1]["register"])
            aligned, mask = found.warp(inputs["label"])
            expected = {**found._asdict(), "aligned": aligned, "mask": mask}
            assert outputs.keys() == {"aligned", "mask", "transform", "translation", "confidence"}
            for name, value in outputs.items():
                np.testing.assert_allclose(value, expected[name], atol=1e-5)
            continue
        if request.model_spec.signature_name == "encoded":
            inputs = {"inputs": one.of_codes(np.stack([tf.io.decode_png(file).numpy() for file in inputs["images"]]))}
        np.testing.assert_allclose(outputs["prediction"], one.expected(inputs["inputs"]), atol=one.tolerance)


@pytest.mark.parametrize(
    ("kind", "signatures"),
    [
        ("plain", {"serving_default", "encoded", "register"}),
        ("signal", {"serving_default", "register"}),
        ("volume", {"serving_default", "register"}),
        ("pooled", {"serving_default", "encoded"}),
    ],
)
def test_signatures_name_what_they_take(served, kind, signatures):
    one = served(kind)
    assert set(one.session.signatures) == signatures
    default = one.session.signatures["serving_default"]
    rank = len(one.model.input_shape) - 2
    for side, channels in (
        (default.inputs["inputs"], one.channels),
        (default.outputs["prediction"], one.model.output_shape[-1]),
    ):
        assert side.dtype == 1
        assert [dim.size for dim in side.tensor_shape.dim] == [-1] * (rank + 1) + [channels]


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("plain", [(1, 1, 1), (1, 9, 13), (32, 16, 16), (2, 1, 30)]),
        ("signal", [(1, 1), (5, 101)]),
        ("volume", [(1, 1, 1, 1), (2, 5, 6, 7)]),
        ("unpadded", [(2, 20, 40)]),
        ("prepared", [(1, 1, 1), (3, 7, 5)]),
        ("colours", [(2, 9, 6)]),
        ("pooled", [(16, 8, 12)]),
        ("tiled", [(1, 132, 68), (3, 16, 24)]),
        ("unet in tiles", [(1, 91, 33), (1, 32, 70), (3, 7, 5)]),
        ("carried", [(1, 132, 68), (2, 16, 24)]),
        ("moved", [(2, 9, 14), (1, 1, 1)]),
        ("half", [(1, 9, 14)]),
    ],
)
def test_any_size_and_batch(served, rng, kind, shapes):
    one = served(kind)
    for shape in shapes:
        inputs = rng.random((*shape, one.channels)).astype(np.float32)
        result = one.session.run("serving_default", inputs=inputs)["prediction"]
        np.testing.assert_allclose(result, one.expected(inputs), atol=one.tolerance)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (13, 22)])
def test_sizes_that_the_network_does_not_take(served, rng, size):
    one, inputs = served("pooled"), rng.random((2, *size, 1)).astype(np.float32)
    extended = np.pad(inputs, [(0, 0), *((0, -length % 4) for length in size), (0, 0)], mode="reflect")
    expected = one.model(extended).numpy()[:, : size[0], : size[1]]
    np.testing.assert_allclose(one.session.run("serving_default", inputs=inputs)["prediction"], expected, atol=1e-5)


def test_files_and_arrays_are_answered_alike(served, rng):
    one = served("colours")
    eight = rng.integers(0, 256, (4, 9, 14, 3), np.uint8)
    files = [file_of(image) for image in eight]
    arrays = eight.astype(np.float32) / 255.0
    result = one.session.run("encoded", images=files)["prediction"]
    np.testing.assert_allclose(result, one.expected(arrays), atol=1e-5)

    one, sixteen = served("moved"), rng.integers(0, 65536, (1, 9, 14, 1), np.uint16)
    result = one.session.run("encoded", images=[file_of(sixteen[0, ..., 0])])["prediction"]
    np.testing.assert_allclose(result, one.expected(one.of_codes(sixteen)), atol=1e-5)


def test_jpeg_files_and_16_bit_colours(served, rng):
    one, sixteen = served("colours"), rng.integers(0, 65536, (1, 9, 14, 3), np.uint16)
    file = tf.io.encode_png(sixteen[0]).numpy()  # Pillow writes no such file
    result = one.session.run("encoded", images=[file])["prediction"]
    np.testing.assert_allclose(result, one.expected(one.of_codes(sixteen)), atol=1e-5)

    file = file_of(rng.integers(0, 256, (9, 14, 3), np.uint8), "JPEG")
    result = one.session.run("encoded", images=[file])["prediction"]
    codes = tf.io.decode_jpeg(file).numpy()[np.newaxis]
    np.testing.assert_allclose(result, one.expected(one.of_codes(codes)), atol=1e-5)


def test_one_pixel(served):
    pixel = np.full((1, 1, 1, 3), 200, np.uint8)
    for one, codes in (
        (served("colours"), pixel),
        (served("plain"), pixel[..., :1]),
        (served("pooled"), pixel[..., :1]),
    ):
        for kind in ("PNG", "JPEG"):
            file = file_of(codes[0] if codes.shape[-1] == 3 else codes[0, ..., 0], kind)
            result = one.session.run("encoded", images=[file])["prediction"]
            expected = one.session.run("serving_default", inputs=one.of_codes(codes))["prediction"]
            assert result.shape[1:3] == (1, 1)
            np.testing.assert_allclose(result, expected, atol=1e-5)
    value = np.ones((1, 1, 1, 3), np.float32)
    outputs = served("plain").session.run("register", prediction=value, label=value)
    assert outputs["translation"].tolist() == [[0.0, 0.0]]
    assert outputs["confidence"].tolist() == [0.0]
    np.testing.assert_allclose(outputs["aligned"], value)


def test_a_label_is_laid_on_a_prediction(served, rng):
    picture = rng.random((1, 40, 44, 3)).astype(np.float32)
    prediction, label = picture[:, 8:32, 8:36], picture[:, 4:36, 2:40]
    outputs = served("plain").session.run("register", prediction=prediction, label=label)
    # Row 8 of the picture is row 0 of the prediction and row 4 of the label, whose centre lies 4 rows on: in place. Its
    # column is 6, its centre lies 5 columns on: 1 too far right.
    np.testing.assert_allclose(outputs["translation"], [[0.0, 1.0]], atol=0.1)
    label = picture[:, 3:35, 5:43]
    outputs = served("plain").session.run("register", prediction=prediction, label=label)
    np.testing.assert_allclose(outputs["translation"], [[1.0, -2.0]], atol=0.1)
    np.testing.assert_allclose(outputs["transform"][0, :2, 2], outputs["translation"][0])
    assert outputs["aligned"].shape == prediction.shape
    np.testing.assert_allclose(outputs["aligned"], prediction, atol=0.1)
    assert outputs["mask"].min() == 1.0
    assert outputs["confidence"][0] > 0.9


GRAY = np.arange(35, dtype=np.uint8).reshape(5, 7)
WHOLE, COLOUR = file_of(GRAY), file_of(np.stack([GRAY] * 3, axis=-1))
MISTAKES = {
    "channels": ("serving_default", {"inputs": np.zeros((1, 8, 8, 3), np.float32)}, r"\[1,8,8,3\]"),
    "rank": ("serving_default", {"inputs": np.zeros((1, 8, 8), np.float32)}, r"\[1,8,8\]"),
    "no pixel": ("serving_default", {"inputs": np.zeros((1, 0, 8, 1), np.float32)}, "more than"),
    "no image": ("serving_default", {"inputs": np.zeros((0, 8, 8, 1), np.float32)}, "one at least"),
    "colour file": ("encoded", {"images": [COLOUR]}, "must have 1 channels"),
    "sizes": ("encoded", {"images": [WHOLE, file_of(GRAY[:3])]}, "must all be of one size"),
    "broken file": ("encoded", {"images": [WHOLE[:40]]}, "Invalid PNG"),
    "no file": ("encoded", {"images": [b"<html>"]}, "must be PNG or JPEG"),
    "label": (
        "register",
        {"prediction": np.zeros((1, 8, 8, 3), np.float32), "label": np.zeros((1, 8, 8, 1), np.float32)},
        r"\[1,8,8,1\]",
    ),
    "no pixel in a prediction": (
        "register",
        {"prediction": np.zeros((1, 0, 8, 3), np.float32), "label": np.zeros((1, 0, 8, 3), np.float32)},
        "`prediction` must hold one image at least, of one pixel at least",
    ),
    "no pixel in a label": (
        "register",
        {"prediction": np.zeros((1, 8, 8, 3), np.float32), "label": np.zeros((1, 8, 0, 3), np.float32)},
        "`label` must hold one image at least, of one pixel at least",
    ),
    "no label": (
        "register",
        {"prediction": np.zeros((1, 8, 8, 3), np.float32), "label": np.zeros((0, 8, 8, 3), np.float32)},
        "`label` must hold one image at least",
    ),
    "labels": (
        "register",
        {"prediction": np.zeros((2, 8, 8, 3), np.float32), "label": np.zeros((3, 8, 8, 3), np.float32)},
        "`label` must hold as many images as `prediction`",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_an_error_and_the_session_goes_on(served, rng, mistake):
    one = served("plain")
    signature, feeds, text = MISTAKES[mistake]
    with pytest.raises(c_api.Failed, match=text) as failed:
        one.session.run(signature, **feeds)
    assert failed.value.code == c_api.INVALID_ARGUMENT
    inputs = rng.random((1, 8, 8, 1)).astype(np.float32)
    result = one.session.run("serving_default", inputs=inputs)["prediction"]
    np.testing.assert_allclose(result, one.expected(inputs), atol=1e-5)


def test_a_gray_file_for_a_model_of_colours(served):
    with pytest.raises(c_api.Failed, match="must have 3 channels") as failed:
        served("colours").session.run("encoded", images=[WHOLE])
    assert failed.value.code == c_api.INVALID_ARGUMENT


def test_arrays_of_other_channels_do_not_reach_the_preprocessing(served):
    with pytest.raises(c_api.Failed, match=r"\[1,8,8,1\]") as failed:
        served("colours").session.run("serving_default", inputs=np.zeros((1, 8, 8, 1), np.float32))
    assert failed.value.code == c_api.INVALID_ARGUMENT


def test_many_threads_get_no_wrong_answer(served, rng):
    one, threads, requests = served("plain"), 8, 200
    arrays = [rng.random((1 + n % 3, 6 + n, 9, 1)).astype(np.float32) for n in range(5)]
    expected = [one.expected(array) for array in arrays]
    file_expected = one.expected(GRAY[np.newaxis, ..., np.newaxis].astype(np.float32) / 255.0)
    wrong, answered, start = [], [0] * threads, threading.Barrier(threads)

    def client(thread):
        draw = np.random.default_rng(thread)
        start.wait()
        for _ in range(requests):
            kind = draw.integers(0, len(arrays) + 2)
            if kind == len(arrays):
                result = one.session.run("encoded", images=[WHOLE])["prediction"]
                right = np.allclose(result, file_expected, atol=1e-5)
            elif kind > len(arrays):
                try:
                    one.session.run("encoded", images=[WHOLE[:40]])
                    right = False
                except c_api.Failed as failed:
                    right = failed.code == c_api.INVALID_ARGUMENT
            else:
                result = one.session.run("serving_default", inputs=arrays[kind])["prediction"]
                right = result.shape == expected[kind].shape and np.allclose(result, expected[kind], atol=1e-5)
            if not right:
                wrong.append((thread, kind))
            answered[thread] += 1

    clients = [threading.Thread(target=client, args=(thread,)) for thread in range(threads)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert answered == [requests] * threads
    assert not wrong


def test_no_python_of_tensorflows_is_needed(served, tmp_path):
    one, out = served("plain"), tmp_path / "answers.npz"
    done = subprocess.run(
        [sys.executable, c_api.__file__, str(one.folder), str(out)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    answers = np.load(out)
    here = c_api.replay(one.session, one.folder)
    assert sum(len(outputs) for _, outputs in here) == len(answers.files) == 7
    for number, (_, outputs) in enumerate(here):
        for name, value in outputs.items():
            np.testing.assert_allclose(answers[f"{number}/{name}"], value, atol=1e-5)
