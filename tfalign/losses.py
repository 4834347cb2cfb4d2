"""The loss that aligns each label to the network's own prediction first, then compares them."""

import threading
import weakref

import keras
import numpy as np
import tensorflow as tf

from tfalign import _checks, _keras, drift, linear_drift
from tfalign._label_search import Search
from tfalign._pixel_loss import PixelLoss, loss_on_overlap, paired
from tfalign.ops import geometry

_WARMUP_GRADIENT = 0.3  # share of the gradient that counts before labels are aligned; it then rises to 1


def shift_invariant_loss(
    y_true,
    y_pred,
    base="mae",
    *,
    max_shift=None,
    max_rotation=0.0,
    max_scale=0.0,
    max_shear=0.0,
    similarity="ncc",
    subpixel=False,
    moving="label",
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
        max_rotation, max_scale, max_shear: degrees, factor, degrees; see `tfalign.register`.
        similarity: any of `tfalign.register`, or "base".
        subpixel: move labels by fractions of a pixel too.
        moving: "label", or "prediction".
        min_overlap: see `tfalign.register`.
        ignore_class: label pixels of this value do not count.
        min_confidence: a label known less well than this stays where it is.
        drift: `(d,)` pixels taken out of every shift, or a transform `(d+1, d+1)` taken out of every transform.

    Returns:
        `(batch,)`: the mean of `base` over the overlap of each prediction and its label, aligned.

    Raises:
        TypeError, ValueError: shapes or options do not fit.
    """
    search = Search.checked(
        max_shift=max_shift,
        max_rotation=max_rotation,
        max_scale=max_scale,
        max_shear=max_shear,
        similarity=similarity,
        subpixel=subpixel,
        moving=moving,
        min_overlap=min_overlap,
        min_confidence=min_confidence,
    )
    pixel_loss = search.comparable(PixelLoss.resolved(base, ignore_class), base)
    label, valid, prediction = paired(y_true, y_pred, pixel_loss)
    found = search.registered(label, valid, prediction, pixel_loss)
    network = None
    if drift is not None:
        network = tf.cast(drift, prediction.dtype)[tf.newaxis]
        if network.shape.rank == 2:
            network = geometry.from_translation(network if search.interpolates else tf.round(network))
    moves = search.moves(found, network, found.confidence >= min_confidence)
    return loss_on_overlap(label, valid, prediction, moves, pixel_loss, search)


@keras.saving.register_keras_serializable(package="tfalign")
class ShiftInvariantLoss(_keras.Loss):
    r"""Aligns each label to the network's prediction by a shift, then takes `base` on the overlap.

        shift_i = argmax over |s| <= max_shift of similarity(prediction_i, label_i moved by -s)
        loss_i  = mean over the overlap of base(label_i moved by -(shift_i - drift), prediction_i)

    The prediction stays fixed, the label moves, by whole pixels unless `subpixel`. The shifts are found without
    gradient. `drift` is the running mean of the shifts: what all labels have in common is the network's own offset from
    its input, and is taken out (`center`), so that the prediction stays in place. It follows training steps only, not
    `evaluate`. Training starts on the labels as they lie, until registration can be trusted.

    With `max_rotation`, `max_scale` or `max_shear` the best transform T_i is found, prediction -> label, and D, the
    running mean of each of its parameters, is taken out of it: the label is read through T_i D^-1, by cubic splines
    inside its own range of values (class numbers: the nearest), or the prediction through the inverse.

    Label and prediction may differ in size; they share one centre. A label with a margin of `max_shift` on every side
    loses no overlap. Non-finite label values are left out; constant labels are compared in place; a label with no
    finite value costs 0. A non-finite prediction gives a non-finite loss. The state belongs to one output of one
    model: make an instance for each; `reset_state` makes it new.

    Args:
        base: a Keras loss, by name or instance, or a callable of `(y_true, y_pred)`, that gives one value per pixel.
            A callable must be registered with Keras to be saved.
        max_shift: int >= 0, or one per spatial axis, pixels. By default 8, or less on an axis that would leave less
            overlap.
        max_rotation: degrees, at most 180; of the picture, or about each axis of a volume.
        max_scale: f, of factors `1 / (1 + f) .. 1 + f` for each axis.
        max_shear: degrees, at most 45. Signals have no rotation and no shear. Each costs time: see the README.
        similarity: how prediction and label are compared, any of `tfalign.register`; "base" is the loss itself, for
            mean absolute or squared error and cross-entropies.
        subpixel: move labels by fractions of a pixel too; interpolation blurs a label a little. Where more than shifts
            is searched they always are.
        center: take the drift out. Without it the network may settle beside its input.
        moving: "label", or "prediction": then the label stays as it is, the prediction is moved by the inverse, and the
            gradient passes through the move. The transforms found and reported are the same.
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
        max_rotation=0.0,
        max_scale=0.0,
        max_shear=0.0,
        similarity="ncc",
        subpixel=False,
        center=True,
        moving="label",
        min_overlap=0.5,
        ignore_class=None,
        min_confidence=0.5,
        warmup_steps="auto",
        name="shift_invariant_loss",
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        search = Search.checked(
            max_shift=max_shift,
            max_rotation=max_rotation,
            max_scale=max_scale,
            max_shear=max_shear,
            similarity=similarity,
            subpixel=subpixel,
            moving=moving,
            min_overlap=min_overlap,
            min_confidence=min_confidence,
        )
        if warmup_steps != "auto":
            _checks.whole_number("warmup_steps", warmup_steps, at_least=0, remedy='Or "auto".')
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.base = base
        self.center = bool(center)
        self.warmup_steps = warmup_steps
        self._search = search
        self._base = search.comparable(PixelLoss.resolved(base, ignore_class), base)
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
                self._state = tf.Variable(drift.pack(self._search.initial_drift()), trainable=False, name="drift")
        return self._state

    @property
    def drift(self):
        """The estimated offset of the network from its input, pixels, one per axis: a NumPy array of 3."""
        return drift.unpack(tf.convert_to_tensor(self.state)).mean.numpy()

    @property
    def drift_geometry(self):
        """What the network is estimated to do to its input, a `tfalign.ops.geometry.Parameters` of NumPy arrays of 3.

        Translation in pixels per axis, rotation and shear in degrees, scale as factors; see `tfalign.ops.geometry`.
        """
        state = drift.unpack(tf.convert_to_tensor(self.state))
        rotation, scale, shear = state.linear.numpy()[:, 0].T
        return geometry.Parameters(state.mean.numpy(), np.degrees(rotation), np.degrees(shear), np.exp(scale))

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
        self.state.assign(drift.pack(self._search.initial_drift()))

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
        found = self._search.registered(label, valid, prediction, self._base)
        state = drift.unpack(tf.convert_to_tensor(self.state))
        trusted = found.confidence >= self._search.min_confidence
        gradient_share = 1.0
        if self.warmup_steps != 0:
            trusted &= state.ready[0] > 0.0
            gradient_share = _WARMUP_GRADIENT + (1.0 - _WARMUP_GRADIENT) * state.ready[0]
        moves = self._search.moves(found, self._network(state, found.translation) if self.center else None, trusted)
        sums = drift.batch_sums(
            found.translation,
            found.confidence,
            min_confidence=self._search.min_confidence,
            linear=linear_drift.parameters(found.transform) if self._search.turns else None,
        )
        prediction = self._updating_on_backward(prediction, sums, gradient_share)
        return loss_on_overlap(label, valid, prediction, moves, self._base, self._search)

    def _network(self, state, like):
        """What the network does to its input, and is taken out of each label's transform: `(1, d+1, d+1)`."""
        offset = drift.correction(state, rank=like.shape[-1], subpixel=self._search.interpolates)
        offset = tf.cast(offset, like.dtype)[tf.newaxis]
        return linear_drift.transform(state.linear, offset) if self._search.turns else geometry.from_translation(offset)

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
            told = {name: one for name, one in sums._asdict().items() if one is not None}
            added = replica.all_reduce(tf.distribute.ReduceOp.SUM, list(told.values()))
            sums = sums._replace(**dict(zip(told, added)))
        before = drift.unpack(tf.convert_to_tensor(self.state))
        after = drift.update(before, sums, warmup_steps=self.warmup_steps, subpixel=self._search.interpolates)
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
            **self._search._asdict(),
            "center": self.center,
            "ignore_class": self.ignore_class,
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
