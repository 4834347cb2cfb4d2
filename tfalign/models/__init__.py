"""Networks: dense predictors to start from, and what trains them on bent labels."""

from tfalign.models.deformable import Alignment, DeformableModel
from tfalign.models.unet import unet
from tfalign.models.warp_network import WarpNetwork, warp_network

__all__ = ["Alignment", "DeformableModel", "WarpNetwork", "unet", "warp_network"]
