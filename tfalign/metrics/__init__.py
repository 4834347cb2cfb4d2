"""Metrics that tell the truth about networks trained on misaligned labels.

A network that an aligned loss trains may sit beside its input and nothing in that loss would show it: `val_loss` is the
aligned loss, blind to drift. So watch a metric *in place*, on labels that are known to lie right: `InPlace`, `PSNR`,
`SSIM`. They read the centre of a label with a margin, where Keras's own metrics raise. (Against labels that are off, a
blurred network looks best in place.) `ShiftInvariant` takes a metric after registration; `MeanShift` and `ShiftAtBound`
tell what it found.

    model.compile(
        "adam",
        loss=tfalign.ShiftInvariantLoss("mae", max_shift=8),
        metrics=[tfalign.metrics.InPlace("mae"), tfalign.metrics.ShiftAtBound(max_shift=8)],
    )
    model.fit(..., callbacks=[keras.callbacks.EarlyStopping("val_in_place_mae", mode="min", patience=10)])

Keras gives sample weights to what `compile(weighted_metrics=[...])` lists, as it does to its own metrics. Make metrics
under a strategy's scope, as Keras asks of its own.
"""

from tfalign.metrics.pictures import PSNR, SSIM
from tfalign.metrics.shifts import MeanShift, ShiftAtBound
from tfalign.metrics.wrappers import InPlace, ShiftInvariant

__all__ = ["PSNR", "SSIM", "InPlace", "MeanShift", "ShiftAtBound", "ShiftInvariant"]
