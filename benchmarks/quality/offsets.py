"""`python -m benchmarks.quality.offsets`: whether `offset_check` warns of biased labels, M3, and of no others."""

import warnings
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from benchmarks.quality import tables
from benchmarks.quality.cells import CELLS, patches
from benchmarks.quality.tasks import TASKS
from tfalign.data import offset_check
from tfalign.jobs import files

_TASKS = ("T0", "T1", "T3")
_CELLS = ("M0", "M1", "M2", "M3")
_COUNT = 256  # labels a check looks at


def checks(tasks, cells, seeds):
    """A row for each task and cell: what was found of the labels of each seed."""
    rows = []
    for task in tasks:
        for cell in cells:
            found = [_checked(TASKS[task], CELLS[cell], seed) for seed in range(seeds)]
            rows.append(
                {
                    "task": task,
                    "cell": cell,
                    "offset": [one.offset.tolist() for one in found],
                    "standard_error": [one.standard_error.tolist() for one in found],
                    "told": [one.labels / one.examined for one in found],
                    "warned": [one.warning is not None for one in found],
                }
            )
    return rows


def _checked(task, cell, seed):
    data = patches(task, cell, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # counted, not shown
        return offset_check((data.inputs[:_COUNT], data.labels[:_COUNT]), max_shift=cell.margin)


def markdown(rows):
    """The rows as a table."""
    lines = [
        "| task | misalignment | mean offset found: lowest .. highest of axes and seeds (px) | largest standard error "
        "| labels told | warned | right |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        offset, warned = np.array(row["offset"]), row["warned"]
        wanted = row["cell"] == "M3"
        lines.append(
            f"| {row['task']} {TASKS[row['task']].title} | {row['cell']} {CELLS[row['cell']].title} "
            f"| {offset.min():+.2f} .. {offset.max():+.2f} | {np.max(row['standard_error']):.2f} "
            f"| {100 * np.mean(row['told']):.0f} % | {sum(warned)} of {len(warned)} "
            f"| {'yes' if all(one == wanted for one in warned) else 'no'} |"
        )
    return "\n".join(lines) + "\n"


def main(
    task: Annotated[list[str] | None, typer.Option(help="Only these tasks.")] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 3,
):
    """Registers labels to inputs in each cell and writes benchmarks/results/quality/offsets."""
    rows, command = checks(task or _TASKS, _CELLS, seeds), "python -m benchmarks.quality.offsets"
    versions = files.versions()
    files.write_json(tables.RESULTS / "offsets.json", {"command": command, "versions": versions, "rows": rows})
    said = ", ".join(f"{name} {value}" for name, value in versions.items())
    files.write_text(
        tables.RESULTS / "offsets.md", f"`{command}`, {_COUNT} labels a check\n\n{said}\n\n{markdown(rows)}"
    )
    Console().print(markdown(rows), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
