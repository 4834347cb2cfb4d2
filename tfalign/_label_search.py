"""How a loss finds where each label lies: what is searched, checked once, and the registration to the prediction."""

from typing import NamedTuple

import tensorflow as tf

from tfalign import _checks, _filled, drift
from tfalign.ops import geometry, registration, resample

DEFAULT_MAX_SHIFT = 8
_GATE = (0.1, 0.5)  # least confidences that "auto" gives; from +-8 px on labels of noise seldom reach the first


class Search(NamedTuple):
    """What is searched, on which part of the prediction, and which side moves."""

    max_shift: int | tuple[int, ...] | None
    max_rotation: float
    max_scale: float
    max_shear: float
    similarity: str
    subpixel: bool
    assignment: str
    moving: str
    pool: str | None
    min_overlap: float
    crop: int | tuple[int, ...] | str
    fill: float | str | None
    min_confidence: float | str
    uncertain: str

    @classmethod
    def checked(cls, *, max_shift, max_rotation, max_scale, max_shear, moving, subpixel, crop, fill, **others):
        if max_shift is not None:
            max_shift = _one_or_several("max_shift", max_shift)
        if crop != "max_shift":
            crop = _one_or_several("crop", crop)
        fill = _filled.checked_fill(fill)
        if fill in _filled.EXCLUDED and crop != "max_shift" and not any(_several(crop)):
            raise ValueError(
                _checks.message(
                    "`fill` by what is cut off needs a `crop`.", {"fill": fill, "crop": crop}, 'As in crop="max_shift".'
                )
            )
        assignment = _checks.choice("assignment", others["assignment"], ("hard", "soft"))
        if assignment == "soft" and moving == "prediction":
            raise ValueError(
                _checks.message(
                    'assignment="soft" spreads a label over its shifts, so the label must be what moves.',
                    {"assignment": assignment, "moving": moving},
                    'Leave moving="label".',
                )
            )
        min_confidence = others["min_confidence"]
        if min_confidence != "auto":
            bounds = {"at_least": 0.0, "at_most": 1.0, "remedy": 'Or "auto".'}
            min_confidence = _checks.number("min_confidence", min_confidence, **bounds)
        return cls(
            max_shift=max_shift,
            max_rotation=_checks.number("max_rotation", max_rotation, at_least=0.0, at_most=180.0),
            max_scale=_checks.number("max_scale", max_scale, at_least=0.0, at_most=registration.LARGEST_SCALE),
            max_shear=_checks.number("max_shear", max_shear, at_least=0.0, at_most=45.0),
            similarity=_checks.choice("similarity", others["similarity"], (*registration.SIMILARITIES, "base")),
            subpixel=bool(subpixel),
            assignment=assignment,
            moving=_checks.choice("moving", moving, ("label", "prediction")),
            pool=_checks.choice("pool", others["pool"], (None, "batch")),
            crop=crop,
            fill=fill,
            min_overlap=_checks.number("min_overlap", others["min_overlap"], at_least=0.0, at_most=1.0),
            min_confidence=min_confidence,
            uncertain=_checks.choice("uncertain", others["uncertain"], ("stay", "leave_out")),
        )

    @property
    def turns(self):
        """Whether more than shifts is searched."""
        return max(self.max_rotation, self.max_scale, self.max_shear) > 0.0

    @property
    def interpolates(self):
        """Whether moves are by fractions of a pixel."""
        return self.subpixel or self.turns

    def comparable(self, pixel_loss, base):
        """`pixel_loss`, if labels can be registered by it when that is asked for."""
        if self.similarity == "base" and pixel_loss.similarity is None:
            raise ValueError(
                _checks.message(
                    'similarity="base" needs a base whose mean over the overlap is known for every shift: mean '
                    "absolute error, mean squared error, Dice, or a binary, categorical or sparse categorical "
                    "cross-entropy without label smoothing.",
                    {"base": base},
                    'Or name a measure, as in similarity="ncc".',
                )
            )
        return pixel_loss

    def bounds(self, prediction, label):
        """Pixels to search on each axis: the default ones are clipped to the sizes."""
        if self.max_shift is not None:
            return _checks.pixels_per_axis("max_shift", self.max_shift, prediction.shape.rank - 2)
        return _default_bounds(prediction.shape[1:-1], label.shape[1:-1], self.min_overlap)

    def cropped(self, prediction, label):
        """The inner part of the prediction, as `crop` says."""
        crop = self.bounds(prediction, label) if self.crop == "max_shift" else self.crop
        crop = _checks.pixels_per_axis("crop", crop, prediction.shape.rank - 2)
        if not any(crop):
            return prediction
        inner = []
        for size, cut in zip(geometry.spatial_shape(prediction), crop):
            if not tf.is_tensor(size) and 2 * cut >= size:
                raise ValueError(
                    _checks.message(
                        "`crop` must leave something of the prediction.",
                        {"crop": self.crop, "pixels": crop, "y_pred.shape": _checks.shape_of(prediction)},
                    )
                )
            inner.append(tf.maximum(size - 2 * cut, 1) if tf.is_tensor(size) else size - 2 * cut)
        return resample.crop_or_pad(prediction, inner)

    def window(self, parts, cropped):
        """Pixels that are searched on each axis, for the inner part of a prediction."""
        return self.bounds(parts.prediction if self.crop == "max_shift" else cropped, parts.label)

    def registered(self, parts, cropped, base):
        """Registers each label to the inner part of its prediction, without gradient.

        Args:
            parts: `Parts` of the whole prediction.
            cropped: the inner part, of `cropped`.
            base: a `PixelLoss`.
        """
        label, valid, prediction = parts.label, parts.valid, parts.prediction
        fixed, whole = (tf.stop_gradient(_activated(side, base)) for side in (cropped, prediction))
        if base.is_sparse:
            label = tf.one_hot(tf.cast(tf.round(label[..., 0]), tf.int32), fixed.shape[-1], dtype=fixed.dtype)
        weight = valid if parts.weight is None else parts.weight
        fixed_mask = None
        if self.fill is not None:
            fixed, fixed_mask, label, weight = _filled.filled(fixed, label, weight, whole=whole, fill=self.fill)
        similarity = self.similarity
        if similarity == "base":
            similarity = base.similarity
            if base.is_binary:
                fixed, label = (tf.concat([values, 1.0 - values], axis=-1) for values in (fixed, label))
        bounds = registration.checked_bounds(
            self.window(parts, cropped), self.max_rotation, self.max_scale, self.max_shear, fixed.shape.rank - 2
        )
        fixed, label = registration.same_kind(fixed, tf.stop_gradient(label))
        fixed, fixed_mask = registration.valid_pixels(fixed, fixed_mask, "y_pred")
        return registration.register_valid(
            fixed,
            label,
            fixed_mask,
            weight,
            bounds=bounds,
            similarity=similarity,
            subpixel=True,
            pool=self.pool,
            min_overlap=self.min_overlap,
            return_map=self.assignment == "soft",
        )

    def initial_drift(self):
        """The state of the drift filter before the first batch."""
        bounds = self.max_shift if self.max_shift is not None else DEFAULT_MAX_SHIFT
        bounds = bounds if isinstance(bounds, (list, tuple)) else (bounds,) * drift.AXES
        return drift.initial(bounds, max_rotation=self.max_rotation, max_scale=self.max_scale, max_shear=self.max_shear)

    def alike(self, anchored):
        """Anchors `(batch,)` that tell what was registered: of labels that move as one all of them or none."""
        if anchored is None or self.pool is None:
            return anchored
        return tf.fill(tf.shape(anchored), tf.reduce_all(anchored))

    def moves(self, found, network, trusted):
        """The transforms `(batch, d+1, d+1)`, prediction -> label, by which labels are moved.

        Args:
            found: the `Registration`.
            network: `(1, d+1, d+1)`, what the network does to its input, to be taken out; or None.
            trusted: `(batch,)`; the other labels stay in place.
        """
        identity = geometry.from_translation(tf.zeros_like(found.translation))
        if self.turns:
            transform = found.transform
            if network is not None:
                transform = geometry.compose(transform, geometry.invert(network))
        else:
            translation = found.translation if self.subpixel else tf.round(found.translation)
            if network is not None:
                translation -= geometry.translation_of(network)
            transform = geometry.from_translation(translation)
        return tf.where(trusted[:, tf.newaxis, tf.newaxis], transform, identity)


