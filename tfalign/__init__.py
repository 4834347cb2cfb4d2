"""tfalign: train dense-prediction Keras networks on labels that do not lie exactly on their inputs."""

from tfalign import callbacks, distributed, layers, metrics, models
from tfalign._version import __version__
from tfalign.export import export_serving
from tfalign.losses import ShiftInvariantLoss, shift_invariant_loss
from tfalign.ops.registration import Registration, register
from tfalign.ops.resample import warp

__all__ = [
    "Registration",
    "ShiftInvariantLoss",
    "__version__",
    "callbacks",
    "distributed",
    "export_serving",
    "layers",
    "metrics",
    "models",
    "register",
    "shift_invariant_loss",
    "warp",
]
