"""The model card: what a served model is, for whom looks into its folder."""

import dataclasses
import platform
from importlib import metadata
from typing import NamedTuple

from tfalign import _checks
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


def checked(card):
    """A `ModelCard`, an empty one by default."""
    if card is not None and not isinstance(card, ModelCard):
        raise TypeError(_checks.message("`card` must be a tfalign.export.ModelCard.", {"card": card}))
    return card or ModelCard()


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


def tiles_in_words(tiling, axes):
    """How large images are cut, and whether that shows."""
    if tiling is None:
        return "none"
    tiles = ", ".join(f"{size} px sharing {shared}" for size, shared in tiling)
    reaches = [axis.reach for axis in axes]
    if None in reaches:
        return f"{tiles}; the network sees further than a tile: not what it makes of the whole image"
    exact = all(shared >= 3 * reach for (_, shared), reach in zip(tiling, reaches))
    text = "predictions are those of the whole image" if exact else "seams may show, share three times that"
    return f"{tiles}; borders reach ({', '.join(map(str, reaches))}) px far: {text}"


def preprocessing_in_words(steps):
    """What is done to an image before the network."""
    names = [
        repr(step) if dataclasses.is_dataclass(step) else getattr(step, "__name__", type(step).__name__)
        for step in steps
    ]
    if not names:
        return "none"
    return f"inside, of the whole image, on whose result a prediction lies: `{'`, then `'.join(names)}`"
