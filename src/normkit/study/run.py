"""A training run: what is asked for, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Options = tuple[tuple[str, Any], ...]
"""Names and values, sorted by name."""
Setting = tuple[float, Options]
"""A learning rate and options."""


@dataclass(frozen=True)
class Job:
    """One training run: `tune` runs choose the setting on validation images, `measure` runs also see the test.

    `options` are given to the optimizer beside the rate, where the task opens some to the search.
    """

    kind: Literal["tune", "measure"]
    method: str
    batch_size: int
    rate: float
    seed: int
    options: Options = ()

    @property
    def setting(self) -> Setting:
        """What is tuned."""
        return self.rate, self.options


@dataclass(frozen=True)
class Run:
    """What came of a job. Losses are those of the training batches; errors are fractions, in evaluation mode.

    `state` is "trained", "untrained" (loss not finite, or no better than guessing at the end) or "failed" (it
    raised; `message` says what, `trace` where). What was not measured is None. `gap` is the loss in evaluation mode
    minus the loss in training mode, `recalibrated_error` the test error after running statistics were computed anew,
    `probes` what else the task measures of a trained model. `seconds` is its share of the time that it and the runs
    trained with it took.
    """

    job: Job
    state: Literal["trained", "untrained", "failed"]
    message: str = ""
    losses: tuple[float, ...] = ()
    train_error: float | None = None
    validation_error: float | None = None
    validation_loss: float | None = None
    test_error: float | None = None
    recalibrated_error: float | None = None
    gap: float | None = None
    probes: dict[str, float] = field(default_factory=dict)
    trace: str = ""
    seconds: float = 0.0

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Run:
        """The run that `dataclasses.asdict` was made from."""
        options = tuple((name, value) for name, value in data["job"].get("options", ()))
        return cls(**(data | {"job": Job(**data["job"] | {"options": options}), "losses": tuple(data["losses"])}))


def batches(images: int, batch_size: int, steps: int, seed: int) -> Tensor:
    """Indices of the images of each step: one shuffled pass after another, cut into equal batches.

    >>> batches(6, 4, 3, seed=0).shape
    torch.Size([3, 4])
    """
    generator = torch.Generator().manual_seed(seed)
    passes = -(-steps * batch_size // images)
    stream = torch.cat([torch.randperm(images, generator=generator) for _ in range(passes)])
    return stream[: steps * batch_size].view(steps, batch_size)


def smooth(losses: Sequence[float], window: int) -> list[float]:
    """Means over the last `window` losses, one for each step from step `window` on.

    >>> smooth([4.0, 2.0, 0.0], 2)
    [3.0, 1.0]
    """
    return [math.fsum(losses[end - window : end]) / window for end in range(window, len(losses) + 1)]
