"""Repaired labels of a trained run: where each lay, and moved back; what a person decided is obeyed."""

import shutil
from collections import Counter
from pathlib import Path

from tfalign import _checks
from tfalign._label_search import least_confidence
from tfalign.data import label_files, realign_files, repair, sources, writers
from tfalign.data.formats import BadFileError
from tfalign.data.journal import Journal
from tfalign.jobs import measures, misalignment, networks, run_data, run_reading
from tfalign.jobs.run_folder import RunFolder, check_outside, writing


def run(
    folder,
    out,
    *,
    inputs=None,
    labels=None,
    per="file",
    decisions=None,
    model=None,
    min_confidence=None,
    track=lambda description, total: lambda steps: None,
    announce=lambda text: None,
):
    """Lays the labels of files on what the best network of a run predicts, see `tfalign.data.realign_files`.

    What is searched is what the loss of the run searched; the network's own drift is taken out.

    Args:
        folder: the run folder.
        out: where to: a label for each file in the format that it came in, and `alignment.csv`. Not among the inputs or
            labels.
        inputs, labels: other files than those of the run.
        per: "file", or "dataset" for one shift of all.
        decisions: a table (.csv, .parquet) with the columns `name` or `file`, and `decision`: "accept" (or empty)
            writes the repaired label, "keep" the label as it is, "reject" none. Of several rows of a file the strictest
            counts. Files that are not named are repaired.
        model: "module:function" of a run that was trained with one.
        min_confidence: a label known less well stays where it is; by default as in training, or 0.5 for "auto".
        track, announce: see `tfalign.jobs.train.run`.

    Returns:
        `{"rows": those of the table, "kept": names, "rejected": names, "skipped": (path, reason) of files left out}`.

    Raises:
        ValueError: no run, an option out of range, or decisions that name no file.
    """
    run, out = RunFolder.existing(folder), Path(out)
    pairs, decided = found(run, out, inputs, labels, decisions)
    settings = settings_of(run, model=model, min_confidence=min_confidence)
    with writing(out):
        rows = realign_files(accepted(pairs, decided), folder=out, per=per, track=track, **settings)
        return finished(pairs, decided, rows, out, announce)


def found(run, out, inputs, labels, decisions):
    """`(pairs that have a label, decision by name)`; of the run where there are no `inputs`."""
    config = run.config()
    run_data.check_files_given(inputs, labels)
    if inputs is None:
        inputs, labels = config.inputs, config.labels
    check_outside(out, inputs=inputs, labels=labels)
    pairs = run_data.found(config, inputs, labels).select(lambda pair: pair.label is not None)
    return pairs, {} if decisions is None else read_decisions(decisions, [pair.name for pair in pairs])


def accepted(pairs, decided):
    """Those whose labels are repaired."""
    return pairs.select(lambda pair: decided.get(pair.name, "accept") == "accept")


def settings_of(run, *, model, min_confidence):
    """Keywords of `tfalign.data.realign_files` that a run settles, its network among them."""
    config, facts = run.config(), run.facts()
    drift = run.summary().get("drift") or [0.0] * facts["rank"]
    return {
        "model": networks.trained(run, config, facts, model=model),
        "preprocessing": run_reading.cutting(run.path).preprocessing,
        "subpixel": config.loss["subpixel"],
        "offset": measures.offset_of(config, drift),
        "min_confidence": least_confidence(config.loss["min_confidence"]) if min_confidence is None else min_confidence,
        "ignore_class": config.loss["ignore_class"],
        "patch_size": _size(facts["patch_size"]),
        **measures.search_of(config, scale_free=True),
    }


def finished(pairs, decided, rows, out, announce):
    """Does what was decided about the others, and lists what is skipped; what `run` returns."""
    kept = [pair.name for pair in pairs if decided.get(pair.name) == "keep"]
    rejected = [pair.name for pair in pairs if decided.get(pair.name) == "reject"]
    Journal.forget(out / repair.JOURNAL, {*kept, *rejected})  # they may be accepted again
    for index, pair in enumerate(pairs):
        if pair.name in kept:
            _keep(pairs, index, out)
        elif pair.name in rejected:
            _target(pair, out).unlink(missing_ok=True)
    pairs.write_skipped(out)
    for one in pairs.skipped:
        announce(f"Left out: {one.path}: {one.reason}")
    return {"rows": rows, "kept": kept, "rejected": rejected, "skipped": list(pairs.skipped)}


def read_decisions(path, names):
    """`{name: "accept" | "keep" | "reject"}` of a table; the strictest of several rows of a file.

    Raises:
        ValueError: no table, no such columns, a word that is no decision, or names that no label has.
    """
    rows = misalignment.decision_rows(path)
    column = next((name for name in ("name", "file") if rows and name in rows[0]), None)
    if rows and (column is None or "decision" not in rows[0]):
        received = {"decisions": str(path), "columns": list(rows[0])}
        raise ValueError(_checks.message("`decisions` must have the columns name (or file) and decision.", received))
    found: dict[str, str] = {}
    for row in rows:
        word = str(row["decision"] or "accept").strip().lower() or "accept"
        _checks.choice(f"decision of {row[column]}", word, misalignment.DECISIONS)
        name = row[column]
        found[name] = max(found.get(name, "accept"), word, key=misalignment.DECISIONS.index)
    unknown = [name for name in found if name not in set(names)]
    if unknown:
        received = {"decisions": str(path), "unknown": unknown[:3], "labels": list(names)[:3]}
        raise ValueError(_checks.message("`decisions` must name labels of the run.", received))
    return found


def in_words(result):
    """One line of what was done."""
    rows = result["rows"]
    axes = [axis for axis in measures.AXES[3] + measures.AXES[1] if rows and axis in rows[0]]
    moved = sum(any(row[axis] for axis in axes) for row in rows)
    counts = Counter(kept=len(result["kept"]), rejected=len(result["rejected"]), skipped=len(result["skipped"]))
    others = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    return f"{len(rows)} labels repaired, {moved} of them shifted" + (f"; {others}" if others else "") + "."


def _keep(pairs, index, out):
    """The label as it came."""
    pair = pairs[index]
    target = _target(pair, out)
    target.parent.mkdir(parents=True, exist_ok=True)
    source = pair.label
    if isinstance(source, sources.File) or label_files.has_marks(source):
        beside = target.with_name(f"part-{target.name}")
        shutil.copyfile(source.path, beside)
        beside.replace(target)
        return
    try:
        label = pairs.read(index).label
    except BadFileError:
        if pairs.strict:
            raise
        return
    writers.write_like(None, out / pair.name, label)


def _target(pair, out):
    """The file of a label in the folder of repaired ones."""
    if label_files.is_shared(pair):
        remedy = "Decide on labels with a file of their own."
        raise ValueError(
            _checks.message("A decision must be about a file, not a part of one.", {"name": pair.name}, remedy)
        )
    return out / label_files.target(pair)


def _size(size):
    return tuple(size) if isinstance(size, list) else size
