"""Trains many copies of a model at once, because small models spend more time on calls than on arithmetic.

`Stacked` stacks the parameters of all copies along a new first dimension and maps the model over them
(`torch.func.vmap`), so that one call of torch computes all copies. The operations of one training step are recorded
once and replayed. `Separate` trains the copies one after the other, for models that cannot be mapped. In both cases the
results of one copy do not depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from normkit.errors import StateError
from normkit.evaluation import arguments
from normkit.study.training.copies.optimizers import made, needs_closure, parameters_of
from normkit.study.training.copies.recording import Given, Step, Tensors, agree, copied, record
from normkit.study.training.copies.replay import Bound, Gradients, Replay
from normkit.study.training.copies.replicas import (
    ALL,
    Batch,
    Loss,
    MakeOptimizer,
    Parameters,
    Replicas,
    Separate,
    take,
    with_statistics,
)
from normkit.study.training.trial import Setting

Layouts = dict[str, tuple[int, ...]]
RecordedSteps = dict[int, tuple[Layouts, Replay | None]]
"""For each number of copies, the memory layout of the parameters, and the recorded step if it can be recorded."""

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


class Stacked(Replicas):
    """Copies whose parameters are stacked along a new first dimension."""

    def __init__(self, models: Sequence[nn.Module], recorded: RecordedSteps | None = None) -> None:
        super().__init__(models)
        self._recorded = recorded
        self.parts: list[tuple[Tensor, str, slice | int]] = []
        self._step: Bound | None = None
        parameters, self.buffers = stack_module_state(self.models)
        modules = models[0].named_modules()
        convolutions = tuple(f"{name}." if name else "" for name, each in modules if isinstance(each, nn.Conv2d))
        self._convolves = bool(convolutions) and all(stacked.is_cpu for stacked in parameters.values())
        self.parameters = {}
        for name, stacked in parameters.items():
            inside = self._convolves and name.startswith(convolutions)
            own = _channels_last(stacked.detach()) if inside else stacked.detach()
            self.parameters[name] = own.requires_grad_(models[0].get_parameter(name).requires_grad)

    def _trained(self) -> dict[str, Tensor]:
        return {name: stacked for name, stacked in self.parameters.items() if stacked.requires_grad}

    def _call(self, parameters: Any, buffers: Any, inputs: Any) -> Any:
        args, kwargs = arguments(inputs)
        with _InChannelsLast() if self._convolves else nullcontext():
            return functional_call(self.models[0], (parameters, buffers), args, dict(kwargs))

    def descend_all(self, loss: Loss, batches: Sequence[Batch]) -> Tensor:
        losses, gradients = self._descend(loss, *batches[0])
        for inputs, targets in batches[1:]:
            more, others = self._descend(loss, inputs, targets)
            losses = losses + more
            gradients = [b if a is None else a if b is None else a + b for a, b in zip(gradients, others, strict=True)]
        if len(batches) > 1:
            losses = losses / len(batches)
            gradients = [None if g is None else g / len(batches) for g in gradients]
        if self.clip is not None:
            gradients = _clipped(gradients, self.clip)
        found = {n: _laid_out(g, like) for (n, like), g in zip(self._trained().items(), gradients, strict=True)}
        for part, name, index in self.parts:
            gradient = found[name]
            part.grad = None if gradient is None else _view(gradient, index)
        return losses

    def _descend(self, loss: Loss, inputs: Any, targets: Any) -> tuple[Tensor, Gradients]:
        """The losses and gradients of all copies."""
        if self._step is None:
            self._step = self._chosen_step(self._mapped(loss), inputs, targets)
        with torch.no_grad():
            return self._step(inputs, targets)

    def _chosen_step(self, mapped: Step, inputs: Any, targets: Any) -> Bound:
        """The recorded step if there is one, else the mapped one."""
        if self._recorded is None:
            return partial(mapped, self.parameters, self.buffers)
        if len(self) not in self._recorded:
            layouts = self._layouts(mapped, (self.parameters, self.buffers, inputs, targets))
            self._lay_out(layouts)
            self._recorded[len(self)] = layouts, record(mapped, (self.parameters, self.buffers, inputs, targets))
        layouts, recorded = self._recorded[len(self)]
        self._lay_out(layouts)
        if recorded is None:
            return partial(mapped, self.parameters, self.buffers)
        return recorded.bind(self.parameters, self.buffers)

    def _layouts(self, mapped: Step, given: Given) -> Layouts:
        """The strides of the gradients; parameters with the same strides avoid a copy at every step."""
        _, gradients = mapped(*copied(given))
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
            if self._convolves:
                inputs = pytree.tree_map(_side_by_side, inputs)
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
        return [take(stacked, i) for i in range(len(range(len(self))[some]))]

    def optimize(self, make: MakeOptimizer, settings: Sequence[Setting], parameters: Parameters = None) -> None:
        start = 0
        for (rate, options), same in groupby(settings):
            count = len(list(same))
            probe = made(make, parameters_of(self.models[0], parameters), rate, options)
            if any(map(needs_closure, probe.optimizers)):
                raise StateError("an optimizer that evaluates the loss of one copy needs separate copies")
            together = all(type(optimizer) in _ELEMENTWISE for optimizer in probe.optimizers)
            whole = slice(start, start + count)
            for index in [whole] if together else range(start, start + count):
                self._keep(made(make, self._given(index, parameters), rate, options))
            start += count

    def _given(self, index: slice | int, parameters: Parameters) -> Any:
        """What the optimizer of some copies gets: views of their parameters, whose gradients are set at each step."""
        views = {name: _view(stacked.detach(), index) for name, stacked in self._trained().items()}
        self.parts += [(view, name, index) for name, view in views.items()]
        if parameters is None:
            return list(views.values())
        names = {id(parameter): name for name, parameter in self.models[0].named_parameters()}
        groups = parameters_of(self.models[0], parameters)
        return pytree.tree_map(lambda t: views[names[id(t)]] if isinstance(t, nn.Parameter) else t, groups)

    def tensors(self) -> dict[str, Tensor]:
        return {**self.parameters, **self.buffers}

    @torch.no_grad()
    def unstacked(self) -> list[nn.Module]:
        for i, model in enumerate(self.models):
            for own in (model.named_parameters(), model.named_buffers()):
                for name, tensor in own:
                    tensor.copy_((self.parameters if name in self.parameters else self.buffers)[name][i])
        return self.models

    def statistics_modules(self) -> list[nn.Module]:
        # All copies are mapped over the first model, so its momentum applies to all.
        return with_statistics(self.models[0])

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
    return agree(found[0], found[1])


def _view(stacked: Tensor, index: slice | int) -> Tensor:
    """A view of some copies for an optimizer.

    Several copies are permuted to the order of memory, because fused optimizers copy tensors that are not contiguous.
    """
    view = stacked[index]
    if isinstance(index, int):
        return view
    return view.permute(sorted(range(view.ndim), key=view.stride, reverse=True))


def _clipped(gradients: Gradients, limit: float) -> Gradients:
    """Gradients whose norm is at most the limit for each copy, as by `torch.nn.utils.clip_grad_norm_`."""
    squares = torch.stack([g.reshape(len(g), -1).square().sum(1) for g in gradients if g is not None])
    factor = (limit / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1.0)
    return [None if g is None else g * factor.view(-1, *[1] * (g.dim() - 1)) for g in gradients]


def _laid_out(gradient: Tensor | None, like: Tensor) -> Tensor | None:
    """A gradient with the strides of its parameter, as from autograd; fused optimizers rely on that."""
    if gradient is None or gradient.stride() == like.stride():
        return gradient
    return torch.empty_like(like).copy_(gradient)


class _InChannelsLast(TorchFunctionMode):
    """Runs models on images in channels_last for all copies, also where they need images in torch's usual format.

    A view that this format does not have is a copy. The mean over positions is computed as a mean, because
    `adaptive_avg_pool2d` calls an operation after it that vmap does for one copy at a time.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.view and not kwargs and not isinstance(args[1], torch.dtype):
            return args[0].reshape(*args[1:])
        if func is F.adaptive_avg_pool2d and len(args) == 2 and args[1] in (1, (1, 1), [1, 1]):
            return args[0].mean((-2, -1), keepdim=True)
        return func(*args, **(kwargs or {}))


def _channels_last(stacked: Tensor) -> Tensor:
    """The weights of convolutions of all copies with their channels next to each other, which torch computes faster."""
    if stacked.ndim != 5 or stacked[0, 0, 0].numel() == 1:
        return stacked
    return stacked.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


def _side_by_side(inputs: Any) -> Any:
    """Images of all copies as channels of one batch of images in channels_last."""
    if not isinstance(inputs, Tensor) or inputs.ndim != 5:
        return inputs
    return inputs.permute(1, 3, 4, 0, 2).contiguous().permute(3, 0, 4, 1, 2)
