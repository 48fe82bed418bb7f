"""QK-1: norms of queries and keys widen the range of learning rates of a Transformer."""

from __future__ import annotations

from functools import partial
from typing import Literal

from normkit.catalog import Text
from normkit.study.analysis.cells import Cell
from normkit.study.claims.experiment import CellName, Experiment
from normkit.study.claims.factors import ALL, OPTIMIZERS, USUAL, Factors
from normkit.study.claims.measures import (
    Effect,
    decades,
    interaction_of_rates,
    of_rates,
    sensitivity_by_seed,
    shown_of_rates,
)
from normkit.study.claims.transformers import conditions
from normkit.study.task.embedded import LENGTH, WIDTHS
from normkit.study.training.trial import Run

NEAR = 0.1
"""A loss at most this much above the best is near it, in nats."""
SMALLEST = 0.02
"""Of sensitivities, in nats: a mean over five rates, of which two differ by the usual 0.05."""
SENSITIVITY = Text(
    "Learning-rate sensitivity, the mean over the rates of the validation loss above that at the best rate (a loss above "
    "that of the untrained network counts as that one)",
    "学习率敏感度，即各学习率的验证损失高出最佳学习率处损失的平均值（高于未训练网络的损失按后者计）",
)


def cells(factors: Factors) -> tuple[CellName, CellName]:
    """Without norms of queries and keys, and with them."""
    return (factors.ranged, "layer_norm", 8), (factors.ranged, "layer_norm:qk", 8)


def design(width: int, optimizer: Text, rates: str) -> Text:
    """The design at a width."""
    return Text(
        f"Source text of Python's standard library in pieces of {LENGTH} characters; a causal Transformer with layer norm "
        f"before attention and perceptron, two blocks of width {width}; batches of 8, 150 steps, {optimizer}, five "
        f"learning rates {rates}, each on every seed; with layer norm of the queries and keys of each head, and without.",
        f"Python 标准库源代码，每段 {LENGTH} 个字符；注意力与感知机之前使用层归一化的因果 Transformer，两个宽度 {width} 的"
        f"模块；批量 8，训练 150 步，优化器为 {optimizer.zh}，五个学习率（{_in_chinese(rates)}），"
        "每个随机种子都全部尝试；各头的查询与键做层归一化或不做。",
    )


def _in_chinese(rates: str) -> str:
    return rates.replace("from ", "").replace(" to ", " 至 ").replace(" or ", " 或 ")


RATES: dict[Literal["adamw", "sgd"], str] = {"adamw": "from 0.0032 to 0.32", "sgd": "from 0.032 to 3.2"}


def at(factors: Factors) -> tuple[Experiment, Experiment]:
    """Both measures with an optimizer at a width."""
    plain, normed = cells(factors)
    where = design(factors.width, OPTIMIZERS[factors.optimizer], RATES[factors.optimizer])
    near = partial(decades, within=NEAR)

    def ratio(cell: Cell, run: Run) -> float | None:
        exponent = near(cell).get(run.trial.seed)
        return None if exponent is None else 10.0**exponent

    return (
        Experiment(
            claim="QK-1",
            name=f"sensitivity, {factors.label}",
            question=Text(
                f"Does the loss depend less on the learning rate with norms of queries and keys ({factors.label})?",
                f"对查询与键做归一化后，损失是否更少依赖学习率（{factors.label.zh}）？",
            ),
            design=where,
            measure=Text(
                f"{SENSITIVITY}: without norms of queries and keys minus with them.",
                f"{SENSITIVITY.zh}：查询与键不做归一化减去做归一化。",
            ),
            unit="nats",
            effect=of_rates(plain, normed, sensitivity_by_seed),
            cells=(plain, normed),
            show=shown_of_rates(sensitivity_by_seed),
            smallest=SMALLEST,
            of_tuning=True,
            extended=factors not in USUAL[:1],
        ),
        Experiment(
            claim="QK-1",
            name=f"range of rates, {factors.label}",
            question=Text(
                f"Is the range of learning rates near the best one wider with norms of queries and keys ({factors.label})?",
                f"对查询与键做归一化后，接近最佳的学习率范围是否更宽（{factors.label.zh}）？",
            ),
            design=where,
            measure=Text(
                f"Highest over lowest rate whose validation loss is at most {NEAR:g} nats above the best.",
                f"验证损失比最佳值至多高 {NEAR:g} 奈特的最高与最低学习率之比。",
            ),
            unit="log10 ratio",
            effect=of_rates(normed, plain, near),
            cells=(plain, normed),
            show=ratio,
            of_tuning=True,
            extended=factors not in USUAL[:1],
        ),
    )


def of_optimizer(width: int) -> Experiment:
    """Whether the effect on the sensitivity depends on the optimizer."""
    one, two = (cells(Factors(optimizer=optimizer, width=width)) for optimizer in OPTIMIZERS)
    effect: Effect = interaction_of_rates(one, two, sensitivity_by_seed)
    return Experiment(
        claim="QK-1",
        name=f"optimizer, width {width}",
        question=Text(
            "Do norms of queries and keys change the sensitivity by the same amount with AdamW and with SGD?",
            "查询与键的归一化对敏感度的影响，用 AdamW 与用 SGD 时是否相同？",
        ),
        design=design(
            width,
            Text("AdamW or SGD with momentum 0.9", "AdamW 或动量 0.9 的 SGD"),
            f"{RATES['adamw']} or {RATES['sgd']}",
        ),
        measure=Text(
            f"{SENSITIVITY}: without norms of queries and keys minus with them; this difference with AdamW minus that "
            "with SGD; the claim is that both are equal.",
            f"{SENSITIVITY.zh}：查询与键不做归一化减去做归一化；AdamW 下的差减去 SGD 下的差；论断是二者相等。",
        ),
        unit="nats",
        effect=effect,
        cells=(*one, *two),
        show=shown_of_rates(sensitivity_by_seed),
        smallest=SMALLEST,
        equivalence=True,
        of_tuning=True,
        extended=True,
        conditions=conditions(),
    )


EXPERIMENTS = (
    *(experiment for factors in ALL if factors.task == "characters" for experiment in at(factors)),
    *(of_optimizer(width) for width in WIDTHS),
)
