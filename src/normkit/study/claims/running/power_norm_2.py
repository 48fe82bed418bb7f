"""PowerNorm-2: power norm is the same in training and in inference."""

from __future__ import annotations

from normkit.catalog import Text
from normkit.study.analysis.cells import Cell
from normkit.study.claims.experiment import Experiment
from normkit.study.claims.measures import difference, level
from normkit.study.claims.transformers import DESIGN
from normkit.study.training.trial import Run

POWER, BATCH = ("tokens", "power_norm", 8), ("tokens", "batch_norm", 8)
DISTANCE = Text(
    "Distance between the losses in evaluation and in training mode, same weights and text",
    "相同权重与文本下，推理模式与训练模式损失之差的绝对值",
)


def distance(cell: Cell, run: Run) -> float | None:
    """The distance between the losses of the two modes."""
    return None if run.gap is None else abs(run.gap)


EXPERIMENTS = (
    Experiment(
        claim="PowerNorm-2",
        name="distance of the two modes",
        question=Text(
            "Is the loss the same in training mode and in evaluation mode?", "训练模式与推理模式的损失是否相同？"
        ),
        design=DESIGN,
        measure=Text(f"{DISTANCE}; the claim is that there is none.", f"{DISTANCE.zh}；论断是没有差别。"),
        unit="nats",
        effect=level(POWER, distance),
        cells=(POWER, BATCH),
        show=distance,
        equivalence=True,
    ),
    Experiment(
        claim="PowerNorm-2",
        name="closer than batch norm's",
        question=Text("And do the modes differ less than with batch norm?", "与批归一化相比，两种模式的差别是否更小？"),
        design=DESIGN,
        measure=Text(f"{DISTANCE}: batch norm minus power norm.", f"{DISTANCE.zh}：批归一化减幂归一化。"),
        unit="nats",
        effect=difference(BATCH, POWER, distance),
        cells=(POWER, BATCH),
        show=distance,
    ),
)
