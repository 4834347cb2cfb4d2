"""`tfalign train` with a warp network beside, for bent labels."""

import csv
import json

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from tests.jobs import small_run
from tfalign.data import misalign
from tfalign.jobs import evaluate_run, files, networks, predict, realign, train
from tfalign.models import DeformableModel

OPTIONS = {
    "deformable": {"momentum": 0.9, "warp_network": {"depth": 2, "filters": 4}},
    "epochs": 2,
    "steps_per_epoch": 3,
    "loss": {**small_run.SETTINGS["loss"], "warmup_steps": 0},
}


@pytest.fixture(scope="module")
def bent(tmp_path_factory):
    """Files whose labels are bent by 2 px."""
    folder = tmp_path_factory.mktemp("bent")
    small_run.write_files(folder)
    for seed, path in enumerate(sorted((folder / "labels").glob("*.png"))):
        if path.name == "broken.png":
            continue
        label = np.asarray(Image.open(path))
        (field,) = misalign.draw_elastic(1, shape=label.shape, rms=2.0, correlation_length=12.0, seed=seed)
        moved = scipy.ndimage.map_coordinates(label, np.indices(label.shape) + np.moveaxis(field, -1, 0), order=1)
        Image.fromarray(moved).save(path)
    return folder


@pytest.fixture(scope="module")
def finished(bent, tmp_path_factory):
    """A run on them."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, train.run(out, small_run.settings(bent, **OPTIONS))


def test_the_predictor_is_what_others_read(finished, bent, tmp_path):
    out, summary = finished
    whole = files.read_model(out / "best.keras", whole=True)
    assert isinstance(whole, DeformableModel)
    assert whole.momentum == 0.9
    assert whole.warp_network.get_config()["depth"] == 2
    network = files.read_model(out / "best.keras")
    assert not isinstance(network, DeformableModel)
    patch = np.random.default_rng(0).random((1, 24, 24, 1)).astype(np.float32)
    np.testing.assert_array_equal(network(patch), whole(patch))
    assert network.count_params() < whole.count_params()
    assert (out / summary["exported"] / "saved_model.pb").exists()
    again = networks.made(small_run.settings(bent, model=str(out / "best.keras")), small_facts(out))
    assert not isinstance(again, DeformableModel)
    scores = evaluate_run.run(out)
    assert scores["in_place"] == pytest.approx(summary["test"]["in_place"], rel=1e-4)
    realign.run(out, tmp_path / "repaired")
    assert len(list((tmp_path / "repaired").rglob("*.png"))) == len(small_run.SHIFTS)
    predict.predict(bent / "inputs", tmp_path / "predictions", run=out)
    assert len(list((tmp_path / "predictions").iterdir())) >= len(small_run.SHIFTS)


def small_facts(out):
    return json.loads((out / "data.json").read_text())


def test_the_log_and_the_table_tell_the_bending(finished):
    out, *_ = finished
    for row in (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()):
        assert {"warp_loss", "displacement", "folds", "val_loss", "drift"} <= set(row)
        assert np.isfinite(row["warp_loss"])
    with open(out / "alignment.csv", encoding="utf-8") as stream:
        bending = np.array([float(row["bending"]) for row in csv.DictReader(stream)])
    assert np.all(bending >= 0)
    assert np.any(bending > 0)


def test_the_page_shows_the_field_of_each_label(finished):
    page = (finished[0] / "report.html").read_text(encoding="utf-8")
    assert page.count('alt="Displacements"') >= 6
    assert "labels are bent by" in page
    assert "does not unbend them" in page


def test_a_checkpoint_gives_back_both_networks_and_their_twins(finished, bent):
    """Into a network made anew, as where a run goes on."""
    out, _ = finished
    config = small_run.settings(bent, **OPTIONS)
    model = networks.made(config, small_facts(out))
    networks.compile_for(model, config)
    model.load_weights(str(out / "last.keras"))
    wanted = files.read_model(out / "last.keras", whole=True)
    assert len(model.get_weights()) > 2 * len(model.predictor.get_weights())
    for mine, theirs in zip(model.get_weights(), wanted.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert float(model.steps) == 6
    assert float(model.optimizer.iterations) == 6


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"smoothnes": 1}, "keyword of `deformable` must be known.*'smoothness'"),
        ({"warp_network": {"dept": 1}}, "keyword of `deformable.warp_network`.*'depth'"),
        ({"warp_network": 3}, "`deformable.warp_network` must be keywords"),
        ("yes", "`deformable` must be true, false"),
    ],
)
def test_bad_settings_are_named(tmp_path, value, text):
    with pytest.raises(ValueError, match=text):
        small_run.settings(tmp_path, deformable=value)


@pytest.mark.parametrize("value", [{"smoothness": -1.0}, {"warp_network": {"spacing": 3}}])
def test_bad_values_are_named_before_a_file_is_read(tmp_path, value):
    with pytest.raises(ValueError, match=r"`(spacing|smoothness)` must"):
        train.run(tmp_path / "run", small_run.settings(tmp_path, deformable=value))
    assert not (tmp_path / "run").exists()
