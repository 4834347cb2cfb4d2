# %% [markdown]
# # Segmenting thin structures with shifted masks
#
# Roads from a map laid on aerial pictures, vessels traced in another visit, fibres outlined by hand: the structures are
# three pixels wide, and the masks lie several pixels off: most pixels of a mask are then wrong. What does a network
# learn from such masks with binary cross-entropy, what with Dice, and what if each mask is aligned first?

# %%
import os

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from scipy import ndimage

import tfalign
from tfalign.data import misalign

FAST = os.environ.get("TFALIGN_FAST") == "1"  # a quick look: the networks learn next to nothing
PATCHES, EPOCHS = (16, 1) if FAST else (480, 14)
SIZE, MAX_SHIFT = 48, 8
plt.rcParams["figure.dpi"] = 80
tf.config.run_functions_eagerly(FAST)  # for a single step, compiling would take most of the time

# %% [markdown]
# ## The data
#
# Made here: faint curves, about three pixels wide, on an uneven, noisy ground, and their exact masks.

# %%
rng = np.random.default_rng(0)


def curve(size):
    """The pixels of a curve that wanders through a picture."""
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(0.12 * rng.standard_normal(rng.integers(60, 260)))
    path = rng.uniform(0, size, 2) + np.cumsum(np.stack([np.sin(heading), np.cos(heading)], axis=1), axis=0)
    pixels = np.round(path).astype(int)
    return pixels[np.all((pixels >= 0) & (pixels < size), axis=1)]


def scene(size=256):
    """A picture `(size, size, 1)` and its mask."""
    mask = np.zeros((size, size))
    for _ in range(26):
        mask[tuple(curve(size).T)] = 1
    mask = ndimage.binary_dilation(mask).astype(np.float32)
    ground = ndimage.gaussian_filter(rng.standard_normal((size, size)), 15)
    picture = 0.3 + 0.05 * ground / ground.std() + 0.35 * ndimage.gaussian_filter(mask, 0.7)
    picture += 0.08 * rng.standard_normal((size, size))
    return picture[..., None].astype(np.float32), mask[..., None]


scenes = [scene() for _ in range(2 if FAST else 8)]
pictures, masks = (np.stack(part) for part in zip(*[scene() for _ in range(2)]))  # held out

# %% [markdown]
# Patches of 48 pixels; each mask is cut up to 8 pixels beside its patch, with a margin of 8 pixels on each side.

# %%
reach = SIZE // 2 + 2 * MAX_SHIFT
places = [(rng.integers(len(scenes)), rng.integers(reach, 256 - reach, 2)) for _ in range(PATCHES)]
shifts = rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, (PATCHES, 2))
large = (SIZE + 2 * MAX_SHIFT,) * 2
inputs = np.stack([misalign.cut(scenes[of][0], shape=(SIZE, SIZE), center=at) for of, at in places])
perfect = np.stack([misalign.cut(scenes[of][1], shape=large, center=at) for of, at in places])
moved = np.stack([misalign.cut(scenes[of][1], shape=large, center=at - by) for (of, at), by in zip(places, shifts)])


def center(labels):
    """Labels without their margin."""
    return labels[:, MAX_SHIFT:-MAX_SHIFT, MAX_SHIFT:-MAX_SHIFT]


def overlay(picture, mask):
    """The picture with a mask in red."""
    gray = np.repeat(np.clip(picture, 0, 1), 3, axis=-1)
    return np.where(mask > 0.5, gray * 0.4 + np.array([0.6, 0.1, 0.1]), gray)


def show(pictures, titles):
    """Pictures in a row."""
    _, axes = plt.subplots(1, len(pictures), figsize=(2.6 * len(pictures), 2.9), layout="constrained")
    for axis, picture, title in zip(axes, pictures, titles):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    plt.show()


one = int(np.argmax(np.linalg.norm(shifts, axis=1) * (perfect.mean(axis=(1, 2, 3)) > 0.1)))
show(
    [inputs[one], overlay(inputs[one], center(perfect)[one]), overlay(inputs[one], center(moved)[one])],
    ["input", "its mask", "the mask it comes with"],
)
beside = np.sum(center(perfect) * center(moved)) / np.sum(center(moved))
print(f"pixels of a given mask that lie on a structure: {100 * beside:.0f} %")

# %% [markdown]
# ## Five networks
#
# Any loss of Keras can be aligned, one that counts pixel by pixel (`"binary_crossentropy"`) or one over the whole
# picture (`"dice"`).


# %%
def train(labels, loss):
    """A small U-Net that gives probabilities, trained from the same start each time."""
    keras.utils.set_random_seed(0)
    model = tfalign.models.unet(filters=8, depth=3, activation="sigmoid")
    schedule = keras.optimizers.schedules.CosineDecay(2e-3, EPOCHS * -(-PATCHES // 16))
    model.compile(keras.optimizers.Adam(schedule), loss=loss)
    model.fit(inputs, labels, batch_size=16, epochs=EPOCHS, verbose=0)
    return model


models = {
    "plain cross-entropy": train(center(moved), "binary_crossentropy"),
    "plain Dice": train(center(moved), "dice"),
    "tfalign cross-entropy": train(moved, tfalign.ShiftInvariantLoss("binary_crossentropy", max_shift=MAX_SHIFT)),
    "tfalign Dice": train(moved, tfalign.ShiftInvariantLoss("dice", max_shift=MAX_SHIFT)),
    "perfect masks": train(center(perfect), "binary_crossentropy"),
}

# %% [markdown]
# ## What they learned
#
# Dice of the predicted masks (probability over one half) with the true masks of held-out pictures, in place. And how
# sure the networks are: the mean probability that they give to pixels that are structure.

# %%
predictions = {name: np.asarray(model(pictures)) for name, model in models.items()}
dice = {}
for name, one in predictions.items():
    found = one > 0.5
    dice[name] = 2 * np.sum(found * masks) / (np.sum(found) + np.sum(masks))
    print(f"{name:22} Dice {dice[name]:.3f}   probability on structures {np.sum(one * masks) / np.sum(masks):.2f}")

# %%
window = np.s_[0, 60:160, 60:160]
chosen = ["plain cross-entropy", "plain Dice", "tfalign cross-entropy", "tfalign Dice"]
show(
    [pictures[window], *(predictions[name][window] for name in chosen), masks[window]],
    ["input", *chosen, "truth"],
)

# %% [markdown]
# ## Where the masks lay

# %%
found = tfalign.register(models["tfalign cross-entropy"](inputs), moved, max_shift=MAX_SHIFT)
errors = np.abs(found.translation - shifts).max(axis=1)
print(f"shifts that are right to the pixel: {np.mean(errors < 0.5):.1%} of {PATCHES} masks")
print(f"within one pixel: {np.mean(errors < 1.5):.1%}; farthest off: {errors.max():.1f} px")

# %% [markdown]
# ## What to use when
#
# | your masks | use |
# |---|---|
# | binary, probabilities from a sigmoid | `ShiftInvariantLoss("binary_crossentropy", max_shift=…)` |
# | little foreground, or you are used to Dice | `ShiftInvariantLoss("dice", max_shift=…)` |
# | class numbers | `ShiftInvariantLoss(keras.losses.SparseCategoricalCrossentropy(), max_shift=…)` |
# | unknown in parts | `ignore_class=255`, or a channel of weights: `label_extras=("mask",)` |
# | right within a pixel, structures wide | the plain loss |
#
# `max_shift` must be larger than the largest shift, but parallel structures closer than that can be mistaken for one
# another: look at the confidence.
