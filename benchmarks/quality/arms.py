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
from tfalign.ops import resample


class Arm(NamedTuple):
    """One way to train: labels and a loss from the patches of a cell."""

    name: str
    title: str
    prepare: Callable[[Task, Cell, Patches], tuple[np.ndarray, Any]]  # -> labels, Keras loss
    uses_tfalign: bool = False
    version: int = 1


def _center(labels, margin):
    inner = slice(margin, -margin) if margin else slice(None)
    return labels[(slice(None), *(inner,) * (labels.ndim - 2))]


def plain(task, cell, patches):
    """The base loss on the labels as they came."""
    return _center(patches.labels, cell.margin), task.base


def oracle(task, cell, patches):
    """The base loss on the labels before they were moved."""
    return _center(patches.true_labels, cell.margin), task.base


def oracle_shift(task, cell, patches):
    """The true shifts through tfalign's own crop; pixels without a counterpart are left out."""
    shape = patches.inputs.shape[1:-1]
    moved, mask = resample.shift_by_pixels(tf.constant(patches.labels), tf.constant(patches.translations), shape)
    labels = np.where(np.asarray(mask)[..., None] > 0, moved, np.nan).astype(np.float32)
    return labels, tfalign.ShiftInvariantLoss(task.base, max_shift=0, center=False)


def ours(task, cell, patches):
    """`ShiftInvariantLoss` with its defaults and the bounds of the cell."""
    return patches.labels, tfalign.ShiftInvariantLoss(task.base, **cell.loss)


def bare(task, cell, patches):
    """`ShiftInvariantLoss` with nothing but the base."""
    return patches.labels, tfalign.ShiftInvariantLoss(task.base)


def no_pin(task, cell, patches):
    """Ablation: the drift is not taken out."""
    return patches.labels, tfalign.ShiftInvariantLoss(task.base, center=False, **cell.loss)


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

    return _center(patches.labels, cell.margin), lambda y, p: base(blurred(tf.cast(y, tf.float32)), blurred(p))


def preregistration(task, cell, patches):
    """Rival: each label registered to its input once, by skimage's phase correlation of edge strengths."""
    labels = []
    for one, label in zip(patches.inputs, _center(patches.labels, cell.margin)):
        left, right = (scipy.ndimage.gaussian_gradient_magnitude(a.mean(axis=-1), 1.0) for a in (one, label))
        shift, _, _ = skimage.registration.phase_cross_correlation(left, right, normalization=None)
        bound = cell.loss["max_shift"]
        labels.append(np.clip(np.round(-shift), -bound, bound))
    found = np.array(labels, int)
    shape = patches.inputs.shape[1:-1]
    moved, mask = resample.shift_by_pixels(tf.constant(patches.labels), tf.constant(found), shape)
    aligned = np.where(np.asarray(mask)[..., None] > 0, moved, np.nan).astype(np.float32)
    return aligned, tfalign.ShiftInvariantLoss(task.base, max_shift=0, center=False)


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


ARMS = {
    arm.name: arm
    for arm in (
        Arm("plain", "plain loss", plain),
        Arm("oracle", "oracle: aligned labels", oracle),
        Arm("oracle-shift", "true shifts through our crop", oracle_shift),
        Arm("tfalign", "tfalign", ours, uses_tfalign=True),
        Arm("bare", "tfalign, no options", bare, uses_tfalign=True),
        Arm("no-pin", "tfalign without the pin", no_pin, uses_tfalign=True),
        Arm("hard-start", "tfalign without warm-up", hard_start, uses_tfalign=True),
        Arm("low-pass", "low-pass loss", low_pass),
        Arm("preregistration", "label to input, skimage", preregistration),
        Arm("minimum", "min over shifts", minimum_over_shifts),
        Arm("likelihood", "likelihood over shifts", likelihood_over_shifts),
    )
}
