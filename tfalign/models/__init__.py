"""Networks: dense predictors to start from."""

from tfalign.models.unet import unet

__all__ = ["unet"]
