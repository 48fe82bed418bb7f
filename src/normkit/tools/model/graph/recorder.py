"""The one recorder of what happens while a model runs: calls of its modules, and of torch's functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Function = Callable[..., Any]
Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]
"""The positional and the keyword arguments of a call."""


class Recorder(TorchFunctionMode):
    """Abstract: is informed of each call in one run of a model; a subclass keeps what it needs.

    Functions are reported wherever they are called, inside a watched module too. Which modules are watched, and so
    which are single steps of the run, is for the caller to decide.
    """

    def before_function(self, func: Function, given: Arguments) -> None:
        """A function of torch is about to be called."""

    def after_function(self, func: Function, given: Arguments, output: Any) -> None:
        """It has returned."""

    def before_module(self, module: nn.Module, given: Arguments) -> None:
        """A watched module is about to be called."""

    def after_module(self, module: nn.Module, given: Arguments, output: Any) -> None:
        """It has returned."""

    def record(self, run: Callable[[], Any], watched: Collection[nn.Module]) -> Any:
        """Run without gradients, and report the calls of the watched modules and of all functions.

        Args:
            run: calls the model.
            watched: modules of the model.

        Returns:
            What `run` returned.
        """

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.before_module(module, (args, kwargs))

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self.after_module(module, (args, kwargs), output)

        with ExitStack() as stack:
            for module in watched:
                stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
            with torch.no_grad(), self:
                return run()

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given: Arguments = (args, kwargs or {})
        self.before_function(func, given)
        output = func(*args, **given[1])
        self.after_function(func, given, output)
        return output


def name_of(func: Function) -> str:
    """The name of a function of torch; ``__get__`` for whatever reads an attribute of a tensor."""
    return str(getattr(func, "__name__", func))


def versions(tensors: Iterable[Tensor]) -> list[int]:
    """The counters of writes to each tensor; 0 for those that are made in inference mode, which have none."""
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for entry in dataclasses.fields(value):
            yield from tensors_in(getattr(value, entry.name, None))


def tensors_held_by(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Every tensor that code which has this value can read: those of `tensors_in`, and in attributes of objects.

    Args:
        value: anything; modules and classes in it are left out.
        seen: the identities of the objects that were visited, which are left out.

    Example:
        >>> from types import SimpleNamespace
        >>> len([*tensors_held_by(SimpleNamespace(first=torch.zeros(2), rest=[torch.ones(2)]))])
        2
    """
    seen = set() if seen is None else seen
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            yield item
            continue
        if id(item) in seen or isinstance(item, nn.Module | type | ModuleType | str | int | float):
            continue
        seen.add(id(item))
        if isinstance(item, Mapping):
            waiting += item.values()
        elif isinstance(item, tuple | list | set | frozenset):
            waiting += item
        if isinstance(own := getattr(item, "__dict__", None), dict) and not callable(item):
            waiting += own.values()


def kept_by_modules(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """The tensors that modules keep as plain attributes: module, attribute and tensor."""
    common, seen = vars(nn.Module()), set[int]()
    for module in model.modules():
        for key, value in vars(module).items():
            if key not in common:
                yield from ((module, key, tensor) for tensor in tensors_held_by(value, seen))
