# %% [markdown]
# # Rotated, scaled and bent labels
#
# A second scanner holds the slide at another angle and has another magnification; a section was cut again and tissue
# stretches. A shift does not describe such labels any more. There are two ways on:
#
# * **geometry in the loss**: `ShiftInvariantLoss(..., max_rotation=…, max_scale=…)` searches angles and magnifications,
# * **a warp network**: `tfalign.models.DeformableModel` trains a second network beside yours that bends each label.
#
# Both cost time. When is it worth it?

# %%
import os

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from skimage.metrics import peak_signal_noise_ratio

import tfalign
from tfalign.data import misalign, stain
from tfalign.ops import geometry

FAST = os.environ.get("TFALIGN_FAST") == "1"  # a quick look: the networks learn next to nothing
PATCHES, EPOCHS, GEOMETRY_EPOCHS = (8, 1, 1) if FAST else (400, 10, 3)
tf.config.run_functions_eagerly(FAST)  # for a single step, compiling would take most of the time
SIZE, MARGIN, BATCH = 48, 8, 8
LARGE = (SIZE + 2 * MARGIN,) * 2  # of labels, with their margin
plt.rcParams["figure.dpi"] = 70

# %% [markdown]
# ## The data
#
# Tissue again, gray to colours, as in notebook 1. Each label is turned by up to 15 degrees either way, up to 10 %
# larger or smaller, and shifted by up to 4 pixels.

# %%
gray, colours = stain.tissue()
held_out_gray, held_out_truth = stain.held_out()
rng = np.random.default_rng(0)
moves = misalign.draw_affine(
    PATCHES, rank=2, max_shift=4, max_rotation=15, max_scale=0.1, isotropic=True, paired=True, seed=rng
)
rng.shuffle(moves)
reach = misalign.reach(moves, shape=LARGE)
places = rng.integers(reach, np.array([stain.TRAIN_ROWS, 512]) - reach, (PATCHES, 2))


def cut(picture, size):
    """The patches of a picture."""
    return np.stack([misalign.cut(picture, shape=(size, size), center=place) for place in places])


def center(labels):
    """Labels without their margin."""
    return labels[:, MARGIN:-MARGIN, MARGIN:-MARGIN]


inputs, perfect = cut(gray, SIZE), cut(colours, SIZE)
turned = [misalign.misaligned(colours, move, shape=LARGE, center=place)[0] for move, place in zip(moves, places)]
turned = np.clip(turned, 0, 1)


# %%
def overlay(picture, label):
    """Input in red, label in cyan: gray where both agree."""
    return np.stack([picture[..., 0], *[label.mean(axis=-1)] * 2], axis=-1)


def show(rows, titles, size=2.4):
    """Rows of pictures: `{name of the row: pictures}`."""
    shape = (size * len(titles), size * len(rows) + 0.3)
    _, axes = plt.subplots(len(rows), len(titles), figsize=shape, layout="constrained", squeeze=False)
    for line, (row, pictures) in zip(axes, rows.items()):
        line[0].set_ylabel(row)
        for axis, picture in zip(line, pictures):
            axis.imshow(np.clip(picture, 0, 1), cmap="gray")
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=10)
    plt.show()


angles = np.array(geometry.decompose(moves).rotation)[:, 0]  # degrees
scales = np.array(geometry.decompose(moves).scale)[:, 0]
farthest = np.argsort(-np.abs(angles))[:3]
show(
    {"where it belongs": [overlay(inputs[one], perfect[one]) for one in farthest],
     "as it came": [overlay(inputs[one], center(turned)[one]) for one in farthest]},
    [f"{angles[one]:+.0f} degrees, x{scales[one]:.2f}" for one in farthest],
)  # fmt: skip

# %% [markdown]
# ## Geometry in the loss
#
# Searching angles and magnifications makes a step many times as long. So train with shifts alone first, which is fast
# and gives a network that is nearly right, and go on with the full search for a few epochs.


# %%
def network():
    """A small U-Net with the same start each time."""
    keras.utils.set_random_seed(0)
    return tfalign.models.unet(input_channels=1, output_channels=3, filters=8, depth=3)


