"""P-2: a Transformer with pre-norm trains without a warm-up of the learning rate, which post-norm needs."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.claims.experiment import Equivalence, Experiment
from normkit.study.claims.factors import ALL, DEEP, SHORT, USUAL, WARM, Factors
from normkit.study.claims.measures import Effect, difference, interaction, test_error
from normkit.study.claims.transformers import cell, conditions, design
from normkit.study.task.embedded import LENGTH, WIDTHS

PRE, POST = "layer_norm", "layer_norm:post"
COLD, WARMED = Text("no warm-up", "无预热"), Text("warm-up", "预热")


def at_width(width: int) -> tuple[Experiment, ...]:
    """The experiments with and without warm-up at a width."""
    factors = Factors(width=width)
    cold, warm = factors.warmed(False), factors.warmed(True)
    pre, post = ((cold, PRE, 8), (warm, PRE, 8)), ((cold, POST, 8), (warm, POST, 8))

    def experiment(
        name: str,
        question: Text,
        measure: Text,
        effect: Effect,
        cells: tuple[tuple[str, str, int], ...],
        conditions: tuple[Text, ...],
        equivalence: Equivalence = False,
    ) -> Experiment:
        return Experiment(
            claim="P-2",
            name=f"{name}, width {width}",
            question=question,
            design=Text(
                f"Source text of Python's standard library in pieces of {LENGTH} characters; a causal Transformer with "
                f"layer norm, {DEEP} blocks of width {width}; batches of 8, {SHORT} steps, AdamW with no warm-up or one "
                f"of {WARM} steps; the learning rate is chosen for each.",
                f"Python 标准库源代码，每段 {LENGTH} 个字符；使用层归一化的因果 Transformer，{DEEP} 个宽度 {width} 的模块；"
                f"批量 8，训练 {SHORT} 步，优化器为 AdamW，无预热或预热 {WARM} 步；各情形分别选择学习率。",
            ),
            measure=measure,
            unit="nats",
            effect=effect,
            cells=cells,
            show=test_error,
            equivalence=equivalence,
            extended=factors not in USUAL,
            conditions=conditions,
        )

    return (
        experiment(
            "pre-norm without warm-up",
            Text("Is the loss with pre-norm no higher without warm-up?", "前置归一化不用预热时，损失是否不更高？"),
            Text(
                "Test loss per character with pre-norm, no warm-up minus warm-up; the claim is that it is not higher.",
                "前置归一化每字符的测试损失：无预热减有预热；论断是前者不更高。",
            ),
            difference(*pre),
            pre,
            (COLD, WARMED),
            "upper",
        ),
        experiment(
            "post-norm gains more",
            Text("Does warm-up help post-norm more than pre-norm?", "预热对后置归一化的帮助是否大于对前置归一化？"),
            Text(
                "Test loss per character, no warm-up minus warm-up: that of post-norm minus that of pre-norm.",
                "每字符的测试损失，无预热减有预热：后置归一化的差减去前置归一化的差。",
            ),
            interaction(post, pre),
            (*post, *pre),
            (COLD, WARMED, COLD, WARMED),
        ),
        experiment(
            "against post-norm",
            Text("Without warm-up, is the loss with pre-norm lower?", "不用预热时，前置归一化的损失是否更低？"),
            Text(
                "Test loss per character without warm-up, post-norm minus pre-norm.",
                "不用预热时每字符的测试损失：后置减前置。",
            ),
            difference(post[0], pre[0]),
            (pre[0], post[0]),
            (COLD, COLD),
        ),
    )


def of_optimizer(factors: Factors) -> Experiment:
    """Whether the difference between the placements depends on the optimizer, without warm-up."""
    other = Factors(factors.task, "sgd", factors.width)
    one, two = ((cell(POST, each), cell(PRE, each)) for each in (factors, other))
    return Experiment(
        claim="P-2",
        name=f"optimizer, width {factors.width}",
        question=Text(
            "Is the difference between post-norm and pre-norm the same with AdamW as with SGD?",
            "后置与前置归一化之差，用 AdamW 与用 SGD 时是否相同？",
        ),
        design=design(
            factors,
            Text("AdamW or SGD with momentum 0.9 without warm-up", " AdamW 或动量 0.9 的 SGD，均不用预热"),
        ),
        measure=Text(
            "Test loss per character, post-norm minus pre-norm: this difference with AdamW minus that with SGD; the "
            "claim is that both are equal.",
            "每字符的测试损失，后置减前置：AdamW 下的差减去 SGD 下的差；论断是二者相等。",
        ),
        unit="nats",
        effect=interaction(one, two),
        cells=(*one, *two),
        show=test_error,
        equivalence=True,
        extended=True,
        conditions=conditions(),
    )


EXPERIMENTS = (
    *(experiment for width in WIDTHS for experiment in at_width(width)),
    *(of_optimizer(factors) for factors in ALL if factors.task == "characters" and factors.optimizer == "adamw"),
)
