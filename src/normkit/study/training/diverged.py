"""Losses of diverged models: some functions raise an error where others give NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def is_finite(tree: Any) -> bool:
    """Whether all numbers in tensors are finite.

    >>> is_finite((torch.zeros(2), None)), is_finite({"logits": torch.tensor(float("inf"))})
    (True, False)
    """
    return all(bool(leaf.isfinite().all()) for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor))


def tolerant(loss: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The loss, but NaN where it raises an error for outputs that are not finite, as a binary cross entropy does.

    >>> outputs = torch.tensor([float("nan")])
    >>> float(tolerant(torch.nn.functional.binary_cross_entropy)(outputs, torch.ones(1)))
    nan
    """

    def tolerated(outputs: Any, targets: Any) -> Any:
        try:
            return loss(outputs, targets)
        except Exception:
            if is_finite(outputs):
                raise
            leaves = [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
            return sum(leaf.sum() for leaf in leaves if leaf.is_floating_point()) * torch.nan

    return tolerated
