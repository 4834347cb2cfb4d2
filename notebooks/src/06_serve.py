# %% [markdown]
# # Serve it: export, warm-up, request
#
# The network is trained. Now a viewer, an instrument or another team shall use it: send a picture, get the stain back,
# without Keras, without tfalign, and without a slow first answer. TF Serving does that, if the model lies in a folder
# as it expects. `tfalign.export_serving` writes that folder. Here we write one, look into it, and ask it what a client
# would ask. No server runs in this notebook: we call the same signatures that it would.

# %%
import base64
import json
import os
import tempfile
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import tfalign
from tfalign.data import stain

FAST = os.environ.get("TFALIGN_FAST") == "1"  # a quick look: the network learns next to nothing
PATCHES, EPOCHS = (16, 1) if FAST else (640, 12)
plt.rcParams["figure.dpi"] = 80
served = Path(tempfile.mkdtemp()) / "stain"  # the name of the folder is the name of the model

# %% [markdown]
# ## A trained network
#
# A small one for gray tissue to colour stain, trained on labels that lie up to 8 pixels off (see notebook 1).

# %%
patches = stain.training_patches(count=PATCHES, max_shift=8)
keras.utils.set_random_seed(0)
model = tfalign.models.unet(input_channels=1, output_channels=3, filters=16, depth=3)
schedule = keras.optimizers.schedules.CosineDecay(2e-3, EPOCHS * -(-PATCHES // 16))
model.compile(keras.optimizers.Adam(schedule), loss=tfalign.ShiftInvariantLoss("mae", max_shift=8))
model.fit(patches.inputs, patches.labels, batch_size=16, epochs=EPOCHS, verbose=0)
print("its own offset from its input, as the loss sees it:", model.loss.drift[:2].round(2), "px")

# %% [markdown]
# ## Export
#
# * `register=` also serves the alignment of labels,
# * `tile=` sends large pictures through in tiles, so that memory does not grow with them,
# * `card=` says what the model is, for those who find it later.

# %%
version = tfalign.export_serving(
    model,
    served,
    register={"max_shift": 8},
    tile=256,
    card=tfalign.export.ModelCard(
        what="Gray tissue to colour stain, an example.",
        data="skimage.data.immunohistochemistry(), rows 0-351; rows 352-511 are held out.",
        input_range="[0, 1], 0 is black",
        licence="Apache-2.0",
    ),
)
for path in sorted(version.rglob("*")):
    if path.is_file():
        print(f"{path.relative_to(served.parent).as_posix():62} {path.stat().st_size:9,} bytes")

# %% [markdown]
# A second export is version 2 in the same folder. Each appears whole, by a rename: a server that polls the folder never
# sees half a model, and goes back to version 1 if you delete version 2.
#
# The card, from its beginning:

# %%
print("\n".join((version / "README.md").read_text().splitlines()[:20]))

# %% [markdown]
# ## Warm-up
#
# The first request to a TensorFlow graph is slow. So the folder holds one request for each signature, which the server
# replays before it takes a client's. They are in `assets.extra/tf_serving_warmup_requests` if the extra `serving` is
# installed.

# %%
warmup = version / "assets.extra" / "tf_serving_warmup_requests"
if warmup.exists():
    from tensorflow_serving.apis import prediction_log_pb2

    for record in tf.data.TFRecordDataset(str(warmup)).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        shapes = {name: tuple(tf.make_ndarray(value).shape) for name, value in request.inputs.items()}
        print(f"{request.model_spec.signature_name:16} {shapes}")

# %% [markdown]
# ## Request
#
# With Docker the server is one line, and then a request is one line:
#
# ```
# docker run -p 8501:8501 -v "$PWD/stain:/models/stain" -e MODEL_NAME=stain tensorflow/serving
# curl -d @stain/1/assets.extra/request.json http://localhost:8501/v1/models/stain:predict
# ```
#
# The body of a request is JSON: the name of a signature and its inputs. A picture travels as the file that it is.

# %%
gray, truth = stain.held_out()
png = tf.io.encode_png(np.uint8(np.round(255 * gray[0]))).numpy()
body = json.dumps({"signature_name": "encoded", "instances": [{"b64": base64.b64encode(png).decode()}]})
print(f"{body[:100]}…  ({len(body):,} characters for {gray.shape[1]} x {gray.shape[2]} pixels)")

# %% [markdown]
# What the server does with it: load the folder, decode, call the signature. (The network was trained for a minute: it
# has not learned yet that nuclei are blue.)

# %%
loaded = tf.saved_model.load(str(version))  # TensorFlow only
request = json.loads(body)
signature = loaded.signatures[request["signature_name"]]
files = [base64.b64decode(one["b64"]) for one in request["instances"]]
answer = signature(images=tf.constant(files))["prediction"].numpy()

of_keras = model.predict(np.round(255 * gray) / 255, verbose=0)
print("answer", answer.shape, f" farthest from Keras: {np.abs(answer - of_keras).max():.1e}")

_, axes = plt.subplots(1, 3, figsize=(9, 2.6), layout="constrained")
for axis, picture, title in zip(axes, (gray, answer, truth), ("the file sent, a part", "the answer", "truth")):
    axis.imshow(np.clip(picture[0, :, 40:240], 0, 1), cmap="gray")
    axis.set_title(title, fontsize=10)
    axis.axis("off")
plt.show()

# %% [markdown]
# Arrays of any size and any batch go to `serving_default`; labels to be aligned to `register`.

# %%
crop = tf.constant(gray[:, :100, :130])
print("serving_default:", loaded.signatures["serving_default"](inputs=crop)["prediction"].shape)

label = np.roll(truth, (3, -2), axis=(1, 2))
found = loaded.signatures["register"](prediction=tf.constant(answer), label=tf.constant(label))
print("register: the label lies", found["translation"].numpy().round(1)[0], "px down/right")

# %% [markdown]
# What does not fit is refused with a sentence, and the server goes on:

# %%
try:
    signature(images=tf.constant([png[:50]]))
except tf.errors.InvalidArgumentError as error:
    print("InvalidArgument:", next(line for line in error.message.splitlines() if "PNG" in line))

# %% [markdown]
# ## What to use when
#
# | you have | use |
# |---|---|
# | TF Serving | `tfalign.export_serving(model, "served/stain")`, or `tfalign export model.keras served/stain` |
# | pictures as files | the signature `encoded`, over HTTP |
# | arrays | `serving_default` over gRPC: JSON takes more than twice the room of float32 |
# | pictures larger than the memory | `tile=512` |
# | raw values that training scaled | `preprocess=`, the `Preprocessing` of training: it goes into the graph |
# | a network that sits beside its input | `offset=-model.loss.drift[:2]` |
# | a folder of files, no server | `tfalign predict --model model.keras --inputs new --out predictions` |
#
# The guide "Serving" in `docs/serving.md` has clients for gRPC and HTTP, batching, and the limits.
