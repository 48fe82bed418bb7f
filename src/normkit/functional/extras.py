"""What every normalization takes beside its own arguments: padding, a residual, an activation; all in the same pass.

>>> import torch
>>> from normkit import functional
>>> x, real = torch.tensor([[[1.0, 3.0, 99.0]]]), torch.tensor([[True, True, False]])
>>> functional.instance_norm(x, eps=0.0, mask=real, activation="relu")
tensor([[[0., 1., 0.]]])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from normkit.errors import ArgumentError, DtypeError, ShapeError, nearest
from normkit.kernels import operator
from normkit.kernels.formula import ACTIVATIONS, Arguments, Result, counts_of
from normkit.pattern import parse


class Extras(TypedDict, total=False):
    """Keyword arguments that every normalization takes.

    Attributes:
        mask: boolean, True for what is real, of a shape that broadcasts to the input's without its channel dimensions.
            What is padding counts in no moment; its output and its gradient are 0, whatever it holds.
        lengths: (N,) numbers of real positions in each sample, in place of `mask`; for one dimension of positions.
        activation: ``relu``, ``leaky_relu``, ``silu``, ``gelu``, ``gelu_tanh``, ``sigmoid``, ``tanh``, or None; applied
            last. What it is given is computed again in backward, not stored.
        residual: of the input's shape and dtype, added to the input before.
        return_residual: whether to return the sum as well.
    """

    mask: Tensor | None
    lengths: Tensor | Sequence[int] | None
    activation: str | None
    residual: Tensor | None
    return_residual: bool


Output = Any
"""A tensor, or with ``return_residual=True`` a pair: that tensor, and the sum that was normalized."""


class Call(NamedTuple):
    """One call with extras, checked."""

    input: Tensor
    pattern: str
    residual: Tensor | None
    mask: Tensor | None
    activation: str
    return_residual: bool

    def run(
        self,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        center: bool = True,
        given: tuple[Tensor, Tensor] | None = None,
        moments: bool = False,
    ) -> Result:
        """Normalize, with a mean and a variance that are given, or else the input's own."""
        mean, var = given or (None, None)
        own = (self.residual, self.mask, self.activation)
        return operator.run(Arguments(self.input, weight, bias, self.pattern, eps, center, mean, var, *own), moments)

    def output(self, out: Result) -> Output:
        """What the caller asked for."""
        return (out.y, out.sum if self.residual is not None else self.input) if self.return_residual else out.y

    def summed(self) -> Tensor:
        """What is normalized, where that takes more than one pass."""
        return self.input if self.residual is None else self.input + self.residual

    def finished(self, y: Tensor, total: Tensor) -> Output:
        """What the caller asked for, of a result that lacks activation and padding, and of `summed`."""
        y = ACTIVATIONS[self.activation](y)
        y = y if self.mask is None else y.masked_fill(~self.mask, 0)
        return (y, total) if self.return_residual else y

    def run_cast_first(self, weight: Tensor | None, bias: Tensor | None, eps: float, center: bool) -> Result:
        """Normalize, cast to the input's dtype, and only then apply weight and bias, in that dtype."""
        out = self._replace(activation="none").run(None, None, eps, center)
        y, dtype = out.y, self.input.dtype
        y = y if weight is None else y * weight.to(dtype)
        y = ACTIVATIONS[self.activation](y if bias is None else y + bias.to(dtype))
        return out._replace(y=y if self.mask is None else torch.where(self.mask, y, 0))

    def counts(self) -> Tensor | None:
        """The number of real elements in each cell; None where all are real."""
        if self.mask is None:
            return None
        return counts_of(self.mask, self.input.shape, parse(self.pattern).levels(self.input.shape))


def batch_of_one(extras: Extras) -> Extras:
    """The extras of one sample without its batch dimension, as those of a batch of one."""
    out = extras.copy()
    for key in ("mask", "residual"):
        tensor = extras.get(key)
        if isinstance(tensor, Tensor):
            out[key] = tensor.unsqueeze(0)
    return out


def check_activation(name: str, activation: str | None) -> str:
    """The activation's name; ``none`` for None."""
    if activation is None:
        return "none"
    if activation not in ACTIVATIONS or activation == "none":
        known = [known for known in ACTIVATIONS if known != "none"]
        raise ArgumentError(
            f"activation of {name} must be a known one, got {activation!r}: {nearest(str(activation), known)}"
        )
    return activation


def checked_extras(name: str, input: Tensor, pattern: str, extras: Extras) -> Call:
    """A call with extras, after all checks: rule, value received, remedy.

    Raises:
        ArgumentError: an unknown argument or activation, both mask and lengths, lengths out of range.
        ShapeError: mask, lengths or residual of another shape.
        DtypeError: a mask that is not boolean, a residual of another dtype.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> functional.layer_norm(torch.randn(2, 3), (3,), activation="rleu")
        Traceback (most recent call last):
            ...
        normkit.errors.ArgumentError: activation of layer_norm must be a known one, got 'rleu': did you mean 'relu'?
    """
    for key in extras:
        if key not in Extras.__annotations__:
            raise TypeError(f"{name}() got an unexpected argument {key!r}: {nearest(key, Extras.__annotations__)}")
    residual = extras.get("residual")
    if residual is not None:
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
    mask, lengths = extras.get("mask"), extras.get("lengths")
    if mask is not None and lengths is not None:
        raise ArgumentError(f"{name} takes a mask or lengths, got both: the mask says all that lengths can")
    if mask is not None or lengths is not None:
        features = {level.dim for level in parse(pattern).levels(input.shape) if level.feature}
        places = [d for d in range(input.dim()) if d not in features]
        if lengths is not None:
            mask = _mask_of(name, input, lengths, places)
        mask = None if mask is None else _without_channels(name, input, mask, places)
    activation = check_activation(name, extras.get("activation"))
    return Call(input, pattern, residual, mask, activation, bool(extras.get("return_residual")))


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
            "give the number of real positions of each sample"
        )
    return torch.arange(most, device=input.device) < lengths[:, None]


def _without_channels(name: str, input: Tensor, mask: Tensor, places: Sequence[int]) -> Tensor:
    """The mask with size 1 in the channel dimensions and the input's size in all others."""
    if mask.dtype is not torch.bool:
        raise DtypeError(
            f"the mask of {name} must be boolean, True for what is real, got {mask.dtype}: "
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
