"""Experiments that compare two methods in a small Transformer, also over tasks, optimizers and widths."""

from __future__ import annotations

from dataclasses import replace

from normkit import catalog
from normkit.catalog import Text
from normkit.study.analysis.evidence import Unit
from normkit.study.claims.experiment import CellName, Equivalence, Experiment
from normkit.study.claims.factors import ALL, SEQUENCE_STEPS, SHORT, USUAL, Factors
from normkit.study.claims.measures import difference, interaction, test_error
from normkit.study.task.embedded import LENGTH

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


def cell(variant: str, factors: Factors) -> CellName:
    """A variant at its own best learning rate."""
    return factors.tuned, variant, factors.batch


def under_all(
    claim: str, method: str, other: str, equivalence: Equivalence, omitted: tuple[Factors, ...] = ()
) -> tuple[Experiment, ...]:
    """Whether a method is equal to another, or no worse, for each task, optimizer and width.

    And, for each task and width, whether the optimizer changes their difference.

    Args:
        claim: id in the catalog.
        method, other: the two methods.
        equivalence: True for equal, "upper" for no worse.
        omitted: factors that another experiment on the claim has.
    """
    each = [_under(claim, method, other, equivalence, factors) for factors in ALL if factors not in omitted]
    pairs = [(factors, replace(factors, optimizer="sgd")) for factors in ALL if factors.optimizer == "adamw"]
    return (*each, *(_of_optimizer(claim, method, other, *pair) for pair in pairs))


def _under(claim: str, method: str, other: str, equivalence: Equivalence, factors: Factors) -> Experiment:
    first, second = _named(method), _named(other)
    more, less = cell(method, factors), cell(other, factors)
    upper = equivalence == "upper"
    relation = Text("no higher than", "是否不高于") if upper else Text("the same as", "是否等同于")
    claimed = Text("it is not higher", "前者不更高") if upper else Text("there is no difference", "没有差别")
    value = _value(factors)
    return Experiment(
        claim=claim,
        name=f"{factors.label}",
        question=Text(
            f"Is the {value.lower()} with {first} {relation} with {second} ({factors.label})?",
            f"使用{first.zh}时，{value.zh}{relation.zh}使用{second.zh}（{factors.label.zh}）？",
        ),
        design=design(factors),
        measure=Text(
            f"{value}, {first} minus {second}; the claim is that {claimed}.",
            f"{value.zh}：{first.zh}减{second.zh}；论断是{claimed.zh}。",
        ),
        unit=_unit(factors),
        effect=difference(more, less),
        cells=(more, less),
        show=test_error,
        smallest=_smallest(factors),
        equivalence=equivalence,
        extended=factors not in USUAL,
    )


def _of_optimizer(claim: str, method: str, other: str, adamw: Factors, sgd: Factors) -> Experiment:
    first, second = _named(method), _named(other)
    one, two = ((cell(method, factors), cell(other, factors)) for factors in (adamw, sgd))
    where = Text(f"{adamw.label}".replace("AdamW, ", ""), adamw.label.zh.replace("AdamW，", ""))
    value = _value(adamw)
    return Experiment(
        claim=claim,
        name=f"optimizer, {where}",
        question=Text(
            f"Is the difference between {first} and {second} the same with AdamW as with SGD ({where})?",
            f"{first.zh}与{second.zh}之差，用 AdamW 与用 SGD 时是否相同（{where.zh}）？",
        ),
        design=design(adamw, Text("AdamW or SGD with momentum 0.9", " AdamW 或动量 0.9 的 SGD")),
        measure=Text(
            f"{value}, {first} minus {second}: this difference with AdamW minus that with SGD; the "
            "claim is that both are equal.",
            f"{value.zh}，{first.zh}减{second.zh}：AdamW 下的差减去 SGD 下的差；论断是二者相等。",
        ),
        unit=_unit(adamw),
        effect=interaction(one, two),
        cells=(*one, *two),
        show=test_error,
        smallest=_smallest(adamw),
        equivalence=True,
        extended=adamw not in USUAL,
        conditions=conditions(),
    )


def conditions() -> tuple[Text, ...]:
    """The optimizers of the four cells of an interaction."""
    return tuple(Text(name, name) for name in ("AdamW", "AdamW", "SGD", "SGD"))


def design(factors: Factors, optimizer: Text | None = None) -> Text:
    """The design of the workload `Factors.tuned`, with another text for the optimizer if one is given."""
    using = optimizer or Text(
        *({"adamw": ("AdamW", " AdamW"), "sgd": ("SGD with momentum 0.9", "动量 0.9 的 SGD")}[factors.optimizer])
    )
    width, batch = factors.width, factors.batch
    if factors.task == "characters":
        return Text(
            f"Source text of Python's standard library in pieces of {LENGTH} characters; a causal Transformer, one "
            f"block of width {width}; batches of {batch}, {SHORT} steps, {using}, each method at its own best learning "
            "rate.",
            f"Python 标准库源代码，每段 {LENGTH} 个字符；因果 Transformer，一个宽度 {width} 的模块；批量 {batch}，"
            f"训练 {SHORT} 步，优化器为{using.zh}，各方法使用自己的最佳学习率。",
        )
    return Text(
        f"Made-up padded sequences in four classes; a Transformer, one block of width {width}; batches of {batch}, "
        f"{SEQUENCE_STEPS} steps, {using}, each method at its own best learning rate.",
        f"带填充的四类模拟序列；Transformer，一个宽度 {width} 的模块；批量 {batch}，训练 {SEQUENCE_STEPS} 步，"
        f"优化器为{using.zh}，各方法使用自己的最佳学习率。",
    )


def _named(method: str) -> Text:
    """The name of a method inside a sentence."""
    title = catalog.find(method).title
    return Text(" ".join(word if word.isupper() else word.lower() for word in title.split(" ")), title.zh)


def _value(factors: Factors) -> Text:
    if factors.task == "characters":
        return Text("Test loss per character", "每字符的测试损失")
    return Text("Test error", "测试错误率")


def _unit(factors: Factors) -> Unit:
    return "nats" if factors.task == "characters" else "points"


def _smallest(factors: Factors) -> float | None:
    """Two points of error, because one is less than these runs differ by chance."""
    return None if factors.task == "characters" else 0.02
