"""Nested tensors, which hold samples of different lengths: for the methods that normalize each row by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from normkit.errors import ArgumentError, ShapeError
from normkit.functional.extras import Extras


def by_rows(
    name: str, input: Tensor, normalized_shape: Sequence[int], extras: Extras, function: Callable[[Tensor], Tensor]
) -> Tensor:
    """`function` of all rows of a nested tensor: at once where they lie in one tensor (`torch.jagged`), else by sample.

    Raises:
        ArgumentError: mask, lengths or a residual.
        ShapeError: the dimension of different lengths is one of `normalized_shape`.
    """
    nested: Any = input
    allowed = ("activation", *(key for key, value in extras.items() if value is None or value is False))
    given = [key for key in extras if key not in allowed]
    if given:
        raise ArgumentError(
            f"{name} of a nested tensor takes no {given[0]}, got one: it has no padding to leave out; add a residual "
            "before the norm"
        )
    if input.layout is not torch.jagged:
        return torch.nested.as_nested_tensor([function(sample) for sample in input.unbind()])
    if nested._ragged_idx >= input.dim() - len(normalized_shape):
        raise ShapeError(
            f"{name} normalizes the last dimensions {tuple(normalized_shape)}, got a nested tensor whose dimension "
            f"{nested._ragged_idx} of {input.dim()} has a length of its own in each sample: transpose it"
        )
    y: Tensor = torch.nested.nested_tensor_from_jagged(
        function(nested.values()), nested.offsets(), nested.lengths(), jagged_dim=nested._ragged_idx
    )
    return y
