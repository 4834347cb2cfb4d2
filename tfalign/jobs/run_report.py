"""The page of a run: what was wrong with the labels, what the network makes of it, and what to look at."""

import math
from pathlib import Path

import numpy as np

from tfalign.jobs import figures, files, misalignment, run_figures, run_pictures, run_reading

WORST = "worst_labels.csv"
_CARDS = 12
_MAPS = 24  # files
_SETS = ("validation", "test")


def write(run_folder, *, track=lambda description, total: lambda steps: None):
    """Writes `report.html`, a page that needs no other file and no network, and `worst_labels.csv`.

    What is not there yet (of a run that is going on) is left out of the page. Decisions that a person has written into
    `worst_labels.csv` stay.

    Args:
        run_folder: of `tfalign train`.
        track: `(description, total) -> function called with the steps just done`.

    Returns:
        The path of the page.

    Raises:
        ValueError: it is no folder of a run.
    """
    folder = run_reading.existing(run_folder)
    records = run_reading.records(folder)
    advance = track("report", 4)
    labels = misalignment.labels_of(records.labels)
    max_shift = misalignment.bound_of(records.summary)
    decisions = misalignment.read_decisions(folder / WORST)
    misalignment.check_decisions(folder / WORST, decisions, labels)
    worst = misalignment.worst(labels, max_shift=max_shift, decisions=decisions)
    misalignment.write_worst(folder / WORST, worst)
    trained = run_pictures.Trained.of_run(folder, records.summary)
    advance(1)
    cards = _cards(trained, worst[:_CARDS])
    advance(1)
    with figures.styled():
        drawn = {
            "distribution": run_figures.distribution(labels, max_shift=max_shift),
            "curves": run_figures.curves(records.epochs),
        }
        set_name, held_out = (None, []) if trained is None else run_pictures.held_out(trained, labels)
    advance(1)
    page = figures.page(
        "run.html.jinja",
        name=folder.resolve().name,
        lead=misalignment.lead(labels, _drift(records.summary)),
        tiles=_tiles(records, labels),
        remarks=_remarks(records, labels, max_shift),
        maps=_maps(labels, max_shift),
        cards=cards,
        worst=[{**one.label.row, "why": one.why, "decision": one.decision} for one in worst],
        search=_search(trained, labels),
        held_out=held_out,
        held_out_set=set_name,
        scores=_scores(records.summary),
        figures=drawn,
        records=records,
    )
    files.write_text(folder / "report.html", page)
    advance(1)
    return Path(folder) / "report.html"


def _cards(trained, worst):
    """What is shown of each label to look at."""
    if trained is None or not worst:
        return []
    by_id = {(one.label.row["id"], one.label.split): one for one in worst}
    cards = []
    with figures.styled():
        for label, urls in run_pictures.of_labels(trained, [one.label for one in worst]):
            one = by_id[label.row["id"], label.split]
            cards.append({"label": label, "why": one.why, "decision": one.decision, "urls": urls, "off": _off(label)})
    return cards


def _off(label):
    """A shift in words."""
    axes = misalignment.AXES[len(label.shift)]
    parts = []
    for axis, value in zip(axes, label.shift):
        down, up = {"row": ("down", "up"), "col": ("right", "left")}.get(axis, ("later", "earlier"))
        parts.append(f"{abs(value):.1f} px {down if value >= 0 else up}")
    return ", ".join(parts)


def _search(trained, labels):
    """The search for one label that is far off and well known."""
    sure = [label for label in labels if label.confidence > 0.9] or [label for label in labels if label.is_sure]
    if trained is None or not sure:
        return {}
    reach = max(label.length for label in sure)
    chosen = min(sure, key=lambda label: abs(label.length - 0.7 * reach))
    with figures.styled():
        return run_pictures.score_map(trained, chosen)


