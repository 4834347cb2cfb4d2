# %% [markdown]
# # Find and repair misaligned labels in your own data set
#
# You have a folder of pictures and a folder of labels. Some labels lie beside their pictures, and a few belong to
# another picture altogether. Nobody knows which. Three commands answer that:
#
# 1. `tfalign train` trains a network that is not misled by them,
# 2. `tfalign report` says how far each label lies off and which ones to look at,
# 3. `tfalign realign` writes the repaired labels.
#
# To see whether the answers are right, we make such folders ourselves and keep the truth aside.

# %%
import csv
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from skimage.io import imread, imsave

import tfalign
from tfalign.data import misalign, stain

FAST = os.environ.get("TFALIGN_FAST") == "1"  # a quick look: the network learns next to nothing
EPOCHS, STEPS, FIELDS = (1, 1, 8) if FAST else (12, 60, 36)
SIZE, MAX_SHIFT = 96, 6
plt.rcParams["figure.dpi"] = 80
work = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A folder of pictures, a folder of labels
#
# Fields of stained tissue: the gray picture is the input, the colours are the label. Every label is cut up to 6 pixels
# beside its input. The last three labels are of another place.

# %%
gray, colours = stain.tissue()
rng = np.random.default_rng(0)
reach = SIZE // 2 + MAX_SHIFT
centers = rng.integers(reach, 512 - reach, (FIELDS, 2))
shifts = rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, (FIELDS, 2))
names = [f"field-{number:02d}" for number in range(FIELDS)]
strangers = names[-3:]


def field(picture, center):
    """The bytes of a field."""
    return np.uint8(np.round(255 * misalign.cut(picture, shape=(SIZE, SIZE), center=center)))


for folder in ("inputs", "labels"):
    (work / folder).mkdir()
truth = {}
for number, (name, center, shift) in enumerate(zip(names, centers, shifts)):
    elsewhere = centers[number - FIELDS // 2] if name in strangers else center
    truth[name] = field(colours, center)
    imsave(work / "inputs" / f"{name}.png", field(gray, center)[..., 0], check_contrast=False)
    imsave(work / "labels" / f"{name}.png", field(colours, elsewhere - shift), check_contrast=False)


def show(rows, titles):
    """Rows of pictures: `{name of the row: pictures}`."""
    size = (2.3 * len(titles), 2.3 * len(rows) + 0.3)
    _, axes = plt.subplots(len(rows), len(titles), figsize=size, layout="constrained", squeeze=False)
    for line, (row, pictures) in zip(axes, rows.items()):
        line[0].set_ylabel(row)
        for axis, picture in zip(line, pictures):
            axis.imshow(picture, cmap="gray")
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=10)
    plt.show()


def read(folder, name):
    """A picture of a folder."""
    return imread(work / folder / f"{name}.png")


some = [names[0], names[1], strangers[0]]
show({folder: [read(folder, name) for name in some] for folder in ("inputs", "labels")}, some)


# %% [markdown]
# ## Train
#
# On the command line this is the line after the `$`.


# %%
def command(line):
    """Runs a command line in the folder and shows what it says."""
    words = [sys.executable, "-c", "from tfalign.cli import main; main()", *shlex.split(line)[1:]]
    plain = {**os.environ, "FORCE_COLOR": ""}  # a notebook asks programs to write as if to a terminal
    said = subprocess.run(words, cwd=work, env=plain, stdout=subprocess.PIPE, text=True, check=True).stdout
    print("$", line)
    print(*(row for row in said.splitlines() if "━" not in row and "Cache" not in row), sep="\n")  # no progress bars


command(
    f"tfalign train --inputs inputs --labels labels --out run --max-shift {MAX_SHIFT + 2} --patch-size 48 "
    f"--filters 8 --learning-rate 0.002 --epochs {EPOCHS} --steps-per-epoch {STEPS} --set schedule=cosine"
)

# %% [markdown]
# `val_in_place_psnr` compares with the labels as they lie, and so hardly moves: it says nothing of the network. `psnr`
# after "labels registered", in the last lines, is that of labels laid where they belong.
#
# ## The table of labels
#
# `alignment.csv` has a row for each patch: how far its label lies down and right, how well it fits there (score) and
# how sure that is. `report.html` is the page to open in a browser; `worst_labels.csv` lists what to look at first, and
# why.

# %%
print(*sorted(path.name for path in (work / "run").iterdir()), sep="  ")


