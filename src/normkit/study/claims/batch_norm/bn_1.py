"""BN-1: batch norm speeds up convergence."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import steps, steps_to_target

PLAIN, NORMED = ("deep", "none", 16), ("deep", "batch_norm", 16)

EXPERIMENTS = (
    Experiment(
        claim="BN-1",
        name="deep net",
        question=Text(
            "Does a deep convolutional net reach a training loss sooner with batch norm than without any norm?",
            "与无归一化相比，深层卷积网络使用批归一化后是否更早达到目标训练损失？",
        ),
        design=Text(
            "Noisy 8x8 digits, eight convolutions with 16 channels, batch 16, 200 steps, He-normal weights; each "
            "method at the learning rate with its lowest mean training loss.",
            "带噪声的 8×8 数字，八个 16 通道卷积层，批量 16，训练 200 步，He 正态初始化；"
            "各方法使用使其平均训练损失最低的学习率。",
        ),
        measure=Text(
            "Steps until the training loss, averaged over 20 steps, is 1: no norm over batch norm.",
            "20 步平均训练损失降到 1 所需的步数：无归一化与批归一化之比。",
        ),
        unit="log2 ratio",
        effect=steps(PLAIN, NORMED),
        cells=(PLAIN, NORMED),
        show=steps_to_target,
    ),
)
