"""The cache: every file read once, by worker processes, into checksummed shards of patches (TFRecord).

A folder holds `plan.json` (settings, fitted preprocessing), shards in jobs of a few files each, `job-00000.json` …
(what a finished job wrote, with checksums) and `manifest.json`. A job's shards are written beside and renamed, its JSON
comes last: what a kill leaves unfinished is made again, what is finished stays. A job belongs to its settings and to
the names, sizes and times of its files: it is made again when one of them changes, or when a shard is damaged.
"""

import dataclasses
import hashlib
import json
import math
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tfalign import _checks, _files
from tfalign.data import split
from tfalign.data.examples import UNLABELLED, fingerprint, fit, set_names
from tfalign.data.preprocess import Preprocessing
from tfalign.data.shards import Job, bytes_of, damage, entry_of, job_path, write_job
from tfalign.data.workers import Workers

_FORMAT = 1  # of the shards: another number makes every cache anew
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
    shard_bytes=2**26,
    track=lambda description, total: lambda steps: None,
    announce=lambda text: None,
):
    """Reads every file once and writes its patches, or finds that this is done; see the top of this module.

    Args:
        pairs: a sequence of examples: `pairs.read(i)`, or `pairs[i]` where there is no `read`, gives (name, input,
            label), arrays `(*spatial, channels)`. Files are known by the `path` of `pairs[i].input` and `.label`;
            without these, an example is read and checksummed to tell whether it changed.
        folder: made if missing; nothing else should be in it.
        cutting: `Cutting`. A preprocessing over the data is fitted to the training set, which reads that once more.
        groups: one key per file, for a split by file; see `tfalign.data.split.by_file`.
        workers: processes, see `Workers`.
        strict: stop at the first file that cannot be read; otherwise it is skipped and listed.
        shard_bytes: about the size of a shard; a job of small files makes one for each set.
        track: `(description, total files) -> function called with the files just done`.
        announce: called with one line of text: the size of the cache before it is written, and damaged shards.

    Returns:
        `Cache`.

    Raises:
        ValueError: no file can be read, examples do not fit together, or the training set is empty.
        OSError: the disk is too small, or a worker died.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sets = set_names(len(pairs), cutting, groups)
    prints = [fingerprint(pairs, index) for index in range(len(pairs))]
    with Workers(pairs, count=workers) as pool:
        cutting, per_job, needed = _plan(pool, folder, cutting, sets, prints, strict, shard_bytes, track)
        jobs = _jobs(cutting, sets, prints, per_job, shard_bytes)
        finished = _finished(folder, jobs, strict, announce)
        missing = [job for job in jobs if job.number not in finished]
        if missing:
            _announce_size(folder, needed, len(missing), jobs, announce)
        advance = track("cache", len(pairs))
        advance(sum(len(jobs[number].items) for number in finished))
        arguments = ((str(folder), job, cutting, strict, shard_bytes) for job in missing)
        for job, _ in zip(missing, pool.map(write_job, arguments)):
            advance(len(job.items))
    _delete_all_but(folder, jobs)
    cache = _collect(folder, jobs, cutting)
    if hasattr(pairs, "note_skipped"):  # the workers have noted it in copies of their own
        for one in cache.skipped:
            if one["reason"] != UNLABELLED:
                pairs.note_skipped(one["path"], one["reason"])
    return cache


def _plan(pool, folder, cutting, sets, prints, strict, shard_bytes, track):
    """The fitted cutting, files per job, and bytes that the cache will take; kept in `plan.json`."""
    path = folder / "plan.json"
    key = _key(cutting.get_config(), sets, prints, shard_bytes)
    if path.exists():
        plan = json.loads(path.read_text(encoding="utf-8"))
        if plan["key"] == key:
            fitted = Preprocessing.from_config(plan["preprocessing"])
            return dataclasses.replace(cutting, preprocessing=fitted), plan["files_per_job"], plan["bytes"]
    cutting = fit(pool, cutting, sets, strict=strict, track=track)
    per_file = _bytes_per_file(pool, cutting, len(sets), strict)
    files_per_job = max(1, min(shard_bytes // per_file, len(sets) // _LEAST_JOBS))
    plan = {
        "key": key,
        "preprocessing": cutting.preprocessing.get_config(),
        "files_per_job": files_per_job,
        "bytes": per_file * len(sets),
        "settings": cutting.get_config(),
    }
    _files.write_text(path, json.dumps(plan, indent=2) + "\n")
    return cutting, files_per_job, plan["bytes"]


def _bytes_per_file(pool, cutting, count, strict):
    """The mean over the first, the middle and the last file; where these are skipped, the first that is not."""
    sample = sorted({0, count // 2, count - 1})
    for indices in (sample, *([index] for index in range(count) if index not in sample)):
        sizes = pool.map(bytes_of, [(index, cutting, strict) for index in indices])
        known = [size for size in sizes if size is not None]
        if known:
            return max(1, math.ceil(sum(known) / len(known)))
    received = {"examples": count}
    raise ValueError(_checks.message("`pairs` must hold an example that can be read and has a label.", received))


def _jobs(cutting, sets, prints, per_job, shard_bytes):
    """All jobs in order."""
    config = cutting.get_config()
    items = list(enumerate(sets))
    jobs = []
    for number, first in enumerate(range(0, len(items), per_job)):
        taken = tuple(items[first : first + per_job])
        jobs.append(Job(number, taken, _key(config, taken, prints[first : first + per_job], shard_bytes)))
    return jobs


def _finished(folder, jobs, strict, announce):
    """Numbers of the jobs whose shards are there, up to date and whole."""
    candidates = []
    for job in jobs:
        entry = entry_of(folder, job.number)
        if entry is not None and entry["key"] == job.key and not (strict and entry["skipped"]):
            candidates.append((job.number, entry))
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
        raise OSError(_checks.message("The cache must fit on the disk.", received, "Stream instead: --no-cache."))


def _delete_all_but(folder, jobs):
    """Deletes shards and job files that are of no job."""
    wanted = set()
    for job in jobs:
        wanted.add(job_path(folder, job.number).name)
        wanted.update(shard["name"] for shard in entry_of(folder, job.number)["shards"])
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in wanted:
            path.unlink()


def _collect(folder, jobs, cutting):
    """The `Cache` of all finished jobs; writes `manifest.json`."""
    entries = [entry_of(folder, job.number) for job in jobs]
    shards = [shard for entry in entries for shard in entry["shards"]]
    skipped = [item for entry in entries for item in entry["skipped"]]
    by_set = {name: [shard for shard in shards if shard["set"] == name] for name in split.SETS}
    if not by_set["train"]:
        received = {"examples": sum(len(job.items) for job in jobs), "skipped": skipped[:3]}
        raise ValueError(_checks.message("The training set must not be empty.", received))
    shapes = [shape for entry in entries for shape in entry["shapes"]]
    manifest = {
        "records": {name: sum(shard["records"] for shard in of_set) for name, of_set in by_set.items()},
        "bytes": sum(shard["bytes"] for shard in shards),
        "shards": [_without_contents(shard) for shard in shards],
        "skipped": skipped,
        "settings": cutting.get_config(),
    }
    _files.write_text(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    return Cache(
        folder=folder,
        preprocessing=cutting.preprocessing,
        shards={name: [(str(folder / s["name"]), s["records"]) for s in of_set] for name, of_set in by_set.items()},
        contents={name: np.concatenate([[], *(s["contents"] for s in of_set)]) for name, of_set in by_set.items()},
        input_shape=common_shape("input", shapes),
        label_shape=common_shape("label", shapes),
        label_dtype="float32" if cutting.ignore_class is None else "int32",
        skipped=skipped,
    )


def common_shape(which, shapes):
    """The shape of all patches, None where sizes vary; axes and channels must not.

    Args:
        which: "input" or "label".
        shapes: dicts of the shapes "input" and "label" and the name of the "first" file that has them.
    """
    first = shapes[0]
    for shape in shapes:
        if len(shape[which]) != len(first[which]) or shape[which][-1] != first[which][-1]:
            received = {one["first"]: tuple(one[which]) for one in (first, shape)}
            raise ValueError(_checks.message(f"Every {which} must have the same axes and channels.", received))
    return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*(shape[which] for shape in shapes)))


def _without_contents(shard):
    return {name: value for name, value in shard.items() if name != "contents"}


def _key(*parts_of_it):
    """A checksum of anything that JSON can hold."""
    return hashlib.sha256(json.dumps([_FORMAT, *parts_of_it], sort_keys=True).encode()).hexdigest()


def _in_units(count):
    """Bytes for people."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
