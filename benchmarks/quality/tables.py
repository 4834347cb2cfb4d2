"""From records to tables and figures."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.quality import LOSS_VERSION, runs
from benchmarks.quality.arms import ABLATIONS, ARMS, REFERENCES, RIVALS
from benchmarks.quality.cells import CELLS
from benchmarks.quality.tasks import TASKS
from tfalign.jobs import evaluate, files

RESULTS = Path(__file__).parent.parent / "results" / "quality"
_TFALIGN, _GREY, _GREEN, _RED = "#1f6fb4", "#8a949e", "#4a9a52", "#c0504d"
_ARM_COLORS = {"tfalign": _TFALIGN, "no-pin": _RED, "running-mean": "#d9912b", "hard-start": "#7a5aa6"}


def summarise(tasks, cells, arms, seeds, inits):
    """One row for each task, cell and arm with records, beside plain and oracle: values per seed, gap recovered."""
    rows = []
    for task in tasks:
        for cell in cells:
            of_cell = range(seeds if CELLS[cell].data_seed is None else inits)
            reference = {name: _records(task, cell, name, of_cell) for name in REFERENCES}
            for arm in arms:
                if arm in REFERENCES:
                    continue
                row = _row(task, cell, arm, _records(task, cell, arm, of_cell), reference)
                if row:
                    rows.append(row)
    return rows


def _records(task, cell, arm, seeds):
    """The record of each seed that has one, of the newest version of the loss that has any."""
    for version in range(LOSS_VERSION, 0, -1):
        found = {seed: runs.load(runs.Run(task, cell, arm, seed).canonical(), version) for seed in seeds}
        if any(found.values()):
            return {seed: record for seed, record in found.items() if record}
    return {}


def _row(task, cell, arm, records, reference):
    common = [seed for seed in records if all(seed in reference[name] for name in REFERENCES)]
    if not common:
        return None

    def column(name, of=records):
        return [of[seed][name] for seed in common]

    plain, oracle = column("score", reference["plain"]), column("score", reference["oracle"])
    step_times = zip(column("milliseconds_per_step"), column("milliseconds_per_step", reference["plain"]))
    row = {
        "task": task,
        "cell": cell,
        "arm": arm,
        "seeds": common,
        "loss_version": records[common[0]]["key"].get("loss_version", LOSS_VERSION),
        "score": column("score"),
        "plain": plain,
        "oracle": oracle,
        "drift": [float(np.linalg.norm(drift)) for drift in column("drift")],
        "step_ratio": [mine / theirs for mine, theirs in step_times],
        "sharpness": column("sharpness"),
    }
    errors = [records[seed].get("shift_error") for seed in common]
    if all(errors):
        names = [name for name in errors[0] if name != "common" and all(name in error for error in errors)]
        row |= {name: [error[name] for error in errors] for name in names}
    fields = [records[seed].get("field_error") for seed in common]
    if all(fields):
        row["field_error"] = fields
    if cell in {"M0", "M0n"}:
        row["minus_plain"] = [mine - theirs for mine, theirs in zip(row["score"], plain)]
        return row
    gaps = np.subtract(oracle, plain)
    is_known = len(gaps) > 1 and not TASKS[task].new_scenes
    row["no_gap"] = bool(min(gaps) <= 0.0 or (is_known and np.median(gaps) < 5 * gaps.std(ddof=1)))
    for name, mine in (
        ("gap_recovered", "score"),
        ("gap_recovered_moved_back", "score_moved_back"),
        ("gap_recovered_at_a_third", "score_at_a_third"),
    ):
        values = zip(column(mine), column(mine, reference["plain"]), column(mine, reference["oracle"]))
        # A seed whose perfect labels gain nothing has no gap.
        row[name] = [evaluate.gap_recovered(*three) if three[1] != three[2] else np.nan for three in values]
    return row


def _verdict(row):
    """Whether the targets of the cell are met: "yes", "no", or "" where there is none."""
    if row["arm"] == "bare" and "gap_recovered" in row:
        return "yes" if row["no_gap"] or min(row["gap_recovered"]) >= -0.02 else "no"
    if row["arm"] == "anchors":
        return "no gap" if row["no_gap"] else "yes" if np.median(row["gap_recovered"]) >= 0.95 else "no"
    if row["arm"] not in {"tfalign", "bare", "twins", "reordered"} or (
        row["arm"] == "tfalign" and CELLS[row["cell"]].elastic
    ):
        return ""
    if "minus_plain" in row:
        difference = np.array(row["minus_plain"])
        error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
        return "yes" if np.median(difference) >= -max(TASKS[row["task"]].no_harm, error) else "no"
    if row["no_gap"]:
        return "no gap"
    cell = CELLS[row["cell"]]
    if row["cell"] == "M10":
        reached = np.sum(np.array(row["gap_recovered"]) >= cell.target[1])
        return f"{'yes' if reached >= 0.95 * len(row['seeds']) else 'no'} ({reached} of {len(row['seeds'])} reach 0.95)"
    median, worst = cell.target
    values = row["gap_recovered_moved_back" if cell.moved_back else "gap_recovered"]
    return "yes" if np.median(values) >= median and min(values) >= worst else "no"


def glance(rows, arm):
    """A small table of one arm: cells against tasks, median and worst gap recovered."""
    rows = {(row["cell"], row["task"]): row for row in rows if row["arm"] == arm}
    tasks = list(dict.fromkeys(task for _, task in rows))
    lines = [
        "| misalignment | target | " + " | ".join(f"{task} {TASKS[task].title}" for task in tasks) + " |",
        "|---" * (len(tasks) + 2) + "|",
    ]
    for cell in dict.fromkeys(cell for cell, _ in rows):
        entries = [_entry(rows.get((cell, task))) for task in tasks]
        lines.append(f"| {cell} {CELLS[cell].title} | {_target(CELLS[cell], arm)} | " + " | ".join(entries) + " |")
    return "\n".join(lines) + "\n"


def _target(cell, arm):
    if cell.name in {"M0", "M0n"}:
        return "no harm"
    if arm == "bare":
        return ">= -0.02 worst"
    worst = f" / {cell.target[1]:.2f}" if np.isfinite(cell.target[1]) else ""
    return f"{cell.target[0]:.2f}{worst}" + (" moved back" if cell.moved_back else "")


def _entry(row):
    if row is None:
        return ""
    name = "minus_plain" if "minus_plain" in row else "gap_recovered"
    if name == "gap_recovered" and CELLS[row["cell"]].moved_back and row["arm"] == "tfalign":
        name = "gap_recovered_moved_back"
    signed, unit = ("+.2f", f" {TASKS[row['task']].unit}") if name == "minus_plain" else (".3f", "")
    text, verdict = f"{_median_and_worst(row[name], signed)}{unit}", _verdict(row)
    if verdict == "no gap":
        text = f"{text} no gap" if _says_something(row) else "no gap"
    elif verdict.startswith("no"):
        text += " **missed**"
    return f"{text} ({len(row['seeds'])}{_older(row, ', version')})"


def _says_something(row):
    """A share of a gap that a seed does not have, or that points the other way, says nothing."""
    return min(np.subtract(row["oracle"], row["plain"])) > 0.0


def _median_and_worst(values, form):
    """Of the seeds that have a value."""
    known = [value for value in values if np.isfinite(value)]
    return f"{np.median(known):{form}} / {min(known):{form}}" if known else "none"


def _older(row, before):
    """Which version of the loss a row is of, if it is not today's."""
    return "" if row["loss_version"] == LOSS_VERSION else f"{before} {row['loss_version']}"


