"""Training on bent labels: a predictor and a warp network, each learning beside a lagging twin of the other."""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfalign import _checks
from tfalign.losses import ShiftInvariantLoss
from tfalign.models.warp_network import WarpNetwork
from tfalign.ops import displacements, geometry, registration, resample, spline

MOVING = ("label", "prediction")
EQUIVARIANCES = ("flip", "rotate", "elastic")
_DRIFT_RATE = 0.05  # share of a step in the running mean displacement
_COUNTS = 0.999  # weight from which a pixel counts: less is rounding, or a neighbour without data
_ELASTIC_RMS = 3.0  # px, of the moves under which a predictor should be equivariant
_ELASTIC_SPACING = 16  # px, between their control points


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

        f-branch: phi_1 = W'(f(x), y),   f learns from base(y pulled by phi_1 - drift, f(x))
        W-branch: phi_2 = W(f'(x), y),   W learns from base(y pulled by phi_2, f'(x)) + what keeps phi_2 smooth

    f is the predictor, W the warp network; f' and W' are their frozen twins, which follow with a lag: so neither can
    change what the other is judged by. `drift` is the running mean of the displacements: what all labels have in common
    is the predictor's own offset, and is taken out of what f learns from, as in `tfalign.ShiftInvariantLoss`.

    It compiles with any Keras loss of one output and fits as usual; calling it is calling the predictor. Compiled with
    a `ShiftInvariantLoss`, each label is first moved by the shift (or transform) that this loss searches, with its
    options, and then bent, so that W need not reach as far. Only the predictor is needed afterwards: save, export and
    serve `model.predictor`. The `.keras` file of the whole resumes the training.

    The loss in the logs is the compiled one, of the f-branch. "warp_loss" is that of W, "displacement" the RMS per axis
    of the bending alone (pixels), "folds" the share of pixels at which it folds. All see the labels as aligned: watch
    metrics on labels known to be right for what counts.

    Args:
        predictor: a Keras model with one input, or several, and one output `(batch, *spatial, channels)`. A subclassed
            one must have a `get_config`.
        warp_network: maps `[prediction, label]` to a displacement; by default a `WarpNetwork()`.
        moving: "label", or "prediction": then the label stays and the prediction is moved by the inverse, for both
            branches, and the gradient of f passes through the move. The displacements are the same.
        frozen: "all", or the names of layers (of a predictor made of layers, or of a `WarpNetwork`): only their weights
            are twins, and the others are shared by both branches, so that both train them. The name of a network stands
            for all its layers.
        momentum: of the moving average by which twins follow: 0 copies the weights. It starts lower.
        follow_every: steps after which twins follow. With `momentum=0`, 1 makes both branches train what joint training
            would, gradient for gradient (with `center=False` and no penalties).
        stop_gradient: the f-branch does not teach f through what W' makes of its prediction.
        center: take the drift out.
        smoothness: weight of the squared slopes of the displacement, in units of the loss of W: the penalty is this
            times the slopes' mean square times the loss.
        equivariance: weight of the loss of f(T x) beside T f(x), taken as W's loss is; 0 leaves it out. It costs one
            more run of f, and needs one input of the rank of the prediction.
        equivariances: what T is drawn from: "flip" (each axis or not), "rotate" (any angle; not for signals),
            "elastic" (3 px RMS, smooth). A constant offset does not commute with flips and rotations.
        interpolation: "linear" or "cubic", of the label that f learns from; "linear" blurs it.
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
        stop_gradient=True,
        center=True,
        smoothness=1.0,
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
        self.stop_gradient, self.center = bool(stop_gradient), bool(center)
        self.smoothness = _checks.number("smoothness", smoothness, at_least=0.0)
        self.equivariance = _checks.number("equivariance", equivariance, at_least=0.0)
        self.equivariances = _checked_names("equivariances", equivariances, EQUIVARIANCES)
        self.interpolation = _checks.choice("interpolation", interpolation, ("linear", "cubic"))
        self.warp_loss = warp_loss
        self.warp_loss_tracker = keras.metrics.Mean(name="warp_loss")
        self.displacement_tracker = keras.metrics.Mean(name="displacement")
        self.folds_tracker = keras.metrics.Mean(name="folds")
        self._inputs = None
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
        # Steps, then the running mean displacement.
        self.drift_state = self.add_weight(
            name="drift_state", shape=(1 + len(shape) - 2,), initializer="zeros", trainable=False, dtype="float32"
        )

    @property
    def drift(self):
        """The estimated offset of the predictor from its input, pixels, one per axis: a NumPy array."""
        return np.array(tf.convert_to_tensor(self.drift_state))[1:]

    def call(self, inputs, training=None):
        """The predictions for `inputs`."""
        return self.predictor(inputs, training=training)

    def align(self, inputs, labels):
        """Lays `labels` on the predictions for `inputs`: an `Alignment`.

        Each label is pulled by the mean of both branches' displacements, without the drift: where it belongs on its
        input, as far as labels can tell.
        """
        prediction = _checks.floating(self.predictor(inputs, training=False), "prediction")
        task = Task.of(getattr(self, "loss", None) or "mae", self.warp_loss)
        labels = Labels.of(labels, prediction, task)
        moves = self._moves(prediction, labels, task)
        seen = labels.beside(moves, task)
        other = _checks.floating(self.predictor_twin(inputs, training=False), "prediction")
        fields = [
            network(seen(one), training=False)
            for network, one in ((self.warp_network_twin, prediction), (self.warp_network, other))
        ]
        total = displacements.transformed(0.5 * (fields[0] + fields[1]), self._centered(moves))
        label, mask = labels.pulled(total, self.interpolation)
        return Alignment(label, mask, total)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The compiled loss of the f-branch; its gradient is that of both branches and what pins them."""
        del training
        task = Task.of(self.loss, self.warp_loss)
        sample_weight = _checked_weight(sample_weight)
        prediction = _checks.floating(y_pred, "y_pred")
        labels = Labels.of(y, prediction, task)
        moves = tf.stop_gradient(self._moves(prediction, labels, task))

        watched = tf.stop_gradient(prediction) if self.stop_gradient else prediction
        seen = labels.beside(moves, task)
        bent = self.warp_network_twin(seen(watched), training=False)
        if self.stop_gradient and self._twins.all_frozen(self.warp_network_twin):
            bent = tf.stop_gradient(bent)
        prediction = self._updating_on_backward(prediction, displacements.transformed(bent, moves))
        label, compared = self._compared(labels, prediction, bent, self._centered(moves), task)
        weight = sample_weight
        if task.search is None and weight is not None and weight.shape.rank == 1:
            # Keras's own losses give one value per pixel, and would take a vector for the last axis of pixels.
            weight = tf.reshape(weight, [-1] + [1] * (prediction.shape.rank - 2))
        total = super().compute_loss(x, label, compared, weight)

        warp_loss, penalties = self._warp_branch(x, labels, prediction, moves, seen, task, sample_weight)
        # The logs show the compiled loss alone. Keras sums the gradients of replicas.
        added = (warp_loss + penalties) / tf.distribute.get_strategy().num_replicas_in_sync
        return total + tf.cast(_gradient_only(added), total.dtype)

    def train_step(self, data):
        """One step of Keras's, after which the twins follow."""
        logs = super().train_step(data)
        self._twins.follow(tf.convert_to_tensor(self.drift_state)[0], momentum=self.momentum, every=self.follow_every)
        return logs

    def _warp_branch(self, x, labels, prediction, moves, seen, task, sample_weight):
        """The loss of W, and the penalties, scalars."""
        other = _checks.floating(self.predictor_twin(x, training=False), "prediction")
        if self._twins.all_frozen(self.predictor_twin):
            other = tf.stop_gradient(other)
        field = self.warp_network(seen(other), training=True)
        if self.moving == "label":
            label, counts = labels.dense_pulled(displacements.transformed(field, moves))
        else:
            other, counts = _moved_back(other, field, moves)
            label, valid = labels.cropped(labels.dense)
            counts *= valid
        warp_loss = _mean_loss(task.pixel_loss, label, other, counts, sample_weight)
        energy = tf.reduce_mean(displacements.smoothness_energy(field))
        penalties = self.smoothness * tf.abs(tf.stop_gradient(warp_loss)) * energy
        if self.equivariance > 0.0:
            penalties += self.equivariance * self._inequivariance(x, prediction, task)
        self.warp_loss_tracker.update_state(warp_loss)
        self.displacement_tracker.update_state(tf.sqrt(tf.reduce_mean(tf.square(field))))
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
            known = counts > _COUNTS
        else:
            prediction, counts = _moved_back(prediction, bent, moves)
            if task.search is not None:
                shape = geometry.spatial_shape(labels.values)
                lost = resample.crop_or_pad(1.0 - counts[..., tf.newaxis], shape)[..., 0]
                label, known = labels.values, labels.valid[..., 0] * (1.0 - lost) > _COUNTS
            else:
                label, valid = labels.cropped(labels.values)
                known = counts * valid > _COUNTS
        return _where_known(label, prediction, known, task)

    def _moves(self, prediction, labels, task):
        """The transforms `(batch, d+1, d+1)` that a `ShiftInvariantLoss` finds, else the identity."""
        rank = prediction.shape.rank - 2
        identity = geometry.identity(tf.shape(prediction)[0], rank, prediction.dtype)
        if task.search is None:
            return identity
        options, min_confidence = task.bounds(prediction, labels.dense)
        found = registration.register(
            tf.stop_gradient(task.activated(prediction)), labels.dense, moving_mask=labels.valid, **options
        )
        trusted = (found.confidence >= min_confidence)[:, tf.newaxis, tf.newaxis]
        return tf.where(trusted, tf.cast(found.transform, identity.dtype), identity)

    def _centered(self, moves):
        """Transforms without what the predictor does to its input."""
        if not self.center:
            return moves
        back = geometry.from_translation(-tf.cast(tf.convert_to_tensor(self.drift_state)[tf.newaxis, 1:], moves.dtype))
        return geometry.compose(back, moves)

    def _updating_on_backward(self, prediction, displacement):
        """The identity; its gradient counts the step and follows the mean displacement, so that evaluation does not."""
        axes = list(range(1, displacement.shape.rank - 1))
        means = tf.cast(tf.stop_gradient(tf.reduce_mean(displacement, axis=axes)), tf.float32)
        finite = tf.reduce_all(tf.math.is_finite(means), axis=-1, keepdims=True)
        sums = tf.reduce_sum(tf.concat([tf.cast(finite, tf.float32), tf.where(finite, means, 0.0)], axis=-1), axis=0)

        @tf.custom_gradient
        def identity(values):
            def gradient(upstream):
                self._update(sums)
                return upstream

            return tf.identity(values), gradient

        return identity(prediction)

    def _update(self, sums):
        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:
            sums = replica.all_reduce(tf.distribute.ReduceOp.SUM, sums)
        state = tf.convert_to_tensor(self.drift_state)
        steps, mean = state[0], state[1:]
        # A plain mean at first, then a running one; a batch of which nothing is known changes nothing.
        rate = tf.where(sums[0] > 0.0, tf.maximum(1.0 / (steps + 1.0), _DRIFT_RATE), 0.0)
        mean += rate * (sums[1:] / tf.maximum(sums[0], 1.0) - mean)
        self.drift_state.assign(tf.concat([[steps + 1.0], mean], axis=0))

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
        step = tf.cast(tf.convert_to_tensor(self.drift_state)[0], tf.int32)
        meant = tf.stop_gradient(task.activated(prediction))
        moved, wanted, counts = _moved_alike(x, meant, self.equivariances, seed=step)
        found = _checks.floating(self.predictor(moved, training=True), "prediction")
        return _mean_loss(task.pixel_loss, wanted, found, counts, None)

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
            "stop_gradient": self.stop_gradient,
            "center": self.center,
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


