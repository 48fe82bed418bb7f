"""`recalibrate`: computes running statistics anew from data."""

from normkit.tools.recalibrate.run import RecalibratedNorm, Recalibration, recalibrate

__all__ = ["RecalibratedNorm", "Recalibration", "recalibrate"]
