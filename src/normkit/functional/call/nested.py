"""Nested tensors, which hold samples of different lengths: for the methods that normalize each row by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from normkit.errors import ArgumentError, ShapeError


def by_rows(
    name: str,
    input: Tensor,
    normalized_shape: Sequence[int],
    fused: Sequence[Any],
    function: Callable[[Tensor], Any],
) -> Tensor:
    """`function` of all rows of a nested tensor: at once where they lie in one tensor (`torch.jagged`), else by sample.

    Raises:
        ArgumentError: mask, lengths, a residual, gate or skip.
        ShapeError: the dimension of different lengths is one of `normalized_shape`.
    """
    nested: Any = input
    names = ("mask", "lengths", "residual", "return_residual", "activation", "gate", "skip")
    for key, value in zip(names, fused, strict=False):
        if key != "activation" and value is not None and value is not False:
            raise ArgumentError(
                f"{name} of a nested tensor takes no {key}, got one: it has no padding to leave out; add a residual "
                "before the norm"
            )
    if input.layout is not torch.jagged:
        return torch.nested.as_nested_tensor([function(sample) for sample in input.unbind()])
    if nested._ragged_idx >= input.dim() - len(normalized_shape):
        raise ShapeError(
            f"{name} normalizes the last dimensions {tuple(normalized_shape)}, got a nested tensor whose dimension "
            f"{nested._ragged_idx} of {input.dim()} has another length in each sample: transpose it"
        )
    y: Tensor = torch.nested.nested_tensor_from_jagged(
        function(nested.values()), nested.offsets(), nested.lengths(), jagged_dim=nested._ragged_idx
    )
    return y
