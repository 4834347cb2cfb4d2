"""The arms: what each way to train does with the moved labels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import scipy.ndimage
import skimage.registration
import tensorflow as tf

import tfalign
from benchmarks.quality.cells import Cell, Patches
from benchmarks.quality.tasks import Task
from tfalign import drift
from tfalign.data import misalign


class Arm(NamedTuple):
    """One way to train: labels and a loss from the patches of a cell."""

    name: str
    title: str
    prepare: Callable[[Task, Cell, Patches], tuple[np.ndarray, Any]]  # -> labels, Keras loss
    uses_loss: bool = False  # `ShiftInvariantLoss`: its version and the bounds of the cell count
    version: int = 1
    around: Callable[[keras.Model], keras.Model] | None = None  # the model that trains a predictor
    order: int = 0  # added to the seed of the order of the patches


def center(labels, margin):
    """Labels without their margin."""
    inner = slice(margin, -margin) if margin else slice(None)
    return labels[(slice(None), *(inner,) * (labels.ndim - 2))]


def plain(task, cell, patches):
    """The base loss on the labels as they came."""
    return center(patches.labels, cell.margin), task.base


def oracle(task, cell, patches):
    """The base loss on the labels before they were moved."""
    return center(patches.true_labels, cell.margin), task.base


def _realigned(task, cell, patches, transforms):
    """Labels moved back by `transforms` through tfalign's own warp; pixels without a counterpart are left out."""
    labels, shape = [], patches.inputs.shape[1:-1]
    for start in range(0, len(patches.labels), 50):
        part = slice(start, start + 50)
        pull = transforms[part].astype(np.float32)
        moved, mask = tfalign.warp(patches.labels[part], pull, output_shape=shape, interpolation="cubic")
        labels.append(np.where(np.asarray(mask)[..., np.newaxis] > 0, moved, np.nan).astype(np.float32))
    return np.concatenate(labels), tfalign.ShiftInvariantLoss(task.base, max_shift=0, center=False)


def oracle_shift(task, cell, patches):
    """The true transforms: the ceiling of any alignment that moves the label as tfalign does."""
    return _realigned(task, cell, patches, patches.transforms)


def ours(task, cell, patches):
    """`ShiftInvariantLoss` with its defaults and the bounds of the cell."""
    return patches.labels, tfalign.ShiftInvariantLoss(task.base, **cell.loss)


def bare(task, cell, patches):
    """`ShiftInvariantLoss` with nothing but the base."""
    return patches.labels, tfalign.ShiftInvariantLoss(task.base)


def soft(task, cell, patches):
    """The same with labels at all their shifts at once."""
    return patches.labels, tfalign.ShiftInvariantLoss(task.base, assignment="soft", **cell.loss)


def left_out(task, cell, patches):
    """The same without labels that are known too little."""
    return patches.labels, tfalign.ShiftInvariantLoss(task.base, uncertain="leave_out", **cell.loss)


def all_moved(task, cell, patches):
    """The same with these moved too, to where they fit best."""
    return patches.labels, tfalign.ShiftInvariantLoss(task.base, min_confidence=0.0, **cell.loss)


def anchors(task, cell, patches):
    """One label in a hundred lies right, and is known to."""
    chosen = np.random.default_rng(43).permutation(len(patches.labels)) < len(patches.labels) // 100
    flags = chosen.reshape(-1, *[1] * (patches.labels.ndim - 1))
    labels = np.where(flags, patches.true_labels, patches.labels)
    labels = np.concatenate([labels, np.broadcast_to(flags, (*labels.shape[:-1], 1))], axis=-1).astype(np.float32)
    return labels, tfalign.ShiftInvariantLoss(task.base, label_extras=("anchor",), **cell.loss)


def twins(task, cell, patches):
    """The base loss, for a network beside a warp network, each with a twin of the other; labels are not moved first."""
    return patches.labels, task.base


def no_pin(task, cell, patches):
    """Ablation: the drift is not taken out."""
    return patches.labels, tfalign.ShiftInvariantLoss(task.base, center=False, **cell.loss)


class _RunningMean(tfalign.ShiftInvariantLoss):
    """A plain running mean of the registered shifts, rounded, in place of the drift filter; from the first step."""

    def _update(self, told):
        (sums,) = told
        state = drift.unpack(tf.convert_to_tensor(self.state))
        # The belief stays as it began, even on both sides of its origin: the origin is the mean.
        mean = state.origin + 0.01 * (sums.shift / tf.maximum(sums.weight, 1e-6) - state.origin)
        mean = tf.where(sums.weight > 0.0, mean, state.origin)
        after = state._replace(origin=mean, correction=tf.round(mean), ready=tf.ones_like(mean))
        return self.state.assign(drift.pack(after), read_value=False)


