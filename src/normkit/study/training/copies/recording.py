"""Records the operations of a training step once, to replay them without the overhead of functorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from normkit.study.training.copies.replay import Gradients, Replay

Tensors = dict[str, Tensor]
Given = tuple[Tensors, Tensors, Any, Any]
"""Parameters, buffers, inputs and targets of all copies."""
Step = Callable[..., tuple[Tensor, Gradients]]


def record(mapped: Step, given: Given) -> Replay | None:
    """The operations of a call, to be replayed; None if they cannot be recorded.

    The graph avoids the overhead of functorch, which is larger than the arithmetic of small models. It is tested on
    another batch, because a branch that depends on values is recorded as it was taken for the first batch.
    """

    def another() -> Given:
        parameters, buffers, *batch = copied(given)
        inputs, targets = pytree.tree_map(lambda t: t.roll(1, 0), batch)
        return parameters, buffers, inputs, targets

    try:
        with torch.no_grad():
            recorded = Replay(make_fx(mapped)(*copied(given)), copied(given))
            once, again = another(), another()
            losses, gradients = recorded.bind(*once[:2])(*once[2:])
            others, slopes = mapped(*again)
    except Exception:
        return None
    leaves = [pytree.tree_leaves(each) for each in ((losses, gradients, once[1]), (others, slopes, again[1]))]
    same = all(agree(a, b) for a, b in zip(*leaves, strict=True))
    return recorded if same else None


def copied(given: Given) -> Given:
    copied: Given = pytree.tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, given)
    return copied


def agree(one: Tensor, other: Tensor) -> bool:
    """Equal except for rounding; the tolerance of half a percent is above rounding through many layers."""
    return torch.allclose(one.double(), other.double(), rtol=5e-3, atol=1e-4, equal_nan=True)