def markdown(rows):
    """The whole table."""
    lines = [
        "| task | misalignment | arm | seeds | plain | oracle | this arm | gap recovered: median / worst "
        "| at a third of the steps | moved back | drift (px): median / worst | sharpness | step time | target met |",
        "|---" * 14 + "|",
    ]
    for row in rows:
        unit = TASKS[row["task"]].unit
        if "gap_recovered" in row:
            recovered = _median_and_worst(row["gap_recovered"], ".3f")
            early = f"{np.nanmedian(row['gap_recovered_at_a_third']):.2f}"
            back = f"{np.nanmedian(row['gap_recovered_moved_back']):.3f}"
        else:
            recovered = f"{_median_and_worst(row['minus_plain'], '+.2f')} {unit} to plain"
            early = back = ""
        lines.append(
            f"| {row['task']} {TASKS[row['task']].title} | {row['cell']} {CELLS[row['cell']].title} "
            f"| {ARMS[row['arm']].title}{_older(row, ', loss of version')} | {len(row['seeds'])} "
            f"| {np.median(row['plain']):.2f} | {np.median(row['oracle']):.2f} "
            f"| {np.median(row['score']):.2f} {unit} | {recovered} | {early} | {back} "
            f"| {np.median(row['drift']):.2f} / {max(row['drift']):.2f} | {np.median(row['sharpness']):.2f} "
            f"| x{np.median(row['step_ratio']):.2f} | {_verdict(row)} |"
        )
    return "\n".join(lines) + "\n"


