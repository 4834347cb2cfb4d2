"""`python -m benchmarks.registration`: registration alone against known truth; tables and a figure."""

import os
from pathlib import Path
from typing import Annotated

import matplotlib.figure
import typer
from rich.console import Console

from benchmarks.registration import rivals, studies
from tfalign.jobs import files

RESULTS = Path(__file__).parent.parent / "results" / "registration"
_BOUND_TARGET, _FAILURES_TARGET, _HONESTY_TARGET, _REMAPPED_TARGET = 1.2, 0.005, 0.1, 0.99
_COVERED = (0.88, 0.92)  # by sets of 90 %, over all kinds that the confidence is judged by


def _table(head, rows):
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in (head, ["---"] * len(head), *rows))


def _mark(value, form, is_met):
    return f"{value:{form}}" + ("" if is_met else " **missed**")


def exactness_table(rows):
    """Error by measure, a column for each rank and picture."""
    columns = list(dict.fromkeys((row["rank"], row["cut"]) for row in rows))
    lines = []
    for measure in dict.fromkeys(row["measure"] for row in rows):
        mine = {(row["rank"], row["cut"]): row for row in rows if row["measure"] == measure}
        target = mine[columns[0]]["target"]
        cells = [_mark(mine[one]["rms"], ".3f", target is None or mine[one]["rms"] <= target) for one in columns]
        lines.append([measure, "" if target is None else target, *cells])
    return _table(["measure", "target", *(f"{rank}-D, {cut} c/px" for rank, cut in columns)], lines)


def noise_table(rows):
    """Spread over the bound, and failures, by measure, a column for each ratio."""
    ratios = list(dict.fromkeys(row["snr_db"] for row in rows))
    lines = []
    for measure in dict.fromkeys(row["measure"] for row in rows):
        mine = {row["snr_db"]: row for row in rows if row["measure"] == measure}
        judged = measure in ("ncc", "mse")
        cells = []
        for ratio in ratios:
            row = mine[ratio]
            met = not judged or (row["times_bound"] <= _BOUND_TARGET and row["failures"] <= _FAILURES_TARGET)
            spread = "" if row["times_bound"] is None else f"{row['times_bound']:.2f}"
            cells.append(f"{spread} ({100 * row['failures']:.1f} %)" + ("" if met else " **missed**"))
        lines.append([measure, *cells])
    return _table(["measure", *(f"{ratio} dB" for ratio in ratios)], lines)


def remapped_table(rows):
    """M9."""
    kinds = list(dict.fromkeys(row["remap"] for row in rows))
    lines = []
    for measure in dict.fromkeys(row["measure"] for row in rows):
        mine = {row["remap"]: row["within_one_pixel"] for row in rows if row["measure"] == measure}
        judged = measure == "mi"
        lines.append(
            [measure, *(_mark(100 * mine[k], ".1f", not judged or mine[k] >= _REMAPPED_TARGET) for k in kinds)]
        )
    return _table(["measure", *kinds], lines)


def honesty_table(rows):
    """Calibration by measure; the kinds of pairs of the first one."""
    lines = [
        [
            row["measure"],
            _mark(row["error"], ".3f", row["error"] <= _HONESTY_TARGET),
            *(f"{row['kinds'][kind]['confidence']:.2f} / {row['kinds'][kind]['right']:.2f}" for kind in row["kinds"]),
        ]
        for row in rows
    ]
    return _table(["measure", "calibration error", *rows[0]["kinds"]], lines)


def sets_table(rows):
    """Coverage of the 90 % sets over what is judged, then it and flatness of each kind."""
    kinds = list(rows[0]["kinds"])
    lines = [
        [
            row["measure"],
            _mark(100 * row["covered"], ".1f", _COVERED[0] <= row["covered"] <= _COVERED[1]) + " %",
            *(f"{100 * row['kinds'][k]['covered']:.0f} %, {row['kinds'][k]['flatness']:.2f}" for k in kinds),
        ]
        for row in rows
    ]
    return _table(["measure", "judged", *kinds], lines)


def rivals_table(rows):
    """Success, error and time of each program, a column for each search."""
    searches = list(dict.fromkeys(row["search"] for row in rows))
    lines = []
    for program in dict.fromkeys(row["program"] for row in rows):
        mine = {row["search"]: row for row in rows if row["program"] == program}
        cells = []
        for row in (mine[search] for search in searches):
            error = "" if row["median"] is None else f", {row['median']:.3f} px"
            cells.append(f"{100 * row['success']:.0f} %{error}, {1000 * row['seconds']:.0f} ms")
        lines.append([program, *cells])
    return _table(["program", *searches], lines)


def geometry_table(rows):
    """Errors by what is searched, a column for each measure."""
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    lines = []
    for search in dict.fromkeys(row["search"] for row in rows):
        mine = {row["measure"]: row for row in rows if row["search"] == search}
        cells = []
        for measure in measures:
            row = mine[measure]
            turn, scale = row["rotation_largest"], row["scale_largest"]
            target = studies.ROTATION_TARGETS.get(measure, 0.3)
            text = f"{row['rotation_median']:.3f} ({turn:.3f}) deg, {row['scale_median']:.2f} ({scale:.2f}) %"
            cells.append(text + ("" if turn <= target and scale <= studies.SCALE_TARGET else " **missed**"))
        lines.append([search, *cells])
    return _table(["searched", *measures], lines)


