"""Writes a Keras model as TF Serving reads it: a version folder that appears whole."""

import tempfile
from pathlib import Path

import tensorflow as tf

from tfalign import _checks
from tfalign.export import card as cards
from tfalign.export import grid, options, requests, signatures

_SAMPLE_SIZE = 8
_BATCHING = """\
# Read with --enable_batching --enable_per_model_batching_parameters. Requests that are put together must have the same
# sizes: without that leave batching off, and send batches.
max_batch_size { value: 16 }
batch_timeout_micros { value: 2000 }
max_enqueued_batches { value: 64 }
"""


def export_serving(
    model,
    directory,
    *,
    version=None,
    preprocess=None,
    input_channels=None,
    stride="auto",
    tile=None,
    tile_overlap=None,
    offset=0.0,
    register=None,
    image_range=(0.0, 1.0),
    warmup="auto",
    card=None,
):
    """Exports a Keras model as `<directory>/<version>/`, written beside and renamed: a server never sees half a model.

    Signatures, all with any batch and any spatial sizes:

    * `serving_default`: `inputs` float32 `(batch, *spatial, channels)` -> `prediction` float32.
    * `encoded`, of 2-D models with up to 4 input channels: `images`, strings `(batch,)`, PNG or JPEG files of 8 or 16
      bit, all of one size -> `prediction`.
    * `register`, if asked for: `prediction`, `label` -> `aligned`, `mask`, `transform`, `translation`, `confidence`,
      see `tfalign.register`.

    What does not fit comes back as InvalidArgument, and the server goes on.

    Args:
        model: a built Keras model with one input `(batch, *spatial, channels)`, 1 to 3 spatial axes, and one output
            that has one pixel for every input pixel; or fewer at the border ("valid" padding): then the prediction is
            as much smaller and centred. A preprocessing at its front (`tfalign.data.preprocess.with_preprocessing`) is
            taken off and done after `preprocess`.
        directory: the model's base path, as TF Serving polls it; made if missing. Its name is that of the model.
        version: a whole number > 0; by default one more than the highest there.
        preprocess: what is done to an input before the network, a function of a float32 tensor `(batch, *spatial,
            input_channels)` made of TensorFlow operations, e.g. a `tfalign.data.preprocess.Preprocessing`; traced into
            the graph. It sees whole images, before they are extended or cut into tiles.
        input_channels: of the raw input, if `preprocess` changes their number.
        stride: a size that is no multiple of it is extended by its mirror image and the result cropped. "auto" finds it
            by tracing the network for several sizes, the same on all axes; or one number, or one per axis. None: arrays
            go into the network as they come, whatever it makes of them.
        tile: input pixels, one number or one per axis; larger images are cut into overlapping tiles inside the graph,
            so that memory does not grow with them. Tiles start at multiples of what the network pools, and are longer
            by less than that where an image needs it. A network of fixed input size is tiled by that size anyway.
        tile_overlap: pixels that the outputs of two tiles share at least. The result is that of the whole image if
            that is three times as far as the end of an image reaches into its prediction, which is found by running the
            network on noise and stands in the card. By default tiles share so much, and a quarter of a tile at least.
            No overlap is enough for a network that sees the whole image (a mean over it, say).
        offset: pixels, one number or one per axis, by which the network's prediction lies too far down/right; taken
            out. From a loss that aligns it is `-loss.drift[:rank]`: labels then lie further up/left of the prediction.
            Fractions are interpolated, the border is repeated.
        register: options of `tfalign.register`, as in `{"max_shift": 8}`, for the signature of this name.
        image_range: the values of the darkest and brightest code of an image file, whatever its bits.
        warmup: spatial sizes of the requests that the server replays when it loads the model, as in `[(256, 256)]`,
            "auto" for one if the extra `serving` is installed, `()` for none.
        card: a `tfalign.export.ModelCard`.

    Returns:
        The path of the new version. It holds the SavedModel, `README.md` (the card), `batching_params.pbtxt` and
        `assets.extra/`: `request.json`, a request for REST, and, with the extra `serving`, `request.pb`, one for gRPC
        (a PredictRequest), and `tf_serving_warmup_requests`.

    Raises:
        ValueError, TypeError: an option or the model does not fit; the version is taken.
        ImportError: `warmup` names sizes and the extra `serving` is not installed.

    Example:
        >>> tfalign.export_serving(model, "served/stain", register={"max_shift": 8}).as_posix()
        'served/stain/1'
    """
    rank = options.model_rank(model)
    directory = Path(directory)
    if version is not None:
        options.check_version(version, directory)
    options.check_kinds(preprocess=preprocess, register=register)
    card, image_range = cards.checked(card), options.checked_range(image_range)
    channels = model.input_shape[-1]
    if input_channels is not None:
        channels = _checks.whole_number("input_channels", input_channels, at_least=1)
    model, front = options.split(model)
    steps = [step for step in (preprocess, front) if step is not None]
    axes = None if stride is None else grid.axes_of(model, stride)
    offset = options.checked_offset(offset, rank)
    if axes is None and (tile is not None or any(offset)):
        raise ValueError(
            _checks.message(
                "`stride` must not be None if something is tiled or moved.", {"tile": tile, "offset": offset}
            )
        )
    if options.is_tiled(tile, axes):
        axes = grid.measured(model, axes, value_range=image_range)
    tiling = options.checked_tiles(tile, tile_overlap, axes)
    warmup = options.checked_warmup(warmup, model, axes)

    found = signatures.prediction_signatures(
        model,
        axes,
        channels=channels,
        steps=steps,
        tile=tiling,
        offset=offset,
        image_range=image_range,
    )
    if register is not None:
        found["register"] = signatures.register_signature(rank, model.output_shape[-1], register)
    facts = {
        "Sizes": cards.sizes_in_words(axes),
        "Tiles": cards.tiles_in_words(tiling, axes),
        "Offset taken out (pixels, down/right)": ", ".join(f"{amount:g}" for amount in offset),
        "Preprocessing": cards.preprocessing_in_words(steps),
        "Image files": "the darkest code becomes {:g}, the brightest {:g}".format(*image_range),
        "Warm-up requests": ", ".join(str(sizes) for sizes in warmup) if warmup else "none",
    }
    if register is not None:
        facts["Registration"] = ", ".join(f"{key}={value!r}" for key, value in register.items()) or "as by default"
    name = directory.resolve().name
    replayed = _replayed(found, channels, warmup)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=directory) as beside:
        folder = Path(beside, "model")
        _save(folder, found)
        sample = requests.sample_inputs(
            found["serving_default"].inputs, options.sizes_of(model, axes, _SAMPLE_SIZE), channels
        )
        _write_requests(folder / "assets.extra", name, sample, replayed)
        (folder / "batching_params.pbtxt").write_text(_BATCHING, encoding="utf-8")
        page = cards.text(card, name=name, signatures=found, facts=facts)
        (folder / "README.md").write_text(page, encoding="utf-8")
        return _published(folder, directory, version)


