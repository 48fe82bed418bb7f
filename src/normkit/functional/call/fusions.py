"""Checks of what a call fuses: mask or lengths, residual, activation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from normkit.errors import ArgumentError, DtypeError, ShapeError, nearest
from normkit.kernels.formula import ACTIVATIONS
from normkit.kernels.regions import region_of
from normkit.kernels.sharded import is_distributed, replicated


def check_activation(name: str, activation: str | None) -> str:
    """The activation's name; ``none`` for None.

    Raises:
        ArgumentError: an unknown one.

    Example:
        >>> check_activation("layer_norm", "rleu")
        Traceback (most recent call last):
            ...
        normkit.errors.ArgumentError: activation of layer_norm must be a known one, got 'rleu': did you mean 'relu'?
    """
    if activation is None:
        return "none"
    if activation not in ACTIVATIONS or activation == "none":
        known = [known for known in ACTIVATIONS if known != "none"]
        raise ArgumentError(
            f"activation of {name} must be a known one, got {activation!r}: {nearest(str(activation), known)}"
        )
    return activation


def check_residual(name: str, input: Tensor, residual: Tensor | None) -> None:
    """A residual has the input's shape, dtype and device, and is distributed if the input is."""
    if residual is None:
        return
    if is_distributed(input) and not is_distributed(residual):
        raise ArgumentError(
            f"the residual of {name} must be a distributed tensor as the input is, got a torch.Tensor of shape "
            f"{tuple(residual.shape)}: give use_local_output=False to the plan of the layer that it comes from"
        )
    if residual.shape != input.shape:
        raise ShapeError(
            f"the residual of {name} must have the input's shape {tuple(input.shape)}, "
            f"got {tuple(residual.shape)}: expand or project it first"
        )
    if residual.dtype is not input.dtype or residual.device != input.device:
        raise DtypeError(
            f"the residual of {name} must be {input.dtype} on {input.device} as the input is, "
            f"got {residual.dtype} on {residual.device}: convert one of the two"
        )


def checked_mask(
    name: str, input: Tensor, pattern: str, mask: Tensor | None, lengths: Tensor | Sequence[int] | None
) -> Tensor | None:
    """The mask with size 1 in the channel dimensions and the input's size in all others; made from lengths, if given.

    Raises:
        ArgumentError: both mask and lengths, lengths out of range.
        ShapeError: a mask or lengths of another shape.
        DtypeError: a mask that is not boolean.
    """
    if mask is None and lengths is None:
        return None
    if mask is not None and lengths is not None:
        raise ArgumentError(f"{name} takes a mask or lengths, got both: the mask says all that lengths can")
    features = {level.dim for level in region_of(pattern).levels(input.shape) if level.feature}
    places = [d for d in range(input.dim()) if d not in features]
    if lengths is not None:
        mask = _mask_of(name, input, lengths, places)
    return None if mask is None else replicated(_without_channels(name, input, mask, places), input)


def _mask_of(name: str, input: Tensor, lengths: Tensor | Sequence[int], places: Sequence[int]) -> Tensor:
    lengths = torch.as_tensor(lengths, device=input.device)
    if len(places) != 2 or places[0] != 0:
        raise ShapeError(
            f"lengths of {name} need samples and one dimension of positions, "
            f"got input shape {tuple(input.shape)}: use mask="
        )
    if lengths.shape != (input.shape[0],) or lengths.is_floating_point():
        raise ShapeError(
            f"lengths of {name} must be {input.shape[0]} whole numbers, one for each sample, got shape "
            f"{tuple(lengths.shape)} of {lengths.dtype}"
        )
    most = input.shape[places[1]]
    if not torch.compiler.is_compiling() and not bool(((lengths >= 0) & (lengths <= most)).all()):
        raise ArgumentError(
            f"lengths of {name} must lie between 0 and the {most} positions of the input, got {lengths.tolist()}: "
            "give the number of valid positions of each sample"
        )
    return torch.arange(most, device=input.device) < lengths[:, None]


def _without_channels(name: str, input: Tensor, mask: Tensor, places: Sequence[int]) -> Tensor:
    if mask.dtype is not torch.bool:
        raise DtypeError(
            f"the mask of {name} must be boolean, True at valid positions, got {mask.dtype}: "
            "compare first, as in ids != pad"
        )
    if mask.device != input.device:
        raise ArgumentError(f"the mask of {name} is on {mask.device}, the input on {input.device}: move the mask")
    shape = [input.shape[d] for d in places]
    try:
        mask = mask.expand(shape)
    except RuntimeError:
        raise ShapeError(
            f"the mask of {name} must broadcast to {tuple(shape)}, the input's shape {tuple(input.shape)} without its "
            f"channels, got {tuple(mask.shape)}: leave the channel dimension out"
        ) from None
    for d in range(input.dim()):
        if d not in places:
            mask = mask.unsqueeze(d)
    return mask
