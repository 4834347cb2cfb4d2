"""Scores of a trained run on one of its sets, or on other files: in place and registered."""

import csv
import io
import tempfile

from tfalign import _checks, _files
from tfalign.data import split
from tfalign.data.cutting import Cutting
from tfalign.jobs import files, measures, networks, run_data, run_reading
from tfalign.jobs.run_folder import RunFolder, writing


def run(
    folder,
    *,
    set_name="test",
    inputs=None,
    labels=None,
    model=None,
    track=lambda description, total: lambda steps: None,
    announce=lambda text: None,
):
    """Scores the best network of a run, and writes `evaluation-<set>.json` and `.csv` into its folder.

    Args:
        folder: the run folder.
        set_name: "train", "validation" or "test" of the run; its validation files where it had some.
        inputs, labels: instead, files whose labels are known to lie right, prepared and cut as those of the run; the
            results are called `evaluation-files`.
        model: "module:function" of a run that was trained with one; other networks are read without running code.
        track, announce: see `tfalign.jobs.train.run`.

    Returns:
        `{"set", "patches", "in_place": {name: value}, "registered": {name: value}, "drift"}`.

    Raises:
        ValueError: no run, or nothing to evaluate.
    """
    run = RunFolder.existing(folder)
    config, facts = run.config(), run.facts()
    _checks.choice("set", set_name, split.SETS)
    score = measures.Scorer(networks.trained(run, config, facts, model=model), config, facts)
    run_data.check_files_given(inputs, labels)
    if inputs is not None:
        set_name = "files"
    elif set_name == "validation":
        inputs, labels = config.validation_inputs, config.validation_labels
    if inputs is None:
        cache = run_data.reopened(run)
        batches = None if cache is None else run_data.every_batch(cache, set_name, config)
        if batches is None:
            remedy = "Give another --set, or --inputs and --labels."
            raise ValueError(_checks.message("The set must have patches.", {"set": set_name}, remedy))
        count = run_data.patch_counts(cache)[set_name]
        result = score(batches, advance=track("patches", count))
    else:
        with tempfile.TemporaryDirectory(prefix=".evaluation-", dir=run.path) as beside:
            cache = _cache(config, run, inputs, labels, beside, track, announce)
            count = run_data.patch_counts(cache)["train"]
            batches = run_data.every_batch(cache, "train", config)
            result = score(batches, advance=track("patches", count))
    result = {"set": set_name, "patches": count, **result, "drift": run.summary().get("drift")}
    with writing(run.path):
        files.write_json(run.path / f"evaluation-{set_name}.json", result)
        _files.write_text(run.path / f"evaluation-{set_name}.csv", _table(result))
    return result


def _cache(config, run, inputs, labels, folder, track, announce):
    """Patches of other files, cut and prepared as those of the run."""
    pairs = run_data.found(config, inputs, labels)
    known = run_reading.cutting(run.path).get_config()
    whole = Cutting.from_config({**known, "fractions": (1.0, 0.0, 0.0), "split_by": "file"})
    options = {"workers": run_data.workers(config, pairs), "strict": config.strict, "track": track}
    cache = run_data.cut(config, pairs, folder, whole, **options)
    for one in pairs.skipped:
        announce(f"Left out: {one.path}: {one.reason}")
    return cache


def _table(result):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["metric", "in_place", "registered"])
    writer.writerows([name, value, result["registered"][name]] for name, value in result["in_place"].items())
    return text.getvalue()
