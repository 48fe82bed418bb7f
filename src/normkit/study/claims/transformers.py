"""Experiments that compare two methods in a small character Transformer."""

from __future__ import annotations

from normkit import catalog
from normkit.catalog import Text
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import difference, test_error

DESIGN = Text(
    "Source text of Python's standard library in pieces of 24 characters; a causal Transformer, one block of width "
    "32, norms before attention, perceptron and the last layer; batches of 8, 100 steps, each method at its own best "
    "learning rate.",
    "Python 标准库源代码，每段 24 个字符；因果 Transformer，一个宽度 32 的模块，归一化在注意力、感知机与最后一层之前；"
    "批量 8，训练 100 步，各方法使用各自的最佳学习率。",
)


def as_well(claim: str, method: str, other: str) -> Experiment:
    """Whether a method reaches a loss that is not higher than that of another."""
    first, second = catalog.find(method).title, catalog.find(other).title
    more, less = ("tokens", method, 8), ("tokens", other, 8)
    return Experiment(
        claim=claim,
        name=f"as well as {second.lower()}",
        question=Text(
            f"Is the loss of a Transformer with {first.lower()} no higher than with {second.lower()}?",
            f"使用{first.zh}的 Transformer，损失是否不高于使用{second.zh}？",
        ),
        design=DESIGN,
        measure=Text(
            f"Test loss per character, {first.lower()} minus {second.lower()}; the claim is that it is not higher.",
            f"每字符的测试损失：{first.zh}减{second.zh}；论断是前者不高于后者。",
        ),
        unit="nats",
        effect=difference(more, less),
        cells=(more, less),
        show=test_error,
        equivalence="upper",
    )


def better(claim: str, method: str, other: str) -> Experiment:
    """Whether a method reaches a lower loss than another."""
    first, second = catalog.find(method).title, catalog.find(other).title
    more, less = ("tokens", other, 8), ("tokens", method, 8)
    return Experiment(
        claim=claim,
        name=f"better than {second.lower()}",
        question=Text(
            f"Is the loss of a Transformer with {first.lower()} lower than with {second.lower()}?",
            f"使用{first.zh}的 Transformer，损失是否低于使用{second.zh}？",
        ),
        design=DESIGN,
        measure=Text(
            f"Test loss per character, {second.lower()} minus {first.lower()}.",
            f"每字符的测试损失：{second.zh}减{first.zh}。",
        ),
        unit="nats",
        effect=difference(more, less),
        cells=(more, less),
        show=test_error,
    )
