"""BN-2: batch norm allows a higher learning rate."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.analysis.cells import Cell
from normkit.study.claims.experiment import Experiment, Measured, Tables
from normkit.study.claims.measures import Effect, highest_rates
from normkit.study.training.trial import Run

TRAINS = 2.0
"""A run with a final training loss below this has trained; guessing gives 2.3."""


def higher(more: str, less: str) -> Effect:
    """log10 of the highest rate that trains, `more` over `less`, seed by seed."""

    def effect(tables: Tables) -> Measured | None:
        a, b = (tables["rates"][variant, 16] for variant in (more, less))
        if not a.tuning or not b.tuning:
            return None
        first, second = highest_rates(a, TRAINS), highest_rates(b, TRAINS)
        return Measured([first[seed] - second[seed] for seed in first if seed in second])

    return effect


def shown(cell: Cell, run: Run) -> float | None:
    """The highest rate that trains at the seed of a run."""
    return 10 ** highest_rates(cell, TRAINS)[run.trial.seed]


def experiment(name: str, more: str, less: str, question: Text) -> Experiment:
    """Batch norm compared with no norm or with another norm."""
    return Experiment(
        claim="BN-2",
        name=name,
        question=question,
        design=Text(
            "Eight convolutions, batch 16, 100 steps, seven learning rates from 0.01 to 10 in half decades, each on "
            "every seed; where none of them trains, half a decade below them counts.",
            "八个卷积层，批量 16，训练 100 步，从 0.01 到 10 每半个数量级取一个学习率，共七个，每个随机种子都全部尝试；"
            "若都不能训练，则按再低半个数量级计。",
        ),
        measure=Text(
            f"The highest rate at which the training loss over the last 20 steps is below {TRAINS} (guessing is 2.3).",
            f"最后 20 步的平均训练损失低于 {TRAINS}（随机猜测为 2.3）的最大学习率。",
        ),
        unit="log10 ratio",
        effect=higher(more, less),
        cells=(("rates", less, 16), ("rates", more, 16)),
        show=shown,
        of_tuning=True,
    )


EXPERIMENTS = (
    experiment(
        "against no norm",
        "batch_norm",
        "none",
        Text(
            "Is the highest learning rate that still trains higher with batch norm?",
            "使用批归一化时，仍能训练的最大学习率是否更大？",
        ),
    ),
    experiment(
        "more than group norm",
        "batch_norm",
        "group_norm",
        Text(
            "Is this true of batch norm only: does it allow a higher rate than group norm?",
            "这是批归一化独有的吗：它允许的学习率是否比组归一化更大？",
        ),
    ),
)
