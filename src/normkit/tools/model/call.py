"""Calls a model with an example, or with batches while its modules are observed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from normkit.errors import ArgumentError
from normkit.evaluation import call, evaluating
from normkit.tools.model.wrapped import unwrapped


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


Observer = Callable[[nn.Module, Tensor, Tensor], None]
"""Gets a module, its input and its output."""


def observe(model: nn.Module, batches: Iterable[Any], observers: Mapping[nn.Module, Observer]) -> int:
    """Evaluate the model on batches, and call the observer of each module for each call of the module.

    Returns:
        The number of batches.
    """

    def hook(observer: Observer) -> Callable[..., None]:
        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            observer(module, args[0] if args else next(iter(kwargs.values())), output)

        return after

    count = 0
    with ExitStack() as hooks:
        for module, observer in observers.items():
            hooks.callback(module.register_forward_hook(hook(observer), with_kwargs=True).remove)
        with evaluating(model):
            for batch in batches:
                call(model, _inputs(model, batch) if isinstance(batch, tuple | list) else batch)
                count += 1
    return count


def _inputs(model: nn.Module, batch: Sequence[Any]) -> Sequence[Any]:
    """The items of a batch that are inputs of the model: labels that a loader adds after the input are left out.

    A tuple holds the positional arguments if the model takes as many. A loader makes a list from samples ``(x, y)``:
    its first item is the input if the model accepts one argument.
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
    observe(model, [batch], {module: lambda m, x, y: seen[m].append(x.shape) for module in seen})
    return seen
