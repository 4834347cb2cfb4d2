"""The warp network: finds the displacement field that lays a label on a prediction."""

import itertools

import keras
import numpy as np
import tensorflow as tf

from tfalign import _checks
from tfalign.ops import displacements, geometry, resample

FORMS = ("velocity", "displacement")
_INPUTS = ("prediction", "label")
_CONVOLUTIONS = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D, 3: keras.layers.Conv3D}
_BETWEEN_LEVELS = 2  # squarings: the next level sees what they leave
_REACH = {1: 4, 2: 2, 3: 1}  # pixels of a level, of the comparisons around each of its pixels, by rank
_KNOWN = 0.25  # share of a pixel that must be known
_STEPS = 2  # by least squares, with the same weights
_GAIN = 8.0  # of the least-squares step: weights that begin near zero soon take it
_DAMPING = 0.02  # of the equations, as squared slopes of values of variance 1
_SHARPEST = 10.0  # what a normalised difference is cut at: an odd pixel must not drown the others


def warp_network(
    *,
    rank=None,
    channels=None,
    form="velocity",
    max_displacement=16.0,
    filters=32,
    depth=4,
    spacing=2,
    squarings=6,
    name="warp_network",
):
    """A `WarpNetwork`; with `rank` and `channels` it has its weights at once, otherwise from its first call on.

    Args:
        rank: spatial axes, 1, 2 or 3.
        channels: of prediction and label.
        form, max_displacement, filters, depth, spacing, squarings, name: see `WarpNetwork`.

    Raises:
        TypeError, ValueError: an option out of range.
    """
    network = WarpNetwork(
        form=form,
        max_displacement=max_displacement,
        filters=filters,
        depth=depth,
        spacing=spacing,
        squarings=squarings,
        name=name,
    )
    if (rank is None) != (channels is None):
        received = {"rank": rank, "channels": channels}
        raise ValueError(_checks.message("`rank` and `channels` must be given together, or neither.", received))
    if rank is not None:
        _checks.choice("rank", rank, tuple(_CONVOLUTIONS))
        _checks.whole_number("channels", channels, at_least=1)
        network.build([(None,) * (rank + 1) + (channels,)] * 2)
    return network


