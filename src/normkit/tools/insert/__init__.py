"""`insert`: adds a norm after each layer of a model that has none."""

from normkit.tools.insert.run import InsertReport, insert

__all__ = ["InsertReport", "insert"]
