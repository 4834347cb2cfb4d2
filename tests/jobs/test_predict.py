import subprocess
import sys

import keras
import numpy as np
import pytest
import soundfile
import tifffile
from PIL import Image
from typer.testing import CliRunner

from tests.export import networks
from tests.jobs import run_folders
from tfalign import cli
from tfalign.data import BadFileError, formats
from tfalign.data.cutting import Cutting
from tfalign.data.preprocess import CropOrPad, Percentiles, Preprocessing, Resample, Scale, with_preprocessing
from tfalign.jobs import files
from tfalign.jobs import predict as job
from tfalign.jobs import predictor as predictors
from tfalign.jobs.predictor import Predictor


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_folders.make(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "net.keras"
    networks.unet(outputs=1).save(path)
    return path


def whole(model, values):
    return model(np.asarray(values, np.float32)[np.newaxis]).numpy()[0]


@pytest.mark.parametrize(
    ("network", "shape", "tile"),
    [
        (lambda: networks.unet(), (150, 93), 64),
        (lambda: networks.unet(padding="valid"), (90, 128), 64),
        (lambda: networks.pooled(), (148, 72), 64),
        (lambda: networks.fixed(32), (75, 31), None),
        (lambda: networks.unet(rank=1), (1001,), 128),
        (lambda: networks.pooled_planes(), (12, 40, 66), (12, 24, 24)),
    ],
)
def test_tiles_give_what_the_whole_gives(network, shape, tile, rng):
    model = network()
    values = rng.random((*shape, model.input_shape[-1])).astype(np.float32)
    predictor = Predictor(model, None, tile=tile)
    cut = predictor(values)
    assert cut.shape == (*shape, model.output_shape[-1])
    assert len(predictor._plan(shape)) > 1
    if model.input_shape[1] is not None:  # one size alone: its border is not that of the whole
        inner = (slice(8, -8), slice(8, -8))
        wide = keras.Sequential([keras.Input((None, None, 3)), *model.layers[1:]])
        np.testing.assert_allclose(cut[inner], whole(wide, values)[inner], atol=1e-5)
        return
    lost = np.array(shape) - whole(model, values).shape[:-1]
    inner = tuple(slice(one // 2, size - (one - one // 2)) for one, size in zip(lost, shape))
    expected = whole(model, values)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(cut[inner] / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize("network", [lambda: networks.unet(depth=3), lambda: networks.unet(padding="valid")])
def test_tiles_that_nobody_chose_leave_no_seams(network, rng, monkeypatch):
    monkeypatch.setattr(predictors, "_TILE", {2: 64})
    monkeypatch.setattr(predictors, "_WIDEST", {2: 200})
    model, values = network(), rng.random((230, 160, 1)).astype(np.float32)
    predictor, expected = Predictor(model, None), whole(model, values)
    cut = predictor(values)
    assert len(predictor._plan(values.shape[:-1])) > 1
    lost = [size - given for size, given in zip(values.shape[:2], expected.shape[:2])]
    inner = tuple(slice(one // 2, size - (one - one // 2)) for one, size in zip(lost, values.shape))
    np.testing.assert_allclose(cut[inner], expected, atol=1e-5 * np.abs(expected).max())


def test_classes_are_those_of_the_largest_channel(rng):
    model = networks.unet(outputs=3)
    values = rng.random((90, 70, 1)).astype(np.float32)
    numbers = Predictor(model, None, tile=64)(values, classes=True)
    assert numbers.dtype == np.uint8
    np.testing.assert_array_equal(numbers[..., 0], whole(model, values).argmax(axis=-1))


def test_a_prediction_lies_on_the_grid_of_its_file(rng):
    values = np.add.outer(np.arange(40.0), np.arange(50.0))[..., np.newaxis].astype(np.float32)
    steps = Preprocessing((Resample(factor=(2.0, 0.5)), CropOrPad(size=(40, 20))))
    predicted = Predictor(networks.shifting((0, 0)), steps)(values)
    assert predicted.shape == values.shape
    inner = (slice(12, 28), slice(8, 40))
    np.testing.assert_allclose(predicted[inner], values[inner], atol=1e-3)
    assert not predicted[:9].any()
    assert not predicted[31:].any()
    assert not predicted[:, :3].any()


@pytest.mark.parametrize("step", [Percentiles(), Scale(high=9)])
def test_a_preprocessing_of_the_whole_sees_the_whole(step, rng):
    values = rng.random((96, 96, 1)).astype(np.float32)
    values[:48] *= 9
    model, steps = networks.unet(), Preprocessing((step,))
    expected = whole(model, steps(values[np.newaxis])[0])
    for predictor in (Predictor(model, steps, tile=64), Predictor(with_preprocessing(model, steps), None, tile=64)):
        np.testing.assert_allclose(predictor(values), expected, atol=1e-4 * np.abs(expected).max())


def test_a_folder_as_users_have_it(run, tmp_path, rng):
    """16 bits, RGB, a broken file, spaces and letters of all kinds, in subfolders."""
    inputs = tmp_path / "my images"
    (inputs / "più").mkdir(parents=True)
    deep = rng.integers(0, 256, (45, 33)).astype(np.uint16)
    tifffile.imwrite(inputs / "più" / "a b é.tif", deep)
    Image.fromarray(np.uint8(deep)).save(inputs / "gray.png")
    Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(inputs / "rgb.png")
    (inputs / "broken.png").write_bytes((inputs / "gray.png").read_bytes()[:60])
    (inputs / "notes.txt").write_text("no picture")
    result = CliRunner().invoke(
        cli.app, ["predict", "--run", str(run), "--inputs", str(inputs), "--out", str(tmp_path / "out ö")]
    )
    assert result.exit_code == 0, result.output
    rows = run_folders.read_csv(tmp_path / "out ö" / "predictions.csv")
    assert [row["file"] for row in rows] == ["gray.tif", "più/a b é.tif"]
    for row in rows:
        predicted = formats.read(tmp_path / "out ö" / row["file"])
        assert predicted.dtype == np.float32
        np.testing.assert_allclose(predicted[..., 0], deep / 255, atol=1e-5)
    skipped = {
        row["path"].rpartition("/")[2]: row["reason"] for row in run_folders.read_csv(tmp_path / "out ö/skipped.csv")
    }
    assert set(skipped) == {"rgb.png", "broken.png", "notes.txt"}
    assert skipped["rgb.png"] == "it has 3 channels, the network takes 1"
    shown = result.output.replace("\n", "")
    assert "2 predictions" in shown
    assert "3 files" in shown
    assert "broken.png" in shown


def test_a_run_on_class_maps_gives_class_maps(tmp_path, rng):
    run, model = tmp_path / "run", networks.unet(outputs=3)
    (run / "cache").mkdir(parents=True)
    (tmp_path / "in").mkdir()
    cutting = Cutting(ignore_class=-1, preprocessing=Preprocessing((Scale(high=255),)))
    plan = {"settings": cutting.get_config(), "preprocessing": cutting.preprocessing.get_config()}
    files.write_json(run / "cache" / "plan.json", plan)
    model.save(run / "last.keras")  # of a run that has no best network yet
    codes = rng.integers(0, 256, (40, 30), np.uint8)
    Image.fromarray(codes).save(tmp_path / "in" / "a.png")
    job.predict(tmp_path / "in", tmp_path / "out", run=run)
    found = formats.read(tmp_path / "out" / "a.png")
    np.testing.assert_array_equal(found[..., 0], whole(model, codes[..., np.newaxis] / 255).argmax(axis=-1))
    job.predict(tmp_path / "in", tmp_path / "values", run=run, classes="no")
    assert formats.read(tmp_path / "values" / "a.tif").shape == (40, 30, 3)


def test_what_is_done_is_kept(run, tmp_path, monkeypatch):
    inputs, done = run.parent / "inputs", []
    original = job._read

    def stopped(pairs, index):
        done.append(index)
        if len(done) == 3:
            raise KeyboardInterrupt
        return original(pairs, index)

    monkeypatch.setattr(job, "_read", stopped)
    with pytest.raises(KeyboardInterrupt):
        job.predict(inputs, tmp_path / "out", run=run)
    result = job.predict(inputs, tmp_path / "out", run=run, tile=64)  # a smaller tile is not another prediction
    assert done == [0, 1, 2, 2, 3]
    assert [row["name"] for row in result.rows] == ["a b", "c", "d", "é"]
    (tmp_path / "out" / "c.tif").unlink()
    job.predict(inputs, tmp_path / "out", run=run)
    assert done[5:] == [1]
    with pytest.raises(ValueError, match="begun with other settings"):
        job.predict(inputs, tmp_path / "out", run=run, form="npy")


def test_strict_stops(run, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"no picture")
    with pytest.raises(BadFileError, match=r"a\.png"):
        job.predict(tmp_path / "in", tmp_path / "out", run=run, strict=True)


def test_formats(keras_file, tmp_path, rng):
    (tmp_path / "in").mkdir()
    codes = rng.integers(0, 256, (30, 41), np.uint8)
    Image.fromarray(codes).save(tmp_path / "in" / "a.png")
    expected = whole(keras.models.load_model(keras_file), codes[..., np.newaxis] / 255)
    low, high = float(np.percentile(expected, 5)), float(np.percentile(expected, 95))
    for form in ("tif", "npy", "png"):
        job.predict(tmp_path / "in", tmp_path / form, model=keras_file, form=form, value_range=(low, high))
        found = formats.read(tmp_path / form / f"a.{form}")
        wanted = expected if form != "png" else np.round(255 * np.clip((expected - low) / (high - low), 0, 1))
        np.testing.assert_allclose(found, wanted, atol=1e-5 if form != "png" else 1.01)
    assert found.dtype == np.uint8


def test_signals_and_volumes(tmp_path, rng):
    for part in ("signals", "volumes"):
        (tmp_path / part).mkdir()
    samples = rng.uniform(-0.9, 0.9, 500).astype(np.float32)
    soundfile.write(tmp_path / "signals" / "ecg.wav", samples, 250, subtype="FLOAT")
    volume = rng.integers(0, 2**16, (6, 20, 17), np.uint16)
    tifffile.imwrite(tmp_path / "volumes" / "stack.tif", volume, metadata={"axes": "ZYX"})
    for rank, part, suffix, values in ((1, "signals", "npy", samples), (3, "volumes", "tif", volume / 65535)):
        model = networks.unet(rank=rank, outputs=1)
        path = run_folders.saved(model, tmp_path / f"{part}.keras")
        (row,) = job.predict(tmp_path / part, tmp_path / "out" / part, model=path).rows
        assert row["file"].endswith(suffix)
        found = formats.read(tmp_path / "out" / part / row["file"])
        np.testing.assert_allclose(found, whole(model, values[..., np.newaxis]), atol=1e-5)
    with pytest.raises(ValueError, match=r"`form` must hold the predictions.*form='tif', spatial axes=1"):
        job.predict(tmp_path / "signals", tmp_path / "other", model=tmp_path / "signals.keras", form="tif")


@pytest.mark.parametrize("form", ["npy", "tif", "png"])
@pytest.mark.parametrize("suffix", ["npy", "tif"])
def test_large_files_are_written_as_they_come(form, suffix, keras_file, tmp_path, rng, monkeypatch):
    monkeypatch.setattr(job, "_LARGE", 1000)
    (tmp_path / "in").mkdir()
    values = rng.random((70, 61)).astype(np.float32)
    path = tmp_path / "in" / f"a.{suffix}"
    np.save(path, values[..., np.newaxis]) if suffix == "npy" else tifffile.imwrite(path, values)
    seen = []
    original = Predictor.__call__
    monkeypatch.setattr(Predictor, "__call__", lambda self, *a, **b: seen.append((a[0], b)) or original(self, *a, **b))
    job.predict(tmp_path / "in", tmp_path / "out", model=keras_file, form=form, tile=64, value_range=(-5, 5))
    assert isinstance(seen[0][0], np.memmap)
    assert isinstance(seen[0][1]["out"], np.memmap) or isinstance(seen[0][1]["out"].base, np.memmap)
    expected = whole(keras.models.load_model(keras_file), values[..., np.newaxis])
    found = formats.read(tmp_path / "out" / f"a.{form}")
    if form == "png":
        np.testing.assert_allclose(found / 25.5 - 5, expected, atol=0.021)
    else:
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == [
        ".predictions.jsonl", f"a.{form}", "predictions.csv", "skipped.csv",
    ]  # fmt: skip


FLAT = """
import sys, numpy as np, tensorflow as tf
sys.path.insert(0, sys.argv[2])
from tests.export import networks
from tfalign.jobs import predict
predict._LARGE = 2**18
rows = []
for size in (512, 4096):
    np.lib.format.open_memmap(sys.argv[1] + "/in/a.npy", mode="w+", dtype=np.float32, shape=(size, 1024, 1)).flush()
    predict.predict(sys.argv[1] + "/in", sys.argv[1] + f"/{size}", model=sys.argv[1] + "/m.keras", form="npy", tile=256)
    status = open("/proc/self/status").read()
    rows.append(int(status.split("RssAnon:")[1].split()[0]) / 1024)
print(rows[1] - rows[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat(tmp_path):
    (tmp_path / "in").mkdir()
    networks.shifting((0, 0)).save(tmp_path / "m.keras")
    root = str(job.__file__).partition("/tfalign/")[0]
    done = subprocess.run([sys.executable, "-c", FLAT, str(tmp_path), root], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # The input has 16 MiB more, and so has the prediction.
    assert float(done.stdout.split()[-1]) < 8


def test_a_folder_of_which_nothing_can_be_used(keras_file, tmp_path):
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"`inputs` must hold a file that can be predicted from.*files=1.*a\.png"):
        job.predict(tmp_path / "inputs", tmp_path / "out", model=keras_file)
    assert "a.png" in (tmp_path / "out" / "skipped.csv").read_text()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "Either `run` or `model` must be given"),
        ({"model": "no.keras"}, r"`model` must be a file.*no\.keras"),
        ({"run": "nowhere"}, r"`run` must be the folder of a run.*tfalign train"),
        ({"model": "FILE", "form": "jpg"}, "`form` must be one of"),
        ({"model": "FILE", "classes": "yes"}, "Classes must have a channel each"),
        ({"model": "FILE", "out": "inputs/out"}, "`out` must not lie in `inputs`"),
        ({"model": "FILE", "tile": 8}, "`tile` must be larger"),
        ({"model": "FILE", "value_range": (0,)}, "`value_range` must be two"),
    ],
)
def test_mistakes(options, text, keras_file, tmp_path):
    (tmp_path / "inputs").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "inputs" / "a.png")
    options = {name: keras_file if value == "FILE" else value for name, value in options.items()}
    out = tmp_path / options.pop("out", "out")
    with pytest.raises((ValueError, OSError), match=text):
        job.predict(tmp_path / "inputs", out, **options)
    assert not out.exists()