@keras.saving.register_keras_serializable(package="tfalign")
class WarpNetwork(keras.Model):
    """Displacement fields from predictions and labels, coarse to fine: `prediction(u) ~ label(u + displacement(u))`.

    Called with `[prediction, label]`, each `(batch, *spatial, channels)`, it returns `(batch, *spatial, d)` float32,
    pixels, on the grid of the prediction. A label may be larger, on the same centre: its margin is what can move in.

    Each level halves the grid. From the coarsest to the finest the label is moved by what is known so far; two
    convolutions see prediction, moved label, the force between them (their difference times their slope, over its
    square, as in optical flow), how they differ at each shift of a few pixels of the level, and what the level above
    saw, and add to the field. At last, twice, the label is read at full size, and three convolutions see the damped
    least-squares step around each control point, of at most a pixel. The last convolution of each level starts near
    zero, so that an untrained network hardly moves anything. Pairs are normalised to mean 0 and variance 1 together;
    where a prediction is not finite the values are those of zeros, and where a label is not known (NaN, or outside)
    nothing pulls.

    Args:
        form: "velocity": the field is that of a flow (scaling and squaring), so that it can be inverted and does not
            fold. "displacement": the field itself, which may fold.
        max_displacement: pixels that no axis exceeds.
        filters: channels of each convolution.
        depth: levels, 1 or more. The coarsest has pixels of `spacing * 2**(depth - 1)`.
        spacing: a power of 2, pixels from one control point of the field to the next; cubic splines lie between them.
            The wider, the smoother the field and the shorter the step; at 1 nothing keeps a flow smooth over a pixel,
            and it may fold.
        squarings: of the flow, see `tfalign.ops.displacements.integrate`.

    Raises:
        TypeError, ValueError: an option out of range, or inputs that do not fit.

    Source: Dalca et al. (2018), doi:10.1007/978-3-030-00928-1_82, for a network that gives a velocity; Thirion (1998),
        doi:10.1016/S1361-8415(98)80022-4, for the force; Sun et al. (2018), doi:10.1109/CVPR.2018.00931, for the
        comparisons at each level; Lucas and Kanade (1981), IJCAI, 674-679, for the step.
    """

    built: bool  # for type checkers: it is Keras's

    def __init__(
        self,
        *,
        form="velocity",
        max_displacement=16.0,
        filters=32,
        depth=4,
        spacing=2,
        squarings=6,
        **kwargs,
    ):
        # Half types count pixels up to 2048 only: the convolutions cast for themselves.
        super().__init__(**{"autocast": False, **kwargs})
        spacing = _checks.whole_number("spacing", spacing, at_least=1)
        if spacing & (spacing - 1):
            raise ValueError(_checks.message("`spacing` must be a power of 2.", {"spacing": spacing}))
        self.options = {
            "form": _checks.choice("form", form, FORMS),
            "max_displacement": _checks.number("max_displacement", max_displacement, at_least=1e-3),
            "filters": _checks.whole_number("filters", filters, at_least=1),
            "depth": _checks.whole_number("depth", depth, at_least=1),
            "spacing": spacing,
            "squarings": _checks.whole_number("squarings", squarings, at_least=0),
        }
        self.convolutions = []
        self._channels = None

    def build(self, input_shape):
        """Makes the convolutions, once the channels are known."""
        if self.built:
            return
        rank, channels = _checked_shapes(*input_shape)
        self._channels = (rank, channels)
        filters = self.options["filters"]
        seen = 2 * channels + 1 + rank + (2 * _REACH[rank] + 1) ** rank
        depth = self.options["depth"]
        stages = {f"level_{level}": seen + (filters if level < depth - 1 else 0) for level in range(depth)}
        for stage, inputs in {**stages, "last": rank + 2 + filters}.items():
            for part, taken, outputs in (
                ("first", inputs, filters),
                ("second", filters, filters),
                ("field", filters + (rank if stage == "last" else 0), rank),
            ):
                name, options = f"{stage}_{part}", _options_of(part)
                layer = _CONVOLUTIONS[rank](outputs, 3, padding="same", name=name, **options)
                layer.build((None,) * (rank + 1) + (taken,))
                self.convolutions.append(layer)
        self.built = True

    def twin(self, *, own):
        """A network like this one with the same weights: layers whose names are in `own` are copied, others shared."""
        if not self.built:
            raise ValueError(_checks.message("The network must be built.", {"built": False}, "Call it once."))
        config = {**self.get_config(), "name": f"{self.name}_twin"}
        other = type(self).from_config(config)
        for layer in self.convolutions:
            if layer.name in own:
                copy = type(layer).from_config(layer.get_config())
                copy.build((None,) * (layer.rank + 1) + (layer.get_weights()[0].shape[-2],))
                copy.set_weights(layer.get_weights())
                layer = copy
            other.convolutions.append(layer)
        other._channels, other.built = self._channels, True
        return other

    def call(self, inputs):
        """The displacement field of `[prediction, label]`."""
        prediction, label = (tf.cast(_checks.floating(one, name), tf.float32) for name, one in zip(_INPUTS, inputs))
        _checks.spatial_rank("prediction", prediction)
        rank, channels = _checked_shapes(prediction.shape, label.shape)
        own = tuple(self._channels or ())
        if (rank, channels) != own:
            received = {"prediction.shape": tuple(prediction.shape), "its rank and channels": own}
            raise ValueError(_checks.message("Inputs must have the rank and channels of the network.", received))
        shape = geometry.spatial_shape(prediction)
        spacing, depth = self.options["spacing"], self.options["depth"]
        # Along an axis of one pixel nothing moves: it would leave the picture.
        along = tf.cast(tf.stack(shape) > 1, tf.float32)
        prediction, label, known = _normalised(prediction, _with_margin(label, shape, spacing * 2 ** (depth - 1)))
        fixed_grids, moving_grids, known_grids = (
            _pyramid(one, spacing, depth) for one in (prediction, label * known, known)
        )
        field, features = None, None
        for level in reversed(range(depth)):
            first, second, last = self.convolutions[3 * level : 3 * level + 3]
            fixed = fixed_grids[level]
            pixel, size = float(spacing * 2**level), geometry.spatial_shape(fixed)
            moving = tf.concat([moving_grids[level], known_grids[level]], axis=-1)
            above: list[tf.Tensor] = []
            found = tf.zeros([1, *size, rank])
            if field is not None:
                field = displacements.from_control_points(field, shape=size, spacing=2)
                found = self._displacement(field, along, pixel=pixel, squarings=_BETWEEN_LEVELS) / pixel
                above = [tf.cast(_doubled(features, size), tf.float32)]
            moving, weight = _read(moving, found, fixed)
            seen = [fixed, moving, 1.0 - weight, _force(fixed, moving), _unlikeness(fixed, moving, weight), *above]
            features = second(first(tf.concat(seen, axis=-1)))
            change = pixel * last(features)
            field = change if field is None else field + change
        first, second, last = self.convolutions[3 * depth :]
        for _ in range(_STEPS):
            found = self._displacement(field, along, pixel=float(spacing), squarings=_BETWEEN_LEVELS)
            found = displacements.from_control_points(found, shape=shape, spacing=spacing)
            moving, weight = _read(tf.concat([label * known, known], axis=-1), found, prediction)
            step, certainty = _newton_step(prediction, moving, weight, spacing)
            unknown = 1.0 - _pyramid(weight, spacing, 1)[0]
            features = second(first(tf.concat([step, certainty, unknown, tf.cast(features, tf.float32)], axis=-1)))
            field += float(spacing) * last(tf.concat([tf.cast(features, tf.float32), _GAIN * step], axis=-1))
        field = self._displacement(field, along, pixel=float(spacing), squarings=self.options["squarings"])
        return displacements.from_control_points(field, shape=shape, spacing=spacing)

    def _displacement(self, field, along, *, pixel, squarings):
        """What the field of a level with pixels of that size stands for, within the bound; pixels of the full grid.

        `along` is 1.0 or 0.0 for each axis: whether anything moves along it.
        """
        bound = self.options["max_displacement"]
        field = along * bound * tf.tanh(field / bound)
        if self.options["form"] == "displacement":
            return field
        return pixel * displacements.integrate(field / pixel, squarings=squarings)

    def get_build_config(self):
        """What a Keras file needs to make the weights; Keras 2 keeps it of plain layers only."""
        return {"channels": self._channels} if self.built else None

    def build_from_config(self, config):
        """Makes the weights that `get_build_config` describes."""
        rank, channels = config["channels"]
        self.build([(None,) * (rank + 1) + (channels,)] * 2)

    def get_config(self):
        """The arguments of the constructor."""
        return {"name": self.name, **self.options}


