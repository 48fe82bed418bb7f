"""Batch normalization: one channel over the whole batch, with running statistics for inference."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor
from torch.compiler import is_compiling

from normkit.errors import ArgumentError, ShapeError
from normkit.functional._checks import check_call, check_channels, check_dimensions
from normkit.functional.extras import Call, Extras, Output, checked_extras
from normkit.functional.recompute import is_recomputing
from normkit.functional.running import Running, move, normalized
from normkit.kernels import fastpath, operator
from normkit.kernels.formula import Arguments

PATTERN = "[b] c [...]"


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    **extras: Unpack[Extras],
) -> Output:
    """Normalize each channel over batch and positions; the region is ``[b] c [...]``.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``. In training mean and (biased) variance are the batch's,
    and ``running = (1 - momentum) * running + momentum * batch`` with the unbiased variance; a step that
    activation checkpointing computes again updates nothing. Otherwise the running statistics are used.

    Args:
        input: (N, C) or (N, C, ...), any strides.
        running_mean, running_var: (C,), updated in place in training; both may be None in training.
        weight, bias: (C,) or None.
        training: use the batch's statistics.
        momentum: share of the new batch in the running statistics.
        eps: added to the variance, in units of the input squared.
        extras: mask, lengths, residual, activation, return_residual, as `normkit.functional.extras.Extras` has them.

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
    if not is_compiling():
        if not training:
            y = standardized(input, running_mean, running_var, weight, bias, eps, extras)
        else:
            plain = (input, weight, bias, PATTERN, eps, True, None, running_mean, running_var, momentum)
            y = fastpath.fused(*plain, extras) if extras else fastpath.normalize(*plain)
        if y is not None:
            return y
    check_call("batch_norm", input, eps)
    if input.shape == (0,):  # torch takes it, and no channel can be told from it
        return input.clone()
    check_dimensions("batch_norm", input, 2, "(N, C, ...)")
    check_channels("batch_norm", input, running_mean, running_var, weight, bias)
    if not training:
        if running_mean is None or running_var is None:
            raise ArgumentError(
                "batch_norm needs running_mean and running_var outside training, got None: "
                "pass both, or training=True to use the batch's statistics"
            )
        if extras:
            call = checked_extras("batch_norm", input, PATTERN, extras)
            return call.output(call.run(weight, bias, eps, given=(running_mean, running_var)))
        return operator.run(Arguments(input, weight, bias, PATTERN, eps, True, running_mean, running_var)).y
    count = input.numel() // max(input.shape[1], 1)
    if count == 1:
        raise ShapeError(
            "batch_norm in training needs more than one value per channel, for their variance to exist; got one "
            f"from shape {tuple(input.shape)}: use a larger batch, group_norm, or eval() to use running statistics"
        )
    running = moved(input, running_mean, running_var, count, momentum)
    if extras:
        call = checked_extras("batch_norm", input, PATTERN, extras)
        return normalized_with("batch_norm", call, weight, bias, eps, running)
    return normalized(Arguments(input, weight, bias, PATTERN, eps, True), running)


def standardized(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    extras: Extras,
) -> Output | None:
    """What the door makes of a call with running statistics; None where the longer way has to be taken."""
    if not extras:
        return fastpath.standardize(input, weight, bias, PATTERN, eps, running_mean, running_var)
    if running_mean is None or running_var is None:
        return None
    return fastpath.fused(input, weight, bias, PATTERN, eps, True, None, running_mean, running_var, None, extras)


def check_counts(name: str, input: Tensor, counts: Tensor) -> None:
    """No cell has a single real value; what is traced cannot be asked."""
    if not is_compiling() and not counts.is_meta and bool((counts == 1).any()):
        raise ShapeError(
            f"{name} in training needs more than one real value per channel, for their variance to exist; got a "
            f"single one by the mask for shape {tuple(input.shape)}: use a larger batch, or group_norm"
        )


def normalized_with(
    name: str, call: Call, weight: Tensor | None, bias: Tensor | None, eps: float, running: Running | None
) -> Output:
    """A call with extras whose moments move running statistics, by the real values alone."""
    counts = call.counts()
    if counts is not None and running is not None:
        check_counts(name, call.input, counts)
        running = running._replace(values=counts)
    out = call.run(weight, bias, eps, moments=running is not None)
    if running is not None:
        move(running, *out.moments())
    return call.output(out)


def moved(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, count: int, momentum: float
) -> Running | None:
    """The running statistics that a call moves, if it moves any."""
    if running_mean is None or running_var is None or not input.numel() or is_recomputing():
        return None
    return Running(running_mean, running_var, count, momentum)