def running_mean(task, cell, patches):
    """Ablation: the drift is an exponential mean with a rate of 0.01."""
    return patches.labels, _RunningMean(task.base, warmup_steps=0, **cell.loss)


def hard_start(task, cell, patches):
    """Ablation: aligned from the first step, with the pin."""
    return patches.labels, tfalign.ShiftInvariantLoss(task.base, warmup_steps=0, **cell.loss)


def low_pass(task, cell, patches):
    """Rival: the loss of both sides blurred over the misalignment, so that it matters less."""
    sigma, base = 4.0, keras.losses.get(task.base)
    taps = np.exp(-0.5 * (np.arange(-12, 13) / sigma) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)

    def blurred(values):
        channels = values.shape[-1]
        for kernel in (taps[:, None], taps[None, :]):
            filters = tf.tile(kernel[:, :, None, None], [1, 1, channels, 1])
            values = tf.nn.depthwise_conv2d(values, filters, [1, 1, 1, 1], "SAME")
        return values

    return center(patches.labels, cell.margin), lambda y, p: base(blurred(tf.cast(y, tf.float32)), blurred(p))


def _edges(image):
    return scipy.ndimage.gaussian_gradient_magnitude(image.mean(axis=-1), 1.0)


def _by_phase_correlation(image, label):
    """Shift of the label against the image, from the strength of their edges."""
    return -skimage.registration.phase_cross_correlation(_edges(image), _edges(label), normalization=None)[0]


def _by_mutual_information(image, label):
    """The same by ITK: Mattes' mutual information over translations, from the identity, on three scales."""
    import SimpleITK  # of the extra `bench`; the other arms do without

    fixed, moving = (SimpleITK.GetImageFromArray(a.mean(axis=-1).astype(np.float32)) for a in (image, label))
    method = SimpleITK.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(16)
    method.SetOptimizerAsRegularStepGradientDescent(learningRate=2.0, minStep=0.05, numberOfIterations=100)
    method.SetInitialTransform(SimpleITK.TranslationTransform(fixed.GetDimension()))
    method.SetShrinkFactorsPerLevel([4, 2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1, 0])
    method.SetInterpolator(SimpleITK.sitkLinear)
    try:
        found = method.Execute(fixed, moving)
    except RuntimeError:  # too few samples overlap, or the pictures are flat
        return np.zeros(image.ndim - 1)
    return np.array(found.GetParameters())[::-1]


def _preregistered(task, cell, patches, register):
    """Rival: each label registered to its input once, before training; shifts over the bound are clipped to it."""
    centers, bound = center(patches.labels, cell.margin), cell.loss["max_shift"]
    found = [register(*pair) for pair in zip(patches.inputs, centers)]
    transforms = misalign.make_transforms(np.clip(np.round(found), -bound, bound))
    return _realigned(task, cell, patches, transforms)


def preregistration(task, cell, patches):
    """Rival: labels registered to inputs by skimage."""
    return _preregistered(task, cell, patches, _by_phase_correlation)


def preregistration_itk(task, cell, patches):
    """Rival: labels registered to inputs by SimpleITK."""
    return _preregistered(task, cell, patches, _by_mutual_information)


def per_image(task, cell, patches):
    """One shift for all labels of a scene: the best one against the truth, so the ceiling of such a registration."""
    maps = [
        tfalign.register(true, moved, subpixel=False, return_map=True, **cell.loss).score_map.numpy()
        for true, moved in zip(
            np.array_split(center(patches.true_labels, cell.margin), 20), np.array_split(patches.labels, 20)
        )
    ]
    maps = np.concatenate(maps)
    shifts = np.zeros((len(maps), maps.ndim - 1))
    for scene in np.unique(patches.scenes):
        mine = patches.scenes == scene
        together = maps[mine].mean(axis=0)
        shifts[mine] = np.array(np.unravel_index(together.argmax(), together.shape)) - np.array(together.shape) // 2
    return _realigned(task, cell, patches, misalign.make_transforms(shifts))


def _losses_over_shifts(label, prediction, margin):
    """Mean absolute error of the prediction against every crop of the label, `(batch, shifts)`."""
    size = prediction.shape[1]
    crops = [
        tf.reduce_mean(tf.abs(label[:, y : y + size, x : x + size] - prediction), axis=[1, 2, 3])
        for y in range(2 * margin + 1)
        for x in range(2 * margin + 1)
    ]
    return tf.stack(crops, axis=-1)