class Task(NamedTuple):
    """What the compiled loss asks for.

    Attributes:
        pixel_loss: `(y_true, y_pred)` -> one value per pixel if it can, for the warp network, of dense labels.
        activation: makes probabilities of predictions that are logits.
        is_sparse: labels are class ids.
        ignore_class: the id of pixels that do not count.
        search: the config of a compiled `ShiftInvariantLoss`, else None.
    """

    pixel_loss: Callable
    activation: Callable | None
    is_sparse: bool
    ignore_class: int | None
    search: dict | None

    @classmethod
    def of(cls, loss, warp_loss=None):
        """What a compiled loss, and a loss for the warp network, ask for."""
        if isinstance(loss, (list, tuple, dict)) and len(loss) == 1:
            (loss,) = loss.values() if isinstance(loss, dict) else loss
        if isinstance(loss, (list, tuple, dict)) or loss is None:
            remedy = 'Compile with one, e.g. loss="mae".'
            raise ValueError(_checks.message("`loss` must be one loss, of one output.", {"loss": loss}, remedy))
        search = loss.get_config() if isinstance(loss, ShiftInvariantLoss) else None
        base = loss.base if isinstance(loss, ShiftInvariantLoss) else loss
        base = keras.losses.get(base) if isinstance(base, str) else base
        config = base.get_config() if isinstance(base, keras.losses.Loss) else {}
        logits = bool(config.get("from_logits"))
        is_sparse = base is keras.losses.sparse_categorical_crossentropy or isinstance(
            base, keras.losses.SparseCategoricalCrossentropy
        )
        binary = isinstance(base, (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy))
        ignore_class = getattr(loss, "ignore_class", None)
        compared = warp_loss
        if compared is None:
            compared = keras.losses.CategoricalCrossentropy(from_logits=logits) if is_sparse else base
        compared = keras.losses.get(compared) if isinstance(compared, str) else compared
        return cls(
            pixel_loss=compared.call if isinstance(compared, keras.losses.Loss) else compared,
            activation=(tf.sigmoid if binary else tf.nn.softmax) if logits else None,
            is_sparse=is_sparse,
            ignore_class=config.get("ignore_class") if ignore_class is None else ignore_class,
            search=search,
        )

    def activated(self, prediction):
        """What a prediction means, in the values of dense labels."""
        return prediction if self.activation is None else self.activation(prediction)

    def bounds(self, prediction, label):
        """Options of `tfalign.register` and the confidence from which its result counts."""
        search, rank = self.search or {}, prediction.shape.rank - 2
        sizes, min_overlap = (prediction.shape[1:-1], label.shape[1:-1]), search.get("min_overlap", 0.5)
        max_shift = search.get("max_shift")
        if max_shift is None:
            for max_shift in range(8, -1, -1):
                overlap = registration.overlap_at_bound(*sizes, [max_shift] * rank)
                if overlap is None or overlap >= min_overlap:
                    break
        similarity = search.get("similarity", "ncc")
        options = {
            "max_shift": max_shift,
            "similarity": similarity if similarity in registration.SIMILARITIES else "ncc",
            "min_overlap": min_overlap,
            "subpixel": bool(search.get("subpixel", False)),
            **{name: search.get(name, 0.0) for name in ("max_rotation", "max_scale", "max_shear")},
        }
        return options, search.get("min_confidence", 0.5)


