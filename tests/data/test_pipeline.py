import dataclasses
import functools
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfalign
from tfalign.data import cache as caches
from tfalign.data.cutting import Cutting
from tfalign.data.formats import BadFileError
from tfalign.data.pipeline import dataset, prepare, reopened, stream
from tfalign.data.preprocess import Percentiles, Preprocessing, ZScore, with_preprocessing
from tfalign.data.readers import read_pairs
from tfalign.data.workers import Workers

CUTTING = Cutting(patch_size=8, patch_overlap=2, margin=2, fractions=(0.6, 0.2, 0.2), seed=3)


class Source(NamedTuple):
    """One .npy file."""

    path: Path


class FilePair(NamedTuple):
    name: str
    input: Source
    label: Source | None


class Files:
    """Pairs of .npy files in a folder, opened when read; every reading is noted in the folder."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.names = sorted(path.stem for path in self.folder.glob("*.npy") if not path.stem.endswith("-label"))

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        name = self.names[index]
        label = self.folder / f"{name}-label.npy"
        return FilePair(name, Source(self.folder / f"{name}.npy"), Source(label) if label.exists() else None)

    def read(self, index):
        pair = self[index]
        with open(self.folder / "read.txt", "a") as note:
            note.write(f"{pair.name} {os.getpid()}\n")
        if pair.input.path.read_bytes() == b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        return pair.name, np.load(pair.input.path), None if pair.label is None else np.load(pair.label.path)

    def taken(self):
        """Names of the files read so far, and forgets them."""
        note = self.folder / "read.txt"
        lines = note.read_text().split("\n")[:-1] if note.exists() else []
        note.unlink(missing_ok=True)
        return [line.split()[0] for line in lines], {int(line.split()[1]) for line in lines}


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path / "files", 20)


def write_files(folder, count, *, blank=()):
    folder.mkdir()
    for number in range(count):
        rng = np.random.default_rng(number)
        image = rng.integers(0, 200, (20, 26 + number % 3, 1)).astype(np.uint8)
        image[0, 0] = number
        label = np.zeros(image.shape, np.float32) if number in blank else image / np.float32(255)
        np.save(folder / f"{number:03d}.npy", image)
        np.save(folder / f"{number:03d}-label.npy", label)
    return Files(folder)


def samples(cache, set_name, **options):
    """`(name, start, input, label)` of every patch, in the order of a set."""
    found = []
    options = {"batch_size": 1, "shuffle": False, "max_blank": 1.0, "origin": True, **options}
    for inputs, labels, where in dataset(cache, set_name, **options):
        for values in zip(where["name"].numpy(), where["start"].numpy(), inputs.numpy(), labels.numpy()):
            found.append((values[0].decode(), tuple(values[1].tolist()), *values[2:]))
    return found


def state(cache):
    """Times of the shards."""
    return {path.name: path.stat().st_mtime_ns for path in cache.folder.glob("*.tfrecord")}


# The cache.


class Run(NamedTuple):
    """A cache made of 20 files, and what was seen of its making."""

    files: Files
    cache: caches.Cache
    read: list
    processes: set
    said: list
    steps: list


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """By the number of workers."""
    found = {}
    for workers in (0, 2):
        folder = tmp_path_factory.mktemp("run")
        files, said, steps = write_files(folder / "files", 20), [], []

        def track(description, total, steps=steps):
            return lambda done: steps.append((description, total, done))

        cutting = dataclasses.replace(CUTTING, preprocessing=Preprocessing((ZScore(over="data"), Percentiles())))
        cache = prepare(files, folder / "cache", cutting, workers=workers, announce=said.append, track=track)
        found[workers] = Run(files, cache, *files.taken(), said, steps)
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_every_file_is_read_once_by_the_workers(runs, workers):
    run = runs[workers]
    train = {sample[0] for sample in samples(run.cache, "train")}
    sampled = ["000", "010", "019"]  # to tell what kind of files these are, and the size of the cache
    assert sorted(run.read) == sorted([*run.files.names, *sampled, *sampled, *train])
    assert len(run.processes) in ({0: (1,), 2: (1, 2)}[workers])
    assert (os.getpid() in run.processes) == (workers == 0)
    totals = {"statistics": 12, "cache": 20}
    for description, total in totals.items():
        assert sum(done for name, _, done in run.steps if name == description) == total
    assert {(name, total) for name, total, _ in run.steps} == set(totals.items())


def test_workers_and_one_process_write_the_same_bytes(runs):
    one, other = (runs[count].cache for count in (0, 2))
    found = [{path.name: path.read_bytes() for path in cache.folder.glob("*.tfrecord")} for cache in (one, other)]
    assert found[0] == found[1]
    assert len(found[0]) == 20
    for name in ("train", "validation", "test"):
        assert [Path(path).name for path, _ in one.shards[name]] == [Path(path).name for path, _ in other.shards[name]]


def test_the_size_is_announced_and_everything_is_in_the_manifest(runs):
    run = runs[0]
    written = sum(path.stat().st_size for path in run.cache.folder.glob("*.tfrecord"))
    (line,) = run.said
    assert float(line.split("about ")[1].split(" KB")[0]) * 1000 == pytest.approx(written, rel=0.1)
    manifest = json.loads((run.cache.folder / "manifest.json").read_text())
    assert manifest["bytes"] == written
    assert sum(manifest["records"].values()) == sum(shard["records"] for shard in manifest["shards"])
    assert manifest["settings"]["patch_size"] == 8


def test_every_file_gives_its_patches_to_one_set(files, tmp_path):
    cache = prepare(files, tmp_path / "cache", CUTTING, workers=0)
    of_set = {name: {sample[0] for sample in samples(cache, name)} for name in ("train", "validation", "test")}
    assert [len(found) for found in of_set.values()] == [12, 4, 4]
    assert len(set.union(*of_set.values())) == 20
    for name, (row, column), inputs, label in samples(cache, "train")[::17]:
        image = np.load(files.folder / f"{name}.npy")
        np.testing.assert_array_equal(inputs, image[row : row + 8, column : column + 8])
        np.testing.assert_allclose(label[2:-2, 2:-2] * 255, inputs, atol=1e-4)


def test_a_finished_cache_is_only_checked(files, tmp_path):
    first = prepare(files, tmp_path / "cache", CUTTING, workers=0)
    before, _ = state(first), files.taken()
    again = prepare(files, tmp_path / "cache", CUTTING, workers=0, announce=pytest.fail)
    assert state(again) == before
    assert files.taken()[0] == []
    assert again.shards == first.shards
    np.testing.assert_array_equal(again.contents["train"], first.contents["train"])


@pytest.mark.parametrize("harm", ["flip", "cut", "delete"])
def test_a_damaged_shard_is_named_and_made_again(files, tmp_path, harm):
    cache = prepare(files, tmp_path / "cache", CUTTING, workers=0)
    expected, before, _ = samples(cache, "train"), state(cache), files.taken()
    path = Path(cache.shards["train"][4][0])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink() if harm == "delete" else path.write_bytes(content if harm == "flip" else content[:-100])
    said = []
    again = prepare(files, tmp_path / "cache", CUTTING, workers=0, announce=said.append)
    assert path.name in said[0]
    assert "damaged" in said[0]
    assert len(files.taken()[0]) == 1
    assert {name for name in before if state(again)[name] != before[name]} == {path.name}
    for one, other in zip(samples(again, "train"), expected, strict=True):
        np.testing.assert_array_equal(one[2], other[2])


def test_what_changed_is_made_again(files, tmp_path):
    before = state(prepare(files, tmp_path / "cache", CUTTING, workers=0))
    files.taken()
    changed = files.folder / "007.npy"
    np.save(changed, np.load(changed) + 1)
    cache = prepare(files, tmp_path / "cache", CUTTING, workers=0)
    assert sorted(set(files.taken()[0])) == ["000", "007", "010", "019"]
    assert len([name for name in before if state(cache)[name] != before[name]]) == 1
    other = prepare(files, tmp_path / "cache", Cutting(patch_size=10, fractions=CUTTING.fractions), workers=0)
    assert set(files.taken()[0]) == set(files.names)
    assert other.input_shape == (10, 10, 1)


def test_shards_of_files_that_are_gone_are_deleted(files, tmp_path):
    cache = prepare(files, tmp_path / "cache", CUTTING, workers=0)
    (cache.folder / "train-00000-000.tfrecord.part").write_text("left by a kill")
    (cache.folder / "mine.txt").write_text("kept")
    for name in files.names[5:]:
        (files.folder / f"{name}.npy").unlink()
    fewer = prepare(Files(files.folder), tmp_path / "cache", CUTTING, workers=0)
    wanted = {Path(path).name for of_set in fewer.shards.values() for path, _ in of_set}
    assert {path.name for path in cache.folder.iterdir() if "tfrecord" in path.name} == wanted
    assert len(list(cache.folder.glob("job-*.json"))) == 5
    assert (cache.folder / "mine.txt").exists()


def test_many_patches_fill_many_shards_and_small_files_share_one(tmp_path):
    files = write_files(tmp_path / "files", 40)
    cache = prepare(files, tmp_path / "few", CUTTING, workers=0)
    assert len(list(cache.folder.glob("job-*.json"))) == 20
    parts = prepare(files, tmp_path / "many", CUTTING, workers=0, shard_bytes=4000)
    assert len(parts.shards["train"]) > 40
    assert max(Path(path).stat().st_size for path, _ in parts.shards["train"]) < 5500
    assert len(samples(parts, "train")) == len(samples(cache, "train"))


def test_damaged_files_are_named_and_skipped_or_stop_the_run(files, tmp_path):
    (files.folder / "000.npy").write_bytes(b"damaged")
    (files.folder / "005-label.npy").unlink()
    cache = prepare(files, tmp_path / "cache", CUTTING, workers=0)
    assert [entry["path"] for entry in cache.skipped] == ["example 0"]
    assert json.loads((cache.folder / "manifest.json").read_text())["skipped"] == cache.skipped
    names = {sample[0] for name in ("train", "validation", "test") for sample in samples(cache, name)}
    assert names == set(files.names) - {"000", "005"}
    with pytest.raises(ValueError, match=r"000|pickle|magic"):
        prepare(files, tmp_path / "cache", CUTTING, workers=0, strict=True)
    (files.folder / "000.npy").unlink()
    assert prepare(Files(files.folder), tmp_path / "cache", CUTTING, workers=0, strict=True).skipped == []


def name_of(files, index):
    return files.read(index)[0], os.getpid()


def test_workers_keep_the_order_stay_flat_and_say_when_they_die(files):
    (files.folder / "012.npy").write_bytes(b"die")
    asked, found = [], []

    def read_backwards():
        arguments = ((asked.append(index) or index,) for index in reversed(range(20)))
        with Workers(files, count=1) as pool:
            for name, process in pool.map(name_of, arguments):
                found.append(name)
                assert process != os.getpid()
                assert len(asked) <= len(found) + 1

    with pytest.raises(OSError, match=r"ended abruptly. Received: near=\['\(12,\)'\]"):
        read_backwards()
    assert found == ["019", "018", "017", "016", "015", "014", "013"]
    with pytest.raises(TypeError, match=r"must be picklable for workers. Received: error=.*lambda.*or take workers=0"):
        next(Workers([lambda image: image], count=1).map(name_of, [(0,)]))
    with pytest.raises(TypeError, match=r"`workers` must be a whole number. Received: workers=1.5"):
        Workers(files, count=1.5)


def test_a_killed_run_goes_on_where_it_was(files, tmp_path):
    script = f"""
        import os, signal
        from tests.data.test_pipeline import CUTTING, Files, prepare
        done = []
        def track(description, total):
            return lambda steps: done.append(steps) or (len(done) > 8 and os.kill(os.getpid(), signal.SIGKILL))
        prepare(Files({str(files.folder)!r}), {str(tmp_path / "cache")!r}, CUTTING, workers=0, track=track)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=Path(__file__).parents[2], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "cache").glob("job-*.json"))) == 8
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.tfrecord")}
    files.taken()
    cache = prepare(files, tmp_path / "cache", CUTTING, workers=0)
    assert files.taken()[0] == files.names[8:]
    assert before.items() <= state(cache).items()
    whole = prepare(files, tmp_path / "whole", CUTTING, workers=0)
    for name, content in before.items():
        assert (cache.folder / name).read_bytes() == (whole.folder / name).read_bytes(), content
    assert cache.contents["train"].tolist() == whole.contents["train"].tolist()