def minimum_over_shifts(task, cell, patches):
    """Rival: the smallest L1 over all crops of the label (as in the Proba-V challenge), nothing pinned."""
    return patches.labels, lambda y, p: tf.reduce_min(_losses_over_shifts(y, p, cell.margin), axis=-1)


def likelihood_over_shifts(task, cell, patches):
    """Rival: minus the log-likelihood summed over all shifts, Laplace residuals of scale 0.05, nothing pinned."""
    scale = 0.05

    def loss(y, p):
        return -scale * tf.reduce_logsumexp(-_losses_over_shifts(y, p, cell.margin) / scale, axis=-1)

    return patches.labels, loss


REFERENCES = ("plain", "oracle")
RIVALS = ("low-pass", "preregistration", "itk", "minimum", "likelihood")
ABLATIONS = ("no-pin", "running-mean", "hard-start")
_WARPED_VERSION = 5  # to be raised with what changes the warp network or `DeformableModel`


def _deformable(name, title, prepare=twins, form="velocity", **options):
    """An arm with a warp network of a form, by options of `DeformableModel`."""

    def around(predictor):
        return tfalign.models.DeformableModel(predictor, tfalign.models.warp_network(form=form), **options)

    return Arm(name, title, prepare, uses_loss=prepare is not twins, around=around, version=_WARPED_VERSION)


_WARPED = (
    _deformable("twins", "tfalign, warp network with twins"),
    _deformable(
        "joint",
        "rival: joint registration network",
        momentum=0.0,
        warmup_steps=0,
        laid_on="predictor",
        stop_gradient=False,
        center=False,
        by_area=False,
    ),
    _deformable("twins-search", "twins, after a search of shifts", prepare=ours),
    _deformable("twins-equivariant", "twins, pinned by flips too", equivariance=1.0),
    _deformable("twins-no-lag", "ablation: twins without lag", momentum=0.0),
    _deformable("twins-hard-start", "ablation: twins, no warm-up", warmup_steps=0),
    _deformable("twins-on-predictor", "ablation: twins, labels laid on the predictor", laid_on="predictor"),
    _deformable("twins-no-cut", "ablation: twins, gradient not cut", laid_on="predictor", stop_gradient=False),
    _deformable("twins-no-pin", "ablation: twins, drift not taken out", center=False),
    _deformable("twins-by-pixel", "ablation: twins, a mean over the prediction's pixels", by_area=False),
    _deformable("twins-linear", "ablation: twins, linear interpolation", interpolation="linear"),
    _deformable("twins-rough", "ablation: twins, no smoothness", smoothness=0.0),
    _deformable("twins-direct", "ablation: twins, displacements instead of velocities", form="displacement"),
)
VARIANTS = tuple(arm.name for arm in _WARPED if arm.name.startswith("twins-"))
ARMS = {
    arm.name: arm
    for arm in (
        Arm("plain", "plain loss", plain),
        Arm("oracle", "oracle: aligned labels", oracle),
        Arm("tfalign", "tfalign", ours, uses_loss=True),
        Arm("bare", "tfalign, no options", bare, uses_loss=True),
        Arm("reordered", "oracle, patches in another order", oracle, order=1000),
        Arm("soft", "tfalign, soft choice", soft, uses_loss=True),
        Arm("left-out", "tfalign, uncertain labels left out", left_out, uses_loss=True),
        Arm("all-moved", "tfalign, uncertain labels moved too", all_moved, uses_loss=True),
        Arm("anchors", "tfalign, 1 % anchors", anchors, uses_loss=True),
        *_WARPED,
        Arm("oracle-shift", "true moves through our warp", oracle_shift, version=2),
        Arm("per-image", "one shift per image", per_image),
        Arm("no-pin", "ablation: no pin", no_pin, uses_loss=True),
        Arm("running-mean", "ablation: running mean", running_mean, uses_loss=True),
        Arm("hard-start", "ablation: no warm-up", hard_start, uses_loss=True),
        Arm("low-pass", "rival: low-pass loss", low_pass),
        Arm("preregistration", "rival: label to input, skimage", preregistration, version=2),
        Arm("itk", "rival: label to input, ITK MI", preregistration_itk),
        Arm("minimum", "rival: min over shifts", minimum_over_shifts),
        Arm("likelihood", "rival: likelihood over shifts", likelihood_over_shifts),
    )
}
