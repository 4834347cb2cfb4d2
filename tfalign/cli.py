"""The command line: `tfalign …`."""

from pathlib import Path
from typing import Annotated

import typer

from tfalign import _result_commands, _terminal, _train_commands
from tfalign._terminal import console as _console
from tfalign._terminal import numbers as _numbers
from tfalign._terminal import progress as _progress
from tfalign._version import __version__
from tfalign.jobs import demo as demo_job
from tfalign.jobs import export as export_job

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _print_version(wanted: bool):
    if wanted:
        _console.print(f"tfalign {__version__}")
        raise typer.Exit


@app.callback(epilog=_terminal.EXIT_CODES)
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show it.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came up; may stand anywhere.")] = False,
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


app.command()(_train_commands.train)
app.command()(_train_commands.evaluate)
app.command()(_train_commands.realign)
app.command()(_result_commands.predict)
app.command()(_result_commands.analyse)
app.command()(_result_commands.report)


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


def main():
    """Runs the command line; an error is one line on stderr and an exit code, see `tfalign --help`."""
    _terminal.run(app)
