"""`predict`, `realign` and the cache of patches over a large archive: files as elements of an Apache Beam pipeline.

The listing, the journal and the tables are made where the call is made; a worker does one file at a time by what the
jobs without Beam do. It works in a folder of its own below `out/.beam`, renames what it made into `out`, and then notes
it in a journal of its own: a file that a runner gives out twice is written twice under one name and counts once. The
journals of the workers become the journal of the job, so that a call goes on with what is not done, with Beam or
without. Folders must lie under the same path everywhere.
"""

import functools
import json
import os
import shutil
import tempfile
import threading
import uuid
from pathlib import Path
from typing import NamedTuple

from tfalign.data import cache, fingerprints, label_files, realign_files, repair, tables
from tfalign.data.formats import MAX_PIXELS, BadFileError
from tfalign.data.journal import Journal
from tfalign.data.readers import read_pairs
from tfalign.jobs import predict as predict_job
from tfalign.jobs import realign as realign_job
from tfalign.jobs.beam import runner
from tfalign.jobs.run_folder import RunFolder, writing

_OURS = ".beam"  # folder among the results while a pipeline runs


def predict(
    inputs,
    out,
    *,
    options="",
    run=None,
    model=None,
    form="auto",
    classes="auto",
    value_range=(0.0, 1.0),
    image_range=(0.0, 1.0),
    tile=None,
    tile_overlap=None,
    max_pixels=MAX_PIXELS,
    strict=False,
    track=lambda description, total: lambda steps: None,
):
    """`tfalign.jobs.predict.predict` on a runner of Beam: the same files, tables and journal.

    A file that fails for a reason of its own, also one that would end the job without Beam, is listed in `skipped.csv`
    and tried again by the next call. A full disk or a missing package ends the pipeline.

    Args:
        options: of the pipeline and its runner, as on a command line: "--runner=DirectRunner --direct_num_workers=4".
        strict: raises for the first file that cannot be used, once all others are done.
        inputs, out, run, model, form, classes, value_range, image_range, tile, tile_overlap, max_pixels, track: see
            `tfalign.jobs.predict.predict`.

    Returns:
        `tfalign.jobs.predict.Result`.

    Raises:
        ValueError, BadFileError: see there.
        OSError: the pipeline failed; what is done is kept.
        ImportError: the extra `beam` is missing.
    """
    options = runner.parsed(options)
    out = predict_job.outside(out, inputs)
    job = _Predictions(
        run=run and str(run), model=model and str(model), form=form, classes=classes, value_range=value_range,
        image_range=image_range, tile=tile, tile_overlap=tile_overlap,
    )  # fmt: skip
    do, rank = job.loaded()
    pairs = read_pairs(inputs, rank=rank, max_pixels=max_pixels, strict=strict)
    rows = _done(job, do, pairs, out, options, track("predicting", len(pairs)))
    return predict_job.finished(pairs, [row for row in rows if row is not None], out)


def realign(
    folder,
    out,
    *,
    options="",
    inputs=None,
    labels=None,
    decisions=None,
    model=None,
    min_confidence=None,
    track=lambda description, total: lambda steps: None,
    announce=lambda text: None,
):
    """`tfalign.jobs.realign.run` on a runner of Beam, one shift per file: the same files, tables and journal.

    What becomes of files that fail: see `predict`.

    Args:
        options: see `predict`.
        folder, out, inputs, labels, decisions, model, min_confidence, track, announce: see `tfalign.jobs.realign.run`.
            The module of `model` must be known to the workers.

    Returns:
        See `tfalign.jobs.realign.run`.

    Raises:
        ValueError, BadFileError: see there.
        OSError, ImportError: see `predict`.
    """
    options, run, out = runner.parsed(options), RunFolder.existing(folder), Path(out)
    pairs, decided = realign_job.found(run, out, inputs, labels, decisions)
    accepted = realign_job.accepted(pairs, decided)
    job = _Repairs(str(folder), model, min_confidence)
    do, _ = job.loaded()
    with writing(out):
        found = _done(job, do, accepted, out, options, track("repairing", len(accepted)))
        entries = [(pair, entry) for pair, entry in zip(accepted, found) if entry is not None]
        label_files.write_shared(entries, out)
        rows = [entry["row"] for _, entry in entries]
        tables.write(out / "alignment.csv", rows)
        return realign_job.finished(pairs, decided, rows, out, announce)


def prepare(
    pairs,
    folder,
    cutting,
    *,
    options="",
    groups=None,
    strict=False,
    shard_bytes=cache.SHARD_BYTES,
    track=lambda description, total: lambda steps: None,
    announce=lambda text: None,
):
    """`tfalign.data.pipeline.prepare` on a runner of Beam: the same cache, byte for byte.

    An element is a job of a few files that make a shard; a preprocessing over the data is fitted on the runner too.

    Args:
        pairs: as there; every worker gets a copy.
        options: see `predict`.
        folder, cutting, groups, strict, shard_bytes, track, announce: see `tfalign.data.pipeline.prepare`.

    Returns:
        `tfalign.data.pipeline.Cache`.

    Raises:
        ValueError: see there.
        OSError, ImportError: see `predict`.
    """
    work = Path(folder) / _OURS
    made, _, _ = cache.made(
        runner.Pool(pairs, work, runner.parsed(options)), folder, cutting,
        groups=groups, strict=strict, shard_bytes=shard_bytes, track=track, announce=announce,
    )  # fmt: skip
    shutil.rmtree(work, ignore_errors=True)
    return made


