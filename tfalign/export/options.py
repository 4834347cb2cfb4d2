"""What `export_serving` may be given, checked."""

import keras
import numpy as np

from tfalign import _checks
from tfalign.export import requests

_WARMUP_SIZES = {1: 1024, 2: 64, 3: 16}
_PREPROCESSING = "tfalign>PreprocessingLayer"


def model_rank(model):
    """Spatial axes of a model that can be served."""
    inputs, outputs = (getattr(model, side, None) for side in ("inputs", "outputs"))
    is_one = all(isinstance(side, (list, tuple)) and len(side) == 1 for side in (inputs, outputs))
    is_named = any(isinstance(getattr(model, side, None), dict) for side in ("input", "output"))
    if not is_one or is_named or not 3 <= len(model.input_shape) <= 5 or model.input_shape[-1] is None:
        raise ValueError(
            _checks.message(
                "`model` must be a built Keras model with one input (batch, *spatial, channels), one output, no dict.",
                {"model": getattr(model, "name", model), "model.inputs": inputs, "model.outputs": outputs},
                "Name input and output, as in keras.Model(model.inputs[0], model.outputs[0]).",
            )
        )
    return len(model.input_shape) - 2


def split(model):
    """A model's network and its preprocessing, which is its first layer (see `with_preprocessing`) or None.

    It must see the whole image, so it cannot stay in what is padded and tiled.
    """
    # By name: a plain `import tfalign` does without the packages that read data.
    found = [one for one in _layers(model) if keras.saving.get_registered_name(type(one)) == _PREPROCESSING]
    if not found:
        return model, None
    if len(found) == 1 and found[0] in model.layers and found[0].input is model.inputs[0]:
        try:
            return keras.Model(found[0].output, model.outputs[0], name=model.name), found[0].preprocessing
        except ValueError:
            # The network takes more than what was prepared.
            pass
    raise ValueError(
        _checks.message(
            "`model` must have a preprocessing at its front or nowhere.",
            {"model": model.name, "layers": [one.name for one in found]},
            "Export the network alone and give preprocess=: it is done to the whole image, before padding and tiles.",
        )
    )


def _layers(model):
    """Its layers and theirs."""
    for layer in getattr(model, "layers", ()):
        yield layer
        yield from _layers(layer)


def _taken_versions(directory):
    names = [entry.name for entry in directory.iterdir()] if directory.exists() else []
    return [int(name) for name in names if name.isascii() and name.isdigit()]


def next_version(directory):
    """One more than the highest version there."""
    return max(_taken_versions(directory), default=0) + 1


def check_version(version, directory):
    """Refuses a version that is no number or is taken."""
    _checks.whole_number("version", version, at_least=1)
    # TF Serving reads the folder's name as an int64.
    _checks.number("version", version, at_most=2**63 - 1)
    if version in _taken_versions(directory):
        raise ValueError(
            _checks.message(
                "`version` must be new.", {"version": version, "directory": str(directory)}, "Leave it out."
            )
        )


def checked_offset(offset, rank):
    """`(rank,)` pixels."""
    try:
        values = np.broadcast_to(np.asarray(offset, np.float64), (rank,))
    except (TypeError, ValueError):
        values = np.array([np.nan])
    if not np.all(np.isfinite(values)):
        raise ValueError(_checks.message(f"`offset` must be a finite number of pixels, or {rank}.", {"offset": offset}))
    return tuple(float(value) for value in values)


def checked_range(image_range):
    """`(low, high)`, finite."""
    values = image_range if isinstance(image_range, (list, tuple)) else [image_range]
    if len(values) == 2:
        values = [_checks.number("image_range", value) for value in values]
    if len(values) != 2 or not np.all(np.isfinite(values)):
        raise ValueError(
            _checks.message(
                "`image_range` must be two finite numbers, of the darkest and the brightest code.",
                {"image_range": image_range},
            )
        )
    return tuple(values)


def check_kinds(*, preprocess, register):
    """Refuses what cannot be called, and options without names."""
    if preprocess is not None and not callable(preprocess):
        raise TypeError(_checks.message("`preprocess` must be a function of a tensor.", {"preprocess": preprocess}))
    if register is not None and not isinstance(register, dict):
        raise TypeError(
            _checks.message("`register` must be a dict of options, as {'max_shift': 8}.", {"register": register})
        )


def is_tiled(tile, axes):
    """Whether larger images are cut: by wish, or since the network takes one size alone."""
    return tile is not None or any(axis.fixed is not None for axis in axes or ())


def checked_tiles(tile, overlap, axes):
    """`(size, overlap)` for each axis, measured, sizes that the network takes; None where nothing is tiled."""
    if not is_tiled(tile, axes):
        if overlap is not None:
            raise ValueError(_checks.message("`tile_overlap` needs `tile`.", {"tile": tile, "tile_overlap": overlap}))
        return None
    rank = len(axes)
    wanted = _checks.whole_numbers_per_axis("tile", 1 if tile is None else tile, rank, at_least=1)
    sizes = [axis.fixed or axis.taken_size(size) for size, axis in zip(wanted, axes)]
    shared = tuple(_default_overlap(size, axis) for size, axis in zip(sizes, axes))
    if overlap is not None:
        shared = _checks.whole_numbers_per_axis("tile_overlap", overlap, rank, at_least=0)
    for size, one, axis in zip(sizes, shared, axes):
        if size - axis.loss - one < axis.period:
            raise ValueError(
                _checks.message(
                    "`tile` must be larger, by `period` at least, than `tile_overlap` and what the network loses.",
                    {"tile": size, "tile_overlap": one, "lost": axis.loss, "period": axis.period},
                    f"Borders reach {axis.reach} pixels far: an overlap of three times that leaves no seams."
                    if axis.reach
                    else "",
                )
            )
    return tuple(zip(sizes, shared))


def _default_overlap(size, axis):
    """A quarter of a tile, or as much as leaves no seams; of a tile that was not chosen, if there is room for it."""
    needed = max(size // 4, 3 * (axis.reach or 0))
    return needed if axis.fixed is None or size - axis.loss - needed >= axis.period else size // 4


def sizes_of(model, axes, size):
    """Sizes whose prediction has `size` pixels along every axis; as they come, those that the model was built for."""
    if axes is None:
        return tuple(fixed or size for fixed in model.input_shape[1:-1])
    return tuple(size + axis.loss for axis in axes)


def checked_warmup(warmup, model, axes):
    """Spatial sizes of the warm-up requests."""
    rank = len(model.input_shape) - 2
    if isinstance(warmup, str) and warmup == "auto":
        return [] if requests.serving_api() is None else [sizes_of(model, axes, _WARMUP_SIZES[rank])]
    rows = warmup if isinstance(warmup, (list, tuple)) else [None]
    if rank == 1:
        rows = [row if isinstance(row, (list, tuple)) else (row,) for row in rows]
    if not all(isinstance(row, (list, tuple)) and len(row) == rank for row in rows):
        raise ValueError(
            _checks.message(
                f"`warmup` must be sizes of {rank} numbers each, as [{(64,) * rank}], or 'auto'.",
                {"warmup": warmup},
                "() writes no requests.",
            )
        )
    sizes = [_checks.whole_numbers_per_axis("warmup", row, rank, at_least=1) for row in rows]
    if sizes:
        requests.needed_serving_api()
    return sizes
