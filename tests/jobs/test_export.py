import io
import json
import re
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from typer.testing import CliRunner

import tfalign
from tfalign import cli
from tfalign.data.preprocess import Preprocessing, ZScore, with_preprocessing
from tfalign.jobs import export


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "net.keras"
    model = tfalign.models.unet(filters=2, depth=2)
    model.compile("adam", loss=tfalign.ShiftInvariantLoss())
    model.save(path)
    return path


def test_the_command_line(keras_file, tmp_path, rng):
    out = tmp_path / "served"
    arguments = ["export", str(keras_file), str(out), "--version", "4", "--tile", "64", "--tile-overlap", "48"]
    result = CliRunner().invoke(cli.app, [*arguments, "--offset", "1,0", "--max-shift", "2"])
    assert result.exit_code == 0, result.output
    assert f"Wrote {out / '4'}" in result.output.replace("\n", "")
    signatures = tf.saved_model.load(str(out / "4")).signatures
    assert set(signatures) == {"serving_default", "encoded", "register"}
    inputs = rng.random((1, 100, 90, 1)).astype(np.float32)
    prediction = signatures["serving_default"](inputs=tf.constant(inputs))["prediction"].numpy()
    expected = keras.models.load_model(keras_file)(inputs).numpy()
    np.testing.assert_allclose(prediction[:, :-1], expected[:, 1:], atol=1e-5)


def test_code_in_a_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, ran = tmp_path / "net.keras", tmp_path / "ran"
    inputs = keras.Input((None, None, 1))
    layer = keras.layers.Lambda(lambda x: [open("ran", "w").close(), x][1], output_shape=(None, None, 1))
    keras.Model(inputs, layer(inputs)).save(path)
    ran.unlink(missing_ok=True)
    with pytest.raises(ValueError, match="arbitrary code execution"):
        export.run(path, tmp_path / "served")
    assert not ran.exists()
    assert not (tmp_path / "served").exists()
    # It would have been run.
    keras.models.load_model(path, safe_mode=False)(np.zeros((1, 2, 2, 1), np.float32))
    assert ran.exists()


def test_code_in_a_file_of_another_format_is_not_run_under_this_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, ran = tmp_path / "net.keras", tmp_path / "ran"
    inputs = keras.Input((None, None, 1))
    layer = keras.layers.Lambda(lambda x: [open("ran", "w").close(), x][1], output_shape=(None, None, 1))
    keras.Model(inputs, layer(inputs)).save("net.h5")
    (tmp_path / "net.h5").rename(path)
    ran.unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"ZIP archive.*net\.keras"):
        export.run(path, tmp_path / "served")
    assert not ran.exists()


def without(content, name):
    """A ZIP archive but for one file in it."""
    archive = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as read, zipfile.ZipFile(archive, "w") as write:
        for entry in read.namelist():
            if entry != name:
                write.writestr(entry, read.read(entry))
    return archive.getvalue()


def with_config(content, text):
    archive = io.BytesIO(without(content, "config.json"))
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("config.json", text)
    return archive.getvalue()


