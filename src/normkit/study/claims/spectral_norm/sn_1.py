"""SN-1: spectral norm bounds the Lipschitz constant of each layer."""

from __future__ import annotations

import math

from normkit.catalog import Text
from normkit.study.analysis.cells import Cell
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import difference, level, probed
from normkit.study.training.trial import Run

PLAIN, BOUNDED = ("spectral", "none", 32), ("spectral", "spectral_norm", 32)
DESIGN = Text(
    "Perceptron of four layers with 96 units on noisy digits, spectral norm on all of them but the classifier; batch "
    "32, 100 steps, each at its own best learning rate.",
    "带噪声数字上的四层感知机，每层 96 个单元，除分类器外各层均用谱归一化；批量 32，训练 100 步，各自使用最佳学习率。",
)


def excess(cell: Cell, run: Run) -> float | None:
    """The largest singular value minus 1."""
    found = run.probes.get("singular_value")
    return None if found is None else found - 1


def slope(cell: Cell, run: Run) -> float | None:
    """The log10 of the largest slope."""
    found = run.probes.get("slope")
    return None if not found else math.log10(found)


EXPERIMENTS = (
    Experiment(
        claim="SN-1",
        name="singular values",
        question=Text(
            "Are the singular values of the trained weights at most 1, although the power iteration only follows them?",
            "幂迭代只是跟踪奇异值，训练后权重的奇异值是否仍不超过 1？",
        ),
        design=DESIGN,
        measure=Text(
            "Largest singular value of any weight but the classifier's, minus 1; the claim is that it is not larger.",
            "除分类器外各权重的最大奇异值减 1；论断是它不超过 1。",
        ),
        unit="share",
        effect=level(BOUNDED, excess),
        cells=(PLAIN, BOUNDED),
        show=probed("singular_value"),
        smallest=0.05,
        equivalence="upper",
    ),
    Experiment(
        claim="SN-1",
        name="slope of the network",
        question=Text(
            "Is the largest slope of the network smaller than with plain weights?",
            "与普通权重相比，网络的最大斜率是否更小？",
        ),
        design=DESIGN,
        measure=Text(
            "Largest singular value of the derivative of the last features with respect to the pixels, over 64 test "
            "images: plain weights over spectral norm.",
            "最后一层特征对像素的导数的最大奇异值，取 64 张测试图像中的最大者：普通权重与谱归一化之比。",
        ),
        unit="log10 ratio",
        effect=difference(PLAIN, BOUNDED, slope),
        cells=(PLAIN, BOUNDED),
        show=probed("slope"),
        form="number",
    ),
)
