"""Shards of patches: how they are written by the workers, checked, and parsed again."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfalign import _files
from tfalign.data.cutting import cut_example
from tfalign.data.examples import try_to_read

OVERHEAD = 200  # bytes of a record besides its pixels, about


class Job(NamedTuple):
    """A few files that one worker reads.

    Attributes:
        number: place in the order of jobs.
        items: `(index in the pairs, set name)` of each.
        key: of settings and files; a finished job with another one is out of date.
    """

    number: int
    items: tuple
    key: str


def job_path(folder, number):
    """The JSON of a job."""
    return Path(folder) / f"job-{number:05d}.json"


def entry_of(folder, number):
    """What a finished job wrote into its JSON, or None; contents as arrays, a tenth of the size of lists."""
    path = job_path(folder, number)
    if not path.exists():
        return None
    entry = json.loads(path.read_text(encoding="utf-8"))
    for shard in entry["shards"]:
        shard["contents"] = np.array(shard["contents"], np.float32)
    return entry


def write_job(pairs, folder, job, cutting, rules, shard_bytes):
    """Writes the shards of a job and, last, its JSON."""
    open_shards: dict[str, _Shard] = {}
    shards: list[_Shard] = []
    with _entry(folder, job) as entry:
        for _, name, part, patch in _cut(pairs, job, cutting, rules, entry):
            if part not in open_shards:
                number = sum(shard.set_name == part for shard in shards)
                open_shards[part] = _Shard(folder, part, job.number, number)
            shard = open_shards[part]
            shard.write(name, patch)
            if shard.size >= shard_bytes:
                shards.append(open_shards.pop(part).close())
        shards += [shard.close() for shard in open_shards.values()]
        entry["shards"] = [shard.entry for shard in shards]


def list_job(pairs, folder, job, cutting, rules, shard_bytes):
    """Writes the JSON of a job alone; in place of shards it names for each file what patches it gives a set."""
    found: dict[tuple, list] = {}
    with _entry(folder, job) as entry:
        for index, _, part, patch in _cut(pairs, job, cutting, rules, entry):
            found.setdefault((index, part), []).append(patch.content)
        entry["shards"] = [
            {"file": index, "set": part, "records": len(contents), "contents": contents}
            for (index, part), contents in found.items()
        ]


@contextlib.contextmanager
def _entry(folder, job):
    """What the JSON of a job will hold; written once all is done."""
    entry = {"key": job.key, "shards": [], "skipped": [], "shapes": []}
    yield entry
    _files.write_text(job_path(folder, job.number), json.dumps(entry))


def _cut(pairs, job, cutting, rules, entry):
    """Yields `(index, name, set name, Patch)` for every file of a job; notes shapes, and what is skipped."""
    for index, set_name in job.items:
        example, reason = try_to_read(pairs, index, rules)
        if example is None:
            entry["skipped"].append(reason)
            continue
        name, image, label = example
        for part, patch in cut_example(image, label, cutting, number=index, set_name=set_name):
            shapes = {"input": patch.input.shape, "label": patch.label.shape}
            if shapes not in entry["shapes"]:
                entry["shapes"].append(shapes)
            yield index, str(name), part, patch


def damage(folder, entry):
    """The names of the shards of a job that are missing or do not have their checksum."""
    damaged = []
    for shard in entry["shards"]:
        path = Path(folder) / shard["name"]
        if not path.exists() or path.stat().st_size != shard["bytes"] or _checksum(path) != shard["sha256"]:
            damaged.append(shard["name"])
    return damaged


def bytes_of(pairs, index, cutting, rules):
    """Bytes that the patches of one file take, or None where it is skipped."""
    example, _ = try_to_read(pairs, index, rules)
    if example is None:
        return None
    patches = cut_example(example[1], example[2], cutting, number=index, set_name="train")
    return sum(size_of(patch) for _, patch in patches)


def size_of(patch):
    """Bytes that a patch takes, about."""
    return patch.input.nbytes + patch.label.nbytes + OVERHEAD


def parse(record, *, input_shape, label_shape, label_dtype):
    """A record as a dict of tensors: input, label, name (of the file) and start; see `tfalign.data.cutting.Patch`."""
    numbers = tf.io.FixedLenFeature([len(input_shape)], tf.int64)
    text = tf.io.FixedLenFeature([], tf.string)
    found = tf.io.parse_single_example(
        record,
        {
            "name": text,
            "start": tf.io.FixedLenFeature([len(input_shape) - 1], tf.int64),
            "input": text,
            "input_shape": numbers,
            "label": text,
            "label_shape": numbers,
        },
    )
    inputs = tf.reshape(tf.io.decode_raw(found["input"], tf.float32), found["input_shape"])
    labels = tf.reshape(tf.io.decode_raw(found["label"], tf.as_dtype(label_dtype)), found["label_shape"])
    inputs.set_shape(input_shape)
    labels.set_shape(label_shape)
    return {"input": inputs, "label": labels, "name": found["name"], "start": found["start"]}


class _Shard:
    """A file of patches, written beside."""

    def __init__(self, folder, set_name, job, number):
        self.path = Path(folder) / f"{set_name}-{job:05d}-{number:03d}.tfrecord"
        self.set_name, self.contents, self.size = set_name, [], 0
        self._beside = Path(f"{self.path}.part")
        self._writer = tf.io.TFRecordWriter(str(self._beside))

    def write(self, name, patch):
        """Adds one patch."""
        self._writer.write(_serialized(name, patch))
        self.contents.append(patch.content)
        self.size += size_of(patch)

    def close(self):
        """Ends and renames the file."""
        self._writer.close()
        self.entry = {
            "name": self.path.name,
            "set": self.set_name,
            "records": len(self.contents),
            "bytes": self._beside.stat().st_size,
            "sha256": _checksum(self._beside),
            "contents": self.contents,
        }
        os.replace(self._beside, self.path)
        return self


def _serialized(name, patch):
    """A patch as a `tf.train.Example`."""

    def of_bytes(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    def of_numbers(values):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    feature = {
        "name": of_bytes(name.encode()),
        "start": of_numbers(patch.start),
        "input": of_bytes(patch.input.tobytes()),
        "input_shape": of_numbers(patch.input.shape),
        "label": of_bytes(patch.label.tobytes()),
        "label_shape": of_numbers(patch.label.shape),
    }
    # Otherwise the order of the features differs from process to process.
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString(deterministic=True)


def _checksum(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
