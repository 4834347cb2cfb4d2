"""Labels laid on what a trained network predicts: the misalignment of each, and the repaired label."""

import math

import numpy as np
import tensorflow as tf

from tfalign import _checks
from tfalign.ops import evidence, geometry, peak, registration, resample

PER = ("patch", "file", "dataset", "instance")


def realign(
    dataset,
    model,
    *,
    max_shift,
    per="patch",
    similarity="ncc",
    subpixel=False,
    offset=0.0,
    min_confidence=0.5,
    min_overlap=0.5,
    ignore_class=None,
):
    """Registers every label of a data set to the prediction of a trained network, and moves it back.

    Args:
        dataset: batches `(inputs, labels)` or `(inputs, labels, origin)`, as `tfalign.data.pipeline.dataset` gives
            them with `origin=True`: `(batch, *spatial, channels)` each; labels may have a margin, and class or instance
            maps are integers. Per "file" and "dataset" it is gone through once before.
        model: inputs -> predictions, called in a `tf.data` map.
        max_shift: int >= 0, or one per spatial axis, pixels.
        per: one shift for each "patch"; for all patches of a "file", by `origin["name"]`; for the whole "dataset"; or
            for each "instance" of an instance map (numbers from 1): the prediction is then the probability of a single
            channel, or of not being the first of several.
        similarity, min_overlap: see `tfalign.register`.
        subpixel: move by fractions of a pixel; class and instance maps move by whole ones.
        offset: pixels, one number or one per axis: the network's own offset, `ShiftInvariantLoss.drift`, not the
            label's fault.
        min_confidence: a label whose shift is known with a lower probability stays where it is.
        ignore_class: of class maps, the class that does not count; pixels that no label pixel moves to become it.

    Returns:
        A `tf.data.Dataset` of `(inputs, labels, found)`: the labels on their own grid, NaN (of class maps
        `ignore_class`, or 0) where nothing is known; `found` is `origin` with "translation" `(batch, d)` pixels, where
        the label lay relative to its input, and "confidence" `(batch,)`. Per "instance" both are maps on the grid of
        the label: `(batch, *spatial, d)` and `(batch, *spatial)`, 0 in the background.

    Raises:
        ValueError: an option out of range, no names per "file", or labels that are no instance maps.
    """
    _checks.choice("per", per, PER)
    element = dataset.element_spec
    if not isinstance(element, tuple) or len(element) not in (2, 3):
        received = {"dataset.element_spec": element}
        raise ValueError(_checks.message("`dataset` must give (inputs, labels) or (inputs, labels, origin).", received))
    if per == "file" and (len(element) < 3 or "name" not in element[2]):
        received = {"per": per, "dataset.element_spec": element}
        remedy = "Make it with tfalign.data.pipeline.dataset(..., origin=True)."
        raise ValueError(_checks.message('per="file" needs the name of the file of each patch.', received, remedy))
    if per == "instance" and not element[1].dtype.is_integer:
        received = {"labels.dtype": element[1].dtype.name}
        raise ValueError(_checks.message('per="instance" needs instance maps: integers.', received))
    rank = element[0].shape.rank - 2
    options = {
        "max_shift": _checks.pixels_per_axis("max_shift", max_shift, rank),
        "similarity": _checks.choice("similarity", similarity, registration.SIMILARITIES),
        "min_overlap": _checks.number("min_overlap", min_overlap, at_least=0.0, at_most=1.0),
    }
    moves = _Moves(rank, offset, min_confidence, subpixel and not element[1].dtype.is_integer, ignore_class)

    def own(inputs, labels, *origin):
        prediction = tf.cast(model(inputs, training=False), tf.float32)
        if per == "instance":
            labels, translation, confidence = _realigned_instances(prediction, labels, moves, options)
        else:
            found = registered(prediction, labels, ignore_class=ignore_class, **options)
            translation, confidence = moves.of(found.translation, found.confidence), found.confidence
            labels = moves.moved(labels, translation, confidence)
        return inputs, labels, {**(origin[0] if origin else {}), "translation": translation, "confidence": confidence}

    if per in ("patch", "instance"):
        return dataset.map(own, num_parallel_calls=tf.data.AUTOTUNE)
    names, shifts, confidences = _of_groups(dataset, model, per, ignore_class, options)
    index = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(names, range(len(names))), -1)

    def common(inputs, labels, *origin):
        keys = origin[0]["name"] if per == "file" else tf.fill([tf.shape(inputs)[0]], "")
        at = index.lookup(keys)
        confidence = tf.gather(tf.constant(confidences), at)
        translation = moves.of(tf.gather(tf.constant(shifts), at), confidence)
        labels = moves.moved(labels, translation, confidence)
        return inputs, labels, {**(origin[0] if origin else {}), "translation": translation, "confidence": confidence}

    return dataset.map(common, num_parallel_calls=tf.data.AUTOTUNE)


