"""GN-1: group norm still works well at small batches."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import difference, test_error

SMALL, LARGE = ("mlp-2", "group_norm", 2), ("mlp-32", "group_norm", 32)
BETTER = (("mlp-2", "batch_norm", 2), SMALL)
DESIGN = Text(
    "Perceptron of four layers on noisy digits; 3200 images are processed at every batch size, and the learning rate is "
    "chosen at each.",
    "带噪声数字上的四层感知机；各批量均训练 3200 张图像，并分别选择学习率。",
)

EXPERIMENTS = (
    Experiment(
        claim="GN-1",
        name="no worse than at a large batch",
        question=Text(
            "Is the error of group norm at batch 2 no larger than at batch 32?",
            "组归一化在批量 2 时的错误率是否不高于批量 32？",
        ),
        design=DESIGN,
        measure=Text(
            "Test error at batch 2 minus that at batch 32; the claim is that it is not larger.",
            "批量 2 的测试错误率减去批量 32 的测试错误率；论断是前者不高于后者。",
        ),
        unit="points",
        effect=difference(SMALL, LARGE),
        cells=(SMALL, LARGE),
        show=test_error,
        smallest=0.02,
        equivalence="upper",
    ),
    Experiment(
        claim="GN-1",
        name="against batch norm",
        question=Text(
            "Does group norm make fewer errors than batch norm at batch 2?",
            "批量为 2 时，组归一化的错误率是否低于批归一化？",
        ),
        design=DESIGN,
        measure=Text(
            "Test error of batch norm minus that of group norm.", "批归一化的测试错误率减去组归一化的测试错误率。"
        ),
        unit="points",
        effect=difference(*BETTER),
        cells=BETTER,
        show=test_error,
    ),
)
