import base64
import csv
import html.parser
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.jobs import run_folders
from tfalign import cli
from tfalign.data import tables
from tfalign.jobs import files, misalignment, run_figures, run_pictures, run_reading, run_report


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with names that must be escaped."""
    run = run_folders.make(tmp_path_factory.mktemp("report"), ["a b", "c", run_folders.EVIL, "é"], size=64)
    run_folders.finish(run)
    run_report.write(run)
    return run


@pytest.fixture
def small(run, tmp_path, monkeypatch):
    """A copy of the run whose page is quickly made."""
    monkeypatch.setattr(run_report, "_CARDS", 2)
    monkeypatch.setattr(run_pictures, "_HELD_OUT", 1)
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    return tmp_path / "run"


class Page(html.parser.HTMLParser):
    """The elements and attributes of a page; complains where tags do not close."""

    VOID = ("meta", "img", "input", "br", "link", "circle", "line")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.scripts, self.text = [], [], {}, ""
        self.feed(text)
        assert not self.open, f"{self.open} are not closed"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[dict(self.elements[-1][1]).get("id", "")] = data
        elif self.open and self.open[-1] != "style":
            self.text += data

    def all(self, tag, **wanted):
        return [
            own for name, own in self.elements
            if name == tag and all(value in (own.get(key.rstrip("_")) or "").split() for key, value in wanted.items())
        ]  # fmt: skip


@pytest.fixture(scope="module")
def page(run):
    return Page((run / "report.html").read_text(encoding="utf-8"))


def picture(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))


def test_it_needs_no_network_and_no_other_file(run, page):
    text = (run / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href|action|data|poster|srcset)=\"(?!data:image/png;base64,|#)", text)
    assert not re.findall(r"url\(|@import|fetch\(|XMLHttpRequest|<link|<iframe", text)
    assert len(page.all("meta", content="'none';")) == 1
    for image in page.all("img"):
        assert image["alt"]
        assert picture(image["src"]).ndim == 3


def test_links_lead_somewhere(page):
    targets = [own["href"].removeprefix("#") for own in page.all("a")]
    ids = [own["id"] for _, own in page.elements if "id" in own]
    assert len(targets) >= 6
    assert len(ids) == len(set(ids))
    assert set(targets) <= set(ids)


def test_everything_is_escaped(run, page):
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert run_folders.EVIL in page.text  # of the config, a file and a skipped file
    assert not [own for _, own in page.elements if any(key.startswith("on") for key in own)]
    assert page.scripts["worst-labels"].count("<") == 0


def test_the_summary_in_words(page):
    assert re.search(
        r"Labels were off by \d\.\d px on average; 0 % could not be told; the network's offset is 0\.02 px\.", page.text
    )
    assert "1 file was left out" in page.text


def test_the_worst_labels_come_with_their_data(run, page):
    rows = json.loads(page.scripts["worst-labels"])
    table = run_folders.read_csv(run / "worst_labels.csv")
    assert rows == table
    assert list(table[0])[:3] == ["id", "file", "split"]
    assert list(table[0])[-3:] == ["confidence", "why", "decision"]
    assert {row["decision"] for row in table} == {""}
    assert {row["file"] for row in table} == {"a b", "c", run_folders.EVIL, "é"}
    cards = page.all("article", class_="card")
    assert len(cards) == min(12, len(table))
    assert len(page.all("input", type="range")) == len(cards)
    assert len(page.all("img", class_="before")) == len(page.all("img", class_="after")) == len(cards)


def test_after_is_what_before_is_not(page):
    """Where prediction and label agree a pixel is gray."""

    def colourfulness(url):
        codes = picture(url)[8:-8, 8:-8].astype(float)
        return np.ptp(codes, axis=-1).mean()

    before, after = (
        [colourfulness(own["src"]) for own in page.all("img", class_=name)] for name in ("before", "after")
    )
    assert max(after) < 25
    assert np.mean(before) > 3 * np.mean(after)


def test_what_a_person_decided_stays(small):
    folder = small
    rows = run_folders.read_csv(folder / "worst_labels.csv")
    rows[1]["decision"] = "Reject"
    with open(folder / "worst_labels.csv", "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    result = CliRunner().invoke(cli.app, ["report", "--run", str(folder)])
    assert result.exit_code == 0, result.output
    assert "report.html" in result.output
    again = {row["file"]: row["decision"] for row in run_folders.read_csv(folder / "worst_labels.csv")}
    assert again == {row["file"]: "reject" if row["file"] == rows[1]["file"] else "" for row in rows}
    found = Page((folder / "report.html").read_text(encoding="utf-8"))
    checked = [own["value"] for own in found.all("input", type="radio") if "checked" in own]
    assert checked.count("reject") == [row["file"] for row in rows[:2]].count(rows[1]["file"]) > 0


def test_a_decision_is_not_lost_because_its_label_is_not_found(small):
    """A spreadsheet makes 6 of 000006."""
    table = small / "worst_labels.csv"
    before = table.read_text(encoding="utf-8")
    rows = run_folders.read_csv(table)
    changed = "file,decision\n6,reject\n" + f"{rows[0]['file']},keep\n"
    table.write_text(changed, encoding="utf-8")
    with pytest.raises(ValueError, match=r"Decisions must name labels of the run.*unknown=\['6'\].*spreadsheet"):
        run_report.write(small)
    assert table.read_text(encoding="utf-8") == changed
    table.write_text(before, encoding="utf-8")


def test_a_run_that_is_going_on(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("epochs: 3\n")
    (folder / "metrics.jsonl").write_text('{"epoch": 0, "loss": 1.0}\n')
    run_report.write(folder)
    found = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert "No label has been laid on its prediction yet" in found.text
    assert "not come to its end" in found.text
    assert not found.all("article")
    with pytest.raises(ValueError, match="`run` must be the folder of a run"):
        run_report.write(tmp_path)


def test_displacements_of_labels_that_are_turned(small):
    folder = small
    rows = run_folders.read_csv(folder / "alignment.csv")
    more = {"rotation": 2.5, "shear": 0.0, "scale_row": 1.02, "scale_col": 1.0}
    tables.write(folder / "alignment.csv", [{**row, **more} for row in rows])
    run_report.write(folder)
    found = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert len([own for own in found.all("img") if own["alt"] == "Displacements"]) == len(found.all("article"))


def label(file="a", *, shift=(0.0, 0.0), confidence=1.0, start=(0, 0), split="train", **more):
    row = {"id": f"{file}@{start[0]},{start[1]}", "file": file, "split": split}
    row |= dict(zip(("start_row", "start_col", "row", "col", "confidence"), (*start, *shift, confidence)))
    return {name: str(value) for name, value in (row | more).items()}


def test_worst_labels_are_ranked():
    rows = [
        label("far", shift=(3, 4)),
        label("right"),
        label("blank corner", confidence=0.1),
        label("blank corner", start=(0, 32), shift=(0, 1)),
        *(label(f"blank {number}", confidence=0.0) for number in range(2)),
        label("unknown", confidence=0.2),
        label("at the bound", shift=(0, 8)),
        *(label("bent", shift=(0, side), start=(0, place)) for place, side in ((0, -2), (32, 0), (64, 2))),
    ]
    labels = misalignment.labels_of(rows)
    found = misalignment.worst(labels, max_shift=8, decisions={})
    whys = {one.label.file: one.why for one in reversed(found)}
    assert list(reversed(whys)) == [
        "unknown",
        "at the bound",
        "bent",
        "far",
        "blank corner",
        "right",
        "blank 0",
        "blank 1",
    ]
    assert whys["blank 0"] == "nothing to align by"
    assert whys["unknown"] == "could not be told"
    assert whys["at the bound"] == "at the bound of the search"
    assert whys["bent"] == "disagrees with its file"
    assert whys["far"] == "far off"
    assert whys["right"] == "nothing wrong"
    assert all(one.label.is_sure for one in found if one.label.file == "blank corner")


def test_labels_of_another_scene_are_told_by_how_little_they_fit(rng):
    """However sure their shift; a fifth of them does not hide the others, and equal ones are none."""
    scores = rng.normal(0.9, 0.02, 100)
    scores[:20] = rng.uniform(-0.2, 0.7, 20)
    unknown = label("unknown", confidence=0.1, score=0.1)
    labels = misalignment.labels_of([*(label(f"{n:03}", score=score) for n, score in enumerate(scores)), unknown])
    found = misalignment.worst(labels, max_shift=8, decisions={})
    assert found[0].why == "could not be told"
    assert [one.why for one in found[1:21]] == ["unlike its prediction"] * 20
    assert [int(one.label.file) for one in found[1:21]] == np.argsort(scores)[:20].tolist()
    assert all(one.why == "nothing wrong" for one in found[21:])
    (said,) = misalignment.remarks(labels, [], max_shift=8, drift=None)
    assert said.startswith("20 % of the labels fit far worse than the others")
    equal = misalignment.labels_of([label(f"{n}", score=0.9999 if n else 0.9998) for n in range(9)])
    assert {one.why for one in misalignment.worst(equal, max_shift=8, decisions={})} == {"nothing wrong"}


def test_only_so_many_are_listed_but_none_that_was_decided_on():
    rows = [label(f"{number:03}", shift=(number / 20, 0)) for number in range(120)]
    labels = misalignment.labels_of(rows)
    found = misalignment.worst(labels, max_shift=8, decisions={"000": "keep"})
    assert len(found) == 51
    assert found[0].label.file == "119"
    assert (found[-1].label.file, found[-1].decision) == ("000", "keep")


def test_words():
    rows = [label("a", shift=(3, 4)), label("b", shift=(0, 3.4)), label("c", confidence=0.1), label("d", shift=(0, 8))]
    labels = misalignment.labels_of(rows)
    words = misalignment.lead(labels, np.array([0.03, 0.04]))
    assert words == "Labels were off by 5.5 px on average; 25 % could not be told; the network's offset is 0.05 px."
    said = misalignment.remarks(labels, misalignment.files_of(labels), max_shift=8, drift=np.array([0.0, 0.8]))
    assert "33 % of the labels lie at the bound" in said[0]
    assert "could not be told" in said[1]
    assert "sits beside its inputs" in said[2]
    assert misalignment.percent(0.001) == "less than 1 %"
    assert misalignment.remarks(labels[:2], [], max_shift=8, drift=np.zeros(2)) == []


def test_a_transform_of_a_row():
    row = label(shift=(1.0, 2.0)) | {"rotation": "90", "shear": "0", "scale_row": "1", "scale_col": "1"}
    (found,) = misalignment.labels_of([row])
    assert found.turns
    np.testing.assert_allclose(found.transform()[0], [[0, -1, 1], [1, 0, 2], [0, 0, 1]], atol=1e-6)
    (plain,) = misalignment.labels_of([label(shift=(1.0, 2.0))])
    assert not plain.turns
    np.testing.assert_array_equal(plain.transform()[0], [[1, 0, 1], [0, 1, 2], [0, 0, 1]])


def test_signals_and_volumes_are_drawn(rng):
    for rank in (1, 3):
        shape = (33,) * rank
        label_values = rng.random((*shape, 2)).astype(np.float32)
        trained = run_pictures.Trained(lambda x, training: x, None, None, {"max_shift": 2})
        axes = misalignment.AXES[rank]
        row = {"id": "x", "file": "x", "split": "train", "confidence": "1"}
        row |= {f"start_{axis}": "0" for axis in axes} | dict.fromkeys(axes, "0")
        (one,) = misalignment.labels_of([row])
        urls = run_pictures._of_label(trained, {"input": label_values, "label": label_values}, one)
        assert urls["before"] == urls["after"]
        assert picture(urls["after"]).ndim == 3
    assert picture(run_figures.score_map(rng.random((5, 5, 5)), np.array([1.0, 0.0, 2.0]))).ndim == 3
    assert picture(run_figures.score_map(rng.random(5), np.array([1.0]))).ndim == 3


@pytest.mark.parametrize("rank", [1, 3])
def test_the_page_of_signals_and_of_volumes(rank, tmp_path, monkeypatch):
    monkeypatch.setattr(run_report, "_CARDS", 1)
    monkeypatch.setattr(run_pictures, "_HELD_OUT", 1)
    folder = run_folders.make_of_arrays(tmp_path, rank)
    run_folders.finish(folder, max_shift=2, epochs=0)
    run_report.write(folder)
    found = Page((folder / "report.html").read_text(encoding="utf-8"))
    mean = float(re.search(r"Labels were off by (\d\.\d) px on average", found.text)[1])
    assert mean == pytest.approx(rank**0.5, abs=0.3)
    assert len(found.all("article")) == 1
    assert "Held-out predictions" in found.text
    assert "score of every shift" in found.text
    assert "px later" in found.text


def test_class_maps_are_drawn(rng):
    model = lambda x, training: np.concatenate([1 - x, x], axis=-1)  # noqa: E731
    trained = run_pictures.Trained(model, None, -1, {"max_shift": 2, "similarity": "ncc"})
    truth = (rng.random((32, 32, 1)) > 0.5).astype(np.int32)
    moved = np.roll(truth, 2, axis=0)
    (one,) = misalignment.labels_of([label(shift=(2, 0))])
    urls = run_pictures._of_label(trained, {"input": truth.astype(np.float32), "label": moved}, one)
    codes = picture(urls["after"])[:-2].astype(int)
    np.testing.assert_array_equal(codes[..., 0], codes[..., 1])
    assert (picture(urls["after"])[-2:] == 31).all()  # beyond the label


def test_the_log_after_a_kill(run):
    """Half a last line is left out."""
    assert len(run_reading.records(run).epochs) == 6
    text = (run / "metrics.jsonl").read_text()
    assert text.endswith('{"epo')
    assert files.read_json(run / "summary.json")["epochs"] == 6
