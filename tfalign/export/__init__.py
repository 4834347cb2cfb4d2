"""SavedModels that TF Serving takes as they are."""

from tfalign.export.card import ModelCard
from tfalign.export.serving import export_serving

__all__ = ["ModelCard", "export_serving"]
