"""IterNorm-1: iterative norm decorrelates the channels of a group."""

from __future__ import annotations

import math

from normkit.catalog import Text
from normkit.study.analysis.cells import Cell
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import difference, level, probed
from normkit.study.claims.small_batches import DESIGN
from normkit.study.training.trial import Run

BATCH, WHITENED = ("small-16", "batch_norm", 16), ("small-16", "iter_norm", 16)
MEASURE = Text(
    "Condition number of the covariance of the first norm's outputs before weight and bias, on 64 test images, in "
    "training mode; geometric mean over four groups of four channels",
    "第一个归一化层输出（乘 weight、加 bias 之前）协方差矩阵的条件数，取 64 张测试图像、训练模式，"
    "对四组（每组四个通道）取几何平均",
)


def condition(cell: Cell, run: Run) -> float | None:
    """The log10 of the condition number."""
    found = run.probes.get("condition")
    return None if found is None else math.log10(found)


EXPERIMENTS = (
    Experiment(
        claim="IterNorm-1",
        name="against batch norm",
        question=Text(
            "Are the channels of a group less correlated after iterative norm than after batch norm?",
            "与批归一化相比，迭代归一化之后组内通道的相关性是否更弱？",
        ),
        design=DESIGN,
        measure=Text(f"{MEASURE}: batch norm over iterative norm.", f"{MEASURE.zh}：批归一化与迭代归一化之比。"),
        unit="log10 ratio",
        effect=difference(BATCH, WHITENED, condition),
        cells=(BATCH, WHITENED),
        show=probed("condition"),
        form="number",
    ),
    Experiment(
        claim="IterNorm-1",
        name="near the identity",
        question=Text(
            "And is the covariance after it near the identity, whose condition number is 1?",
            "迭代归一化之后的协方差矩阵是否接近单位阵（条件数为 1）？",
        ),
        design=DESIGN,
        measure=Text(f"{MEASURE}; the claim is that it is near 1.", f"{MEASURE.zh}；论断是它接近 1。"),
        unit="log10 ratio",
        effect=level(WHITENED, condition),
        cells=(BATCH, WHITENED),
        show=probed("condition"),
        form="number",
        equivalence="upper",
    ),
)
