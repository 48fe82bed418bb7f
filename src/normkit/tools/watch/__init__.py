"""Live statistics of the norms of a model in training."""

from normkit.tools.watch.record import NormRecord as NormRecord
from normkit.tools.watch.watcher import Watch as Watch
from normkit.tools.watch.watcher import watch as watch

__all__ = ["NormRecord", "Watch", "watch"]