class Labels(NamedTuple):
    """The labels of a batch, and where they hold data.

    Attributes:
        values: `(batch, *spatial, channels)` as given, 0 where there is no data.
        dense: `(batch, *spatial, prediction's channels)`: class ids as probabilities.
        valid: `(batch, *spatial, 1)`, 1.0 where there is data.
        shape: sizes of the prediction's grid.
        is_sparse: whether `values` are class ids.
    """

    values: tf.Tensor
    dense: tf.Tensor
    valid: tf.Tensor
    shape: list
    is_sparse: bool

    @classmethod
    def of(cls, labels, prediction, task):
        """Labels `(batch, *spatial, channels)`, larger or smaller than the prediction, on the same centre."""
        values = tf.cast(_checks.floating(labels, "y_true"), prediction.dtype)
        if values.shape.rank == prediction.shape.rank - 1:
            values = values[..., tf.newaxis]
        channels, wanted = values.shape[-1], 1 if task.is_sparse else prediction.shape[-1]
        extras = task.search is not None and channels is not None and channels >= wanted
        if values.shape.rank != prediction.shape.rank or not (channels in (None, wanted) or extras):
            raise ValueError(
                _checks.message(
                    "`y_true` must have the rank of `y_pred` and "
                    + ("one channel of class ids." if task.is_sparse else "its channels."),
                    {"y_true.shape": _checks.shape_of(values), "y_pred.shape": _checks.shape_of(prediction)},
                )
            )
        known = tf.math.is_finite(values)
        if task.ignore_class is not None:
            known &= tf.not_equal(values, float(task.ignore_class))
        known = tf.reduce_all(known, axis=-1, keepdims=True)
        values = tf.where(known, values, 0.0)
        dense = values[..., :wanted]
        if task.is_sparse:
            dense = tf.one_hot(tf.cast(tf.round(dense[..., 0]), tf.int32), prediction.shape[-1], dtype=values.dtype)
        dense = tf.ensure_shape(dense, [None] * (prediction.shape.rank - 1) + [prediction.shape[-1]])
        shape = geometry.spatial_shape(prediction)
        return cls(values, dense, tf.cast(known, values.dtype), shape, task.is_sparse)

    def pulled(self, displacement, interpolation):
        """Labels as given, on the prediction's grid, and the mask `(batch, *spatial)` of where they have data."""
        valid, inside = resample.warp(self.valid, displacement)
        mask = tf.cast(valid[..., 0] * inside > _COUNTS, valid.dtype)
        grid = geometry.centered_grid(geometry.spatial_shape(displacement), displacement.dtype)
        coordinates = grid + displacement
        if self.is_sparse or interpolation == "linear":
            interpolation = "nearest" if self.is_sparse else "linear"
            return resample.sample(self.values, coordinates, interpolation=interpolation)[0], mask
        holes = tf.reduce_any(self.valid <= 0.0)
        filled = tf.cond(holes, lambda: spline.fill_holes(self.values, self.valid), lambda: self.values)
        values = resample.sample_splines(spline.coefficients(filled), coordinates)
        # Splines overshoot at edges.
        axes = list(range(1, filled.shape.rank - 1))
        lowest, highest = (bound(filled, axis=axes, keepdims=True) for bound in (tf.reduce_min, tf.reduce_max))
        return tf.maximum(tf.minimum(values, highest), lowest), mask

    def dense_pulled(self, displacement):
        """Dense labels by linear interpolation, and the mask."""
        both, inside = resample.warp(tf.concat([self.dense, self.valid], axis=-1), displacement)
        return both[..., :-1], inside * both[..., -1]

    def beside(self, moves, task):
        """A function that makes the inputs of a warp network from a prediction.

        They are what the prediction means, and the dense label after the move, holes filled with the former.
        """
        if task.search is None:
            label, counts = self.cropped(self.dense)
        else:
            label, counts = self.dense_pulled(displacements.from_transform(moves, self.shape))
        known = counts[..., tf.newaxis] > _COUNTS

        def seen(prediction):
            prediction = task.activated(prediction)
            return [prediction, tf.where(known, label, prediction)]

        return seen

    def cropped(self, values):
        """`values` on the prediction's grid as they lie, and the mask."""
        values, valid = (resample.crop_or_pad(one, self.shape) for one in (values, self.valid))
        return values, valid[..., 0]


