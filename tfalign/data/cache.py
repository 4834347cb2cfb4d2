"""The cache: every file read once, by worker processes, into checksummed shards of patches (TFRecord).

A folder holds `plan.json` (settings, fitted preprocessing), shards in jobs of a few files each, `job-00000.json` …
(what a finished job wrote, with checksums) and `manifest.json`. A job's shards are written beside and renamed, its JSON
comes last: what a kill leaves unfinished is made again, what is finished stays. A job belongs to its settings, to the
names, sizes and times of its files and to how these are read and labels drawn or computed: it is made again when one of
them changes, or when a shard is damaged.
"""

import dataclasses
import json
import math
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfalign import _checks, _files
from tfalign.data import fingerprints, split
from tfalign.data.cutting import Cutting
from tfalign.data.examples import Kind, Rules, fit, rules_of, sampled, set_names
from tfalign.data.preprocess import Preprocessing
from tfalign.data.shards import Job, bytes_of, damage, entry_of, job_path, list_job, write_job
from tfalign.data.steps import as_tuples
from tfalign.data.workers import Workers

_FORMAT = 1  # of the shards: another number makes every cache anew
SHARD_BYTES = 2**26
_LEAST_JOBS = 16  # however small the files: shards are what is shuffled first
_OURS = re.compile(rf"(({'|'.join(split.SETS)})-\d{{5}}-\d{{3}}\.tfrecord|job-\d{{5}}\.json)(\.part)?")


@dataclasses.dataclass(frozen=True)
class Cache:
    """Shards of patches, verified.

    Attributes:
        folder: where they lie.
        preprocessing: of inputs, fitted; see `tfalign.data.preprocess.with_preprocessing`.
        shards: for each set the `(path, records)` of its shards, in order.
        contents: for each set the `(records,)` contents of its patches; see `tfalign.data.patches.content`.
        input_shape, label_shape: of all patches, None where sizes vary.
        label_dtype: "float32", or "int32" for class maps.
        skipped: `{"path", "reason"}` of each file left out.
    """

    folder: Path
    preprocessing: Preprocessing
    shards: dict
    contents: dict
    input_shape: tuple
    label_shape: tuple
    label_dtype: str
    skipped: list


def prepare(
    pairs,
    folder,
    cutting,
    *,
    groups=None,
    workers=None,
    strict=False,
    shard_bytes=SHARD_BYTES,
    track=lambda description, total: lambda steps: None,
    announce=lambda text: None,
):
    """Reads every file once and writes its patches, or finds that this is done; see the top of this module.

    Args:
        pairs: a sequence of examples: `pairs.read(i)`, or `pairs[i]` where there is no `read`, gives (name, input,
            label), arrays `(*spatial, channels)`. Files are known by the `path` of `pairs[i].input` and `.label`;
            without these, an example is read and checksummed to tell whether it changed. Inputs without a label have no
            part in it. Axes and channels must be those of most of the first, the middle and the last.
        folder: made if missing; nothing else should be in it.
        cutting: `Cutting`. A preprocessing over the data is fitted to the training set, which reads that once more.
        groups: one key per file, for a split by file, see `tfalign.data.split.by_file`; by default the tiles of a slide
            stay together.
        workers: processes, see `Workers`.
        strict: stop at the first file that cannot be read, or does not fit the others, also where `pairs.strict` says
            so; otherwise it is skipped and listed.
        shard_bytes: about the size of a shard; a job of small files makes one for each set.
        track: `(description, total files) -> function called with the files just done`.
        announce: called with one line of text: the size of the cache before it is written, and damaged shards.

    Returns:
        `Cache`.

    Raises:
        ValueError: no file can be read, or the training set is empty.
        OSError: the disk is too small, or a worker died.
    """
    options = {"groups": groups, "strict": strict, "shard_bytes": shard_bytes, "track": track, "announce": announce}
    with Workers(pairs, count=workers) as pool:
        cache, _, _ = made(pool, folder, cutting, **options)
    return cache