def registered(prediction, labels, *, mask=None, ignore_class=None, **options):
    """`tfalign.register` of labels to predictions, maps included; class maps of one channel become numbers."""
    counts = tf.ones(tf.shape(labels)[:-1]) if mask is None else tf.cast(mask, tf.float32)
    if ignore_class is not None:
        counts *= tf.cast(tf.not_equal(labels, tf.cast(ignore_class, labels.dtype))[..., 0], tf.float32)
    if labels.dtype.is_integer and prediction.shape[-1] == 1:
        labels = tf.cast(labels, tf.float32)
    return registration.register(prediction, labels, moving_mask=counts, return_map=True, **options)


class Pool:
    """One shift for many patches, from the product of their posteriors."""

    def __init__(self, max_shift):
        self._max_shift = tuple(max_shift)
        self._window = tuple(2 * bound + 1 for bound in max_shift)
        self._evidence = np.zeros(math.prod(self._window))
        self._scores = np.zeros(math.prod(self._window))

    def add(self, posterior_map, score_map):
        """Takes the maps `(*window)` of one patch."""
        self._evidence += np.log(np.maximum(np.ravel(posterior_map), 1e-12))
        scores = np.ravel(score_map)
        self._scores += np.where(np.isfinite(scores), scores, 0.0)

    def result(self):
        """`(translation (d,), confidence)`; no shift and 0 where nothing is known."""
        if np.ptp(self._evidence) < 1e-6:
            return np.zeros(len(self._window), np.float32), 0.0
        best = tf.constant([int(np.argmax(self._evidence))])
        shift = tf.gather(peak.window_shifts(self._max_shift, tf.float32), best)
        posterior = tf.nn.softmax(tf.constant(self._evidence - self._evidence.max(), tf.float32)[tf.newaxis])
        fraction = peak.fraction(tf.constant(self._scores, tf.float32)[tf.newaxis], best, self._window)
        confidence = evidence.mass_within_one_pixel(posterior, shift, self._max_shift)
        return (shift + fraction).numpy()[0], float(confidence[0])


class _Moves:
    """What is done with a shift once it is known."""

    def __init__(self, rank, offset, min_confidence, subpixel, ignore_class):
        offsets = np.array(offset, np.float32) * np.ones(rank, np.float32)
        self._offset = tf.constant(offsets)
        self._least = _checks.number("min_confidence", min_confidence, at_least=0.0, at_most=1.0)
        self._subpixel = subpixel
        self._fill = ignore_class

    def of(self, shift, confidence):
        """The misalignment `(..., d)` that a shift stands for; none where it is not known."""
        own = shift - self._offset
        own = own if self._subpixel else tf.round(own)
        return tf.where((confidence >= self._least)[..., tf.newaxis], own, 0.0)

    def moved(self, labels, translation, confidence):
        """Labels `(batch, *spatial, channels)` moved by `-translation`, on their own grid."""
        fill = (self._fill or 0) if labels.dtype.is_integer else np.nan
        if self._subpixel:
            values, _ = resample.warp(labels, geometry.from_translation(translation), fill_value=fill)
            return tf.cast(values, labels.dtype)
        values, inside = resample.shift_by_pixels(labels, translation, geometry.spatial_shape(labels))
        return tf.where(inside[..., tf.newaxis] > 0, values, tf.cast(fill, labels.dtype))


