"""The data of a run: files found and looked at, cut into the cache, and given out as batches, epoch by epoch."""

import collections
import os
from typing import Any, NamedTuple

import numpy as np

from tfalign import _checks
from tfalign.data import pipeline, read_pairs
from tfalign.data.cache import Cache
from tfalign.data.cutting import Cutting
from tfalign.data.fingerprints import digest, of_example
from tfalign.data.formats import BadFileError
from tfalign.data.patches import balanced
from tfalign.data.preprocess import Percentiles, Preprocessing, Scale
from tfalign.data.split import SETS
from tfalign.data.steps import as_tuples
from tfalign.jobs import config as configs
from tfalign.jobs import files
from tfalign.jobs.config import AUTO

_PATCH_SIZES = {1: 512, 2: 64, 3: 24}
_LOOKED_AT = 16  # files, to learn of what kind all are
_LEAST_STEPS = 100  # an epoch: alignment starts after some hundred steps, however few patches there are
_MOST_CLASSES = 256
_UNKNOWN = 255  # in maps of bytes where no class is known, as often as not
_FEW_FILES, _FEW_BYTES = 64, 2**25  # are read faster than a worker process starts
NO_CLASS = -1  # of class maps beyond their file


class RunData(NamedTuple):
    """What a run trains on.

    Attributes:
        cache: of all three sets; a `Stream` where the settings want no cache.
        truth: that of held-out labels that are known to lie right (its set is called "train"), or None.
        facts: the content of `data.json`.
    """

    cache: Cache
    truth: Cache | None
    facts: dict

    @property
    def rank(self):
        """Number of spatial axes."""
        return self.facts["rank"]

    @property
    def has_truth(self):
        """Whether the validation labels are known to lie right."""
        return self.truth is not None


def prepared(config, folder, *, track, announce):
    """Reads every file once, or finds that this is done, and settles what the settings leave to the data.

    Args:
        config: `Config`.
        folder: `RunFolder`, claimed.
        track, announce: see `tfalign.data.pipeline.prepare`.

    Returns:
        `RunData`.

    Raises:
        ValueError: nothing to train on, or files that changed since a run was begun.
        BadFileError: the first file that cannot be used, if strict.
        OSError: the disk is too small.
    """
    pairs = found(config, config.inputs, config.labels)
    labelled = [index for index in range(len(pairs)) if pairs[index].label is not None]
    announce(f"Found {len(pairs)} inputs, {len(labelled)} of them with a label.")
    pairs.write_skipped(folder.path)
    state = digest([of_example(pairs, index) for index in labelled])
    facts = _known_facts(folder, state)
    if facts is None:
        facts = {"files": state, **_facts(config, pairs, labelled)}
    cutting = _cutting(config, facts, len(labelled))
    options = {"workers": workers(config, pairs), "strict": config.strict, "track": track, "announce": announce}
    cache = cut(config, pairs, folder.cache, cutting, **options)
    pairs.write_skipped(folder.path)
    _tell_skipped(pairs.skipped, folder, announce)
    if "input_channels" not in facts:
        facts |= _facts_of_cache(config, facts, cache)
        files.write_json(folder.data_file, facts)
    truth = None
    if config.validation_inputs is not None:
        truth = _truth(config, folder, cache, cutting, facts, options)
    return RunData(cache, truth, facts)


def found(config, inputs, labels):
    """The pairs of inputs and labels, read as the settings say."""
    options = {"rank": config.rank, "strict": config.strict, "recipe": as_tuples(config.recipe)}
    options |= {"slide_level": config.slide_level, "slide_tile": config.slide_tile, "positions": config.positions}
    options["max_margin"] = _largest(config.max_shift) if config.max_margin == AUTO else config.max_margin
    if config.tfds is not None and inputs is None:
        features = None if config.features is None else tuple(config.features)
        return read_pairs(f"tfds:{config.tfds}", split=config.tfds_split, features=features, **options)
    if labels is None and config.recipe is None and not str(inputs).endswith((".csv", ".tsv", ".parquet", ".npz")):
        received = {"inputs": inputs, "labels": labels}
        raise ValueError(_checks.message("`labels` must be given.", received, "Or a `recipe`, in a --config."))
    return read_pairs(inputs, labels, **options)


