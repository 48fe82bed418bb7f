"""`convert`: exchanges the norms of a model."""

from normkit.tools.convert.report import ConvertReport
from normkit.tools.convert.run import convert

__all__ = ["ConvertReport", "convert"]
