"""`python -m benchmarks.speed`: a training step with the loss against the base loss; registration against its peers."""

import os
from typing import Annotated

import cv2
import keras
import typer

from benchmarks.speed import peers, results, steps

_SMALL = {"filters": 16, "depth": 3, "size": 64, "batch": 16}
_REFERENCE = {"filters": 32, "depth": 4, "size": 128, "batch": 16}
_PAIRS = ((32, (128, 128), 16), (8, (512, 512), 32), (64, (64, 64), 8), (4, (64, 64, 64), 6), (64, (4096,), 128))
_EXACT = 0.99  # share of the pairs that a peer must tell, so that its time counts


def _of(network):
    return "({filters}, {depth} levels, {size}x{size}, batch {batch})".format(**network)


def step_rows(repeats):
    """Steps of training, the loss alone, and the pipeline."""
    rows = []
    # More rounds than the other rows have: a few percent are to be told on a machine that others use too.
    for title, target, network, rounds in (
        ("small", 1.10, _SMALL, 4 * repeats),
        ("reference", 1.05, _REFERENCE, 2 * repeats),
    ):
        for jit_compile in (False, True):
            times = steps.training_step(**network, jit_compile=jit_compile, repeats=rounds)
            name = f"step of the {title} U-Net {_of(network)}, {rounds} rounds" + (", XLA" if jit_compile else "")
            rows.append({"row": name, "times": times, "ratio": times["tfalign"] / times["mae"], "target": target})
    for size in (64, 128):
        for jit_compile in (False, True):
            times = steps.loss_alone(size=size, jit_compile=jit_compile, repeats=repeats)
            name = f"the loss and its gradient alone, 16 patches of {size}x{size}x3"
            rows.append({"row": name + (", XLA" if jit_compile else ""), "times": times})
    every = {"searches": tuple(steps.SEARCHES), "bent": True}
    times = steps.training_step(**_SMALL, **every, jit_compile=False, repeats=repeats)
    name = "step of the small U-Net with rigid (7 deg) and affine search (7 deg, 15 %, 7 deg), and for bent labels"
    rows.append({"row": name, "times": times})
    times = steps.patches_from_cache(**_REFERENCE, repeats=repeats)
    name = f"a batch of the data pipeline against a step of the reference U-Net {_of(_REFERENCE)}"
    ratio, per_second = times["batch"] / times["step"], 1000 * 16 / times["batch"]
    rows.append({"row": name, "times": times, "ratio": ratio, "target": 1.0, "per second": per_second})
    return rows


def registration_row(title, times, exact):
    """tfalign's better time against the fastest peer that is right, and against skimage's masked correlation."""
    mine = min(value for name, value in times.items() if name.startswith("tfalign"))
    right = [value for name, value in times.items() if not name.startswith("tfalign") and exact[name] >= _EXACT]
    row = {"row": title, "times": times, "exact": exact}
    if right:
        row |= {"ratio": mine / min(right), "target": 1.0}
    if "skimage masked NCC" in times:
        row["of masked NCC"] = times["skimage masked NCC"] / mine
    return row


def registration_rows(repeats):
    """Whole-pixel registration beside its peers, each pair of sides the same for all."""
    rows = []
    for count, shape, bound in _PAIRS:
        pairs = peers.Pairs.made(count, shape, bound)
        size = "x".join(map(str, shape))
        for question, ways in (("sides of one size", peers.whole_sides), ("the inner part", peers.inner_parts)):
            title = f"register {count} pairs of {size}, +-{bound}, {question}"
            rows.append(registration_row(title, *peers.compared(*ways(pairs), pairs, repeats)))
    times, difference = peers.mutual_information(count=16, size=64, bound=8, repeats=repeats)
    title = "mutual information of 16 pairs of 64x64 at every shift, +-8, against a histogram for each"
    rows.append({"row": title, "times": times, "difference": difference})
    return rows


def markdown(rows):
    """The rows as small tables."""
    lines = []
    for row in rows:
        lines += [f"**{row['row']}**", ""]
        said = []
        if "ratio" in row:
            met = "met" if row["ratio"] <= row["target"] else "missed"
            against = "of the fastest exact peer " if "exact" in row else ""
            said.append(f"{against}ratio {row['ratio']:.2f} (target {row['target']:.2f}: {met})")
        if "of masked NCC" in row:
            met = "met" if row["of masked NCC"] >= 50 else "missed"
            said.append(f"{row['of masked NCC']:.0f} times faster than skimage's masked NCC (target 50: {met})")
        if "per second" in row:
            said.append(f"{row['per second']:.0f} patches per second")
        if "difference" in row:
            by_library, by_hand = (row["times"][name] / row["times"]["tfalign"] for name in peers.HISTOGRAMS)
            said.append(f"largest difference {row['difference']:.1e} nats (target 1e-5)")
            said.append(
                f"{by_library:.0f} times faster than np.histogram2d (target 50), {by_hand:.0f} than np.bincount"
            )
        if said:
            lines += ["; ".join(said), ""]
        lines += ["| | ms | all shifts exact |", "|---|---|---|"]
        for name, value in sorted(row["times"].items(), key=lambda item: item[1]):
            share = row.get("exact", {}).get(name)
            lines.append(f"| {name} | {value:.1f} | {'' if share is None else f'{100 * share:.0f} %'} |")
        lines.append("")
    return lines


def main(repeats: Annotated[int, typer.Option(help="Rounds of each comparison.")] = 15):
    """Times the rows and writes benchmarks/results/speed."""
    rows = step_rows(repeats) + registration_rows(repeats)
    settings = {"opencv": cv2.__version__, "threads": "all", "repeats": repeats}
    results.write("speed", "python -m benchmarks.speed", {"rows": rows}, markdown(rows), **settings)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    keras.utils.set_random_seed(0)
    typer.run(main)