def wrong_labels(rows):
    """How well labels of another scene are told from the others."""
    lines = ["| task | arm | seeds | AUC of the confidence: median / worst | AUC of the score |", "|---" * 5 + "|"]
    for row in rows:
        if "wrong_scene_auc" in row:
            of_score = row.get("wrong_scene_auc_of_score")  # not in records of former runs
            lines.append(
                f"| {row['task']} {TASKS[row['task']].title} "
                f"| {ARMS[row['arm']].title}{_older(row, ', loss of version')} | {len(row['seeds'])} "
                f"| {_median_and_worst(row['wrong_scene_auc'], '.3f')} "
                f"| {_median_and_worst(of_score, '.3f') if of_score else ''} |"
            )
    return "\n".join(lines) + "\n"


def bent_labels(rows):
    """How well the fields of bent labels are found."""
    lines = [
        "| task | misalignment | arm | seeds | gap recovered: median | drift (px) | length of true displacements (px) "
        "| error of those found (px): mean | median | pixels that fold | step time |",
        "|---" * 11 + "|",
    ]
    for row in rows:
        if "field_error" in row:
            means = {name: np.median([one[name] for one in row["field_error"]]) for name in row["field_error"][0]}
            lines.append(
                f"| {row['task']} {TASKS[row['task']].title} | {row['cell']} {CELLS[row['cell']].title} "
                f"| {ARMS[row['arm']].title} | {len(row['seeds'])} | {np.median(row['gap_recovered']):.3f} "
                f"| {np.median(row['drift']):.2f} | {means['true_mean']:.2f} | {means['mean']:.2f} "
                f"| {means['median']:.2f} | {100 * means['folds']:.2f} % | x{np.median(row['step_ratio']):.2f} |"
            )
    return "\n".join(lines) + "\n"


def _bar(panel, height, values, color, label, **marker):
    values = np.clip(values, -1.0, 1.15)
    panel.plot([0, np.nanmedian(values)], [height] * 2, color=color, alpha=0.25, linewidth=7, solid_capstyle="butt")
    panel.plot(values, [height] * len(values), "o", color=color, markersize=5, label=label, linestyle="none", **marker)


def figure(rows):
    """Gap recovered of every cell and seed, one panel a task; beside them the rivals on M1."""
    rows = [row for row in rows if "gap_recovered" in row]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    cells = list(dict.fromkeys(row["cell"] for row in rows if row["arm"] in {"tfalign", "bare", "oracle-shift"}))[::-1]
    rivals = [row for row in rows if row["arm"] in RIVALS]
    plot = Figure(figsize=(2.6 + 3.1 * len(tasks) + 4.2 * bool(rivals), 1.9 + 0.33 * len(cells)), layout="constrained")
    widths = [3.0] * len(tasks) + [2.6] * bool(rivals)
    panels = plot.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0]
    for panel, task in zip(panels, tasks):
        for row in rows:
            if row["task"] != task or row["cell"] not in cells:
                continue
            height = cells.index(row["cell"])
            if not _says_something(row):
                panel.text(0.04, height, "no gap", color=_GREY, fontsize=8, va="center")
            elif row["arm"] == "tfalign":
                _bar(panel, height, row["gap_recovered"], _TFALIGN, "tfalign, bounds given")
            elif row["arm"] == "bare":
                values = np.clip(row["gap_recovered"], -1.0, 1.15)
                panel.plot(
                    values, [height - 0.25] * len(values), "o", mfc="none", color=_TFALIGN, markersize=4,
                    label="ShiftInvariantLoss(), no options",
                )  # fmt: skip
            elif row["arm"] == "oracle-shift":
                panel.plot(
                    [np.median(row["gap_recovered"])], [height], "|", color=_GREEN, markersize=13, markeredgewidth=2,
                    label="true moves: the ceiling",
                )  # fmt: skip
        labelled = panel is panels[0]
        panel.set_yticks(range(len(cells)), [CELLS[cell].title if labelled else "" for cell in cells], fontsize=8)
        panel.set_ylim(-0.7, len(cells) - 0.3)
        panel.set_title(f"{task}: {TASKS[task].title}", fontsize=10)
    if rivals:
        shown = [
            row for row in rows if row["task"] == "T1" and row["cell"] == "M1" and row["arm"] in (*RIVALS, "tfalign")
        ]
        for height, row in enumerate(shown[::-1]):
            color = _TFALIGN if row["arm"] == "tfalign" else _GREY
            _bar(panels[-1], height, row["gap_recovered"], color, None)
        titles = [ARMS[row["arm"]].title.removeprefix("rival: ") for row in shown[::-1]]
        panels[-1].set_yticks(range(len(shown)), titles, fontsize=8)
        panels[-1].set_title("rivals: T1, whole-pixel ±8", fontsize=10)
    for panel in panels:
        panel.axvline(0, color=_RED, linewidth=1)
        panel.axvline(1, color=_GREEN, linewidth=1)
        panel.set_xlim(-0.35, 1.2)
        panel.set_xlabel("gap recovered, in place", fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles))
    plot.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    plot.suptitle(
        "0 = plain loss on moved labels, 1 = perfect labels; one dot a seed, beyond 1.15 drawn there", fontsize=9
    )
    return plot


