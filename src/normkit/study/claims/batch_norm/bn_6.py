"""BN-6: batch norm differs between training and inference."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.analysis.cells import Cell, paired
from normkit.study.claims.experiment import Experiment, Measured, Tables
from normkit.study.claims.measures import Effect
from normkit.study.training.trial import Run


def gap(cell: Cell, run: Run) -> float | None:
    """Loss in evaluation mode minus loss in training mode."""
    return run.gap


def wider(workload: str, more: str, less: str, batch: int) -> Effect:
    """The difference in distance between the losses of the two modes; the claim names no direction."""

    def effect(tables: Tables) -> Measured | None:
        a, b = (tables[workload][variant, batch] for variant in (more, less))
        values = paired(a, b, lambda run: None if run.gap is None else abs(run.gap))
        return Measured(values) if len(values) > 1 else None

    return effect


def experiment(name: str, workload: str, batch: int, question: Text, design: Text) -> Experiment:
    """The two modes of batch norm, compared with group norm, which has one mode."""
    return Experiment(
        claim="BN-6",
        name=name,
        question=question,
        design=design,
        measure=Text(
            "Distance between the losses in evaluation and in training mode, same weights and images: batch norm minus "
            "group norm.",
            "相同权重与图像下，推理模式与训练模式损失之差的绝对值：批归一化减组归一化。",
        ),
        unit="nats",
        effect=wider(workload, "batch_norm", "group_norm", batch),
        cells=((workload, "batch_norm", batch), (workload, "group_norm", batch)),
        show=gap,
    )


EXPERIMENTS = (
    experiment(
        "early in training",
        "early",
        16,
        Text(
            "Do the two modes differ after 30 steps, when running statistics are not yet accurate?",
            "训练 30 步、滑动统计量尚不准确时，两种模式是否不同？",
        ),
        Text("Eight convolutions, batch 16, 30 steps.", "八个卷积层，批量 16，训练 30 步。"),
    ),
    experiment(
        "at the end",
        "digits",
        2,
        Text("And at the end of training, with batches of 2?", "训练结束时（批量 2）又如何？"),
        Text("The network of the comparison, batches of 2, 400 steps.", "比较实验所用的网络，批量 2，训练 400 步。"),
    ),
)