class Twins:
    """The frozen twins of two networks, and how they follow."""

    def __init__(self, predictor, warp_network, input_shape, frozen):
        networks = (predictor, warp_network)
        own = [_layer_names(one) if frozen == "all" else _chosen_names(one, frozen) for one in networks]
        unknown = (
            []
            if frozen == "all"
            else [name for name in frozen if not any(name in (one.name, *_layer_names(one)) for one in networks)]
        )
        if unknown:
            received = {"frozen": frozen, "unknown": unknown}
            raise ValueError(_checks.message("`frozen` must name layers of the networks.", received))
        self.predictor, self.warp_network = (_twin(one, names, input_shape) for one, names in zip(networks, own))
        twins = (self.predictor, self.warp_network)
        self._frozen = [twin for twin, one, names in zip(twins, networks, own) if names == _layer_names(one)]
        self._pairs = [
            (mine, theirs)
            for twin, one in zip(twins, networks)
            for mine, theirs in zip(twin.weights, one.weights)
            if mine is not theirs
        ]
        for twin, names in zip(twins, own):
            for layer in [twin] if self.all_frozen(twin) else _layers(twin):
                if layer is twin or layer.name in names:
                    layer.trainable = False

    def all_frozen(self, twin):
        """Whether a twin shares no weight."""
        return any(one is twin for one in self._frozen)

    def follow(self, steps, *, momentum, every):
        """Moves the twins towards the networks, after `steps` training steps in all, a float scalar."""
        kept = tf.minimum(momentum, (1.0 + steps) / (10.0 + steps))
        for mine, theirs in self._pairs:
            old, new = tf.convert_to_tensor(mine), tf.convert_to_tensor(theirs)
            if momentum and new.dtype.is_floating:
                new += tf.cast(kept, new.dtype) * (old - new)
            if every > 1:
                new = tf.where(tf.equal(tf.math.floormod(steps, float(every)), 0.0), new, old)
            mine.assign(new)