def drift_figure(task="T1", seeds=range(3)):
    """The measured offset of the network against the step, for the ways to hold it; None without records."""
    plot = Figure(figsize=(9, 3.2), layout="constrained")
    panels = plot.subplots(1, 2, sharey=True)
    for panel, cell in zip(panels, ("M0", "M1")):
        for arm in ("tfalign", *ABLATIONS):
            records = _records(task, cell, arm, seeds).values()
            for number, record in enumerate(records):
                offset = np.linalg.norm(record["curve"]["offset"], axis=-1)
                label = None if number else ARMS[arm].title
                panel.plot(record["curve"]["step"], offset, color=_ARM_COLORS[arm], label=label, linewidth=1.3)
        panel.set_title(f"{task} {TASKS[task].title}: {CELLS[cell].title}", fontsize=10)
        panel.set_xlabel("training step", fontsize=8)
        panel.set_yscale("symlog", linthresh=0.1)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("offset of the network from its input (px)", fontsize=8)
    if not panels[0].lines:
        return None
    plot.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return plot


def _head(task, settings):
    """The settings of one task in a line, and how far its oracle still climbs."""
    records = _records(task, "M0", "plain", range(5)).values()
    curves = [record["curve"] for record in records]
    late = [one["score"][-1] - np.interp(0.8 * settings["steps"], one["step"], one["score"]) for one in curves]
    return (
        f"{task}: U-Net {settings['filters']} x {settings['depth']} levels, {settings['patches']} patches of "
        f"{settings['patch']} px, batch {settings['batch']}, {settings['steps']} steps, base {settings['base']}, "
        f"Adam {settings['learning_rate']} with cosine decay; the oracle gains {np.median(late):.2f} "
        f"{settings['unit']} in the last fifth."
    )


def write(rows, name, command):
    """Writes `<name>.json`, `<name>.md`, `<name>.png` and `drift.png` to the results."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    settings = {
        task: {key: value for key, value in TASKS[task]._asdict().items() if not callable(value)}
        for task in sorted({row["task"] for row in rows})
    }
    versions = files.versions()
    files.write_json(
        RESULTS / f"{name}.json", {"command": command, "versions": versions, "settings": settings, "rows": rows}
    )
    parts = [
        f"`{command}`",
        "  \n".join(_head(task, settings[task]) for task in settings),
        ", ".join(f"{key} {value}" for key, value in versions.items()),
        "Gap recovered in place, median / worst seed (number of seeds; version of the loss, where it is not today's "
        f"{LOSS_VERSION}). tfalign with the bounds of the cell:",
        glance(rows, "tfalign").strip(),
    ]
    if any(row["arm"] == "bare" for row in rows):
        parts += ["`ShiftInvariantLoss(base)` with nothing else:", glance(rows, "bare").strip()]
    if any("wrong_scene_auc" in row for row in rows):
        title = "How well 20 % of labels of other scenes are told from the others, by each one's confidence or score"
        parts += [f"{title} (target 0.98):", wrong_labels(rows).strip()]
    if any("field_error" in row for row in rows):
        parts += ["Bent labels, laid back by a warp network:", bent_labels(rows).strip()]
    parts += ["Everything:", markdown(rows)]
    files.write_text(RESULTS / f"{name}.md", "\n\n".join(parts))
    if any("gap_recovered" in row for row in rows):
        figure(rows).savefig(RESULTS / f"{name}.png", dpi=110)
    drift = drift_figure()
    if drift:
        drift.savefig(RESULTS / "drift.png", dpi=110)