def _options_of(name):
    """Of a convolution; the one that gives the field starts near zero."""
    if name == "field":
        return {"kernel_initializer": keras.initializers.RandomNormal(stddev=1e-4), "dtype": "float32"}
    return {"activation": "relu", "kernel_initializer": "he_normal"}


def _checked_shapes(prediction, label):
    """Rank and channels of two shapes `(batch, *spatial, channels)`, which must agree."""
    received = {"prediction.shape": tuple(prediction), "label.shape": tuple(label)}
    if len(prediction) - 2 not in _CONVOLUTIONS or len(prediction) != len(label):
        requirement = "`prediction` and `label` must be (batch, *spatial, channels) with 1, 2 or 3 spatial axes."
        raise ValueError(_checks.message(requirement, received))
    if prediction[-1] is None or prediction[-1] != label[-1]:
        raise ValueError(_checks.message("`prediction` and `label` must have the same, known channels.", received))
    return len(prediction) - 2, prediction[-1]


def _with_margin(label, shape, coarsest):
    """The label on the grid of the prediction and as many whole pixels of the coarsest level around as it needs.

    So that all levels of both share one centre. What was added is NaN.
    """
    wanted = []
    for size, available in zip(shape, geometry.spatial_shape(label)):
        beyond = (tf.maximum if tf.is_tensor(available - size) else max)(available - size, 0)
        wanted.append(size + 2 * coarsest * (-(-beyond // (2 * coarsest))))
    known = resample.crop_or_pad(tf.ones_like(label[..., :1]), wanted) > 0.0
    return tf.where(known, resample.crop_or_pad(label, wanted), np.nan)


def _normalised(prediction, label):
    """Both with mean 0 and variance 1 together, and where the label is known, `(batch, *spatial, 1)` 1.0 or 0.0."""
    known = tf.cast(tf.reduce_all(tf.math.is_finite(label), axis=-1, keepdims=True), label.dtype)
    prediction = tf.where(tf.math.is_finite(prediction), prediction, 0.0)
    label = tf.where(known > 0.0, label, 0.0)
    axes = list(range(1, prediction.shape.rank))

    larger = tf.cast(tf.size(label[0]) / tf.size(prediction[0]), label.dtype)
    share = tf.reduce_mean(known, axis=axes, keepdims=True)

    def mean_of(one, other):
        # Of means, not of sums: a flat pair must come out flat.
        mine, others = (tf.reduce_mean(values, axis=axes, keepdims=True) for values in (one, other * known))
        return (mine + larger * others) / (1.0 + larger * share)

    mean = mean_of(prediction, label)
    variance = mean_of(tf.square(prediction - mean), tf.square(label - mean))
    # Relative to the values: what rounding leaves of a flat pair is no texture.
    floor = 1e-6 * mean_of(tf.square(prediction), tf.square(label)) + 1e-30
    prediction, label = (
        tf.clip_by_value((one - mean) * tf.math.rsqrt(variance + floor), -_SHARPEST, _SHARPEST)
        for one in (prediction, label)
    )
    return prediction, label, known


def _pyramid(values, spacing, depth):
    """Means over ever larger pixels: a list of `depth` grids, the finest with pixels of `spacing`."""
    grids: list[tf.Tensor] = []
    pixel = 1
    while len(grids) < depth:
        if pixel >= spacing:
            grids.append(values)
        values = _averaged(values, 2, 2)
        pixel *= 2
    return grids


def _averaged(values, size, stride):
    """Means over windows; of what lies inside."""
    # Named: TensorFlow's gradient of volumes fails on the default.
    data_format = {1: "NWC", 2: "NHWC", 3: "NDHWC"}[values.shape.rank - 2]
    return tf.nn.avg_pool(values, size, stride, "SAME", data_format)


def _read(moving, displacement, fixed):
    """The label through a displacement on the grid of `fixed`, and the weight of what is known there.

    `moving` has that weight in its last channel, and the others multiplied by it.
    """
    coordinates = geometry.centered_grid(geometry.spatial_shape(fixed)) + displacement
    # With a border of nothing, which goes on outside.
    bordered = resample.crop_or_pad(moving, [size + 2 for size in geometry.spatial_shape(moving)])
    values, _ = resample.sample(bordered, coordinates, interpolation="linear", finite=True)
    values, weight = values[..., :-1], values[..., -1:]
    # Where there is no label it is as predicted: nothing pulls.
    is_known = weight > _KNOWN
    return tf.where(is_known, values / tf.where(is_known, weight, 1.0), fixed), weight


def _slopes(fixed, moving):
    """Those of the mean of both, one for each axis."""
    return [0.5 * displacements.central_difference(fixed + moving, axis) for axis in range(1, fixed.shape.rank - 1)]


def _newton_step(fixed, moving, weight, spacing):
    """What brings `moving` onto `fixed` around each control point, by least squares; and how certain that is.

    Both `(batch, *coarse, d)` and `(batch, *coarse, 1)`: pixels, at most one, and a share in [0, 1].
    """
    rank, difference = fixed.shape.rank - 2, fixed - moving
    slopes = _slopes(fixed, moving)
    pairs = [(one, other) for one in range(rank) for other in range(one, rank)]
    products = [slopes[one] * slopes[other] for one, other in pairs] + [slope * difference for slope in slopes]
    sums = weight * tf.stack([tf.reduce_sum(one, axis=-1) for one in products], axis=-1)
    (sums,) = _pyramid(sums, spacing, 1)
    for _ in range(2):
        sums = _averaged(sums, 3, 1)
    square = dict(zip(pairs, tf.unstack(sums[..., : len(pairs)], axis=-1)))
    wanted = tf.unstack(sums[..., len(pairs) :], axis=-1)
    rows = [
        [square[min(one, other), max(one, other)] + (_DAMPING if one == other else 0.0) for other in range(rank)]
        for one in range(rank)
    ]
    numerators, determinant = geometry.cramer(rows, wanted)
    step = tf.stack(numerators, axis=-1) / determinant[..., tf.newaxis]
    return tf.clip_by_value(step, -1.0, 1.0), (1.0 - _DAMPING**rank / determinant)[..., tf.newaxis]


def _force(fixed, moving):
    """What moves `moving` towards `fixed` by the slope of both, `(batch, *spatial, d)`, pixels, at most half of one."""
    difference = fixed - moving
    slopes = _slopes(fixed, moving)
    square = tf.reduce_sum(tf.add_n([tf.square(slope) for slope in slopes]) + tf.square(difference), axis=-1)
    pulls = tf.stack([tf.reduce_sum(difference * slope, axis=-1) for slope in slopes], axis=-1)
    return pulls / (square[..., tf.newaxis] + 1e-3)


def _unlikeness(fixed, moving, weight):
    """How much more `moving`, read a few pixels away, differs around each pixel: `(batch, *spatial, shifts)`.

    More than in the mean over all the shifts; 0 where nothing is known of a shift.
    """
    rank, shape = fixed.shape.rank - 2, geometry.spatial_shape(fixed)
    reach = _REACH[rank]
    padded = tf.pad(tf.concat([moving, weight], axis=-1), [[0, 0], *[[reach, reach]] * rank, [0, 0]])
    starts = itertools.product(range(2 * reach + 1), repeat=rank)
    parts = tf.stack([tf.slice(padded, [0, *start, 0], [-1, *shape, -1]) for start in starts], axis=-2)
    weights = parts[..., -1]
    differences = weights * tf.reduce_mean(tf.abs(fixed[..., tf.newaxis, :] - parts[..., :-1]), axis=-1)
    total, count = (tf.reduce_sum(one, axis=-1, keepdims=True) for one in (differences, weights))
    return _averaged(differences - weights * tf.math.divide_no_nan(total, count), 3, 1)


def _doubled(features, shape):
    """Every pixel twice along each axis, cut to `shape`."""
    for axis, size in enumerate(shape, start=1):
        features = tf.gather(features, tf.range(size) // 2, axis=axis)
    return features
