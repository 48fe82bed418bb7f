"""`convert`: exchanges the norms of a model, at once or over the steps of a training."""

from normkit.tools.convert.fade import Fade, advance
from normkit.tools.convert.report import ConvertReport
from normkit.tools.convert.run import convert

__all__ = ["ConvertReport", "Fade", "advance", "convert"]
