# %% [markdown]
# # Virtual staining with labels that do not lie on their inputs
#
# A lab photographs tissue, stains it, and photographs it again. A network shall learn to predict the stain from the
# first picture. But the slide was taken off the microscope in between: every label lies a few pixels beside its input,
# each in another direction. Here we know by how much, because we move the labels ourselves. So we can ask:
#
# 1. What does a plain loss learn from such labels?
# 2. What does `tfalign.ShiftInvariantLoss` learn from the very same labels?
# 3. What would perfect labels have given?

# %%
import os

import keras
import matplotlib.pyplot as plt
import numpy as np
from skimage.metrics import peak_signal_noise_ratio

import tfalign
from tfalign.data import stain

FAST = os.environ.get("TFALIGN_FAST") == "1"  # a quick look: the networks learn next to nothing
PATCHES, EPOCHS = (48, 1) if FAST else (640, 15)
MAX_SHIFT = 8
plt.rcParams["figure.dpi"] = 80

# %% [markdown]
# ## The data
#
# Real stained tissue that comes with scikit-image. The input is its gray version, the label its colours. Every label
# was moved by up to 8 pixels in each direction, and has a margin of 8 pixels on each side, so that it can be moved
# back.

# %%
moved = stain.training_patches(count=PATCHES, max_shift=MAX_SHIFT)
perfect = stain.training_patches(count=PATCHES, max_shift=MAX_SHIFT, moved=False)
gray, truth = stain.held_out()  # never trained on, and exactly aligned
print("inputs", moved.inputs.shape, " labels with their margin", moved.labels.shape)
print("the first three labels lie (down, right) by", *moved.translations[:3].tolist(), "pixels")


# %%
def center(labels):
    """Labels without their margin."""
    return labels[:, MAX_SHIFT:-MAX_SHIFT, MAX_SHIFT:-MAX_SHIFT]


def show(pictures, titles, **options):
    """Pictures in a row."""
    _, axes = plt.subplots(1, len(pictures), figsize=(3 * len(pictures), 3.2), layout="constrained")
    for axis, picture, title in zip(axes, pictures, titles):
        axis.imshow(np.clip(picture, 0, 1), **options)
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    plt.show()


one = int(np.argmax(np.linalg.norm(moved.translations, axis=1)))
down, right = moved.translations[one]
show(
    [moved.inputs[one], center(perfect.labels)[one], center(moved.labels)[one]],
    ["input", "where its label should lie", f"where it lies: {down:+d} px down, {right:+d} px right"],
    cmap="gray",
)


# %% [markdown]
# ## Three networks, one line apart
#
# The same network, the same patches in the same order, the same start. Only the labels or the loss differ.


# %%
def train(labels, loss):
    """A small U-Net, trained from the same start each time."""
    keras.utils.set_random_seed(0)
    model = tfalign.models.unet(input_channels=1, output_channels=3, filters=16, depth=3)
    schedule = keras.optimizers.schedules.CosineDecay(1e-3, EPOCHS * -(-PATCHES // 16))
    model.compile(keras.optimizers.Adam(schedule), loss=loss)
    model.fit(moved.inputs, labels, batch_size=16, epochs=EPOCHS, verbose=0)
    return model


models = {
    "plain loss": train(center(moved.labels), "mae"),
    "tfalign": train(moved.labels, tfalign.ShiftInvariantLoss("mae", max_shift=MAX_SHIFT)),
    "perfect labels": train(center(perfect.labels), "mae"),
}

# %% [markdown]
# ## What they learned
#
# PSNR on the tissue that was held out, in place: nothing is moved before it is scored. Higher is better. Equal networks
# from other random starts differ by a few tenths of a dB, so a few per cent more or less than 100 % mean nothing.

# %%
predictions = {name: np.clip(model.predict(gray, verbose=0)[0], 0, 1) for name, model in models.items()}
psnr = {name: peak_signal_noise_ratio(truth[0], one, data_range=1) for name, one in predictions.items()}
for name, value in psnr.items():
    print(f"{name:15} {value:5.2f} dB")
recovered = (psnr["tfalign"] - psnr["plain loss"]) / (psnr["perfect labels"] - psnr["plain loss"])
print(f"of what the misalignment cost, tfalign recovered {100 * recovered:.0f} %")

# %%
window = np.s_[30:130, 90:190]
show(
    [gray[0][window], *(one[window] for one in predictions.values()), truth[0][window]],
    ["input", *(f"{name}: {value:.1f} dB" for name, value in psnr.items()), "truth"],
    cmap="gray",
)

# %% [markdown]
# ## The misalignment of every label comes for free
#
# Register each label to what the network predicts, and compare with the shift that we gave it.

# %%
found = tfalign.register(models["tfalign"].predict(moved.inputs, verbose=0), moved.labels, max_shift=MAX_SHIFT)
shifts = found.translation.numpy()
right_ones = np.mean(np.all(np.round(shifts) == moved.translations, axis=1))
print(f"shifts that are right to the pixel: {100 * right_ones:.1f} % of {len(shifts)}")
print("the network's own offset, as the loss sees it:", models["tfalign"].loss.drift[:2].round(2), "px")

_, axes = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained")
for axis, number, name in zip(axes, range(2), ("down", "right")):
    axis.plot(moved.translations[:, number], shifts[:, number], ".", alpha=0.3)
    axis.axline((0, 0), slope=1, color="black", linewidth=0.5)
    axis.set(title=f"pixels {name}", xlabel="given", ylabel="found", aspect="equal")
plt.show()

# %% [markdown]
# ## What to use when
#
# | your labels | use |
# |---|---|
# | lie right | the plain loss: there is nothing to win |
# | each shifted by its own amount | `tfalign.ShiftInvariantLoss("mae", max_shift=…)` |
# | all shifted alike | `tfalign.data.offset_check`, and move them back once |
# | also turned, scaled or bent | notebook 3 |
# | to be repaired, or sorted out | notebook 5 |
#
# * `max_shift` is a little more than the largest shift you have seen. Cut labels with a margin of as much if you can.
# * Labels that are *all* off in one direction look like a network that is off in the other: no loss can tell which.
# * Keep a few labels that you know to lie right, and watch a metric on them in place (`tfalign.metrics.InPlace`). The
#   validation loss is the aligned loss: it does not see a network that sits beside its input.