class _Predictions(NamedTuple):
    """What `predict` does to a file: the options of the job."""

    run: str | None
    model: str | None
    form: str
    classes: str
    value_range: tuple
    image_range: tuple
    tile: int | tuple | None
    tile_overlap: int | tuple | None

    @property
    def journal(self):
        """Its name."""
        return predict_job.JOURNAL

    def file(self, pair, entry):
        """The file written, as seen from the folder."""
        return entry["file"]

    def loaded(self):
        """`(function of pairs and a folder that predicts them there, spatial axes)`."""
        work = predict_job.Work(**self._asdict())

        def do(pairs, folder):
            journal = Journal(folder / self.journal, work.settings)
            for index in range(len(pairs)):
                work.one(pairs, index, folder, journal)

        return do, work.rank


class _Repairs(NamedTuple):
    """What `realign` does to a file: the run and the options of the job."""

    folder: str
    model: str | None
    min_confidence: float | None

    @property
    def journal(self):
        """Its name."""
        return repair.JOURNAL

    def file(self, pair, entry):
        """The file written, as seen from the folder; None for positions of many, which are written in the end."""
        return None if label_files.is_shared(pair) else entry["row"]["file"]

    def loaded(self):
        """`(function of pairs and a folder that repairs them there, spatial axes)`."""
        run = RunFolder.existing(self.folder)
        settings = realign_job.settings_of(run, model=self.model, min_confidence=self.min_confidence)
        return lambda pairs, folder: realign_files(pairs, folder=folder, **settings), run.facts()["rank"]


def _done(job, do, pairs, out, options, advance):
    """The entry of each pair in the journal once all that was missing is done; None where it is skipped."""
    work = out / _OURS
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as place:
        do(pairs[:0], Path(place))
        settings, _ = _lines(Path(place) / job.journal)
    journal = Journal(out / job.journal, settings)
    _gather(work, journal)  # what a call left that was killed
    states = [fingerprints.digest(fingerprints.of_example(pairs, index)) for index in range(len(pairs))]

    def entry(index):
        return journal.entry(pairs[index].name, states[index])

    def is_done(index):
        file = None if entry(index) is None else job.file(pairs[index], entry(index))
        return entry(index) is not None and (file is None or (out / file).exists())

    missing = [index for index in range(len(pairs)) if not is_done(index)]
    advance(len(pairs) - len(missing))
    alone = (_alone(pairs, index) for index in missing)
    skipped = runner.results(options, work, functools.partial(_Worker, job, out), alone) if missing else []
    _gather(work, journal)
    shutil.rmtree(work)
    for path, reason in (one for of_file in skipped for one in of_file):
        if pairs.strict:
            raise BadFileError(path, reason)
        pairs.note_skipped(path, reason)
    advance(len(missing))
    return [entry(index) if is_done(index) else None for index in range(len(pairs))]


def _alone(pairs, index):
    """One pair as `Pairs` that do not carry what others skipped."""
    one = pairs[index : index + 1]
    one.skipped = []
    return one


class _Worker:
    """In a worker: does one file at a time. One for all threads of a process."""

    def __init__(self, job, out):
        self._job, self._out, self._work = job, out, out / _OURS
        self._do, _ = job.loaded()
        self._journal = self._work / f"{uuid.uuid4().hex}.jsonl"
        self._lock = threading.Lock()

    def __call__(self, one):
        """The `(path, reason)` of what is skipped, a list; the rest is in the folder and in the journal."""
        with tempfile.TemporaryDirectory(dir=self._work) as place:
            try:
                self._do(one, Path(place))
            except BadFileError as error:
                return [(error.path, error.reason)]
            except (OSError, ImportError):  # of the machine, not of the file
                raise
            except Exception as error:
                return [(str(one[0].input.path), f"{type(error).__name__}: {error}")]
            settings, lines = _lines(Path(place) / self._job.journal)
            for line in lines:
                file = self._job.file(one[0], line["entry"])
                if file is not None:
                    (self._out / file).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(Path(place) / file, self._out / file)
            self._note(settings, lines)
        return [tuple(skipped) for skipped in one.skipped]

    def _note(self, settings, lines):
        with self._lock, open(self._journal, "a", encoding="utf-8") as stream:
            known = [settings] if stream.tell() == 0 else []
            stream.write("".join(json.dumps(line) + "\n" for line in [*known, *lines]))


def _lines(path):
    """The settings of a journal and its entries; a kill may leave half a line, or none."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    settings, *entries = map(json.loads, lines or ["null"])
    return settings, entries


def _gather(work, journal):
    """Puts what the workers noted into the journal of the job."""
    for path in sorted(work.glob("*.jsonl")):
        for line in _lines(path)[1]:
            journal.add(line["name"], line["state"], line["entry"])
        path.unlink()