def cut(config, pairs, folder, cutting, **options):
    """Patches of the pairs: a `Cache`, or a `Stream` where the settings want none; see `tfalign.data.pipeline`."""
    return (pipeline.prepare if config.cache else pipeline.stream)(pairs, folder, cutting, **options)


def reopened(run):
    """The patches of a run as they lie in its folder, not compared with the files; None where there are none.

    Args:
        run: `RunFolder`. A run without a cache needs its files; otherwise its settings are not needed.

    Raises:
        ValueError: the files of a run without a cache are not there.
    """
    settings = configs.read(run.config_file) if run.config_file.is_file() else {}
    if settings.get("cache", True):
        return pipeline.reopened(run.cache)
    config = run.config()
    return _reopened(config, run.cache, config.inputs, config.labels)


def shared(config, folder):
    """What the chief of several workers has prepared, for the others: `RunData`.

    Raises:
        ValueError: it is not there.
    """
    cache = _reopened(config, folder.cache, config.inputs, config.labels)
    if cache is None or not folder.data_file.exists():
        received = {"out": str(folder.path)}
        raise ValueError(_checks.message("`out` must be a folder that all workers read and write.", received))
    truth = None
    if config.validation_inputs is not None:
        truth = _reopened(config, folder.truth, config.validation_inputs, config.validation_labels)
    return RunData(cache, truth, files.read_json(folder.data_file))


def _reopened(config, folder, inputs, labels):
    if config.cache:
        return pipeline.reopened(folder)
    pairs = found(config, inputs, labels)
    return pipeline.reopened(folder, pairs, workers=workers(config, pairs))


def check_replicas(data, config, replicas):
    """Raises where a batch does not part evenly."""
    batch_size, _ = _batches(data, config)
    if batch_size % replicas:
        received = {"batch_size": batch_size, "replicas": replicas, "patches": patch_counts(data.cache)["train"]}
        raise ValueError(_checks.message("`batch_size` must be a multiple of the replicas.", received))


def training_batches(data, config, context, epoch):
    """Batches without end; each epoch has an order of its own, whatever was trained before it in this process.

    Args:
        data: `RunData`.
        config: `Config`.
        context: `tf.distribute.InputContext`: workers and replicas get their parts of the same batches as one device.
        epoch: its number.
    """
    batch_size, _ = _batches(data, config)
    here = batch_size // context.num_input_pipelines
    mine = slice(context.input_pipeline_id * here, (context.input_pipeline_id + 1) * here)
    batches = pipeline.dataset(
        data.cache,
        "train",
        batch_size=batch_size,
        max_blank=config.max_blank,
        flips=_flips(data, config),
        repeat=True,
        seed=_seed(config, epoch),
    )
    if context.num_replicas_in_sync == 1:
        return batches
    batches = batches.map(lambda inputs, labels: (inputs[mine], labels[mine]))
    return batches.rebatch(context.get_per_replica_batch_size(batch_size), drop_remainder=True)


def steps_per_epoch(data, config):
    """Steps that an epoch takes."""
    if config.steps_per_epoch != AUTO:
        return config.steps_per_epoch
    return max(_LEAST_STEPS, _batches(data, config)[1])


def validation_batches(data, config, *, origin=False):
    """Every validation patch once, in order; None where there is none."""
    if data.truth is not None:
        return every_batch(data.truth, "train", config, origin=origin)
    return every_batch(data.cache, "validation", config, origin=origin)


def every_batch(cache, set_name, config, *, origin=False):
    """Every patch of a set once, in order, without flips; None where there is none."""
    if not cache.shards[set_name]:
        return None
    return pipeline.dataset(
        cache,
        set_name,
        batch_size=config.batch_size,
        shuffle=False,
        max_blank=1.0,
        drop_remainder=False,
        origin=origin,
    )


def patch_counts(cache):
    """Patches of each set."""
    return {name: sum(records for _, records in cache.shards[name]) for name in SETS}


def is_class_map(config):
    """Whether labels are class numbers: the base is a sparse cross-entropy."""
    base = config.loss["base"]
    return "sparse" in str(base.get("class_name") if isinstance(base, dict) else base).lower()


