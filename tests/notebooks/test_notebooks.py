"""The tutorials run, and what is committed is what their sources say, executed to the end."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tfalign import _keras

FOLDER = Path(__file__).parent.parent.parent / "notebooks"
SOURCES = sorted((FOLDER / "src").glob("*.py"))
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_BYTES = 1_000_000
# Folders of the machine that ran it, and addresses in its memory.
TRACES = re.compile(r"/(tmp|home|root|work|usr|Users|var|private)/|site-packages|at 0x[0-9a-f]{6}|WARNING|Traceback")

by_stem = {"ids": lambda path: path.stem}


def cells(path):
    return json.loads(path.read_text())["cells"]


def outputs(path):
    return [output for cell in cells(path) for output in cell.get("outputs", [])]


def test_each_source_has_its_notebook():
    assert SOURCES
    assert [path.stem for path in SOURCES] == [path.stem for path in NOTEBOOKS]


@pytest.mark.parametrize("source", SOURCES, **by_stem)
def test_the_notebook_is_its_source(source):
    jupytext = pytest.importorskip("jupytext", reason="needs the extra notebooks")
    said = [(cell.cell_type, cell.source) for cell in jupytext.read(source, fmt="py:percent").cells]
    kept = [
        (cell["cell_type"], "".join(cell["source"])) for cell in cells(source.parent.parent / f"{source.stem}.ipynb")
    ]
    assert kept == said


@pytest.mark.parametrize("notebook", NOTEBOOKS, **by_stem)
def test_the_notebook_was_run_to_its_end_in_order(notebook):
    counts = [cell["execution_count"] for cell in cells(notebook) if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    found = outputs(notebook)
    assert not [output for output in found if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in found)
    assert notebook.stat().st_size < MAX_BYTES


@pytest.mark.parametrize("notebook", NOTEBOOKS, **by_stem)
def test_outputs_say_nothing_of_the_machine(notebook):
    for output in outputs(notebook):
        texts = {name: text for name, text in output.get("data", {}).items() if name != "image/png"}
        assert not TRACES.search("".join(output.get("text", "")) + json.dumps(texts))


@pytest.mark.parametrize("notebook", NOTEBOOKS, **by_stem)
def test_the_table_of_notebooks_names_it_and_it_ends_with_advice(notebook):
    assert f"({notebook.name})" in (FOLDER / "README.md").read_text()
    assert "## What to use when" in "".join(cells(notebook)[-1]["source"])


@pytest.mark.skipif(not _keras.IS_KERAS_3, reason="the tutorials are written for Keras 3")
@pytest.mark.parametrize("source", SOURCES, **by_stem)
def test_the_source_runs(source, tmp_path):
    own = {"TFALIGN_FAST": "1", "MPLBACKEND": "agg", "TF_CPP_MIN_LOG_LEVEL": "3", "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(source)]
    result = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **own}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout


def build():
    """The module `notebooks/build.py`, where the extra is installed."""
    for name in ("jupytext", "nbclient"):
        pytest.importorskip(name, reason="needs the extra notebooks")
    spec = importlib.util.spec_from_file_location("build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reading_a_source_twice_gives_the_same_notebook(tmp_path):
    source = tmp_path / "one.py"
    source.write_text("# %% [markdown]\n# # Title\n\n# %%\nvalue = 1\nprint(value)\n")
    assert build().read(source) == build().read(source)
    assert [cell.cell_type for cell in build().read(source).cells] == ["markdown", "code"]


def test_warnings_do_not_reach_a_notebook(tmp_path):
    source = tmp_path / "one.py"
    source.write_text("# %%\nprint(1)\n")
    notebook = build().read(source)
    said = {"stdout": "INFO:tensorflow:Assets\n1\nWARNING:tensorflow:5 out of\n2\n", "stderr": "Oh\n"}
    (cell,) = notebook.cells
    cell.outputs = [stream(name, text) for name, text in said.items()]
    cell.outputs.append(stream("stdout", "INFO:tensorflow:alone\n"))
    (left,) = build().clean(notebook).cells[0].outputs
    assert (left.name, left.text) == ("stdout", "1\n2\n")


def stream(name, text):
    """An output of a cell."""
    nbformat = pytest.importorskip("nbformat")
    return nbformat.v4.new_output("stream", name=name, text=text)
