# %% [markdown]
# # From one GPU to many workers
#
# The training works on one GPU, and takes a week. There are four in the machine, or four machines. Will the network be
# the same? For an aligned loss that is not a matter of course: it holds the network in place by what the labels of a
# *whole* batch have in common, and each device sees only its part. Here one device, two devices of one machine, and two
# processes that know each other only by their addresses train the same network. The devices are two halves of a
# processor, so nothing gets faster here: this shows that nothing changes.

# %%
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import tfalign
from tfalign import distributed
from tfalign.data import stain

FAST = os.environ.get("TFALIGN_FAST") == "1"  # a quick look: the networks learn next to nothing
PATCHES, EPOCHS = (32, 2) if FAST else (320, 8)
plt.rcParams["figure.dpi"] = 80
folder = Path(tempfile.mkdtemp())

# Two devices where there is one processor; with real GPUs leave this out.
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

# %% [markdown]
# ## One device
#
# `tfalign.distributed.fit` trains a compiled model as `model.fit` does. All labels lie up to 8 pixels off, each in
# another direction (see notebook 1).

# %%
patches = stain.training_patches(count=PATCHES, max_shift=8)
dataset = tf.data.Dataset.from_tensor_slices((patches.inputs, patches.labels)).batch(16, drop_remainder=True)


def made():
    """The network, from the same start each time."""
    keras.utils.set_random_seed(0)
    model = tfalign.models.unet(input_channels=1, output_channels=3, filters=8, depth=3)
    model.compile(keras.optimizers.Adam(2e-3), loss=tfalign.ShiftInvariantLoss("mae", max_shift=8))
    return model


losses, drifts = {}, {}
model = made()
losses["one device"] = distributed.fit(model, dataset, epochs=EPOCHS).history["loss"]
drifts["one device"] = model.loss.drift[:2]
print(f"loss after each epoch: {np.round(losses['one device'], 4).tolist()}")

# %% [markdown]
# ## Several devices of one machine
#
# Make and compile the model in the scope of a strategy; that is all. `model.fit` would do the same here. What the
# labels of each device say of the network's place is added up before it is used.

# %%
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])  # with GPUs: MirroredStrategy()
with strategy.scope():
    model = made()
losses["two devices"] = distributed.fit(model, dataset, epochs=EPOCHS).history["loss"]
drifts["two devices"] = model.loss.drift[:2]
print(f"{strategy.num_replicas_in_sync} devices, loss: {np.round(losses['two devices'], 4).tolist()}")

# %% [markdown]
# ## Several machines
#
# With several workers the `fit` of Keras 3 stops with an error ([keras#20585](
# https://github.com/keras-team/keras/issues/20585)), with any loss. `distributed.fit` does not. Every worker runs the
# same program; the environment variable `TF_CONFIG` tells each who it is and where the others are. The program:

# %%
PROGRAM = """
import json, sys
import keras, tensorflow as tf
import tfalign
from tfalign import distributed
from tfalign.data import stain

folder, patches, epochs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
strategy = distributed.strategy()  # before anything else of TensorFlow: workers meet here
patches = stain.training_patches(count=patches, max_shift=8)
dataset = tf.data.Dataset.from_tensor_slices((patches.inputs, patches.labels)).batch(16, drop_remainder=True)
keras.utils.set_random_seed(0)
with strategy.scope():
    model = tfalign.models.unet(input_channels=1, output_channels=3, filters=8, depth=3)
    model.compile(keras.optimizers.Adam(2e-3), loss=tfalign.ShiftInvariantLoss("mae", max_shift=8))
history = distributed.fit(model, dataset, epochs=epochs, checkpoints=f"{folder}/checkpoints")
if distributed.is_chief(strategy):
    result = {"loss": history.history["loss"], "drift": model.loss.drift[:2].tolist()}
    with open(f"{folder}/result.json", "w") as file:
        json.dump(result, file)
"""
(folder / "train.py").write_text(PROGRAM)


def free_addresses(count):
    """Addresses on this machine; yours are `host-a:2222`, `host-b:2222` …"""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return addresses


def run_workers(epochs):
    """Two workers, each a process; what the first one wrote."""
    addresses, processes = free_addresses(2), []
    for index in range(2):
        who = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        command = [sys.executable, str(folder / "train.py"), str(folder), str(PATCHES), str(epochs)]
        processes.append(subprocess.Popen(command, env={**os.environ, "TF_CONFIG": json.dumps(who)}))
    print("the workers ended with", [process.wait() for process in processes])
    return json.loads((folder / "result.json").read_text())


# %% [markdown]
# Half of the epochs, then all: as if the machines had gone down in between. After each epoch the network, the optimizer
# and the loss are saved in a folder that all workers see; the same command goes on after the last one.

# %%
first = run_workers(EPOCHS // 2)
second = run_workers(EPOCHS)
losses["two workers"], drifts["two workers"] = first["loss"] + second["loss"], second["drift"]
print(f"{len(first['loss'])} epochs, then {len(second['loss'])} more: {np.round(losses['two workers'], 4).tolist()}")

# %% [markdown]
# ## Is it the same network?
#
# The order of a sum differs between devices, and with it the last digit of each gradient; training makes more of that
# with every step.

# %%
for name, values in losses.items():
    apart = np.max(np.abs(np.subtract(values, losses["one device"])))
    drift = [round(float(value), 2) for value in drifts[name]]
    print(f"{name:12} last loss {values[-1]:.4f}, at most {apart:.1e} off one device; drift {drift} px")

_, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
for (name, values), style in zip(losses.items(), ("-", "--", ":")):
    axis.plot(np.arange(1, EPOCHS + 1), values, style, linewidth=3, label=name)
axis.axvline(EPOCHS // 2 + 0.5, color="gray", linewidth=0.8)
axis.text(EPOCHS // 2 + 0.55, max(losses["one device"]), "the workers ended here and began again", fontsize=8, va="top")
axis.set(xlabel="epoch", ylabel="aligned loss")
axis.legend()
plt.show()

# %% [markdown]
# ## What to use when
#
# | you have | use |
# |---|---|
# | one GPU | `model.fit` |
# | several GPUs in one machine | the scope of a `tf.distribute.MirroredStrategy`, then `model.fit` |
# | several machines | `tfalign.distributed.strategy()` and `.fit` in one program for all, with `TF_CONFIG` |
# | data too slow for one machine | the `tf.data` service: `service=` of `tfalign.data.pipeline.dataset` |
# | a million files to predict, or labels to repair | `tfalign predict --beam`, `tfalign realign --beam` |
#
# * Keep the global batch a multiple of the number of devices: they count alike, however many labels they got.
# * `jit_compile=True` fails in TensorFlow with several devices, with any loss; it is off by default there.
# * The guide has more: what happens at a kill, data that each worker reads in part, what crashes (`docs/scale.md`), and
#   what an archive of a million slides costs (`docs/beam.md`).
