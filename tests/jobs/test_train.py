import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.jobs import small_run
from tfalign.data.preprocess import Preprocessing
from tfalign.jobs import config as configs
from tfalign.jobs import evaluate_run, measures, networks, realign, run_data, run_folder, run_report, train
from tfalign.ops import geometry


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    """A run that was not disturbed."""
    out, lines = tmp_path_factory.mktemp("runs") / "run", []
    summary = train.run(out, small_run.settings(files), announce=lines.append)
    assert any("broken.png" in line for line in lines)
    return out, summary


def log_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights_of(path):
    return keras.models.load_model(path, compile=False).get_weights()


def test_the_run_folder_holds_what_is_promised(finished):
    out, summary = finished
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["done"] is True
    assert summary["counts"]["files"] == len(small_run.SHIFTS)
    assert summary["counts"]["skipped"] == 1
    assert summary["bounds"]["max_shift"] == 3
    assert set(summary["validation"]["in_place"]) == set(summary["validation"]["registered"]) == {"mae", "psnr", "ssim"}
    assert summary["best_epoch"] == int(np.argmin([row["val_loss"] for row in log_of(out)]))
    assert json.loads((out / "versions.json").read_text())["seed"] == 0
    with open(out / "skipped.csv", encoding="utf-8") as stream:
        (skipped,) = csv.DictReader(stream)
    assert skipped["path"].endswith("broken.png")
    assert "<html" in (out / "report.html").read_text(encoding="utf-8")
    assert not list(out.rglob("*part-*"))
    assert not list(out.rglob("*.part"))


