"""Batch normalization: one channel over the whole batch, with running statistics for inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack, overload

from torch import Tensor

from normkit.errors import ArgumentError, ShapeError
from normkit.functional.call.checks import check_dimensions
from normkit.functional.call.spec import Spec, carry_out
from normkit.functional.extras import Epilogues, Output

PATTERN = "[b] c [...]"


def check_channels(name: str, input: Tensor, _: Any = None) -> tuple[int, ...]:
    """An input with a dimension of channels, of which parameters and statistics have one value each."""
    check_dimensions(name, input, 2, "(N, C, ...)")
    return (input.shape[1],)


def check_batch(
    name: str,
    input: Tensor,
    _: Any = None,
    where: str = " in training",
    remedy: str = "eval() to use running statistics",
) -> tuple[int, ...]:
    """A batch that has a variance."""
    shape = check_channels(name, input)
    if input.numel() == input.shape[1] > 0:
        raise ShapeError(
            f"{name}{where} needs more than one value per channel, because a variance needs two; got one from "
            f"shape {tuple(input.shape)}: use a larger batch, group_norm, or {remedy}"
        )
    return shape


BATCH = Spec("batch_norm", check_batch, keeps_vector=True)
EVALUATION = Spec("batch_norm", check_channels, keeps_vector=True)


@overload
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    **fused: Unpack[Epilogues],
) -> Tensor: ...
@overload
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    return_residual: Literal[True],
    **fused: Unpack[Epilogues],
) -> tuple[Tensor, Tensor]: ...
@overload
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    return_residual: bool,
    **fused: Unpack[Epilogues],
) -> Output: ...
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    residual: Tensor | None = None,
    return_residual: bool = False,
    activation: str | None = None,
    gate: Tensor | None = None,
    skip: Tensor | None = None,
    gate_activation: str | None = None,
    gate_first: bool = False,
) -> Output:
    """Normalize each channel over batch and positions; the region is ``[b] c [...]``.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``. In training mean and (biased) variance are the batch's,
    and ``running = (1 - momentum) * running + momentum * batch`` with the unbiased variance; a step that
    activation checkpointing computes again updates nothing. Otherwise the running statistics are used.

    Args:
        input: (N, C) or (N, C, ...), any strides.
        running_mean, running_var: (C,), updated in place in training; both may be None in training.
        weight, bias: (C,); or with as many dimensions as the input, each of size 1 or the input's; or None.
        training: use the batch's statistics.
        momentum: share of the new batch in the running statistics.
        eps: added to the variance, in units of the input squared.
        mask, lengths, residual, return_residual, activation: as in `normkit.functional.extras.Extras`.
        gate, skip, gate_activation, gate_first: as in `normkit.functional.extras.Epilogues`.

    Returns:
        A tensor with the input's shape, dtype and memory layout.

    Raises:
        ShapeError: one value per channel in training, or parameters of another size; nothing is updated then.
        ArgumentError: no running statistics where they are needed.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> mean, var = torch.zeros(1), torch.ones(1)
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> functional.batch_norm(x, mean, var, training=True, eps=0.0).flatten(), mean, var
        (tensor([-1.,  1.]), tensor([0.2000]), tensor([1.1000]))

    Source: Ioffe & Szegedy 2015, arXiv:1502.03167.
    """
    fused = (mask, lengths, residual, return_residual, activation, gate, skip, gate_activation, gate_first)
    if training:
        if momentum is None:
            raise ArgumentError("momentum of batch_norm must be a number, got None: a layer takes None for the average")
        return carry_out(BATCH, PATTERN, input, weight, bias, eps, fused, None, (running_mean, running_var, momentum))
    if running_mean is None or running_var is None:
        raise ArgumentError(
            "batch_norm needs running_mean and running_var outside training, got None: "
            "pass both, or training=True to use the batch's statistics"
        )
    return carry_out(EVALUATION, PATTERN, input, weight, bias, eps, fused, None, (running_mean, running_var, None))
