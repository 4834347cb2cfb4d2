"""Files of a run folder, each written beside and renamed."""

import json
import os
import platform
import zipfile
from importlib import metadata
from pathlib import Path

import keras

from tfalign import _checks
from tfalign._files import write_text
from tfalign._version import __version__
from tfalign.data import preprocess  # noqa: F401 - registers the layer that a model may begin with
from tfalign.models.deformable import DeformableModel


def write_json(path, content):
    """Writes `content` as indented JSON in one step."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path):
    """The content of a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def save_model(model, path):
    """Saves a Keras model in one step; the name must end in `.keras`."""
    beside = Path(path).with_name(f"part-{Path(path).name}")
    model.save(beside)
    os.replace(beside, path)


def read_model(path, *, whole=False):
    """The model of a `.keras` file of Keras's and tfalign's layers; runs no code that the file brings.

    Of a `DeformableModel` it is the predictor, unless the `whole` is asked for.

    Raises:
        ValueError, OSError: there is no such file, or it is anything else.
    """
    path = Path(path)
    if path.suffix != ".keras":
        remedy = "Save it by model.save(….keras)."
        raise ValueError(_checks.message("`model` must be a .keras file.", {"model": str(path)}, remedy))
    if not path.is_file():
        raise FileNotFoundError(_checks.message("`model` must be a file.", {"model": str(path)}))
    # Under this name too Keras 2.15 reads the older formats, whose code is run before anybody is asked.
    if not zipfile.is_zipfile(path):
        requirement = "`model` must be a whole file of the .keras format, which is a ZIP archive."
        raise ValueError(_checks.message(requirement, {"model": str(path)}))
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
        # Keras 2.15 gives back what it does not know.
        if not isinstance(model, keras.Model):
            raise TypeError(f"a {type(model).__name__} is no model")
        return model.predictor if isinstance(model, DeformableModel) and not whole else model
    except Exception as error:
        # A damaged file comes up as whatever the reader of the damaged part makes of it.
        received = {"model": str(path), "error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        requirement = "`model` must be a whole .keras file of Keras's and tfalign's layers, without code."
        raise ValueError(_checks.message(requirement, received)) from error


def versions():
    """The versions and the machine behind a result."""
    return {
        "tfalign": __version__,
        **{name: metadata.version(name) for name in ("tensorflow", "keras", "numpy", "scikit-image")},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
