"""Runs a user's model to look at it: calls it with a batch, and leaves it as it was."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


def arguments(batch: Any, separate: tuple[type, ...] = (tuple, list)) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """The positional and the keyword arguments in a batch.

    Args:
        batch: a mapping of keyword arguments, several positional ones, or a single one.
        separate: the containers whose items are separate arguments.

    >>> arguments([1, 2]), arguments({"x": 1}), arguments(1), arguments([1, 2], separate=(tuple,))
    (((1, 2), {}), ((), {'x': 1}), ((1,), {}), (([1, 2],), {}))
    """
    if isinstance(batch, Mapping):
        return (), batch
    # A packed sequence is a tuple, and one input.
    several = isinstance(batch, separate) and not isinstance(batch, PackedSequence)
    items: Any = batch if several else (batch,)
    return tuple(items), {}


def call(model: nn.Module, batch: Any, separate: tuple[type, ...] = (tuple, list)) -> Any:
    """The output for a batch, whose items are passed as `arguments` finds them."""
    args, kwargs = arguments(batch, separate)
    return model(*args, **kwargs)


def modes_of(model: nn.Module) -> dict[nn.Module, bool]:
    """The last `train` or `eval` call on each module; the attribute of a frozen norm is always False."""
    return {module: vars(module).get("training", module.training) for module in model.modules()}


def restore_modes(modes: Mapping[nn.Module, bool]) -> None:
    """Give each module its mode again."""
    for module, training in modes.items():
        # A train() of its own may do more than set a flag: exchange graphs, or take merged weights apart.
        if module.training != training and type(module).train is not nn.Module.train:
            module.train(training)
    for module, training in modes.items():
        module.training = training


@contextmanager
def keeping_modes(model: nn.Module) -> Iterator[dict[nn.Module, bool]]:
    """The modes of all modules, which are restored at the end; the caller may add modules and their modes."""
    modes = modes_of(model)
    try:
        yield modes
    finally:
        restore_modes(modes)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients; the modes of all modules are restored at the end."""
    with keeping_modes(model), torch.no_grad():
        model.eval()
        yield


@contextmanager
def preserving(model: nn.Module) -> Iterator[None]:
    """Restore everything that a forward in any mode changes, also after an error.

    These are modes, momentum, buffers, gradients, and the state of the random generators. Parameters are not copied:
    a forward under `torch.no_grad` does not change them.
    """
    momenta = [(vars(m), vars(m)["momentum"]) for m in model.modules() if "momentum" in vars(m)]
    buffers = [(module._buffers, dict(module._buffers)) for module in model.modules()]
    tensors = {id(b): b for _, held in buffers for b in held.values() if b is not None and _has_values(b)}
    values = [(tensor, tensor.detach().clone()) for tensor in tensors.values()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    with keeping_modes(model), _keeping_random_state():
        try:
            yield
        finally:
            for attributes, momentum in momenta:
                attributes["momentum"] = momentum
            for current, held in buffers:
                current.clear()
                current.update(held)
            with torch.no_grad():
                for buffer, value in values:
                    if not same(buffer, value):
                        buffer.copy_(value)
            for parameter, gradient in gradients:
                parameter.grad = gradient


@contextmanager
def _keeping_random_state() -> Iterator[None]:
    """The generators of torch, Python and, if it is loaded, numpy."""
    state, numpy = random.getstate(), sys.modules.get("numpy")
    numbers: Any = numpy.random.get_state() if numpy is not None else None
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(state)
        if numpy is not None:
            numpy.random.set_state(numbers)


def _has_values(buffer: Tensor) -> bool:
    return not nn.parameter.is_lazy(buffer) and not buffer.is_meta


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape and dtype have the same values; NaN equals NaN."""
    # Kernels of batch norm do not count their writes, so the values themselves are compared.
    if a.is_floating_point():
        return bool(((a == b) | (a.isnan() & b.isnan())).all())
    return torch.equal(a, b)
