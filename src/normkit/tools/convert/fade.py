"""A norm that fades into its replacement while the model is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from normkit.errors import ArgumentError, DtypeError, StateError, nearest, whole_number

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda share: share,
    "cosine": lambda share: (1 - math.cos(math.pi * share)) / 2,
}
"""How the weight of the replacement grows with the share of the steps that are done."""

Schedule: TypeAlias = int | tuple[str, int] | Callable[[int], float]


@dataclass(frozen=True)
class FadeSchedule:
    """The weight of the replacement after each step.

    >>> [round(FadeSchedule("cosine", 4)(step), 3) for step in (0, 1, 2, 4, 5)]
    [0.0, 0.146, 0.5, 1.0, 1.0]
    """

    shape: str
    steps: int

    def __call__(self, step: int) -> float:
        return SHAPES[self.shape](min(step / self.steps, 1.0))

    def __str__(self) -> str:
        return f"{self.shape} over {self.steps} steps"


def schedule_of(schedule: Schedule) -> Callable[[int], float]:
    """A schedule as a function of the step.

    Raises:
        ArgumentError, DtypeError: another value.

    Example:
        >>> schedule_of(10)(5), schedule_of(("cosine", 10))(10)
        (0.5, 1.0)
    """
    if callable(schedule):
        return schedule
    if isinstance(schedule, bool) or not isinstance(schedule, int | tuple):
        raise DtypeError(
            "schedule must be a number of steps, a shape and a number, or a function of the step, "
            f"got {type(schedule).__name__}: give 1000 or ('cosine', 1000)"
        )
    shape, steps = schedule if isinstance(schedule, tuple) and len(schedule) == 2 else ("linear", schedule)
    if shape not in SHAPES:
        raise ArgumentError(f"a schedule has the shape linear or cosine, got {shape!r}: {nearest(str(shape), SHAPES)}")
    if (steps := whole_number("schedule", steps)) < 1:
        raise ArgumentError(f"schedule must have at least 1 step, got {steps}: without schedule convert acts at once")
    return FadeSchedule(shape, steps)


class Fade(nn.Module):
    """A norm and its replacement, mixed: ``y = (1 - t) * norm(x) + t * replacement(x)``.

    `normkit.advance` moves t from 0 to 1 by the schedule, and `normkit.finish` leaves the replacement alone. ``t`` and
    ``steps``, the number of steps so far, are buffers, so a checkpoint has them. What is not an attribute of this
    module is read from the norm, such as ``weight``.

    Args:
        norm: the old layer.
        replacement: the new one; it gets the same arguments.
        schedule: the t of each step.

    Returns:
        From ``forward``: what the norm returns, mixed.

    Example:
        >>> fade = Fade(nn.LayerNorm(4), nn.Identity(), FadeSchedule("linear", 2))
        >>> advance(fade)
        0.5
        >>> fade(torch.tensor([[2.0, 2.0, 4.0, 4.0]])).detach()
        tensor([[0.5000, 0.5000, 2.5000, 2.5000]])
    """

    t: Tensor
    steps: Tensor

    def __init__(self, norm: nn.Module, replacement: nn.Module, schedule: Callable[[int], float]) -> None:
        super().__init__()
        self.norm = norm
        self.replacement = replacement
        self.schedule = schedule
        like = next((tensor for tensor in (*norm.parameters(), *norm.buffers())), torch.empty(0))
        self.register_buffer("t", torch.zeros((), device=like.device))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long, device=like.device))
        mode = vars(norm).get("training", norm.training)
        for module in {self, *replacement.modules()} - set(norm.modules()):
            module.training = mode

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Both, mixed."""
        old, new = self.norm(*args, **kwargs), self.replacement(*args, **kwargs)
        if isinstance(old, tuple):  # with return_residual=True
            return self._mixed(old[0], new[0]), *old[1:]
        return self._mixed(old, new)

    def _mixed(self, old: Tensor, new: Tensor) -> Tensor:
        # A tensor for t: with a number, a compiled graph would be made again for each step.
        return torch.lerp(old, new.to(old.dtype), self.t.to(old.dtype))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Names with an underscore are torch's own state of a module.
            if name.startswith("_") or "norm" not in self._modules:
                raise
        return getattr(self.norm, name)

    def extra_repr(self) -> str:
        return f"t={float(self.t):.3g}, schedule={self.schedule}"


def fades(model: nn.Module) -> dict[str, Fade]:
    """The fading norms of a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Fade)}


@torch.no_grad()
def advance(model: nn.Module, steps: int = 1) -> float:
    """Move the fading norms of a model on, once for each step of the optimizer.

    ``t = schedule(steps so far)``, for each norm that ``convert(..., schedule=...)`` has made a `Fade`.

    Args:
        model: with such norms; a shared one is moved once.
        steps: how many steps to go.

    Returns:
        The smallest t: at 1 all norms have faded, and `normkit.finish` can remove them.

    Raises:
        StateError: no norm of the model fades.
        ArgumentError: a schedule that returns something else than a number from 0 to 1; steps below 1. No norm has
            moved then.

    Example:
        >>> import normkit
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        >>> model, report = normkit.convert(model, to="dyt", schedule=("linear", 4))
        >>> normkit.advance(model), normkit.advance(model, 3)
        (0.25, 1.0)
        >>> normkit.finish(model)[1]
        DynamicTanh((4,), channels_last=True, alpha_init_value=0.5, elementwise_affine=True, bias=True)
    """
    if whole_number("steps", steps) < 1:
        raise ArgumentError(f"steps of advance must be at least 1, got {steps}: leave it out for one step")
    found = fades(model)
    if not found:
        raise StateError(
            f"advance needs norms that fade, {type(model).__name__} has none: make them with convert(..., schedule=...)"
        )
    new: dict[str, tuple[int, float]] = {}
    for name, fade in found.items():
        step = int(fade.steps) + steps
        t = fade.schedule(step)
        if not isinstance(t, int | float) or not 0 <= t <= 1:
            raise ArgumentError(f"a schedule must return a number from 0 to 1, got {t!r} at step {step}: limit it")
        new[name] = step, float(t)
    for name, (step, t) in new.items():
        found[name].steps.fill_(step)
        found[name].t.fill_(t)
    return min(t for _, t in new.values())