def fit(model, labels, loss="mae", epochs=EPOCHS, rate=2e-3):
    """Trains a model on the patches with labels of one's choice."""
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * -(-PATCHES // BATCH))
    model.compile(keras.optimizers.Adam(schedule), loss=loss)
    model.fit(inputs, labels, batch_size=BATCH, epochs=epochs, verbose=0)
    return model


def psnr(model):
    """On held-out tissue, in place, dB."""
    return peak_signal_noise_ratio(held_out_truth[0], np.clip(model(held_out_gray)[0], 0, 1), data_range=1)


shifts_alone = fit(network(), turned, tfalign.ShiftInvariantLoss("mae", max_shift=6))
with_geometry = keras.models.clone_model(shifts_alone)
with_geometry.set_weights(shifts_alone.get_weights())
full_search = tfalign.ShiftInvariantLoss("mae", max_shift=6, max_rotation=18, max_scale=0.12)
fit(with_geometry, turned, full_search, epochs=GEOMETRY_EPOCHS, rate=1e-3)
models = {
    "plain loss": fit(network(), center(turned)),
    "shifts alone": shifts_alone,
    "rotation, scale": with_geometry,
    "perfect labels": fit(network(), perfect),
}
for name, model in models.items():
    print(f"{name:16} {psnr(model):5.2f} dB")

# %%
window = np.s_[30:130, 90:190]
pictures = [np.array(model(held_out_gray)[0])[window] for model in models.values()]
show({"": [held_out_gray[0][window], *pictures, held_out_truth[0][window]]}, ["input", *models, "truth"])

# %% [markdown]
# The third network has had three epochs more than the others. Compare how sharp they are, not the colours: after so
# short a training even perfect labels have not taught that nuclei are blue.
#
# How each label was turned and scaled, found by registering it to the prediction. Where turning and scaling would fit
# hardly better than a shift, the search keeps the shift: these are the points at 0 degrees and at a scale of 1.

# %%
some = slice(0, 120)
found = tfalign.register(with_geometry(inputs[some]), turned[some], max_shift=6, max_rotation=18, max_scale=0.12)
found_angles = np.array(geometry.decompose(found.transform).rotation)[:, 0]
found_scales = np.array(geometry.decompose(found.transform).scale).mean(axis=1)
print(f"median error of angles: {np.median(np.abs(found_angles - angles[some])):.2f} degrees")
print(f"median error of scales: {np.median(np.abs(found_scales / scales[some] - 1)):.2%}")

_, axes = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained")
pairs = {"degrees": (angles[some], found_angles), "scale": (scales[some], found_scales)}
for axis, (title, (given, one)) in zip(axes, pairs.items()):
    axis.plot(given, one, ".", alpha=0.4)
    axis.axline((given[0], given[0]), slope=1, color="black", linewidth=0.5)
    axis.set(title=title, xlabel="given", ylabel="found")
plt.show()

# %% [markdown]
# ## Bent labels
#
# Now each label is bent by its own smooth field, 4 pixels (RMS). No angle describes that. `DeformableModel` wraps your
# network and trains a warp network beside it: that one lays each label on the prediction, and yours learns from the
# label so laid. Frozen twins that lag behind keep the two from agreeing on something wrong.

# %%
WIDE = LARGE[0] + 2 * 16  # room for the bending
places = rng.integers(WIDE // 2, np.array([stain.TRAIN_ROWS, 512]) - WIDE // 2, (PATCHES, 2))
fields = misalign.draw_elastic(PATCHES, shape=LARGE, rms=4, correlation_length=24, paired=True, seed=rng)
rng.shuffle(fields)
inputs, perfect = cut(gray, SIZE), cut(colours, SIZE)
bent, _ = tfalign.warp(cut(colours, WIDE), fields.astype(np.float32), interpolation="cubic")
bent = np.clip(bent, 0, 1)

deformable = fit(tfalign.models.DeformableModel(network()), bent)
models = {
    "plain loss": fit(network(), center(bent)),
    "shifts alone": fit(network(), bent, tfalign.ShiftInvariantLoss("mae", max_shift=8)),
    "warp network": deformable.predictor,  # all that is needed afterwards
    "perfect labels": fit(network(), perfect),
}
for name, model in models.items():
    print(f"{name:16} {psnr(model):5.2f} dB")

# %%
pictures = [np.array(model(held_out_gray)[0])[window] for model in models.values()]
show({"": [held_out_gray[0][window], *pictures, held_out_truth[0][window]]}, ["input", *models, "truth"])

# %% [markdown]
# `align` gives each label as the warp network lays it. Input in red, label in cyan:

# %%
bending = np.sqrt(np.square(center(fields)).sum(axis=-1).mean(axis=(1, 2)))
typical = np.argsort(bending)[PATCHES // 2 : PATCHES // 2 + 3]  # half of the labels are bent less
laid = deformable.align(inputs[typical], bent[typical])
show(
    {"as it came": [overlay(inputs[one], center(bent)[one]) for one in typical],
     "laid back": [overlay(inputs[one], np.array(label)) for one, label in zip(typical, laid.label)]},
    [f"bent by {bending[one]:.1f} px" for one in typical],
)  # fmt: skip

# %% [markdown]
# ## What to use when
#
# | your labels | use |
# |---|---|
# | shifted; turned by a degree or two | `max_shift=` alone, on patches so small that a shift describes them |
# | turned or scaled further | `max_rotation=`, `max_scale=`, after some epochs with shifts alone |
# | sheared | `max_shear=` |
# | bent | `tfalign.models.DeformableModel(your_model)`; smaller patches help too |
# | shifted far and bent | the same, compiled with `ShiftInvariantLoss`: it shifts first, then bends |
#
# Each step up costs time and leaves more room to be wrong. Take the smallest one that describes your labels.
