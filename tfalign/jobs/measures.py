"""What is measured of a trained network: scores in place and registered, and where every label lay."""

import keras
import numpy as np
import tensorflow as tf

from tfalign import metrics
from tfalign.data import tables
from tfalign.data.realignment import registered
from tfalign.data.split import SETS
from tfalign.jobs.run_data import every_batch, ignored_class, is_class_map
from tfalign.metrics import pairs
from tfalign.metrics.base import MeanOfSamples
from tfalign.models.deformable import DeformableModel
from tfalign.ops import displacements, geometry, registration

BOUNDS = ("max_shift", "max_rotation", "max_scale", "max_shear")
AXES = {1: ("sample",), 2: ("row", "col"), 3: ("plane", "row", "col")}
_SSIM_WINDOW = 11  # pixels
# Measures that do not mind how label values were scaled for training.
_SCALE_FREE = ("ncc", "phase", "mi", "nmi", "joint_entropy")


def in_place_metrics(config, facts):
    """Metrics of an epoch, at the coordinates as they are; the first is the one to watch where labels lie right."""
    ignored = ignored_class(config)
    found = []
    for name, metric in _metrics(config, facts).items():
        if name != "ssim":  # too slow for every step
            found.append(metrics.InPlace(metric, ignore_class=ignored, name=f"in_place_{name}"))
    return found


class Scorer:
    """Scores sets of patches by the best metrics for what the labels are, in place and registered.

    In place nothing is moved; registered, each label is laid on its prediction first, so that the network's own offset
    and the misalignment of the label are both taken out.
    """

    def __init__(self, model, config, facts):
        self._model, self._ignored = model, ignored_class(config)
        self._search = pairs.Search.checked(**search_of(config))
        # What laid the two on one grid does not matter to a metric that is handed both.
        inner = {kind: _metrics(config, facts) for kind in ("in_place", "registered")}
        self._metrics = {
            kind: {name: metrics.InPlace(one) for name, one in of_kind.items()} for kind, of_kind in inner.items()
        }
        self._counts = [
            (name, one.count)
            for of_kind in inner.values()
            for name, one in of_kind.items()
            if isinstance(one, MeanOfSamples)
        ]
        self._count = None

    def __call__(self, batches, *, advance=lambda patches: None):
        """`{"in_place": {name: value}, "registered": {name: value}}` of batches `(inputs, labels)`."""
        if self._count is None:
            self._count = tf.function(self._counted, input_signature=batches.element_spec, autograph=False)
        every = [metric for of_kind in self._metrics.values() for metric in of_kind.values()]
        for metric in every:
            metric.reset_state()
        for inputs, labels in batches:
            self._count(inputs, labels)
            advance(len(inputs))
        found = {
            kind: {name: float(metric.result()) for name, metric in of_kind.items()}
            for kind, of_kind in self._metrics.items()
        }
        # No window of SSIM may have fitted: its 0 would be a judgement.
        missing = {name for name, count in self._counts if float(count) == 0.0}
        return {
            kind: {name: of_kind[name] for name in of_kind if name not in missing} for kind, of_kind in found.items()
        }

    def _counted(self, inputs, labels):
        pair = pairs.paired(labels, self._model(inputs, training=False), ignore_class=self._ignored)
        laid = {
            "in_place": pairs.in_place(pair),
            "registered": pairs.aligned(pair, self._search, subpixel=False, min_confidence=0.5),
        }
        for kind, of_kind in self._metrics.items():
            for metric in of_kind.values():
                metric.add(laid[kind], tf.ones(tf.shape(inputs)[:1]))


def search_of(config, *, scale_free=False):
    """Options of `tfalign.register` that search what the loss searches.

    `scale_free` asks for a measure that compares labels as they are in their files.
    """
    similarity = config.loss["similarity"]
    known = _SCALE_FREE if scale_free else registration.SIMILARITIES
    if similarity not in known:
        similarity = "ncc"
    bound = config.max_shift
    return {
        **{name: config.loss.get(name, 0.0) for name in BOUNDS},
        "max_shift": tuple(bound) if isinstance(bound, list) else bound,
        "similarity": similarity,
        "min_overlap": config.loss["min_overlap"],
    }


def offset_of(config, drift):
    """What of the network's drift is taken out of a shift: whole pixels where the loss moves by whole pixels."""
    is_exact = config.loss["subpixel"] or any(config.loss.get(name) for name in BOUNDS[1:])
    return np.asarray(drift) if is_exact else np.round(drift)


