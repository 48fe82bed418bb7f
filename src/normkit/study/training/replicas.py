"""Trains many copies of a model at once, because small models spend more time on calls than on arithmetic.

`Stacked` stacks the parameters of all copies along a new first dimension and maps the model over them
(`torch.func.vmap`), so that one call of torch computes all copies. The operations of one training step are recorded
once and replayed. `Separate` trains the copies one after the other, for models that cannot be mapped. In both cases the
results of one copy do not depend on the others.
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
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from normkit.study.training.trial import Setting

Loss = Callable[[Any, Any], Tensor]
Tensors = dict[str, Tensor]
Gradients = Sequence[Tensor | None]
Given = tuple[Tensors, Tensors, Any, Any]
"""Parameters, buffers, inputs and targets of all copies."""
Step = Callable[..., tuple[Tensor, Gradients]]
Layouts = dict[str, tuple[int, ...]]
RecordedSteps = dict[int, tuple[Layouts, Step | None]]
"""For each number of copies, the memory layout of the parameters, and the recorded step if it can be recorded."""
MakeOptimizer = Callable[..., torch.optim.Optimizer]

ALL = slice(None)

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
"""Optimizers whose step is elementwise, so that one step on stacked parameters is the step of each copy."""


class Replicas(ABC):
    """Copies of one architecture, each with its own parameters and running statistics."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.models = list(models)
        self.optimizers: list[tuple[torch.optim.Optimizer, list[float]]] = []

    def __len__(self) -> int:
        return len(self.models)

    @abstractmethod
    def descend(self, loss: Loss, inputs: Any, targets: Any) -> Tensor:
        """The loss of each copy on its own batch; also sets the gradients for the optimizers.

        The first dimension of inputs and targets counts the copies.
        """

    @abstractmethod
    def outputs(self, inputs: Any, some: slice = ALL) -> list[Any]:
        """The outputs of all copies, or of some, for the same inputs."""

    @abstractmethod
    def optimize(self, make: MakeOptimizer, settings: Sequence[Setting]) -> None:
        """Give each copy an optimizer with its own learning rate and options."""

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
        losses = self.descend(loss, inputs, targets)
        for optimizer, _ in self.optimizers:
            optimizer.step()
        return losses

    def scale_rates(self, factor: float) -> None:
        """Set every learning rate to this fraction of its initial value."""
        for optimizer, base in self.optimizers:
            for group, rate in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * factor

    def _keep(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizers.append((optimizer, [group["lr"] for group in optimizer.param_groups]))

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
    """Copies that are trained one after the other."""

    def descend(self, loss: Loss, inputs: Any, targets: Any) -> Tensor:
        found = []
        for i, model in enumerate(self.models):
            model.zero_grad()
            value = loss(model(_take(inputs, i)), _take(targets, i))
            value.backward()
            found.append(value.detach())
        return torch.stack(found)

    def outputs(self, inputs: Any, some: slice = ALL) -> list[Any]:
        return [model(inputs) for model in self.models[some]]

    def optimize(self, make: MakeOptimizer, settings: Sequence[Setting]) -> None:
        for model, (rate, options) in zip(self.models, settings, strict=True):
            self._keep(make([p for p in model.parameters() if p.requires_grad], rate, **dict(options)))

    def statistics_modules(self) -> list[nn.Module]:
        return [module for model in self.models for module in _with_statistics(model)]

    def reset_statistics(self) -> None:
        for module in self.statistics_modules():
            module.reset_running_stats()  # type: ignore[operator]


class Stacked(Replicas):
    """Copies whose parameters are stacked along a new first dimension."""

    def __init__(self, models: Sequence[nn.Module], recorded: RecordedSteps | None = None) -> None:
        super().__init__(models)
        self._recorded = recorded
        self.parts: list[tuple[Tensor, str, slice | int]] = []
        self._step: Step | None = None
        parameters, self.buffers = stack_module_state(self.models)
        self.parameters = {
            name: stacked.detach().requires_grad_(models[0].get_parameter(name).requires_grad)
            for name, stacked in parameters.items()
        }

    def _trained(self) -> dict[str, Tensor]:
        return {name: stacked for name, stacked in self.parameters.items() if stacked.requires_grad}

    def _call(self, parameters: Any, buffers: Any, inputs: Any) -> Any:
        return functional_call(self.models[0], (parameters, buffers), (inputs,))

    def descend(self, loss: Loss, inputs: Any, targets: Any) -> Tensor:
        given = (self.parameters, self.buffers, inputs, targets)
        if self._step is None:
            given = self._begin(self._mapped(loss), given)
        assert self._step is not None
        with torch.no_grad():
            losses, gradients = self._step(*given)
        trained = self._trained()
        found = {name: _laid_out(g, like) for (name, like), g in zip(trained.items(), gradients, strict=True)}
        for part, name, index in self.parts:
            gradient = found[name]
            part.grad = None if gradient is None else _view(gradient, index)
        return losses

    def _begin(self, mapped: Step, given: Given) -> Given:
        """Choose between the recorded and the mapped step."""
        self._step = mapped
        if self._recorded is None:
            return given
        if len(self) not in self._recorded:
            layouts = self._layouts(mapped, given)
            self._lay_out(layouts)
            self._recorded[len(self)] = layouts, record(mapped, (self.parameters, *given[1:]))
        layouts, recorded = self._recorded[len(self)]
        self._lay_out(layouts)
        self._step = recorded or mapped
        return self.parameters, *given[1:]

    def _layouts(self, mapped: Step, given: Given) -> Layouts:
        """The strides of the gradients; parameters with the same strides avoid a copy at every step."""
        _, gradients = mapped(*_copied(given))
        return {
            name: g.stride()
            for name, g in zip(self._trained(), gradients, strict=True)
            if g is not None and g.stride(0) == g[0].numel() and torch.empty_like(g).stride() == g.stride()
        }

    @torch.no_grad()
    def _lay_out(self, layouts: Layouts) -> None:
        for name, strides in layouts.items():
            was = self.parameters[name]
            if was.stride() != strides:
                now = torch.empty_strided(was.shape, strides, dtype=was.dtype, device=was.device).copy_(was)
                self.parameters[name] = now.requires_grad_()
        for part, name, index in self.parts:
            part.data = _view(self.parameters[name].detach(), index)

    def _mapped(self, loss: Loss) -> Step:
        """Losses and gradients of all copies as a pure function."""

        def one(parameters: Tensors, buffers: Tensors, inputs: Any, targets: Any) -> Tensor:
            return loss(self._call(parameters, buffers, inputs), targets)

        def step(parameters: Tensors, buffers: Tensors, inputs: Any, targets: Any) -> tuple[Tensor, Gradients]:
            with torch.enable_grad():
                leaves = {k: v.detach().requires_grad_(self.parameters[k].requires_grad) for k, v in parameters.items()}
                losses = vmap(one)(leaves, buffers, inputs, targets)
                trained = [leaf for leaf in leaves.values() if leaf.requires_grad]
                return losses.detach(), torch.autograd.grad(losses.sum(), trained, allow_unused=True)

        return step

    def outputs(self, inputs: Any, some: slice = ALL) -> list[Any]:
        parameters, buffers = (
            {name: stacked[some] for name, stacked in each.items()} for each in (self.parameters, self.buffers)
        )
        stacked = vmap(self._call, in_dims=(0, 0, None))(parameters, buffers, inputs)
        return [_take(stacked, i) for i in range(len(range(len(self))[some]))]

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
        """The parameters of some copies for an optimizer: views whose gradients are set at each step."""
        parts = {name: _view(stacked.detach(), index) for name, stacked in self._trained().items()}
        self.parts += [(part, name, index) for name, part in parts.items()]
        return list(parts.values())

    @torch.no_grad()
    def unstacked(self) -> list[nn.Module]:
        for i, model in enumerate(self.models):
            for own in (model.named_parameters(), model.named_buffers()):
                for name, tensor in own:
                    tensor.copy_((self.parameters if name in self.parameters else self.buffers)[name][i])
        return self.models

    def statistics_modules(self) -> list[nn.Module]:
        # All copies are mapped over the first model, so its momentum applies to all.
        return _with_statistics(self.models[0])

    def reset_statistics(self) -> None:
        for name, buffer in self.buffers.items():
            last = name.rpartition(".")[2]
            if last == "running_var":
                buffer.fill_(1)
            elif last in ("running_mean", "num_batches_tracked"):
                buffer.zero_()


def can_be_stacked(build: Callable[[int], nn.Module], loss: Loss, inputs: Any, targets: Any) -> bool:
    """Whether two stacked copies of a model give the same results as two separate ones, tested on one batch.

    They do not if the model draws random numbers (dropout), branches on values, or has tensors that are neither
    parameters nor buffers.

    Args:
        build: makes the model from a seed.
        loss: (outputs, targets) -> a number.
        inputs, targets: one batch.
    """
    batch = pytree.tree_map(lambda t: t.expand(2, *t.shape), (inputs, targets))
    found = []
    try:
        for kind in (Stacked, Separate):
            copies = kind([build(0), build(1)])
            copies.train()
            found.append(copies.descend(loss, *batch))
    except Exception:
        # If the user's model raises any error under vmap, its copies are trained one after the other.
        return False
    return _agree(found[0], found[1])


def record(mapped: Step, given: Given) -> Step | None:
    """The operations of a call as a graph; None if they cannot be recorded.

    The graph avoids the overhead of functorch, which is larger than the arithmetic of small models. It is tested on
    another batch, because a branch that depends on values is recorded as it was taken for the first batch.
    """

    def another() -> Given:
        parameters, buffers, *batch = _copied(given)
        inputs, targets = pytree.tree_map(lambda t: t.roll(1, 0), batch)
        return parameters, buffers, inputs, targets

    try:
        with torch.no_grad():
            recorded = make_fx(mapped)(*_copied(given))
            once, again = another(), another()
            losses, gradients = recorded(*once)
            others, slopes = mapped(*again)
    except Exception:
        return None
    leaves = [pytree.tree_leaves(each) for each in ((losses, gradients, once[1]), (others, slopes, again[1]))]
    same = all(_agree(a, b) for a, b in zip(*leaves, strict=True))
    return recorded if same else None


def _copied(given: Given) -> Given:
    copied: Given = pytree.tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, given)
    return copied


