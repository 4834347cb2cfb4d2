"""The commands `train`, `evaluate` and `realign`."""

import functools
from pathlib import Path
from typing import Annotated

import typer

from tfalign import _checks
from tfalign._terminal import numbers, progress, say
from tfalign.jobs import beam as beam_jobs
from tfalign.jobs import config as configs
from tfalign.jobs import evaluate_run
from tfalign.jobs import realign as realign_job
from tfalign.jobs import train as train_job

_DATA, _NETWORK, _LOSS, _TRAINING = "Data", "Network", "Loss", "Training"
_MODEL = "module:function of a run that was trained with one; it runs your code."


def train(
    out: Annotated[Path, typer.Option(help="The run folder.")],
    inputs: Annotated[
        Path | None, typer.Option(help="A folder, listing or archive of inputs.", rich_help_panel=_DATA)
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="That of their labels, matched by name.", rich_help_panel=_DATA)
    ] = None,
    tfds: Annotated[
        str | None, typer.Option(help="Instead: a set of TensorFlow Datasets.", rich_help_panel=_DATA)
    ] = None,
    validation_inputs: Annotated[
        Path | None, typer.Option(help="Inputs held out, with labels known to lie right.", rich_help_panel=_DATA)
    ] = None,
    validation_labels: Annotated[Path | None, typer.Option(help="These labels.", rich_help_panel=_DATA)] = None,
    strict: Annotated[
        bool | None, typer.Option("--strict", help="Stop at the first unusable file.", rich_help_panel=_DATA)
    ] = None,
    cache: Annotated[
        bool | None,
        typer.Option(
            "--cache/--no-cache",
            help="Keep patches in RUN/cache, or read all files in every epoch.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    patch_size: Annotated[
        str | None, typer.Option(help="Pixels a side: N, or one per axis.", rich_help_panel=_DATA)
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that read files.", rich_help_panel=_DATA)] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="unet, FILE.keras, or module:function, called with rank, input_channels and output_channels.",
            rich_help_panel=_NETWORK,
        ),
    ] = None,
    filters: Annotated[int | None, typer.Option(help="Of the U-Net's first level.", rich_help_panel=_NETWORK)] = None,
    depth: Annotated[int | None, typer.Option(help="Levels of the U-Net.", rich_help_panel=_NETWORK)] = None,
    deformable: Annotated[
        bool | None,
        typer.Option("--deformable", help="Labels are bent: train a warp network beside.", rich_help_panel=_NETWORK),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="A Keras loss: mae, mse, binary_crossentropy …", rich_help_panel=_LOSS)
    ] = None,
    max_shift: Annotated[
        str | None,
        typer.Option(help="Pixels that labels may lie off: N, or one per axis.", rich_help_panel=_LOSS),
    ] = None,
    max_rotation: Annotated[
        float | None, typer.Option(help="Degrees that they may be turned.", rich_help_panel=_LOSS)
    ] = None,
    max_scale: Annotated[float | None, typer.Option(help="f: scaled by 1/(1+f) to 1+f.", rich_help_panel=_LOSS)] = None,
    max_shear: Annotated[float | None, typer.Option(help="Degrees.", rich_help_panel=_LOSS)] = None,
    similarity: Annotated[
        str | None, typer.Option(help="How labels are compared: ncc, mi …", rich_help_panel=_LOSS)
    ] = None,
    assignment: Annotated[
        str | None, typer.Option(help="hard or soft, where the loss offers it.", rich_help_panel=_LOSS)
    ] = None,
    epochs: Annotated[int | None, typer.Option(rich_help_panel=_TRAINING)] = None,
    steps_per_epoch: Annotated[int | None, typer.Option(rich_help_panel=_TRAINING)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Patches in a step.", rich_help_panel=_TRAINING)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of Adam.", rich_help_panel=_TRAINING)] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the split, the order and the weights.", rich_help_panel=_TRAINING)
    ] = None,
    tensorboard: Annotated[
        bool | None, typer.Option("--tensorboard", help="Also write RUN/tensorboard.", rich_help_panel=_TRAINING)
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file of settings; flags win over it.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting, as key=value or loss.KEY=VALUE; repeatable."),
    ] = None,
):
    """Trains a network on inputs and labels that do not lie exactly on them.

    The run folder gets the networks, the table of every label's misalignment, an exported model and report.html; all
    settings stand in its config.yaml. Killed or interrupted, the same command goes on; so does --out alone. All GPUs of
    the machine train; so do several machines, where TF_CONFIG names them.

    Example: tfalign train --inputs images --labels stains --out runs/mine --max-shift 8

    Example: tfalign train --config runs/mine/config.yaml --out runs/other --set loss.subpixel=true
    """
    given = {
        "inputs": inputs, "labels": labels, "tfds": tfds, "strict": strict, "cache": cache,
        "model": model, "filters": filters, "deformable": deformable,
        "validation_inputs": validation_inputs, "validation_labels": validation_labels, "depth": depth,
        "patch_size": None if patch_size is None else numbers("patch_size", patch_size, int), "workers": workers,
        "epochs": epochs, "steps_per_epoch": steps_per_epoch, "batch_size": batch_size,
        "learning_rate": learning_rate, "seed": seed, "tensorboard": tensorboard,
    }  # fmt: skip
    of_loss = {
        "base": base, "max_rotation": max_rotation, "max_scale": max_scale, "max_shear": max_shear,
        "max_shift": None if max_shift is None else numbers("max_shift", max_shift, int), "similarity": similarity,
        "assignment": assignment,
    }  # fmt: skip
    flags = {**_given(given), "loss": _given(of_loss)}
    settings = [configs.setting(text) for text in settings or ()]
    own = out / "config.yaml"
    if config is None and own.is_file() and inputs is None and tfds is None:
        config = own
    mapping = configs.merged({} if config is None else configs.read(config), *settings, flags)
    known = configs.from_mapping(mapping)
    if known.runs_code and model is None:
        remedy = f"Give --model {known.model} on the command line if it may."
        raise ValueError(_checks.message("A settings file must not name code to run.", {"model": known.model}, remedy))
    with progress() as track:
        summary = train_job.run(out, known, track=track, announce=say)
    say(train_job.in_words(summary))
    say(f"Look at {out / 'report.html'}")