def made(pool, folder, cutting, *, groups, strict, shard_bytes, track, announce, stores=True):
    """What `prepare` does, with processes that are there: `(Cache, fitted Cutting, Rules)`.

    Unless it `stores`, no shards are written: the "shards" are files then, `(number in the pairs, records)`.
    """
    folder, pairs = Path(folder), pool.pairs
    folder.mkdir(parents=True, exist_ok=True)
    strict = strict or getattr(pairs, "strict", False)
    sets = set_names(pairs, cutting, groups)
    prints = [None if name is None else fingerprints.of_example(pairs, index) for index, name in enumerate(sets)]
    plan = _Plan.of(pool, folder, cutting, sets, prints, strict, shard_bytes, track)
    jobs = _jobs(plan, sets, prints, shard_bytes, stores)
    finished = _finished(folder, jobs, strict, announce, stores)
    missing = [job for job in jobs if job.number not in finished]
    if missing and stores:
        _announce_size(folder, plan.bytes, len(missing), jobs, announce)
    advance = track("cache" if stores else "files", sum(name is not None for name in sets))
    advance(sum(len(jobs[number].items) for number in finished))
    arguments = ((str(folder), job, plan.cutting, plan.rules, shard_bytes) for job in missing)
    for job, _ in zip(missing, pool.map(write_job if stores else list_job, arguments)):
        advance(len(job.items))
    _delete_all_but(folder, jobs)
    cache = _collect(folder, jobs, plan.cutting)
    if hasattr(pairs, "note_skipped"):  # the workers have noted it in copies of their own
        for one in cache.skipped:
            pairs.note_skipped(one["path"], one["reason"])
    return cache, plan.cutting, plan.rules


def lying_in(folder):
    """`(Cache, fitted Cutting, Rules)` as they lie in a folder, not compared with their files; None where none do."""
    folder = Path(folder)
    numbers = sorted(int(path.stem.removeprefix("job-")) for path in folder.glob("job-*.json"))
    entries = [entry_of(folder, number) for number in numbers]
    for entry in entries:
        entry["shards"] = [one for one in entry["shards"] if "file" in one or (folder / one["name"]).exists()]
    if not any(entry["shards"] for entry in entries):
        return None
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    cutting = Cutting.from_config({**plan["settings"], "preprocessing": plan["preprocessing"]})
    return _cache(folder, entries, cutting), cutting, Rules(False, Kind(*as_tuples(plan["kind"])))


