"""RevIN-2: reversible instance norm hides the level of a series from the model."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import difference, test_error

PLAIN, REVERSIBLE = ("reverting", "none", 16), ("reverting", "revin", 16)

EXPERIMENTS = (
    Experiment(
        claim="RevIN-2",
        name="series that return to a level",
        question=Text(
            "Is the error larger with it on series that return to a level known from the training?",
            "序列会回归训练中已知的水平时，使用它的误差是否更大？",
        ),
        design=Text(
            "Made-up series, noise with correlation 0.95 from step to step, mean 0 and deviation 1 in training and "
            "test; a perceptron forecasts 12 steps from 24; batch 16, 200 steps, each at its own best learning rate.",
            "模拟序列：相邻两步相关系数 0.95 的噪声，训练与测试的均值均为 0、标准差均为 1；感知机用 24 步预测之后 12 步；"
            "批量 16，训练 200 步，各自使用最佳学习率。",
        ),
        measure=Text(
            "Mean squared error, in units of the variance of the series: with it minus without it.",
            "均方误差，以序列方差为单位：使用减不使用。",
        ),
        unit="share",
        effect=difference(REVERSIBLE, PLAIN),
        cells=(PLAIN, REVERSIBLE),
        show=test_error,
    ),
)
