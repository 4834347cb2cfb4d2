"""The figures of a run's page. Each is one panel, so that a phone shows them below one another."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from tfalign.jobs import figures

_SPLITS = {"train": figures.BLUE, "validation": "#c77a1a", "test": "#4a9a52"}
_SIZE = (4.6, 3.3)  # inches
_DPI = 150
_GRAY = "0.8"


def distribution(labels, *, max_shift):
    """How far labels are off: a histogram, and where they lie."""
    sure = [label for label in labels if label.is_sure]
    if not sure:
        return []
    drawn = [_lengths(sure)]
    if len(sure[0].shift) > 1:
        drawn.append(_places(sure, max_shift))
    return drawn + [_confidences(labels)]


def curves(epochs):
    """The log of training: one panel for each quantity, training and validation in one."""
    names = list(dict.fromkeys(name for epoch in epochs for name in epoch))
    names.sort(key=lambda name: name not in ("loss", "val_loss"))
    shown = []
    for name in names:
        if name.startswith("val_") or name in _NOT_DRAWN:
            continue
        shown.append((_TITLES.get(name, name), {"training": name, "validation": f"val_{name}"}))
    known = {column for _, columns in shown for column in columns.values()}
    shown += [(name, {"validation": name}) for name in names if name.startswith("val_") and name not in known]
    drawn = [_curve(epochs, title, columns) for title, columns in shown[:12]]
    return [one for one in drawn if one is not None]


def score_map(scores, shift):
    """The score of every shift `(2r+1, ...)`; a volume's in the plane of the best one."""
    bounds = [size // 2 for size in scores.shape]
    figure = figures.figure(3.6, 3.0)
    axes = figure.subplots()
    if scores.ndim == 1:
        axes.plot(np.arange(-bounds[0], bounds[0] + 1), scores, color=figures.BLUE)
        axes.axvline(float(shift[0]), color="#c0504d", linewidth=1)
        axes.set(xlabel="shift (samples)", ylabel="score")
    else:
        if scores.ndim == 3:
            scores = scores[int(np.clip(round(float(shift[0])) + bounds[0], 0, len(scores) - 1))]
        rows, cols = bounds[-2:]
        extent = (-cols - 0.5, cols + 0.5, rows + 0.5, -rows - 0.5)
        image = axes.imshow(np.where(np.isfinite(scores), scores, np.nan), extent=extent, cmap="viridis")
        axes.plot(shift[-1], shift[-2], "+", color="white", markersize=12, markeredgewidth=2)
        axes.set(xlabel="columns (px)", ylabel="rows (px)")
        figure.colorbar(image, ax=axes, shrink=0.9, label="score")
    _whole_ticks(axes)
    return _done(figure)


def signals(lines):
    """Signals `{name: (samples,)}` over one another."""
    figure = figures.figure(5.4, 2.6)
    axes = figure.subplots()
    for (name, values), color in zip(lines.items(), ("0.35", figures.BLUE)):
        axes.plot(values, label=name, color=color, linewidth=1.2)
    axes.set(xlabel="sample")
    axes.legend(frameon=False, fontsize=8)
    return _done(figure)


def field(displacement):
    """A displacement field `(rows, cols, 2)`, pixels, as arrows."""
    shape = displacement.shape[:2]
    step = max(1, max(shape) // 16)
    rows, cols = np.mgrid[step // 2 : shape[0] : step, step // 2 : shape[1] : step]
    chosen = displacement[rows, cols]
    figure = figures.figure(3.4, 3.3)
    axes = figure.subplots()
    lengths = np.linalg.norm(chosen, axis=-1)
    arrows = axes.quiver(
        cols, rows, chosen[..., 1], chosen[..., 0], lengths, angles="xy", scale_units="xy",
        scale=max(float(lengths.max()), 1e-6) / (0.9 * step), cmap="viridis", width=0.008,
    )  # fmt: skip
    axes.set(xlim=(-0.5, shape[1] - 0.5), ylim=(shape[0] - 0.5, -0.5), aspect="equal")
    axes.set_xticks([])
    axes.set_yticks([])
    figure.colorbar(arrows, ax=axes, shrink=0.85, label="px")
    return _done(figure)


_NOT_DRAWN = ("epoch", "seconds", "alignment_ready", "alignment_shift", "alignment_at_bound", "alignment_gated")
_TITLES = {
    "loss": "loss",
    "drift": "network's offset (px)",
    "alignment_confidence": "confidence of the shifts",
    "learning_rate": "learning rate",
}


def _lengths(sure):
    figure = figures.figure(*_SIZE)
    axes = figure.subplots()
    lengths = [label.length for label in sure]
    edges = np.linspace(0, max(max(lengths), 1.0), 31)
    by_split = {name: [one.length for one in sure if one.split == name] for name in _SPLITS}
    by_split = {name: values for name, values in by_split.items() if values}
    axes.hist(
        list(by_split.values()), edges, stacked=True, color=[_SPLITS[name] for name in by_split], label=list(by_split)
    )
    axes.axvline(np.mean(lengths), color="0.25", linewidth=1, linestyle="--")
    axes.set(xlabel="misalignment (px); dashed: the mean", ylabel="label patches")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8)
    return _done(figure)


def _places(sure, max_shift):
    figure = figures.figure(*_SIZE)
    axes = figure.subplots()
    shifts = np.array([label.shift[-2:] for label in sure])
    reach = max(float(np.abs(shifts).max()), float(max_shift or 0.0), 1.0) * 1.1
    # Whole-pixel shifts would lie on top of one another.
    jitter = np.random.default_rng(0).uniform(-0.2, 0.2, shifts.shape)
    for name, color in _SPLITS.items():
        chosen = np.array([label.split == name for label in sure])
        if chosen.any():
            rows, cols = (shifts + jitter)[chosen].T
            axes.scatter(cols, rows, s=7, color=color, alpha=0.6, linewidths=0, label=name)
    if max_shift:
        corners = np.array([-1, 1, 1, -1, -1]) * max_shift
        axes.plot(corners, np.roll(corners, 1)[[0, 1, 2, 3, 0]], color=_GRAY, linewidth=1)
    axes.axhline(0, color=_GRAY, linewidth=0.8, zorder=0)
    axes.axvline(0, color=_GRAY, linewidth=0.8, zorder=0)
    axes.set(xlim=(-reach, reach), ylim=(reach, -reach), aspect="equal")
    axes.set(xlabel="to the right (px)", ylabel="down (px)")
    return _done(figure)


def _confidences(labels):
    figure = figures.figure(*_SIZE)
    axes = figure.subplots()
    axes.hist([label.confidence for label in labels], np.linspace(0, 1, 21), color=figures.BLUE)
    axes.axvline(0.5, color="0.25", linewidth=1, linestyle="--")
    axes.set(xlabel="confidence; left of the dashed line: could not be told", ylabel="label patches", xlim=(0, 1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return _done(figure)


def _curve(epochs, title, columns):
    figure = figures.figure(*_SIZE)
    axes = figure.subplots()
    drawn = 0
    for (name, column), color in zip(columns.items(), (figures.BLUE, "#c77a1a")):
        points = [(epoch.get("epoch", number), epoch.get(column)) for number, epoch in enumerate(epochs)]
        points = [(number + 1, value) for number, value in points if value is not None]
        if points:
            marker = "o" if len(points) < 15 else None
            axes.plot(
                *zip(*points), color=color if len(columns) > 1 else "#c77a1a", label=name, marker=marker, markersize=3
            )
            drawn += 1
    if not drawn:
        return None
    if drawn > 1:
        axes.legend(frameon=False, fontsize=8)
    axes.set(xlabel="epoch")
    if "learning_rate" in columns.values():
        rates = [epoch[column] for epoch in epochs for column in columns.values() if epoch.get(column)]
        axes.set(yscale="log", ylim=(min(rates) / 3, max(rates) * 3))
    axes.set_title(title.replace("_", " "), parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _done(figure)


def _whole_ticks(axes):
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.get_ylabel() != "score":
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _done(figure):
    return figures.data_url(figures.png(figure, dpi=_DPI))
