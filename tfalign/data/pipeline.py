"""From files to batches: `prepare` reads every file once, `dataset` gives batches of patches by pure `tf.data`.

    cutting = Cutting(preprocessing=Preprocessing((Percentiles(over="data"),)), patch_size=256, margin=8)
    cache = pipeline.prepare(pairs, "run/cache", cutting, announce=print)
    model.fit(pipeline.dataset(cache, "train", batch_size=16, flips=True), steps_per_epoch=…)

`Stream` gives the same batches without a cache: the files are read again in every epoch.
"""

import itertools
import math

import numpy as np
import tensorflow as tf

from tfalign import _checks
from tfalign.data import augment, split
from tfalign.data.cache import Cache, common_shape, prepare
from tfalign.data.cutting import Cutting, cut_example
from tfalign.data.examples import fit, rules_of, set_names, try_to_read
from tfalign.data.patches import balanced
from tfalign.data.shards import parse
from tfalign.data.workers import Workers

__all__ = ["Cache", "Cutting", "Stream", "dataset", "prepare"]

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
    service=None,
    shuffle_bytes=SHUFFLE_BYTES,
    seed=0,
):
    """Batches of one set, the same for the same seed and cache; another order in every epoch.

    Every step is an operation of `tf.data`. Memory holds a few batches and the shuffle buffer, whatever the number of
    patches: shards are read in random order, 16 at a time, then patches are drawn from the buffer.

    Args:
        cache: what `prepare` returns.
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
        service: address of a dispatcher of the `tf.data` service, e.g. "grpc://host:5050"; its workers read the shards
            in place of this process, each patch once in an epoch, in an order of their own.
        shuffle_bytes: size of the shuffle buffer.
        seed: of the order, the choice among blank patches, and the flips.

    Returns:
        A `tf.data.Dataset` of `(inputs, labels)`: `(batch, *patch_size, channels)` float32, and
        `(batch, *(patch_size + 2 margin), channels)` float32, or int32 for class maps.

    Raises:
        ValueError: an empty set, one that does not fill a batch, or batches of patches of several sizes.
    """
    batch_size = _checks.whole_number("batch_size", batch_size, at_least=1)
    shuffle, max_blank, drop_remainder = _choices(set_name, shuffle, max_blank, drop_remainder)
    if not cache.shards[set_name]:
        raise ValueError(_checks.message("`set_name` must be a set with patches.", {"set_name": set_name}))
    _check_one_size(batch_size, cache.input_shape, cache.label_shape)
    kept = balanced(cache.contents[set_name], max_blank=max_blank, seed=seed)
    if drop_remainder and kept.sum() < batch_size:
        received = {"batch_size": batch_size, "patches": int(kept.sum()), "set_name": set_name}
        raise ValueError(_checks.message("`batch_size` must not exceed the patches.", received))

    samples = _samples(cache, cache.shards[set_name], kept, shuffle, origin, seed)
    if shuffle:
        patch_bytes = 4 * sum(
            math.prod(size or 256 for size in shape) for shape in (cache.input_shape, cache.label_shape)
        )
        samples = samples.shuffle(max(1, min(shuffle_bytes // patch_bytes, len(kept))), seed=seed)
    batches = _batches(samples, batch_size, flips, quarter_turns, drop_remainder, seed)
    if service is not None:
        batches = batches.apply(tf.data.experimental.service.distribute("distributed_epoch", service))
    else:
        # Keras asks for the number of batches; in the service each worker has some of them.
        count = kept.sum() // batch_size if drop_remainder else -(-kept.sum() // batch_size)
        batches = batches.apply(tf.data.experimental.assert_cardinality(count))
    return (batches.repeat() if repeat else batches).prefetch(tf.data.AUTOTUNE)


class Stream:
    """Batches straight from the files, for those who cannot spare the disk: every epoch reads all files again.

    The same patches as from a cache. Shuffling is weaker (files in random order, then the buffer), and blank patches
    are judged within their file.

    Args:
        pairs, cutting, groups, workers, strict, track: see `tfalign.data.cache.prepare`.
        announce: called with one line that says what streaming costs.

    Attributes:
        preprocessing: of inputs, fitted.
        skipped: `{"path", "reason"}` of each file left out so far; `pairs.skipped` lists them too.
    """

    def __init__(
        self,
        pairs,
        cutting,
        *,
        groups=None,
        workers=None,
        strict=False,
        track=lambda description, total: lambda steps: None,
        announce=lambda text: None,
    ):
        announce("No cache: the files are read, prepared and cut again in every epoch.")
        self._sets = set_names(pairs, cutting, groups)
        self._pool = Workers(pairs, count=workers)
        self._rules = rules_of(self._pool, self._sets, strict=strict or getattr(pairs, "strict", False))
        self._cutting = fit(self._pool, cutting, self._sets, rules=self._rules, track=track)
        self.preprocessing = self._cutting.preprocessing
        self.skipped: list[dict] = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Ends the worker processes."""
        self._pool.__exit__(*_)

    def dataset(
        self,
        set_name,
        *,
        batch_size,
        shuffle=None,
        max_blank=None,
        flips=False,
        quarter_turns=False,
        repeat=False,
        drop_remainder=None,
        shuffle_bytes=SHUFFLE_BYTES,
        seed=0,
    ):
        """Batches of one set; arguments and result as of `dataset`, without `origin` and `service`.

        How many there are is not known before: give Keras `repeat=True` and `steps_per_epoch`. Where nothing sets the
        size of patches, batches of more than one cost a reading of all files to compare their sizes.
        """
        batch_size = _checks.whole_number("batch_size", batch_size, at_least=1)
        shuffle, max_blank, drop_remainder = _choices(set_name, shuffle, max_blank, drop_remainder)
        epochs = itertools.count()

        def patches():
            order = self._files_of(set_name)
            if shuffle:
                order = np.random.default_rng([seed, next(epochs)]).permutation(order).tolist()
            yield from self._patches(set_name, order, max_blank)

        every = self._patches(set_name, self._files_of(set_name), 1.0)
        first = next(every, None)
        if first is None:
            raise ValueError(_checks.message("`set_name` must be a set with patches.", {"set_name": set_name}))
        cutting = self._cutting
        if cutting.patch_size is not None and cutting.max_size is cutting.max_pixels is None:
            shapes = [one.shape for one in first]
        elif batch_size == 1:
            shapes = [(*[None] * (one.ndim - 1), one.shape[-1]) for one in first]
        else:
            seen = {(one.shape, other.shape) for one, other in itertools.chain([first], every)}
            shapes = [common_shape(of_one) for of_one in zip(*seen)]
        _check_one_size(batch_size, *shapes)
        spec = tuple(tf.TensorSpec(shape, one.dtype) for shape, one in zip(shapes, first))
        samples = tf.data.Dataset.from_generator(patches, output_signature=spec)
        if shuffle:
            samples = samples.shuffle(max(1, shuffle_bytes // sum(one.nbytes for one in first)), seed=seed)
        batches = _batches(samples, batch_size, flips, quarter_turns, drop_remainder, seed)
        return (batches.repeat() if repeat else batches).prefetch(tf.data.AUTOTUNE)

    def _files_of(self, set_name):
        """Numbers of the files that may have patches for a set."""
        by_file = self._cutting.split_by == "file"
        return [index for index, name in enumerate(self._sets) if name == set_name or (name and not by_file)]

    def _patches(self, set_name, order, max_blank):
        """Yields `(input, label)` of each patch; notes what is skipped."""
        arguments = ((index, set_name, self._cutting, self._rules, max_blank) for index in order)
        for patches, skipped in self._pool.map(_patches_of, arguments):
            if skipped is not None and skipped not in self.skipped:
                self.skipped.append(skipped)
                if hasattr(self._pool.pairs, "note_skipped"):  # the workers have noted it in copies of their own
                    self._pool.pairs.note_skipped(skipped["path"], skipped["reason"])
            yield from patches


def _patches_of(pairs, index, set_name, cutting, rules, max_blank):
    """All `(input, label)` of one file for one set, and what was skipped, or None. Runs in a worker."""
    example, skipped = try_to_read(pairs, index, rules)
    if example is None:
        return [], skipped
    found = cut_example(example[1], example[2], cutting, number=index, set_name=set_name)
    patches = [patch for name, patch in found if name == set_name]
    kept = balanced([patch.content for patch in patches], max_blank=max_blank, seed=index)
    return [(patch.input, patch.label) for patch, keep in zip(patches, kept) if keep], None


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


def _samples(cache, shards, kept, shuffle, origin, seed):
    """Single patches `(input, label)` from the shards of a set, those that are `kept`."""
    paths, counts = zip(*shards)
    firsts = np.cumsum([0, *counts[:-1]])
    files = tf.data.Dataset.from_tensor_slices((list(paths), firsts))
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
