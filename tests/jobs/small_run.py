"""A folder of small pictures whose labels lie a known shift off, one of them broken, and settings to train on it."""

import numpy as np
import scipy.ndimage
from PIL import Image

from tfalign.jobs import config

SHIFTS = {"a b": (2, -1), "é": (-2, 0), "c": (0, 2), "d": (1, 1), "e": (-1, -2), "f": (0, 0)}
SETTINGS = {
    "epochs": 3, "steps_per_epoch": 4, "batch_size": 4, "patch_size": 24, "filters": 2, "depth": 2, "workers": 0,
    "learning_rate": 0.01, "flips": False, "fractions": [0.6, 0.2, 0.2], "split_by": "region",
    "loss": {"max_shift": 3, "warmup_steps": 2},
}  # fmt: skip


def write_files(folder, *, classes=False, shifts=SHIFTS):
    """Writes `inputs` and `labels`; the label is the input's picture, or what is bright in it, moved."""
    rng = np.random.default_rng(5)
    for name in ("inputs", "labels"):
        (folder / name).mkdir(parents=True)
    for name, (row, column) in shifts.items():
        field = scipy.ndimage.gaussian_filter(rng.standard_normal((80, 56)), 2)
        whole = np.uint8(255 * (field - field.min()) / np.ptp(field))
        label = np.uint8(whole > 128) if classes else whole
        Image.fromarray(whole[4:76, 4:52]).save(folder / "inputs" / f"{name}.png")
        Image.fromarray(label[4 - row : 76 - row, 4 - column : 52 - column]).save(folder / "labels" / f"{name}.png")
    (folder / "inputs" / "broken.png").write_bytes((folder / "inputs" / "c.png").read_bytes()[:200])
    Image.fromarray(whole).save(folder / "labels" / "broken.png")


def settings(folder, **options):
    """The `Config` to train on them."""
    sources = {"inputs": folder / "inputs", "labels": folder / "labels"}
    return config.from_mapping(config.merged(SETTINGS, sources, options))
