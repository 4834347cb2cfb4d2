import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfalign.jobs import demo

SETTINGS = demo.Settings(steps=3, max_shift=4, patches=24, patch_size=32, batch_size=4, filters=4, depth=2, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    calls = []

    def track(description, total):
        return lambda steps: calls.append((description, total, steps))

    demo.run(out, SETTINGS, track=track)
    assert calls == [(arm, 3, 1) for arm in demo.ARMS for _ in range(3)]
    return out


def test_the_run_folder_holds_what_is_promised(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["arms"]) == {"plain", "tfalign", "oracle"}
    for arm, result in metrics["arms"].items():
        assert {"psnr", "ssim", "sharpness", "drift", "psnr_moved_back", "milliseconds_per_step"} <= set(result)
        assert result["curve"]["step"] == [1, 2, 3]
        model = keras.models.load_model(folder / f"{arm}.keras")
        assert model(np.zeros((1, 40, 24, 1), np.float32)).shape == (1, 40, 24, 3)
    assert metrics["settings"]["seed"] == 5
    assert metrics["command"] == "tfalign demo --seed 5 --max-shift 4 --steps 3"
    assert metrics["versions"]["tensorflow"] == tf.__version__


def test_the_page_is_self_contained(folder):
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "Gap recovered" in page or "gap recovered" in page
    assert (folder / "picture.png").read_bytes()[1:4] == b"PNG"


def test_the_saved_model_predicts_as_the_network(folder, rng):
    inputs = rng.random((2, 24, 40, 1)).astype(np.float32)
    served = tf.saved_model.load(str(folder / "saved_model/tissue_stain/1")).signatures["serving_default"]
    output = served(inputs=tf.constant(inputs))["prediction"]
    expected = keras.models.load_model(folder / "tfalign.keras")(inputs)
    np.testing.assert_allclose(output, expected, atol=1e-5)
    card = (folder / "saved_model/tissue_stain/1/README.md").read_text()
    psnr = json.loads((folder / "metrics.json").read_text())["arms"]["tfalign"]["psnr"]
    assert f"PSNR {psnr:.2f} dB" in card
    assert "`tfalign demo --seed 5 --max-shift 4 --steps 3`" in card


def test_a_finished_run_is_not_trained_again(folder):
    before = (folder / "tfalign.keras").stat().st_mtime_ns
    demo.run(folder, SETTINGS, track=lambda *_: pytest.fail("trained again"))
    assert (folder / "tfalign.keras").stat().st_mtime_ns == before


def test_an_interrupted_run_goes_on(folder):
    (folder / "oracle.json").unlink()
    trained = []
    demo.run(folder, SETTINGS, track=lambda name, total: trained.append(name) or (lambda steps: None))
    assert trained == ["oracle"]


def test_another_run_is_not_overwritten(folder):
    with pytest.raises(ValueError, match=r"`out` holds a run with other settings.*Give another folder"):
        demo.run(folder, SETTINGS._replace(seed=6))


@pytest.mark.parametrize(("change", "text"), [({"steps": 0}, "steps=0"), ({"max_shift": 0}, "max_shift=0")])
def test_bad_settings(tmp_path, change, text):
    with pytest.raises(ValueError, match=text):
        demo.run(tmp_path / "new", SETTINGS._replace(**change))
    assert not (tmp_path / "new").exists()
