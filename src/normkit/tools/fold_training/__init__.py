"""`fold_for_training`: batch norms kept foldable while their layers are trained with quantized weights."""

from normkit.tools.fold_training.layer import FoldedNorm, TrainableFold
from normkit.tools.fold_training.report import FoldTrainingReport
from normkit.tools.fold_training.run import fold_for_training

__all__ = ["FoldTrainingReport", "FoldedNorm", "TrainableFold", "fold_for_training"]
