"""The model card: what a served model is, for whom looks into its folder."""

import platform
from importlib import metadata
from typing import NamedTuple

from tfalign._version import __version__


class ModelCard(NamedTuple):
    """What only the author knows of a model, in plain words or Markdown; what is left empty reads "Not stated."

    Attributes:
        what: what it predicts from what, and what it is for.
        data: what it was trained on.
        metrics: what it reached on which data, held out.
        command: that reproduces the metrics.
        input_range: of the values of an input, e.g. "gray in [0, 1]".
        output_range: of the values of a prediction.
        input_channels: their order, e.g. "red, green, blue".
        output_channels: likewise.
        licence: of the weights.
        limits: where it must not be used.
    """

    what: str = ""
    data: str = ""
    metrics: str = ""
    command: str = ""
    input_range: str = ""
    output_range: str = ""
    input_channels: str = ""
    output_channels: str = ""
    licence: str = ""
    limits: str = ""


_HEADINGS = {
    "data": "Training data",
    "metrics": "Metrics",
    "input_range": "Input values",
    "input_channels": "Input channels",
    "output_range": "Output values",
    "output_channels": "Output channels",
    "limits": "Limits",
    "licence": "Licence",
}


def text(card, *, name, signatures, facts):
    """The card as Markdown.

    Args:
        card: a `ModelCard`.
        name: of the served model.
        signatures: name -> `Signature`.
        facts: name -> text, what the export settled.
    """
    lines = [f"# {name}", "", card.what or "Not stated.", "", "## Signatures", ""]
    lines += ["| signature | inputs | outputs |", "|---|---|---|"]
    for signature, one in signatures.items():
        lines.append(f"| `{signature}` | {_specs_in_words(one.inputs)} | {_specs_in_words(one.outputs)} |")
    lines += ["", *(f"* **{key}**: {value}" for key, value in facts.items())]
    for field, heading in _HEADINGS.items():
        lines += ["", f"## {heading}", "", getattr(card, field) or "Not stated."]
        if field == "metrics" and card.command:
            lines += ["", f"Reproduced by `{card.command}`."]
    lines += ["", "## Made with", "", versions(), ""]
    return "\n".join(lines)


def versions():
    """The versions behind an export, as one line."""
    names = ("tensorflow", "keras", "numpy")
    found = [f"{name} {metadata.version(name)}" for name in names]
    return ", ".join([f"tfalign {__version__}", *found, f"Python {platform.python_version()}"])


def _specs_in_words(specs):
    words = []
    for name, spec in specs.items():
        sizes = ", ".join("?" if size is None else str(size) for size in spec.shape.as_list())
        words.append(f"`{name}` {spec.dtype.name} ({sizes})")
    return "<br>".join(words)


def sizes_in_words(axes):
    """What an image may measure, and what comes out."""
    if axes is None:
        return "what the network takes"
    taken = []
    for axis in axes:
        multiples = "any" if axis.stride == 1 else f"multiples of {axis.stride}"
        taken.append(str(axis.fixed or (f"{axis.remainder} + " if axis.remainder else "") + multiples))
    return (
        f"any; the network takes ({', '.join(taken)}), images are extended and cropped back inside; a prediction has "
        f"({', '.join(str(axis.loss) for axis in axes)}) pixels less than its input"
    )
