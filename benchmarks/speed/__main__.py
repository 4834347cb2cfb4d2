"""`python -m benchmarks.speed`: a training step with the loss against the base loss; registration against its peers."""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import cv2
import keras
import numpy as np
import scipy.ndimage
import skimage.registration
import tensorflow as tf
import typer
from rich.console import Console

import tfalign
from benchmarks.pipeline.made import Made
from tfalign.data import pipeline
from tfalign.jobs import files

RESULTS = Path(__file__).parent.parent / "results" / "speed"


def interleaved(functions, repeats):
    """Milliseconds of each function, by name: medians over rounds in which each runs once, after two to warm up."""
    times = {name: [] for name in functions}
    for turn in range(repeats + 2):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if turn >= 2:
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(values) for name, values in times.items()}


SEARCHES = {
    "shift": {},
    "rigid": {"max_rotation": 7.0},
    "affine": {"max_rotation": 7.0, "max_scale": 0.15, "max_shear": 7.0},
}


def training_step(*, filters, depth, size, batch, jit_compile, searches=("shift",), margin=8, repeats=15):
    """One training step of a U-Net with "mae" and with the loss around it; labels of 3 channels with a margin."""
    rng = np.random.default_rng(0)
    inputs = tf.constant(rng.random((batch, size, size, 1)), tf.float32)
    wide = size + 2 * margin
    smooth = scipy.ndimage.gaussian_filter(rng.random((batch, wide, wide, 3)), (0, 2, 2, 0))
    label = tf.constant(smooth, tf.float32)
    functions, losses = {}, [("mae", "mae", label[:, margin:-margin, margin:-margin])]
    for name in searches:
        loss = tfalign.ShiftInvariantLoss("mae", max_shift=margin, **SEARCHES[name])
        losses.append(("tfalign" if name == "shift" else f"tfalign, {name}", loss, label))
    for name, loss, target in losses:
        model = tfalign.models.unet(2, 1, 3, filters=filters, depth=depth)
        model.compile("adam", loss=loss, jit_compile=jit_compile)
        model.train_on_batch(inputs, target)
        functions[name] = lambda model=model, target=target: model.train_on_batch(inputs, target)
    return interleaved(functions, repeats)


def patches_from_cache(*, filters=32, depth=4, size=128, batch=16, margin=8, repeats=15, files=20, consecutive=400):
    """Milliseconds of a batch from the shard cache, flipped and with a label margin, and of the step that takes it."""
    rng = np.random.default_rng(0)
    model = tfalign.models.unet(2, 1, 1, filters=filters, depth=depth)
    model.compile("adam", loss="mae")
    batch_of = [tf.constant(rng.random((batch, size, size, 1)), tf.float32) for _ in range(2)]
    times = interleaved({"step": lambda: model.train_on_batch(*batch_of)}, repeats)
    with tempfile.TemporaryDirectory() as folder:
        cutting = pipeline.Cutting(patch_size=size, margin=margin, fractions=(1.0, 0.0, 0.0))
        cache = pipeline.prepare(Made(files), folder, cutting)
        batches = iter(pipeline.dataset(cache, "train", batch_size=batch, flips=True, repeat=True))
        # Without a step between, and so many at a time that what was fetched ahead counts for nothing.
        of_many = interleaved({"batch": lambda: [next(batches) for _ in range(consecutive)] and None}, 3)
    return {**times, "batch": of_many["batch"] / consecutive}


