"""Each line of the tables in docs/coming-from-tensorflow-addons.md: both columns are run and compared.

Without tensorflow-addons only what to call instead is run.
"""

import importlib
import importlib.util
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

TEXT = (Path(__file__).parent.parent.parent / "docs/coming-from-tensorflow-addons.md").read_text()
HAS_ADDONS = importlib.util.find_spec("tensorflow_addons") is not None
SIZES = (31, 28)
BORDER = 7  # px, more than anything here moves or filters
TABLE = TEXT.split("## Each operation")[1].split("## Moving")[0]
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")] for line in TABLE.splitlines() if line.startswith("| `")
]


@pytest.fixture(scope="module")
def names():
    """What the code of the table knows."""
    known = {"keras": keras}
    exec(re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1], known)
    if HAS_ADDONS:
        known["tfa"] = importlib.import_module("tensorflow_addons")
    rng = np.random.default_rng(5)
    smooth = scipy.ndimage.gaussian_filter(rng.uniform(0, 1, (3, *SIZES, 3)), (0, 1.5, 1.5, 0))
    smooth = np.float32((smooth - smooth.min()) / np.ptp(smooth))
    source = rng.uniform(6, 22, (1, 12, 2)).astype(np.float32)
    return known | {
        "images": tf.constant(smooth[:2]),
        "image": tf.constant(smooth[0]),
        "other_image": tf.constant(smooth[2]),
        "picture": np.uint8(255 * smooth[0]),
        "classes": np.uint8(3 * smooth[0, ..., 0]),
        "blobs": np.uint8(smooth[0, ..., 0] > 0.4),
        "sizes": SIZES,
        "middle": np.float32([size // 2 for size in SIZES]),
        "dx": 1.75,
        "dy": -2.25,
        "gray": 0.5,
        "angle": 0.1,
        "level": 0.08,
        "eight": tf.constant([1.05, -0.04, 1.5, 0.06, 0.95, -1.25, 0.0, 0.0]),
        "other": tf.constant([0.9, 0.1, 0.5, -0.05, 1.1, 2.0, 0.0, 0.0]),
        "flow": tf.constant(rng.uniform(-3, 3, (2, *SIZES, 2)), tf.float32),
        "points": tf.constant(rng.uniform(2, 25, (2, 40, 2)), tf.float32),
        "source": source,
        "target": source + rng.uniform(-1.5, 1.5, source.shape).astype(np.float32),
        "values": rng.uniform(0, 1, (1, 12, 3)).astype(np.float32),
    }


def code(cell):
    return cell.strip("`")


def inner(values):
    """Pictures without their border; anything else as it is."""
    values = np.asarray(values, np.float64)
    for axes in ((0, 1), (1, 2)):
        if tuple(np.take(values.shape, axes, mode="clip")) in (SIZES, (20, 21)):
            return values[(slice(None),) * axes[0] + (slice(BORDER, -BORDER),) * 2]
    return values


@pytest.mark.parametrize(("theirs", "ours", "difference"), ROWS, ids=[code(row[0])[:45] for row in ROWS])
def test_a_line_of_the_table(names, theirs, ours, difference):
    theirs, ours = code(theirs), code(ours)
    if "keras.layers." in ours and not hasattr(keras.layers, re.search(r"layers\.(\w+)", ours)[1]):
        pytest.skip("a layer of Keras 3")
    found = np.asarray(eval(ours, names))
    assert np.all(np.isfinite(found))
    if not HAS_ADDONS:
        return
    expected = np.asarray(eval(theirs, names))
    assert found.shape == expected.shape
    if difference.startswith("random"):
        return
    if "border repeated" in difference or "hole" in difference:
        np.testing.assert_allclose(found, expected, atol=1e-4)
    tolerance = {"by one level": 1.0, "rounding of constants": 1e-3}.get(" ".join(difference.split()[:3]), 2e-4)
    np.testing.assert_allclose(inner(found), inner(expected), atol=tolerance)
    assert inner(expected).size >= 4
    assert np.ptp(inner(expected)) > 0.1


@pytest.mark.skipif(HAS_ADDONS, reason="what the page names is of Keras 3")
def test_what_the_page_names_is_in_keras():
    layers = re.findall(r"keras\.layers\.(\w+)", TEXT)
    assert len(layers) == 3
    assert all(hasattr(keras.layers, name) for name in layers)
    for name in re.findall(r"`(\w+)`", TEXT.split("Of `tfa.optimizers`")[1].split("`SGD")[0]) + ["Lamb"]:
        assert hasattr(keras.optimizers, name)
    assert keras.optimizers.SGD(weight_decay=0.1, use_ema=True).use_ema


@pytest.mark.skipif(not HAS_ADDONS, reason="tensorflow-addons is not installed")
def test_the_table_is_complete(names):
    image = names["tfa"].image
    functions = {name for name in dir(image) if callable(getattr(image, name)) and not name.startswith("_")}
    assert len(functions) > 20
    assert {re.search(r"tfa\.image\.(\w+)", row[0])[1] for row in ROWS} == functions


@pytest.mark.skipif(not HAS_ADDONS, reason="tensorflow-addons is not installed")
def test_the_focal_loss_of_the_table(names):
    rng = np.random.default_rng(6)
    label, prediction = rng.integers(0, 2, (2, 5, 6, 3)).astype(np.float32), rng.uniform(0.05, 0.95, (2, 5, 6, 3))
    expected = names["tfa"].losses.SigmoidFocalCrossEntropy(alpha=0.3, gamma=1.5)(label, prediction)
    loss = keras.losses.BinaryFocalCrossentropy(apply_class_balancing=True, alpha=0.3, gamma=1.5, reduction="none")
    np.testing.assert_allclose(3 * loss(label, prediction), expected, rtol=1e-4)
