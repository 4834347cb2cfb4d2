"""The model that comes with the project, and the clients of docs/serving.md against it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import tfalign
from tests import c_api
from tests.export import servers
from tfalign.data import stain
from tfalign.jobs import evaluate

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "saved_models/tissue_stain/1"

pytestmark = pytest.mark.skipif(not c_api.LIBRARY.exists(), reason="this TensorFlow has no libtensorflow_cc.so.2")


@pytest.fixture(scope="module")
def session():
    with c_api.Session(FOLDER) as loaded:
        yield loaded


def test_the_saved_model_does_what_its_card_says(session):
    gray, truth = stain.held_out()
    prediction = session.run("serving_default", inputs=gray)["prediction"]
    metrics = evaluate.image_metrics(prediction[0], truth[0])
    card = (FOLDER / "README.md").read_text()
    assert f"PSNR {metrics['psnr']:.2f} dB, SSIM {metrics['ssim']:.3f}" in card
    np.testing.assert_allclose(
        tf.saved_model.load(str(FOLDER)).signatures["serving_default"](inputs=tf.constant(gray))["prediction"],
        prediction,
        atol=1e-5,
    )


def test_the_saved_model_is_small_and_has_all_that_an_export_has(session):
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 2e6
    assert set(session.signatures) == {"serving_default", "encoded", "register"}
    replayed = c_api.replay(session, FOLDER)
    assert len(replayed) == 3
    assert all(np.all(np.isfinite(value)) for _, outputs in replayed for value in outputs.values())
    answer = servers.rest_answer(session, json.loads((FOLDER / "assets.extra/request.json").read_text()))
    assert np.shape(answer["predictions"]) == (1, 8, 8, 3)


@pytest.mark.parametrize(
    ("number", "server", "address"),
    [(1, servers.grpc_server, "localhost:8500"), (2, servers.http_server, "localhost:8501")],
)
def test_the_clients_of_the_documentation(session, number, server, address, capsys):
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs/serving.md").read_text(), re.DOTALL)[number]
    assert address in code
    names = {}
    with server("tissue_stain", session) as port:
        exec(code.replace(address, f"127.0.0.1:{port}"), names)
    gray = names["gray"]
    codes = np.uint8(255 * gray).astype(np.float32) / 255.0
    expected = session.run("serving_default", inputs=codes)["prediction"]
    np.testing.assert_allclose(names["stain"], expected, atol=1e-5)
    translation = names["found"]["translation"][0] if number == 1 else names["translation"]
    np.testing.assert_allclose(translation, (3, -2), atol=0.1)
    assert "Invalid PNG" in capsys.readouterr().out


def test_the_export_of_the_documentation(tmp_path, monkeypatch):
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs/serving.md").read_text(), re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    exec(code, {"model": tfalign.models.unet(filters=2, depth=2)})
    assert (tmp_path / "served/stain/1/saved_model.pb").exists()