class _Plan(NamedTuple):
    """How the cache is made: the fitted cutting, what is skipped, files per job, and bytes that it will take."""

    cutting: Cutting
    rules: Rules
    files_per_job: int
    bytes: int

    @classmethod
    def of(cls, pool, folder, cutting, sets, prints, strict, shard_bytes, track):
        """The plan kept in `plan.json`, or a new one."""
        path = folder / "plan.json"
        key = fingerprints.digest(_FORMAT, cutting.get_config(), sets, prints, shard_bytes)
        if path.exists():
            plan = json.loads(path.read_text(encoding="utf-8"))
            if plan["key"] == key:
                fitted = dataclasses.replace(cutting, preprocessing=Preprocessing.from_config(plan["preprocessing"]))
                rules = Rules(strict, Kind(*as_tuples(plan["kind"])))
                return cls(fitted, rules, plan["files_per_job"], plan["bytes"])
        rules = rules_of(pool, sets, strict=strict)
        cutting = fit(pool, cutting, sets, rules=rules, track=track)
        items = [index for index, name in enumerate(sets) if name is not None]
        sizes = sampled(pool, bytes_of, items, cutting, rules)
        per_file = max(1, math.ceil(sum(sizes) / len(sizes)))
        files_per_job = max(1, min(shard_bytes // per_file, len(items) // _LEAST_JOBS))
        plan = {
            "key": key,
            "preprocessing": cutting.preprocessing.get_config(),
            "kind": rules.kind,
            "files_per_job": files_per_job,
            "bytes": per_file * len(items),
            "settings": cutting.get_config(),
        }
        _files.write_text(path, json.dumps(plan, indent=2) + "\n")
        return cls(cutting, rules, files_per_job, plan["bytes"])


def _jobs(plan, sets, prints, shard_bytes, stores):
    """All jobs in order."""
    settings = [_FORMAT, plan.cutting.get_config(), plan.rules.kind[:2], shard_bytes, *([] if stores else ["listed"])]
    items = [(index, name) for index, name in enumerate(sets) if name is not None]
    jobs = []
    for number, first in enumerate(range(0, len(items), plan.files_per_job)):
        taken = tuple(items[first : first + plan.files_per_job])
        jobs.append(Job(number, taken, fingerprints.digest(settings, taken, [prints[index] for index, _ in taken])))
    return jobs


def _finished(folder, jobs, strict, announce, stores):
    """Numbers of the jobs whose shards are there, up to date and whole."""
    candidates = []
    for job in jobs:
        entry = entry_of(folder, job.number)
        if entry is not None and entry["key"] == job.key and not (strict and entry["skipped"]):
            candidates.append((job.number, entry))
    if not stores:
        return {number for number, _ in candidates}
    finished = set()
    # Threads: to check is to read and to sum up, and no process need be started for it.
    with ThreadPoolExecutor() as threads:
        found = threads.map(lambda candidate: damage(folder, candidate[1]), candidates)
        for (number, _), damaged in zip(candidates, found):
            for name in damaged:
                announce(f"Shard {folder / name} is damaged; its files are read again.")
            if not damaged:
                finished.add(number)
    return finished


def _announce_size(folder, needed, missing, jobs, announce):
    """Says how large the cache will be, and refuses a disk that is too small."""
    share = needed * missing / len(jobs)
    free = shutil.disk_usage(folder).free
    announce(f"Cache: about {_in_units(share)} to write in {folder}, {_in_units(free)} are free.")
    if share > free:
        received = {"needed": _in_units(share), "free": _in_units(free), "folder": str(folder)}
        remedy = "Do without: `tfalign train --no-cache`, or `tfalign.data.pipeline.stream`."
        raise OSError(_checks.message("The cache must fit on the disk.", received, remedy))


def _delete_all_but(folder, jobs):
    """Deletes shards and job files that are of no job."""
    wanted = set()
    for job in jobs:
        wanted.add(job_path(folder, job.number).name)
        wanted.update(shard.get("name") for shard in entry_of(folder, job.number)["shards"])
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in wanted:
            path.unlink()


def _collect(folder, jobs, cutting):
    """The `Cache` of all finished jobs; writes `manifest.json`."""
    entries = [entry_of(folder, job.number) for job in jobs]
    shards = [shard for entry in entries for shard in entry["shards"]]
    cache = _cache(folder, entries, cutting)
    if not cache.shards["train"]:
        received = {"examples": sum(len(job.items) for job in jobs), "skipped": cache.skipped[:3]}
        raise ValueError(_checks.message("The training set must not be empty.", received))
    manifest = {
        "records": {name: sum(records for _, records in of_set) for name, of_set in cache.shards.items()},
        "bytes": sum(shard.get("bytes", 0) for shard in shards),
        "shards": [_without_contents(shard) for shard in shards],
        "skipped": cache.skipped,
        "settings": cutting.get_config(),
    }
    _files.write_text(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    return cache


def _cache(folder, entries, cutting):
    """The `Cache` of what jobs wrote."""
    shapes = [shape for entry in entries for shape in entry["shapes"]]
    of_sets = {
        name: [shard for entry in entries for shard in entry["shards"] if shard["set"] == name] for name in split.SETS
    }

    def place(shard):
        return shard["file"] if "file" in shard else str(folder / shard["name"])

    return Cache(
        folder=folder,
        preprocessing=cutting.preprocessing,
        shards={name: [(place(one), one["records"]) for one in of_set] for name, of_set in of_sets.items()},
        contents={name: np.concatenate([[], *(one["contents"] for one in of_set)]) for name, of_set in of_sets.items()},
        input_shape=common_shape([shape["input"] for shape in shapes]),
        label_shape=common_shape([shape["label"] for shape in shapes]),
        label_dtype="float32" if cutting.ignore_class is None else "int32",
        skipped=[one for entry in entries for one in entry["skipped"]],
    )


def common_shape(shapes):
    """The shape that all have, None where sizes vary."""
    return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes))


def _without_contents(shard):
    return {name: value for name, value in shard.items() if name != "contents"}


def _in_units(count):
    """Bytes for people."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
