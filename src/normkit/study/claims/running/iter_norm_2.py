"""IterNorm-2: iterative norm converges faster than batch norm."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import steps, steps_to_target
from normkit.study.claims.small_batches import DESIGN

BATCH, WHITENED = ("small-16", "batch_norm", 16), ("small-16", "iter_norm", 16)

EXPERIMENTS = (
    Experiment(
        claim="IterNorm-2",
        name="steps",
        question=Text(
            "Does a convolutional network reach a training loss sooner with iterative norm than with batch norm?",
            "卷积网络使用迭代归一化是否比使用批归一化更早达到目标训练损失？",
        ),
        design=DESIGN,
        measure=Text(
            "Steps until the training loss, averaged over 20 steps, is 1: batch norm over iterative norm.",
            "20 步平均训练损失降到 1 所需的步数：批归一化与迭代归一化之比。",
        ),
        unit="log2 ratio",
        effect=steps(BATCH, WHITENED),
        cells=(BATCH, WHITENED),
        show=steps_to_target,
    ),
)
