"""Every example of a docstring, and of the first pages, runs.

What an example shows is compared; where it shows nothing, nothing is.
"""

import doctest
import functools
import importlib
import pkgutil
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from skimage.io import imsave

import tfalign
import tfalign.data

# What the first pages of the guide teach, and so must show how it is called.
SHOWN = (
    "register",
    "warp",
    "shift_invariant_loss",
    "ShiftInvariantLoss",
    "export_serving",
    "callbacks.AlignmentLog",
    "data.realign",
    "layers.Warp",
    "metrics.InPlace",
    "models.DeformableModel",
)


def examples():
    """The docstrings with `>>>` lines of all modules of the package."""
    finder = doctest.DocTestFinder()
    found = {}
    for module in pkgutil.walk_packages(tfalign.__path__, "tfalign."):
        for one in finder.find(importlib.import_module(module.name)):
            if one.examples:
                found[one.name] = one
    return found


EXAMPLES = examples()

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/index.md")  # docs/serving.md is run by test_saved_models.py
BLOCKS = [
    pytest.param(code, id=f"{page}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL))
]


class Checker(doctest.OutputChecker):
    """Passes an example that shows no result, whatever it gives."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


@pytest.fixture
def names(rng):
    """What examples take as given: imports, and data with a compiled model that predicts them, and its loss."""
    inputs = rng.random((4, 48, 48, 1), np.float32)
    labels = np.repeat(inputs, 3, axis=-1)
    loss = tfalign.ShiftInvariantLoss("mae", max_shift=4)
    copies = keras.layers.Conv2D(3, 1, kernel_initializer="ones")
    model = keras.Sequential([keras.layers.Input((None, None, 1)), copies])
    model.compile("adam", loss=loss)
    dataset = tf.data.Dataset.from_tensor_slices((inputs, labels)).repeat(8)
    modules = {"keras": keras, "np": np, "tf": tf, "tfalign": tfalign}
    return {**modules, "loss": loss, "model": model, "inputs": inputs, "labels": labels, "dataset": dataset}


@pytest.fixture
def eager():
    """Examples train for a step or two: tracing would take most of the time."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.filterwarnings("error::UserWarning", "ignore:Even though the .* option is set:UserWarning")
@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name, names, eager, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example, said = EXAMPLES[name], []
    example.globs = names
    failed, tried = doctest.DocTestRunner(Checker(), verbose=False).run(example, out=said.append)
    assert tried == len(example.examples)
    assert not failed, "".join(said)


@pytest.mark.parametrize("code", BLOCKS)
def test_block_of_a_page_runs(code, names, eager, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tfalign.models, "unet", functools.partial(tfalign.models.unet, filters=2, depth=2))
    for folder, pictures in (("images", names["inputs"]), ("labels", names["labels"])):
        (tmp_path / folder).mkdir()
        for number, picture in enumerate(np.tile(pictures, (1, 3, 3, 1))):
            path = tmp_path / folder / f"{number}.png"
            imsave(path, np.uint8(255 * picture).squeeze(), check_contrast=False)
    example = names["labels"][:, 8:-8, 8:-8]
    exec(code, {**names, "prediction": example, "label": example, "__name__": "__main__"})


@pytest.mark.parametrize("name", SHOWN)
def test_the_first_things_to_use_have_an_example(name):
    thing = tfalign
    for part in name.split("."):
        thing = getattr(thing, part)
    assert f"{thing.__module__}.{thing.__qualname__}" in EXAMPLES


@pytest.mark.parametrize(("shown", "passes"), [("", True), ("3", True), ("4", False)])
def test_what_an_example_shows_is_compared(shown, passes):
    assert Checker().check_output(shown, "3", 0) is passes