def _layers(network):
    return network.convolutions if isinstance(network, WarpNetwork) else network.layers


def _layer_names(network):
    return {layer.name for layer in _layers(network)}


def _chosen_names(network, frozen):
    return _layer_names(network) if network.name in frozen else _layer_names(network) & set(frozen)


def _twin(network, own, input_shape):
    """A network with the same weights, of which the layers named in `own` are copies and the others shared."""
    if isinstance(network, WarpNetwork):
        return network.twin(own=own)
    if getattr(network, "input_shape", None) is not None and hasattr(network, "inputs") and network.inputs:

        def cloned(layer):
            return type(layer).from_config(layer.get_config()) if layer.name in own else layer

        twin = keras.models.clone_model(network, clone_function=cloned)
    elif own == _layer_names(network):
        twin = type(network).from_config(network.get_config())
        twin.build(input_shape)
    else:
        requirement = '`frozen` must be "all", or hold the network\'s name, where it is not made of layers.'
        raise ValueError(_checks.message(requirement, {"network": network.name, "frozen": sorted(own)}))
    twin.set_weights(network.get_weights())
    return twin


def _checked_weight(weight):
    """`(batch,)` weights or a scalar; others would have to move with the label."""
    if weight is None:
        return None
    weight = tf.convert_to_tensor(weight)
    if weight.shape.rank == 2 and weight.shape[-1] == 1:
        weight = weight[:, 0]
    if weight.shape.rank is None or weight.shape.rank > 1:
        raise ValueError(
            _checks.message(
                "`sample_weight` must be (batch,).",
                {"sample_weight.shape": _checks.shape_of(weight)},
                "Weights of pixels must move with the label: set it to NaN where it does not count.",
            )
        )
    return weight


