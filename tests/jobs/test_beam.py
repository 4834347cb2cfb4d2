import errno
import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
from typer.testing import CliRunner

from tests.export.networks import shifting
from tests.jobs import run_folders
from tfalign import cli
from tfalign.data import BadFileError, pipeline, read_pairs
from tfalign.data.preprocess import Percentiles, Preprocessing, Scale
from tfalign.jobs import beam, files
from tfalign.jobs import config as configs
from tfalign.jobs import predict as predict_job
from tfalign.jobs import realign as realign_job
from tfalign.jobs.beam import archive, runner

SIZE, MAX_SHIFT = 24, 2


def make(folder, count, seed=7):
    """`count` inputs and labels that lie elsewhere, some of them damaged or missing, and a run on them."""
    pytest.importorskip("apache_beam")
    rng, folder = np.random.default_rng(seed), Path(folder)
    field = scipy.ndimage.gaussian_filter(rng.standard_normal((256, 256)), 1.5).astype(np.float32)
    for part in ("inputs/deep", "labels/deep"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        top, left = rng.integers(MAX_SHIFT, 256 - SIZE - MAX_SHIFT, 2)
        row, col = rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, 2)
        name = f"{'deep/' if number % 3 == 0 else ''}{number:05d}.npy"
        np.save(folder / "inputs" / name, field[top : top + SIZE, left : left + SIZE])
        top, left = top - row, left - col
        np.save(folder / "labels" / name, field[top : top + SIZE, left : left + SIZE])
        if number % 20 == 4:  # damaged
            os.truncate(folder / "inputs" / name, 60 + number % 100)
        elif number % 20 == 8:
            (folder / "labels" / name).unlink()
        elif number % 20 == 13:  # of another size
            np.save(folder / "labels" / name, field[:9, :9])
        elif number % 40 == 19:
            (folder / "inputs" / name).unlink()
    (folder / "inputs" / "notes.txt").write_text("no picture")
    run = folder / "run"
    (run / "cache").mkdir(parents=True)
    cutting = pipeline.Cutting(preprocessing=Preprocessing((Scale(high=2.0),)))
    plan = {"settings": cutting.get_config(), "preprocessing": cutting.preprocessing.get_config()}
    files.write_json(run / "cache" / "plan.json", plan)
    files.save_model(shifting((0, 0)), run / "best.keras")
    settings = {"inputs": folder / "inputs", "labels": folder / "labels", "rank": 2, "max_margin": 0}
    config = configs.from_mapping({**settings, "loss": {"max_shift": MAX_SHIFT, "min_confidence": 0.0}})
    (run / "config.yaml").write_text(configs.text_of(config), encoding="utf-8")
    facts = {"rank": 2, "patch_size": SIZE, "input_channels": 1, "output_channels": 1}
    files.write_json(run / "data.json", facts)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make(tmp_path_factory.mktemp("archive"), 40)


@pytest.fixture
def pipelines(monkeypatch):
    """The number of elements of each pipeline that is run."""
    counts, original = [], runner.results

    def results(options, work, make, elements):
        elements = list(elements)
        counts.append(len(elements))
        return original(options, work, make, elements)

    monkeypatch.setattr(runner, "results", results)
    return counts


@pytest.fixture(scope="module")
def plain(small, tmp_path_factory):
    """Of each kind of job, what it gives without Beam, and where that lies."""

    @functools.cache
    def done(kind):
        out = tmp_path_factory.mktemp(kind)
        return without(kind, small, out), out

    return done


