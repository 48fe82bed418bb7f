"""`replace_placement`: changes where the norms of residual blocks are."""

from normkit.tools.replace_placement.report import PlacementReport
from normkit.tools.replace_placement.run import PLACEMENTS, replace_placement

__all__ = ["PLACEMENTS", "PlacementReport", "replace_placement"]
