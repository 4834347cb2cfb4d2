"""A Keras file as a version folder for TF Serving."""

import json

from tfalign import _checks
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
    return export_serving(files.read_model(model), directory, card=card, **options)


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
