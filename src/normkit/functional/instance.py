"""Instance normalization: each channel of each sample alone."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor
from torch.compiler import is_compiling

from normkit.errors import ArgumentError, ShapeError
from normkit.functional import batch
from normkit.functional._checks import check_call, check_channels, check_dimensions
from normkit.functional.extras import Extras, Output, checked_extras
from normkit.functional.running import normalized
from normkit.kernels import fastpath, operator
from normkit.kernels.formula import Arguments

PATTERN = "b c [...]"


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    **extras: Unpack[Extras],
) -> Output:
    """Normalize each channel of each sample over its positions; the region is ``b c [...]``.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``. Running statistics, where given, move towards the
    average over the batch of the samples' means and unbiased variances; a step that activation checkpointing
    computes again updates nothing.

    Args:
        input: (N, C, ...) with at least one dimension of positions, any strides.
        running_mean, running_var: (C,) or None, updated in place where `use_input_stats`.
        weight, bias: (C,) or None.
        use_input_stats: use each sample's own statistics, else the running ones.
        momentum: share of the new batch in the running statistics.
        eps: added to the variance, in units of the input squared.
        extras: mask, lengths, residual, activation, return_residual, as `normkit.functional.extras.Extras` has them.

    Returns:
        A tensor with the input's shape, dtype and memory layout.

    Raises:
        ShapeError: a single position, whatever the batch, or parameters of another size.
        ArgumentError: no running statistics where they are needed.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> functional.instance_norm(torch.tensor([[[1.0, 3.0], [10.0, 30.0]]]), eps=0.0)
        tensor([[[-1.,  1.],
                 [-1.,  1.]]])

    Source: Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022.
    """
    if use_input_stats and not is_compiling():
        plain = (input, weight, bias, PATTERN, eps, True, None, running_mean, running_var, momentum)
        y = fastpath.fused(*plain, extras) if extras else fastpath.normalize(*plain)
        if y is not None:
            return y
    check_call("instance_norm", input, eps)
    check_dimensions("instance_norm", input, 3, "(N, C, positions ...)")
    if not use_input_stats and not is_compiling():
        y = batch.standardized(input, running_mean, running_var, weight, bias, eps, extras)
        if y is not None:
            return y
    check_channels("instance_norm", input, running_mean, running_var, weight, bias)
    if not use_input_stats:
        if running_mean is None or running_var is None:
            raise ArgumentError(
                "instance_norm needs running_mean and running_var with use_input_stats=False, got None: "
                "pass both, or use_input_stats=True"
            )
        if extras:
            call = checked_extras("instance_norm", input, batch.PATTERN, extras)
            return call.output(call.run(weight, bias, eps, given=(running_mean, running_var)))
        return operator.run(Arguments(input, weight, bias, batch.PATTERN, eps, True, running_mean, running_var)).y
    positions = input.shape[2:].numel()
    if positions == 1:
        raise ShapeError(
            "instance_norm needs more than one position, for their variance to exist; got one from shape "
            f"{tuple(input.shape)}: its output would be the bias alone; use layer_norm or no norm there"
        )
    running = batch.moved(input, running_mean, running_var, positions, momentum)
    if extras:
        call = checked_extras("instance_norm", input, PATTERN, extras)
        return batch.normalized_with("instance_norm", call, weight, bias, eps, running)
    return normalized(Arguments(input, weight, bias, PATTERN, eps, True), running)