def alignment_rows(model, data, config, *, track=lambda description, total: lambda steps: None):
    """A row for every patch of every set: where its label lies relative to its input.

    Shifts are in pixels of the patches, the network's own drift taken out; rotation and shear in degrees and scale as a
    factor where they are searched. Of a `DeformableModel` also the bending, see `tfalign.ops.displacements.bending`.

    Args:
        model: the network, compiled with its loss.
        data: `RunData`.
        config: `Config`.
        track: see `tfalign.jobs.train.run`.

    Returns:
        A list of dicts: id, file, split, start on each axis, translation on each axis, further parameters, score
        (the similarity of label and prediction where the label lies best), confidence.
    """
    find, bend = None, None
    turns = any(config.loss.get(name) for name in BOUNDS[1:])
    drift = offset_of(config, model.loss.drift[: data.rank])
    axes = AXES[data.rank]
    advance = track("labels", sum(records for name in SETS for _, records in data.cache.shards[name]))
    rows = []
    for set_name in SETS:
        batches = every_batch(data.cache, set_name, config, origin=True)
        if batches is None:
            continue
        find = find or registering(model, config, batches.element_spec[:2])
        if isinstance(model, DeformableModel):
            bend = bend or _bending(model, batches.element_spec[:2])
        for inputs, labels, origin in batches:
            found = find(inputs, labels)
            columns = _parameters(found.transform, drift, turns)
            if bend is not None:
                columns["bending"] = bend(inputs, labels).numpy()
            for number, (name, start) in enumerate(zip(origin["name"].numpy(), origin["start"].numpy())):
                file = name.decode()
                place = {f"start_{axis}": int(first) for axis, first in zip(axes, start)}
                rows.append(
                    {
                        # By region a start counts from the region.
                        "id": f"{file}@{set_name}:{','.join(str(first) for first in place.values())}",
                        "file": file,
                        "split": set_name,
                        **place,
                        **{column: round(float(values[number]), 4) + 0.0 for column, values in columns.items()},
                        "score": round(float(found.score[number]), 4),
                        "confidence": round(float(found.confidence[number]), 4),
                    }
                )
            advance(len(origin["name"]))
    return rows


def write_alignment(path, rows):
    """Writes the table of labels."""
    tables.write(path, rows)


def registering(model, config, signature):
    """A traced function `(inputs, labels) -> tfalign.Registration`."""
    options, ignored = search_of(config), ignored_class(config)

    @tf.function(input_signature=signature, autograph=False)
    def find(inputs, labels):
        prediction = tf.cast(model(inputs, training=False), tf.float32)
        return registered(prediction, labels, ignore_class=ignored, **options)

    return find


def _bending(model, signature):
    """A traced function `(inputs, labels) -> (batch,)` pixels."""

    @tf.function(input_signature=signature, autograph=False)
    def bend(inputs, labels):
        return displacements.bending(model.align(inputs, labels).displacement)

    return bend


def _parameters(transforms, drift, turns):
    """Columns of what transforms `(batch, d+1, d+1)` are made of, `{name: (batch,)}`."""
    rank = len(drift)
    axes = AXES[rank]
    shifts = geometry.translation_of(transforms).numpy() - drift
    columns = dict(zip(axes, shifts.T))
    if turns:
        found = geometry.decompose(transforms)
        about = {1: (), 2: ("",), 3: tuple(f"_{axis}" for axis in axes)}[rank]
        for name, suffixes in (("rotation", about), ("shear", about), ("scale", [f"_{axis}" for axis in axes])):
            values = getattr(found, name).numpy()
            columns |= {name + suffix: values[:, index] for index, suffix in enumerate(suffixes)}
    return columns


def _metrics(config, facts):
    """Metrics by name, new ones, for what the labels are."""
    base = config.loss["base"]
    name = str(base.get("class_name") if isinstance(base, dict) else base).lower().replace("_", "")
    if is_class_map(config):
        classes = facts["output_channels"]
        iou = keras.metrics.MeanIoU(num_classes=classes, sparse_y_pred=False, name="iou")
        return {"accuracy": "accuracy", "iou": iou}
    if "crossentropy" in name or "focal" in name:
        return {"accuracy": "accuracy", "mae": "mae"}
    found = {"mae": "mae", "psnr": metrics.PSNR(max_value=facts["value_range"])}
    sizes = np.broadcast_to(facts["patch_size"], facts["rank"])
    if facts["rank"] == 2 and min(sizes) > 2 * _SSIM_WINDOW:
        found["ssim"] = metrics.SSIM(max_value=facts["value_range"])
    return found
