"""How a loss finds where each label lies: what is searched, checked once, and the registration to the prediction."""

from typing import NamedTuple

import tensorflow as tf

from tfalign import _checks, drift
from tfalign.ops import geometry, registration

DEFAULT_MAX_SHIFT = 8


class Search(NamedTuple):
    """What is searched, and which side moves."""

    max_shift: int | tuple[int, ...] | None
    max_rotation: float
    max_scale: float
    max_shear: float
    similarity: str
    subpixel: bool
    moving: str
    min_overlap: float
    min_confidence: float

    @classmethod
    def checked(cls, *, max_shift, max_rotation, max_scale, max_shear, moving, subpixel, **others):
        if max_shift is not None:
            axes = len(max_shift) if isinstance(max_shift, (list, tuple)) else 1
            checked = _checks.pixels_per_axis("max_shift", max_shift, min(max(axes, 1), drift.AXES))
            max_shift = checked if isinstance(max_shift, (list, tuple)) else checked[0]
        shares = {name: _checks.number(name, others[name], at_least=0.0, at_most=1.0) for name in _SHARES}
        return cls(
            max_shift=max_shift,
            max_rotation=_checks.number("max_rotation", max_rotation, at_least=0.0, at_most=180.0),
            max_scale=_checks.number("max_scale", max_scale, at_least=0.0),
            max_shear=_checks.number("max_shear", max_shear, at_least=0.0, at_most=45.0),
            similarity=_checks.choice("similarity", others["similarity"], (*registration.SIMILARITIES, "base")),
            subpixel=bool(subpixel),
            moving=_checks.choice("moving", moving, ("label", "prediction")),
            **shares,
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
                    "absolute error, mean squared error, or a binary, categorical or sparse categorical cross-entropy "
                    "without label smoothing.",
                    {"base": base},
                    'Or name a measure, as in similarity="ncc".',
                )
            )
        return pixel_loss

    def registered(self, label, valid, prediction, base):
        """Registers the label to the prediction, without gradient, at the default bounds clipped to the sizes."""
        rank = prediction.shape.rank - 2
        fixed = tf.stop_gradient(prediction if base.activation is None else base.activation(prediction))
        if base.is_sparse:
            label = tf.one_hot(tf.cast(tf.round(label[..., 0]), tf.int32), fixed.shape[-1], dtype=fixed.dtype)
        similarity = self.similarity
        if similarity == "base":
            similarity = base.similarity
            if base.is_binary:
                fixed, label = (tf.concat([values, 1.0 - values], axis=-1) for values in (fixed, label))
        max_shift = self.max_shift
        if max_shift is None:
            max_shift = _default_bounds(prediction.shape[1:-1], label.shape[1:-1], self.min_overlap)
        return registration.register(
            fixed,
            tf.stop_gradient(label),
            max_shift=_checks.pixels_per_axis("max_shift", max_shift, rank),
            max_rotation=self.max_rotation,
            max_scale=self.max_scale,
            max_shear=self.max_shear,
            similarity=similarity,
            moving_mask=valid,
            min_overlap=self.min_overlap,
        )

    def initial_drift(self):
        """The state of the drift filter before the first batch."""
        bounds = self.max_shift if self.max_shift is not None else DEFAULT_MAX_SHIFT
        bounds = bounds if isinstance(bounds, (list, tuple)) else (bounds,) * drift.AXES
        return drift.initial(bounds, max_rotation=self.max_rotation, max_scale=self.max_scale, max_shear=self.max_shear)

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


_SHARES = ("min_overlap", "min_confidence")


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
