"""Many copies of a model trained at once: small models are bound by the calls, not by the arithmetic.

`Stacked` lays the parameters of all copies on one another and maps the model over them (`torch.func.vmap`), so that
one call of torch serves all; `Apart` goes through the copies one by one, for models that cannot be mapped. Either way
the copies share nothing: what becomes of one does not depend on the others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.utils import _pytree as pytree

from normkit.study.run import Setting

Loss = Callable[[Any, Any], Tensor]
MakeOptimizer = Callable[..., torch.optim.Optimizer]

_ELEMENTWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.Adamax,
    torch.optim.RMSprop,
)
"""Their step treats each number alone, so one step on stacked parameters is the step of each copy."""


class Replicas(ABC):
    """Copies of one architecture, each with its own parameters and running statistics."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.models = list(models)
        self.optimizers: list[tuple[torch.optim.Optimizer, list[float]]] = []

    def __len__(self) -> int:
        return len(self.models)

    @abstractmethod
    def losses(self, loss: Loss, inputs: Any, targets: Any) -> Tensor:
        """The loss of each copy on its own batch: the first dimension of inputs and targets is that of the copies."""

    @abstractmethod
    def outputs(self, inputs: Any) -> list[Any]:
        """What each copy makes of the same inputs."""

    @abstractmethod
    def optimize(self, make: MakeOptimizer, settings: Sequence[Setting]) -> None:
        """Give each copy an optimizer with its own learning rate and options."""

    @abstractmethod
    def zero_grad(self) -> None:
        """Set all gradients to 0."""

    @abstractmethod
    def keepers(self) -> list[nn.Module]:
        """The modules that say how running statistics are kept; those of every copy follow them."""

    @abstractmethod
    def reset_statistics(self) -> None:
        """Begin all running statistics anew."""

    def unstacked(self) -> list[nn.Module]:
        """The copies as models of their own."""
        return self.models

    def train(self, mode: bool = True) -> None:
        """All copies in training or in evaluation mode."""
        for model in self.models:
            model.train(mode)

    def step(self, loss: Loss, inputs: Any, targets: Any) -> Tensor:
        """One training step of every copy; the losses before it."""
        self.zero_grad()
        losses = self.losses(loss, inputs, targets)
        losses.sum().backward()
        for optimizer, _ in self.optimizers:
            optimizer.step()
        return losses.detach()

    def scale_rates(self, factor: float) -> None:
        """Set every learning rate to this part of what it started from."""
        for optimizer, base in self.optimizers:
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * factor

    def _keep(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizers.append((optimizer, [group["lr"] for group in optimizer.param_groups]))

    @contextmanager
    def averaging(self) -> Iterator[Callable[[int], None]]:
        """Running statistics as plain averages over batches: call what this gives with the number of each batch."""
        keepers = self.keepers()
        before = [keeper.momentum for keeper in keepers]
        self.reset_statistics()

        def count(batch: int) -> None:
            for keeper in keepers:
                keeper.momentum = 1 / batch  # type: ignore[assignment]

        try:
            yield count
        finally:
            for keeper, momentum in zip(keepers, before, strict=True):
                keeper.momentum = momentum


class Apart(Replicas):
    """The copies one by one."""

    def losses(self, loss: Loss, inputs: Any, targets: Any) -> Tensor:
        found = []
        for i, model in enumerate(self.models):
            x, y = _take(inputs, i), _take(targets, i)
            found.append(loss(model(x), y))
        return torch.stack(found)

    def outputs(self, inputs: Any) -> list[Any]:
        return [model(inputs) for model in self.models]

    def optimize(self, make: MakeOptimizer, settings: Sequence[Setting]) -> None:
        for model, (rate, options) in zip(self.models, settings, strict=True):
            self._keep(make([p for p in model.parameters() if p.requires_grad], rate, **dict(options)))

    def zero_grad(self) -> None:
        for model in self.models:
            model.zero_grad()

    def keepers(self) -> list[nn.Module]:
        return [module for model in self.models for module in _keepers(model)]

    def reset_statistics(self) -> None:
        for keeper in self.keepers():
            keeper.reset_running_stats()  # type: ignore[operator]


class Stacked(Replicas):
    """The copies on one another."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__(models)
        parameters, self.buffers = stack_module_state(self.models)
        self.parameters = {
            name: stacked.detach().requires_grad_(models[0].get_parameter(name).requires_grad)
            for name, stacked in parameters.items()
        }
        for stacked in self._trained():
            stacked.grad = torch.zeros_like(stacked)

    def _trained(self) -> list[Tensor]:
        return [stacked for stacked in self.parameters.values() if stacked.requires_grad]

    def _call(self, parameters: Any, buffers: Any, inputs: Any) -> Any:
        return functional_call(self.models[0], (parameters, buffers), (inputs,))

    def losses(self, loss: Loss, inputs: Any, targets: Any) -> Tensor:
        def one(parameters: Any, buffers: Any, x: Any, y: Any) -> Tensor:
            return loss(self._call(parameters, buffers, x), y)

        found: Tensor = vmap(one)(self.parameters, self.buffers, inputs, targets)
        return found

    def outputs(self, inputs: Any) -> list[Any]:
        stacked = vmap(self._call, in_dims=(0, 0, None))(self.parameters, self.buffers, inputs)
        return [_take(stacked, i) for i in range(len(self))]

    def optimize(self, make: MakeOptimizer, settings: Sequence[Setting]) -> None:
        start = 0
        for (rate, options), same in groupby(settings):
            count = len(list(same))
            probe = make([torch.zeros(1, requires_grad=True)], rate, **dict(options))
            if type(probe) in _ELEMENTWISE:
                self._keep(make(self._part(slice(start, start + count)), rate, **dict(options)))
            else:
                for i in range(start, start + count):
                    self._keep(make(self._part(i), rate, **dict(options)))
            start += count

    def _part(self, index: slice | int) -> list[Tensor]:
        """The parameters of some copies as an optimizer takes them; they and their gradients are views."""
        parts = []
        for stacked in self._trained():
            part = stacked.detach()[index]
            assert stacked.grad is not None
            part.grad = stacked.grad[index]
            parts.append(part)
        return parts

    def zero_grad(self) -> None:
        torch._foreach_zero_([stacked.grad for stacked in self._trained() if stacked.grad is not None])

    @torch.no_grad()
    def unstacked(self) -> list[nn.Module]:
        for i, model in enumerate(self.models):
            for own in (model.named_parameters(), model.named_buffers()):
                for name, tensor in own:
                    tensor.copy_((self.parameters if name in self.parameters else self.buffers)[name][i])
        return self.models

    def keepers(self) -> list[nn.Module]:
        # The one model that is mapped stands for all; its momentum is theirs.
        return _keepers(self.models[0])

    def reset_statistics(self) -> None:
        for name, buffer in self.buffers.items():
            last = name.rpartition(".")[2]
            if last == "running_var":
                buffer.fill_(1)
            elif last in ("running_mean", "num_batches_tracked"):
                buffer.zero_()


def can_be_stacked(build: Callable[[], nn.Module], loss: Loss, inputs: Any, targets: Any) -> bool:
    """Whether two copies of a model on one another compute what they compute alone, tried on a batch.

    Not so for a model that draws random numbers (dropout), branches on values, or has state that is not in buffers.

    Args:
        build: makes the model; two calls give equal ones.
        loss: (outputs, targets) -> a number.
        inputs, targets: one batch.
    """
    try:
        found = []
        for kind in (Stacked, Apart):
            copies = kind([build(), build()])
            copies.train()
            losses = copies.losses(loss, *pytree.tree_map(lambda t: t.expand(2, *t.shape), (inputs, targets)))
            losses.sum().backward()
            found.append(losses.detach())
    except Exception:
        # Whatever a stranger's model raises under vmap only says that it goes one by one.
        return False
    # Equal up to rounding; half a percent tells rounding through many layers from another computation.
    return torch.allclose(found[0], found[1], rtol=5e-3, atol=1e-4)


def replicas(models: Sequence[nn.Module], stacked: bool) -> Replicas:
    """The copies, on one another where that is known to work and there is more than one."""
    return Stacked(models) if stacked and len(models) > 1 else Apart(models)


def _keepers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(getattr(module, "running_mean", None), Tensor)]


def _take(tree: Any, index: int) -> Any:
    return pytree.tree_map(lambda t: t[index] if isinstance(t, Tensor) else t, tree)
