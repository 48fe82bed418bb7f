"""Leaves a model as it was: mode, hooks, statistics, gradients, and the state of the random generators."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Undo on leaving, also after an error, what a forward in any mode does to a model and to chance.

    Parameters are not restored: under `torch.no_grad` a forward has no business with them.
    """
    modules = list(model.modules())
    # Not through the attribute: what a frozen norm says of its mode is not what it was last asked for.
    kept = [{k: v for k, v in vars(module).items() if k in ("training", "momentum")} for module in modules]
    buffers = [dict(module._buffers) for module in modules]
    values = {
        id(b): (b, b.detach().clone()) for held in buffers for b in held.values() if b is not None and _has_values(b)
    }
    grads = [(p, p.grad) for p in model.parameters()]
    state, numpy = random.getstate(), sys.modules.get("numpy")
    numbers: Any = numpy.random.get_state() if numpy is not None else None
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(state)
        if numpy is not None:
            numpy.random.set_state(numbers)
        for module, attributes, held in zip(modules, kept, buffers, strict=True):
            vars(module).update(attributes)
            module._buffers.clear()
            module._buffers.update(held)
        with torch.no_grad():
            for buffer, value in values.values():
                if not same(buffer, value):
                    buffer.copy_(value)
        for parameter, grad in grads:
            parameter.grad = grad


def _has_values(buffer: Tensor) -> bool:
    return not nn.parameter.is_lazy(buffer) and not buffer.is_meta


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape and dtype have the same values; NaN equals NaN."""
    # Kernels of batch norm do not count their writes, so the values themselves are compared.
    if a.is_floating_point():
        return bool(((a == b) | (a.isnan() & b.isnan())).all())
    return torch.equal(a, b)