def _published(folder, directory, version):
    """Gives a whole version its name."""
    while True:
        path = directory / str(options.next_version(directory) if version is None else version)
        try:
            return folder.rename(path)
        except OSError:
            # Another export may have taken the number in between.
            if version is not None or not path.exists():
                raise


def _save(folder, found):
    """The SavedModel, with the variables that the functions read and nothing else."""
    module = tf.Module()
    module.variables_read = [one.concrete.variables for one in found.values()]
    functions = {name: one.concrete for name, one in found.items()}
    settings = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(folder), signatures=functions, options=settings)


def _replayed(found, channels, warmup):
    """Pairs of a signature's name and inputs for the warm-up, tried: a server does not load if one of them fails."""
    pairs = []
    for name, one in found.items():
        for sizes in warmup:
            inputs = requests.sample_inputs(one.inputs, sizes, channels)
            try:
                one.concrete(**{key: tf.constant(value) for key, value in inputs.items()})
            except tf.errors.InvalidArgumentError as error:
                raise ValueError(
                    _checks.message(
                        "`warmup` must hold sizes that the model takes.",
                        {"warmup": sizes, "signature": name},
                        "Its answer is the cause of this error.",
                    )
                ) from error
            pairs.append((name, inputs))
    return pairs


def _write_requests(folder, name, sample, replayed):
    folder.mkdir()
    (folder / "request.json").write_text(requests.rest_request("serving_default", sample), encoding="utf-8")
    if requests.serving_api() is None:
        return
    request = requests.predict_request(name, "serving_default", sample)
    (folder / "request.pb").write_bytes(request.SerializeToString())
    if replayed:
        path = folder / requests.WARMUP_FILE
        requests.write_warmup(path, [requests.predict_request(name, *pair) for pair in replayed])