def content(folder):
    """Every file with its bytes, the journal's lines in no order."""
    found = {path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*") if path.is_file()}
    return {
        name: sorted(set(path.read_text().splitlines())) if name.endswith(".jsonl") else path.read_bytes()
        for name, path in found.items()
    }


def with_beam(kind, folder, out, **options):
    """A job on the runner that needs nothing but this process."""
    if kind == "predict":
        return beam.predict(folder / "inputs", out, run=folder / "run", **options)
    return beam.realign(folder / "run", out, **options)


def without(kind, folder, out, **options):
    """The same job."""
    if kind == "predict":
        return predict_job.predict(folder / "inputs", out, run=folder / "run", **options)
    return realign_job.run(folder / "run", out, **options)


KILLED = """
import json, os, signal, sys
from pathlib import Path
from tfalign.jobs.beam import archive, runner
kind, folder, out, count = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
note, noted = archive._Worker._note, []
def killed(worker, settings, lines):
    note(worker, settings, lines)
    noted.extend(lines)
    if len(noted) >= count:
        with open(worker._journal, "a") as stream:
            stream.write(json.dumps(lines[0])[:40])
        os.kill(os.getpid(), signal.SIGKILL)
archive._Worker._note = killed
if kind == "predict":
    archive.predict(folder / "inputs", out, run=folder / "run")
else:
    archive.realign(folder / "run", out)
"""


def check_kill(kind, folder, out, expected, count, *, options=""):
    """A process that is killed after `count` files, and the same call again; returns what that gives."""
    place = str(Path(archive.__file__).parents[3])
    command = [sys.executable, "-c", KILLED, kind, str(folder), str(out), str(count)]
    ended = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert ended.returncode == -9, ended.stderr
    suffix = {"predict": "tif", "realign": "npy"}[kind]
    made = {path: path.stat().st_mtime_ns for path in out.rglob(f"*.{suffix}") if ".beam" not in path.parts}
    assert len(made) == count
    result = with_beam(kind, folder, out, options=options)
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert content(out) == content(expected)
    return result


@pytest.mark.parametrize("kind", ["predict", "realign"])
def test_a_kill_loses_and_doubles_nothing(kind, small, plain, tmp_path):
    """And beam gives what the job gives without it."""
    expected, folder = plain(kind)
    assert check_kill(kind, small, tmp_path / "out", folder, 15) == expected
    table = "predictions.csv" if kind == "predict" else "alignment.csv"
    rows, skipped = (run_folders.read_csv(tmp_path / "out" / name) for name in (table, "skipped.csv"))
    # Of 40, 1 has no input and 2 are damaged; of the labels, 2 are missing, 2 of another size and 1 without input.
    assert (len(rows), len(skipped)) == {"predict": (37, 2 + 1), "realign": (33, 2 + 1 + 2 + 1)}[kind]
    assert len(content(tmp_path / "out")) == len(rows) + 3


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["predict", "realign"])
def test_two_thousand_files(kind, tmp_path):
    """Begun in one process, killed, and ended in two."""
    folder = make(tmp_path / "archive", 2000)
    expected = without(kind, folder, tmp_path / "plain")
    options = "--direct_num_workers=2 --direct_running_mode=multi_processing"
    result = check_kill(kind, folder, tmp_path / "out", tmp_path / "plain", 700, options=options)
    assert result == expected


def failing(name, error, monkeypatch):
    """Lets one file fail."""
    original = predict_job._read

    def read(pairs, index):
        if pairs[index].name == name:
            raise error
        return original(pairs, index)

    monkeypatch.setattr(predict_job, "_read", read)


