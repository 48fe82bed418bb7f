"""`fold`: takes norms, or their weight and bias, into the layers next to them, for inference."""

from normkit.tools.fold.report import Fold, FoldReport
from normkit.tools.fold.run import fold

__all__ = ["Fold", "FoldReport", "fold"]
