"""P-1: the usual place of a norm is after the convolution or linear layer and before the activation."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import steps, steps_to_target

BEFORE, AFTER, LAST = (("deep", variant, 16) for variant in ("batch_norm", "batch_norm:after", "batch_norm:last"))
MEASURE = Text(
    "Steps until the training loss is 1: norm after the activation over norm before it.",
    "训练损失降到 1 所需的步数：归一化在激活之后与在激活之前的比。",
)

EXPERIMENTS = (
    Experiment(
        claim="P-1",
        name="before or after",
        question=Text(
            "Does a deep net learn faster with the norm before its activations than after them?",
            "归一化放在激活之前是否比放在激活之后学得更快？",
        ),
        design=Text(
            "Eight convolutions with batch norm before each ReLU or after it, batch 16, 200 steps.",
            "八个卷积层，批归一化放在每个 ReLU 之前或之后，批量 16，训练 200 步。",
        ),
        measure=MEASURE,
        unit="log2 ratio",
        effect=steps(AFTER, BEFORE),
        cells=(BEFORE, AFTER),
        show=steps_to_target,
    ),
    Experiment(
        claim="P-1",
        name="before or after, with a normalized classifier",
        question=Text(
            "And if the classifier gets normalized input in both cases, as with the norm after the last activation?",
            "若两种情形下分类器的输入都经过归一化（放在激活之后时本来如此），又如何？",
        ),
        design=Text(
            "The same; if the norms are before the activations, one more norm follows the last ReLU.",
            "同上，但归一化放在激活之前时，在最后一个 ReLU 之后再加一个归一化。",
        ),
        measure=MEASURE,
        unit="log2 ratio",
        effect=steps(AFTER, LAST),
        cells=(LAST, AFTER),
        show=steps_to_target,
    ),
)
