"""Pages to look at: figures by matplotlib, one self-contained HTML file by Jinja2."""

import base64

import numpy as np
from matplotlib.ticker import MaxNLocator

from tfalign.jobs import figures, files
from tfalign.ops.registration import register

_COLORS = {"plain": "#c0504d", "tfalign": figures.BLUE, "oracle": "#4a9a52"}
_TITLES = {"plain": "plain loss", "tfalign": "tfalign", "oracle": "oracle (perfect labels)"}
_ZOOM = (slice(40, 120), slice(180, 300))  # rows, columns of the held-out tissue that show nuclei


def write_demo(out, *, metrics, gray, truth, predictions, patches, shifts, confidence, model):
    """Writes `report.html`, self-contained, and its first figure as `picture.png`."""
    with figures.styled():
        zoom = figures.png(_zoom_figure(metrics, gray, truth, predictions))
        drawn = {
            "zoom": zoom,
            "whole": figures.png(_whole_figure(gray, truth, predictions)),
            "shifts": figures.png(_shift_figure(patches.translations, shifts, confidence)),
            "score_map": figures.png(_score_map_figure(model, patches, metrics["settings"]["max_shift"])),
            "curves": figures.png(_curve_figure(metrics["arms"])),
        }
    beside = out / "picture.png.part"
    beside.write_bytes(zoom)
    beside.replace(out / "picture.png")
    page = figures.page(
        "demo.html.jinja",
        metrics=metrics,
        titles=_TITLES,
        figures={name: base64.b64encode(data).decode("ascii") for name, data in drawn.items()},
    )
    files.write_text(out / "report.html", page)


def _zoom_figure(metrics, gray, truth, predictions):
    figure = figures.figure(12.4, 3.75)
    top = figure.subplots(2, 5, height_ratios=(1, 1))
    figures.show(top[0, 0], gray[_ZOOM], "input")
    figures.show(top[0, 1], truth[_ZOOM], "truth")
    top[1, 0].axis("off")
    top[1, 1].axis("off")
    top[1, 1].text(
        0.98, 0.5, "absolute error,\nblack = 0, white = 0.25", ha="right", va="center", transform=top[1, 1].transAxes
    )
    for column, (arm, prediction) in enumerate(predictions.items(), start=2):
        figures.show(top[0, column], prediction[_ZOOM], f"{_TITLES[arm]}: {metrics['arms'][arm]['psnr']:.1f} dB")
        top[0, column].title.set_color(_COLORS[arm])
        error = np.abs(np.clip(prediction, 0, 1) - truth).mean(axis=-1)[_ZOOM]
        top[1, column].imshow(error, cmap="magma", vmin=0, vmax=0.25, interpolation="nearest")
        top[1, column].set_xticks([])
        top[1, column].set_yticks([])
    return figure


def _whole_figure(gray, truth, predictions):
    images = {"input": gray, "truth": truth, **{_TITLES[arm]: image for arm, image in predictions.items()}}
    figure = figures.figure(9.0, 15.6)
    for axes, (title, image) in zip(figure.subplots(len(images), 1), images.items()):
        figures.show(axes, image, title)
    return figure


def _shift_figure(true, found, confidence):
    figure = figures.figure(10.4, 3.5)
    panels = figure.subplots(1, 3)
    bound = int(np.abs(true).max()) + 1
    rng = np.random.default_rng(0)
    for axes, axis, name in zip(panels, (0, 1), ("rows", "columns")):
        jitter = rng.uniform(-0.25, 0.25, (2, len(true)))
        axes.plot([-bound, bound], [-bound, bound], color="0.75", linewidth=1, zorder=0)
        axes.scatter(true[:, axis] + jitter[0], found[:, axis] + jitter[1], s=5, color=_COLORS["tfalign"], alpha=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel=f"true shift, {name} (px)", ylabel="recovered shift (px)", aspect="equal")
    panels[0].set_title("every training label (jittered)")
    error = np.abs(found - true).max(axis=-1)
    counts = [np.mean(error == 0), np.mean(error == 1), np.mean(error == 2), np.mean(error > 2)]
    bars = panels[2].bar(["0", "1", "2", "> 2"], [100 * count for count in counts], color=_COLORS["tfalign"])
    panels[2].bar_label(bars, fmt="%.1f %%")
    panels[2].set(xlabel="error (px)", ylabel="labels (%)", ylim=(0, 112))
    panels[2].set_title(f"mean confidence {confidence.mean():.2f}")
    return figure


def _score_map_figure(model, patches, max_shift):
    """One patch as the network, its label and their score map see it: one that is far off, not at the window's edge."""
    wanted = np.array([0.6, -0.5]) * max_shift
    chosen = int(np.argmin(np.abs(patches.translations - wanted).sum(axis=-1)))
    one = slice(chosen, chosen + 1)
    prediction, label = model(patches.inputs[one]), patches.labels[one]
    found = register(prediction, label, max_shift=max_shift, subpixel=False, return_map=True)
    aligned, _ = found.warp(label)
    margin = (label.shape[1] - prediction.shape[1]) // 2
    figure = figures.figure(12.4, 2.9)
    panels = figure.subplots(1, 5)
    figures.show(panels[0], patches.inputs[chosen], "input patch")
    figures.show(panels[1], np.asarray(prediction)[0], "prediction")
    figures.show(panels[2], label[0, margin:-margin, margin:-margin], "label as it came")
    row, column = found.translation.numpy()[0].astype(int)
    extent = (-max_shift - 0.5, max_shift + 0.5, max_shift + 0.5, -max_shift - 0.5)
    scores = panels[3].imshow(found.score_map.numpy()[0], extent=extent, cmap="viridis")
    panels[3].plot(column, row, "+", color="white", markersize=11, markeredgewidth=2)
    panels[3].set_title(f"score map, best at ({row:+d}, {column:+d})", fontsize=10)
    panels[3].set(xlabel="columns (px)", ylabel="rows (px)")
    panels[3].xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[3].yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(scores, ax=panels[3], shrink=0.85)
    figures.show(panels[4], np.asarray(aligned)[0], "label aligned")
    return figure


def _curve_figure(arms):
    figure = figures.figure(10.4, 3.4)
    loss, psnr, drift = figure.subplots(1, 3)
    for arm, result in arms.items():
        curve = result["curve"]
        loss.plot(curve["step"], curve["loss"], color=_COLORS[arm], label=_TITLES[arm])
        psnr.plot(curve["step"], curve["held_out_psnr"], color=_COLORS[arm])
    loss.set(xlabel="step", ylabel="training loss", yscale="log")
    loss.legend(frameon=False)
    psnr.set(xlabel="step", ylabel="held-out PSNR, in place (dB)")
    estimate = np.array(arms["tfalign"]["curve"]["drift"])
    for axis, name in enumerate(("rows", "columns")):
        drift.plot(arms["tfalign"]["curve"]["step"], estimate[:, axis], label=name)
    drift.set(xlabel="step", ylabel="estimated drift (px)")
    drift.axhline(0, color="0.8", zorder=0)
    drift.legend(frameon=False)
    return figure
