"""Copies of a model that are trained together; `Separate` trains them one after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normkit.study.task.part import call
from normkit.study.task.recipe import checked_loss
from normkit.study.training.copies.optimizers import Made, made, needs_closure, parameters_of
from normkit.study.training.trial import Setting

Loss = Callable[[Any, Any], Tensor]
MakeOptimizer = Callable[..., Any]
Parameters = Callable[[nn.Module], Any] | None
"""Makes what the optimizer gets of a model; None for a list of its parameters."""
Batch = tuple[Any, Any]
"""Inputs and targets; their first dimension counts the copies, or they are `Rows`."""

ALL = slice(None)


@dataclass(frozen=True)
class Rows:
    """The inputs, targets or batches of each copy where they cannot be stacked."""

    rows: Sequence[Any]


class Replicas(ABC):
    """Copies of one architecture, each with its own parameters and running statistics."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.models = list(models)
        self.optimizers: list[tuple[torch.optim.Optimizer, list[float]]] = []
        self.schedulers: list[Any] = []
        self.clip: float | None = None

    def __len__(self) -> int:
        return len(self.models)

    @abstractmethod
    def descend_all(self, loss: Loss, batches: Sequence[Batch]) -> Tensor:
        """The mean loss of each copy on its own batches; also sets the gradients for the optimizers, clipped."""

    def descend(self, loss: Loss, inputs: Any, targets: Any) -> Tensor:
        """`descend_all` on one batch."""
        return self.descend_all(loss, [(inputs, targets)])

    @abstractmethod
    def outputs(self, inputs: Any, some: slice = ALL) -> list[Any]:
        """The outputs of all copies, or of some, for the same inputs."""

    @abstractmethod
    def optimize(self, make: MakeOptimizer, settings: Sequence[Setting], parameters: Parameters = None) -> None:
        """Give each copy an optimizer with its own learning rate and options."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The parameters and buffers of all copies by name, as they are now."""

    @abstractmethod
    def statistics_modules(self) -> list[nn.Module]:
        """The modules that have running statistics and whose momentum applies to every copy."""

    @abstractmethod
    def reset_statistics(self) -> None:
        """Reset all running statistics."""

    def unstacked(self) -> list[nn.Module]:
        """The copies as separate models."""
        return self.models

    def train(self, mode: bool = True) -> None:
        """Set the mode of all copies."""
        for model in self.models:
            model.train(mode)

    def step(self, loss: Loss, inputs: Any, targets: Any) -> Tensor:
        """Make one training step of every copy; returns the losses before it."""
        return self.step_over(loss, [(inputs, targets)])

    def step_over(self, loss: Loss, batches: Sequence[Batch]) -> Tensor:
        """Make one training step of every copy with the mean gradient of some batches."""
        losses = self.descend_all(loss, batches)
        for optimizer, _ in self.optimizers:
            optimizer.step()
        return losses

    def scale_rates(self, factor: float) -> None:
        """Set every learning rate to this fraction of its initial value, unless schedulers do so."""
        for optimizer, base in () if self.schedulers else self.optimizers:
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * factor

    def _keep(self, found: Made) -> None:
        for optimizer in found.optimizers:
            self.optimizers.append((optimizer, [group["lr"] for group in optimizer.param_groups]))
        self.schedulers += [] if found.scheduler is None else [found.scheduler]

    @contextmanager
    def averaging(self) -> Iterator[Callable[[int], None]]:
        """Average the running statistics over batches: call the yielded function with the number of each batch."""
        modules = self.statistics_modules()
        before = [module.momentum for module in modules]
        self.reset_statistics()

        def count(batch: int) -> None:
            for module in modules:
                module.momentum = 1 / batch  # type: ignore[assignment]

        try:
            yield count
        finally:
            for module, momentum in zip(modules, before, strict=True):
                module.momentum = momentum


class Separate(Replicas):
    """Copies that are trained one after the other.

    Args:
        models: the copies.
        training_step: (model, batch) -> loss, if the task has its own; then batches are pairs of a batch and None.
        manual: whether it gets the optimizers too, and makes the whole step.
    """

    def __init__(
        self, models: Sequence[nn.Module], training_step: Callable[..., Any] | None = None, manual: bool = False
    ) -> None:
        super().__init__(models)
        self.training_step, self.manual = training_step, manual
        self.made: list[Made] = []

    def descend_all(self, loss: Loss, batches: Sequence[Batch]) -> Tensor:
        found = []
        for i, model in enumerate(self.models):
            model.zero_grad()
            total = torch.zeros(())
            for inputs, targets in batches:
                value = self._loss(model, loss, take(inputs, i), take(targets, i)) / len(batches)
                value.backward()
                total = total + value.detach()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            found.append(total)
        return torch.stack(found)

    def _loss(self, model: nn.Module, loss: Loss, inputs: Any, targets: Any) -> Tensor:
        if self.training_step is None:
            return loss(call(model, inputs), targets)
        return checked_loss(self.training_step(model, inputs))

    def step_over(self, loss: Loss, batches: Sequence[Batch]) -> Tensor:
        if self.manual:
            return torch.stack([self._whole_step(i, batches) for i in range(len(self))])
        if not any(needs_closure(optimizer) for optimizer, _ in self.optimizers):
            return super().step_over(loss, batches)
        first: Tensor | None = None
        for i, (optimizer, _) in enumerate(self.optimizers):

            def closure(i: int = i) -> Tensor:
                nonlocal first
                losses = self.descend_all(loss, batches)
                first = losses if first is None else first
                return losses[i]

            optimizer.step(closure)  # type: ignore[arg-type]
        assert first is not None
        return first

    def _whole_step(self, index: int, batches: Sequence[Batch]) -> Tensor:
        assert self.training_step is not None
        ((batch, _),) = batches
        found = self.training_step(self.models[index], take(batch, index), self.made[index].given)
        return torch.as_tensor(found).detach().float().mean()

    def outputs(self, inputs: Any, some: slice = ALL) -> list[Any]:
        return [call(model, inputs) for model in self.models[some]]

    def optimize(self, make: MakeOptimizer, settings: Sequence[Setting], parameters: Parameters = None) -> None:
        for model, (rate, options) in zip(self.models, settings, strict=True):
            self.made.append(made(make, parameters_of(model, parameters), rate, options))
            self._keep(self.made[-1])

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{i}.{name}": tensor
            for i, model in enumerate(self.models)
            for own in (model.named_parameters(), model.named_buffers())
            for name, tensor in own
        }

    def statistics_modules(self) -> list[nn.Module]:
        return [module for model in self.models for module in with_statistics(model)]

    def reset_statistics(self) -> None:
        for module in self.statistics_modules():
            module.reset_running_stats()  # type: ignore[operator]


def with_statistics(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(getattr(module, "running_mean", None), Tensor)]


def take(tree: Any, index: int) -> Any:
    if isinstance(tree, Rows):
        return tree.rows[index]
    return pytree.tree_map(lambda t: t[index] if isinstance(t, Tensor) else t, tree)
