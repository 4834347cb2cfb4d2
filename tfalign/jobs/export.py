"""A Keras file as a version folder for TF Serving."""

from pathlib import Path

import keras

from tfalign import _checks
from tfalign.export import export_serving


def run(model, directory, **options):
    """Exports the model of a `.keras` file, see `tfalign.export_serving`; runs no code that the file brings.

    Args:
        model: path of the file. Its layers must be Keras's or tfalign's; one with code inside (a Lambda) is refused.
        directory: the model's base path.
        options: of `tfalign.export_serving`.

    Returns:
        The path of the new version.

    Raises:
        ValueError, TypeError, OSError: no such file, or it or an option does not fit.
    """
    model = Path(model)
    # The older formats hold code that is run before anybody is asked.
    if model.suffix != ".keras":
        raise ValueError(
            _checks.message("`model` must be a .keras file.", {"model": str(model)}, "Save it by model.save(…keras).")
        )
    if not model.is_file():
        raise FileNotFoundError(_checks.message("`model` must be a file.", {"model": str(model)}))
    return export_serving(keras.models.load_model(model, compile=False, safe_mode=True), directory, **options)
