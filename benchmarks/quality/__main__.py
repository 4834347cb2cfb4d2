"""`python -m benchmarks.quality quick|gate|full`: makes the missing runs, then the table and the figure."""

import concurrent.futures
import multiprocessing
import os
import shlex
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from benchmarks.quality import runs, tables
from benchmarks.quality.arms import ARMS
from benchmarks.quality.cells import CELLS
from benchmarks.quality.tasks import TASKS

FORMS = {
    "quick": {"tasks": ["T1"], "cells": ["M0", "M1"], "arms": ["plain", "oracle", "tfalign"], "seeds": 1},
    "gate": {"tasks": ["T0", "T1", "T3"], "cells": list(CELLS), "arms": list(ARMS), "seeds": 3},
    "full": {"tasks": list(TASKS), "cells": list(CELLS), "arms": list(ARMS), "seeds": 5},
}
_RIVAL_CELLS = {"M1"}
_EVERYWHERE = {"plain", "oracle", "tfalign", "bare"}


def wanted(tasks, cells, arms, seeds):
    """The runs of a form: rivals and ablations on T1 and M0/M1 alone."""
    for seed in range(seeds):
        for task in tasks:
            for cell in cells:
                for arm in arms:
                    everywhere = arm in _EVERYWHERE or (arm == "oracle-shift" and cell in {"M1", "M1n"})
                    rival = task == "T1" and cell in _RIVAL_CELLS
                    ablation = task == "T1" and cell == "M0" and arm in {"no-pin", "hard-start"}
                    if everywhere or rival or ablation:
                        yield tables.canonical(runs.Run(task, cell, arm, seed))


def main(
    form: Annotated[str, typer.Argument(help="quick, gate or full.")] = "quick",
    task: Annotated[list[str] | None, typer.Option(help="Only these tasks.")] = None,
    cell: Annotated[list[str] | None, typer.Option(help="Only these cells.")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Only these arms, beside plain and oracle.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds.")] = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time, one thread each; 1 gives a run all cores.")] = 1,
    dry: Annotated[bool, typer.Option(help="Only make the table from the records that are there.")] = False,
):
    """Measures how much of what misalignment costs is won back."""
    chosen = dict(FORMS[form])
    for name, values in (("tasks", task), ("cells", cell), ("seeds", seeds)):
        if values:
            chosen[name] = values
    if arm:
        chosen["arms"] = ["plain", "oracle", *arm]
    todo = [run for run in dict.fromkeys(wanted(**chosen)) if runs.load(run) is None]
    console = Console()
    if todo and not dry:
        if jobs == 1:
            for run in track(todo, description=f"{len(todo)} runs", console=console):
                runs.do(run)
        else:
            context = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
                futures = {pool.submit(runs.do, run, 1): run for run in todo}
                finished = concurrent.futures.as_completed(futures)
                for future in track(finished, total=len(todo), description=f"{len(todo)} runs", console=console):
                    future.result()
                    console.print(*futures[future])
    rows = tables.summarise(chosen["tasks"], chosen["cells"], chosen["arms"], range(chosen["seeds"]))
    given = [word for word in sys.argv[1:] if word != "--dry"]
    tables.write(rows, form, f"python -m benchmarks.quality {shlex.join(given)}")
    console.print(tables.markdown(rows), soft_wrap=True, highlight=False)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    typer.run(main)
