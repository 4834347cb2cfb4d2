# %% [markdown]
# # Recordings and spectra
#
# Signals have clocks and calibrations. An event marker runs some milliseconds late, a line list is shifted against the
# spectrometer. Every recording is off by its own amount. The same loss aligns `(batch, samples, channels)`:
#
# * **a recording**: heartbeats marked by a second device whose clock is not the first one's,
# * **a spectrum**: narrow lines among broad humps, listed with another calibration.

# %%
import os

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from scipy import ndimage, optimize, signal

import tfalign
from tfalign.data import misalign

FAST = os.environ.get("TFALIGN_FAST") == "1"  # a quick look: the networks learn next to nothing
PATCHES, EPOCHS = (16, 1) if FAST else (640, 15)
SIZE, MAX_SHIFT = 128, 8
plt.rcParams["figure.dpi"] = 80
tf.config.run_functions_eagerly(FAST)  # for a single step, compiling would take most of the time
rng = np.random.default_rng(0)

# %% [markdown]
# ## Made signals
#
# The labels are heat-maps: a narrow bump at each event.


# %%
def heat_map(size, events):
    """`(size, 1)`: a bump of height 1, 1.5 samples wide (s.d.), at each event."""
    away = np.arange(size)[:, None] - events
    return np.exp(-0.5 * (away / 1.5) ** 2).max(axis=1, keepdims=True).astype(np.float32)


def smooth_noise(size, width):
    """Noise of s.d. 1 without detail finer than `width` samples."""
    noise = ndimage.gaussian_filter1d(rng.standard_normal(size), width)
    return noise / noise.std()


