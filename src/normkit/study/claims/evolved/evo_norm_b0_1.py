"""EvoNormB0-1: EvoNorm-B0 is better than batch norm with ReLU."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import difference, test_error
from normkit.study.claims.small_batches import DESIGN

BATCH, EVOLVED = ("small-16", "batch_norm", 16), ("small-16", "evo_norm_b0", 16)

EXPERIMENTS = (
    Experiment(
        claim="EvoNormB0-1",
        name="errors",
        question=Text(
            "Does a convolutional network make fewer errors with EvoNorm-B0 than with batch norm and ReLU?",
            "卷积网络使用 EvoNorm-B0 是否比使用批归一化加 ReLU 错误率更低？",
        ),
        design=DESIGN,
        measure=Text(
            "Test error at batch 16: batch norm minus EvoNorm-B0.", "批量 16 的测试错误率：批归一化减 EvoNorm-B0。"
        ),
        unit="points",
        effect=difference(BATCH, EVOLVED),
        cells=(BATCH, EVOLVED),
        show=test_error,
    ),
)
