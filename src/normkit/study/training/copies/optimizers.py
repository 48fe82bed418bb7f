"""What the `optimizer` function of a task may return, and what it gets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from normkit.errors import ArgumentError
from normkit.study.task.recipe import PerEpoch
from normkit.study.training.trial import Options

LENGTHS = ("total_steps", "T_max", "total_iters")
"""Where torch's schedulers keep the number of steps that they are made for."""


@dataclass(frozen=True)
class Made:
    """Optimizers and a scheduler.

    Attributes:
        given: what the function returned, which `training_step` gets if it makes the steps itself.
        optimizers: all optimizers in it.
        scheduler: of the learning rate, if there is one.
    """

    given: Any
    optimizers: tuple[torch.optim.Optimizer, ...]
    scheduler: Any = None


def made(make: Callable[..., Any], parameters: Any, rate: float, options: Options = ()) -> Made:
    """Call the `optimizer` function of a task.

    Raises:
        ArgumentError: it returns no optimizer, or a scheduler that needs a metric.
    """
    found = make(parameters, rate, **dict(options))
    if isinstance(found, torch.optim.Optimizer):
        return Made(found, (found,))
    pair = isinstance(found, Sequence) and len(found) == 2 and isinstance(found[0], torch.optim.Optimizer)
    if pair and not isinstance(found[1], torch.optim.Optimizer):
        scheduler = found[1]
        inner = scheduler.scheduler if isinstance(scheduler, PerEpoch) else scheduler
        if isinstance(inner, ReduceLROnPlateau) or not callable(getattr(inner, "step", None)):
            raise ArgumentError(
                "optimizer may return (optimizer, scheduler) with a scheduler whose step takes no metric, got "
                f"{type(inner).__name__}: leave the scheduler out, and give schedule= or patience="
            )
        return Made(found[0], (found[0],), scheduler)
    several = list(found.values()) if isinstance(found, Mapping) else found
    valid = isinstance(several, Sequence) and all(isinstance(each, torch.optim.Optimizer) for each in several)
    if not valid or not several:
        raise ArgumentError(
            f"optimizer must return a torch optimizer, (optimizer, scheduler) or several optimizers, got {found!r:.80}"
        )
    return Made(found, tuple(several))


def parameters_of(model: nn.Module, parameters: Callable[[nn.Module], Any] | None) -> Any:
    """What an optimizer gets: the parameters that require a gradient, or what the task makes of the model."""
    if parameters is None:
        return [p for p in model.parameters() if p.requires_grad]
    return _listed(parameters(model))


def _listed(groups: Any) -> Any:
    """Groups with lists in place of generators, which could be read once only."""
    if isinstance(groups, Mapping):
        return {key: _listed(value) if key == "params" else value for key, value in groups.items()}
    if isinstance(groups, Tensor | nn.Module | str) or not isinstance(groups, Iterable):
        return groups
    return [_listed(each) for each in groups]


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step evaluates the loss itself, as that of `LBFGS` does.

    >>> needs_closure(torch.optim.LBFGS([torch.zeros(1)])), needs_closure(torch.optim.SGD([torch.zeros(1)]))
    (True, False)
    """
    # A step may be wrapped; its class has the signature.
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def advance(scheduler: Any, ends_epoch: bool) -> None:
    """Make a step of a scheduler, if it is due after this training step."""
    if isinstance(scheduler, PerEpoch):
        if ends_epoch:
            scheduler.scheduler.step()
    else:
        scheduler.step()


def check_length(scheduler: Any, steps: int) -> None:
    """Refuse a scheduler that is made for another number of steps.

    Raises:
        ArgumentError: it is longer than the run, or it would end before.
    """
    if not isinstance(scheduler, LRScheduler):
        return
    parts = [scheduler, *getattr(scheduler, "_schedulers", ())]
    for part in parts:
        for name in LENGTHS:
            length = getattr(part, name, None)
            if isinstance(length, int) and (length > steps or (name == "total_steps" and length < steps)):
                raise ArgumentError(
                    f"the scheduler of optimizer must fit into a run of {steps} steps, got {type(part).__name__} with "
                    f"{name}={length}: give schedule= and warmup= instead, which know the length of the run"
                )
