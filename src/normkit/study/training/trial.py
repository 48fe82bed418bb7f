"""A trial is one training run that is requested; a run is its result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

GUESSING = "at the end no better than guessing"
"""The message of a run that did not train although its losses were finite."""
Options = tuple[tuple[str, Any], ...]
"""Names and values, sorted by name."""
Setting = tuple[float, Options]
"""A learning rate and options."""


def frozen(value: Any) -> Any:
    """A value of an option with tuples instead of lists, which JSON makes of tuples.

    >>> frozen([0.9, [0.99]])
    (0.9, (0.99,))
    """
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Trial:
    """One training run: `tune` trials choose the setting on validation data, `measure` trials also use the test data.

    `method` is a variant of the task: a method, or one with an option. `options` are further arguments of the
    optimizer, if the task tunes some. `part` is the part of the steps that is trained, from the start of the schedule.
    """

    kind: Literal["tune", "measure"]
    method: str
    batch_size: int
    rate: float
    seed: int
    options: Options = ()
    part: float = 1.0

    @property
    def setting(self) -> Setting:
        """The tuned values: rate and options."""
        return self.rate, self.options


@dataclass(frozen=True)
class Run:
    """The outcome of a trial. Losses are those of the training batches; errors are fractions, in evaluation mode.

    `state` is "trained", "untrained" (the loss was not finite, or the metric at the end does not beat guessing by its
    interval) or "failed" (an exception: `message` is its text, `trace` its traceback). Values that were not measured
    are None. `gap` is the loss in evaluation mode minus the loss in training mode, `recalibrated_error` the test error
    after running statistics were computed again, `probes` further measurements of the task. `seconds` is its share of
    the time of its batch of trials.
    """

    trial: Trial
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

    @property
    def broke(self) -> bool:
        """Whether a loss was not finite."""
        return self.state == "untrained" and self.message != GUESSING

    def to_dict(self) -> dict[str, Any]:
        """Plain data for stores and results.json, in which the key of the trial is "job"."""
        data = asdict(self)
        return {"job": data.pop("trial"), **data}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Run:
        """Make a run from the data of `to_dict`."""
        job = data["job"]
        options = tuple((name, frozen(value)) for name, value in job.get("options", ()))
        given = {name: value for name, value in data.items() if name != "job"}
        return cls(**given | {"trial": Trial(**job | {"options": options}), "losses": tuple(data["losses"])})


def batches(images: int, batch_size: int, steps: int, seed: int, weights: Tensor | None = None) -> Tensor:
    """Indices of the samples of each step: shuffled passes over the data, one after another, cut into equal batches.

    With weights, samples are drawn with replacement, each as often as its weight says.

    >>> batches(6, 4, 3, seed=0).shape
    torch.Size([3, 4])
    """
    generator = torch.Generator().manual_seed(seed)
    if weights is not None:
        return torch.multinomial(weights, steps * batch_size, True, generator=generator).view(steps, batch_size)
    passes = -(-steps * batch_size // images)
    stream = torch.cat([torch.randperm(images, generator=generator) for _ in range(passes)])
    return stream[: steps * batch_size].view(steps, batch_size)


def smooth(losses: Sequence[float], window: int) -> list[float]:
    """Means over the last `window` losses, for each step from step `window` on.

    >>> smooth([4.0, 2.0, 0.0], 2)
    [3.0, 1.0]
    """
    return [math.fsum(losses[end - window : end]) / window for end in range(window, len(losses) + 1)]
