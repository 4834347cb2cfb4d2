"""Makes the notebooks from their sources and runs them: python notebooks/build.py [name …], by default all."""

import os
import re
import sys
import time
from pathlib import Path

import jupytext
import nbclient
import nbformat

FOLDER = Path(__file__).parent
SOURCES = FOLDER / "src"
# TensorFlow's logger writes to the output of a kernel.
LOG = re.compile(r"^(INFO|WARNING|ERROR):tensorflow.*\n?", re.MULTILINE)


def read(source):
    """A source in percent format as a notebook without outputs, the same for the same source."""
    notebook = jupytext.read(source, fmt="py:percent")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = nbformat.NotebookNode(kernelspec=kernel, language_info={"name": "python"})
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
    return notebook


def clean(notebook):
    """Takes out what says nothing of the results: warnings, logs, and when a cell ran."""
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            for output in cell.outputs:
                if output.output_type == "stream":
                    output.text = LOG.sub("", output.text)
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr" and one.get("text") != ""]
    return notebook


def build(source):
    """Runs one source and writes its notebook into the folder above."""
    began, before = time.perf_counter(), sum(os.times()[2:4])  # the kernel's, once it has ended
    notebook = read(source)
    nbclient.NotebookClient(notebook, timeout=1800, kernel_name="python3").execute()
    nbformat.write(clean(notebook), FOLDER / f"{source.stem}.ipynb")
    took, used = time.perf_counter() - began, sum(os.times()[2:4]) - before
    print(f"{source.stem}: {took:.0f} s, {used:.0f} s of processor time", flush=True)


if __name__ == "__main__":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    for one in sorted(SOURCES.glob("*.py")):
        if not sys.argv[1:] or one.stem in sys.argv[1:]:
            build(one)
