"""Activation checkpointing runs a forward again inside the backward pass; what that forward must find as it was.

>>> from normkit.functional.call.recompute import is_recomputing
>>> is_recomputing()
False
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

from normkit.errors import StateError
from normkit.kernels.context import has_saving_hooks, is_in_backward
from normkit.kernels.devices import is_on_gpu

CALLS = 512
"""How many calls for one number of channels are remembered: layers times batches between a forward and its backward."""

NEAR = 1e-3
"""By how many standard deviations the moments of a batch may differ when it is computed again: the operators before may
add in another order, which is a few roundings, while two batches differ by far more."""


def is_recomputing() -> bool:
    """Whether this forward runs inside a backward pass, as activation checkpointing makes it run again."""
    return not is_compiling() and is_in_backward()


def count(counter: Tensor) -> None:
    """Add a batch to a counter, unless it is computed again."""
    if is_compiling() and must_ask(counter):
        counter.add_(torch.ops.normkit.is_first_pass.default(counter.device))
    elif is_compiling() or not is_in_backward():
        counter.add_(1)


def must_ask(state: Tensor) -> bool:
    """Whether a graph that updates this must ask, each time that it runs, if it is run again by a checkpoint.

    On a GPU it asks only if it was traced where a checkpoint may be: the operator is in the way of CUDA graphs, and its
    launch takes longer than the update.
    """
    return not is_on_gpu(state) or _is_checkpointed()


def _is_checkpointed() -> bool:
    return is_in_backward() or has_saving_hooks()


# Called while a graph is traced, and the answer is kept. This is all that torch.compiler.assume_constant_result does,
# but that one would import the compiler.
_is_checkpointed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _may_be_recomputed() -> bool:
    """Without a gradient, as reentrant checkpoints run it first, or with hooks on what is saved, as others do."""
    return not torch.is_grad_enabled() or has_saving_hooks()


class _Call(NamedTuple):
    """The moments of a batch, by which it is known again, and what was computed from them and the state of then."""

    mean: Tensor
    std: Tensor
    values: tuple[Tensor, ...]


_calls: dict[tuple[str, int, torch.device], deque[_Call]] = defaultdict(lambda: deque(maxlen=CALLS))


def as_at_first(name: str, mean: Tensor, std: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """`values`, which depend on running statistics; where a batch is computed again, what they were the first time.

    `name` is the function's; no other function finds them.

    Raises:
        StateError: the first time has been forgotten, which would make gradients wrong.
    """
    calls = _calls[name, mean.numel(), mean.device]
    if not is_recomputing():
        if _may_be_recomputed():
            calls.append(_Call(mean.detach(), std.detach(), tuple(t.detach() for t in values)))
        return values
    if not calls:
        return values
    apart = (
        torch.stack([call.mean for call in calls]).sub(mean).abs()
        + torch.stack([call.std for call in calls]).sub(std).abs()
    )
    # A batch that was not finite is far from every other; argmin would take NaN for the nearest.
    far = (apart / std.clamp(min=torch.finfo(std.dtype).tiny)).amax(1).nan_to_num(nan=torch.inf)
    nearest = int(far.argmin())
    if far[nearest] <= NEAR:
        return calls[nearest].values
    if len(calls) < CALLS:  # nothing has been forgotten, so this batch has not been here before
        return values
    raise StateError(
        f"{name} remembers the last {CALLS} batches of {mean.numel()} channels for activation checkpointing, and "
        f"got an older one to compute again: run backward earlier, or keep {name} out of checkpoints"
    )
