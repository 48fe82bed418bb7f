"""Instance normalization: each channel of each sample alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack, overload

from torch import Tensor

from normkit.errors import ArgumentError, ShapeError
from normkit.functional.batch.norm import PATTERN as OF_CHANNELS
from normkit.functional.call.checks import check_call, check_dimensions
from normkit.functional.call.spec import Spec, carry_out
from normkit.functional.extras import Epilogues, Output

PATTERN = "b c [...]"


def _check_channels(name: str, input: Tensor, _: Any = None) -> tuple[int, ...]:
    check_dimensions(name, input, 3, "(N, C, positions ...)")
    return (input.shape[1],)


def _check_positions(name: str, input: Tensor, _: Any) -> tuple[int, ...]:
    shape = _check_channels(name, input)
    if input.shape[2:].numel() == 1:
        raise ShapeError(
            f"{name} needs more than one position, because a variance needs two values; got one from shape "
            f"{tuple(input.shape)}: its output would be the bias alone; use layer_norm or no norm there"
        )
    return shape


INSTANCE = Spec("instance_norm", _check_positions)
EVALUATION = Spec("instance_norm", _check_channels)


@overload
def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    **fused: Unpack[Epilogues],
) -> Tensor: ...
@overload
def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    return_residual: Literal[True],
    **fused: Unpack[Epilogues],
) -> tuple[Tensor, Tensor]: ...
@overload
def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    return_residual: bool,
    **fused: Unpack[Epilogues],
) -> Output: ...
def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
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
    """Normalize each channel of each sample over its positions; the region is ``b c [...]``.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``. Running statistics, if given, are updated towards the
    average over the batch of the samples' means and unbiased variances; a step that activation checkpointing
    computes again updates nothing.

    Args:
        input: (N, C, ...) with at least one dimension of positions, any strides.
        running_mean, running_var: (C,) or None, updated in place where `use_input_stats`.
        weight, bias: (C,); or with as many dimensions as the input, each of size 1 or the input's; or None.
        use_input_stats: use each sample's own statistics, else the running ones.
        momentum: share of the new batch in the running statistics.
        eps: added to the variance, in units of the input squared.
        mask, lengths, residual, return_residual, activation: as in `normkit.functional.extras.Extras`.
        gate, skip, gate_activation, gate_first: as in `normkit.functional.extras.Epilogues`.

    Returns:
        A tensor with the input's shape, dtype and memory layout.

    Raises:
        ShapeError: a single position, however large the batch, or parameters of another size.
        ArgumentError: no running statistics where they are needed.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> functional.instance_norm(torch.tensor([[[1.0, 3.0], [10.0, 30.0]]]), eps=0.0)
        tensor([[[-1.,  1.],
                 [-1.,  1.]]])

    Source: Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022.
    """
    fused = (mask, lengths, residual, return_residual, activation, gate, skip, gate_activation, gate_first)
    if use_input_stats:
        if momentum is None:
            raise ArgumentError(
                "momentum of instance_norm must be a number, got None: 0 leaves the statistics as they are"
            )
        running = (running_mean, running_var, momentum)
        return carry_out(INSTANCE, PATTERN, input, weight, bias, eps, fused, None, running)
    check_call("instance_norm", input, eps)
    _check_channels("instance_norm", input)  # the region of given statistics, [b] c [...], takes fewer dimensions, too
    if running_mean is None or running_var is None:
        raise ArgumentError(
            "instance_norm needs running_mean and running_var with use_input_stats=False, got None: "
            "pass both, or use_input_stats=True"
        )
    given = (running_mean, running_var, None)
    return carry_out(EVALUATION, OF_CHANNELS, input, weight, bias, eps, fused, statistics=given)
