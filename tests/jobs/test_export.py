import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from typer.testing import CliRunner

import tfalign
from tfalign import cli
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


@pytest.mark.parametrize(("name", "error"), [("net.h5", ValueError), ("net", ValueError), ("none.keras", OSError)])
def test_other_files(tmp_path, name, error):
    with pytest.raises(error, match=f"Received: model='.*{re.escape(name)}'"):
        export.run(tmp_path / name, tmp_path / "served")


def test_a_bad_offset_is_a_clean_error(keras_file, tmp_path):
    result = CliRunner().invoke(cli.app, ["export", str(keras_file), str(tmp_path), "--offset", "1,b"])
    assert isinstance(result.exception, ValueError)
    assert "offset=('1', 'b')" in str(result.exception)


def test_nothing_turns_safe_mode_off_or_unpickles():
    for path in Path(tfalign.__file__).parent.rglob("*.py"):
        source = path.read_text()
        for word in ("safe_mode=False", "enable_unsafe_deserialization", "allow_pickle=True"):
            assert word not in source, path
        assert not re.search(r"^\s*(import|from) (pickle|marshal|shelve|dill|joblib)\b", source, re.MULTILINE), path
