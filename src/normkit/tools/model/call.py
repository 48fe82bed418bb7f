"""Calls a model with a batch, and records what its modules get and give."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normkit.errors import ArgumentError
from normkit.parametrize.modes import evaluating
from normkit.tools.model.wrapped import unwrapped


def arguments(batch: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """The positional and the keyword arguments that a batch is.

    >>> arguments([1, 2]), arguments({"x": 1}), arguments(1)
    (((1, 2), {}), ((), {'x': 1}), ((1,), {}))
    """
    if isinstance(batch, Mapping):
        return (), batch
    return tuple(batch) if isinstance(batch, tuple | list) else (batch,), {}


def call(model: nn.Module, batch: Any) -> Any:
    """The output for a batch: a mapping of keyword arguments, a tuple or list of positional ones, or one argument."""
    args, kwargs = arguments(batch)
    return model(*args, **kwargs)


def call_on_example(model: nn.Module, example: Any) -> Any:
    """The output for a tensor, a tuple of positional or a mapping of keyword arguments.

    Raises:
        ArgumentError: an example of another type.
    """
    if not isinstance(example, Tensor | tuple | list | Mapping):
        raise ArgumentError(
            "an example must be a tensor, a tuple of positional or a mapping of keyword arguments, "
            f"got {type(example).__name__}: give one batch of the model's input"
        )
    return call(model, example)


def call_on_first(model: nn.Module, batch: Any) -> Any:
    """The output for a batch as a loader gives it: the input is the first item of a tuple or list."""
    batch = batch[0] if isinstance(batch, tuple | list) and batch else batch
    return call(model, batch if isinstance(batch, Mapping) else (batch,))


Watcher = Callable[[nn.Module, Tensor, Tensor], None]


def run(model: nn.Module, batches: Iterable[Any], watchers: Mapping[nn.Module, Watcher]) -> int:
    """Evaluate the model on batches; each watcher gets the input and output of its module. Returns their number."""

    def hook(watcher: Watcher) -> Callable[..., None]:
        def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            watcher(module, args[0] if args else next(iter(kwargs.values())), output)

        return watch

    handles = []
    count = 0
    try:
        for module, watcher in watchers.items():
            handles.append(module.register_forward_hook(hook(watcher), with_kwargs=True))
        with evaluating(model):
            for batch in batches:
                call(model, _inputs(model, batch) if isinstance(batch, tuple | list) else batch)
                count += 1
    finally:
        for handle in handles:
            handle.remove()
    return count


def _inputs(model: nn.Module, batch: Sequence[Any]) -> Sequence[Any]:
    """The items of a batch that are inputs of the model: labels that a loader adds after the input are left out.

    A tuple is the positional arguments if the model takes as many. A list is what a loader makes of samples ``(x, y)``:
    its first is the input if the model can do with that.
    """
    signature = inspect.signature(unwrapped(model).forward)
    for given in (batch, batch[:1]) if isinstance(batch, tuple) else (batch[:1], batch):
        try:
            signature.bind(*given)
        except TypeError:
            continue
        return given
    return batch


def shapes(model: nn.Module, modules: Iterable[nn.Module], batch: Any) -> dict[nn.Module, list[torch.Size]]:
    """The shapes that each of the modules gets when the model runs on a batch."""
    seen: dict[nn.Module, list[torch.Size]] = {module: [] for module in modules}
    run(model, [batch], {module: lambda m, x, y: seen[m].append(x.shape) for module in seen})
    return seen
