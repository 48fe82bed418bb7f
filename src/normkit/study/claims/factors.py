"""The factors of the experiments on Transformers: task, optimizer and width, and their workloads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from normkit.catalog import Text
from normkit.study.execution.workload import Workload
from normkit.study.task import embedded, probes
from normkit.study.task.embedded import WIDTH, WIDTHS, Optimizer
from normkit.study.training.design import Design

TaskName = Literal["characters", "sequences"]
OPTIMIZERS: dict[Optimizer, Text] = {"adamw": Text("AdamW", "AdamW"), "sgd": Text("SGD", "SGD")}
RATES: dict[Optimizer, tuple[float, float]] = {"adamw": (3.162e-3, 0.1), "sgd": (3.162e-2, 1.0)}
"""The lowest and highest learning rate to try first."""
SHORT, SEQUENCE_STEPS = 100, 200
"""Steps with characters and with sequences."""
DEEP, WARM = 3, 25
"""Blocks, and steps of the warm-up, where warm-up is a factor."""


@dataclass(frozen=True)
class Factors:
    """Where a comparison of methods is made.

    Attributes:
        task: the embedded task.
        optimizer: the optimizer.
        width: number of features of a token.
    """

    task: TaskName = "characters"
    optimizer: Optimizer = "adamw"
    width: int = WIDTH

    @property
    def tuned(self) -> str:
        """The workload in which each method has its own best learning rate."""
        usual = self == Factors(optimizer="sgd")
        return "tokens" if usual else f"{self.task}-{self.optimizer}-{self.width}"

    @property
    def ranged(self) -> str:
        """The workload in which each rate is tried on every seed."""
        return f"range-{self.optimizer}-{self.width}"

    def warmed(self, warm: bool) -> str:
        """The workload with or without warm-up."""
        return f"{'warm' if warm else 'cold'}-{self.width}"

    @property
    def batch(self) -> int:
        """The batch size of these workloads."""
        return 8 if self.task == "characters" else 32

    @property
    def label(self) -> Text:
        """The factors in the name of an experiment and in that of its variants."""
        name = OPTIMIZERS[self.optimizer]
        tasks = {"characters": Text("", ""), "sequences": Text("sequences, ", "序列，")}
        return Text(f"{tasks[self.task]}{name}, width {self.width}", f"{tasks[self.task].zh}{name}，宽度 {self.width}")


USUAL = tuple(Factors(optimizer=optimizer) for optimizer in OPTIMIZERS)
"""Those of the usual suite; all others belong to the full suite."""
TASKS: tuple[TaskName, ...] = ("characters", "sequences")
ALL = tuple(Factors(task, optimizer, width) for task in TASKS for optimizer in OPTIMIZERS for width in WIDTHS)


def tuned(factors: Factors, full: bool) -> Workload:
    """Methods at their own best learning rates, in Transformers of one block."""
    variants: tuple[str, ...] = ("layer_norm", "layer_norm:post", "rms_norm", "dynamic_tanh")
    of_characters = factors.task == "characters"
    if factors.tuned == "tokens":
        variants += ("scale_norm", "dynamic_erf", "batch_norm", "power_norm")
    make = embedded.characters if of_characters else embedded.sequences
    task = replace(make(1, factors.width, factors.optimizer), probe=probes.value_dependence if of_characters else None)
    lowest, highest = RATES[factors.optimizer]
    design = Design(
        *(variants, (factors.batch,), 12 if full else 6, 4, SHORT if of_characters else SEQUENCE_STEPS),
        lowest_rate=lowest,
        highest_rate=highest,
        tuning_runs=1 if of_characters else 2,
        smallest=task.smallest or 0.05,
    )
    return Workload(factors.tuned, task, design)


def warmed(warm: bool, width: int, full: bool) -> Workload:
    """Pre-norm and post-norm, with or without warm-up, each at its own best rate."""
    task = replace(embedded.characters(DEEP, width, "adamw"), warmup=WARM if warm else 0, methods=())
    design = Design(
        *(("layer_norm", "layer_norm:post"), (8,), 12 if full else 6, 4, SHORT),
        lowest_rate=RATES["adamw"][0],
        highest_rate=RATES["adamw"][1],
        tuning_runs=1,
        smallest=0.05,
    )
    return Workload(Factors(width=width).warmed(warm), task, design)


def ranged(factors: Factors, full: bool) -> Workload:
    """Every rate on each seed; no rate is chosen, so there are no further runs."""
    task = embedded.characters(2, factors.width, factors.optimizer)
    lowest, highest = {"adamw": (3.162e-3, 0.3162), "sgd": (3.162e-2, 3.162)}[factors.optimizer]
    design = Design(
        *(("layer_norm", "layer_norm:qk"), (8,), 0, 5, 150),
        lowest_rate=lowest,
        highest_rate=highest,
        tuning_runs=12 if full else 6,
        smallest=0.05,
    )
    return Workload(factors.ranged, task, design)


WORKLOADS = {
    **{factors.tuned: partial(tuned, factors) for factors in ALL},
    **{Factors(width=width).warmed(warm): partial(warmed, warm, width) for width in WIDTHS for warm in (False, True)},
    **{f.ranged: partial(ranged, f) for f in ALL if f.task == "characters"},
}
"""The workloads of these experiments by name, as in `claims.workloads`."""
