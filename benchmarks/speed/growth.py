"""`python -m benchmarks.speed.growth`: how the time of a registration grows with pixels, shifts and levels."""

import os
from typing import Annotated
from unittest import mock

import matplotlib
import numpy as np
import tensorflow as tf
import typer

import tfalign
from benchmarks.speed import results
from benchmarks.speed.timing import interleaved
from tfalign.ops import registration
from tfalign.ops.similarity import information

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import NullFormatter

SIZES = (64, 96, 128, 192, 256, 384, 512)
BOUNDS = (2, 4, 8, 12, 16)
LEVELS = (4, 8, 12, 16, 24)
_SIZE, _BOUND = 128, 8


def registration_of_one_pair(size, bound, similarity):
    """A function to time, traced. Sizes are unknown to its graph, so that levels of histograms do not follow them."""
    rng = np.random.default_rng(0)
    pair = [tf.constant(rng.standard_normal((1, size, size, 1)), tf.float32) for _ in range(2)]
    spec = tf.TensorSpec([1, None, None, 1], tf.float32)

    @tf.function(input_signature=[spec, spec])
    def register(fixed, moving):
        return tfalign.register(fixed, moving, max_shift=bound, similarity=similarity, subpixel=False).translation

    register(*pair)
    return lambda: register(*pair).numpy()


def milliseconds(functions, repeats):
    """Of each, in turns: what slows the machine for a while then falls on all points of a curve."""
    return list(interleaved(dict(enumerate(functions)), repeats).values())


def power(values, times):
    """The exponent of growth over the larger half of the values, where fixed costs no longer count."""
    half = len(values) // 2
    return float(np.polyfit(np.log(values[half:]), np.log(times[half:]), 1)[0])


def _draw(studies):
    """Writes the figure."""
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    for axis, (study, series) in zip(axes, studies.items()):
        for name, (at, times) in series.items():
            axis.loglog(at, times, marker="o", markersize=3, label=name)
        values = np.array(next(iter(series.values()))[0], float)
        growth = values * np.log(values) if study == "pixels" else values
        label = "N log N" if study == "pixels" else "linear"
        axis.loglog(values, growth / growth[-1] * max(one[1][-1] for one in series.values()), "k:", label=label)
        axis.set(xlabel=study, ylabel="ms")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.legend(fontsize=7)
    results.FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(results.FOLDER / "growth.png", dpi=110)


def main(repeats: Annotated[int, typer.Option(help="Runs of each point; their median counts.")] = 15):
    """Times all points and writes benchmarks/results/speed/growth.*."""
    studies = {"pixels": {}, "shifts (mae)": {}, "pairs of levels (mi)": {}}
    for similarity in registration.SIMILARITIES:
        times = milliseconds([registration_of_one_pair(size, _BOUND, similarity) for size in SIZES], repeats)
        studies["pixels"][similarity] = [[size**2 for size in SIZES], times]
    times = milliseconds([registration_of_one_pair(_SIZE, bound, "mae") for bound in BOUNDS], repeats)
    studies["shifts (mae)"]["mae"] = [[(2 * bound + 1) ** 2 for bound in BOUNDS], times]
    functions = []
    for levels in LEVELS:
        with mock.patch.object(information, "level_count", lambda grids, levels=levels: levels):
            functions.append(registration_of_one_pair(_SIZE, _BOUND, "mi"))
    times = milliseconds(functions, repeats)
    studies["pairs of levels (mi)"]["mi"] = [[levels**2 for levels in LEVELS], times]

    _draw(studies)
    lines = [
        f"Milliseconds of one pair; {_SIZE}x{_SIZE} and +-{_BOUND} px where these do not vary. The exponent is that of "
        "the larger half.",
        "",
    ]
    for study, series in studies.items():
        values = next(iter(series.values()))[0]
        lines += [f"| {study} | {' | '.join(map(str, values))} | exponent |", "|---" * (len(values) + 2) + "|"]
        for name, (at, times) in series.items():
            lines.append(f"| {name} | {' | '.join(f'{one:.1f}' for one in times)} | {power(at, times):.2f} |")
        lines.append("")
    results.write("growth", "python -m benchmarks.speed.growth", {"studies": studies}, lines, repeats=repeats)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    typer.run(main)
