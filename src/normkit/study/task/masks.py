"""Hands a padding mask to the norms inside a model that does not do so itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normkit.errors import ArgumentError
from normkit.tools.convert.torch_encoder import encoder_layers, turn_off
from normkit.tools.model.info import NormInfo
from normkit.tools.model.tree import norms
from normkit.tools.model.valid import takes_extras

MakeMask = Callable[[Any], Tensor]
"""Inputs of the model -> boolean, (N, T), True at positions that are no padding."""


class _Holder:
    """The mask of the call in progress, and how many norms took it."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self.taken = 0
        self.seen: list[tuple[int, ...]] = []


def give_masks(model: nn.Module, make: MakeMask) -> nn.Module:
    """Let normkit's norms in a model see a mask, made of the inputs at each call; norms of others have no place for it.

    A norm gets it if its input has positions of the mask's shape: (N, T, C), or (N, C, T) for channels in dimension 1.
    It gets none if it is called with a mask already, or sees other positions, as after pooling.

    Args:
        model: hooks are added to it and to its norms; it is called as `normkit.evaluation.call` does.
        make: see `MakeMask`.

    >>> import torch, normkit
    >>> model = give_masks(nn.Sequential(normkit.BatchNorm1d(2)), lambda x: x[:, 0] != 0)
    >>> x = torch.tensor([[[1.0, 3.0, 0.0], [1.0, 3.0, 0.0]]])
    >>> model(x)[0, 0].round()  # the mean of 1 and 3 is 2; the padding stays 0
    tensor([-1.,  1.,  0.], grad_fn=<RoundBackward0>)
    """
    holder = _Holder()

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = kwargs or (args if len(args) != 1 else args[0])
        holder.mask = _checked(make(inputs))
        holder.taken, holder.seen = 0, []

    def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        holder.mask = None

    def give(info: NormInfo) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            x = args[0] if args else kwargs.get("input")
            mask = holder.mask
            if mask is None or x is None or kwargs.get("mask") is not None or kwargs.get("lengths") is not None:
                return None
            holder.seen.append(tuple(x.shape))
            if positions(info, x) != tuple(mask.shape):
                return None
            holder.taken += 1
            return args, {**kwargs, "mask": mask}

        return hook

    # The root's hook comes before those of its norms, also if it is a norm itself.
    model.register_forward_pre_hook(begin, with_kwargs=True)
    model.register_forward_hook(end, always_call=True)
    for place, info in norms(model):
        if takes_extras(place.module) and "mask" in inspect.signature(type(place.module).forward).parameters:
            place.module.register_forward_pre_hook(give(info), with_kwargs=True)
            # Its fast path would compute the norm itself, of tensors without padding.
            turn_off(model, encoder_layers(place))
    vars(model)["mask_holder"] = holder
    return model


def _checked(mask: Any) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        what = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ArgumentError(f"mask must give a boolean tensor, True at valid positions, got {what}: write ids != pad")
    return mask


def positions(info: NormInfo, x: Tensor) -> tuple[int, ...]:
    """The sizes of an input of a norm without its features."""
    if info.axis == "last":
        return tuple(x.shape[: x.dim() - max(1, len(info.shape))])
    return (*x.shape[:1], *x.shape[2:])


def check_masks(model: nn.Module, inputs: Any, call: Callable[[nn.Module, Any], Any]) -> None:
    """Call a model with masks, and refuse a mask that no norm can take.

    Raises:
        ArgumentError: it fits no norm's input.
    """
    holder: _Holder = vars(model)["mask_holder"]
    shapes: list[tuple[int, ...]] = []
    seen = model.register_forward_pre_hook(lambda *_: shapes.append(tuple(holder.mask.shape)))  # type: ignore[union-attr]
    try:
        call(model, inputs)
    finally:
        seen.remove()
    if not holder.taken:
        inputs_of_norms = ", ".join(map(str, dict.fromkeys(holder.seen))) or "none"
        raise ArgumentError(
            f"mask must have the shape of the positions that norms see, got {shapes[0]} for inputs of norms "
            f"of shapes {inputs_of_norms}: samples are dimension 0, and features the last one or dimension 1"
        )
