"""What follows from the epochs so far: the best, the next learning rate, and whether to stop.

A function of the log alone, so that a run that was killed goes on exactly as it would have.
"""

import math
from typing import NamedTuple

from tfalign import _checks

_LEAST_RATE = 1e-3  # of the first learning rate
_LARGER_IS_BETTER = ("accuracy", "psnr", "ssim", "iou", "dice", "f1", "precision", "recall", "auc", "confidence")


class Verdict(NamedTuple):
    """What follows.

    Attributes:
        best_epoch: number of the best epoch so far, from 0; None where there is none.
        learning_rate: of the next epoch.
        stop: None, or why training stops: "converged", "threshold reached", "no improvement", "diverged".
    """

    best_epoch: int | None
    learning_rate: float
    stop: str | None


def is_maximised(monitor):
    """Whether larger values of a column are better, by its name."""
    return any(word in monitor for word in _LARGER_IS_BETTER)


def judge(rows, config, monitor):
    """The `Verdict` on the rows of `metrics.jsonl`.

    Epochs before labels are aligned (`alignment_ready`) are measured against labels as they lie, so they are neither
    the best nor counted once later ones are there.

    Args:
        rows: a dict for each epoch.
        config: `Config`.
        monitor: the column to watch.
    """
    for row in rows:
        if monitor not in row:
            columns = {"monitor": monitor, "columns": sorted(row)}
            raise ValueError(_checks.message("`monitor` must be a column of metrics.jsonl.", columns))
    counted = [row for row in rows if row.get("alignment_ready", 1.0) > 0.0] or rows
    sign = -1.0 if is_maximised(monitor) else 1.0
    values = [_number(row[monitor]) for row in counted]
    rate, best, best_value, since_best, since_change = config.learning_rate, None, math.inf, 0, 0
    for row, value in zip(counted, values):
        if sign * value < best_value:
            best, best_value, since_best, since_change = row["epoch"], sign * value, 0, 0
            continue
        since_best, since_change = since_best + 1, since_change + 1
        if config.schedule == "plateau" and since_change >= config.reduce_patience:
            rate, since_change = max(rate * config.reduce_factor, config.learning_rate * _LEAST_RATE), 0
    if config.schedule == "cosine":
        rate = config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * len(rows) / config.epochs))
    return Verdict(best, rate, _reason(rows, values, sign, since_best, config))


def _reason(rows, values, sign, since_best, config):
    if not rows:
        return None
    if math.isnan(_number(rows[-1].get("loss"))):
        return "diverged"
    if config.stop_below is not None and sign * values[-1] < sign * config.stop_below:
        return "threshold reached"
    if config.stop_patience is not None and since_best >= config.stop_patience:
        return "no improvement"
    last = values[-config.stop_change_epochs :]
    if config.stop_change is not None and len(last) == config.stop_change_epochs:
        size = max(abs(value) for value in last)
        if max(last) - min(last) < config.stop_change * size:
            return "converged"
    return None


def _number(value):
    """A value of the log, which writes null for what is no number."""
    return math.nan if value is None else float(value)
