"""SwitchableNorm-1: switchable norm gives batch statistics a smaller share at small batches."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import difference, probed
from normkit.study.claims.small_batches import DESIGN

SMALL, LARGE = ("small-2", "switchable_norm", 2), ("small-16", "switchable_norm", 16)

EXPERIMENTS = (
    Experiment(
        claim="SwitchableNorm-1",
        name="share of batch statistics",
        question=Text(
            "Is the learned share of batch statistics smaller at batch 2 than at batch 16?",
            "批量 2 时学到的批次统计量权重是否小于批量 16 时？",
        ),
        design=DESIGN,
        measure=Text(
            "Share of batch statistics at the end, mean over means, variances and layers (1/3 at first): at batch 16 "
            "minus at batch 2.",
            "训练结束时批次统计量的权重，对均值、方差与各层取平均（初始为 1/3）：批量 16 减批量 2。",
        ),
        unit="share",
        effect=difference(LARGE, SMALL, probed("batch_share")),
        cells=(SMALL, LARGE),
        show=probed("batch_share"),
    ),
)