def recording(size):
    """An ECG at 60 samples a second: beats with a wave before and one after, a wandering baseline, muscle noise."""
    beats = np.cumsum(rng.uniform(30, 65, size // 30))
    beats = beats[beats < size]
    values = 0.4 * smooth_noise(size, 40) + 0.12 * rng.standard_normal(size)
    for beat in beats:
        for away, width, height in ((-10, 2.5, 0.2), (0, 1.0, 1.0), (2.5, 1.0, -0.3), (16, 4.0, 0.45)):
            at = (np.arange(size) - beat - away) / width
            values += height * rng.uniform(0.7, 1.3) * np.exp(-0.5 * at**2)
    return values[:, None].astype(np.float32), heat_map(size, beats)


def spectrum(size):
    """Narrow lines to be found, among broad humps that are none, on a sloping, noisy ground."""
    lines = np.cumsum(rng.uniform(8, 40, size // 8))
    lines = lines[lines < size]
    values = 0.5 * smooth_noise(size, 60) + 0.06 * rng.standard_normal(size)
    for line in lines:
        values += rng.uniform(0.3, 1.0) / (1 + ((np.arange(size) - line) / rng.uniform(1.0, 1.8)) ** 2)
    for hump in rng.uniform(0, size, size // 30):
        values += rng.uniform(0.3, 1.0) * np.exp(-0.5 * ((np.arange(size) - hump) / rng.uniform(5, 9)) ** 2)
    return values[:, None].astype(np.float32), heat_map(size, lines)


# %% [markdown]
# Pieces of 128 samples; each label is cut up to 8 samples beside its piece, with a margin of 8 on each side.


# %%
def pieces(scenes):
    """Inputs, labels in place, labels moved, and by how much."""
    places = [(rng.integers(len(scenes)), rng.integers(SIZE, 2048 - SIZE, 1)) for _ in range(PATCHES)]
    shifts = rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, (PATCHES, 1))
    large = (SIZE + 2 * MAX_SHIFT,)
    inputs = [misalign.cut(scenes[of][0], shape=(SIZE,), center=at) for of, at in places]
    perfect = [misalign.cut(scenes[of][1], shape=large, center=at) for of, at in places]
    moved = [misalign.cut(scenes[of][1], shape=large, center=at - by) for (of, at), by in zip(places, shifts)]
    return np.stack(inputs), np.stack(perfect), np.stack(moved), shifts


def center(labels):
    """Labels without their margin."""
    return labels[:, MAX_SHIFT:-MAX_SHIFT]


data, held_out = {}, {}
for name, made in (("recording", recording), ("spectrum", spectrum)):
    data[name] = pieces([made(2048) for _ in range(10)])
    held_out[name] = made(4096)

_, axes = plt.subplots(2, 1, figsize=(10.5, 4.5), layout="constrained")
for axis, (name, (inputs, perfect, moved, shifts)) in zip(axes, data.items()):
    one = int(np.argmax(np.abs(shifts)))
    axis.plot(inputs[one], color="gray", linewidth=1, label="input")
    axis.plot(center(perfect)[one], color="tab:green", label="where its label should lie")
    axis.plot(center(moved)[one], "--", color="tab:red", label=f"where it lies ({shifts[one, 0]:+d} samples)")
    axis.set_title(name, fontsize=10)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## Three networks for each


# %%
def train(inputs, labels, loss):
    """A small 1-D U-Net, trained from the same start each time."""
    keras.utils.set_random_seed(0)
    model = tfalign.models.unet(rank=1, filters=8, depth=3, activation="sigmoid")
    schedule = keras.optimizers.schedules.CosineDecay(2e-3, EPOCHS * -(-PATCHES // 16))
    model.compile(keras.optimizers.Adam(schedule), loss=loss)
    model.fit(inputs, labels, batch_size=16, epochs=EPOCHS, verbose=0)
    return model


def three(inputs, perfect, moved, _):
    """The same network with the plain loss, with the aligned one, and on labels that lie right."""
    aligned = tfalign.ShiftInvariantLoss("binary_crossentropy", max_shift=MAX_SHIFT)
    return {
        "plain loss": train(inputs, center(moved), "binary_crossentropy"),
        "tfalign": train(inputs, moved, aligned),
        "perfect labels": train(inputs, center(perfect), "binary_crossentropy"),
    }


models = {name: three(*of_name) for name, of_name in data.items()}

# %% [markdown]
# ## What they learned
#
# Events are the peaks of a prediction over one half. F1 on a held-out signal, in place: a found event counts if a true
# one lies within 2 samples; each true one counts once.


# %%
def events(heights):
    """Positions of the peaks over one half."""
    return signal.find_peaks(heights[:, 0], height=0.5, distance=4)[0]


def f1(prediction, truth):
    """F1 within 2 samples."""
    found, real = events(prediction), events(truth)
    near = np.abs(found[:, None] - real) <= 2
    hits = near[optimize.linear_sum_assignment(~near)].sum()
    return 2 * hits / (len(found) + len(real))


predictions = {}
for name, of_name in models.items():
    values, truth = held_out[name]
    predictions[name] = {arm: np.asarray(model(values[None]))[0] for arm, model in of_name.items()}
    for arm, prediction in predictions[name].items():
        print(f"{name:10} {arm:15} F1 {f1(prediction, truth):.3f}   highest peak {prediction.max():.2f}")

# %%
_, axes = plt.subplots(2, 1, figsize=(10.5, 5), layout="constrained")
part = np.s_[500:756]
colours = {"plain loss": "tab:red", "tfalign": "tab:blue"}
for axis, (name, of_name) in zip(axes, predictions.items()):
    values, truth = held_out[name]
    axis.plot(values[part], color="lightgray", linewidth=1, label="input")
    axis.fill_between(range(256), truth[part][:, 0], color="tab:green", alpha=0.3, label="truth")
    for arm, colour in colours.items():
        axis.plot(of_name[arm][part], color=colour, linewidth=1.2, label=arm)
    axis.set_title(name, fontsize=10)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## How late was each label?

# %%
_, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
for axis, (name, (inputs, _, moved, shifts)) in zip(axes, data.items()):
    found = tfalign.register(models[name]["tfalign"](inputs), moved, max_shift=MAX_SHIFT)
    exact = np.mean(np.round(found.translation) == shifts)
    print(f"{name:10} shifts that are right to the sample: {exact:.1%} of {PATCHES}")
    axis.plot(shifts, found.translation, ".", alpha=0.2)
    axis.set(title=name, xlabel="given (samples)", ylabel="found", xticks=range(-8, 9, 4), yticks=range(-8, 9, 4))
plt.show()

# %% [markdown]
# ## What to use when
#
# | your labels | use |
# |---|---|
# | late or early, each recording by its own amount | `ShiftInvariantLoss(…, max_shift=…)`, in samples |
# | by fractions of a sample | also `subpixel=True` |
# | one clock offset for a whole batch | `pool="batch"` |
# | another sampling rate, within a few per cent | `max_scale=…` |
# | all late by the same time | `tfalign.data.offset_check`, and move them once: nothing else can tell |
#
# In a regular signal a shift by a whole period looks right: keep `max_shift` below half the shortest period, or cut
# pieces long enough that the rhythm varies.