def _tiles(records, labels):
    """The few numbers at the top: `(number, what it is)`."""
    summary, tiles = records.summary, []
    sure = [label.length for label in labels if label.is_sure]
    if sure:
        tiles.append((misalignment.pixels(float(np.mean(sure))), "mean misalignment of the labels"))
        tiles.append((misalignment.pixels(float(np.max(sure))), "the farthest"))
    if labels:
        tiles.append(
            (misalignment.percent(1 - len(sure) / len(labels)), f"of {len(labels)} label patches could not be told")
        )
    if _drift(summary) is not None:
        tiles.append(
            (misalignment.pixels(float(np.linalg.norm(_drift(summary)))), "offset of the network from its inputs")
        )
    if summary.get("best_epoch") is not None:
        tiles.append((str(summary["best_epoch"] + 1), f"best epoch of {summary.get('epochs', len(records.epochs))}"))
    return tiles


def _remarks(records, labels, max_shift):
    summary = records.summary
    said = misalignment.remarks(labels, misalignment.files_of(labels), max_shift=max_shift, drift=_drift(summary))
    offset = (summary.get("offset_check") or {}).get("warning")
    if offset:
        said.append(offset)
    if records.skipped:
        count = len(records.skipped)
        said.append(f"{'1 file was' if count == 1 else f'{count} files were'} left out; they are named at the end.")
    if summary.get("stopped") == "diverged":
        said.append("The loss became no number: train again with a lower --learning-rate.")
    if not summary.get("drift"):
        said.append("The training has not come to its end: this page shows what is there.")
    return said


def _drift(summary):
    drift = summary.get("drift")
    if drift is None:
        return None
    values = np.atleast_1d(np.asarray(drift, float))
    return values if np.all(np.isfinite(values)) else None


def _scores(summary):
    """Rows of the table of metrics: `(name, [in place, registered of each set])`, and the sets."""
    sets = [name for name in _SETS if isinstance(summary.get(name), dict)]
    names = list(dict.fromkeys(metric for name in sets for kind in summary[name].values() for metric in kind))
    rows = [
        (metric, [summary[name].get(kind, {}).get(metric) for name in sets for kind in ("in_place", "registered")])
        for metric in names
    ]
    return {"sets": sets, "rows": rows, "lie_right": bool(summary.get("validation_labels_lie_right"))}


def _maps(labels, max_shift):
    """For each file, worst first, what is drawn of it: an arrow for each of its patches where it lies."""
    found = misalignment.files_of(labels)
    shown = []
    for file in found[:_MAPS]:
        shown.append({"file": file, "arrows": _arrows(file, max_shift), "off": _length(file)})
    return {"shown": shown, "files": len(found)}


def _length(file):
    return "could not be told" if file.shift is None else misalignment.pixels(file.length)


def _arrows(file, max_shift):
    """Lines in a square of 100, `(x1, y1, x2, y2, sure)`; the longest shift is about as long as patches are apart."""
    starts = np.array([label.start[-2:] for label in file.labels], float)
    if starts.shape[1] == 1:
        starts = np.concatenate([np.zeros_like(starts), starts], axis=1)
    low, reach = starts.min(axis=0), float(np.ptp(starts, axis=0).max())
    places = 50.0 + np.zeros_like(starts) if reach == 0 else 22 + 56 * (starts - low) / reach
    apart = 56 / max(1.0, math.sqrt(len(file.labels)) - 1) if reach else 56.0
    longest = max_shift or max([label.length for label in file.labels] + [1.0])
    scale = min(0.9 * apart, 40.0 if reach == 0 else 26.0) / max(float(longest), 1e-6)
    lines = []
    for (y, x), label in zip(places.tolist(), file.labels):
        shift = label.shift[-2:] if len(label.shift) > 1 else np.array([label.shift[0], 0.0])
        dy, dx = (scale * shift).tolist()
        lines.append((round(x, 1), round(y, 1), round(x + dx, 1), round(y + dy, 1), label.is_sure))
    return lines