def ignored_class(config):
    """The class that does not count, or None for labels that are no class maps."""
    given = config.loss["ignore_class"]
    return NO_CLASS if given is None and is_class_map(config) else given


def _known_facts(folder, state):
    """What an earlier start has settled, or None; training never goes on with other files."""
    if not folder.data_file.exists():
        return None
    facts = files.read_json(folder.data_file)
    if facts["files"] == state:
        return facts
    if folder.saved_checkpoints():
        received = {"out": str(folder.path)}
        remedy = "Give another folder, or put the files back as they were."
        raise ValueError(_checks.message("The files must be those that the run was begun with.", received, remedy))
    return None


def _facts(config, pairs, labelled):
    """What a look at some examples tells: rank, size of patches, range of labels."""
    examples = _some_examples(pairs, labelled)
    ranks = collections.Counter(image.ndim - 1 for image, _, _ in examples)
    ((rank, _),) = ranks.most_common(1)
    patch_size = config.patch_size
    if patch_size == AUTO:
        patch_size = max(_PATCH_SIZES[rank], -(-4 * _largest(config.max_shift) // 8) * 8)
    return {
        "rank": rank,
        "patch_size": patch_size,
        "margin": config.max_shift if config.margin == AUTO else config.margin,
        **_ranges(config, [(kind, extremes) for _, kind, extremes in examples]),
    }


def _some_examples(pairs, labelled):
    """`(input, type of the label, (lowest, highest) label value)` of some examples that can be read."""
    chosen = sorted({int(place) for place in np.linspace(0, len(labelled) - 1, _LOOKED_AT)}) if labelled else []
    rest = [place for place in range(len(labelled)) if place not in set(chosen)]
    examples: list[tuple[Any, ...]] = []
    for place in (*chosen, *rest):
        if place in rest and examples:
            break
        try:
            _, image, label = pairs.read(labelled[place])
        except BadFileError:
            if pairs.strict:
                raise
            continue
        examples.append((image, label.dtype, (label.min(), label.max())))
    if not examples:
        reasons = [f"{one.path}: {one.reason}" for one in pairs.skipped[:3]]
        received = {"inputs": len(pairs), "with a label": len(labelled), "left out": reasons}
        remedy = "Labels are matched with inputs by name; see skipped.csv for more."
        raise ValueError(_checks.message("An input with its label must be there to train on.", received, remedy))
    return examples


def _ranges(config, labels):
    """The range of label values that become 0 and 1, or None, and how far values then lie apart."""
    found = _label_range(config, labels)
    finite = [float(value) for _, extremes in labels for value in extremes if np.isfinite(value)] or [0.0, 1.0]
    return {"label_range": found, "value_range": 1.0 if found is not None else (max(finite) - min(finite)) or 1.0}


def _label_range(config, labels):
    """`[low, high]` of label values that become 0 and 1, or None."""
    if config.label_range != AUTO:
        return config.label_range
    if ignored_class(config) is not None or any(kind.kind == "f" for kind, _ in labels):
        return None
    low, high = min(int(one[0]) for _, one in labels), max(int(one[1]) for _, one in labels)
    if low >= 0 and high <= 1:
        return None
    return [0, 255] if all(kind == np.uint8 for kind, _ in labels) else [min(low, 0), high]


def _cutting(config, facts, files_count):
    steps = (Percentiles(over="data"),)
    if config.preprocessing != AUTO:
        steps = Preprocessing.from_config({"steps": config.preprocessing}).steps
    of_label = () if facts["label_range"] is None else (Scale(**dict(zip(("low", "high"), facts["label_range"]))),)
    fractions = tuple(config.fractions)
    if config.validation_inputs is not None:
        fractions = (fractions[0] + fractions[1], 0.0, fractions[2])
    split_by = config.split_by
    if split_by == AUTO:
        split_by = "file" if files_count >= 10 else "region"
    return Cutting(
        preprocessing=Preprocessing(steps),
        label_preprocessing=Preprocessing(of_label),
        patch_size=as_tuples(facts["patch_size"]),
        patch_overlap=as_tuples(config.patch_overlap),
        margin=as_tuples(facts["margin"]),
        ignore_class=ignored_class(config),
        fractions=fractions,
        split_by=split_by,
        seed=config.seed,
    )


def check_files_given(inputs, labels):
    """Refuses labels alone: with the run's own inputs they would be taken for the run's own labels."""
    if labels is not None and inputs is None:
        received = {"inputs": inputs, "labels": str(labels)}
        raise ValueError(_checks.message("Labels must come with their inputs.", received, "Give --inputs too."))


def _facts_of_cache(config, facts, cache):
    """What all patches tell: channels, classes, the fitted preprocessing."""
    outputs = config.output_channels
    if outputs == AUTO:
        outputs = _count_classes(config, cache) if is_class_map(config) else cache.label_shape[-1]
    return {
        "input_channels": cache.input_shape[-1],
        "output_channels": outputs,
        "patches": patch_counts(cache),
        "preprocessing": cache.preprocessing.get_config(),
    }


def _count_classes(config, cache):
    """One more than the highest class of all patches, two at least."""
    ignored, seen = ignored_class(config), {1}
    for name in SETS:
        for _, labels in every_batch(cache, name, config) or ():
            seen |= set(np.unique(labels.numpy()).astype(int).tolist()) - {ignored}
    highest = max(seen)
    received = {"highest class": highest, "classes seen": len(seen)}
    remedy = "Set `output_channels`, or `loss.ignore_class` where that number means unknown."
    if highest >= _MOST_CLASSES:
        raise ValueError(_checks.message(f"Class maps must have at most {_MOST_CLASSES} classes.", received, remedy))
    if highest == _UNKNOWN and len(seen) < _MOST_CLASSES // 2:
        raise ValueError(_checks.message(f"It must be told whether {_UNKNOWN} is a class.", received, remedy))
    return highest + 1


def _truth(config, folder, cache, cutting, facts, options):
    """The cache of labels that lie right: the same cutting, all in one set."""
    pairs = found(config, config.validation_inputs, config.validation_labels)
    config_of_cutting = {**cutting.get_config(), "preprocessing": cache.preprocessing.get_config()}
    whole = Cutting.from_config({**config_of_cutting, "fractions": (1.0, 0.0, 0.0), "split_by": "file"})
    truth = cut(config, pairs, folder.truth, whole, **options)
    received = {"its channels": (truth.input_shape[-1], truth.label_shape[-1])}
    wanted = (cache.input_shape[-1], cache.label_shape[-1])
    if received["its channels"] != wanted:
        received["those of the training set"] = wanted
        raise ValueError(_checks.message("Validation files must have the channels of the others.", received))
    return truth


def _tell_skipped(skipped, folder, announce):
    if not skipped:
        return
    announce(f"{len(skipped)} files are left out, see {folder.path / 'skipped.csv'}:")
    for one in skipped[:5]:
        announce(f"  {one.path}: {one.reason}")
    if len(skipped) > 5:
        announce(f"  … and {len(skipped) - 5} more")


def _batches(data, config):
    """`(size of a batch, batches in one pass)` of the training set."""
    kept = int(balanced(data.cache.contents["train"], max_blank=config.max_blank).sum())
    batch_size = min(config.batch_size, kept)
    return batch_size, kept // batch_size


def _flips(data, config):
    if config.flips == AUTO:
        return data.rank > 1
    return tuple(config.flips) if isinstance(config.flips, list) else config.flips


def _seed(config, epoch):
    """A seed of the order in an epoch."""
    return int(np.random.SeedSequence([config.seed, epoch]).generate_state(1)[0] & 0x7FFFFFFF)


def workers(config, pairs):
    """Processes that read the files: None for one a processor, 0 for this one, which is faster for few small files."""
    if config.workers != AUTO:
        return config.workers
    paths = [str(source.path) for pair in pairs for source in (pair.input, pair.label) if source is not None]
    if len(paths) > 2 * _FEW_FILES or not all(map(os.path.isfile, paths)):
        return None
    return 0 if sum(map(os.path.getsize, paths)) <= _FEW_BYTES else None


def _largest(bound):
    return max(bound) if isinstance(bound, (list, tuple)) else bound