def evaluate(
    run: Annotated[Path, typer.Option(help="The run folder.")],
    set_name: Annotated[str, typer.Option("--set", help="train, validation or test: patches of the run.")] = "test",
    inputs: Annotated[Path | None, typer.Option(help="Other inputs instead, …")] = None,
    labels: Annotated[Path | None, typer.Option(help="… with labels that are known to lie right.")] = None,
    model: Annotated[str | None, typer.Option(help=_MODEL)] = None,
):
    """Scores the best network of a run, in place and with its labels registered.

    Example: tfalign evaluate --run runs/mine

    Example: tfalign evaluate --run runs/mine --inputs held-out/images --labels held-out/aligned
    """
    with progress() as track:
        result = evaluate_run.run(
            run, set_name=set_name, inputs=inputs, labels=labels, model=model, track=track, announce=say
        )
    say(f"{result['patches']} patches, {'files' if inputs else 'set'} {inputs or set_name}")
    say(f"{'':<12}{'in place':>12}{'registered':>12}")
    for name, value in result["in_place"].items():
        say(f"{name:<12}{value:>12.5g}{result['registered'][name]:>12.5g}")
    say(f"Wrote {run / ('evaluation-' + result['set'] + '.json')}")


def realign(
    run: Annotated[Path, typer.Option(help="The run folder.")],
    out: Annotated[Path, typer.Option(help="A folder for the repaired labels and alignment.csv.")],
    inputs: Annotated[Path | None, typer.Option(help="Other inputs than those of the run, …")] = None,
    labels: Annotated[Path | None, typer.Option(help="… and their labels.")] = None,
    per: Annotated[str, typer.Option(help="file; or dataset: one shift for all.")] = "file",
    decisions: Annotated[
        Path | None,
        typer.Option(help="A table of name and decision: accept, keep (as it is) or reject (leave out)."),
    ] = None,
    min_confidence: Annotated[float | None, typer.Option(help="A label known less well stays where it is.")] = None,
    model: Annotated[str | None, typer.Option(help=_MODEL)] = None,
    beam: Annotated[
        str | None, typer.Option(help="Do it in a pipeline of Apache Beam with these options: '--runner=DirectRunner'.")
    ] = None,
):
    """Writes the labels of a run moved to where they belong, in the format that they came in.

    An interrupted call goes on where it was when it is given again. Labels of integers move by whole pixels.

    Example: tfalign realign --run runs/mine --out repaired

    Example: tfalign realign --run runs/mine --out repaired --decisions decisions.csv
    """
    job = functools.partial(realign_job.run, per=per)
    if beam is not None:
        if per != "file":
            raise ValueError(_checks.message('With `beam`, `per` must be "file".', {"per": per, "beam": beam}))
        job = functools.partial(beam_jobs.realign, options=beam)
    with progress() as track:
        result = job(
            run, out, inputs=inputs, labels=labels, decisions=decisions, model=model,
            min_confidence=min_confidence, track=track, announce=say,
        )  # fmt: skip
    say(realign_job.in_words(result))
    say(f"Wrote {out / 'alignment.csv'}")


def _given(options):
    return {name: value for name, value in options.items() if value is not None}
