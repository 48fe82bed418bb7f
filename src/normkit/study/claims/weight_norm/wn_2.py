"""WN-2: the gain of weight norm is not always significant, and batch norm is better on some tasks."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import difference, steps, steps_to_target, test_error

WEIGHT, BATCH = ("deep", "weight_norm", 16), ("deep", "batch_norm", 16)
ERRORS = (("digits", "weight_norm", 32), ("digits", "batch_norm", 32))

EXPERIMENTS = (
    Experiment(
        claim="WN-2",
        name="steps against batch norm",
        question=Text(
            "Does a deep net need more steps with weight norm than with batch norm?",
            "深层网络使用权重归一化是否比批归一化需要更多步数？",
        ),
        design=Text(
            "Eight convolutions, batch 16, 200 steps; each at its own best learning rate.",
            "八个卷积层，批量 16，训练 200 步；各自使用最佳学习率。",
        ),
        measure=Text(
            "Steps until the training loss is 1: weight norm over batch norm.",
            "训练损失降到 1 所需的步数：权重归一化与批归一化之比。",
        ),
        unit="log2 ratio",
        effect=steps(WEIGHT, BATCH),
        cells=(WEIGHT, BATCH),
        show=steps_to_target,
    ),
    Experiment(
        claim="WN-2",
        name="errors against batch norm",
        question=Text("And does it make more errors on digits?", "在数字分类上，权重归一化的错误率是否更高？"),
        design=Text("The network of the comparison, 32 images per step.", "比较实验所用的网络，每步 32 张图像。"),
        measure=Text(
            "Test error of weight norm minus that of batch norm.", "权重归一化的测试错误率减去批归一化的测试错误率。"
        ),
        unit="points",
        effect=difference(*ERRORS),
        cells=ERRORS,
        show=test_error,
    ),
)
