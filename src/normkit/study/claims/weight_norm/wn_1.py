"""WN-1: weight norm speeds up convergence and makes training more stable."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.analysis.cells import Cell, paired
from normkit.study.claims.experiment import CellName, Experiment, Measured, Tables
from normkit.study.claims.measures import Effect, steps, steps_to_target
from normkit.study.training.trial import Run

PLAIN, NORMED = ("deep", "none", 16), ("deep", "weight_norm", 16)
PLAIN_SET, NORMED_SET = ("deep", "none:init", 16), ("deep", "weight_norm:init", 16)
DESIGN = Text(
    "Eight convolutions, batch 16, 200 steps; each at its own best learning rate. Weight norm starts from the same "
    "function as plain weights.",
    "八个卷积层，批量 16，训练 200 步；各自使用最佳学习率。权重归一化与普通权重从同一函数出发。",
)


def roughness(cell: Cell, run: Run) -> float | None:
    """Mean upward jump of the training loss from step to step, in nats."""
    jumps = [max(0.0, after - before) for before, after in zip(run.losses, run.losses[1:], strict=False)]
    return sum(jumps) / len(jumps) if jumps else None


def steadier(more: CellName, less: CellName) -> Effect:
    """Roughness of `more` minus that of `less`."""

    def effect(tables: Tables) -> Measured | None:
        a, b = (tables[workload][variant, size] for workload, variant, size in (more, less))
        values = paired(a, b, lambda run: roughness(a, run))
        return Measured(values) if len(values) > 1 else None

    return effect


MEASURE = Text(
    "Steps until the training loss, averaged over 20 steps, is 1: plain weights over weight norm.",
    "20 步平均训练损失降到 1 所需的步数：普通权重与权重归一化之比。",
)
EXPERIMENTS = (
    Experiment(
        claim="WN-1",
        name="steps",
        question=Text(
            "Does a deep net reach a training loss sooner with weight norm?",
            "深层网络使用权重归一化是否更早达到目标损失？",
        ),
        design=DESIGN,
        measure=MEASURE,
        unit="log2 ratio",
        effect=steps(PLAIN, NORMED),
        cells=(PLAIN, NORMED),
        show=steps_to_target,
    ),
    Experiment(
        claim="WN-1",
        name="steps, both with data-dependent initialization",
        question=Text(
            "And if both kinds of weights are initialized so that outputs have mean 0 and variance 1 on data?",
            "若两种权重都按数据初始化（输出均值 0、方差 1），又如何？",
        ),
        design=DESIGN,
        measure=MEASURE,
        unit="log2 ratio",
        effect=steps(PLAIN_SET, NORMED_SET),
        cells=(PLAIN_SET, NORMED_SET),
        show=steps_to_target,
        extended=True,
    ),
    Experiment(
        claim="WN-1",
        name="steadiness",
        question=Text(
            "Does the training loss jump up less with weight norm?", "使用权重归一化时训练损失的向上跳动是否更小？"
        ),
        design=DESIGN,
        measure=Text(
            "Mean upward jump of the loss from one step to the next: plain weights minus weight norm.",
            "相邻两步损失的平均向上跳动：普通权重减权重归一化。",
        ),
        unit="nats",
        effect=steadier(PLAIN, NORMED),
        cells=(PLAIN, NORMED),
        show=roughness,
        smallest=0.01,
    ),
)
