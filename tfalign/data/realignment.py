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
    max_rotation=0.0,
    max_scale=0.0,
    max_shear=0.0,
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
        max_rotation, max_scale, max_shear: see `tfalign.register`; of every patch by itself.
        per: one shift for each "patch"; for all patches of a "file", by `origin["name"]`; for the whole "dataset"; or
            for each "instance" of an instance map (numbers from 1): the prediction is then the probability of a single
            channel, or of not being the first of several.
        similarity, min_overlap: see `tfalign.register`.
        subpixel: move by fractions of a pixel; class and instance maps move by whole ones. Where more than shifts are
            searched, labels are always interpolated, maps by the nearest pixel.
        offset: pixels, one number or one per axis: the network's own offset, `ShiftInvariantLoss.drift`, not the
            label's fault.
        min_confidence: a label whose shift is known with a lower probability stays where it is.
        ignore_class: of class maps, the class that does not count; pixels that no label pixel moves to become it.

    Returns:
        A `tf.data.Dataset` of `(inputs, labels, found)`: the labels on their own grid, NaN (of class maps
        `ignore_class`, or 0) where nothing is known; `found` is `origin` with "translation" `(batch, d)` pixels, where
        the label lay relative to its input, "transform" `(batch, d+1, d+1)`, input -> label coordinates, and
        "confidence" `(batch,)`. Per "instance" translation and confidence are maps on the grid of the label, `(batch,
        *spatial, d)` and `(batch, *spatial)`, 0 in the background, and there is no transform.

    Raises:
        ValueError: an option out of range, no names per "file", labels that are no instance maps, or more than shifts
            to be found for other than patches.

    Example:
        >>> dataset = tf.data.Dataset.from_tensor_slices((inputs, np.roll(labels, (2, -1), axis=(1, 2)))).batch(4)
        >>> repaired = tfalign.data.realign(dataset, model, max_shift=4)
        >>> for inputs, labels, found in repaired.as_numpy_iterator():
        ...     print(found["translation"].tolist())
        [[2.0, -1.0], [2.0, -1.0], [2.0, -1.0], [2.0, -1.0]]
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
    more = {"max_rotation": max_rotation, "max_scale": max_scale, "max_shear": max_shear}
    if any(more.values()) and per != "patch":
        received = {"per": per, **more}
        raise ValueError(_checks.message("More than shifts can be found for patches only.", received, 'per="patch".'))
    rank = element[0].shape.rank - 2
    options = {
        "max_shift": _checks.pixels_per_axis("max_shift", max_shift, rank),
        "similarity": _checks.choice("similarity", similarity, registration.SIMILARITIES),
        "min_overlap": _checks.number("min_overlap", min_overlap, at_least=0.0, at_most=1.0),
    }
    moves = _Moves(rank, offset, min_confidence, subpixel and not element[1].dtype.is_integer, ignore_class)

    def result(inputs, labels, origin, transform, confidence):
        found = {"translation": geometry.translation_of(transform), "transform": transform, "confidence": confidence}
        return inputs, moves.moved(labels, transform), {**(origin[0] if origin else {}), **found}

    def own(inputs, labels, *origin):
        prediction = tf.cast(model(inputs, training=False), tf.float32)
        if per == "instance":
            labels, translation, confidence = _realigned_instances(prediction, labels, moves, options)
            found = {"translation": translation, "confidence": confidence}
            return inputs, labels, {**(origin[0] if origin else {}), **found}
        found = registered(prediction, labels, ignore_class=ignore_class, **options, **more)
        return result(inputs, labels, origin, moves.of_transform(found.transform, found.confidence), found.confidence)

    if per in ("patch", "instance"):
        return dataset.map(own, num_parallel_calls=tf.data.AUTOTUNE)
    names, shifts, confidences = _of_groups(dataset, model, per, ignore_class, options)
    index = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(names, range(len(names))), -1)

    def common(inputs, labels, *origin):
        keys = origin[0]["name"] if per == "file" else tf.fill([tf.shape(inputs)[0]], "")
        at = index.lookup(keys)
        confidence = tf.gather(tf.constant(confidences), at)
        transform = geometry.from_translation(moves.of(tf.gather(tf.constant(shifts), at), confidence))
        return result(inputs, labels, origin, transform, confidence)

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

    def of_transform(self, transform, confidence):
        """The same of transforms `(batch, d+1, d+1)`; one that is more than a shift is not rounded."""
        shift = geometry.from_translation(self.of(geometry.translation_of(transform), confidence))
        rank, known = transform.shape[-1] - 1, (confidence >= self._least)[..., tf.newaxis, tf.newaxis]
        linear = transform[:, :rank, :rank]
        is_more = known & tf.reduce_any(linear != tf.eye(rank), axis=[-2, -1], keepdims=True)
        own = geometry.compose(transform, geometry.from_translation(-self._offset[tf.newaxis]))
        return tf.where(is_more, own, shift)

    def moved(self, labels, transform):
        """Labels `(batch, *spatial, channels)` laid back, on their own grid; shifts by whole pixels copy exactly."""
        is_map = labels.dtype.is_integer
        values, _ = resample.warp(
            labels,
            transform,
            interpolation="nearest" if is_map else "linear",
            fill_value=(self._fill or 0) if is_map else np.nan,
        )
        return tf.cast(values, labels.dtype)


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
    flat, shape = label[..., 0], tf.shape(label)[:-1]
    numbers, owner = tf.unique(tf.boolean_mask(flat, flat > 0))
    pixels, count = tf.cast(tf.where(flat > 0), tf.int32), tf.size(numbers)
    shift, confidence = _registered_instances(foreground, label, numbers, pixels, owner, options)
    translation = moves.of(shift, confidence)
    to = pixels - tf.cast(tf.round(tf.gather(translation, owner)), tf.int32)
    inside = tf.reduce_all((to >= 0) & (to < shape), axis=-1)
    to, owner = tf.boolean_mask(to, inside), tf.boolean_mask(owner, inside)
    sure = tf.gather(confidence, owner)
    surest = tf.tensor_scatter_nd_max(tf.fill(shape, -1.0), to, sure)
    stays = sure >= tf.gather_nd(surest, to)
    to, owner = tf.boolean_mask(to, stays), tf.boolean_mask(owner, stays)
    # The background is behind the last.
    owners = tf.tensor_scatter_nd_min(tf.fill(shape, count), to, owner)

    def of_owner(values):
        return tf.gather(tf.pad(values, [[0, 1]] + [[0, 0]] * (values.shape.rank - 1)), owners)

    return of_owner(numbers)[..., tf.newaxis], of_owner(translation), of_owner(confidence)