def _of_groups(dataset, model, per, ignore_class, options):
    """The names of all groups, and for each the shift and its confidence."""

    @tf.function
    def maps(inputs, labels):
        prediction = tf.cast(model(inputs, training=False), tf.float32)
        found = registered(prediction, labels, ignore_class=ignore_class, **options)
        return found.posterior_map, found.score_map

    pools: dict[bytes, Pool] = {}
    for inputs, labels, *origin in dataset:
        names = origin[0]["name"].numpy() if per == "file" else [b""] * len(inputs)
        for name, *found in zip(names, *(one.numpy() for one in maps(inputs, labels))):
            pools.setdefault(name, Pool(options["max_shift"])).add(*found)
    if not pools:
        raise ValueError(
            _checks.message("`dataset` must not be empty.", {"dataset.element_spec": dataset.element_spec})
        )
    shifts, confidences = zip(*(pool.result() for pool in pools.values()))
    return list(pools), np.stack(shifts).astype(np.float32), np.array(confidences, np.float32)


def _realigned_instances(prediction, labels, moves, options):
    """Every instance of instance maps moved by itself: maps, translations and confidences."""
    rank = len(options["max_shift"])
    foreground = prediction if prediction.shape[-1] == 1 else 1.0 - prediction[..., :1]
    spatial = [None] * rank
    signature = (
        tf.TensorSpec([*spatial, 1], labels.dtype),
        tf.TensorSpec([*spatial, rank], tf.float32),
        tf.TensorSpec(spatial, tf.float32),
    )
    pairs = (foreground, labels)
    return tf.map_fn(lambda pair: _of_instances(pair[0], pair[1], moves, options), pairs, fn_output_signature=signature)


def _of_instances(foreground, label, moves, options):
    """One instance map `(*spatial, 1)`, moved; where two instances meet the surer one stays."""
    reach = [2 * bound + 5 for bound in options["max_shift"]]
    numbers = tf.unique(tf.reshape(label, [-1]))[0]
    numbers = tf.boolean_mask(numbers, numbers > 0)
    each = tf.equal(label[tf.newaxis], tf.reshape(numbers, [-1] + [1] * (len(reach) + 1)))
    # Only its surroundings tell about an instance, without those that are others'.
    near = tf.nn.pool(tf.cast(each, tf.float32), reach, "MAX", [1] * len(reach), "SAME") > 0
    counts = near & (each | (label == 0)[tf.newaxis])
    found = registration.register(
        tf.broadcast_to(foreground, tf.concat([[tf.shape(numbers)[0]], tf.shape(foreground)], axis=0)),
        tf.cast(each, tf.float32),
        moving_mask=tf.cast(counts[..., 0], tf.float32),
        **options,
    )
    translation = moves.of(found.translation, found.confidence)
    moved, inside = resample.shift_by_pixels(tf.cast(each, tf.float32), translation, geometry.spatial_shape(each))
    weight = moved * inside[..., tf.newaxis] * tf.reshape(found.confidence + 1e-3, [-1] + [1] * (len(reach) + 1))
    # The background comes first and weighs least, so that there is always something to choose.
    owner = tf.argmax(tf.concat([tf.fill([1, *tf.unstack(tf.shape(label))], 1e-6), weight], axis=0))[..., 0]

    def of_owner(values):
        return tf.gather(tf.concat([tf.zeros_like(values[:1]), values], axis=0), owner)

    # A map without instances has no first one to make the background's zero of.
    numbers, translation, confidence = (
        tf.pad(values, [[0, 1]] + [[0, 0]] * (values.shape.rank - 1))
        for values in (numbers, translation, found.confidence)
    )
    return of_owner(numbers)[..., tf.newaxis], of_owner(translation), of_owner(confidence)
