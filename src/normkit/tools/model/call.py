"""Runs a model on batches, and shows what its modules get and give meanwhile."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normkit.parametrize.modes import evaluating
from normkit.tools.model.statistics import bare

Watcher = Callable[[nn.Module, Tensor, Tensor], None]


def run(model: nn.Module, batches: Iterable[Any], watchers: Mapping[nn.Module, Watcher]) -> int:
    """Evaluate the model on batches; each watcher is told the input and output of its module. Returns their number."""

    def hook(watcher: Watcher) -> Callable[..., None]:
        def told(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            watcher(module, args[0] if args else next(iter(kwargs.values())), output)

        return told

    handles = []
    count = 0
    try:
        for module, watcher in watchers.items():
            handles.append(module.register_forward_hook(hook(watcher), with_kwargs=True))
        with evaluating(model):
            for batch in batches:
                _call(model, batch)
                count += 1
    finally:
        for handle in handles:
            handle.remove()
    return count


def _call(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, tuple | list) and batch:
        model(*_inputs(model, batch))
    else:
        model(batch)


def _inputs(model: nn.Module, batch: Sequence[Any]) -> Sequence[Any]:
    """All of a batch that are inputs of the model: labels, as a loader puts them behind the input, are none.

    A tuple is the positional arguments if the model takes as many. A list is what a loader makes of samples ``(x, y)``:
    its first is the input if the model can do with that.
    """
    signature = inspect.signature(bare(model).forward)
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