def _view(stacked: Tensor, index: slice | int) -> Tensor:
    """A view of some copies for an optimizer.

    Several copies are permuted to the order of memory, because fused optimizers copy tensors that are not contiguous.
    """
    view = stacked[index]
    if isinstance(index, int):
        return view
    return view.permute(sorted(range(view.ndim), key=view.stride, reverse=True))


def _laid_out(gradient: Tensor | None, like: Tensor) -> Tensor | None:
    """A gradient with the strides of its parameter, as from autograd; fused optimizers rely on that."""
    if gradient is None or gradient.stride() == like.stride():
        return gradient
    return torch.empty_like(like).copy_(gradient)


def _agree(one: Tensor, other: Tensor) -> bool:
    """Equal except for rounding; the tolerance of half a percent is above rounding through many layers."""
    return torch.allclose(one.double(), other.double(), rtol=5e-3, atol=1e-4, equal_nan=True)


def replicas(models: Sequence[nn.Module], stacked: bool, recorded: RecordedSteps | None = None) -> Replicas:
    """Make copies, stacked if that is possible and there is more than one.

    Args:
        models: models of one architecture.
        stacked: the result of `can_be_stacked`.
        recorded: recorded steps for the same model, loss and batches; new ones are added. None records none.
    """
    return Stacked(models, recorded) if stacked and len(models) > 1 else Separate(models)


def _with_statistics(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(getattr(module, "running_mean", None), Tensor)]


def _take(tree: Any, index: int) -> Any:
    return pytree.tree_map(lambda t: t[index] if isinstance(t, Tensor) else t, tree)
