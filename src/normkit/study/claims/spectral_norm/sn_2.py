"""SN-2: spectral norm limits what a layer can represent."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.analysis.cells import Cell
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import difference
from normkit.study.claims.spectral_norm.sn_1 import BOUNDED, DESIGN, PLAIN
from normkit.study.training.trial import Run


def train_error(cell: Cell, run: Run) -> float | None:
    """The error on the training images, which shows what a network can represent."""
    return run.train_error


EXPERIMENTS = (
    Experiment(
        claim="SN-2",
        name="training error",
        question=Text(
            "Does a network with spectral norm make more errors on its training images?",
            "使用谱归一化的网络在训练图像上的错误率是否更高？",
        ),
        design=DESIGN,
        measure=Text(
            "Training error with spectral norm minus that with plain weights.",
            "谱归一化的训练错误率减去普通权重的训练错误率。",
        ),
        unit="points",
        effect=difference(BOUNDED, PLAIN, train_error),
        cells=(PLAIN, BOUNDED),
        show=train_error,
    ),
)