def least_confidence(min_confidence, in_place=None):
    """The confidence from which a label is moved to where it was found.

    "auto" is the probability that it lies in place: staying is the better guess where that is larger.

    Args:
        min_confidence: the option.
        in_place: the share of labels that lie in place, a scalar tensor; None: nothing is known of it.
    """
    if min_confidence != "auto":
        return min_confidence
    return _GATE[1] if in_place is None else tf.clip_by_value(in_place, *_GATE)


def _several(pixels):
    return pixels if isinstance(pixels, tuple) else (pixels,)


def _one_or_several(name, pixels):
    """A checked whole number of pixels, or a tuple with one per axis; how many axes there are is not known yet."""
    axes = len(pixels) if isinstance(pixels, (list, tuple)) else 1
    checked = _checks.pixels_per_axis(name, pixels, min(max(axes, 1), drift.AXES))
    return checked if isinstance(pixels, (list, tuple)) else checked[0]


def _activated(prediction, base):
    return prediction if base.activation is None else base.activation(prediction)


def _default_bounds(fixed_sizes, moving_sizes, min_overlap):
    """`DEFAULT_MAX_SHIFT` on every axis, lowered where it costs most until `min_overlap` is kept."""
    bounds = [DEFAULT_MAX_SHIFT] * len(fixed_sizes)
    share = registration.overlap_at_bound(fixed_sizes, moving_sizes, bounds)
    while share is not None and share < min_overlap and any(bounds):
        shares = [
            registration.overlap_at_bound([size], [moving_size], [bound])
            for size, moving_size, bound in zip(fixed_sizes, moving_sizes, bounds)
        ]
        bounds[shares.index(min(shares))] -= 1
        share = registration.overlap_at_bound(fixed_sizes, moving_sizes, bounds)
    return tuple(bounds)