def table(path):
    """The rows of a table, dicts of texts."""
    with open(work / path, newline="") as file:
        return list(csv.DictReader(file))


print(f"\n{'file':10} {'down':>6} {'right':>6} {'score':>6} {'confidence':>10}   why to look")
for row in table("run/worst_labels.csv")[:6]:
    numbers = f"{row['row']:>6.6} {row['col']:>6.6} {row['score']:>6.4} {row['confidence']:>10.5}"
    print(f"{row['file']:10} {numbers}   {row['why']}")

# %% [markdown]
# ## Decide and repair
#
# A person looks at these labels and writes `reject` (no label), `keep` (as it is) or nothing (repair it) into the
# column `decision`. Here we reject all that could not be told, and those that fit far worse than the others. The rest
# is written anew.

# %%
rows = table("run/worst_labels.csv")
for row in rows:
    row["decision"] = "reject" if row["why"] in ("could not be told", "unlike its prediction") else ""
with open(work / "run" / "worst_labels.csv", "w", newline="") as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
rejected = sorted({row["file"] for row in rows if row["decision"] == "reject"})
print("rejected:", *rejected, " of another place:", *strangers)

command("tfalign realign --run run --out repaired --decisions run/worst_labels.csv")

# %% [markdown]
# ## Was it right?
#
# Found against given shifts, and the labels themselves against the truth.

# %%
given = dict(zip(names, shifts))
found = {row["name"]: [float(row["row"]), float(row["col"])] for row in table("repaired/alignment.csv")}
kept = [name for name in found if name not in strangers]
errors = np.array([np.subtract(found[name], given[name]) for name in kept])
print(f"found to the pixel: {np.mean(np.all(errors == 0, axis=1)):.0%} of {len(kept)} repaired labels")
print(f"off before: {np.mean([np.hypot(*given[name]) for name in kept]):.2f} px on average")
print(f"off after:  {np.mean(np.hypot(*errors.T)):.2f} px on average")


# %% [markdown]
# Input in red, label in cyan, for the three labels that were farthest off. Where both agree the picture is gray.


# %%
def overlay(folder, name):
    """Input and label as the colours of one picture; what a repaired label does not know is black."""
    label = read(folder, name)
    known = label.any(axis=-1, keepdims=True)
    return np.stack([read("inputs", name), *[label.mean(axis=-1).astype(np.uint8)] * 2], axis=-1) * known


far = sorted(kept, key=lambda name: -np.hypot(*given[name]))[:3]
show(
    {"as it came": [overlay("labels", name) for name in far], "repaired": [overlay("repaired", name) for name in far]},
    far,
)

# %% [markdown]
# ## The same in Python, for a `tf.data` set
#
# Files are not needed. `tfalign.data.realign` takes batches and a trained network, and gives the labels moved back,
# with what was found about each.

# %%
patches = stain.training_patches(count=16 if FAST else 400, max_shift=8)
keras.utils.set_random_seed(0)
model = tfalign.models.unet(input_channels=1, output_channels=3, filters=8, depth=3)
loss = tfalign.ShiftInvariantLoss("mae", max_shift=8)
model.compile(keras.optimizers.Adam(2e-3), loss=loss)
model.fit(patches.inputs, patches.labels, batch_size=16, epochs=1 if FAST else 12, verbose=0)

dataset = tf.data.Dataset.from_tensor_slices((patches.inputs, patches.labels)).batch(16)
repaired = tfalign.data.realign(dataset, model, max_shift=8, offset=loss.drift[:2].round())
found = np.concatenate([found["translation"] for _, _, found in repaired.as_numpy_iterator()])
print(f"found to the pixel: {np.mean(np.all(found == patches.translations, axis=1)):.0%} of {len(found)} labels")

# %% [markdown]
# ## What to use when
#
# | you have | use |
# |---|---|
# | files | `tfalign train`, `report`, `realign`; killed, the same command goes on |
# | arrays or a `tf.data` set | `ShiftInvariantLoss`, then `tfalign.data.realign` |
# | one shift for each file or slide | `tfalign realign` (per file), `realign(..., per="file")` |
# | objects that moved by themselves | `realign(..., per="instance")`, on instance maps |
# | labels also turned or scaled | `--max-rotation`, `--max-scale`, in training and so in repairing |
# | labels all off in one direction | `tfalign.data.offset_check` first: `tfalign train` runs it and warns |
#
# A label that could not be told is not always wrong: blank fields have nothing to align by. Look at the picture.
