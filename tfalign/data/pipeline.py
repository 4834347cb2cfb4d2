"""From files to batches: `prepare` reads every file once, `dataset` gives batches of patches by pure `tf.data`.

    cutting = Cutting(preprocessing=Preprocessing((Percentiles(over="data"),)), patch_size=256, margin=8)
    cache = pipeline.prepare(pairs, "run/cache", cutting, announce=print)
    model.fit(pipeline.dataset(cache, "train", batch_size=16, flips=True), steps_per_epoch=…)

`stream` in place of `prepare` does without a cache: the files are read again in every epoch.
"""

import dataclasses
import itertools
import math

import numpy as np
import tensorflow as tf

from tfalign import _checks
from tfalign.data import augment, split
from tfalign.data.cache import SHARD_BYTES, Cache, lying_in, made, prepare
from tfalign.data.cutting import Cutting, cut_example
from tfalign.data.examples import Rules, try_to_read
from tfalign.data.patches import balanced
from tfalign.data.shards import parse
from tfalign.data.workers import Workers

__all__ = ["Cache", "Cutting", "Stream", "dataset", "prepare", "reopened", "stream"]

_SHARDS_AT_ONCE = 16
SHUFFLE_BYTES = 2**28


def dataset(
    cache,
    set_name,
    *,
    batch_size,
    shuffle=None,
    max_blank=None,
    flips=False,
    quarter_turns=False,
    repeat=False,
    drop_remainder=None,
    origin=False,
    part=(0, 1),
    service=None,
    service_job=None,
    shuffle_bytes=SHUFFLE_BYTES,
    seed=0,
):
    """Batches of one set, the same for the same seed and cache; another order in every epoch.

    Every step is an operation of `tf.data`. Memory holds a few batches and the shuffle buffer, whatever the number of
    patches: shards are read in random order, 16 at a time, then patches are drawn from the buffer.

    Args:
        cache: what `prepare` or `stream` returns.
        set_name: "train", "validation" or "test".
        batch_size: patches.
        shuffle: by default for training only.
        max_blank: share of blank patches at most, see `tfalign.data.patches.balanced`; by default 0.1 for training, and
            all of them otherwise.
        flips: True, or the axes to flip: see `tfalign.data.augment.flips`.
        quarter_turns: turn square patches as well.
        repeat: without end.
        drop_remainder: leave out a last batch that is smaller; by default for training.
        origin: add to every batch a dict: "name" of the file of each patch and "start", its first index there.
        part: `(index, count)`: this one alone of `count` parts of the set, alike in size to one patch. Each worker of
            `tfalign.distributed.fit` takes `(context.input_pipeline_id, context.num_input_pipelines)`.
        service: address of a dispatcher of the `tf.data` service, e.g. "grpc://host:5050"; its workers read the shards
            in place of this process, each patch once in an epoch, in an order of their own.
        service_job: a name in the service: processes that give the same one share the batches, each of which goes to
            whoever asks first.
        shuffle_bytes: size of the shuffle buffer.
        seed: of the order, the choice among blank patches, and the flips.

    Returns:
        A `tf.data.Dataset` of `(inputs, labels)`: `(batch, *patch_size, channels)` float32, and
        `(batch, *(patch_size + 2 margin), channels)` float32, or int32 for class maps.

    Raises:
        ValueError: an empty set, one that does not fill a batch, batches of patches of several sizes, or no such part.
    """
    batch_size = _checks.whole_number("batch_size", batch_size, at_least=1)
    shuffle, max_blank, drop_remainder = _choices(set_name, shuffle, max_blank, drop_remainder)
    if not cache.shards[set_name]:
        raise ValueError(_checks.message("`set_name` must be a set with patches.", {"set_name": set_name}))
    _check_one_size(batch_size, cache.input_shape, cache.label_shape)
    kept = _part(balanced(cache.contents[set_name], max_blank=max_blank, seed=seed), part)
    if drop_remainder and kept.sum() < batch_size:
        received = {"batch_size": batch_size, "patches": int(kept.sum()), "set_name": set_name}
        raise ValueError(_checks.message("`batch_size` must not exceed the patches.", received))

    reads_files = isinstance(cache, Stream)
    samples = (_streamed if reads_files else _samples)(cache, set_name, kept, shuffle, origin, seed)
    if shuffle:
        patch_bytes = 4 * sum(
            math.prod(size or 256 for size in shape) for shape in (cache.input_shape, cache.label_shape)
        )
        samples = samples.shuffle(max(1, min(shuffle_bytes // patch_bytes, len(kept))), seed=seed)
    batches = _batches(samples, batch_size, flips, quarter_turns, drop_remainder, seed)
    if service is not None and reads_files:
        received = {"service": service}
        raise ValueError(_checks.message("The tf.data service must have a cache.", received, "Take `prepare`."))
    if service is not None:
        job = tf.data.experimental.service.distribute("distributed_epoch", service, job_name=service_job)
        batches = batches.apply(job)
    elif not reads_files:  # of which one may fail later
        # Keras asks for the number of batches; in the service each worker has some of them.
        count = kept.sum() // batch_size if drop_remainder else -(-kept.sum() // batch_size)
        batches = batches.apply(tf.data.experimental.assert_cardinality(count))
    return (batches.repeat() if repeat else batches).prefetch(tf.data.AUTOTUNE)


@dataclasses.dataclass(frozen=True)
class Stream(Cache):
    """Patches that are nowhere but in their files: it is known what there is, and every epoch reads the files again.

    `dataset` takes it in place of a cache and gives the same patches; shuffled, the files come in random order and then
    through the buffer. A file that can no longer be read, or was changed, is left out and added to `skipped`.

    Attributes:
        shards: for each set the `(number of the file, patches)`, in order.
        pool: the processes that read; a `with` ends them.
        cutting: fitted.
        rules: for files that cannot be read.
    """

    pool: Workers
    cutting: Cutting
    rules: Rules

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Ends the worker processes."""
        self.pool.__exit__(*_)

    def read(self, set_name, order=None):
        """Yields `(place in shards, name of the file, its patches)`, for the files at the places `order`, or all."""
        files = self.shards[set_name]
        order = range(len(files)) if order is None else order
        arguments = ((files[place][0], set_name, self.cutting, self.rules) for place in order)
        for place, (name, patches, skipped) in zip(order, self.pool.map(_patches_of, arguments)):
            if skipped is None and len(patches) != files[place][1]:
                skipped = {"path": name, "reason": f"it had {files[place][1]} patches, and has {len(patches)} now"}
            if skipped is None:
                yield place, name, patches
            elif skipped not in self.skipped:
                self.skipped.append(skipped)
                if hasattr(self.pool.pairs, "note_skipped"):  # the workers have noted it in copies of their own
                    self.pool.pairs.note_skipped(skipped["path"], skipped["reason"])


def stream(
    pairs,
    folder,
    cutting,
    *,
    groups=None,
    workers=None,
    strict=False,
    track=lambda description, total: lambda steps: None,
    announce=lambda text: None,
):
    """As `prepare`, for those who cannot spare the disk: the folder gets a list of the patches alone.

    Args:
        pairs, cutting, groups, workers, strict, track: see `prepare`.
        folder: of the list, some 20 bytes a patch.
        announce: called with one line that says what streaming costs.

    Returns:
        `Stream`.

    Raises:
        ValueError: no file can be read, or the training set is empty.
        OSError: a worker died.
    """
    announce("No cache: the files are read, prepared and cut again in every epoch.")
    options = {"groups": groups, "strict": strict, "track": track, "announce": announce}
    pool = Workers(pairs, count=workers)
    cache, fitted, rules = made(pool, folder, cutting, shard_bytes=SHARD_BYTES, stores=False, **options)
    return Stream(**vars(cache), pool=pool, cutting=fitted, rules=rules)


def reopened(folder, pairs=None, *, workers=None):
    """What `prepare` left in a folder, or with `pairs` what `stream` left; not compared with the files it is made of.

    Args:
        folder: of either.
        pairs, workers: see `prepare`.

    Returns:
        `Cache` or `Stream`; None where there is none.
    """
    found = lying_in(folder)
    if found is None or pairs is None:
        return found and found[0]
    cache, cutting, rules = found
    return Stream(**vars(cache), pool=Workers(pairs, count=workers), cutting=cutting, rules=rules)


def _patches_of(pairs, index, set_name, cutting, rules):
    """`(name, patches of one file for one set, what was skipped or None)`. Runs in a worker."""
    example, skipped = try_to_read(pairs, index, rules)
    if example is None:
        return "", [], skipped
    name, image, label = example
    found = cut_example(image, label, cutting, number=index, set_name=set_name)
    return str(name), [patch for part, patch in found if part == set_name], None


def _check_one_size(batch_size, input_shape, label_shape):
    """Refuses batches of patches of several sizes."""
    if None in (*input_shape, *label_shape) and batch_size > 1:
        received = {"batch_size": batch_size, "input_shape": input_shape, "label_shape": label_shape}
        remedy = "Give a patch size without a threshold, a fixed size of inputs, or batches of 1."
        raise ValueError(_checks.message("Patches of one batch must have one size.", received, remedy))


def _choices(set_name, shuffle, max_blank, drop_remainder):
    """What training does by default, and what evaluation does, which takes every patch once and in order."""
    is_training = _checks.choice("set_name", set_name, split.SETS) == "train"
    return (
        is_training if shuffle is None else shuffle,
        (0.1 if is_training else 1.0) if max_blank is None else max_blank,
        is_training if drop_remainder is None else drop_remainder,
    )


def _part(kept, part):
    """Of those kept, a run of neighbours, so that few shards are read for two parts."""
    index, count = part
    count = _checks.whole_number("the count of `part`", count, at_least=1)
    if _checks.whole_number("the index of `part`", index, at_least=0) >= count:
        raise ValueError(_checks.message("The index of `part` must be below its count.", {"part": (index, count)}))
    places = np.array_split(np.flatnonzero(kept), count)[index]
    if not places.size:
        received = {"part": (index, count), "patches": int(kept.sum())}
        raise ValueError(_checks.message("There must not be more parts than there are patches.", received))
    chosen = np.zeros_like(kept)
    chosen[places] = True
    return chosen


def _samples(cache, set_name, kept, shuffle, origin, seed):
    """Single patches `(input, label)` from the shards of a set, those that are `kept`."""
    ends = np.cumsum([count for _, count in cache.shards[set_name]])
    needed = [mine.any() for mine in np.split(kept, ends[:-1])]
    paths = [path for path, _ in itertools.compress(cache.shards[set_name], needed)]
    firsts = np.array([0, *ends[:-1]])[needed]
    files = tf.data.Dataset.from_tensor_slices((paths, firsts))
    files = files.shuffle(len(paths), seed=seed) if shuffle else files
    records = files.interleave(
        lambda path, first: tf.data.TFRecordDataset(path).enumerate(first),
        cycle_length=min(_SHARDS_AT_ONCE, len(paths)) if shuffle else 1,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    if not kept.all():
        is_kept = tf.constant(kept)
        records = records.filter(lambda index, _: is_kept[index])

    def parsed(_, record):
        found = parse(
            record, input_shape=cache.input_shape, label_shape=cache.label_shape, label_dtype=cache.label_dtype
        )
        where = ({"name": found["name"], "start": found["start"]},) if origin else ()
        return found["input"], found["label"], *where

    return records.map(parsed, num_parallel_calls=tf.data.AUTOTUNE)


def _streamed(stream, set_name, kept, shuffle, origin, seed):
    """Those of a stream."""
    ends = np.cumsum([count for _, count in stream.shards[set_name]])
    kept_of = np.split(kept, ends[:-1])
    epochs = itertools.count()

    def patches():
        order = range(len(ends))
        if shuffle:
            order = np.random.default_rng([seed, next(epochs)]).permutation(len(ends)).tolist()
        for place, name, found in stream.read(set_name, [place for place in order if kept_of[place].any()]):
            for patch in itertools.compress(found, kept_of[place]):
                yield patch.input, patch.label, *(({"name": name, "start": patch.start},) if origin else ())

    where = ({"name": tf.TensorSpec([], tf.string), "start": tf.TensorSpec([len(stream.input_shape) - 1], tf.int64)},)
    label = tf.TensorSpec(stream.label_shape, stream.label_dtype)
    signature = (tf.TensorSpec(stream.input_shape, tf.float32), label, *(where if origin else ()))
    return tf.data.Dataset.from_generator(patches, output_signature=signature)


def _batches(samples, batch_size, flips, quarter_turns, drop_remainder, seed):
    """Single samples as batches, flipped."""
    if flips or quarter_turns:
        axes = None if flips is True else tuple(flips or ())
        seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)

        def flipped(sample, draw):
            inputs, label, *where = sample
            return *augment.flips(inputs, label, draw, axes=axes, quarter_turns=quarter_turns), *where

        samples = tf.data.Dataset.zip((samples, seeds)).map(flipped, num_parallel_calls=tf.data.AUTOTUNE)
    return samples.batch(batch_size, drop_remainder=drop_remainder)
