"""The input that a norm normalizes: with the residual added, and without the padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm

from normkit.functional.call.fusions import checked_mask

FIRST = "[b] c [...]"
"""The region of one channel over everything, where channels are dimension 1."""


def last(dims: int = 1) -> str:
    """The region of one feature over everything, where features are the last dimensions."""
    return "[...] " + " ".join(f"c{i}" for i in range(dims))


def takes_extras(norm: nn.Module) -> bool:
    """Whether it is one of normkit's, which take a mask, lengths and a residual besides their input."""
    return any(cls.__module__.startswith("normkit.") for cls in type(norm).__mro__)


def input_of(norm: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The input of a norm's call, whose statistics it takes: the residual is added before.

    Args:
        norm: any module that is called with one input.
        args, kwargs: what it is called with, as a hook gets them.

    Returns:
        The tensor, or the value that the module is called with in its place; None if there is none.
    """
    x = args[0] if args else kwargs.get("input", next(iter(kwargs.values()), None))
    residual = kwargs.get("residual") if takes_extras(norm) else None
    return x if residual is None else x.detach() + residual.detach()


def is_unbatched(norm: nn.Module, x: Tensor) -> bool:
    """Whether the input is one sample, without the batch dimension that only instance norm can do without."""
    return isinstance(norm, _InstanceNorm) and x.dim() == norm._get_no_batch_dim()


def valid_mask(norm: nn.Module, x: Tensor, kwargs: Mapping[str, Any], pattern: str) -> Tensor | None:
    """Which elements of an input are valid, from the mask or the lengths of the call; None if all are.

    Args:
        norm: whose call it is; only normkit's take a mask.
        x: its input; a single sample with a batch dimension of 1.
        kwargs: of the call.
        pattern: says which dimensions are channels.

    Returns:
        Boolean, with size 1 in the channel dimensions and the sizes of `x` in all others.

    Raises:
        ArgumentError, ShapeError, DtypeError: as the norm itself does for a mask that does not fit.
    """
    if not takes_extras(norm) or (kwargs.get("mask") is None and kwargs.get("lengths") is None):
        return None
    mask = kwargs.get("mask")
    if isinstance(norm, _InstanceNorm) and mask is not None and mask.dim() < x.dim() - 1 and x.shape[0] == 1:
        mask = mask.unsqueeze(0)  # the mask of one sample
    return checked_mask(type(norm).__name__, x, pattern, mask, kwargs.get("lengths"))


def valid_positions(x: Tensor, mask: Tensor, channels: int) -> Tensor:
    """The valid positions of an input, one after the other.

    Args:
        x: (N, C, ...) if `channels` is 0, otherwise (..., features) with as many feature dimensions as it says.
        mask: as `valid_mask` returns it.
        channels: number of feature dimensions at the end; 0 for channels in dimension 1.

    Returns:
        (valid positions, C), or (valid positions, features).

    Example:
        >>> import torch
        >>> x, valid = torch.tensor([[[1.0, 2.0, 9.0]]]), torch.tensor([[[True, True, False]]])
        >>> valid_positions(x, valid, 0)
        tensor([[1.],
                [2.]])
    """
    if not channels:
        return x.movedim(1, -1)[mask.squeeze(1)]
    return x[mask.reshape(mask.shape[:-channels])]
