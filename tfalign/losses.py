"""The loss that aligns each label to the network's own prediction first, then compares them."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from tfalign import _checks, _keras, drift
from tfalign.ops import geometry, registration, resample

DEFAULT_MAX_SHIFT = 8


class _Search(NamedTuple):
    """How labels are registered, checked."""

    max_shift: int | tuple[int, ...] | None
    similarity: str
    subpixel: bool
    min_overlap: float
    min_confidence: float

    @classmethod
    def checked(cls, *, max_shift, similarity, subpixel, min_overlap, min_confidence):
        if max_shift is not None:
            axes = len(max_shift) if isinstance(max_shift, (list, tuple)) else 1
            checked = _checks.pixels_per_axis("max_shift", max_shift, min(max(axes, 1), drift.AXES))
            max_shift = checked if isinstance(max_shift, (list, tuple)) else checked[0]
        return cls(
            max_shift=max_shift,
            similarity=_checks.choice("similarity", similarity, tuple(registration.SIMILARITIES)),
            subpixel=bool(subpixel),
            min_overlap=_checks.number("min_overlap", min_overlap, at_least=0.0, at_most=1.0),
            min_confidence=_checks.number("min_confidence", min_confidence, at_least=0.0, at_most=1.0),
        )


class _Base(NamedTuple):
    """The loss per pixel, and how its inputs compare: class ids as labels, logits as predictions."""

    call: Callable
    is_sparse: bool = False
    ignore_class: int | None = None
    activation: Callable | None = None

    @classmethod
    def resolved(cls, base):
        if not (isinstance(base, (str, keras.losses.Loss)) or callable(base)) or isinstance(base, type):
            raise TypeError(
                _checks.message(
                    "`base` must be the name of a Keras loss, a Keras loss, or a callable of (y_true, y_pred).",
                    {"base": base},
                )
            )
        function = keras.losses.get(base) if isinstance(base, str) else base
        if not isinstance(function, keras.losses.Loss):
            return cls(call=function, is_sparse=function is keras.losses.sparse_categorical_crossentropy)
        config, activation = function.get_config(), None
        if config.get("from_logits"):
            binary = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)
            activation = tf.sigmoid if isinstance(function, binary) else tf.nn.softmax
        return cls(
            call=function.call,
            is_sparse=isinstance(function, keras.losses.SparseCategoricalCrossentropy),
            ignore_class=config.get("ignore_class"),
            activation=activation,
        )


def shift_invariant_loss(
    y_true,
    y_pred,
    base="mae",
    *,
    max_shift=None,
    similarity="ncc",
    subpixel=False,
    min_overlap=0.5,
    min_confidence=0.5,
    drift=None,
):
    """`ShiftInvariantLoss` without state: each label is aligned to its prediction, then `base` is taken.

    Without state nothing holds the network to its input: it may settle beside it. Train with `ShiftInvariantLoss`, or
    give the `drift` that you estimate yourself.

    Args:
        y_true: labels `(batch, *spatial, channels)`, larger or smaller than the prediction, on the same centre.
        y_pred: predictions `(batch, *spatial, channels)`.
        base: see `ShiftInvariantLoss`, as the other options.
        max_shift: pixels, one number or one per axis.
        similarity: "ncc", "cc" or "mse".
        subpixel: move labels by fractions of a pixel too.
        min_overlap: see `tfalign.register`.
        min_confidence: a label known less well than this stays where it is.
        drift: `(d,)` pixels taken out of every shift.

    Returns:
        `(batch,)`: the mean of `base` over the overlap of each prediction and its aligned label.

    Raises:
        TypeError, ValueError: shapes or options do not fit.
    """
    search = _Search.checked(
        max_shift=max_shift,
        similarity=similarity,
        subpixel=subpixel,
        min_overlap=min_overlap,
        min_confidence=min_confidence,
    )
    pixel_loss = _Base.resolved(base)
    label, valid, prediction = _pair(y_true, y_pred, pixel_loss)
    found = _registered(label, valid, prediction, pixel_loss, search)
    translation = found.translation if subpixel else tf.round(found.translation)
    if drift is not None:
        translation -= tf.cast(drift if subpixel else tf.round(drift), translation.dtype)
    translation = tf.where(found.confidence[:, tf.newaxis] >= min_confidence, translation, 0.0)
    return _loss_on_overlap(label, valid, prediction, translation, pixel_loss, search)


@keras.saving.register_keras_serializable(package="tfalign")
class ShiftInvariantLoss(_keras.Loss):
    r"""Aligns each label to the network's prediction by a shift, then takes `base` on the overlap.

        shift_i = argmax over |s| <= max_shift of similarity(prediction_i, label_i moved by -s)
        loss_i  = mean over the overlap of base(label_i moved by -(shift_i - drift), prediction_i)

    The prediction stays fixed, the label moves, by whole pixels unless `subpixel`. The shifts are found without
    gradient. `drift` is the running mean of the shifts: what all labels have in common is the network's own offset from
    its input, and is taken out (`center`), so that the prediction stays in place. It follows training steps only, not
    `evaluate`. Training starts on the labels as they lie, until registration can be trusted.

    Label and prediction may differ in size; they share one centre. A label with a margin of `max_shift` on every side
    loses no overlap. Non-finite label values are left out; constant labels are compared in place; a label with no
    finite value costs 0. A non-finite prediction gives a non-finite loss. The state belongs to one output of one
    model: make an instance for each.

    Args:
        base: a Keras loss, by name or instance, or a callable of `(y_true, y_pred)`, that gives one value per pixel.
            A callable must be registered with Keras to be saved.
        max_shift: int >= 0, or one per spatial axis, pixels. By default 8, or less on an axis that would leave less
            overlap.
        similarity: how prediction and label are compared: "ncc" (gain and offset free), "cc" (covariance) or "mse".
        subpixel: move labels by fractions of a pixel too; interpolation blurs a label a little.
        center: take the drift out. Without it the network may settle beside its input.
        min_overlap: a shift counts when its overlap is at least this share of the largest.
        min_confidence: a label whose shift is known with a lower probability stays in place.
        warmup_steps: training steps on the labels as they lie; "auto" starts to align once the shifts are confident.
        name, reduction, dtype: as in `keras.losses.Loss`; float32 or float64.

    Raises:
        TypeError, ValueError: an option, or at the first step a shape, does not fit; or sample weights have more axes
            than `(batch,)`.

    Example:
        >>> model.compile("adam", loss=tfalign.ShiftInvariantLoss("mae", max_shift=8))
    """

    def __init__(
        self,
        base="mae",
        *,
        max_shift=None,
        similarity="ncc",
        subpixel=False,
        center=True,
        min_overlap=0.5,
        min_confidence=0.5,
        warmup_steps="auto",
        name="shift_invariant_loss",
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        search = _Search.checked(
            max_shift=max_shift,
            similarity=similarity,
            subpixel=subpixel,
            min_overlap=min_overlap,
            min_confidence=min_confidence,
        )
        if warmup_steps != "auto":
            _checks.whole_number("warmup_steps", warmup_steps, at_least=0, remedy='Or "auto".')
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.base = base
        self.max_shift = search.max_shift
        self.similarity = similarity
        self.subpixel = subpixel
        self.center = bool(center)
        self.min_overlap = min_overlap
        self.min_confidence = min_confidence
        self.warmup_steps = warmup_steps
        self._search = search
        self._base = _Base.resolved(base)
        self._state = None

    @property
    def state(self):
        """The variable that holds the drift filter, made on first use (see `tfalign.drift`)."""
        if self._state is None:
            bounds = self.max_shift if self.max_shift is not None else DEFAULT_MAX_SHIFT
            bounds = tuple(bounds) if isinstance(bounds, (list, tuple)) else (bounds,) * drift.AXES
            # Lifted out of any traced function; a strategy mirrors it, and each replica then assigns the same value.
            with tf.init_scope():
                self._state = tf.Variable(drift.pack(drift.initial(bounds)), trainable=False, name="drift")
        return self._state

    @property
    def drift(self):
        """The estimated offset of the network from its input, pixels, one per axis: a NumPy array of 3."""
        return drift.unpack(tf.convert_to_tensor(self.state)).mean.numpy()

    def __call__(self, y_true, y_pred, sample_weight=None):
        """The reduced loss; `sample_weight` is `(batch,)` or a scalar."""
        if getattr(y_pred, "_keras_mask", None) is not None:
            raise ValueError(
                _checks.message(
                    "`y_pred` must not carry a Keras mask: it would not move with the label.",
                    {"y_pred.shape": _checks.shape_of(y_pred)},
                    "Set the label to NaN where it does not count, and leave the Masking layer out.",
                )
            )
        if sample_weight is not None:
            sample_weight = tf.convert_to_tensor(sample_weight)
            rank = sample_weight.shape.rank
        if (
            sample_weight is not None
            and rank is not None
            and (rank > 2 or (rank == 2 and sample_weight.shape[-1] != 1))
        ):
            raise ValueError(
                _checks.message(
                    "`sample_weight` must have the shape (batch,): one weight per sample.",
                    {"sample_weight.shape": tuple(sample_weight.shape)},
                    "A weight per pixel belongs to the label and must move with it: set pixels that do not count to "
                    'NaN in the label (graded weights, `label_extras=("mask",)`, are planned).',
                )
            )
        return super().__call__(y_true, y_pred, sample_weight)

    @_keras.without_autograph
    def call(self, y_true, y_pred):
        """One loss per sample, `(batch,)`."""
        label, valid, prediction = _pair(y_true, y_pred, self._base)
        found = _registered(label, valid, prediction, self._base, self._search)
        state = drift.unpack(tf.convert_to_tensor(self.state))
        translation = found.translation if self.subpixel else tf.round(found.translation)
        if self.center:
            offset = drift.correction(state, rank=translation.shape[-1], subpixel=self.subpixel)
            translation -= tf.cast(offset, translation.dtype)
        trusted = found.confidence >= self.min_confidence
        if self.warmup_steps != 0:
            trusted &= state.ready[0] > 0.0
        translation = tf.where(trusted[:, tf.newaxis], translation, 0.0)
        sums = drift.batch_sums(found.translation, found.confidence, min_confidence=self.min_confidence)
        prediction = self._updating_on_backward(prediction, sums)
        return _loss_on_overlap(label, valid, prediction, translation, self._base, self._search)

    def _updating_on_backward(self, prediction, sums):
        """The identity; its gradient updates the state, so that training does and evaluation does not."""

        @tf.custom_gradient
        def identity(values):
            def gradient(upstream):
                with tf.control_dependencies([self._update(sums)]):
                    return tf.identity(upstream)

            return tf.identity(values), gradient

        return identity(prediction)

    def _update(self, sums):
        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            sums = drift.BatchSums(*replica.all_reduce(tf.distribute.ReduceOp.SUM, list(sums)))
        before = drift.unpack(tf.convert_to_tensor(self.state))
        after = drift.update(before, sums, warmup_steps=self.warmup_steps, subpixel=self.subpixel)
        return self.state.assign(drift.pack(after), read_value=False)

    def save_own_variables(self, store):
        """Puts the drift filter into a Keras file."""
        store["drift"] = self.state.numpy()

    def load_own_variables(self, store):
        """Takes the drift filter from a Keras file; one without it leaves the state as it is."""
        if "drift" in store.keys():  # noqa: SIM118 - the store has no __contains__
            self.state.assign(store["drift"])

    def get_config(self):
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "base": self.base if isinstance(self.base, str) else keras.saving.serialize_keras_object(self.base),
            "max_shift": self.max_shift,
            "similarity": self.similarity,
            "subpixel": self.subpixel,
            "center": self.center,
            "min_overlap": self.min_overlap,
            "min_confidence": self.min_confidence,
            "warmup_steps": self.warmup_steps,
        }

    @classmethod
    def from_config(cls, config):
        """The loss that `get_config` describes."""
        config = dict(config)
        if not isinstance(config["base"], str):
            config["base"] = keras.saving.deserialize_keras_object(config["base"])
        return cls(**config)


def _pair(y_true, y_pred, base):
    """The finite label, the mask `(batch, *spatial, 1)` of its valid pixels, and the prediction."""
    prediction = _checks.floating(y_pred, "y_pred")
    label = tf.cast(_checks.floating(y_true, "y_true"), prediction.dtype)
    _checks.spatial_rank("y_pred", prediction)
    if label.shape.rank == prediction.shape.rank - 1:
        label = label[..., tf.newaxis]
    channels = 1 if base.is_sparse else prediction.shape[-1]
    if not label.shape.is_compatible_with([None] * (prediction.shape.rank - 1) + [channels]):
        raise ValueError(
            _checks.message(
                "`y_true` must have the rank of `y_pred` and "
                + ("one channel of class ids." if base.is_sparse else "its channels."),
                {"y_true.shape": _checks.shape_of(label), "y_pred.shape": _checks.shape_of(prediction)},
                "Label and prediction are (batch, *spatial, channels); only the spatial sizes may differ.",
            )
        )
    if not label.shape[:1].is_compatible_with(prediction.shape[:1]):
        raise ValueError(
            _checks.message(
                "`y_true` must have as many samples as `y_pred`.",
                {"y_true.shape": _checks.shape_of(label), "y_pred.shape": _checks.shape_of(prediction)},
            )
        )
    label = tf.ensure_shape(label, [None] * (prediction.shape.rank - 1) + [channels])
    counts = None if base.ignore_class is None else tf.not_equal(label, float(base.ignore_class))
    return *registration.valid_pixels(label, counts, "y_true"), prediction


def _registered(label, valid, prediction, base, search):
    """Registers the label to the prediction, without gradient, at the default bounds clipped to the sizes."""
    rank = prediction.shape.rank - 2
    fixed = tf.stop_gradient(prediction if base.activation is None else base.activation(prediction))
    if base.is_sparse:
        label = tf.one_hot(tf.cast(tf.round(label[..., 0]), tf.int32), fixed.shape[-1], dtype=fixed.dtype)
    max_shift = search.max_shift
    if max_shift is None:
        max_shift = _default_bounds(prediction.shape[1:-1], label.shape[1:-1], search.min_overlap)
    return registration.register(
        fixed,
        tf.stop_gradient(label),
        max_shift=_checks.pixels_per_axis("max_shift", max_shift, rank),
        similarity=search.similarity,
        moving_mask=valid,
        min_overlap=search.min_overlap,
    )


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


def _loss_on_overlap(label, valid, prediction, translation, base, search):
    """Moves the label by `-translation` and averages the pixel loss where both sides have data: `(batch,)`."""
    shape = geometry.spatial_shape(prediction)
    both = tf.concat([label, valid], axis=-1)
    if search.subpixel and not base.is_sparse:
        moved, inside = resample.warp(both, geometry.from_translation(translation), output_shape=shape)
    else:
        moved, inside = resample.shift_by_pixels(both, translation, shape)
    aligned, counts = moved[..., :-1], moved[..., -1] * inside > 0.999
    if base.is_sparse:
        pixel_loss = base.call(aligned[..., 0], prediction)
    else:
        # Whatever the base is there, its gradient must stay finite where no label counts.
        aligned = tf.where(counts[..., tf.newaxis], aligned, tf.stop_gradient(prediction))
        pixel_loss = base.call(aligned, prediction)
    expected = prediction.shape[:-1]
    if pixel_loss.shape.rank != expected.rank or not pixel_loss.shape.is_compatible_with(expected):
        raise ValueError(
            _checks.message(
                "`base` must give one value per pixel, (batch, *spatial).",
                {"its shape": _checks.shape_of(pixel_loss), "y_pred.shape": _checks.shape_of(prediction)},
                'Losses that reduce over space (Dice, Tversky) do not work as a base; use "binary_crossentropy" or so.',
            )
        )
    axes = list(range(1, prediction.shape.rank - 1))
    total = tf.reduce_sum(tf.where(counts, pixel_loss, 0.0), axis=axes)
    mean = total / tf.maximum(tf.reduce_sum(tf.cast(counts, total.dtype), axis=axes), 1.0)
    # Also where no label pixel counts a non-finite prediction must be seen.
    return mean + tf.reduce_sum(0.0 * prediction, axis=[*axes, prediction.shape.rank - 1])
