"""BN-3: the batch noise of batch norm regularizes mildly, like dropout."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import difference, test_error

WHOLE = ("noise", "batch_norm", 64)
LESS, DROPOUT = ("noise", "batch_norm:ghost-16", 64), ("noise", "batch_norm:dropout-0.1", 64)
DESIGN = Text(
    "300 images to train on, optimizer batch 64, four convolutions; statistics over the whole batch, or over groups of "
    "16 images of it (ghost batches), which only adds noise; for comparison, 10 % dropout of maps.",
    "训练图像 300 张，优化器批量 64，四个卷积层；统计量取自整个批次，或取自其中 16 张一组（ghost batch），"
    "后者只增加噪声；另设丢弃 10 % 特征图的 dropout 作对照。",
)

EXPERIMENTS = (
    Experiment(
        claim="BN-3",
        name="noise of small groups",
        question=Text(
            "Does noise in the statistics lower the test error when there are few images?",
            "图像很少时，统计量中的噪声能否降低测试错误率？",
        ),
        design=DESIGN,
        measure=Text(
            "Test error with statistics over the whole batch minus that with groups of 16.",
            "整批统计量的测试错误率减去 16 张一组时的测试错误率。",
        ),
        unit="points",
        effect=difference(WHOLE, LESS),
        cells=(WHOLE, LESS, DROPOUT),
        show=test_error,
    ),
    Experiment(
        claim="BN-3",
        name="like dropout",
        question=Text(
            "Does the noise have an effect of the same size as dropout?", "噪声的作用与 dropout 的作用相当吗？"
        ),
        design=DESIGN,
        measure=Text(
            "Test error with groups of 16 minus that with dropout of 10 %; the claim is that they do not differ.",
            "16 张一组时的测试错误率减去 10 % dropout 时的测试错误率；论断是两者无差别。",
        ),
        unit="points",
        effect=difference(LESS, DROPOUT),
        cells=(LESS, DROPOUT),
        show=test_error,
        smallest=0.02,
        equivalence=True,
    ),
)