def test_a_disk_that_is_too_small_is_refused(files, tmp_path, monkeypatch):
    monkeypatch.setattr(caches.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    said = []
    refused = r"must fit on the disk. Received: needed='[\d.]+ KB', free='1 KB'.*pipeline.stream"
    with pytest.raises(OSError, match=refused):
        prepare(files, tmp_path / "cache", CUTTING, workers=0, announce=said.append)
    assert said[0].startswith("Cache: about")


def test_preprocessing_is_fitted_to_the_training_set_alone(runs, tmp_path):
    for run in runs.values():
        train = {sample[0] for sample in samples(run.cache, "train")}
        images = [np.load(run.files.folder / f"{name}.npy") for name in sorted(train)]
        pixels = np.concatenate([image.ravel() for image in images]).astype(float)
        np.testing.assert_allclose(run.cache.preprocessing.steps[0].mean, [pixels.mean()])
        np.testing.assert_allclose(run.cache.preprocessing.steps[0].deviation, [pixels.std()])
    run, cutting = (
        runs[0],
        dataclasses.replace(CUTTING, preprocessing=Preprocessing((ZScore(over="data"), Percentiles()))),
    )
    again = prepare(run.files, run.cache.folder, cutting, workers=0)
    assert again.preprocessing == run.cache.preprocessing
    assert run.files.taken()[0] == []
    assert stream(run.files, tmp_path / "list", cutting, workers=0).preprocessing == run.cache.preprocessing
    run.files.taken()


def test_arrays_in_memory_are_known_by_their_values(tmp_path, rng):
    pairs = [(f"{n}", rng.normal(size=(9, 1)).astype(np.float32), rng.normal(size=(9, 1))) for n in range(6)]
    first = prepare(pairs, tmp_path / "cache", CUTTING, workers=0)
    before = state(first)
    assert state(prepare(pairs, tmp_path / "cache", CUTTING, workers=0)) == before
    pairs[2][2][4] += 1
    assert len(state(prepare(pairs, tmp_path / "cache", CUTTING, workers=0)).items() - before.items()) == 1


def test_examples_that_do_not_fit_the_others_are_skipped(tmp_path):
    gray, color = np.ones((9, 9, 1)), np.ones((9, 9, 3))
    pairs = [("a", color, gray), *((name, gray, gray) for name in "bcd"), ("e", gray, color), ("f", gray, gray)]
    cutting = Cutting(preprocessing=Preprocessing((ZScore(over="data"),)), fractions=(1.0, 0.0, 0.0))
    cache = prepare(pairs, tmp_path / "cache", cutting, workers=0)
    assert cache.input_shape == cache.label_shape == (9, 9, 1)
    reason = "it has 2 spatial axes and 3 channels, most of the first files 2 and 1, as 'd'"
    assert cache.skipped == [{"path": name, "reason": reason} for name in "ae"]
    streamed = stream(pairs, tmp_path / "list", cutting, workers=0)
    assert sum(len(batch[0]) for batch in dataset(streamed, "train", batch_size=2, max_blank=1.0)) == 4
    assert streamed.skipped == cache.skipped
    with pytest.raises(ValueError, match=f"{reason}. Received: path='a'"):
        prepare(pairs, tmp_path / "cache", cutting, workers=0, strict=True)


def test_without_labels_there_is_nothing_to_prepare(tmp_path):
    cutting = Cutting(fractions=(1.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="`pairs` must hold an example that can be read and has a label"):
        prepare([("a", np.ones((9, 9, 1)), None)], tmp_path / "none", cutting, workers=0)


# Batches.


def test_batches_are_the_same_for_one_seed_and_others_in_every_epoch(files, tmp_path):
    cache = prepare(files, tmp_path / "cache", CUTTING, workers=0)

    def epochs(seed, count=2):
        data = dataset(cache, "train", batch_size=4, flips=True, quarter_turns=True, seed=seed)
        return [[batch[0].numpy() for batch in data] for _ in range(count)]

    first, second = epochs(5)
    again = epochs(5)
    np.testing.assert_array_equal([first, second], again)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, epochs(6, 1)[0])
    every = sorted(image.sum() for image in np.concatenate(first))
    count = len(samples(cache, "train"))
    assert len(every) == count - count % 4
    assert len(first) == len(dataset(cache, "train", batch_size=4))
    assert len(dataset(cache, "train", batch_size=4, part=(1, 2))) == count // 2 // 4
    assert len(dataset(cache, "train", batch_size=4, drop_remainder=False)) == -(-count // 4)
    unflipped = sorted(sample[2].sum() for sample in samples(cache, "train"))
    assert len(set(every) - set(unflipped)) == 0


def test_shards_patches_and_flips_are_each_drawn_anew_in_every_epoch(files, tmp_path):
    cache = prepare(files, tmp_path / "cache", CUTTING, workers=0)
    one = prepare([files.read(0)], tmp_path / "one", Cutting(patch_size=4, fractions=(1.0, 0.0, 0.0)), workers=0)
    assert len(one.shards["train"]) == 1

    def epochs(cache, **options):
        data = dataset(cache, "train", batch_size=1, max_blank=1.0, **options)
        return [[batch[0].numpy().tobytes() for batch in data] for _ in range(2)]

    # Shards alone, patches of one shard alone, flips alone.
    for source, options in (
        (cache, {"shuffle_bytes": 1}),
        (one, {}),
        (cache, {"shuffle": False, "flips": True}),
    ):
        first, second = epochs(source, **options)
        assert first != second
        assert [first, second] == epochs(source, **options)
        assert [first, second] != epochs(source, seed=1, **options)
        assert (sorted(first) == sorted(second)) == ("flips" not in options)


def test_neighbours_of_one_file_are_far_apart(files, tmp_path):
    cache = prepare(files, tmp_path / "cache", CUTTING, workers=0)
    names = [sample[0] for sample in samples(cache, "train", shuffle=True)]
    same = np.mean([one == other for one, other in itertools.pairwise(names)])
    assert same < 0.2
    # With no buffer to speak of the shards alone mix them.
    names = [sample[0] for sample in samples(cache, "train", shuffle=True, shuffle_bytes=1)]
    assert np.mean([one == other for one, other in itertools.pairwise(names)]) < 0.3


def test_inputs_and_labels_stay_together(files, tmp_path):
    cache = prepare(files, tmp_path / "cache", CUTTING, workers=0)
    kinds = set()
    for inputs, labels in dataset(cache, "train", batch_size=3, flips=(1,), repeat=True).take(60):
        assert inputs.shape == (3, 8, 8, 1)
        assert labels.shape == (3, 12, 12, 1)
        np.testing.assert_allclose(labels[:, 2:-2, 2:-2] * 255, inputs, atol=1e-4)
        kinds.add(inputs[0].numpy().tobytes())
    assert len(kinds) > 20


def test_evaluation_takes_every_patch_once_and_in_order(files, tmp_path):
    cache = prepare(files, tmp_path / "cache", CUTTING, workers=0)
    found = samples(cache, "validation", batch_size=4)
    assert len(found) == sum(count for _, count in cache.shards["validation"])
    assert len({sample[:2] for sample in found}) == len(found)
    names = [sample[0] for sample in found]
    assert names == sorted(names)


def test_blank_patches_do_not_dominate(tmp_path):
    files = write_files(tmp_path / "files", 20, blank=range(14))
    cache = prepare(files, tmp_path / "cache", Cutting(patch_size=8, fractions=(1.0, 0.0, 0.0)), workers=0)
    blank = [not sample[3].any() for sample in samples(cache, "train")]
    assert np.mean(blank) > 0.6
    some = [
        not sample[3].any() for sample in samples(cache, "train", max_blank=0.25, batch_size=2, drop_remainder=False)
    ]
    assert np.mean(some) == pytest.approx(0.25, abs=0.01)
    assert len(some) - sum(some) == len(blank) - sum(blank)
    default = np.concatenate([batch[1] for batch in dataset(cache, "train", batch_size=2)])
    assert 0.05 < np.mean([not label.any() for label in default]) <= 0.11


def test_files_of_several_sizes_go_one_by_one(files, tmp_path):
    cache = prepare(files, tmp_path / "cache", Cutting(margin=1, fractions=(0.6, 0.2, 0.2)), workers=0)
    assert cache.input_shape == (20, None, 1)
    assert cache.label_shape == (22, None, 1)
    shapes = {batch[0].shape[1:] for batch in dataset(cache, "train", batch_size=1, flips=True)}
    assert {shape[1] for shape in shapes} == {26, 27, 28}
    refused = r"must have one size. Received: batch_size=2, input_shape=\(20, None, 1\)"
    with pytest.raises(ValueError, match=refused):
        dataset(cache, "train", batch_size=2)
    streamed = stream(files, tmp_path / "list", Cutting(margin=1, fractions=(0.6, 0.2, 0.2)), workers=0)
    assert {batch[0].shape[1:] for batch in dataset(streamed, "train", batch_size=1, flips=True)} == shapes
    with pytest.raises(ValueError, match=refused):
        dataset(streamed, "train", batch_size=2)


def test_whole_files_of_one_size_stream_in_batches(tmp_path):
    pairs = [(f"{number}", np.ones((9, 8, 1)), np.ones((9, 8, 1))) for number in range(6)]
    streamed = stream(pairs, tmp_path / "list", Cutting(fractions=(1, 0, 0)), workers=0)
    data = dataset(streamed, "train", batch_size=3)
    assert [batch[0].shape for batch in data] == [(3, 9, 8, 1)] * 2
    assert data.element_spec[0].shape[1:] == (9, 8, 1)


def test_class_maps(files, tmp_path):
    for name in files.names:
        np.save(files.folder / f"{name}-label.npy", np.load(files.folder / f"{name}.npy") // 100)
    cutting = Cutting(patch_size=8, margin=3, ignore_class=255, fractions=(0.6, 0.2, 0.2))
    cache = prepare(files, tmp_path / "cache", cutting, workers=0)
    inputs, labels = next(iter(dataset(cache, "train", batch_size=64)))
    assert labels.dtype == tf.int32
    assert set(np.unique(labels)) == {0, 1, 255}
    np.testing.assert_array_equal(labels[:, 3:-3, 3:-3], inputs.numpy() // 100)


def test_sets_without_enough_patches_are_named(files, tmp_path):
    cache = prepare(files, tmp_path / "cache", Cutting(patch_size=8, fractions=(1.0, 0.0, 0.0)), workers=0)
    with pytest.raises(ValueError, match=r"`set_name` must be a set with patches. Received: set_name='test'"):
        dataset(cache, "test", batch_size=1)
    with pytest.raises(ValueError, match="batch_size=0"):
        dataset(cache, "train", batch_size=0)
    with pytest.raises(ValueError, match="set_name='dev'"):
        dataset(cache, "dev", batch_size=1)
    count = sum(count for _, count in cache.shards["train"])
    with pytest.raises(ValueError, match=r"The index of `part` must be below its count. Received: part=\(2, 2\)"):
        dataset(cache, "train", batch_size=1, part=(2, 2))
    with pytest.raises(
        ValueError, match=r"not be more parts than there are patches. Received: part=\(998, 999\), patches="
    ):
        dataset(cache, "train", batch_size=1, part=(998, 999))
    with pytest.raises(ValueError, match=f"must not exceed the patches. Received: batch_size=999, patches={count}"):
        dataset(cache, "train", batch_size=999, max_blank=1.0)


@pytest.mark.parametrize("make", [prepare, stream])
def test_parts_are_alike_and_make_up_the_set(files, tmp_path, make):
    cache = make(files, tmp_path / "cache", CUTTING, workers=0)
    every = [sample[:2] for sample in samples(cache, "train")]
    parts = [[sample[:2] for sample in samples(cache, "train", part=(index, 3), shuffle=True)] for index in range(3)]
    assert sorted(itertools.chain(*parts)) == sorted(every)
    assert np.ptp([len(found) for found in parts]) <= 1
    # Neighbours: a shard in the middle of a part is read for this part alone.
    names = [{name for name, _ in found} for found in parts]
    assert sum(map(len, names)) <= len(set.union(*names)) + 2


@pytest.mark.parametrize("repeat", [False, True])
def test_the_service_of_tf_data_gives_every_patch_once(files, tmp_path, repeat):
    cache = prepare(files, tmp_path / "cache", CUTTING, workers=0)
    service = tf.data.experimental.service
    dispatcher = service.DispatchServer()
    config = service.WorkerConfig(dispatcher_address=dispatcher.target.split("://")[1])
    workers = [service.WorkerServer(config) for _ in range(2)]
    options = {"batch_size": 5, "max_blank": 1.0, "origin": True, "drop_remainder": False}
    data = dataset(cache, "train", service=dispatcher.target, flips=True, repeat=repeat, **options)
    wanted = sorted(sample[:2] for sample in samples(cache, "train"))
    found = []
    for _, _, where in data:
        found += zip((name.decode() for name in where["name"].numpy()), map(tuple, where["start"].numpy().tolist()))
        if len(found) >= 2 * len(wanted):
            break
    assert sorted(found) == sorted(wanted * (2 if repeat else 1))
    del workers, dispatcher


def test_a_network_trains_on_it_and_then_takes_files(files, tmp_path):
    cutting = Cutting(
        patch_size=16, margin=4, preprocessing=Preprocessing((ZScore(over="data"),)), fractions=(0.6, 0.2, 0.2)
    )
    cache = prepare(files, tmp_path / "cache", cutting, workers=0)
    keras.utils.set_random_seed(1)
    model = tfalign.models.unet(filters=4, depth=2)
    model.compile(keras.optimizers.Adam(1e-2), loss=tfalign.ShiftInvariantLoss("mae", max_shift=4))
    validation = dataset(cache, "validation", batch_size=4)
    before = model.evaluate(validation, verbose=0)
    model.fit(
        dataset(cache, "train", batch_size=8, flips=True, repeat=True), steps_per_epoch=40, shuffle=False, verbose=0
    )
    assert model.evaluate(validation, verbose=0) < 0.6 * before
    whole = with_preprocessing(model, cache.preprocessing)
    image = np.load(files.folder / "019.npy")[np.newaxis].astype(np.float32)
    expected = model((image - cache.preprocessing.steps[0].mean) / cache.preprocessing.steps[0].deviation)
    np.testing.assert_allclose(whole(image), expected, atol=1e-4)


# Without a cache.


@pytest.mark.parametrize("split_by", ["file", "region"])
def test_streaming_gives_the_same_patches(files, tmp_path, split_by):
    cutting = Cutting(patch_size=8, margin=2, fractions=(0.6, 0.2, 0.2), split_by=split_by)
    cache = prepare(files, tmp_path / "cache", cutting, workers=0)
    said, workers = [], 1 if split_by == "file" else 0
    with stream(files, tmp_path / "list", cutting, workers=workers, announce=said.append) as streamed:
        assert said == ["No cache: the files are read, prepared and cut again in every epoch."]
        assert not list((tmp_path / "list").glob("*.tfrecord"))
        for name in ("train", "validation", "test"):
            np.testing.assert_array_equal(streamed.contents[name], cache.contents[name])
            found, wanted = samples(streamed, name), samples(cache, name)
            for one, other in zip(found, wanted, strict=True):
                assert one[:2] == other[:2]
                np.testing.assert_array_equal(one[2], other[2])
                np.testing.assert_array_equal(one[3], other[3])
        data = dataset(streamed, "train", batch_size=5)
        assert data.element_spec[0].shape == (5, 8, 8, 1)
        assert data.element_spec[1].shape == (5, 12, 12, 1)
        with pytest.raises(ValueError, match=r"The tf\.data service must have a cache\. Received: service='grpc:"):
            dataset(streamed, "train", batch_size=5, service="grpc://localhost:1")


def test_a_list_of_patches_stays_until_a_file_changes_and_gives_way_to_a_cache(files, tmp_path):
    first = stream(files, tmp_path / "list", CUTTING, workers=0)
    files.taken()
    again = stream(files, tmp_path / "list", CUTTING, workers=0)
    assert files.taken()[0] == []
    assert again.shards == first.shards
    reread = reopened(tmp_path / "list", files, workers=0)
    np.testing.assert_equal(samples(reread, "validation"), samples(first, "validation"))
    np.save(files.folder / "004.npy", np.load(files.folder / "004.npy") + 1)
    files.taken()
    stream(files, tmp_path / "list", CUTTING, workers=0)
    assert set(files.taken()[0]) == {"004", "000", "010", "019"}  # three are looked at to learn of what kind all are
    cache = prepare(files, tmp_path / "list", CUTTING, workers=0)
    assert set(files.taken()[0]) == {*files.names}
    np.testing.assert_equal(samples(cache, "validation"), samples(first, "validation"))
    assert samples(reopened(tmp_path / "list"), "test")
    assert reopened(tmp_path) is None


def test_streams_are_the_same_for_one_seed_and_others_in_every_epoch(files, tmp_path):
    def epochs(seed):
        with stream(files, tmp_path / "list", CUTTING, workers=0) as streamed:
            data = dataset(streamed, "train", batch_size=4, flips=True, seed=seed)
            return [np.concatenate([batch[0] for batch in data]) for _ in range(2)]

    def files_alone(seed):
        streamed = stream(files, tmp_path / "list", CUTTING, workers=0)
        data = dataset(streamed, "train", batch_size=1, seed=seed, shuffle_bytes=1)
        return [[batch[0].numpy().tobytes() for batch in data] for _ in range(2)]

    assert files_alone(1) == files_alone(1) != files_alone(2)
    assert files_alone(1)[0] != files_alone(1)[1]
    first, again = epochs(1), epochs(1)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(*first)
    assert not np.array_equal(first[0], epochs(2)[0])


def test_streams_name_what_they_skip_and_judge_blank_patches(tmp_path):
    files = write_files(tmp_path / "files", 20)
    for name in files.names:
        label = np.load(files.folder / f"{name}-label.npy")
        label[:, 8:] = 0
        np.save(files.folder / f"{name}-label.npy", label)
    (files.folder / "003.npy").write_bytes(b"damaged")
    cutting = Cutting(patch_size=8, fractions=(1.0, 0.0, 0.0))
    streamed = stream(files, tmp_path / "list", cutting, workers=0)
    options = {"batch_size": 1, "max_blank": 0.5}
    blank = [not label.any() for batch in dataset(streamed, "train", **options) for label in batch[1].numpy()]
    assert np.mean(blank) == pytest.approx(0.5, abs=0.01)
    assert [entry["path"] for entry in streamed.skipped] == ["example 3"]
    with pytest.raises(ValueError, match="set_name='test'"):
        dataset(streamed, "test", batch_size=1)
    with pytest.raises(ValueError, match="pickled"):
        stream(files, tmp_path / "strict", cutting, workers=0, strict=True)


def test_files_that_fail_or_change_while_they_are_streamed_are_left_out(files, tmp_path):
    streamed = stream(files, tmp_path / "list", Cutting(patch_size=8, fractions=(1.0, 0.0, 0.0)), workers=0)
    (files.folder / "003.npy").write_bytes(b"damaged")
    for name in ("005", "005-label"):
        np.save(files.folder / f"{name}.npy", np.load(files.folder / f"{name}.npy")[:8])
    left = {sample[0] for sample in samples(streamed, "train")}
    assert left == {*files.names} - {"003", "005"}
    assert [entry["path"] for entry in streamed.skipped] == ["example 3", "005"]
    assert re.fullmatch(r"it had \d+ patches, and has \d+ now", streamed.skipped[1]["reason"])


# Memory.


def peak_megabytes(script):
    """What a process takes at most, in MB."""
    report = "\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script) + report],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def test_memory_does_not_grow_with_the_data(tmp_path):
    peaks = []
    for count in (40, 140):  # the buffers of tf.data fill with the first
        folder = tmp_path / f"{count}-files"
        folder.mkdir()
        for number in range(count):
            image = np.random.default_rng(number).random((128, 512, 4)).astype(np.float32)  # 1 MB
            np.save(folder / f"{number:03d}.npy", image)
            np.save(folder / f"{number:03d}-label.npy", image)
        peaks.append(
            peak_megabytes(f"""
                from tests.data.test_pipeline import Cutting, Files, dataset, prepare
                cutting = Cutting(patch_size=64, fractions=(1.0, 0.0, 0.0))
                files = Files({str(folder)!r})
                cache = prepare(files, {str(folder / "cache")!r}, cutting, workers=0, shard_bytes=2**21)
                data = dataset(cache, "train", batch_size=8, shuffle_bytes=2**22)
                assert sum(len(batch[0]) for batch in data) == {count * 16}
            """)
        )
    assert peaks[1] < peaks[0] + 80  # MB; the larger set has 200 MB more


def test_files_that_workers_could_not_read_are_listed_with_the_pairs(rng, tmp_path):
    for name in ("inputs", "labels"):
        (tmp_path / name).mkdir()
        for number in range(6):
            np.save(tmp_path / name / f"{number}.npy", rng.standard_normal((32, 32, 1)).astype(np.float32))
    (tmp_path / "labels" / "3.npy").write_bytes(b"no array")
    (tmp_path / "labels" / "5.npy").unlink()
    cutting = Cutting(patch_size=16, fractions=(1, 0, 0))

    def skipped(pairs):
        return [path.rpartition("/")[-1] for path, _ in pairs.skipped]

    pairs = read_pairs(tmp_path / "inputs", tmp_path / "labels")
    cache = prepare(pairs, tmp_path / "cache", cutting, workers=1)
    assert len(cache.skipped) == 1
    assert skipped(pairs) == ["3.npy"]
    pairs.write_skipped(tmp_path)
    assert "3.npy" in (tmp_path / "skipped.csv").read_text()
    streamed = read_pairs(tmp_path / "inputs", tmp_path / "labels")
    with stream(streamed, tmp_path / "list", cutting, workers=1) as patches:
        assert sum(len(batch[0]) for batch in dataset(patches, "train", batch_size=4, max_blank=1.0)) == 4 * 4
    assert skipped(streamed) == ["3.npy"]
    strict = read_pairs(tmp_path / "inputs", tmp_path / "labels", strict=True)
    with pytest.raises(BadFileError, match=r"3\.npy"):
        prepare(strict, tmp_path / "cache", cutting, workers=0)
    with pytest.raises(BadFileError, match=r"3\.npy"):
        stream(strict, tmp_path / "list", cutting, workers=0)


@pytest.fixture
def pictures(rng, tmp_path):
    """Twenty inputs, the labels of five: positions."""
    for name in ("inputs", "labels"):
        (tmp_path / name).mkdir()
    for number in range(20):
        np.save(tmp_path / "inputs" / f"{number:02d}.npy", rng.integers(0, 256, (24, 24, 1)).astype(np.uint8))
        if number % 4 == 0:
            (tmp_path / "labels" / f"{number:02d}.csv").write_text("row,col\n12,12\n")
    return tmp_path / "inputs", tmp_path / "labels"


def test_inputs_without_label_have_no_part_in_sets_and_size(pictures, tmp_path):
    pairs, said = read_pairs(*pictures), []
    cutting = Cutting(fractions=(0.6, 0.2, 0.2))
    cache = prepare(pairs, tmp_path / "cache", cutting, workers=0, strict=True, announce=said.append)
    assert {name: sum(count for _, count in of_set) for name, of_set in cache.shards.items()} == {
        "train": 3, "validation": 1, "test": 1
    }  # fmt: skip
    assert cache.skipped == pairs.skipped == []
    written = sum(path.stat().st_size for path in cache.folder.glob("*.tfrecord"))
    assert float(said[0].split("about ")[1].split(" KB")[0]) * 1000 == pytest.approx(written, rel=0.1)
    streamed = stream(pairs, tmp_path / "list", cutting, workers=0, strict=True)
    assert sum(len(batch[0]) for batch in dataset(streamed, "train", batch_size=1, max_blank=1.0)) == 3
    groups = ["one"] * 20
    with pytest.raises(ValueError, match="3 sets need as many files"):
        prepare(pairs, tmp_path / "cache", cutting, workers=0, groups=groups)
    with pytest.raises(ValueError, match=r"`groups` must name one per file. Received: groups=5, files=20"):
        prepare(pairs, tmp_path / "cache", cutting, workers=0, groups=groups[:5])


def above(level, image):
    return image > level


@pytest.mark.parametrize(
    "options",
    [
        ({"positions": {"radius": 2}}, {"positions": {"radius": 8}}),
        ({"recipe": {"name": "threshold", "value": 100}}, {"recipe": {"name": "threshold", "value": 200}}),
        ({"recipe": lambda image: image > 100}, {"recipe": lambda image: image > 200}),
        ({"recipe": functools.partial(above, 100)}, {"recipe": functools.partial(above, 200)}),
        ({"rank": None}, {"rank": 2}),
        ({"max_margin": 0}, {"max_margin": 2}),
        ({"max_pixels": 500}, {"max_pixels": 5000}),
    ],
)
def test_labels_made_in_another_way_are_made_again(pictures, tmp_path, options):
    inputs, labels = pictures
    np.save(inputs / "04.npy", np.zeros((8, 8, 1), np.uint8))  # the one that is small enough for `max_pixels`
    (labels / "04.csv").write_text("row,col\n4,4\n")
    cutting = Cutting(patch_size=8, fractions=(1, 0, 0))
    keys = []
    for option in (*options, options[1]):
        pairs = read_pairs(inputs, None if "recipe" in option else labels, **option)
        cache = prepare(pairs, tmp_path / "cache", cutting, workers=0)
        keys.append([caches.entry_of(cache.folder, 0)["key"], state(cache)])
        label = sum(float(sample[3].sum()) for sample in samples(cache, "train"))
        assert label == sum(example.label.sum() for example in pairs.examples() if example.label is not None)
    assert keys[0][0] != keys[1][0]
    assert keys[1] == keys[2]
