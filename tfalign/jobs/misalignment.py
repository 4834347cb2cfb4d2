"""What the table of labels of a run says: how far labels were off, file by file, and which to look at."""

import csv
import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.stats

from tfalign import _checks, _files
from tfalign.data import misalign, tables

AXES = {1: ("sample",), 2: ("row", "col"), 3: ("plane", "row", "col")}
SURE = 0.5  # confidence, below which a shift could not be told
DECISIONS = ("accept", "keep", "reject")  # the last is the strictest
_LISTED = 50  # worst labels
_SHOWN = 12
_SPREAD = 1.5  # px: patches of one label that lie further apart disagree
_UNLIKE = (5.0, 0.05)  # robust standard deviations, and share of it, under the median: a score unlike the others
_TURNS = ("rotation", "shear", "scale")


class Label(NamedTuple):
    """One row: the label of a patch.

    Attributes:
        row: dict of texts, as it stands in the table.
        file, split: of the patch.
        start: its first index per axis.
        shift: `(d,)` pixels, how far down/right of its input the label lies.
        confidence: of the shift, in [0, 1].
        score: similarity of label and prediction where the label lies best; NaN in tables without it.
    """

    row: dict
    file: str
    split: str
    start: tuple
    shift: np.ndarray
    confidence: float
    score: float = math.nan

    @property
    def length(self):
        """Pixels."""
        return float(np.linalg.norm(self.shift))

    @property
    def is_sure(self):
        """Whether its shift could be told."""
        return self.confidence >= SURE

    @property
    def bending(self):
        """RMS pixels, of what no transform describes; None where no warp network was trained."""
        return float(self.row["bending"]) if "bending" in self.row else None

    @property
    def turns(self):
        """Whether it is more than shifted."""
        return any(float(self.row[name]) != rest for name, rest in _rests(self.row))

    def transform(self):
        """`(1, d+1, d+1)`, input -> label coordinates."""
        axes = AXES[len(self.shift)]
        more = {}
        for kind in _TURNS:
            columns = [name for name in (kind, *(f"{kind}_{axis}" for axis in axes)) if name in self.row]
            if columns:
                more[kind] = np.array([[float(self.row[name]) for name in columns]])
        return misalign.make_transforms(self.shift[np.newaxis], **more)


class File(NamedTuple):
    """All patches of one label.

    Attributes:
        name: of the file.
        labels: its `Label`s.
        shift: `(d,)` median of those that could be told; None without any.
        spread: root mean square distance of these from it, pixels.
        unsure: share of patches that could not be told.
    """

    name: str
    labels: list
    shift: np.ndarray | None
    spread: float
    unsure: float

    @property
    def length(self):
        """Pixels; 0 where nothing could be told."""
        return 0.0 if self.shift is None else float(np.linalg.norm(self.shift))


class Worst(NamedTuple):
    """A label to look at, why, and what a person has decided ("" for nothing yet)."""

    label: Label
    why: str
    decision: str


def labels_of(rows):
    """The `Label`s of the rows of `alignment.csv`."""
    return [_label(row) for row in rows]


def files_of(labels):
    """A `File` for each, the farthest off first, after those that could not be told."""
    by_name: dict[str, list] = {}
    for label in labels:
        by_name.setdefault(label.file, []).append(label)
    found = []
    for name, of_file in by_name.items():
        sure = np.array([label.shift for label in of_file if label.is_sure])
        shift = np.median(sure, axis=0) if len(sure) else None
        spread = float(np.sqrt(np.mean(np.sum((sure - shift) ** 2, axis=-1)))) if len(sure) else 0.0
        found.append(File(name, of_file, shift, spread, 1.0 - len(sure) / len(of_file)))
    return sorted(found, key=lambda file: (file.shift is not None, -file.length, file.name))