def test_what_no_file_is_to_blame_for_ends_the_pipeline(small, plain, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        failing("00022", OSError(errno.ENOSPC, "No space left on device"), patch)
        with pytest.raises(OSError, match=r"The pipeline must come to its end.*No space left.*the same call goes on"):
            with_beam("predict", small, tmp_path)
    expected, folder = plain("predict")
    assert with_beam("predict", small, tmp_path) == expected
    assert content(tmp_path) == content(folder)


def test_one_that_fails_is_listed_and_tried_again(small, plain, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        failing("00022", RuntimeError("a fault"), patch)
        with_beam("predict", small, tmp_path)
    skipped = {row["path"]: row["reason"] for row in run_folders.read_csv(tmp_path / "skipped.csv")}
    assert skipped[str(small / "inputs" / "00022.npy")] == "RuntimeError: a fault"
    assert len(skipped) == 4
    expected, folder = plain("predict")
    assert with_beam("predict", small, tmp_path) == expected
    assert content(tmp_path) == content(folder)


def test_a_worker_loads_the_network_once(small, tmp_path, monkeypatch):
    loaded, original = [], predict_job._trained
    monkeypatch.setattr(predict_job, "_trained", lambda *given: loaded.append(given) or original(*given))
    with_beam("predict", small, tmp_path)
    assert len(loaded) == 2  # and once to look at the options


def test_both_forms_go_on_with_each_other(small, tmp_path, plain):
    out = tmp_path / "out"
    shutil.copytree(plain("predict")[1], out)
    made = content(out)
    for file, job, other in (("00001.tif", with_beam, without), ("00002.tif", without, with_beam)):
        (out / file).unlink()
        job("predict", small, out)
        assert content(out) == made
        times = {path: path.stat().st_mtime_ns for path in out.glob("*.tif")}
        other("predict", small, out)
        assert {path: path.stat().st_mtime_ns for path in out.glob("*.tif")} == times
    with pytest.raises(ValueError, match="begun with other settings"):
        with_beam("predict", small, out, form="npy")


def test_decisions_are_obeyed(tmp_path):
    folder = make(tmp_path / "archive", 4)
    table = tmp_path / "decisions.csv"
    table.write_text("name,decision\n00001,keep\n00002,reject\n")
    for name in ("out", "plain"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "00002.npy").write_bytes(b"of an earlier call")
    found = with_beam("realign", folder, tmp_path / "out", decisions=table)
    assert found == without("realign", folder, tmp_path / "plain", decisions=table)
    assert content(tmp_path / "out") == content(tmp_path / "plain")
    assert (found["kept"], found["rejected"]) == (["00001"], ["00002"])


def test_strict_names_the_file(tmp_path):
    folder = make(tmp_path / "archive", 6)
    (folder / "inputs" / "notes.txt").unlink()
    with pytest.raises(BadFileError, match=r"00004\.npy"):
        with_beam("predict", folder, tmp_path / "out", strict=True)


@pytest.mark.parametrize(("step", "elements"), [(Scale(high=2.0), [19]), (Percentiles(over="data"), [22, 19])])
def test_the_cache_is_the_same_to_the_byte(step, elements, small, tmp_path, pipelines):
    cutting = pipeline.Cutting(preprocessing=Preprocessing((step,)), patch_size=12, fractions=(0.6, 0.2, 0.2))
    caches = []
    for name, prepare in (("out", beam.prepare), ("plain", functools.partial(pipeline.prepare, workers=0))):
        pairs = read_pairs(small / "inputs", small / "labels", rank=2)
        caches.append(prepare(pairs, tmp_path / name, cutting))
        assert len(pairs.skipped) == 2 + 1 + 2 + 1
    assert content(tmp_path / "out") == content(tmp_path / "plain")
    assert pipelines == elements
    assert list(caches[0].contents["train"]) == list(caches[1].contents["train"])


def test_on_the_command_line(small, plain, tmp_path, pipelines):
    run = ["--run", small / "run", "--beam", "--runner=DirectRunner --direct_num_workers=1"]
    for command, text in (
        (["predict", *run, "--inputs", small / "inputs", "--out", tmp_path / "predict"], "37 predictions in"),
        (["realign", *run, "--out", tmp_path / "realign"], "33 labels repaired"),
    ):
        result = CliRunner().invoke(cli.app, list(map(str, command)))
        assert result.exit_code == 0, result.output
        assert text in result.output
        assert content(tmp_path / command[0]) == content(plain(command[0])[1])
    assert pipelines == [39, 37]  # all inputs that are there, those with a label
    result = CliRunner().invoke(cli.app, list(map(str, [*command, "--per", "dataset"])))
    assert "`per` must be" in str(result.exception)


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    for call in (beam.predict, beam.realign, functools.partial(beam.prepare, cutting=None)):
        with pytest.raises(ImportError, match=r"`apache_beam` must be installed.*pip install 'tfalign\[beam\]'"):
            call(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
