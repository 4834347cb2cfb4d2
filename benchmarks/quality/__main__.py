"""`python -m benchmarks.quality quick|gate|full`: makes the missing runs, then the table and the figure."""

import inspect
import multiprocessing
import os
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

import tfalign
from benchmarks.quality import runs, tables
from benchmarks.quality.arms import ABLATIONS, ARMS, REFERENCES, VARIANTS
from benchmarks.quality.cells import CELLS
from benchmarks.quality.runs import Run
from benchmarks.quality.tasks import DATA_VARIABLE, TASKS

FORMS = {
    "quick": {"tasks": ["T1"], "cells": ["M0", "M1"], "arms": ["tfalign"], "seeds": 1},
    "gate": {"tasks": ["T0", "T1", "T3"], "cells": list(CELLS), "arms": list(ARMS), "seeds": 3},
    "full": {"tasks": list(TASKS), "cells": list(CELLS), "arms": list(ARMS), "seeds": 5},
}
_INITS = 20  # of M10


def wanted(task, cell, arm):
    """Whether an arm belongs to a cell of a task; rivals and ablations run on T1 alone."""
    if TASKS[task].rank not in cell.ranks or (cell.name.startswith("M10") and task != "T1"):
        return False
    if arm in REFERENCES:
        return True
    if cell.name == "M10o":
        return False
    if arm == "tfalign":
        return set(cell.loss) <= set(inspect.signature(tfalign.ShiftInvariantLoss).parameters)
    if arm == "bare":
        return cell.name != "M10"
    if arm == "reordered":
        return cell.name in {"M10", "M1b1", "M7", "M7b", "M7c"}
    if arm in {"twins", "joint"}:
        return cell.elastic is not None or cell.name == "M0"
    if arm in VARIANTS:
        return task == "T1" and cell.name == "M6b"
    if cell.elastic and arm not in {"tfalign", "bare"}:
        return False
    if arm == "soft":
        return cell.name in {"M0", "M1", "M7", "M7b", "M7c", "M8"}
    if arm in {"left-out", "all-moved"}:
        more = {"M0", "M1"} if TASKS[task].rank == 3 else {"M0"}
        return cell.name in {"M7c", "M8"} or (cell.name in more and arm == "all-moved")
    if arm == "anchors":
        return cell.name == "M3"
    if arm == "oracle-shift":
        return cell.name in {"M1", "M2", "M4", "M4r", "M5"}
    if arm == "per-image":
        return cell.name == "M11"
    if arm in ABLATIONS:
        return task == "T1" and cell.name in {"M0", "M1"}
    return task == "T1" and cell.name == "M1"


def expected(tasks, cells, arms, seeds):
    """The runs of a form, each once; what everything else is compared with comes first."""
    every = [
        Run(task, cell, arm, seed).canonical()
        for arm in (*REFERENCES, *arms)
        for cell in cells
        for seed in range(seeds if CELLS[cell].data_seed is None or seeds == 1 else _INITS)
        for task in tasks
        if wanted(task, CELLS[cell], arm)
    ]
    return list(dict.fromkeys(every))


def main(
    form: Annotated[str, typer.Argument(help="quick, gate or full.")] = "quick",
    task: Annotated[list[str] | None, typer.Option(help="Only these tasks.")] = None,
    cell: Annotated[list[str] | None, typer.Option(help="Only these cells.")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Only these arms, beside plain and oracle.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder with the real recordings of T2, T3b, T4b, T5b.")] = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time, one thread each; 1 gives a run all cores.")] = 1,
    dry: Annotated[bool, typer.Option(help="Only make the table from the records that are there.")] = False,
):
    """Measures how much of what misalignment costs is won back."""
    if data:
        os.environ[DATA_VARIABLE] = data
    chosen = dict(FORMS[form])
    if not os.environ.get(DATA_VARIABLE):
        chosen["tasks"] = [name for name in chosen["tasks"] if not TASKS[name].needs_data]
    for name, values in (("tasks", task), ("cells", cell), ("arms", arm), ("seeds", seeds)):
        if values:
            chosen[name] = values
    todo = [run for run in expected(**chosen) if runs.load(run) is None]
    console = Console()
    if todo and not dry:
        if jobs == 1:
            for run in track(todo, description=f"{len(todo)} runs", console=console):
                runs.do(run)
        else:
            # Not an executor: CPython's hangs when its processes are replaced (python/cpython#115634).
            context = multiprocessing.get_context("spawn")
            with context.Pool(jobs, initializer=runs.use_one_thread, maxtasksperchild=20) as pool:
                records = pool.imap_unordered(runs.do, todo)
                for record in track(records, total=len(todo), description=f"{len(todo)} runs", console=console):
                    console.print(*(record["key"][name] for name in Run._fields), highlight=False)
    rows = tables.summarise(**FORMS[form], inits=_INITS)
    tables.write(rows, form, f"python -m benchmarks.quality {form}")
    console.print(tables.markdown(rows), soft_wrap=True, highlight=False)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    typer.run(main)
