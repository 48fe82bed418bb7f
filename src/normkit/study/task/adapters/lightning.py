"""A task from a Lightning module: `training_step`, `validation_step` and `configure_optimizers`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normkit.errors import ArgumentError
from normkit.study.task.recipe import PerEpoch

SCALED = ("lr", "initial_lr", "max_lr", "min_lr")
"""The keys of a parameter group that are learning rates."""


def options_of(module: Callable[[], Any], metric: str | None) -> dict[str, Any]:
    """The arguments of a `Task` for a Lightning module.

    Args:
        module: makes the module, or its class.
        metric: name of the value that is reported; None for the first that the validation step gives.

    Raises:
        ArgumentError: the module lacks a method, or is an object that was made already.
    """
    if isinstance(module, nn.Module) or not callable(module):
        raise ArgumentError(
            f"module must be a function that makes the module, got {type(module).__name__}: give the class, or "
            "`lambda: Module(...)`"
        )
    with torch.random.fork_rng(devices=[]):
        example = module()
    missing = [name for name in ("training_step", "configure_optimizers") if not hasattr(example, name)]
    if missing:
        raise ArgumentError(f"module must have {' and '.join(missing)} as a LightningModule has, it does not")
    own = getattr(example, "automatic_optimization", True) is False
    return {
        "model": module,
        "parameters": _itself,
        "optimizer": configured,
        "training_step": _manual_step if own else _step,
        "evaluate": _evaluate,
        "metric_name": metric or "",
    }


def _itself(model: nn.Module) -> nn.Module:
    """What `configured` gets: the module has its own rule for its parameters."""
    return model


def configured(module: Any, lr: float) -> Any:
    """The optimizers and the scheduler of a module, with its rates scaled so that the first one is `lr`."""
    optimizers, schedulers = _taken_apart(module.configure_optimizers())
    first = optimizers[0].param_groups[0].get("initial_lr", optimizers[0].param_groups[0]["lr"])
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.update({name: _scaled(group[name], lr / first) for name in SCALED if name in group})
    for scheduler in schedulers:
        inner = scheduler.scheduler if isinstance(scheduler, PerEpoch) else scheduler
        for each in (inner, *getattr(inner, "_schedulers", ())):
            each.base_lrs = [_scaled(rate, lr / first) for rate in each.base_lrs]
    if len(optimizers) > 1:
        if schedulers:
            raise ArgumentError(
                "configure_optimizers may give a scheduler for a single optimizer, got "
                f"{len(optimizers)} optimizers and {len(schedulers)} schedulers: leave the schedulers out"
            )
        return optimizers
    return (optimizers[0], schedulers[0]) if schedulers else optimizers[0]


def _scaled(rate: Any, factor: float) -> Any:
    return rate * factor


def _taken_apart(found: Any) -> tuple[list[Any], list[Any]]:
    """Optimizers and schedulers in what `configure_optimizers` returns, in any of its forms."""
    if isinstance(found, torch.optim.Optimizer):
        return [found], []
    if isinstance(found, Mapping):
        schedulers = [found["lr_scheduler"]] if "lr_scheduler" in found else []
        return [found["optimizer"]], [_scheduler(each) for each in schedulers]
    if isinstance(found, Sequence) and found:
        if len(found) == 2 and all(isinstance(each, list | tuple) for each in found):
            return list(found[0]), [_scheduler(each) for each in found[1]]
        parts = [_taken_apart(each) for each in found]
        return [o for optimizers, _ in parts for o in optimizers], [s for _, schedulers in parts for s in schedulers]
    raise ArgumentError(f"configure_optimizers must return optimizers, got {found!r:.80}: return one")


def _scheduler(given: Any) -> Any:
    """A scheduler; by default Lightning makes its step after each epoch."""
    if isinstance(given, Mapping):
        return given["scheduler"] if given.get("interval") == "step" else PerEpoch(given["scheduler"])
    return PerEpoch(given)


@dataclass
class _Logged:
    """What a module logs in one step."""

    values: dict[str, float]

    def log(self, name: str, value: Any, *_: Any, **__: Any) -> None:
        """In place of `LightningModule.log`."""
        self.values[name] = float(torch.as_tensor(value).detach())

    def log_dict(self, values: Mapping[str, Any], *_: Any, **__: Any) -> None:
        """In place of `LightningModule.log_dict`."""
        for name, value in values.items():
            self.log(name, value)


def _logged(module: Any) -> _Logged:
    """Collect what a module logs, which without a trainer it cannot."""
    logged = _Logged({})
    module.log, module.log_dict = logged.log, logged.log_dict
    return logged


def _called(step: Callable[..., Any], batch: Any) -> Any:
    """A step with its batch, and the number 0 if it takes one."""
    return step(batch, 0) if len(inspect.signature(step).parameters) > 1 else step(batch)


def _step(module: Any, batch: Any) -> Any:
    _logged(module)
    found = _called(module.training_step, batch)
    return found["loss"] if isinstance(found, Mapping) else found


def _manual_step(module: Any, batch: Any, optimizers: Any) -> Any:
    logged = _logged(module)
    module.optimizers = lambda *_, **__: optimizers
    module.manual_backward = lambda loss, *args, **kwargs: loss.backward(*args, **kwargs)
    found = _called(module.training_step, batch)
    if isinstance(found, Mapping):
        found = found.get("loss")
    # The learning curve needs a number; without one it shows the sum of what is logged.
    return found if isinstance(found, Tensor) else sum(logged.values.values())


def _evaluate(module: Any, loader: Any) -> dict[str, float]:
    """What the validation step logs or returns, as a mean over the samples."""
    step = getattr(module, "validation_step", None)
    # The method of a module without a validation step is that of the base class, which does nothing.
    own = step is not None and "lightning" not in type(module).validation_step.__module__.split(".")[0]
    totals: dict[str, float] = {}
    count = 0
    for batch in loader:
        logged = _logged(module)
        found = _called(step if own and step is not None else module.training_step, batch)
        if isinstance(found, Mapping):
            logged.log_dict(found)
        elif found is not None:
            logged.values.setdefault("loss", float(torch.as_tensor(found).detach()))
        if not logged.values:
            raise ArgumentError("validation_step must log a value or return the loss, it does neither")
        size = next(len(t) for t in torch.utils._pytree.tree_leaves(batch) if isinstance(t, Tensor) and t.dim())
        count += size
        for name, value in logged.values.items():
            totals[name] = totals.get(name, 0.0) + size * value
    return {name: total / count for name, total in totals.items()}
