"""A Keras file as a version folder for TF Serving."""

import json
import zipfile
from pathlib import Path

import keras

from tfalign import _checks
from tfalign.data import preprocess  # noqa: F401 - registers the layer that a file may begin with
from tfalign.export import ModelCard, export_serving
from tfalign.jobs import files


def run(model, directory, *, card=None, **options):
    """Exports the model of a `.keras` file, see `tfalign.export_serving`; runs no code that the file brings.

    Args:
        model: path of the file. Its layers must be Keras's or tfalign's; one with code inside (a Lambda) is refused.
        directory: the model's base path.
        card: None, or the path of a JSON file: an object of the fields of a `tfalign.export.ModelCard`, all texts.
        options: of `tfalign.export_serving`.

    Returns:
        The path of the new version.

    Raises:
        ValueError, TypeError, OSError: no such file, or it or an option does not fit.
    """
    card = None if card is None else _read_card(card)
    return export_serving(_read_model(Path(model)), directory, card=card, **options)


def _read_model(path):
    if path.suffix != ".keras":
        raise ValueError(
            _checks.message("`model` must be a .keras file.", {"model": str(path)}, "Save it by model.save(…keras).")
        )
    if not path.is_file():
        raise FileNotFoundError(_checks.message("`model` must be a file.", {"model": str(path)}))
    # Under this name too Keras 2.15 reads the older formats, whose code is run before anybody is asked.
    if not zipfile.is_zipfile(path):
        raise ValueError(
            _checks.message(
                "`model` must be a whole file of the .keras format, which is a ZIP archive.", {"model": str(path)}
            )
        )
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
        # Keras 2.15 gives back what it does not know.
        if not isinstance(model, keras.Model):
            raise TypeError(f"a {type(model).__name__} is no model")
        return model
    except Exception as error:
        # A damaged file comes up as whatever the reader of the damaged part makes of it.
        said = " ".join(str(error).split())
        raise ValueError(
            _checks.message(
                "`model` must be a whole .keras file of Keras's and tfalign's layers, without code.",
                {"model": str(path), "error": f"{type(error).__name__}: {said}"},
            )
        ) from error


def _read_card(path):
    try:
        fields = files.read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            _checks.message("`card` must be a JSON file.", {"card": str(path), "error": str(error)})
        ) from error
    is_card = isinstance(fields, dict) and all(isinstance(value, str) for value in fields.values())
    if not is_card or not fields.keys() <= set(ModelCard._fields):
        raise ValueError(
            _checks.message(
                f"`card` must hold an object of texts, any of {', '.join(ModelCard._fields)}.",
                {"card": str(path), "content": fields},
            )
        )
    return ModelCard(**fields)