def registration(*, pairs=32, size=128, bound=16, repeats=15):
    """Whole-pixel registration of `pairs` images over +-`bound`; every peer is given the same pairs."""
    rng = np.random.default_rng(0)
    field = scipy.ndimage.gaussian_filter(rng.standard_normal((pairs, size + 80, size + 80)), (0, 2, 2))
    shifts = rng.integers(-bound, bound + 1, (pairs, 2))
    fixed = np.ascontiguousarray(field[:, 40 : 40 + size, 40 : 40 + size], np.float32)
    moving = np.stack([f[40 - y : 40 - y + size, 40 - x : 40 - x + size] for f, (y, x) in zip(field, shifts)])
    moving = moving.astype(np.float32)
    graph, compiled = (
        tf.function(
            lambda a, b: tfalign.register(a, b, max_shift=bound, subpixel=False).translation, jit_compile=jit_compile
        )
        for jit_compile in (False, True)
    )
    left, right = tf.constant(fixed[..., None]), tf.constant(moving[..., None])
    inner = slice(bound, -bound)

    def templates():
        found = []
        for one, other in zip(fixed, moving):
            scores = cv2.matchTemplate(other, one[inner, inner], cv2.TM_CCOEFF_NORMED)
            found.append(np.unravel_index(np.argmax(scores), scores.shape))
        return np.array(found) - bound

    def masked():
        ones = np.ones((size, size), bool)
        return -np.array(
            [
                skimage.registration.phase_cross_correlation(a, b, reference_mask=ones, moving_mask=ones)[0]
                for a, b in zip(fixed, moving)
            ]
        )

    functions = {
        "tfalign": lambda: graph(left, right).numpy(),
        "tfalign, XLA": lambda: compiled(left, right).numpy(),
        "cv2.matchTemplate (inner part)": templates,
        "cv2.phaseCorrelate": lambda: np.array(
            [cv2.phaseCorrelate(a.copy(), b.copy())[0][::-1] for a, b in zip(fixed, moving)]
        ),
        "skimage phase": lambda: (
            -np.array([skimage.registration.phase_cross_correlation(a, b)[0] for a, b in zip(fixed, moving)])
        ),
    }
    exact = {name: float(np.mean(np.all(np.round(function()) == shifts, -1))) for name, function in functions.items()}
    times = interleaved(functions, repeats)
    exact["skimage masked NCC"] = float(np.mean(np.all(masked() == shifts, -1)))
    times["skimage masked NCC"] = interleaved({"it": masked}, 1)["it"]
    return times, exact


def main(repeats: Annotated[int, typer.Option(help="Rounds of each comparison.")] = 15):
    """Times the rows and writes benchmarks/results/speed."""
    rows = []
    small = {"filters": 16, "depth": 3, "size": 64, "batch": 16, "repeats": repeats}
    large = {"filters": 32, "depth": 4, "size": 128, "batch": 16, "repeats": max(repeats // 3, 3)}
    for title, target, network in (("small", 1.10, small), ("reference", 1.05, large)):
        for jit_compile in (False, True):
            times = training_step(**network, jit_compile=jit_compile)
            shape = "{filters}, {depth} levels, {size}x{size}, batch {batch}".format(**network)
            name = f"step of the {title} U-Net ({shape})" + (", XLA" if jit_compile else "")
            rows.append({"row": name, "times": times, "ratio": times["tfalign"] / times["mae"], "target": target})
    times = training_step(**small, jit_compile=False, searches=tuple(SEARCHES))
    rows.append(
        {"row": "step of the small U-Net with rigid (7 deg) and affine search (7 deg, 15 %, 7 deg)", "times": times}
    )
    times = patches_from_cache(repeats=repeats)
    name = "a batch of the data pipeline against a step of the reference U-Net (32, 4 levels, 128x128, batch 16)"
    per_second = 1000 * 16 / times["batch"]
    ratio = times["batch"] / times["step"]
    rows.append({"row": name, "times": times, "ratio": ratio, "target": 1.0, "patches per second": per_second})
    times, exact = registration(repeats=repeats)
    rows.append({"row": "register 32 pairs of 128x128, +-16 px", "times": times, "exact": exact})
    machine = {**files.versions(), "opencv": cv2.__version__, "threads": "all", "repeats": repeats}
    command = "python -m benchmarks.speed"
    RESULTS.mkdir(parents=True, exist_ok=True)
    files.write_json(RESULTS / "speed.json", {"command": command, "versions": machine, "rows": rows})
    lines = [f"`{command}`", "", ", ".join(f"{key} {value}" for key, value in machine.items()), ""]
    for row in rows:
        lines += [f"**{row['row']}**", ""]
        if "ratio" in row:
            met = "met" if row["ratio"] <= row["target"] else "missed"
            rate = f", {row['patches per second']:.0f} patches per second" if "patches per second" in row else ""
            lines += [f"ratio {row['ratio']:.2f} (target {row['target']:.2f}: {met}){rate}", ""]
        lines += ["| | ms | all shifts exact |", "|---|---|---|"]
        for name, value in sorted(row["times"].items(), key=lambda item: item[1]):
            share = row.get("exact", {}).get(name)
            lines.append(f"| {name} | {value:.1f} | {'' if share is None else f'{100 * share:.0f} %'} |")
        lines.append("")
    files.write_text(RESULTS / "speed.md", "\n".join(lines))
    Console().print("\n".join(lines), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    keras.utils.set_random_seed(0)
    typer.run(main)
