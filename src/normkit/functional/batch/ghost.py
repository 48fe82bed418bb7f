"""Ghost batch normalization: the chunks of a batch, each normalized by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Unpack, overload

import torch
from torch import Tensor

from normkit.errors import ArgumentError, ShapeError, whole_number
from normkit.functional.batch.update import Statistics, checked_update, normalized, updated_towards
from normkit.functional.call.spec import run
from normkit.functional.extras import Fusions, Output
from normkit.kernels.sharded import is_distributed


@overload
def ghost_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    virtual_batch_size: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    **fused: Unpack[Fusions],
) -> tuple[Tensor, Statistics | None]: ...
@overload
def ghost_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    virtual_batch_size: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    return_residual: Literal[True],
    **fused: Unpack[Fusions],
) -> tuple[tuple[Tensor, Tensor], Statistics | None]: ...
@overload
def ghost_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    virtual_batch_size: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    return_residual: bool,
    **fused: Unpack[Fusions],
) -> tuple[Output, Statistics | None]: ...
def ghost_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    virtual_batch_size: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    residual: Tensor | None = None,
    return_residual: bool = False,
    activation: str | None = None,
) -> tuple[Output, Statistics | None]:
    """`batch_norm` in training of each `virtual_batch_size` samples by themselves, in the order of the batch.

    The new statistics are updated once, towards the averages of the chunks' means and unbiased variances, weighted by
    the chunks' sizes. The last chunk holds the remaining samples; if these are a single value per channel, they join
    the chunk before.

    Args:
        input: (N, C) or (N, C, ...), any strides.
        running_mean, running_var: (C,), left as they are; or None.
        virtual_batch_size: samples in a chunk.
        weight, bias: (C,) or None.
        momentum: share of the new batch in the new statistics.
        eps: added to the variance, in units of the input squared.
        mask, lengths, residual, return_residual, activation: as in `normkit.functional.extras.Extras`.

    Returns:
        The result, and the new statistics as `batch_norm_update` has them; None without old ones.

    Raises:
        ArgumentError: virtual_batch_size below 1.
        ShapeError: one value per channel in a chunk, or parameters of another size.

    Example:
        >>> import torch
        >>> from normkit.functional import ghost_batch_norm
        >>> x = torch.tensor([[1.0], [3.0], [20.0], [60.0]])
        >>> ghost_batch_norm(x, None, None, 2, eps=0.0)[0].flatten()
        tensor([-1.,  1., -1.,  1.])

    Source: Hoffer, Hubara & Soudry 2017, arXiv:1705.08741.
    """
    fused = (mask, lengths, residual, return_residual, activation)
    if whole_number("virtual_batch_size", virtual_batch_size) < 1:
        raise ArgumentError(f"virtual_batch_size must be at least 1, got {virtual_batch_size}: give samples in a chunk")
    call = checked_update("ghost_batch_norm", input, running_mean, running_var, weight, bias, eps, fused)
    old = None if running_mean is None or running_var is None else Statistics(running_mean, running_var)
    if not input.numel():
        return run(call), old
    samples, channels = input.shape[:2]
    each = input.numel() // (samples * channels)
    sizes = _chunks(samples, virtual_batch_size, each)
    if virtual_batch_size * each == 1:
        raise ShapeError(
            "ghost_batch_norm needs more than one value per channel in each chunk, because a variance needs two; got "
            f"virtual_batch_size=1 for shape {tuple(input.shape)}: use at least 2"
        )
    plain = call.plain()
    even = sum(size == sizes[0] for size in sizes)
    # One call for all chunks of the same size, one more for another size.
    cuts = [even * sizes[0], samples - even * sizes[0]] if even < len(sizes) else [samples]
    masks = [None] * len(cuts) if plain.mask is None else plain.mask.split(cuts)
    parts = [
        normalized("ghost_batch_norm", plain._replace(x=part, mask=mask, pattern=f"(g={chunks} [b]) c [...]"))
        for part, mask, chunks in zip(plain.x.split(cuts), masks, (even, 1), strict=False)
    ]
    y = call.finished(parts[0].y if len(parts) == 1 else torch.cat([part.y for part in parts]), plain.x)
    if old is None:
        return y, None

    def by_chunk(of: Sequence[Tensor]) -> Tensor:
        return torch.cat([one.view(-1, channels) for one in of])

    mean, var = by_chunk([part.mean for part in parts]), by_chunk([part.unbiased() for part in parts])
    values = by_chunk([_each(part.values, part.mean) for part in parts])
    total = values.sum(0)
    shares = (values / total.clamp(min=1)).to(var.dtype)
    return y, updated_towards(old, (mean * shares).sum(0), (var * shares).sum(0), momentum, total)


def _each(values: int | Tensor, mean: Tensor) -> Tensor:
    """The number of values of each mean."""
    if isinstance(values, int) and (torch.compiler.is_compiling() or is_distributed(mean)):
        return torch.full_like(mean, values, dtype=torch.int64)  # another graph would copy the number to the device
    return torch.as_tensor(values, device=mean.device).expand_as(mean)


def _chunks(samples: int, size: int, each: int) -> list[int]:
    whole, rest = samples // size, samples % size  # not divmod: torch.compile has no rule for it
    sizes = [size] * whole
    if rest * each == 1 and sizes:
        sizes[-1] += rest
    elif rest:
        sizes.append(rest)
    return sizes