def kept_table(rows):
    """What is left of a wave, by interpolation."""
    names = list(dict.fromkeys(row["interpolation"] for row in rows))
    lines = [[name, *(f"{row['kept']:.3f}" for row in rows if row["interpolation"] == name)] for name in names]
    return _table(["interpolation", *(f"{wave} c/px" for wave in studies.WAVES)], lines)


def figure(results):
    """Calibration, the bound, and exactness, side by side."""
    drawn = matplotlib.figure.Figure(figsize=(12, 3.8), layout="constrained")
    bound, honest, exact = drawn.subplots(1, 3)
    for measure in ("ncc", "mse", "mae", "mi"):
        mine = [row for row in results["noise"] if row["measure"] == measure]
        bound.plot([row["snr_db"] for row in mine], [row["times_bound"] for row in mine], "o-", label=measure)
        curve = next(row["curve"] for row in results["honesty"] if row["measure"] == measure)
        honest.plot(*zip(*[point[:2] for point in curve]), "o-", label=measure)
        mine = [row for row in results["exactness"] if row["measure"] == measure and row["rank"] == 2]
        exact.plot([row["cut"] for row in mine], [row["rms"] for row in mine], "o-", label=measure)
    bound.axhline(1.2, color="0.6", linestyle=":")
    bound.set(xlabel="signal to noise (dB)", ylabel="spread / Cramér-Rao bound", ylim=(0, None))
    honest.plot([0, 1], [0, 1], color="0.6", linestyle=":")
    honest.set(xlabel="confidence", ylabel="share within 1 px")
    exact.set(xlabel="width of the spectrum (cycles / px)", ylabel="error without noise (px)", yscale="log")
    for panel in (bound, honest, exact):
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False)
    return drawn


def main(pairs: Annotated[int, typer.Option(help="Pairs of each kind.")] = 200):
    """Measures exactness, noise, remapped labels, confidence, geometry; writes benchmarks/results/registration."""
    results = {
        "exactness": studies.exactness(max(pairs // 4, 1)),
        "noise": studies.noise(pairs),
        "remapped": studies.remapped(pairs),
        "honesty": studies.honesty(pairs),
        "geometry": studies.geometry(max(pairs // 10, 1)),
        "kept": studies.kept(),
        "rivals": rivals.rivals(max(pairs // 10, 1)),
    }
    command, versions = f"python -m benchmarks.registration --pairs {pairs}", files.versions()
    RESULTS.mkdir(parents=True, exist_ok=True)
    files.write_json(RESULTS / "registration.json", {"command": command, "versions": versions, **results})
    parts = [
        f"`{command}`",
        ", ".join(f"{key} {value}" for key, value in versions.items()),
        "**Exactness.** Root mean square error per axis of sub-pixel shifts, pixels, without noise. Pictures with a "
        "Gaussian spectrum of the width named (cycles per pixel); 256 samples, 64x64, 24x24x24; labels with a margin. "
        "The masked ones leave out 30 % of the label's pixels.",
        exactness_table(results["exactness"]),
        "**Noise.** White noise on the label, 64x64, 0.1 c/px: spread of the shifts over the Cramér-Rao bound, and the "
        f"share more than 2 px off. Targets of ncc and mse: {_BOUND_TARGET}, {100 * _FAILURES_TARGET} %.",
        noise_table(results["noise"]),
        "**Remapped labels (M9).** Shifts within 1 px, %, when the label's intensities mean something else; target of "
        f"mi: {100 * _REMAPPED_TARGET:.0f} %.",
        remapped_table(results["remapped"]),
        "**Confidence.** Expected calibration error over -10 .. 30 dB, blank and periodic patches "
        f"(target {_HONESTY_TARGET}); then mean confidence / share within 1 px for each kind of pairs.",
        honesty_table(results["honesty"]),
        "**Posterior.** How often the set of shifts with 90 % of the posterior holds the true one (target over -10 .. "
        f"30 dB and periodic patches: {100 * _COVERED[0]:.0f}-{100 * _COVERED[1]:.0f} %; blank patches have no true "
        "shift), and the posterior's entropy over that of a flat one.",
        sets_table(results["honesty"]),
        "**Geometry.** Rotation, scale and shear up to the bounds and shifts of up to 4 px, without noise, 64x64, "
        "0.1 c/px: median (largest) error of the rotation and of a factor. Targets of the largest: 0.3 degrees, 0.5 "
        f"for mi of remapped labels, {studies.SCALE_TARGET} %.",
        geometry_table(results["geometry"]),
        "**Rivals.** The same pairs, 64x64 with a margin of 24 px, shifts of up to 4 px, 10 dB: share with an error "
        "under 1 px at every corner, their median error there, and the time of a pair (of tfalign in one batch, "
        "compiled).",
        rivals_table(results["rivals"]),
        "**Interpolation.** The share of a wave's amplitude that is left when it is read half a pixel further.",
        kept_table(results["kept"]),
    ]
    text = "\n\n".join(parts) + "\n"
    files.write_text(RESULTS / "registration.md", text)
    figure(results).savefig(RESULTS / "registration.png", dpi=110)
    Console().print(text, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    typer.run(main)