def _where_known(label, prediction, known, task):
    """Label and prediction for the compiled loss: pixels that are not known have no gradient to either."""
    known = known[..., tf.newaxis]
    if task.search is not None:
        return tf.where(known, label, np.nan), prediction
    held = tf.stop_gradient(prediction)
    if task.is_sparse:
        label = tf.where(known, label, 0.0 if task.ignore_class is None else float(task.ignore_class))
    elif task.activation is None:
        label = tf.where(known, label, held)
    else:
        label = tf.where(known, label, task.activated(held))
    return label, tf.where(known, prediction, held)


def _mean_loss(pixel_loss, label, prediction, counts, sample_weight):
    """The mean over the pixels that count, then over the batch, a scalar."""
    counts = counts > _COUNTS
    known = counts[..., tf.newaxis]
    label = tf.where(known, label, tf.stop_gradient(label))
    values = tf.cast(pixel_loss(label, tf.where(known, prediction, tf.stop_gradient(prediction))), prediction.dtype)
    if values.shape.rank == prediction.shape.rank - 1:
        axes = list(range(1, values.shape.rank))
        total = tf.reduce_sum(tf.where(counts, values, 0.0), axis=axes)
        values = total / tf.maximum(tf.reduce_sum(tf.cast(counts, total.dtype), axis=axes), 1.0)
        if sample_weight is not None:
            values *= tf.cast(sample_weight, values.dtype)
    return tf.reduce_mean(values)


