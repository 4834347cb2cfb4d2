"""`tfalign train` on several replicas and with several workers: what one device makes of it."""

import json
import time

import pytest

from tests.jobs import small_run
from tests.multi_worker import workers
from tfalign.jobs import config as configs
from tfalign.jobs import train


@pytest.fixture(scope="module")
def alone(files, tmp_path_factory):
    """The folder of a run on one device."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train.run(out, small_run.settings(files))
    return out


def check_same_log(found, wanted):
    found, wanted = [
        [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] for out in (found, wanted)
    ]
    assert len(found) == len(wanted)
    for row, same in zip(found, wanted):
        same["seconds"] = row["seconds"]
        assert row == pytest.approx(same, rel=1e-3, abs=1e-3)


def test_two_replicas_train_as_one_device(two_replicas, alone, files, tmp_path, monkeypatch):
    monkeypatch.setattr(train.distributed, "strategy", lambda: two_replicas)
    summary = train.run(tmp_path / "run", small_run.settings(files))
    check_same_log(tmp_path / "run", alone)
    assert summary["done"] is True
    wanted = json.loads((alone / "summary.json").read_text())
    assert summary["validation"]["in_place"] == pytest.approx(wanted["validation"]["in_place"], rel=1e-3)
    with pytest.raises(ValueError, match=r"`batch_size` must be a multiple of the replicas.*batch_size=3, replicas=2"):
        train.run(tmp_path / "other", small_run.settings(files, batch_size=3))


@pytest.fixture
def command(files, tmp_path):
    """The program and the words of `tfalign train` on the files."""
    program, settings = tmp_path / "program.py", tmp_path / "settings.yaml"
    program.write_text("from tfalign import cli\n\ncli.main()\n")
    settings.write_text(configs.text_of(small_run.settings(files)))
    return program, "train", "--config", settings, "--out", tmp_path / "run"


def test_a_worker_that_is_killed_ends_all_and_all_go_on(command, alone, tmp_path):
    first, last = (tmp_path / "run" / "checkpoints" / f"epoch-0000{epoch}.keras" for epoch in (1, 3))
    with workers.started(*command) as processes:
        while not first.exists():
            assert [process.poll() for process in processes] == [None, None]
            time.sleep(0.05)
        processes[1].kill()
        said, _ = processes[0].communicate(timeout=workers.TIMEOUT)
    assert processes[0].returncode == 3
    assert "Give each the same command again" in said
    assert not last.exists()
    with workers.started(*command) as processes:
        chief, other = workers.finished(processes)
    assert "Going on after epoch" in chief
    assert "Going on after epoch" not in other
    assert "Best epoch" in other
    check_same_log(tmp_path / "run", alone)
    assert (tmp_path / "run" / "report.html").exists()
    assert not list((tmp_path / "run").rglob("*part*"))


def test_where_the_chief_fails_all_end(command, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("of somebody else")
    with workers.started(*command) as processes:
        chief, other = [process.communicate(timeout=workers.TIMEOUT)[0] for process in processes]
    assert "`out` must be a new folder" in chief
    assert "Another worker failed" in other
    assert [process.returncode for process in processes] == [2, 3]
