"""The loss that aligns each label to the network's own prediction first, then compares them."""

import warnings

import keras
import numpy as np
import tensorflow as tf

from tfalign import _assignment, _checks, _keras, drift, linear_drift
from tfalign._aligned_loss import joined
from tfalign._label_parts import checked_extras, checked_groups, group_of_channels, parted, parts, weighted
from tfalign._label_search import Search, least_confidence
from tfalign._one_output import OneOutput, checked_weight, refuse_mask
from tfalign._pixel_loss import PixelLoss
from tfalign.ops import geometry, replicas


@tf.autograph.experimental.do_not_convert
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
    assignment="hard",
    moving="label",
    groups=None,
    pool=None,
    min_overlap=0.5,
    crop=0,
    fill=None,
    label_extras=(),
    ignore_class=None,
    min_confidence=0.5,
    uncertain="stay",
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
        assignment: "hard", or "soft".
        moving: "label", or "prediction".
        groups, pool, crop, fill, label_extras: see `ShiftInvariantLoss`.
        min_overlap: see `tfalign.register`.
        ignore_class: label pixels of this value do not count.
        min_confidence, uncertain: what is done with labels that are known less well than this; see
            `ShiftInvariantLoss`. "auto" is 0.5 here.
        drift: `(d,)` pixels taken out of every shift, or a transform `(d+1, d+1)` taken out of every transform.

    Returns:
        `(batch,)`: the mean of `base` over the overlap of each prediction and its label, aligned.

    Raises:
        TypeError, ValueError: shapes or options do not fit.

    Example:
        >>> tfalign.shift_invariant_loss(np.roll(labels, 2, axis=1), labels, "mae", max_shift=4).numpy().tolist()
        [0.0, 0.0, 0.0, 0.0]
    """
    search = Search.checked(
        max_shift=max_shift,
        max_rotation=max_rotation,
        max_scale=max_scale,
        max_shear=max_shear,
        similarity=similarity,
        subpixel=subpixel,
        assignment=assignment,
        moving=moving,
        pool=pool,
        min_overlap=min_overlap,
        crop=crop,
        fill=fill,
        min_confidence=min_confidence,
        uncertain=uncertain,
    )
    pixel_loss = search.comparable(PixelLoss.resolved(base, ignore_class), base)
    groups = checked_groups(groups, pixel_loss)
    whole = parts(y_true, y_pred, pixel_loss, checked_extras(label_extras))
    network = None
    if drift is not None:
        network = _checked_drift(drift, whole.prediction)[tf.newaxis]
        if network.shape.rank == 2:
            network = geometry.from_translation(network if search.interpolates else tf.round(network))
    losses = []
    for part in parted(whole, groups):
        inner = search.cropped(part.prediction, part.label)
        found = search.registered(part, inner, pixel_loss)
        least = least_confidence(search.min_confidence)
        place = _assignment.place(found, network, part, search, least_confidence=least)
        losses.append(_assignment.loss_there(part._replace(prediction=inner), place, pixel_loss, search))
    return joined(losses, groups, whole.prediction)


def _checked_drift(drift, prediction):
    """Pixels, one per spatial axis, or a transform, in the type of the prediction."""
    drift, rank = tf.cast(drift, prediction.dtype), prediction.shape.rank - 2
    if not any(drift.shape.is_compatible_with(shape) for shape in ([rank], [rank + 1, rank + 1])):
        raise ValueError(
            _checks.message(
                "`drift` must be one number per spatial axis, or a transform (d+1, d+1).",
                {"drift.shape": _checks.shape_of(drift), "y_pred.shape": _checks.shape_of(prediction)},
                "That of a loss has three: loss.drift[:2] for pictures.",
            )
        )
    return drift


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
    loses no overlap. Label values that are not finite or beyond 1e15 are left out; constant labels are compared in
    place; a label with no value costs 0. A non-finite prediction gives a non-finite loss. The state belongs to one
    output of one model: make an instance for each; `reset_state` makes it new.

    Args:
        base: a Keras loss, by name or instance, or a callable of `(y_true, y_pred)`, that gives one value per pixel
            (averaged over the overlap), per sample or per batch (Dice, Tversky: called for one sample after the other
            on values multiplied by the overlap's mask). A callable must be registered with Keras to be saved.
        max_shift: int >= 0, or one per spatial axis, pixels. By default 8, or less on an axis that would leave less
            overlap.
        max_rotation: degrees, at most 180; of the picture, or about each axis of a volume.
        max_scale: f, of factors `1 / (1 + f) .. 1 + f` for each axis.
        max_shear: degrees, at most 45. Signals have no rotation and no shear. Each costs time: see the README.
        similarity: how prediction and label are compared, any of `tfalign.register`; "base" is the loss itself, for
            mean absolute or squared error, Dice and cross-entropies.
        subpixel: move labels by fractions of a pixel too; interpolation blurs a label a little. Where more than shifts
            is searched they always are.
        assignment: "hard" lays each label where it fits best. "soft" lays it at every shift at once, weighted by its
            probability: for labels so noisy that the best shift follows the noise. The mean label is compared where
            `base` is the mean squared error, or a binary or categorical cross-entropy; of any other base the mean over
            the 8 most probable shifts is taken, at more cost. `min_confidence` then holds no label in place. With
            rotation, scale or shear: over the shifts around the best transform.
        center: take the drift out. Without it the network may settle beside its input.
        moving: "label", or "prediction": then the label stays as it is, the prediction is moved by the inverse, and the
            gradient passes through the move. The transforms found and reported are the same.
        groups: lists of channels, as in `[(0,), (1, 2)]`, for labels whose channels do not lie on one another: each is
            aligned by itself, has a drift of its own (`drift` is then `(groups, 3)`), and its base loss counts by its
            number of channels. Not for categorical losses, where channels mean nothing one by one.
        pool: "batch" moves all labels of a batch alike, those of all replicas: for batches of one slide or one
            recording.
        min_overlap: a shift counts when its overlap is at least this share of the largest.
        crop: pixels to cut off from each side of the prediction, one number or one per axis, or "max_shift": what is
            left never leaves a label of the prediction's size. What is cut off gets no gradient.
        fill: what fills the smaller of prediction and label up to the size of the other while they are registered: a
            number, or of each sample and channel the "mean", "median" or "min" of its pixels, or the "excluded_mean"
            or "excluded_median" of those that `crop` cut off. By default nothing: pixels without a counterpart do not
            count, which is more exact. Never part of the loss.
        label_extras: names, in order, of channels that are appended to the label: "mask", a weight in [0, 1] that moves
            with the label; "anchor", 1 where the label is known to lie right (over half of its pixels): it is not
            moved, and once there are anchors they alone tell the drift, whatever the mean of the other shifts. With
            `pool` anchor whole batches: an anchor among other labels stays, but cannot tell what it alone would.
        ignore_class: label pixels of this value do not count, as in maps of class ids or binary masks with 255 for
            unknown. By default that of the base, if it has one.
        min_confidence: a label whose shift is known with a lower probability is uncertain. "auto" follows the share of
            labels that lie in place, by their confidence, within 0.1 and 0.5: where most lie right an uncertain one had
            better stay, where few do it had better move.
        uncertain: "stay" leaves such a label in place. With "leave_out" it costs nothing, once others are aligned, at
            least a tenth of late ones; constant labels count in any case, as they are the same wherever they lie.
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
        assignment="hard",
        center=True,
        moving="label",
        groups=None,
        pool=None,
        min_overlap=0.5,
        crop=0,
        fill=None,
        label_extras=(),
        ignore_class=None,
        min_confidence="auto",
        uncertain="stay",
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
            assignment=assignment,
            moving=moving,
            pool=pool,
            min_overlap=min_overlap,
            crop=crop,
            fill=fill,
            min_confidence=min_confidence,
            uncertain=uncertain,
        )
        if isinstance(base, ShiftInvariantLoss):
            remedy = "Give the loss that the other was given."
            raise TypeError(
                _checks.message("`base` must be a loss that aligns nothing itself.", {"base": base}, remedy)
            )
        if warmup_steps != "auto":
            _checks.whole_number("warmup_steps", warmup_steps, at_least=0, remedy='Or "auto".')
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.base = base
        self.center = bool(center)
        self.warmup_steps = warmup_steps
        self._search = search
        self._base = search.comparable(PixelLoss.resolved(base, ignore_class), base)
        self.groups = checked_groups(groups, self._base)
        self.label_extras = checked_extras(label_extras)
        self.ignore_class = ignore_class
        self._state = None
        self._outputs = OneOutput()

    @property
    def state(self):
        """The variable that holds the drift filter, made on first use (see `tfalign.drift`).

        `.keras` and `.weights.h5` files hold it, and so does the `BackupAndRestore` of Keras 3; with Keras 2 add it to
        a `tf.train.Checkpoint(model=model, alignment=loss.state)`. Weights of several outputs are read into losses in
        the order in which both models were compiled. A persistent tape that is asked twice counts two steps.
        """
        if self._state is None:
            # Lifted out of any traced function; a strategy mirrors it, and each replica then assigns the same value.
            with tf.init_scope():
                self._state = tf.Variable(self._initial_state(), trainable=False, name="drift")
        return self._state

    def _initial_state(self):
        state = drift.pack(self._search.initial_drift())
        return state if self.groups is None else tf.stack([state] * len(self.groups))

    def _read(self):
        """A `DriftState` for each group of channels."""
        return drift.unpack_each(tf.convert_to_tensor(self.state))

    def _of_each_group(self, read):
        """What `read` makes of a state as a NumPy array, with a first axis of groups where there are groups."""
        values = [np.asarray(read(state)) for state in self._read()]
        return values[0] if self.groups is None else np.stack(values)

    @property
    def drift(self):
        """The estimated offset of the network from its input, pixels, one per axis: a NumPy array of 3."""
        return self._of_each_group(lambda state: state.mean)

    @property
    def drift_geometry(self):
        """What the network is estimated to do to its input, a `tfalign.ops.geometry.Parameters` of NumPy arrays of 3.

        Translation in pixels per axis, rotation and shear in degrees, scale as factors; see `tfalign.ops.geometry`.
        """
        rotation, scale, shear = (
            self._of_each_group(lambda state, kind=kind: state.linear[:, 0, kind]) for kind in range(3)
        )
        return geometry.Parameters(self.drift, np.degrees(rotation), np.degrees(shear), np.exp(scale))

    @property
    def confidence(self):
        """The running mean confidence of the registered labels, in [0, 1]; it starts from 0. Of groups the least."""
        return float(np.min(self._of_each_group(lambda state: state.confidence[0])))

    @property
    def shift_spread(self):
        """The standard deviation of the shifts of late, pixels, one per axis: a NumPy array of 3."""
        return self._of_each_group(lambda state: state.spread)

    @property
    def share_at_bound(self):
        """The share of late labels whose shift lies on the bound of the search. Of groups the largest."""
        return float(np.max(self._of_each_group(lambda state: state.at_bound[0])))

    @property
    def share_gated(self):
        """The share of late labels that were known too little to be moved. Of groups the largest."""
        return float(np.max(self._of_each_group(lambda state: state.gated[0])))

    @property
    def least_confidence(self):
        """The confidence that a label needs now to be moved, with groups one for each: a NumPy array."""
        return self._of_each_group(lambda state: least_confidence(self._search.min_confidence, state.in_place[0]))

    @property
    def is_ready(self):
        """Whether labels are aligned by now: the warm-up is over."""
        return bool(np.all(self._of_each_group(lambda state: state.ready[0]) > 0.0))

    def reset_state(self):
        """Forgets what was learned about drift and confidence: for a new network."""
        self.state.assign(self._initial_state())

    def __call__(self, y_true, y_pred, sample_weight=None):
        """The reduced loss; `sample_weight` is `(batch,)` or a scalar. A label of weight 0 tells no drift either."""
        refuse_mask(y_pred)
        self._outputs.check(y_pred)
        if sample_weight is not None:
            sample_weight = checked_weight(sample_weight)
            y_true = weighted(y_true, sample_weight)
        return super().__call__(y_true, y_pred, sample_weight)

    @_keras.without_autograph
    def call(self, y_true, y_pred):
        """One loss per sample, `(batch,)`."""
        whole = parts(y_true, y_pred, self._base, self.label_extras)
        told, places, gradient_shares = [], [], []
        for part, state in zip(parted(whole, self.groups), self._read()):
            inner = self._search.cropped(part.prediction, part.label)
            found = self._search.registered(part, inner, self._base)
            is_ready = None
            if self.warmup_steps != 0:
                is_ready = state.ready[0] > 0.0
                gradient_shares.append(drift.gradient_share(state.ready[0]))
            network = self._network(state, found.translation) if self.center else None
            least = least_confidence(self._search.min_confidence, state.in_place[0])
            how = {"least_confidence": least, "is_ready": is_ready, "share_gated": state.gated[0]}
            places.append(_assignment.place(found, network, part, self._search, **how))
            sums = drift.batch_sums(
                found.translation,
                found.confidence,
                min_confidence=least,
                mean=state.mean,
                max_shift=self._search.window(part, inner),
                anchored=self._search.alike(part.anchored),
                linear=linear_drift.parameters(found.transform) if self._search.turns else None,
            )
            told.append(sums)
        prediction = self._updating_on_backward(whole.prediction, told, gradient_shares)
        losses = []
        for part, place in zip(parted(whole._replace(prediction=prediction), self.groups), places):
            part = part._replace(prediction=self._search.cropped(part.prediction, part.label))
            losses.append(_assignment.loss_there(part, place, self._base, self._search))
        return joined(losses, self.groups, prediction)

    def _network(self, state, like):
        """What the network does to its input, and is taken out of each label's transform: `(1, d+1, d+1)`."""
        offset = drift.correction(state, rank=like.shape[-1], subpixel=self._search.interpolates)
        offset = tf.cast(offset, like.dtype)[tf.newaxis]
        return linear_drift.transform(state.linear, offset) if self._search.turns else geometry.from_translation(offset)

    def _updating_on_backward(self, prediction, told, gradient_shares):
        """The identity; its gradient updates the state, so that training does and evaluation does not."""
        share = tf.ones([])
        if gradient_shares:
            share = gradient_shares[0]
            if self.groups is not None:
                share = tf.gather(tf.stack(gradient_shares), group_of_channels(self.groups))

        @tf.custom_gradient
        def identity(values):
            def gradient(upstream):
                with tf.control_dependencies([self._update(told)]):
                    return upstream * tf.cast(share, upstream.dtype)

            return tf.identity(values), gradient

        return identity(prediction)

    def _update(self, told):
        flat = tf.nest.flatten(told)
        added = iter(replicas.summed([one for one in flat if one is not None]))
        told = tf.nest.pack_sequence_as(told, [None if one is None else next(added) for one in flat])
        options = {"warmup_steps": self.warmup_steps, "subpixel": self._search.interpolates}
        after = [drift.pack(drift.update(state, sums, **options)) for state, sums in zip(self._read(), told)]
        return self.state.assign(after[0] if self.groups is None else tf.stack(after), read_value=False)

    def save_own_variables(self, store):
        """Puts the drift filter into a Keras file."""
        store["drift"] = self.state.numpy()

    def load_own_variables(self, store):
        """Takes the drift filter from a Keras file; one without it leaves the state as it is."""
        if "drift" not in store.keys():  # noqa: SIM118 - the store has no __contains__
            return
        kept = np.asarray(store["drift"])
        if kept.shape != tuple(self.state.shape):
            warnings.warn(
                f"The file's drift is of other `groups` than this loss has ({self.groups}): it stays new.", stacklevel=2
            )
            return
        self.state.assign(kept)

    def get_config(self):
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "base": self.base if isinstance(self.base, str) else keras.saving.serialize_keras_object(self.base),
            **self._search._asdict(),
            "center": self.center,
            "groups": self.groups,
            "label_extras": self.label_extras,
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
