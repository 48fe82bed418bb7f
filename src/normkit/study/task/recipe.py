"""How a task is trained beyond model, data and optimizer: schedule, clipping, accumulation, averages, own steps."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from normkit.errors import ArgumentError, nearest


@dataclass(frozen=True)
class PerEpoch:
    """A scheduler of torch whose step is due at the end of each pass over the training data."""

    scheduler: Any


Schedule = Callable[[int, int], float]
"""(step, steps) -> the share of the learning rate; steps count from 0."""

SCHEDULES: Mapping[str, Schedule] = {
    "cosine": lambda step, steps: 0.5 * (1 + math.cos(math.pi * step / steps)),
    "linear": lambda step, steps: 1 - step / steps,
    "constant": lambda step, steps: 1.0,
}
"""From the full rate at the first step down to 0, or not."""
CHECKS = 20
"""How often in a run a task with `patience` is measured on the validation part."""


def factors(schedule: str | Schedule | None, warmup: float, steps: int) -> list[float]:
    """The share of the learning rate at each step: it rises linearly in the warm-up, then follows the schedule.

    Args:
        schedule: a name, a function of (step, steps), or None for "cosine"; both count from the end of the warm-up.
        warmup: number of steps, or a fraction of the run below 1.
        steps: of the run.

    Raises:
        ArgumentError: a warm-up that is as long as the run, or a schedule that gives no number from 0 on.

    >>> factors("linear", 2, 6)
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    rising = round(warmup * steps) if 0 < warmup < 1 else int(warmup)
    if rising >= steps:
        raise ArgumentError(
            f"warmup must be shorter than the run of {steps} steps, got {rising}: give fewer steps, or a fraction "
            "such as 0.1"
        )
    function = SCHEDULES[schedule or "cosine"] if not callable(schedule) else schedule
    found = [(step + 1) / rising for step in range(rising)]
    for step in range(steps - rising):
        factor = function(step, steps - rising)
        try:
            valid = math.isfinite(factor) and factor >= 0
        except TypeError:
            valid = False
        if not valid:
            raise ArgumentError(
                f"schedule must give a factor of at least 0 at each of {steps - rising} steps, got {factor!r} at step "
                f"{step}: it is called with (step, steps)"
            )
        found.append(float(factor))
    return found


def check(task: Any) -> None:
    """Refuse options of the training that cannot be.

    Args:
        task: a `Task`.

    Raises:
        ArgumentError: the first such option.
    """
    if task.schedule is not None and not callable(task.schedule) and task.schedule not in SCHEDULES:
        raise ArgumentError(
            f"schedule must be {', '.join(SCHEDULES)} or a function of (step, steps), got {task.schedule!r}: "
            f"{nearest(str(task.schedule), [*SCHEDULES])}"
        )
    if task.warmup < 0 or (task.warmup >= 1 and task.warmup != int(task.warmup)):
        raise ArgumentError(f"warmup must be a number of steps or a fraction below 1, got {task.warmup}: give 0.1, say")
    lowest: tuple[tuple[str, Any, float], ...] = (
        ("accumulate", task.accumulate, 1),
        ("evaluation_batch", task.evaluation_batch, 1),
        ("patience", task.patience, 1),
        ("samples", task.samples, 1),
        ("max_steps", task.max_steps, 1),
        ("trials", task.trials, 3),
    )
    for name, value, bound in lowest:
        if value is not None and (value < bound or value != int(value)):
            raise ArgumentError(f"{name} must be at least {bound:g}, got {value}: give a whole number")
    for name, value in (("clip", task.clip), ("max_epochs", task.max_epochs)):
        if value is not None and not 0 < value < math.inf:
            raise ArgumentError(f"{name} must be a number above 0, got {value}: leave it out for none")
    if task.ema is not None and not 0 < task.ema < 1:
        raise ArgumentError(f"ema must be a decay between 0 and 1, got {task.ema}: give 0.999, say")
    _check_functions(task)
    if task.manual:
        given = [n for n in ("clip", "patience") if getattr(task, n) is not None] + ["accumulate"] * (
            task.accumulate > 1
        )
        if given:
            raise ArgumentError(
                f"training_step(model, batch, optimizers) makes the whole step itself, got {', '.join(given)} too: do "
                "it there"
            )
        if task.evaluate is None:
            raise ArgumentError(
                "evaluate must be given with training_step(model, batch, optimizers), which computes no single loss: "
                "a function (model, loader) -> {name: value}"
            )


def _check_functions(task: Any) -> None:
    for name in ("parameters", "training_step", "evaluate", "mask", "collate_fn", "unpack"):
        value = getattr(task, name)
        if value is not None and not callable(value):
            raise ArgumentError(f"{name} must be a function, got {value!r}: see normkit.Task")
    if task.training_step is not None and takes(task.training_step) not in (2, 3):
        raise ArgumentError(
            "training_step must take (model, batch), or (model, batch, optimizers) if it makes the step itself, got "
            f"a function of {takes(task.training_step)} arguments"
        )


def takes(function: Callable[..., Any]) -> int:
    """How many positional arguments without a default a function has.

    >>> takes(lambda model, batch: None), takes(lambda model, batch, optimizers, more=1: None)
    (2, 3)
    """
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return sum(p.kind in kinds and p.default is inspect.Parameter.empty for p in parameters)


def steps_of(samples: int, batch_size: int, epochs: float, accumulate: int) -> int:
    """The training steps of some epochs; the last one may begin a further pass.

    >>> steps_of(100, 8, 2, 1), steps_of(100, 8, 2, 4)
    (25, 7)
    """
    return math.ceil(samples * epochs / (batch_size * accumulate))


def checked_loss(found: Any) -> Tensor:
    """The loss that a `training_step` returned.

    Raises:
        ArgumentError: it is no tensor of one number.
    """
    if not isinstance(found, Tensor) or found.numel() != 1:
        raise ArgumentError(f"training_step must return the loss as one number, got {found!r:.80}: return its mean")
    return found
