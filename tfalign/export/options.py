"""What `export_serving` may be given, checked."""

import numpy as np

from tfalign import _checks
from tfalign.export import requests

_WARMUP_SIZES = {1: 1024, 2: 64, 3: 16}


def model_rank(model):
    """Spatial axes of a model that can be served."""
    inputs, outputs = (getattr(model, side, None) for side in ("inputs", "outputs"))
    is_one = all(isinstance(side, (list, tuple)) and len(side) == 1 for side in (inputs, outputs))
    if not is_one or not 3 <= len(model.input_shape) <= 5 or model.input_shape[-1] is None:
        raise ValueError(
            _checks.message(
                "`model` must be a built Keras model with one input (batch, *spatial, channels) and one output.",
                {"model": getattr(model, "name", model), "model.inputs": inputs, "model.outputs": outputs},
                "Name input and output, as in keras.Model(inputs, model(inputs)).",
            )
        )
    return len(model.input_shape) - 2


def _taken_versions(directory):
    names = [entry.name for entry in directory.iterdir()] if directory.exists() else []
    return [int(name) for name in names if name.isascii() and name.isdigit()]


def next_version(directory):
    """One more than the highest version there."""
    return max(_taken_versions(directory), default=0) + 1


def check_version(version, directory):
    """Refuses a version that is no number or is taken."""
    _checks.whole_number("version", version, at_least=1)
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


def checked_tiles(tile, overlap, axes):
    """`(size, overlap)` for each axis, sizes that the network takes; None where nothing is tiled."""
    if axes is None or (tile is None and all(axis.fixed is None for axis in axes)):
        return None
    rank = len(axes)
    wanted = _checks.whole_numbers_per_axis("tile", 1 if tile is None else tile, rank, at_least=1)
    sizes = [axis.fixed or axis.taken_size(size) for size, axis in zip(wanted, axes)]
    shared = [size // 4 for size in sizes]
    if overlap is not None:
        shared = _checks.whole_numbers_per_axis("tile_overlap", overlap, rank, at_least=0)
    for size, one, axis in zip(sizes, shared, axes):
        if size - axis.loss - one < axis.stride:
            raise ValueError(
                _checks.message(
                    "`tile` must be larger than `tile_overlap` and what the network loses at its border.",
                    {"tile": size, "tile_overlap": one, "lost": axis.loss, "stride": axis.stride},
                )
            )
    return tuple(zip(sizes, shared))


def sizes_of(model, axes, size):
    """Sizes whose prediction has `size` pixels along every axis; as they come, those that the model was built for."""
    if axes is None:
        return tuple(fixed or size for fixed in model.input_shape[1:-1])
    return tuple(size + axis.loss for axis in axes)


def checked_warmup(warmup, model, axes):
    """Spatial sizes of the warm-up requests."""
    rank = len(model.input_shape) - 2
    if warmup == "auto":
        return [] if requests.serving_api() is None else [sizes_of(model, axes, _WARMUP_SIZES[rank])]
    sizes = [_checks.whole_numbers_per_axis("warmup", one, rank, at_least=1) for one in warmup]
    if sizes:
        requests.needed_serving_api()
    return sizes
