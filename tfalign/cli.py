"""The command line: `tfalign …`."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tfalign import _checks
from tfalign._version import __version__
from tfalign.jobs import demo as demo_job
from tfalign.jobs import export as export_job

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
_console = Console()


def _print_version(wanted: bool):
    if wanted:
        _console.print(f"tfalign {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show it.")
    ] = False,
):
    """Train dense-prediction networks on labels that do not lie exactly on their inputs."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo"),
    steps: Annotated[int, typer.Option(help="Training steps of each of the three networks.")] = 1000,
    max_shift: Annotated[int, typer.Option(help="The labels are moved by up to this many pixels on each axis.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the patches, the shifts and the networks.")] = 0,
):
    """Shows the main job on real tissue: plain loss, tfalign and perfect labels side by side, as a page to look at.

    An interrupted run goes on where it was when the command is given again.

    Example: tfalign demo --out runs/demo --seed 1
    """
    settings = demo_job.Settings(steps=steps, max_shift=max_shift, seed=seed)
    with _progress() as track:
        metrics = demo_job.run(out, settings, track=track)
    arms = metrics["arms"]
    _console.print(
        f"Held-out PSNR in place: plain {arms['plain']['psnr']:.2f} dB, tfalign {arms['tfalign']['psnr']:.2f} dB, "
        f"oracle {arms['oracle']['psnr']:.2f} dB; gap recovered {metrics['gap_recovered_in_place']:.3f}.",
        highlight=False,
        soft_wrap=True,
    )
    _console.print(f"Look at {out / 'report.html'}", highlight=False, soft_wrap=True)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A Keras file, `….keras`.")],
    directory: Annotated[Path, typer.Argument(help="The model's base path, as TF Serving polls it.")],
    version: Annotated[int | None, typer.Option(help="By default one more than the highest there.")] = None,
    tile: Annotated[int | None, typer.Option(help="Pixels a side: larger images are cut into tiles.")] = None,
    tile_overlap: Annotated[
        int | None, typer.Option(help="Pixels that two tiles share; by default enough that no seam shows.")
    ] = None,
    stride: Annotated[
        str, typer.Option(help="The network takes multiples of it: N, or ROW,COL; `none`: arrays go in as they come.")
    ] = "auto",
    offset: Annotated[
        str, typer.Option(help="Pixels by which predictions lie too far down/right: N, or ROW,COL.")
    ] = "0",
    image_range: Annotated[
        str, typer.Option(help="The values of the darkest and the brightest code of an image file: LOW,HIGH.")
    ] = "0,1",
    warmup: Annotated[
        list[str] | None,
        typer.Option(help="Size of a request that the server replays when it loads: ROW,COL, repeatable; or `none`."),
    ] = None,
    max_shift: Annotated[
        int | None, typer.Option(help="Also serve `register`, for shifts of up to these pixels.")
    ] = None,
    card: Annotated[
        Path | None, typer.Option(help="A JSON file of what the card says: what, data, metrics, licence, limits ...")
    ] = None,
):
    """Writes a Keras model as the next version folder of a model that TF Serving serves.

    Example: tfalign export runs/demo/tfalign.keras served/stain --tile 512 --max-shift 8 --card card.json
    """
    path = export_job.run(
        model,
        directory,
        version=version,
        tile=tile,
        tile_overlap=tile_overlap,
        stride=_STRIDES[stride] if stride in _STRIDES else _numbers("stride", stride, int),
        offset=_numbers("offset", offset, float),
        image_range=_numbers("image_range", image_range, float),
        warmup=_warmup(warmup or []),
        register=None if max_shift is None else {"max_shift": max_shift},
        card=card,
    )
    _console.print(f"Wrote {path}", highlight=False, soft_wrap=True)


_STRIDES = {"auto": "auto", "none": None}


def _warmup(sizes):
    if sizes == ["none"]:
        return ()
    return [_numbers("warmup", size, int) for size in sizes] or "auto"


def _numbers(option, text, kind):
    """A text of one number, or of several with commas between as a tuple."""
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        kinds = {int: "whole numbers", float: "numbers"}
        raise ValueError(
            _checks.message(f"`{option}` must be {kinds[kind]} with commas between.", {option: text})
        ) from error
    return values if len(values) > 1 else values[0]


@contextlib.contextmanager
def _progress():
    """Gives `track(description, total) -> advance(steps)`, one bar each."""
    columns = (
        TextColumn("{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console) as progress:

        def track(description, total):
            task = progress.add_task(description, total=total)
            return lambda steps: progress.advance(task, steps)

        yield track


def main():
    """Runs the command line; a mistake of the user is one line on stderr and exit code 2."""
    try:
        app()
    except (ValueError, TypeError, OSError) as error:
        print(f"tfalign: {error}", file=sys.stderr)
        sys.exit(2)
