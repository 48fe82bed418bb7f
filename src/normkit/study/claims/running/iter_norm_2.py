"""IterNorm-2: iterative norm converges faster than batch norm."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import steps, steps_to_target

BATCH, WHITENED = ("whitened", "batch_norm", 16), ("whitened", "iter_norm", 16)

EXPERIMENTS = (
    Experiment(
        claim="IterNorm-2",
        name="steps",
        question=Text(
            "Does a convolutional network reach a training loss sooner with iterative norm than with batch norm?",
            "卷积网络使用迭代归一化是否比使用批归一化更早达到目标训练损失？",
        ),
        design=Text(
            "Four convolutions with 16 channels on noisy digits, groups of four channels, batch 16, 150 steps; each "
            "method at the learning rate with its lowest mean training loss.",
            "带噪声数字上的四个 16 通道卷积层，每组四个通道，批量 16，训练 150 步；各方法使用使其平均训练损失最低的学习率。",
        ),
        measure=Text(
            "Steps until the training loss, averaged over 20 steps, is 0.5: batch norm over iterative norm.",
            "20 步平均训练损失降到 0.5 所需的步数：批归一化与迭代归一化之比。",
        ),
        unit="log2 ratio",
        effect=steps(BATCH, WHITENED),
        cells=(BATCH, WHITENED),
        show=steps_to_target,
    ),
)
