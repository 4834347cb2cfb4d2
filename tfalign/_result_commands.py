"""The commands that use what was trained: `predict`, `analyse`, `report`."""

import functools
from pathlib import Path
from typing import Annotated

import typer

from tfalign._terminal import numbers, progress, say
from tfalign.jobs import analysis as analysis_job
from tfalign.jobs import beam as beam_jobs
from tfalign.jobs import predict as predict_job
from tfalign.jobs import run_report as report_job


def predict(
    inputs: Annotated[Path, typer.Option(help="A folder, a file or a listing of inputs.")],
    out: Annotated[Path, typer.Option(help="The folder of predictions.")],
    run: Annotated[Path | None, typer.Option(help="The run folder of `tfalign train`.")] = None,
    model: Annotated[Path | None, typer.Option(help="Instead of a run: a Keras file, `….keras`.")] = None,
    form: Annotated[
        str,
        typer.Option("--format", help="tif and npy: 32-bit values; png: 8 bit, gray, RGB or classes; auto."),
    ] = "auto",
    classes: Annotated[
        str, typer.Option(help="yes: write the number of the likeliest class; no: all values; auto: as trained.")
    ] = "auto",
    value_range: Annotated[str, typer.Option(help="The predictions that are black and white in a PNG: LOW,HIGH.")] = (
        "0,1"
    ),
    image_range: Annotated[
        str,
        typer.Option(help="With --model: the values of the darkest and the brightest code of an input: LOW,HIGH."),
    ] = "0,1",
    tile: Annotated[int | None, typer.Option(help="Pixels a side of what the network is given at once.")] = None,
    tile_overlap: Annotated[
        int | None, typer.Option(help="Pixels that two tiles share; by default enough that no seam shows.")
    ] = None,
    max_pixels: Annotated[
        int, typer.Option(help="Larger inputs (pixels times channels) are left out.")
    ] = predict_job.MAX_PIXELS,
    strict: Annotated[bool, typer.Option(help="Stop at the first file that cannot be used.")] = False,
    beam: Annotated[
        str | None, typer.Option(help="Do it in a pipeline of Apache Beam with these options: '--runner=DirectRunner'.")
    ] = None,
):
    """Predicts files of any size by a trained network, each under its own name.

    An interrupted call goes on where it was when it is given again. Files that cannot be used are named and left out.

    Example: tfalign predict --run runs/mine --inputs images --out predictions --format png
    """
    job = predict_job.predict if beam is None else functools.partial(beam_jobs.predict, options=beam)
    with progress() as track:
        result = job(
            inputs,
            out,
            run=run,
            model=model,
            form=form,
            classes=classes,
            value_range=numbers("value_range", value_range, float),
            image_range=numbers("image_range", image_range, float),
            tile=tile,
            tile_overlap=tile_overlap,
            max_pixels=max_pixels,
            strict=strict,
            track=track,
        )
    say(f"{len(result.rows)} predictions in {out}")
    _tell_skipped(result.skipped, out)


def analyse(
    inputs: Annotated[Path, typer.Option(help="Stains or class maps: a folder, a file or a listing.")],
    out: Annotated[Path, typer.Option(help="The folder of tables and pictures.")],
    kind: Annotated[
        str, typer.Option(help="stain, classes, or auto: integers of one channel are class maps.")
    ] = "auto",
    signal: Annotated[
        str,
        typer.Option(help="dab: brown beside blue nuclei; dark: absorbing; bright: fluorescence; auto: by channels."),
    ] = "auto",
    marker: Annotated[int | None, typer.Option(help="Channel of the marker, from 0.")] = None,
    nuclei: Annotated[int | None, typer.Option(help="Channel that shows all nuclei.")] = None,
    location: Annotated[
        str, typer.Option(help="Where the marker is: in nuclei, or around them in cells (cytoplasm, membranes).")
    ] = "nuclei",
    threshold: Annotated[
        float | None, typer.Option(help="The amount of marker that is positive; by default Otsu's of all files.")
    ] = None,
    nuclei_threshold: Annotated[float | None, typer.Option(help="Likewise of what shows nuclei.")] = None,
    min_area: Annotated[float, typer.Option(help="Pixels; smaller objects are not counted.")] = 30,
    field: Annotated[int | None, typer.Option(help="Pixels a side of the fields to divide images into.")] = None,
    pixel_size: Annotated[float, typer.Option(help="Length of a pixel's side; areas are in its square.")] = 1.0,
    max_pixels: Annotated[int, typer.Option(help="Larger inputs are left out.")] = predict_job.MAX_PIXELS,
    strict: Annotated[bool, typer.Option(help="Stop at the first file that cannot be used.")] = False,
):
    """Measures stains (positive area, optical density, labelling index) or class maps (area and count of each class).

    Example: tfalign analyse --inputs predictions --out analysis --field 500 --pixel-size 0.25
    """
    with progress() as track:
        result = analysis_job.analyse(
            inputs,
            out,
            kind=kind,
            signal=signal,
            marker=marker,
            nuclei=nuclei,
            location=location,
            threshold=threshold,
            nuclei_threshold=nuclei_threshold,
            min_area=min_area,
            field=field,
            pixel_size=pixel_size,
            max_pixels=max_pixels,
            strict=strict,
            track=track,
        )
    say(f"{analysis_job.in_words(result)}; see {out}")
    _tell_skipped(result.skipped, out)


def report(
    run: Annotated[Path, typer.Option(help="The run folder of `tfalign train`, also of one that is going on.")],
):
    """Writes the page of a run anew: what was wrong with the labels, and which to look at.

    Example: tfalign report --run runs/mine
    """
    with progress() as track:
        path = report_job.write(run, track=track)
    say(f"Look at {path}")


def _tell_skipped(skipped, out):
    """Names the first files that were left out."""
    if not skipped:
        return
    named = "1 file was" if len(skipped) == 1 else f"{len(skipped)} files were"
    lines = [f"{named} left out, see {out / 'skipped.csv'}:"]
    lines += [f"  {path}: {reason}" for path, reason in skipped[:5]]
    lines += [f"  … and {len(skipped) - 5} more"] if len(skipped) > 5 else []
    say("\n".join(lines))
