"""Checks for functions that run a model on data and store the results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normkit.errors import ArgumentError, StateError


def check_values(function: str, modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Refuse modules on the meta device, whose tensors have shapes but no values."""
    for name, module in modules:
        tensors = {**module._parameters, **module._buffers}
        empty = next((key for key, tensor in tensors.items() if tensor is not None and tensor.is_meta), None)
        if empty is not None:
            raise StateError(
                f"{function} needs tensors with values, {f'{name}.{empty}'.lstrip('.')!r} is on the meta device: "
                "load a state dict first, with load_state_dict(state, assign=True) or after to_empty(device=...)"
            )


def check_batches(what: str, batches: Any) -> None:
    """Refuse a single batch in place of several: rows of a tensor or keys of a mapping would be read as batches."""
    if isinstance(batches, Tensor):
        got, remedy = f"one tensor of shape {tuple(batches.shape)}", "put it into a list, [x]"
    elif isinstance(batches, Mapping | str):
        got, remedy = f"one {type(batches).__name__}", "put it into a list, [batch]"
    elif not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
        got, remedy = type(batches).__name__, "give a list of batches or a DataLoader"
    else:
        return
    raise ArgumentError(f"{what} must be batches, got {got}: {remedy}")


def is_readable(tensor: Tensor) -> bool:
    """Whether a check can read the values of a tensor, which is not possible while they are traced."""
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta and not torch.compiler.is_compiling()


def stored(value: Tensor, dtype: torch.dtype, what: str, remedy: str) -> Tensor:
    """A value in the dtype in which it will be stored.

    Raises:
        StateError: it is finite, but too large for that dtype.
    """
    kept = value.to(dtype)
    if is_readable(kept) and bool((value.isfinite() & ~kept.isfinite()).any()):
        largest = value[value.isfinite()].abs().max()
        raise StateError(
            f"{what} must be finite as {dtype}, whose largest number is {torch.finfo(dtype).max:.3g}, "
            f"got {largest:.3g}: {remedy}"
        )
    return kept
