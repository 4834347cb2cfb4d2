"""Training on bent labels: a predictor and a warp network, each learning beside a lagging twin of the other."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfalign import _checks, drift
from tfalign._label_parts import weighted
from tfalign._one_output import checked_weight, refuse_mask
from tfalign.models._bent_labels import COUNTS, Labels, Task, checked_warp_loss, mean_loss, where_known
from tfalign.models._equivariance import EQUIVARIANCES, moved_alike
from tfalign.models._twins import Twins
from tfalign.models.warp_network import WarpNetwork
from tfalign.ops import displacements, geometry, replicas, resample

MOVING = ("label", "prediction")
LAID_ON = ("twin", "predictor")
_FIRST_REACH = 4.0  # px, that labels are taken to lie off by until they are seen


class Alignment(NamedTuple):
    """Labels laid on their predictions.

    Attributes:
        label: `(batch, *spatial, channels)`, on the prediction's grid.
        mask: `(batch, *spatial)`, 1.0 where the label has data.
        displacement: `(batch, *spatial, d)` pixels, prediction -> label: `label(u) = given(u + displacement(u))`.
    """

    label: tf.Tensor
    mask: tf.Tensor
    displacement: tf.Tensor


@keras.saving.register_keras_serializable(package="tfalign")
class DeformableModel(keras.Model):
    r"""Trains a predictor on labels that are bent: a warp network lays each label on the prediction.

        f-branch: phi_1 = W'(f'(x), y),  f learns from base(y pulled by phi_1 - drift, f(x))
        W-branch: phi_2 = W(f'(x), y),   W learns from base(y pulled by phi_2, f'(x)) + what keeps phi_2 smooth

    f is the predictor, W the warp network; f' and W' are their frozen twins, which follow with a lag: so neither can
    change what the other is judged by. `drift` is what the displacements of all labels have in common: the predictor's
    own offset, followed and taken out of what f learns from as in `tfalign.ShiftInvariantLoss`.

    It is for labels that are bent: straight ones gain nothing, and may be bent a little to what f gets wrong.

    It compiles with any Keras loss of one output and fits as usual; calling it is calling the predictor. Compiled with
    a `ShiftInvariantLoss`, each label is first moved by the shift (or transform) that this loss searches, with its
    options (all but `groups`), and then bent, so that W need not reach as far. Only the predictor is needed afterwards:
    save, export and serve `model.predictor`. The `.keras` file of the whole resumes the training.

    The loss in the logs is the compiled one, of the f-branch; a Keras loss takes pixels without data as predicted
    right, a `ShiftInvariantLoss` leaves them out. "warp_loss" is that of W, "displacement" the RMS per axis of the
    bending alone (pixels), "folds" the share of pixels at which it folds. All see the labels as aligned: watch metrics
    on labels known to be right for what counts.

    Args:
        predictor: a Keras model with one input, or several, and one output `(batch, *spatial, channels)`. A subclassed
            one must have a `get_config`.
        warp_network: maps `[prediction, label]` to a displacement field; by default a `WarpNetwork()`, which sees the
            label's margin. Another network gets labels of the prediction's size, holes filled with the prediction.
        moving: "label", or "prediction": then the label stays and the prediction is moved by the inverse, for both
            branches, and the gradient of f passes through the move. The displacements are the same.
        frozen: "all", or the names of layers (of a predictor made of layers, or of a `WarpNetwork`): only their weights
            are twins, and the others are shared by both branches, so that both train them. The name of a network stands
            for all its layers.
        momentum: of the moving average by which twins follow: 0 copies the weights. It starts lower.
        follow_every: steps after which twins follow. With `momentum=0`, 1 makes both branches train what joint training
            would, gradient for gradient (with `center=False`, `by_area=False`, no warm-up and no penalties).
        warmup_steps: training steps for which f learns slowly, and still a hundred in which this ends: labels that are
            not laid back yet give large gradients, which optimizers with a memory of squares would hold against the
            small ones that follow. A `ShiftInvariantLoss` brings its own; 0 leaves this out.
        laid_on: whose prediction the label that f learns from is laid on: that of its "twin", so that no label is bent
            to what f happens to get wrong at this step, or of the "predictor" itself, phi_1 = W'(f(x), y).
        stop_gradient: the f-branch does not teach f through what W' makes of its prediction; False only with
            `laid_on="predictor"`.
        center: take the drift out.
        by_area: the loss of W is a mean over the label, in which each pixel of the prediction counts by the area of the
            label that it reads (the Jacobian determinant), not a mean over these pixels: there, W would gain by
            shrinking what f does not show yet, and f would learn it shrunk. With `moving="prediction"`, or a loss that
            gives no value per pixel, it makes no difference.
        smoothness: weight of the mean square of the slopes of the displacement, in units of the loss that W would have
            by chance, beside the prediction mirrored (of its loss, where that is larger): so W is held as stiffly when
            f has learned and its loss is small, and does not bend labels to the rest that f gets wrong.
        equivariance: weight of the loss of f(T x) beside T f(x), taken as W's loss is; 0 leaves it out. It costs one
            more run of f, needs one input on the grid of the prediction, and holds the drift at 0 at a price: see the
            README.
        equivariances: what T is drawn from: "flip" (each axis or not), "rotate" (any angle; not for signals),
            "elastic" (3 px RMS, smooth). A constant offset does not commute with flips and rotations.
        interpolation: "linear" or "cubic", of labels; "linear" blurs them, and W bends straight ones for this alone.
        warp_loss: a Keras loss, by name or instance, or a callable, for W; by default the compiled one, where class ids
            are compared as probabilities.

    Raises:
        TypeError, ValueError: an option out of range, or at the first step shapes or losses that do not fit.

    Example:
        >>> model = tfalign.models.DeformableModel(tfalign.models.unet(output_channels=3))
        >>> model.compile("adam", loss=tfalign.ShiftInvariantLoss("mae", max_shift=10))
        >>> model.fit(inputs, labels)
        >>> model.predictor.save("predictor.keras")
    """

    built: bool  # for type checkers: it is Keras's
    _twins: "Twins"

    def __init__(
        self,
        predictor,
        warp_network=None,
        *,
        moving="label",
        frozen="all",
        momentum=0.99,
        follow_every=1,
        warmup_steps=100,
        laid_on="twin",
        stop_gradient=True,
        center=True,
        by_area=True,
        smoothness=0.5,
        equivariance=0.0,
        equivariances=("flip",),
        interpolation="cubic",
        warp_loss=None,
        **kwargs,
    ):
        super().__init__(**{"autocast": False, **kwargs})
        for name, network in (("predictor", predictor), ("warp_network", warp_network or WarpNetwork())):
            if not isinstance(network, keras.Model):
                raise TypeError(_checks.message(f"`{name}` must be a Keras model.", {name: network}))
            setattr(self, name, network)
        self.moving = _checks.choice("moving", moving, MOVING)
        self.frozen = frozen if frozen == "all" else _checked_names("frozen", frozen)
        self.momentum = _checks.number("momentum", momentum, at_least=0.0, at_most=1.0)
        self.follow_every = _checks.whole_number("follow_every", follow_every, at_least=1)
        self.warmup_steps = _checks.whole_number("warmup_steps", warmup_steps, at_least=0)
        self.laid_on = _checks.choice("laid_on", laid_on, LAID_ON)
        if not stop_gradient and laid_on == "twin":
            received = {"stop_gradient": stop_gradient, "laid_on": laid_on}
            requirement = "`stop_gradient=False` must come with labels that are laid on the predictor itself."
            raise ValueError(_checks.message(requirement, received, 'Set laid_on="predictor".'))
        self.stop_gradient, self.center, self.by_area = bool(stop_gradient), bool(center), bool(by_area)
        self.smoothness = _checks.number("smoothness", smoothness, at_least=0.0)
        self.equivariance = _checks.number("equivariance", equivariance, at_least=0.0)
        self.equivariances = _checked_names("equivariances", equivariances, EQUIVARIANCES)
        self.interpolation = _checks.choice("interpolation", interpolation, ("linear", "cubic"))
        if warp_loss is not None:
            checked_warp_loss(warp_loss)
        self.warp_loss = warp_loss
        self.warp_loss_tracker = keras.metrics.Mean(name="warp_loss")
        self.displacement_tracker = keras.metrics.Mean(name="displacement")
        self.folds_tracker = keras.metrics.Mean(name="folds")
        self._inputs = None
        self._evaluations = 0  # under way; of replicas several at a time
        if predictor.built and getattr(predictor, "input_shape", None) is not None:
            self.build(predictor.input_shape)

    def build(self, input_shape):
        """Makes the twins and the state, once the shape of predictions is known."""
        if not self.built:
            # Also inside a traced step: weights are copied.
            with tf.init_scope():
                self._build(input_shape)
            self._inputs, self.built = input_shape, True

    def get_build_config(self):
        """What a Keras file needs to make the twins; Keras 2 keeps it of plain layers only."""
        return {"input_shape": self._inputs} if self.built else None

    def build_from_config(self, config):
        """Makes the twins that `get_build_config` describes."""
        shape = config["input_shape"]
        self.build(shape if isinstance(shape[-1], (list, tuple)) else tuple(shape))

    def _build(self, input_shape):
        if not self.predictor.built:
            self.predictor.build(input_shape)
        shape = tuple(self.predictor.compute_output_shape(input_shape))
        if not 3 <= len(shape) <= 5 or shape[-1] is None:
            requirement = "`predictor` must give one output (batch, *spatial, channels) with known channels."
            raise ValueError(_checks.message(requirement, {"its output shape": shape}))
        if not self.warp_network.built:
            self.warp_network.build([shape, shape])
        self._twins = Twins(self.predictor, self.warp_network, input_shape, self.frozen)
        self.predictor_twin, self.warp_network_twin = self._twins.predictor, self._twins.warp_network
        self._rank = len(shape) - 2
        state = {"initializer": "zeros", "trainable": False, "dtype": "float32"}
        self.steps = self.add_weight(name="steps", shape=(), **state)
        self.drift_state = self.add_weight(name="drift_state", shape=drift.STATE_SHAPE, **state)
        self.drift_state.assign(drift.pack(drift.initial([_FIRST_REACH] * self._rank)))

    @property
    def drift(self):
        """The estimated offset of the predictor from its input, pixels, one per axis: a NumPy array."""
        if not self.built:
            raise ValueError(_checks.message("There is no drift before the first batch.", {}, "Call `fit` first."))
        return np.array(self._drift().mean)[: self._rank]

    @property
    def losses(self):
        """What layers add to the loss, those of the twins not counted again."""
        return [*self.predictor.losses, *self.warp_network.losses]

    def _drift(self):
        return drift.unpack(tf.convert_to_tensor(self.drift_state))

    def call(self, inputs, training=None):
        """The predictions for `inputs`."""
        return self.predictor(inputs, training=training)

    def align(self, inputs, labels):
        """Lays `labels` on the predictions for `inputs`: an `Alignment`.

        Each label is pulled by the mean of both branches' displacements, without the drift: where it belongs on its
        input, as far as labels can tell.
        """
        prediction = _single(self(inputs, training=False))
        task = Task.of(getattr(self, "loss", None) or "mae", self.warp_loss)
        labels = Labels.of(labels, prediction, task)
        moves = task.moves(labels.parts)
        seen = labels.beside(moves, task, with_margin=isinstance(self.warp_network, WarpNetwork))
        other = _single(self.predictor_twin(inputs, training=False))
        pairs = (self.warp_network_twin, other if self.laid_on == "twin" else prediction), (self.warp_network, other)
        fields = [network(seen(one), training=False) for network, one in pairs]
        total = displacements.transformed(0.5 * (fields[0] + fields[1]), self._centered(moves))
        label, mask = labels.pulled(total, self.interpolation)
        return Alignment(label, mask, total)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The compiled loss of the f-branch; its gradient is that of both branches and what pins them."""
        del training
        task = Task.of(self.loss, self.warp_loss)
        if sample_weight is not None:
            sample_weight = checked_weight(sample_weight)
            sample_weight = sample_weight[:, 0] if sample_weight.shape.rank == 2 else sample_weight
            y = weighted(y, sample_weight)
        refuse_mask(y_pred)
        prediction = _single(y_pred)
        labels = Labels.of(y, prediction, task)
        moves = task.moves(labels.parts)

        other = _single(self.predictor_twin(x, training=False))
        if self._twins.all_frozen(self.predictor_twin):
            other = tf.stop_gradient(other)
        watched = other if self.laid_on == "twin" else prediction
        if self.stop_gradient:
            watched = tf.stop_gradient(watched)
        seen = labels.beside(moves, task, with_margin=isinstance(self.warp_network, WarpNetwork))
        bent = self.warp_network_twin(seen(watched), training=False)
        if self.stop_gradient and self._twins.all_frozen(self.warp_network_twin):
            bent = tf.stop_gradient(bent)
        warms_up = task.search is None and self.warmup_steps > 0
        is_known = tf.reduce_any(labels.valid > 0.0, axis=list(range(1, prediction.shape.rank)))
        prediction = self._updating_on_backward(prediction, displacements.transformed(bent, moves), is_known, warms_up)
        label, compared = self._compared(labels, prediction, bent, self._centered(moves), task)
        weight = sample_weight
        if task.search is None and weight is not None and weight.shape.rank == 1:
            values = task.base.call(label, compared)
            if values.shape.rank == prediction.shape.rank - 1:
                # Keras would take a vector for the last axis of pixels.
                weight = tf.reshape(weight, [-1] + [1] * (prediction.shape.rank - 2))
        total = super().compute_loss(x, label, compared, weight)

        warp_loss, penalties = self._warp_branch(x, labels, prediction, other, moves, seen, task, sample_weight)
        # The logs show the compiled loss alone. Keras sums the gradients of replicas.
        added = (warp_loss + penalties) / tf.distribute.get_strategy().num_replicas_in_sync
        return total + tf.cast(_gradient_only(added), total.dtype)

    def train_step(self, data):
        """One step of Keras's, after which the twins follow."""
        logs = super().train_step(data)
        self._twins.follow(tf.convert_to_tensor(self.steps), momentum=self.momentum, every=self.follow_every)
        return logs

    def test_step(self, data):
        """One step of Keras's evaluation."""
        self._evaluations += 1
        try:
            return super().test_step(data)
        finally:
            self._evaluations -= 1

    def _warp_branch(self, x, labels, prediction, other, moves, seen, task, sample_weight):
        """The loss of W beside the twin's prediction, and the penalties, scalars."""
        field = self.warp_network(seen(other), training=True)
        area = None
        if self.moving == "label":
            pull = displacements.transformed(field, moves)
            label, counts = labels.pulled(pull, self.interpolation, dense=True)
            area = tf.abs(displacements.jacobian_determinant(pull)) if self.by_area else None
        else:
            other, counts = _moved_back(other, field, moves)
            label, valid = labels.cropped(labels.dense)
            counts *= valid
        warp_loss = mean_loss(task.pixel_loss, label, other, counts, sample_weight, area)
        mirrored = tf.reverse(other, list(range(1, other.shape.rank - 1)))
        chance = mean_loss(task.pixel_loss, label, mirrored, counts, sample_weight)
        # Of all replicas: products and roots of their own means would not add up to those of one device.
        means = [tf.stop_gradient(one) for one in (warp_loss, chance, tf.reduce_mean(tf.square(field)))]
        level, chance, square = replicas.summed([one / replicas.count() for one in means])
        slopes = tf.reduce_mean(displacements.smoothness_energy(field))
        penalties = self.smoothness * tf.maximum(tf.abs(level), tf.abs(chance)) * slopes
        if self.equivariance > 0.0 and not self._evaluations:  # a run of f, which may keep statistics
            penalties += self.equivariance * self._inequivariance(x, prediction, task)
        self.warp_loss_tracker.update_state(warp_loss)
        self.displacement_tracker.update_state(tf.sqrt(square))
        self.folds_tracker.update_state(tf.reduce_mean(displacements.fold_share(field)))
        return warp_loss, penalties

    def _compared(self, labels, prediction, bent, moves, task):
        """What the compiled loss sees: label and prediction, cut off from the gradient where there is no data."""
        if self.moving == "label":
            if task.search is not None:
                # With its margin: the loss searches too.
                grid = geometry.centered_grid(geometry.spatial_shape(labels.values), bent.dtype)
                bent = displacements.at_points(bent, grid[tf.newaxis])
            label, counts = labels.pulled(displacements.transformed(bent, moves), self.interpolation)
            known = counts > COUNTS
        else:
            prediction, counts = _moved_back(prediction, bent, moves)
            if task.search is not None:
                shape = geometry.spatial_shape(labels.values)
                lost = resample.crop_or_pad(1.0 - counts[..., tf.newaxis], shape)[..., 0]
                label, known = labels.values, labels.valid[..., 0] * (1.0 - lost) > COUNTS
            else:
                label, valid = labels.cropped(labels.values)
                known = counts * valid > COUNTS
        return where_known(label, prediction, known, task)

    def _centered(self, moves):
        """Transforms without what the predictor does to its input."""
        if not self.center:
            return moves
        offset = drift.correction(self._drift(), rank=self._rank, subpixel=True)
        back = geometry.from_translation(-tf.cast(offset[tf.newaxis], moves.dtype))
        return geometry.compose(back, moves)

    def _updating_on_backward(self, prediction, displacement, is_known, warms_up):
        """The identity; its gradient counts the step and follows the mean displacement, so that evaluation does not."""
        share = self._warmup_share() if warms_up else tf.ones([])
        means = tf.stop_gradient(tf.reduce_mean(displacement, axis=list(range(1, displacement.shape.rank - 1))))
        # A label without values tells no displacement.
        sums = drift.batch_sums(means, tf.cast(is_known, means.dtype), min_confidence=0.0)

        @tf.custom_gradient
        def identity(values):
            def gradient(upstream):
                self._update(sums)
                return upstream * tf.cast(share, upstream.dtype)

            return tf.identity(values), gradient

        return identity(prediction)

    def _warmup_share(self):
        """How much of the gradient of f counts at this step."""
        done = (tf.convert_to_tensor(self.steps) - float(self.warmup_steps) + 1.0) / drift.SETTLING
        return drift.gradient_share(tf.clip_by_value(done, 0.0, 1.0))

    def _update(self, sums):
        sums = drift.BatchSums(*replicas.summed([one for one in sums if one is not None]))
        after = drift.update(self._drift(), sums, warmup_steps=0, subpixel=True)
        self.drift_state.assign(drift.pack(after))
        self.steps.assign_add(1.0)

    def _inequivariance(self, x, prediction, task):
        """The loss of f(T x) beside T f(x), for T drawn anew at each step, a scalar."""
        x = x if isinstance(x, (list, tuple, dict)) else _checks.floating(x, "x")
        if not tf.is_tensor(x) or x.shape.rank != prediction.shape.rank:
            raise ValueError(
                _checks.message(
                    "`equivariance` needs one input of the rank of the prediction.",
                    {"equivariance": self.equivariance, "y_pred.shape": _checks.shape_of(prediction)},
                    "Set equivariance=0.",
                )
            )
        step = tf.cast(tf.convert_to_tensor(self.steps), tf.int32)
        meant = tf.stop_gradient(task.activated(prediction))
        moved, wanted, counts = moved_alike(x, meant, self.equivariances, seed=step)
        found = _single(self.predictor(moved, training=True))
        return mean_loss(task.pixel_loss, wanted, found, counts, None)

    def get_config(self):
        """The arguments of the constructor."""
        warp_loss = self.warp_loss
        if warp_loss is not None and not isinstance(warp_loss, str):
            warp_loss = keras.saving.serialize_keras_object(warp_loss)
        return {
            "name": self.name,
            "predictor": keras.saving.serialize_keras_object(self.predictor),
            "warp_network": keras.saving.serialize_keras_object(self.warp_network),
            "moving": self.moving,
            "frozen": self.frozen if self.frozen == "all" else list(self.frozen),
            "momentum": self.momentum,
            "follow_every": self.follow_every,
            "warmup_steps": self.warmup_steps,
            "laid_on": self.laid_on,
            "stop_gradient": self.stop_gradient,
            "center": self.center,
            "by_area": self.by_area,
            "smoothness": self.smoothness,
            "equivariance": self.equivariance,
            "equivariances": list(self.equivariances),
            "interpolation": self.interpolation,
            "warp_loss": warp_loss,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """The model that `get_config` describes."""
        config = dict(config)
        for name in ("predictor", "warp_network", "warp_loss"):
            if isinstance(config[name], dict):
                config[name] = keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)
        return cls(**config)


def _moved_back(prediction, field, moves):
    """A prediction on the label's grid, `(batch, *spatial, channels)`, and the mask `(batch, *spatial)`."""
    shape = geometry.spatial_shape(prediction)
    # u -> T (u + field(u)) is undone by T^-1 first, then by the inverse of the field.
    back = displacements.compose(
        displacements.invert(field), displacements.from_transform(geometry.invert(moves), shape)
    )
    moved, inside = resample.warp(prediction, back)
    # What is not known stays a prediction: of zeros alone a loss need not be finite.
    here = tf.stop_gradient(prediction)
    return tf.where(inside[..., tf.newaxis] > COUNTS, moved, here), inside


def _single(prediction):
    """A prediction in float32, the type of displacements."""
    return tf.cast(_checks.floating(prediction, "prediction"), tf.float32)


def _gradient_only(value):
    """Zero, with the gradient of `value`."""
    return value - tf.stop_gradient(value)


def _checked_names(name, value, allowed=None):
    """A tuple of strings."""
    if isinstance(value, str) or not all(isinstance(one, str) for one in value):
        raise TypeError(_checks.message(f"`{name}` must be a list of names.", {name: value}))
    for one in value if allowed else ():
        _checks.choice(name, one, allowed)
    return tuple(value)
