"""From records to one table and one figure."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.quality import runs
from benchmarks.quality.arms import ARMS
from benchmarks.quality.cells import CELLS
from benchmarks.quality.tasks import TASKS
from tfalign.jobs import evaluate, files

RESULTS = Path(__file__).parent.parent / "results" / "quality"
_REFERENCES = ("plain", "oracle")


def summarise(tasks, cells, arms, seeds):
    """One row for each task, cell and arm with records, beside plain and oracle: values per seed, gap recovered."""
    rows = []
    for task in tasks:
        spread = _seed_deviation(task, seeds)
        for cell in cells:
            reference = {name: _records(task, cell, name, seeds) for name in _REFERENCES}
            for arm in arms:
                if arm in _REFERENCES:
                    continue
                row = _row(task, cell, arm, _records(task, cell, arm, seeds), reference, spread)
                if row:
                    rows.append(row)
    return rows


def _records(task, cell, arm, seeds):
    found = {seed: runs.load(runs.Run(task, cell, arm, seed).canonical()) for seed in seeds}
    return {seed: record for seed, record in found.items() if record}


def _seed_deviation(task, seeds):
    """Standard deviation of the oracle over seeds, or None."""
    scores = [record["score"] for record in _records(task, "M0", "plain", seeds).values()]
    return float(np.std(scores, ddof=1)) if len(scores) > 1 else None


def _row(task, cell, arm, records, reference, spread):
    common = [seed for seed in records if all(seed in reference[name] for name in _REFERENCES)]
    if not common:
        return None

    def column(name, of=records):
        return [of[seed][name] for seed in common]

    plain, oracle = column("score", reference["plain"]), column("score", reference["oracle"])
    row = {
        "task": task,
        "cell": cell,
        "arm": arm,
        "seeds": common,
        "score": column("score"),
        "plain": plain,
        "oracle": oracle,
        "drift": [
            float(np.hypot(*record)) if len(record) == 2 else float(np.linalg.norm(record))
            for record in column("drift")
        ],
        "step_ratio": [
            mine / theirs
            for mine, theirs in zip(
                column("milliseconds_per_step"), column("milliseconds_per_step", reference["plain"])
            )
        ],
        "sharpness": column("sharpness"),
    }
    errors = [records[seed].get("shift_error") for seed in common]
    if all(errors):
        row["shift_rms_in_place"] = [error["rms_in_place"] for error in errors]
    if cell.startswith("M0"):
        row["minus_plain"] = [mine - theirs for mine, theirs in zip(row["score"], plain)]
        return row
    gap = float(np.median(oracle) - np.median(plain))
    row["no_gap"] = spread is not None and gap < 5 * spread
    for name, mine in (
        ("gap_recovered", "score"),
        ("gap_recovered_moved_back", "score_moved_back"),
        ("gap_recovered_at_a_third", "score_at_a_third"),
    ):
        row[name] = [
            evaluate.gap_recovered(*values)
            for values in zip(column(mine), column(mine, reference["plain"]), column(mine, reference["oracle"]))
        ]
    return row


def _verdict(row):
    """Whether the targets of the cell are met: "yes", "no", or "" where there is none."""
    if row["arm"] != "tfalign":
        return ""
    if row["cell"].startswith("M0"):
        difference = np.array(row["minus_plain"])
        error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
        return "yes" if np.median(difference) >= -max(TASKS[row["task"]].no_harm, error) else "no"
    if row["no_gap"]:
        return "no gap"
    median, worst = CELLS[row["cell"]].target
    name = "gap_recovered_moved_back" if row["cell"] == "M1r" else "gap_recovered"
    return "yes" if np.median(row[name]) >= median and min(row[name]) >= worst else "no"


def markdown(rows):
    """The table."""
    lines = [
        "| task | misalignment | arm | plain | oracle | this arm | gap recovered: median / worst "
        "| at a third of the steps | moved back | drift (px) | step time | target met |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        unit = TASKS[row["task"]].unit
        if "gap_recovered" in row:
            recovered = f"{np.median(row['gap_recovered']):.3f} / {min(row['gap_recovered']):.3f}"
            early = f"{np.median(row['gap_recovered_at_a_third']):.2f}"
            back = f"{np.median(row['gap_recovered_moved_back']):.3f}"
        else:
            recovered = f"{np.median(row['minus_plain']):+.2f} / {min(row['minus_plain']):+.2f} {unit} to plain"
            early = back = ""
        lines.append(
            f"| {row['task']} {TASKS[row['task']].title} | {row['cell']} {CELLS[row['cell']].title} "
            f"| {ARMS[row['arm']].title} | {np.median(row['plain']):.2f} | {np.median(row['oracle']):.2f} "
            f"| {np.median(row['score']):.2f} {unit} | {recovered} | {early} | {back} "
            f"| {np.median(row['drift']):.2f} (worst {max(row['drift']):.2f}) | x{np.median(row['step_ratio']):.2f} "
            f"| {_verdict(row)} |"
        )
    return "\n".join(lines) + "\n"


def figure(rows):
    """Gap recovered of every cell and seed, one panel a task; rivals in grey."""
    rows = [row for row in rows if "gap_recovered" in row]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    most = max(sum(row["task"] == task for row in rows) for task in tasks)
    plot = Figure(figsize=(3.2 + 4.6 * len(tasks), 1.6 + 0.34 * most), layout="constrained")
    for panel, task in zip(np.atleast_1d(plot.subplots(1, len(tasks), sharex=True)), tasks):
        mine = [row for row in rows if row["task"] == task][::-1]
        for height, row in enumerate(mine):
            values = np.clip(row["gap_recovered"], -1.0, 1.15)
            color = "#1f6fb4" if ARMS[row["arm"]].uses_tfalign else "#8a949e"
            panel.plot(
                [0, np.median(values)], [height, height], color=color, alpha=0.25, linewidth=7, solid_capstyle="butt"
            )
            panel.plot(values, [height] * len(values), "o", color=color, markersize=5)
        panel.set_yticks(
            range(len(mine)), [f"{CELLS[row['cell']].title}: {ARMS[row['arm']].title}" for row in mine], fontsize=8
        )
        panel.axvline(0, color="#c0504d", linewidth=1)
        panel.axvline(1, color="#4a9a52", linewidth=1)
        panel.set_xlim(-1.05, 1.2)
        panel.set_title(f"{task}: {TASKS[task].title}", fontsize=10)
        panel.set_xlabel("gap recovered, in place\n(0 = plain loss, 1 = perfect labels; dots: seeds)", fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    return plot


def _head(task, settings):
    """The settings of one task in a line."""
    return (
        f"{task}: U-Net {settings['filters']} x {settings['depth']} levels, {settings['patches']} patches of "
        f"{settings['patch']} px, batch {settings['batch']}, {settings['steps']} steps, base {settings['base']}, "
        f"Adam {settings['learning_rate']} with cosine decay."
    )


def write(rows, name, command):
    """Writes `<name>.json`, `<name>.md` and `<name>.png` to the results."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    used = {row["task"] for row in rows}
    settings = {
        task: {key: value for key, value in TASKS[task]._asdict().items() if not callable(value)}
        for task in sorted(used)
    }
    files.write_json(
        RESULTS / f"{name}.json", {"command": command, "versions": files.versions(), "settings": settings, "rows": rows}
    )
    heads = [_head(task, settings[task]) for task in sorted(used)]
    versions = ", ".join(f"{key} {value}" for key, value in files.versions().items())
    files.write_text(
        RESULTS / f"{name}.md", f"`{command}`\n\n" + "  \n".join(heads) + f"\n{versions}\n\n" + markdown(rows)
    )
    if any("gap_recovered" in row for row in rows):
        figure(rows).savefig(RESULTS / f"{name}.png", dpi=110)
