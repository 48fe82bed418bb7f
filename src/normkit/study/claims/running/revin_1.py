"""RevIN-1: reversible instance norm makes a forecast robust to a shift of level and scale."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import difference, probed, test_error

PLAIN, REVERSIBLE = ("shifted", "none", 16), ("shifted", "revin", 16)
DESIGN = Text(
    "Made-up series, a sine and correlated noise, mean 0 and deviation 1; a perceptron forecasts 12 steps from 24, "
    "without a norm or inside reversible instance norm; batch 16, 200 steps, each at its own best learning rate.",
    "模拟序列：正弦加相关噪声，均值 0、标准差 1；感知机用 24 步预测之后 12 步，无归一化，或套在可逆实例归一化之内；"
    "批量 16，训练 200 步，各自使用最佳学习率。",
)

EXPERIMENTS = (
    Experiment(
        claim="RevIN-1",
        name="shifted series",
        question=Text(
            "Is the error smaller with it on series of mean 3 and deviation 2?",
            "在均值 3、标准差 2 的序列上，使用它时误差是否更小？",
        ),
        design=DESIGN,
        measure=Text(
            "Mean squared error as a fraction of the variance of the series: without it minus with it.",
            "均方误差占序列方差的比例：不使用减使用。",
        ),
        unit="share",
        effect=difference(PLAIN, REVERSIBLE, probed("relative_error")),
        cells=(PLAIN, REVERSIBLE),
        show=probed("relative_error"),
        smallest=0.05,
    ),
    Experiment(
        claim="RevIN-1",
        name="without a shift",
        question=Text(
            "And is it no larger on series as those of the training?", "在与训练时相同的序列上，误差是否不更大？"
        ),
        design=DESIGN,
        measure=Text(
            "The same on series of mean 0 and deviation 1: with it minus without it; the claim is that it is not larger.",
            "同上，但序列均值 0、标准差 1：使用减不使用；论断是前者不高于后者。",
        ),
        unit="share",
        effect=difference(REVERSIBLE, PLAIN),
        cells=(PLAIN, REVERSIBLE),
        show=test_error,
        smallest=0.05,
        equivalence="upper",
    ),
)
