"""The loss that aligns each label to the network's own prediction first, then compares them."""

import threading
import weakref
from typing import NamedTuple

import keras
import tensorflow as tf

from tfalign import _checks, _keras, drift
from tfalign._pixel_loss import PixelLoss, loss_on_overlap, paired
from tfalign.ops import registration

DEFAULT_MAX_SHIFT = 8
_WARMUP_GRADIENT = 0.3  # share of the gradient that counts before labels are aligned; it then rises to 1


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
            similarity=_checks.choice("similarity", similarity, (*registration.SIMILARITIES, "base")),
            subpixel=bool(subpixel),
            min_overlap=_checks.number("min_overlap", min_overlap, at_least=0.0, at_most=1.0),
            min_confidence=_checks.number("min_confidence", min_confidence, at_least=0.0, at_most=1.0),
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
    ignore_class=None,
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
        similarity: any of `tfalign.register`, or "base".
        subpixel: move labels by fractions of a pixel too.
        min_overlap: see `tfalign.register`.
        ignore_class: label pixels of this value do not count.
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
    pixel_loss = _comparable(PixelLoss.resolved(base, ignore_class), search, base)
    label, valid, prediction = paired(y_true, y_pred, pixel_loss)
    found = _registered(label, valid, prediction, pixel_loss, search)
    translation = found.translation if subpixel else tf.round(found.translation)
    if drift is not None:
        translation -= tf.cast(drift if subpixel else tf.round(drift), translation.dtype)
    translation = tf.where(found.confidence[:, tf.newaxis] >= min_confidence, translation, 0.0)
    return loss_on_overlap(label, valid, prediction, translation, pixel_loss, subpixel=subpixel)


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
    model: make an instance for each; `reset_state` makes it new.

    Args:
        base: a Keras loss, by name or instance, or a callable of `(y_true, y_pred)`, that gives one value per pixel.
            A callable must be registered with Keras to be saved.
        max_shift: int >= 0, or one per spatial axis, pixels. By default 8, or less on an axis that would leave less
            overlap.
        similarity: how prediction and label are compared, any of `tfalign.register`; "base" is the loss itself, for
            mean absolute or squared error and cross-entropies.
        subpixel: move labels by fractions of a pixel too; interpolation blurs a label a little.
        center: take the drift out. Without it the network may settle beside its input.
        min_overlap: a shift counts when its overlap is at least this share of the largest.
        ignore_class: label pixels of this value do not count, as in maps of class ids or binary masks with 255 for
            unknown. By default that of the base, if it has one.
        min_confidence: a label whose shift is known with a lower probability stays in place.
        warmup_steps: training steps on the labels as they lie; "auto" starts to align once the shifts are confident.
            The gradient counts by 0.3 until then, and rises to its full size over the next 100 steps.
        name, reduction, dtype: as in `keras.losses.Loss`; float32 or float64.

    Raises:
        TypeError, ValueError: an option, or at the first step a shape, does not fit; sample weights have more axes
            than `(batch,)`; one instance serves several outputs (not noticed in eager steps of Keras 2).

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
        ignore_class=None,
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
        self._base = _comparable(PixelLoss.resolved(base, ignore_class), search, base)
        self.ignore_class = ignore_class
        self._state = None
        self._outputs = _OneOutput()

    @property
    def state(self):
        """The variable that holds the drift filter, made on first use (see `tfalign.drift`).

        `.keras` and `.weights.h5` files hold it, and so does the `BackupAndRestore` of Keras 3; with Keras 2 add it to
        a `tf.train.Checkpoint(model=model, alignment=loss.state)`.
        """
        if self._state is None:
            # Lifted out of any traced function; a strategy mirrors it, and each replica then assigns the same value.
            with tf.init_scope():
                self._state = tf.Variable(drift.pack(self._initial_state()), trainable=False, name="drift")
        return self._state

    @property
    def drift(self):
        """The estimated offset of the network from its input, pixels, one per axis: a NumPy array of 3."""
        return drift.unpack(tf.convert_to_tensor(self.state)).mean.numpy()

    @property
    def confidence(self):
        """The running mean confidence of the registered labels, in [0, 1]; it starts from 0."""
        return float(drift.unpack(tf.convert_to_tensor(self.state)).confidence[0])

    @property
    def is_ready(self):
        """Whether labels are aligned by now: the warm-up is over."""
        return bool(drift.unpack(tf.convert_to_tensor(self.state)).ready[0] > 0.0)

    def reset_state(self):
        """Forgets what was learned about drift and confidence: for a new network."""
        self.state.assign(drift.pack(self._initial_state()))

    def _initial_state(self):
        bounds = self.max_shift if self.max_shift is not None else DEFAULT_MAX_SHIFT
        return drift.initial(bounds if isinstance(bounds, (list, tuple)) else (bounds,) * drift.AXES)

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
        self._outputs.check(y_pred)
        if sample_weight is not None:
            sample_weight = _checked_weight(sample_weight)
        return super().__call__(y_true, y_pred, sample_weight)

    @_keras.without_autograph
    def call(self, y_true, y_pred):
        """One loss per sample, `(batch,)`."""
        label, valid, prediction = paired(y_true, y_pred, self._base)
        found = _registered(label, valid, prediction, self._base, self._search)
        state = drift.unpack(tf.convert_to_tensor(self.state))
        translation = found.translation if self.subpixel else tf.round(found.translation)
        if self.center:
            offset = drift.correction(state, rank=translation.shape[-1], subpixel=self.subpixel)
            translation -= tf.cast(offset, translation.dtype)
        trusted = found.confidence >= self.min_confidence
        gradient_share = 1.0
        if self.warmup_steps != 0:
            trusted &= state.ready[0] > 0.0
            gradient_share = _WARMUP_GRADIENT + (1.0 - _WARMUP_GRADIENT) * state.ready[0]
        translation = tf.where(trusted[:, tf.newaxis], translation, 0.0)
        sums = drift.batch_sums(found.translation, found.confidence, min_confidence=self.min_confidence)
        prediction = self._updating_on_backward(prediction, sums, gradient_share)
        return loss_on_overlap(label, valid, prediction, translation, self._base, subpixel=self.subpixel)

    def _updating_on_backward(self, prediction, sums, gradient_share):
        """The identity; its gradient updates the state, so that training does and evaluation does not.

        At first the gradient is scaled down: labels that do not lie on their inputs give large ones, which optimizers
        with a memory of squares would otherwise hold against the small ones of aligned labels for long.
        """

        @tf.custom_gradient
        def identity(values):
            def gradient(upstream):
                with tf.control_dependencies([self._update(sums)]):
                    return upstream * tf.cast(gradient_share, upstream.dtype)

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
            "ignore_class": self.ignore_class,
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


