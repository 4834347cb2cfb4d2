"""A training step with the loss and with its base, the loss alone, and the data pipeline that feeds them."""

import tempfile

import keras
import numpy as np
import scipy.ndimage
import tensorflow as tf

import tfalign
from benchmarks.pipeline.made import Made
from benchmarks.speed.timing import interleaved
from tfalign.data import pipeline

SEARCHES = {
    "shift": {},
    "rigid": {"max_rotation": 7.0},
    "affine": {"max_rotation": 7.0, "max_scale": 0.15, "max_shear": 7.0},
}

_BENT = "tfalign, DeformableModel"


def _label(rng, size, batch, margin):
    """Smooth noise of three channels with a margin."""
    wide = size + 2 * margin
    smooth = scipy.ndimage.gaussian_filter(rng.random((batch, wide, wide, 3)), (0, 2, 2, 0))
    return tf.constant(smooth, tf.float32)


def _losses(searches, margin, label):
    """`(name, loss, its label)`: "mae" at the label's centre, and tfalign's around it with each search."""
    found = [("mae", keras.losses.MeanAbsoluteError(), label[:, margin:-margin, margin:-margin])]
    for name in searches:
        loss = tfalign.ShiftInvariantLoss("mae", max_shift=margin, **SEARCHES[name])
        found.append(("tfalign" if name == "shift" else f"tfalign, {name}", loss, label))
    return found


def training_step(*, filters, depth, size, batch, jit_compile, searches=("shift",), bent=False, margin=8, repeats=15):
    """Milliseconds of a training step of a U-Net with each loss; and, for `bent` labels, beside a warp network."""
    rng = np.random.default_rng(0)
    inputs = tf.constant(rng.random((batch, size, size, 1)), tf.float32)
    label = _label(rng, size, batch, margin)
    ways = _losses(searches, margin, label)
    if bent:
        ways.append((_BENT, "mae", label))
    functions = {}
    for name, loss, target in ways:
        model = tfalign.models.unet(2, 1, 3, filters=filters, depth=depth)
        if name == _BENT:
            model = tfalign.models.DeformableModel(model)
        model.compile("adam", loss=loss, jit_compile=jit_compile)
        model.train_on_batch(inputs, target)
        functions[name] = lambda model=model, target=target: model.train_on_batch(inputs, target)
    return interleaved(functions, repeats)


def loss_alone(*, size, batch=16, jit_compile, margin=8, repeats=15):
    """Milliseconds of the value of each loss and its gradient by the prediction."""
    rng = np.random.default_rng(0)
    prediction = tf.constant(rng.random((batch, size, size, 3)), tf.float32)

    def timed(loss, label):
        @tf.function(jit_compile=jit_compile)
        def value_and_gradient(prediction):
            with tf.GradientTape() as tape:
                tape.watch(prediction)
                value = loss(label, prediction)
            return value, tape.gradient(value, prediction)

        return lambda: value_and_gradient(prediction)[1].numpy()

    losses = _losses(("shift",), margin, _label(rng, size, batch, margin))
    return interleaved({name: timed(loss, label) for name, loss, label in losses}, repeats)


def patches_from_cache(*, filters, depth, size, batch, margin=8, repeats=15, files=20, consecutive=400):
    """Milliseconds of a batch from the shard cache, flipped and with a label margin, and of the step that takes it."""
    rng = np.random.default_rng(0)
    model = tfalign.models.unet(2, 1, 1, filters=filters, depth=depth)
    model.compile("adam", loss="mae")
    batch_of = [tf.constant(rng.random((batch, size, size, 1)), tf.float32) for _ in range(2)]
    times = interleaved({"step": lambda: model.train_on_batch(*batch_of)}, repeats)
    with tempfile.TemporaryDirectory() as folder:
        cutting = pipeline.Cutting(patch_size=size, margin=margin, fractions=(1.0, 0.0, 0.0))
        cache = pipeline.prepare(Made(files), folder, cutting)
        batches = iter(pipeline.dataset(cache, "train", batch_size=batch, flips=True, repeat=True))
        # Without a step between, and so many at a time that what was fetched ahead counts for nothing.
        of_many = interleaved({"batch": lambda: [next(batches) for _ in range(consecutive)] and None}, 3)
    return {**times, "batch": of_many["batch"] / consecutive}