def test_labels_that_are_all_off_alike_are_said(finished, tmp_path):
    out, summary = finished
    assert summary["offset_check"] == json.loads((out / "offset.json").read_text())
    assert summary["offset_check"]["warning"] is None
    assert summary["offset_check"]["examined"] > 0
    small_run.write_files(tmp_path / "files", shifts=dict.fromkeys(small_run.SHIFTS, (2, -1)))
    said, options = [], {"epochs": 1, "steps_per_epoch": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        summary = train.run(tmp_path / "run", small_run.settings(tmp_path / "files", **options), announce=said.append)
    np.testing.assert_allclose(summary["offset_check"]["offset"], [2, -1], atol=0.2)
    assert any("Warning: On average the labels lie 2.0 px down" in line for line in said)
    assert "On average the labels lie 2.0 px down" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_every_epoch_has_a_line(finished):
    rows = log_of(finished[0])
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    wanted = {"loss", "val_loss", "val_in_place_mae", "val_in_place_psnr", "drift", "alignment_confidence"}
    for row in rows:
        assert wanted | {"learning_rate", "seconds"} <= set(row)
        assert all(value is not None for value in row.values())
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_the_table_has_a_row_for_every_patch(finished):
    out, summary = finished
    with open(out / "alignment.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["id", "file", "split", "start_row", "start_col", "row", "col", "score", "confidence"]
    assert len(rows) == len({row["id"] for row in rows}) == sum(summary["counts"]["patches"].values())
    assert {row["file"] for row in rows} == set(small_run.SHIFTS)
    for split, count in summary["counts"]["patches"].items():
        assert sum(row["split"] == split for row in rows) == count


def test_the_served_model_is_the_best_one_with_its_preprocessing(finished, rng):
    out, summary = finished
    values = rng.uniform(0, 255, (1, 40, 32, 1)).astype(np.float32)
    served = tf.saved_model.load(str(out / summary["exported"])).signatures["serving_default"]
    prepare = Preprocessing.from_config(json.loads((out / "data.json").read_text())["preprocessing"])
    expected = keras.models.load_model(out / "best.keras", compile=False)(prepare(values))
    np.testing.assert_allclose(served(inputs=tf.constant(values))["prediction"], expected, atol=1e-5)


def test_without_a_cache_the_same_patches_come_from_the_files(finished, tmp_path):
    small_run.write_files(tmp_path)
    out, lines = tmp_path / "run", []
    summary = train.run(out, small_run.settings(tmp_path, cache=False), announce=lines.append)
    assert "No cache: the files are read, prepared and cut again in every epoch." in lines
    assert not list(out.rglob("*.tfrecord"))
    assert summary["counts"] == finished[1]["counts"]
    rows = []
    for folder in (out, finished[0]):
        with open(folder / "alignment.csv", encoding="utf-8") as stream:
            rows.append([row["id"] for row in csv.DictReader(stream)])
    assert rows[0] == rows[1]
    scores = evaluate_run.run(out, set_name="test")
    assert scores["in_place"] == pytest.approx(summary["test"]["in_place"], rel=1e-5)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image") == (finished[0] / "report.html").read_text(encoding="utf-8").count("data:image")
    shutil.rmtree(tmp_path / "inputs")
    run_report.write(out)
    assert 0 < (out / "report.html").read_text(encoding="utf-8").count("data:image") < page.count("data:image")


def test_a_finished_run_is_not_trained_again(finished, files):
    out, summary = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock"}
    assert train.run(out, small_run.settings(files, workers=1)) == summary
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock"}


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from tests.jobs import small_run
    from tfalign.jobs import train

    def track(description, total):
        done = []
        def advance(steps):
            done.append(steps)
            if description == "training" and sum(done) == 10:
                os.kill(os.getpid(), signal.SIGKILL)
        return advance

    train.run(sys.argv[2], small_run.settings(Path(sys.argv[1])), track=track)
"""


def test_a_run_that_was_killed_goes_on_as_if_it_was_not(finished, files, tmp_path, monkeypatch):
    out, lines = tmp_path / "run", []
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(files), str(out)], check=False)
    assert killed.returncode == -signal.SIGKILL
    # In the third epoch; the last checkpoint is then damaged too.
    assert len(log_of(out)) == 2
    last = out / "checkpoints" / "epoch-00002.keras"
    last.write_bytes(last.read_bytes()[:1000])
    (out / "metrics.jsonl").write_text((out / "metrics.jsonl").read_text() + '{"epoch": 2, "lo')
    monkeypatch.setattr(train.run_report, "write", lambda *_, **__: None)
    monkeypatch.setattr(train, "export_serving", lambda *_, **__: None)
    summary = train.run(out, small_run.settings(files), announce=lines.append)
    assert any("epoch-00002.keras is damaged" in line for line in lines)
    assert "Going on after epoch 1 of 3." in lines

    undisturbed, other = finished
    measured = dict.fromkeys(("seconds", "drift", "validation", "test", "alignment_confidence"), 0)
    assert {**summary, **measured} == {**other, **measured}
    for mine, wanted in zip(log_of(out), log_of(undisturbed), strict=True):
        assert mine.keys() == wanted.keys()
        for name in mine.keys() - {"seconds"}:
            assert mine[name] == pytest.approx(wanted[name], rel=1e-4), name
    for name in ("best.keras", "last.keras"):
        for mine, wanted in zip(weights_of(out / name), weights_of(undisturbed / name), strict=True):
            np.testing.assert_allclose(mine, wanted, atol=1e-4)


def test_other_settings_are_refused(finished, files, tmp_path):
    out, _ = finished
    with pytest.raises(ValueError, match=r"other settings.*epochs='4, was 3'.*another folder"):
        train.run(out, small_run.settings(files, epochs=4))
    with pytest.raises(ValueError, match=r"other settings.*loss.max_shift='2, was 3'"):
        train.run(out, small_run.settings(files, loss={"max_shift": 2}))
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="new folder"):
        train.run(tmp_path, small_run.settings(files))
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["mine.txt"]


def test_a_run_without_an_epoch_may_be_begun_anew(files, tmp_path):
    folder = run_folder.RunFolder(tmp_path / "run")
    with folder.claimed(small_run.settings(files)):
        folder.data_file.write_text("{}")
    with folder.claimed(small_run.settings(files)):
        assert folder.data_file.exists()
    with folder.claimed(small_run.settings(files, epochs=9)):
        assert folder.config().epochs == 9
        assert not folder.data_file.exists()


def test_other_files_are_refused(files, tmp_path):
    config, folder = small_run.settings(files), run_folder.RunFolder(tmp_path / "run")
    with folder.claimed(config):
        folder.data_file.write_text(json.dumps({"files": "others"}))
        (folder.checkpoints / "epoch-00001.keras").touch()
        with pytest.raises(ValueError, match=r"begun with.*put the files back"):
            run_data.prepared(config, folder, track=lambda *_: lambda steps: None, announce=lambda text: None)


@pytest.mark.skipif(os.name != "posix", reason="locks are those of POSIX")
def test_one_process_at_a_time(files, tmp_path):
    config = small_run.settings(files)
    first, second = (run_folder.RunFolder(tmp_path / "run") for _ in range(2))
    with first.claimed(config), pytest.raises(ValueError, match="Another process"), second.claimed(config):
        pass
    with second.claimed(config):
        pass


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "must have room.*goes on"),
        (OSError("Unable to write (errno = 28, error message = 'No space left on device')"), "must have room"),
        (tf.errors.ResourceExhaustedError(None, None, "x.tfrecord; No space left on device"), "must have room"),
        (PermissionError(errno.EACCES, "Permission denied"), "can be written"),
        (OSError(errno.EROFS, "Read-only file system"), "can be written"),
    ],
)
def test_a_disk_that_fails_is_said_clearly(tmp_path, error, text):
    with pytest.raises(OSError, match=text) as caught, run_folder.writing(tmp_path / "run"):
        raise error
    assert str(tmp_path / "run") in str(caught.value)
    assert caught.value.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS)


def test_what_is_no_error_of_the_disk_stays_as_it_is(tmp_path):
    with pytest.raises(tf.errors.ResourceExhaustedError), run_folder.writing(tmp_path):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    for error in (FileNotFoundError(errno.ENOENT, "No", "images"), PermissionError(errno.EACCES, "No", "/images")):
        with pytest.raises(type(error), match="images"), run_folder.writing(tmp_path):
            raise error


def test_a_full_disk_leaves_the_last_epoch(finished, files, tmp_path, monkeypatch):
    def save_checkpoint(folder, model, epochs):
        raise OSError(errno.ENOSPC, "No space left on device")

    def end_epoch(callback):
        callback.on_epoch_begin(0)
        callback.on_epoch_end(0, {"loss": 1.0})

    steps = {"epochs": 1, "steps_per_epoch": 1}
    monkeypatch.setattr(run_folder.RunFolder, "save_checkpoint", save_checkpoint)
    monkeypatch.setattr(networks, "compile_for", lambda model, config, metrics: model.compile("sgd", loss="mae"))
    monkeypatch.setattr(train.distributed, "fit", lambda *_, callbacks, **__: end_epoch(callbacks[-1]))
    with pytest.raises(OSError, match="give the same command"):
        train.run(tmp_path / "run", small_run.settings(files, monitor="loss", **steps))
    assert not (tmp_path / "run" / "best.keras").exists()
    assert run_folder.RunFolder(tmp_path / "run").saved_checkpoints() == []


def test_evaluate_tells_in_place_and_registered(finished, files):
    out, summary = finished
    result = evaluate_run.run(out, set_name="validation")
    assert result["patches"] == summary["counts"]["patches"]["validation"]
    for kind in ("in_place", "registered"):
        assert result[kind] == pytest.approx(summary["validation"][kind], rel=1e-4)
    assert json.loads((out / "evaluation-validation.json").read_text()) == result
    # The inputs themselves are what the network should give: labels that lie right.
    result = evaluate_run.run(out, inputs=files / "inputs", labels=files / "inputs")
    assert result["in_place"]["mae"] < summary["validation"]["in_place"]["mae"]
    assert (out / "evaluation-files.csv").read_text().startswith("metric,in_place,registered\nmae,")
    assert not list(out.glob(".evaluation*"))
    with pytest.raises(ValueError, match=r"Labels must come with their inputs.*nowhere"):
        evaluate_run.run(out, labels="nowhere")
    with pytest.raises(ValueError, match="`set` must be one of"):
        evaluate_run.run(out, set_name="all")
    with pytest.raises(ValueError, match="must be the folder of a run"):
        evaluate_run.run(files)


def test_realign_obeys_decisions(finished, files, tmp_path):
    out, _ = finished
    table = tmp_path / "decisions.csv"
    table.write_text("id,file,decision\n1,é,keep\n2,c,accept\n3,c,reject\n4,d,\n", encoding="utf-8")
    repaired = tmp_path / "repaired"
    repaired.mkdir()
    (repaired / "c.png").write_bytes(b"of an earlier call")
    result = realign.run(out, repaired, decisions=table)
    assert result["kept"] == ["é"]
    assert result["rejected"] == ["c"]
    assert sorted(row["name"] for row in result["rows"]) == sorted(set(small_run.SHIFTS) - {"é", "c"})
    assert not (repaired / "c.png").exists()
    assert (repaired / "é.png").read_bytes() == (files / "labels" / "é.png").read_bytes()
    assert (repaired / "a b.png").exists()
    assert "1 kept, 1 rejected, 1 skipped" in realign.in_words(result)
    for text, error in (
        ("name,decision\nnobody,keep\n", "name labels of the run.*nobody"),
        ("name,decision\nc,perhaps\n", "decision of c.*perhaps"),
        ("name,verdict\nc,keep\n", "columns name"),
        ("name;decision\né;keep\n", "decisions.csv.*UTF-8"),
        ("name;decision\nc;keep;1\n", "decisions.csv.*row 1 has not as many cells"),
    ):
        table.write_text(text, encoding="cp1252")
        with pytest.raises(ValueError, match=error):
            realign.run(out, tmp_path / "other", decisions=table)
    table.write_text("name;decision\nc;keep\n;\n", encoding="utf-8")
    assert realign.run(out, repaired, decisions=table)["kept"] == ["c"]
    with pytest.raises(ValueError, match=r"Labels must come with their inputs.*nowhere"):
        realign.run(out, tmp_path / "other", labels="nowhere")
    for place in (files / "labels", files / "inputs" / "below"):
        with pytest.raises(ValueError, match="must not be among"):
            realign.run(out, place)
    assert sorted(path.stem for path in (files / "labels").iterdir()) == sorted([*small_run.SHIFTS, "broken"])


def test_what_was_kept_or_rejected_is_repaired_once_it_is_accepted(finished, files, tmp_path):
    out, _ = finished
    table, repaired = tmp_path / "decisions.csv", tmp_path / "repaired"

    def label_after(decision):
        table.write_text(f"name,decision\na b,{decision}\n", encoding="utf-8")
        realign.run(out, repaired, decisions=table, min_confidence=0.0)
        path = repaired / "a b.png"
        return path.read_bytes() if path.exists() else None

    moved, original = label_after("accept"), (files / "labels" / "a b.png").read_bytes()
    assert moved != original
    assert [label_after(word) for word in ("keep", "accept", "reject", "keep", "accept")] == [
        original,
        moved,
        None,
        original,
        moved,
    ]


MODEL = """
    import keras

    def make(rank, input_channels, output_channels):
        x = inputs = keras.Input((None,) * rank + (input_channels,))
        x = keras.layers.Lambda(lambda values: 1.0 * values)(x)
        x = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(x)
        outputs = keras.layers.Conv2D(output_channels, 3, padding="same", activation="softmax")(x)
        return keras.Model(inputs, outputs)
"""


def test_class_maps_with_code_of_the_users_and_held_out_truth(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    small_run.write_files(tmp_path / "train", classes=True)
    small_run.write_files(tmp_path / "truth", classes=True)
    (tmp_path / "truth" / "labels" / "broken.png").unlink()
    (tmp_path / "mynetwork.py").write_text(textwrap.dedent(MODEL))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    config = small_run.settings(
        tmp_path / "train",
        epochs=1,
        model="mynetwork:make",
        tensorboard=True,
        validation_inputs=tmp_path / "truth" / "inputs",
        validation_labels=tmp_path / "truth" / "labels",
        fractions=[0.8, 0.2, 0.0],
        loss={"base": "sparse_categorical_crossentropy"},
    )
    assert config.runs_code
    summary = train.run(tmp_path / "run", config)
    assert summary["class_map"] is True
    assert summary["output_channels"] == 2
    assert summary["monitor"] == "val_in_place_accuracy"
    assert summary["validation_labels_lie_right"] is True
    assert set(summary["validation"]["in_place"]) == {"accuracy", "iou"}
    assert summary["counts"]["patches"]["validation"] == 0
    events = list((tmp_path / "run" / "tensorboard").glob("events*"))
    tags = {value.tag for event in tf.compat.v1.train.summary_iterator(str(events[0])) for value in event.summary.value}
    assert {"val_in_place_accuracy", "shift/row", "shift/col", "shift/confidence"} <= tags
    assert any("label aligned" in tag for tag in tags)
    # The network holds code: it is not read back unless the user says so.
    with pytest.raises(ValueError, match="without code"):
        evaluate_run.run(tmp_path / "run", set_name="train")
    result = evaluate_run.run(tmp_path / "run", set_name="validation", model="mynetwork:make")
    for kind in ("in_place", "registered"):
        assert result[kind] == pytest.approx(summary["validation"][kind], rel=1e-4)


def test_models_that_do_not_fit_are_refused(files, tmp_path):
    facts = {"rank": 2, "input_channels": 1, "output_channels": 1}
    inputs = keras.Input((None, None, 3))
    keras.Model(inputs, keras.layers.Conv2D(1, 1)(inputs)).save(tmp_path / "colour.keras")
    for model, error in (
        (str(tmp_path / "colour.keras"), "inputs that fit the data"),
        ("no_such_module:make", "function of a module.*no_such_module"),
        ("json:no_such_function", "function of a module"),
        ("json:dumps", "argument"),
    ):
        with pytest.raises((ValueError, TypeError), match=error):
            networks.made(small_run.settings(files, model=model), facts)


def test_a_monitor_that_is_not_measured_is_told_before_training(files, tmp_path, monkeypatch):
    monkeypatch.setattr(train.distributed, "fit", lambda *model, **options: pytest.fail("it trains"))
    with pytest.raises(ValueError, match=r"`monitor` must be a column.*monitor='val_psnr'.*'val_in_place_psnr'"):
        train.run(tmp_path / "run", small_run.settings(files, monitor="val_psnr"))


def test_bad_options_come_up_before_files_are_read(files, tmp_path):
    for options, error in (
        ({"loss": {"max_shift": -1}}, "`max_shift` must be >= 0"),
        ({"model": str(tmp_path / "none.keras")}, "`model` must be a file"),
        ({"fractions": 0.8}, "`fractions` must be three numbers.*0.8"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=error):
            train.run(tmp_path / "run", small_run.settings(files, **options))
    with pytest.raises(ValueError, match="must not be among the inputs"):
        train.run(files / "inputs" / "run", small_run.settings(files))
    assert not (tmp_path / "run").exists()
    assert not (files / "inputs" / "run").exists()


def test_whether_255_is_a_class_must_be_told(monkeypatch):
    """Where most numbers below it are no classes either."""
    config = configs.from_mapping({"inputs": "a", "labels": "b", "loss": {"base": "sparse_categorical_crossentropy"}})

    def classes(values):
        maps = tf.reshape(tf.constant(values, tf.float32), (1, -1, 1))
        monkeypatch.setattr(run_data, "every_batch", lambda cache, name, config: [(maps, maps)])
        return run_data._count_classes(config, None)

    assert classes([0, 2, run_data.NO_CLASS]) == 3
    assert classes(range(256)) == 256
    with pytest.raises(ValueError, match=r"whether 255 is a class.*classes seen=4.*loss.ignore_class"):
        classes([0, 1, 2, 255])
    with pytest.raises(ValueError, match=r"at most 256 classes.*highest class=300"):
        classes([0, 300])


def test_what_could_not_be_measured_is_no_zero(rng):
    """What a patch shows of a narrow region may be smaller than a window of SSIM."""
    config = configs.from_mapping({"inputs": "a", "labels": "b", "loss": {"max_shift": 1}})
    facts = {"value_range": 1.0, "patch_size": 32, "rank": 2, "output_channels": 1}
    model = keras.Sequential([keras.Input((None, None, 1)), keras.layers.Conv2D(1, 1)])
    for rows, names in ((8, {"mae", "psnr"}), (24, {"mae", "psnr", "ssim"})):
        values = rng.random((4, 32, 32, 1)).astype(np.float32)
        labels = np.array(values)
        labels[:, rows:] = np.nan
        batches = tf.data.Dataset.from_tensor_slices((values, labels)).batch(2)
        found = measures.Scorer(model, config, facts)(batches)
        assert set(found["in_place"]) == set(found["registered"]) == names


def test_bases_are_keras_losses(files):
    base = {"class_name": "BinaryCrossentropy", "config": {"from_logits": True}}
    assert networks.loss_of(small_run.settings(files, loss={"base": base})).base.get_config()["from_logits"] is True
    activations = {"mae": None, "binary_crossentropy": "sigmoid", "sparse_categorical_crossentropy": "softmax"}
    for name, activation in activations.items():
        assert networks._activation(small_run.settings(files, loss={"base": name})) == activation
    assert networks._activation(small_run.settings(files, loss={"base": base})) is None
    for bad in (
        {"class_name": "__class__", "config": {"name": "x"}},
        {"class_name": "system"},
        {"class_name": "Huber", "module": "os"},
        {},
    ):
        with pytest.raises(ValueError, match="must be a Keras loss"):
            networks.loss_of(small_run.settings(files, loss={"base": bad}))


def test_nothing_to_train_on_says_why(tmp_path):
    small_run.write_files(tmp_path / "files")
    for path in (tmp_path / "files" / "labels").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"left out.*the file is empty"):
        train.run(tmp_path / "run", small_run.settings(tmp_path / "files"))


def test_labels_are_brought_to_one_range(files):
    def range_of(*labels, **options):
        facts = [(np.dtype(kind), extremes) for kind, extremes in labels]
        return run_data._label_range(small_run.settings(files, **options), facts)

    assert range_of(("uint8", (3, 200))) == [0, 255]
    assert range_of(("uint8", (0, 1)), ("uint8", (0, 1))) is None
    assert range_of(("uint16", (300, 4000)), ("uint16", (200, 4095))) == [0, 4095]
    assert range_of(("float32", (0.0, 17.0))) is None
    assert range_of(("uint8", (0, 7)), loss={"base": "sparse_categorical_crossentropy"}) is None
    assert range_of(("uint8", (0, 7)), label_range=[0, 7]) == [0, 7]


def test_shifts_have_the_sign_of_the_label(files):
    """Where a label lies further down/right of its input the table says so; whole pixels of drift are taken out."""
    from tfalign.jobs import measures

    transforms = geometry.from_translation(tf.constant([[2.0, -1.0], [0.0, 1.0]]))
    columns = measures._parameters(transforms, np.array([1.0, 0.0]), turns=False)
    assert {name: values.tolist() for name, values in columns.items()} == {"row": [1.0, -1.0], "col": [-1.0, 1.0]}
    exact = small_run.settings(files, loss={"max_rotation": 3.0})
    assert measures.offset_of(exact, np.array([0.4, 0.6])).tolist() == [0.4, 0.6]
    assert measures.offset_of(small_run.settings(files), np.array([0.4, 0.6])).tolist() == [0.0, 1.0]
    turned = geometry.make(tf.zeros([1, 2]), rotation=tf.constant([[3.0]]))
    assert measures._parameters(turned, np.zeros(2), turns=True)["rotation"] == pytest.approx(3.0, abs=1e-4)