def _registered_instances(foreground, label, numbers, pixels, owner, options):
    """Shifts `(instances, d)` and their confidences, each of the surroundings of an instance alone.

    Args:
        foreground, label: `(*spatial, 1)` on one centre.
        numbers: of the instances.
        pixels, owner: `(pixels, d)` of all of them, and whose each is.
    """
    bounds = options["max_shift"]
    shape = tf.maximum(tf.shape(foreground)[:-1], tf.shape(label)[:-1])

    def on_common_grid(values):
        return resample.crop_or_pad(values[tf.newaxis], tf.unstack(shape, num=len(bounds)))

    offset = shape // 2 - tf.shape(label)[:-1] // 2
    known, counts = on_common_grid(tf.ones_like(foreground)), on_common_grid(tf.ones_like(label))
    foreground, label = on_common_grid(foreground), on_common_grid(label)
    # What a label reads that is moved as far as may be, and the border that tells where it ends.
    reach = tf.constant([2 * bound + 2 for bound in bounds])
    low = tf.maximum(tf.math.unsorted_segment_min(pixels, owner, tf.size(numbers)) + offset - reach, 0)
    high = tf.minimum(tf.math.unsorted_segment_max(pixels, owner, tf.size(numbers)) + offset + reach + 1, shape)

    def of_one(instance):
        number, begin, end = instance
        window = tf.concat([[0], begin, [0]], axis=0), tf.concat([[1], end - begin, [1]], axis=0)
        part = tf.slice(label, *window)
        own = tf.cast(part == number, tf.float32)
        # Only its surroundings tell about an instance, without those that are others'.
        near = tf.nn.pool(own, [2 * bound + 5 for bound in bounds], "MAX", [1] * len(bounds), "SAME")
        others = tf.cast((part > 0) & (part != number), tf.float32)
        found = registration.register(
            tf.slice(foreground, *window),
            own,
            fixed_mask=tf.slice(known, *window),
            moving_mask=near * (1.0 - others) * tf.cast(tf.slice(counts, *window), tf.float32),
            **options,
        )
        return found.translation[0], found.confidence[0]

    signature = tf.TensorSpec([len(bounds)], tf.float32), tf.TensorSpec([], tf.float32)
    return tf.map_fn(of_one, (numbers, low, high), fn_output_signature=signature)
