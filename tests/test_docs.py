"""Every public name is documented."""

import inspect
from pathlib import Path

import pytest

import tfalign
import tfalign.data

PAGES = Path(__file__).parent.parent / "docs" / "api"
HOUSES = {
    "tfalign": tfalign.__all__,
    "tfalign.data": tfalign.data.__all__,
    "tfalign.metrics": tfalign.metrics.__all__,
    "tfalign.models": tfalign.models.__all__,
    "tfalign.callbacks": ["AlignmentLog", "StopBelow", "StopConverged"],
    "tfalign.distributed": ["fit", "is_chief", "strategy", "together"],
    "tfalign.layers": ["Warp"],
    "tfalign.export": ["ModelCard"],
}
# Folders of what has pages of its own.
FOLDERS = {
    "tfalign.callbacks",
    "tfalign.distributed",
    "tfalign.layers",
    "tfalign.metrics",
    "tfalign.models",
    "tfalign.__version__",
}
NAMES = sorted({f"{house}.{name}" for house, names in HOUSES.items() for name in names} - FOLDERS)


@pytest.mark.parametrize("name", NAMES)
def test_public_names_have_a_page_and_a_docstring(name):
    pages = "\n".join(page.read_text() for page in PAGES.glob("*.md"))
    assert f"::: {name}\n" in pages + "\n"
    thing = tfalign
    for part in name.split(".")[1:]:
        thing = getattr(thing, part)
    assert len(inspect.getdoc(thing)) > 20


def test_pages_name_nothing_else():
    lines = [line for page in PAGES.glob("*.md") for line in page.read_text().splitlines()]
    listed = {line.removeprefix("::: ") for line in lines if line.startswith("::: ")}
    assert listed - {"tfalign.metrics", "tfalign.ops.geometry"} <= set(NAMES)