def _moved_alike(inputs, prediction, kinds, *, seed):
    """Inputs and predictions moved by the same random moves, one for each sample, and the mask of the latter."""
    replica = tf.distribute.get_replica_context()
    seed = [seed, 0 if replica is None else replica.replica_id_in_sync_group]
    rank, batch = inputs.shape.rank - 2, tf.shape(inputs)[0]
    signs = tf.where(tf.random.stateless_uniform([batch, rank], seed) < 0.5, -1.0, 1.0)
    if kinds == ("flip",):
        for axis in range(rank):
            flips = tf.reshape(signs[:, axis] < 0.0, [-1] + [1] * (rank + 1))
            inputs, prediction = (tf.where(flips, tf.reverse(one, [axis + 1]), one) for one in (inputs, prediction))
        return inputs, prediction, tf.ones_like(prediction[..., 0])
    angles = tf.random.stateless_uniform([batch, len(geometry.PLANES[rank])], seed, -180.0, 180.0)
    transform = geometry.make(
        tf.zeros([batch, rank]),
        rotation=angles if "rotate" in kinds else None,
        scale=signs if "flip" in kinds else None,
    )
    shape = geometry.spatial_shape(inputs)
    field = tf.zeros([batch, *shape, rank])
    if "elastic" in kinds:
        coarse = [-(-size // _ELASTIC_SPACING) for size in shape]
        # Splines of white noise have about half its variance for each axis.
        drawn = _ELASTIC_RMS * 2.0 ** (rank / 2) * tf.random.stateless_normal([batch, *coarse, rank], seed)
        field = displacements.from_control_points(drawn, shape=shape, spacing=_ELASTIC_SPACING)
    moved, _ = resample.warp(inputs, displacements.transformed(field, transform))
    field = resample.crop_or_pad(field, geometry.spatial_shape(prediction))
    return moved, *resample.warp(prediction, displacements.transformed(field, transform))


def _moved_back(prediction, field, moves):
    """A prediction on the label's grid, `(batch, *spatial, channels)`, and the mask `(batch, *spatial)`."""
    shape = geometry.spatial_shape(prediction)
    # u -> T (u + field(u)) is undone by T^-1 first, then by the inverse of the field.
    back = displacements.compose(
        displacements.invert(field), displacements.from_transform(geometry.invert(moves), shape)
    )
    return resample.warp(prediction, back)


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