class _OneOutput:
    """Raises when one loss serves several outputs: predictions that were all there before the first was compared.

    Predictions made one after the other, as in gradient accumulation, may share a loss. Looks at traced graphs; Keras 3
    traces the losses once even when it runs eagerly.
    """

    def __init__(self):
        self._first: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def __deepcopy__(self, memo):
        return _OneOutput()

    def check(self, prediction):
        graph = getattr(prediction, "graph", None)
        if graph is None:
            return
        operations = graph.get_operations()
        # Replicas are traced by one thread each, into the same graph.
        name, count = self._first.setdefault(graph, {}).setdefault(
            threading.get_ident(), (prediction.name, len(operations))
        )
        if prediction.name != name and prediction.op in operations[:count]:
            raise ValueError(
                _checks.message(
                    "A `ShiftInvariantLoss` must serve one output: its drift belongs to that output.",
                    {"y_pred": [name, prediction.name]},
                    "Give each output its own instance: loss=[ShiftInvariantLoss(), ShiftInvariantLoss()].",
                )
            )


def _checked_weight(sample_weight):
    """The weights as a tensor, which must be one per sample."""
    sample_weight = tf.convert_to_tensor(sample_weight)
    rank = sample_weight.shape.rank
    if rank is not None and (rank > 2 or (rank == 2 and sample_weight.shape[-1] != 1)):
        raise ValueError(
            _checks.message(
                "`sample_weight` must have the shape (batch,): one weight per sample.",
                {"sample_weight.shape": tuple(sample_weight.shape)},
                "A weight per pixel belongs to the label and must move with it: set pixels that do not count to "
                'NaN in the label (graded weights, `label_extras=("mask",)`, are planned).',
            )
        )
    return sample_weight


def _comparable(pixel_loss, search, base):
    """`pixel_loss`, if labels can be registered by it when `search` asks for that."""
    if search.similarity == "base" and pixel_loss.similarity is None:
        raise ValueError(
            _checks.message(
                'similarity="base" needs a base whose mean over the overlap is known for every shift: mean absolute '
                "error, mean squared error, or a binary, categorical or sparse categorical cross-entropy without label "
                "smoothing.",
                {"base": base},
                'Or name a measure, as in similarity="ncc".',
            )
        )
    return pixel_loss


def _registered(label, valid, prediction, base, search):
    """Registers the label to the prediction, without gradient, at the default bounds clipped to the sizes."""
    rank = prediction.shape.rank - 2
    fixed = tf.stop_gradient(prediction if base.activation is None else base.activation(prediction))
    if base.is_sparse:
        label = tf.one_hot(tf.cast(tf.round(label[..., 0]), tf.int32), fixed.shape[-1], dtype=fixed.dtype)
    similarity = search.similarity
    if similarity == "base":
        similarity = base.similarity
        if base.is_binary:
            fixed, label = (tf.concat([values, 1.0 - values], axis=-1) for values in (fixed, label))
    max_shift = search.max_shift
    if max_shift is None:
        max_shift = _default_bounds(prediction.shape[1:-1], label.shape[1:-1], search.min_overlap)
    return registration.register(
        fixed,
        tf.stop_gradient(label),
        max_shift=_checks.pixels_per_axis("max_shift", max_shift, rank),
        similarity=similarity,
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