def flipped(content):
    """One bit of the weights turned."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        at = file.getinfo("model.weights.h5").header_offset + 2000
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


BREAKS = {
    "no config": (lambda content: without(content, "config.json"), "KeyError"),
    "no weights": (lambda content: without(content, "model.weights.h5"), "Error"),
    "config": (lambda content: with_config(content, "{"), "JSONDecodeError"),
    "other config": (lambda content: with_config(content, '{"class_name": "Net"}'), "Error"),
    "flipped": (flipped, "BadZipFile"),
    "cut": (lambda content: content[:3000], "ZIP archive"),
    "empty": (lambda _: b"", "ZIP archive"),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_broken_file_is_one_line_that_names_it(keras_file, tmp_path, capsys, monkeypatch, kind):
    damage, text = BREAKS[kind]
    path = tmp_path / "broken.keras"
    path.write_bytes(damage(keras_file.read_bytes()))
    monkeypatch.setattr("sys.argv", ["tfalign", "export", str(path), str(tmp_path / "served")])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tfalign: `model` must be a whole ")
    assert str(path) in line
    assert text in line
    assert not (tmp_path / "served").exists()


def test_a_file_with_a_preprocessing_at_its_front(tmp_path, rng):
    network, prepare = tfalign.models.unet(filters=2, depth=2), Preprocessing((ZScore(),))
    with_preprocessing(network, prepare).save(tmp_path / "net.keras")
    path = export.run(tmp_path / "net.keras", tmp_path / "served", warmup=(), tile=32)
    inputs = rng.random((1, 60, 50, 1)).astype(np.float32)
    prediction = tf.saved_model.load(str(path)).signatures["serving_default"](inputs=tf.constant(inputs))["prediction"]
    np.testing.assert_allclose(prediction, network(prepare(inputs)), atol=1e-5)


CARD = {"what": "Gray to gray.", "licence": "MIT"}


def test_the_options_of_the_command_line(keras_file, tmp_path):
    card, out = tmp_path / "card.json", tmp_path / "served"
    card.write_text(json.dumps(CARD))
    options = ["--stride", "4,8", "--image-range=-1,1", "--warmup", "32,16", "--warmup", "8,8", "--card", str(card)]
    result = CliRunner().invoke(cli.app, ["export", str(keras_file), str(out), *options])
    assert result.exit_code == 0, result.output
    text = (out / "1/README.md").read_text()
    for part in (
        "# served\n\nGray to gray.\n",
        "## Licence\n\nMIT\n",
        "the network takes (multiples of 4, multiples of 8)",
        "the darkest code becomes -1, the brightest 1",
        "**Warm-up requests**: (32, 16), (8, 8)",
    ):
        assert part in text
    result = CliRunner().invoke(cli.app, ["export", str(keras_file), str(out), "--stride", "none", "--warmup", "none"])
    assert result.exit_code == 0, result.output
    text = (out / "2/README.md").read_text()
    assert "**Sizes**: what the network takes" in text
    assert "**Warm-up requests**: none" in text
    assert "\n\nNot stated.\n" in text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "`card` must be a JSON file.*card.json.*line 1"),
        ('{"licens": "MIT"}', "any of what, data.*card.json.*licens"),
        ('{"what": 3}', "object of texts.*'what': 3"),
        ("[]", r"object of texts.*content=\[\]"),
    ],
)
def test_a_bad_card_is_a_clean_error(keras_file, tmp_path, content, text):
    card = tmp_path / "card.json"
    card.write_text(content)
    with pytest.raises(ValueError, match=text):
        export.run(keras_file, tmp_path / "served", card=card)
    assert not (tmp_path / "served").exists()


@pytest.mark.parametrize(("name", "error"), [("net.h5", ValueError), ("net", ValueError), ("none.keras", OSError)])
def test_other_files(tmp_path, name, error):
    with pytest.raises(error, match=f"Received: model='.*{re.escape(name)}'"):
        export.run(tmp_path / name, tmp_path / "served")


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("offset", "1,b", "`offset` must be numbers with commas between. Received: offset='1,b'"),
        ("stride", "4.5", "`stride` must be whole numbers with commas between. Received: stride='4.5'"),
        ("image-range", "1", "image_range=1.0"),
        ("warmup", "8", "warmup=[8]"),
    ],
)
def test_bad_numbers_are_a_clean_error(keras_file, tmp_path, option, value, text):
    result = CliRunner().invoke(cli.app, ["export", str(keras_file), str(tmp_path), f"--{option}", value])
    assert isinstance(result.exception, ValueError)
    assert text in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_nothing_turns_safe_mode_off_or_unpickles():
    package = Path(tfalign.__file__).parent
    # What workers unpickle comes from the process that started them, of Beam through a folder made for one call.
    for path in set(package.rglob("*.py")) - {package / "data/workers.py", package / "jobs/beam/runner.py"}:
        source = path.read_text()
        for word in ("safe_mode=False", "enable_unsafe_deserialization", "allow_pickle=True"):
            assert word not in source, path
        assert not re.search(r"^\s*(import|from) (pickle|marshal|shelve|dill|joblib)\b", source, re.MULTILINE), path
