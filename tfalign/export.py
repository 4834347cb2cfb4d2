"""SavedModels for TF Serving."""

import os
import tempfile
from pathlib import Path

from tfalign import _checks, _keras


def export_serving(model, directory, *, version=None):
    """Exports a Keras model as `<directory>/<version>/`, written beside and renamed.

    The signature `serving_default` takes float32 arrays `(batch, *spatial, channels)` of any size that the model takes.

    Args:
        model: a built Keras model.
        directory: the model's base path, as TF Serving polls it; made if missing.
        version: a whole number > 0; by default one more than the highest there.

    Returns:
        The path of the new version.

    Raises:
        ValueError, TypeError: `version` is taken or no such number.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    taken = [int(entry.name) for entry in directory.iterdir() if entry.name.isdigit()]
    version = max(taken, default=0) + 1 if version is None else _checks.whole_number("version", version, at_least=1)
    if version in taken:
        raise ValueError(
            _checks.message(
                "`version` must be new.", {"version": version, "directory": str(directory)}, "Leave it out."
            )
        )
    with tempfile.TemporaryDirectory(prefix=".part-", dir=directory) as beside:
        _keras.export(model, os.path.join(beside, "model"))
        os.replace(os.path.join(beside, "model"), directory / str(version))
    return directory / str(version)