def worst(labels, *, max_shift, decisions):
    """The labels to look at first, at most 50: one for each file, or more where there are few files.

    A patch that could not be told counts only where no patch of its file could: a blank corner is no reason to look.
    Labels that show nothing, as blank ones, come last.

    Args:
        labels: `Label`s.
        max_shift: the bound that was searched, one number or one per axis, or None.
        decisions: `{file: decision}` of a person.

    Returns:
        A list of `Worst`, with every file that was decided on.
    """
    files, least = files_of(labels), _least_score(labels)
    each = max(1, _SHOWN // max(1, len(files)))
    ranked = []
    for file in files:
        candidates = [label for label in file.labels if label.is_sure] or file.labels
        found = [(*_badness(label, file, max_shift, least), label) for label in candidates]
        found.sort(key=lambda one: (one[0], one[2].confidence), reverse=True)
        ranked += found[:each]
    ranked.sort(key=lambda one: one[0], reverse=True)
    kept = [one for number, one in enumerate(ranked) if number < _LISTED or one[2].file in decisions]
    return [Worst(label, why, decisions.get(label.file, "")) for _, why, label in kept]


def write_worst(path, found):
    """Writes `worst_labels.csv`: the rows of the table, why to look, and the column `decision`."""
    text = io.StringIO()
    names = [*(found[0].label.row if found else ("id", "file")), "why", "decision"]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for one in found:
        writer.writerow({**one.label.row, "why": one.why, "decision": one.decision})
    _files.write_text(path, text.getvalue())


def decision_rows(path):
    """The rows of a table of decisions.

    Raises:
        ValueError: it cannot be read.
    """
    tables.check_suffix("decisions", path)
    try:
        return tables.rows(path)
    except (ValueError, csv.Error) as error:
        received = {"decisions": str(path)}
        raise ValueError(
            _checks.message("`decisions` must be a table with headings.", received, f"Here {error}.")
        ) from error


def read_decisions(path):
    """`{file: decision}`, the strictest of each, of a table that a person may have filled in; without empty ones."""
    if not Path(path).exists():
        return {}
    decided: dict[str, str] = {}
    for row in decision_rows(path):
        word = str(row.get("decision") or "").strip().lower()
        if word and row.get("file"):
            decided[row["file"]] = max(decided.get(row["file"], ""), word, key=("", *DECISIONS, word).index)
    return decided


def check_decisions(path, decisions, labels):
    """Refuses decisions that no label can be found for: in a new table they would be lost."""
    names = {label.file for label in labels}
    unknown = [name for name in decisions if name not in names]
    if unknown:
        received = {"table": str(path), "unknown": unknown[:3], "labels": sorted(names)[:3]}
        remedy = "A spreadsheet may have changed the names; correct the column `file`, or take the rows out."
        raise ValueError(_checks.message("Decisions must name labels of the run.", received, remedy))


def lead(labels, drift):
    """The summary in one sentence."""
    if not labels:
        return "No label has been laid on its prediction yet."
    lengths = np.array([label.length for label in labels if label.is_sure])
    unsure = 1.0 - len(lengths) / len(labels)
    parts = [f"labels were off by {pixels(lengths.mean())} on average"] if len(lengths) else []
    parts.append(f"{percent(unsure)} could not be told")
    if drift is not None:
        parts.append(f"the network's offset is {pixels(np.linalg.norm(drift))}")
    sentence = "; ".join(parts) + "."
    return sentence[0].upper() + sentence[1:]


def remarks(labels, files, *, max_shift, drift):
    """What a person should know or do, in sentences."""
    said = []
    sure = [label for label in labels if label.is_sure]
    at_bound = sum(_is_at_bound(label, max_shift) for label in sure)
    if sure and at_bound > 0.02 * len(sure):
        said.append(
            f"{percent(at_bound / len(sure))} of the labels lie at the bound of the search: their true place may lie "
            "beyond. Train again with a larger --max-shift."
        )
    least = _least_score(labels)
    unlike = sum(label.score < least for label in sure)
    if unlike:
        said.append(
            f"{percent(unlike / len(sure))} of the labels fit far worse than the others, wherever they are laid: they "
            "may belong to another input, or be damaged. Look at them below."
        )
    if labels and len(sure) < 0.8 * len(labels):
        said.append(
            "Many labels could not be told. Blank patches are no harm; otherwise the network may need more epochs, or "
            "the inputs may not show what the labels show."
        )
    if drift is not None and np.linalg.norm(drift) > 0.5:
        said.append(
            "The network sits beside its inputs. `tfalign realign` takes its offset out of repaired labels, and "
            "`tfalign export --offset` out of predictions."
        )
    apart = [file for file in files if file.spread > _SPREAD]
    if apart:
        said.append(
            f"In {len(apart)} of {len(files)} files the patches disagree by more than {_SPREAD} px: such labels are "
            "turned, scaled or bent (--max-rotation, --max-scale, --deformable), or made of parts that moved by "
            "themselves."
        )
    bent = [label.bending for label in sure if label.bending is not None]
    if bent:
        said.append(
            f"Beyond shifts{' and turns' if any(label.turns for label in sure) else ''} labels are bent by "
            f"{pixels(float(np.median(bent)))} (median). `tfalign realign` moves them back, but does not unbend them."
        )
    return said


def pixels(value):
    """A length for people."""
    return f"{value:.1f} px" if value >= 0.95 else f"{value:.2f} px"


def percent(share):
    """A share for people."""
    value = 100 * share
    return "less than 1 %" if 0 < value < 1 else f"{value:.0f} %"


def _label(row):
    axes = next(axes for rank, axes in sorted(AXES.items(), reverse=True) if all(axis in row for axis in axes))
    return Label(
        row=row,
        file=row["file"],
        split=row["split"],
        start=tuple(int(row[f"start_{axis}"]) for axis in axes),
        shift=np.array([float(row[axis]) for axis in axes]),
        confidence=float(row["confidence"]),
        score=float(row.get("score") or math.nan),
    )


def _rests(row):
    """The columns of more than a shift, with the value that does nothing."""
    return [(name, 1.0 if name.startswith("scale") else 0.0) for name in row if name.split("_")[0] in _TURNS]


def _least_score(labels):
    """The score under which a label that could be told fits far worse than the others do."""
    scores = [label.score for label in labels if label.is_sure and math.isfinite(label.score)]
    if not scores:
        return -math.inf
    median, deviation = np.median(scores), scipy.stats.median_abs_deviation(scores, scale="normal")
    return float(median - max(_UNLIKE[0] * deviation, _UNLIKE[1] * abs(median)))


def _badness(label, file, max_shift, least_score):
    """`(rank, why)`, higher is worse."""
    if label.confidence <= 0.0:
        return -1.0, "nothing to align by"
    if not label.is_sure:
        return 4.0 - label.confidence, "could not be told"
    if label.score < least_score:
        return 3.0 - 1.0 / (1.0 + least_score - label.score), "unlike its prediction"
    if _is_at_bound(label, max_shift):
        return 2.0, "at the bound of the search"
    apart = float(np.linalg.norm(label.shift - file.shift))
    if file.spread > _SPREAD and apart > _SPREAD:
        return 1.0 + apart / (1.0 + apart), "disagrees with its file"
    return label.length / (1.0 + label.length), "far off" if label.length >= 1.0 else "nothing wrong"


def _is_at_bound(label, max_shift):
    if max_shift is None:
        return False
    bounds = np.broadcast_to(np.asarray(max_shift, float), label.shift.shape)
    return any(bound > 0 and abs(shift) > bound - 0.5 for shift, bound in zip(label.shift, bounds))


def bound_of(summary):
    """The shift that was searched, one number or one per axis, as one number; None where it is not known."""
    bound = (summary.get("bounds") or {}).get("max_shift")
    values = bound if isinstance(bound, list) else [bound]
    known = [value for value in values if isinstance(value, (int, float)) and math.isfinite(value)]
    return max(known) if known else None
