"""A picture of bent labels: as they came, laid back by the warp network, and the fields, true and found."""

import numpy as np
from matplotlib.figure import Figure

_ARROWS = 12  # along each axis of a field


def picture(inputs, labels, aligned, truths, fields):
    """One row a patch.

    Args:
        inputs: `(count, rows, columns, channels)`, as all others.
        labels: as they came.
        aligned: an `Alignment` of `tfalign.models.DeformableModel.align`.
        truths: the labels before they were bent.
        fields: `(count, rows, columns, 2)` pixels, what lays each label back; NaN where nothing does.
    """
    mask = np.asarray(aligned.mask)[..., np.newaxis] > 0
    laid = np.where(mask, aligned.label, np.nan)
    found = np.where(mask, aligned.displacement, np.nan)
    columns = {
        "input": inputs,
        "truth": truths,
        "label": labels,
        "label, laid back": laid,
        "its error before": np.abs(labels - truths).mean(axis=-1, keepdims=True),
        "after": np.abs(laid - truths).mean(axis=-1, keepdims=True),
        "true field": fields,
        "found": found,
    }
    count = len(inputs)
    figure = Figure(figsize=(1.75 * len(columns), 1.8 * count + 0.3), layout="constrained")
    panels = figure.subplots(count, len(columns), squeeze=False)
    longest = float(np.nanmax(np.linalg.norm(fields, axis=-1)))
    worst = float(np.nanmax(columns["its error before"]))
    for row, axes in enumerate(panels):
        for axis, (title, values) in zip(axes, columns.items()):
            if values is fields or values is found:
                arrows = _draw_field(axis, values[row], longest)
            else:
                _draw_image(axis, values[row], worst if values.shape[-1] == 1 and values is not inputs else None)
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(title, fontsize=10)
    figure.colorbar(arrows, ax=panels[:, -1], label="px", shrink=0.8)
    return figure


def _draw_image(axis, values, brightest):
    if values.shape[-1] == 1:
        cmap = "gray" if brightest is None else "magma"
        axis.imshow(values[..., 0], cmap=cmap, vmin=None if brightest is None else 0, vmax=brightest)
    else:
        axis.imshow(np.clip(np.nan_to_num(values, nan=1.0), 0, 1))


def _draw_field(axis, field, longest):
    rows, columns = field.shape[:2]
    step = max(1, max(rows, columns) // _ARROWS)
    at = np.mgrid[step // 2 : rows : step, step // 2 : columns : step]
    chosen = field[tuple(at)]
    arrows = axis.quiver(
        at[1], at[0], chosen[..., 1], chosen[..., 0], np.linalg.norm(chosen, axis=-1),
        angles="xy", scale_units="xy", scale=longest / (1.8 * step), cmap="viridis", clim=(0, longest), width=0.012,
    )  # fmt: skip
    axis.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), aspect="equal")
    return arrows
