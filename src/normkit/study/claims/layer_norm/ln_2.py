"""LN-2: layer norm costs more than batch norm on CNNs and may converge more slowly."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import steps, steps_to_target, test_error, times

LAYER, BATCH = ("digits", "layer_norm", 32), ("digits", "batch_norm", 32)
SLOW, FAST = ("deep", "layer_norm", 16), ("deep", "batch_norm", 16)

EXPERIMENTS = (
    Experiment(
        claim="LN-2",
        name="time",
        question=Text(
            "Does a training step take longer with layer norm than with batch norm?",
            "使用层归一化时，每个训练步是否比批归一化更耗时？",
        ),
        design=Text(
            "The network of the comparison, 32 images per step, one thread, normkit's kernels for both; methods alternate.",
            "比较实验所用的网络，每步 32 张图像，单线程，两者均用 normkit 的内核，各方法轮流计时。",
        ),
        measure=Text(
            "Time of a step, layer norm over batch norm, round by round.",
            "每步耗时之比（层归一化比批归一化），逐轮计算。",
        ),
        unit="log2 ratio",
        effect=times(LAYER, BATCH),
        cells=(LAYER, BATCH),
        show=test_error,
    ),
    Experiment(
        claim="LN-2",
        name="steps",
        question=Text(
            "Does a deep convolutional net need more steps with layer norm than with batch norm?",
            "深层卷积网络使用层归一化时，是否需要比批归一化更多的步数？",
        ),
        design=Text(
            "Eight convolutions, batch 16, 200 steps; each method at its own best learning rate.",
            "八个卷积层，批量 16，训练 200 步；各方法使用各自的最佳学习率。",
        ),
        measure=Text(
            "Steps until the training loss is 1: layer norm over batch norm.",
            "训练损失降到 1 所需的步数：层归一化与批归一化之比。",
        ),
        unit="log2 ratio",
        effect=steps(SLOW, FAST),
        cells=(SLOW, FAST),
        show=steps_to_target,
    ),
)
