"""What the pages share: the look of figures, figures and pictures as PNG, and a page made from its template."""

import base64
import io
from typing import Any

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

BLUE = "#1f6fb4"
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "white",
    "axes.titlesize": 10,
}


def styled():
    """The context in which figures are drawn."""
    return matplotlib.rc_context(_STYLE)


def figure(width, height):
    """An empty figure, inches."""
    return Figure(figsize=(width, height), layout="constrained")


def png(drawn, *, dpi=110):
    """The bytes of a figure as PNG."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def picture(codes):
    """The bytes of `(rows, cols, 3)` uint8 as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(codes).save(buffer, format="PNG")
    return buffer.getvalue()


def data_url(content):
    """PNG bytes as what an `img` holds inside a page."""
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"


def show(axes, image, title):
    """Draws `(rows, cols, 1 or 3)`, values in [0, 1], without ticks."""
    image = np.clip(image, 0.0, 1.0)
    axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def page(template, **values):
    """A page from a template beside this module; values are escaped, and a missing one is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tfalign.jobs", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(template).render(**values)
