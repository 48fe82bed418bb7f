"""Batch normalization over all processes of a group, on any backend of torch.distributed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Unpack, overload

import torch
import torch.distributed as dist
from torch import Tensor

from normkit.errors import ArgumentError, ShapeError, StateError
from normkit.functional.batch.norm import BATCH, PATTERN, check_channels
from normkit.functional.call.recompute import is_recomputing
from normkit.functional.call.running import Running, update
from normkit.functional.call.spec import Spec, carry_out, checked
from normkit.functional.extras import Fusions, Output
from normkit.kernels import operator
from normkit.kernels.backend import Want
from normkit.kernels.dtypes import arithmetic_dtype
from normkit.kernels.formula import Arguments
from normkit.kernels.layout import dense_like
from normkit.kernels.sharded import is_distributed
from normkit.merging import pooled_moments

SYNC = Spec("sync_batch_norm", check_channels)


@overload
def sync_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    process_group: dist.ProcessGroup | None = None,
    **fused: Unpack[Fusions],
) -> Tensor: ...
@overload
def sync_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    process_group: dist.ProcessGroup | None = None,
    *,
    return_residual: Literal[True],
    **fused: Unpack[Fusions],
) -> tuple[Tensor, Tensor]: ...
@overload
def sync_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    process_group: dist.ProcessGroup | None = None,
    *,
    return_residual: bool,
    **fused: Unpack[Fusions],
) -> Output: ...
def sync_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    process_group: dist.ProcessGroup | None = None,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    residual: Tensor | None = None,
    return_residual: bool = False,
    activation: str | None = None,
) -> Output:
    """`batch_norm` in training, with the moments of the batches of all processes taken together.

    Every process sends its count, mean and deviation, once; the pooled moments are exact (Chan's formula), however
    the batch is divided: ``mean = sum n_i mean_i / n``, ``var = sum n_i (var_i + (mean_i - mean)^2) / n``. Backward
    sums two values per channel over the group, once. Gradients of weight and bias are this process's share, which
    data-parallel training adds up.

    Args:
        input: (N, C) or (N, C, ...); N and the sizes after C may differ between processes, N may be 0.
        running_mean, running_var: (C,), updated in place, alike on every process; or None.
        weight, bias: (C,) or None, the same on every process.
        momentum: share of the new batch in the running statistics.
        eps: added to the variance, in units of the input squared.
        process_group: the processes; None for all. Without any, or with a single one, this is `batch_norm`.
        mask, lengths, residual, return_residual, activation: as in `normkit.functional.extras.Extras`. Each process
            gives the mask of its own batch, or all give none.

    Returns:
        A tensor with the input's shape, dtype and memory layout.

    Raises:
        ShapeError: one value per channel in the whole group, on every process; or parameters of another size.
        StateError: where the gradient is differentiated again.

    Example:
        >>> import torch
        >>> from normkit.functional import sync_batch_norm
        >>> sync_batch_norm(torch.tensor([[1.0], [3.0]]), None, None, eps=0.0).flatten()
        tensor([-1.,  1.])

    Source: Chan, Golub & LeVeque 1979, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances.
    """
    fused = (mask, lengths, residual, return_residual, activation)
    statistics = (running_mean, running_var, momentum)
    if world_size(process_group) == 1 or _has_whole_batch(input, process_group):
        return carry_out(BATCH, PATTERN, input, weight, bias, eps, fused, statistics=statistics)
    call = checked(SYNC, PATTERN, input, weight, bias, eps, fused, statistics=statistics)
    total, padding = call.plain().x, None if call.arguments.mask is None else ~call.arguments.mask
    # With padding at 0 here and in what is made of y, its share in every sum of backward is 0.
    x = total if padding is None else total.masked_fill(padding, 0)
    pooled = _pooled(x.detach(), call.arguments.mask, eps, process_group)
    # Read by the processor only where that waits for no device; every process then raises alike.
    count: int | Tensor = int(pooled.values) if input.is_cpu else pooled.values
    if isinstance(count, int) and count == 1:
        raise ShapeError(
            "sync_batch_norm in training needs more than one value per channel, because a variance needs two; got one "
            f"in the whole group, here shape {tuple(input.shape)}: use a larger batch, group_norm, or eval()"
        )
    y = _apply(x, weight, bias, pooled, eps, process_group)
    if isinstance(count, Tensor) or count > 0:
        _update(running_mean, running_var, count, momentum, pooled)
    return call.finished(y, total)


def world_size(process_group: dist.ProcessGroup | None) -> int:
    """The number of processes that share a batch; 1 without a group, or if this process is not in it."""
    if not dist.is_available() or not dist.is_initialized():
        return 1
    return max(dist.get_world_size(process_group), 1)


def _has_whole_batch(input: Any, process_group: dist.ProcessGroup | None) -> bool:
    """Whether the input is a distributed tensor, whose moments are those of the whole batch in any case.

    Raises:
        ArgumentError: one that is on other processes than those of the group.
    """
    if not is_distributed(input):
        return False
    ranks = dist.get_process_group_ranks(dist.group.WORLD if process_group is None else process_group)
    mesh = input.device_mesh
    if sorted(mesh.mesh.flatten().tolist()) != sorted(ranks):
        raise ArgumentError(
            f"sync_batch_norm of a distributed tensor needs the processes {ranks} of the group, got the mesh {mesh}: "
            "distribute the batch over all of them, or normalize the parts with to_local()"
        )
    return True


def _update(
    running_mean: Tensor | None, running_var: Tensor | None, count: int | Tensor, momentum: float, pooled: _Pooled
) -> None:
    if running_mean is None or running_var is None or is_recomputing():
        return
    values = count.expand(running_mean.shape) if isinstance(count, Tensor) else count
    std = pooled.var.sqrt().to(pooled.mean.dtype)
    update(Running(running_mean, running_var, values, momentum), pooled.mean, std)


class _Pooled(NamedTuple):
    """Moments over the whole group, in the arithmetic of the input; `values` counts them, in no dimension.

    The variance is as wide as it has been summed, for the square of a large fp32 value is no fp32 value.
    """

    values: Tensor
    mean: Tensor
    var: Tensor


def _wide(x: Tensor) -> torch.dtype:
    """The dtype of sums over processes: float64 if the device has it, so that counts above 2^24 are exact."""
    return torch.float64 if x.device.type in ("cpu", "cuda") else torch.float32


def _pooled(x: Tensor, mask: Tensor | None, eps: float, process_group: dist.ProcessGroup | None) -> _Pooled:
    channels = x.shape[1]
    mine = x.new_zeros(1 + 2 * channels, dtype=_wide(x))
    if x.numel():
        mean, std = operator.norm(Arguments(x, None, None, PATTERN, eps, True, mask=mask)).moments()
        mine[0] = x.numel() // channels if mask is None else mask.sum()
        mine[1 : 1 + channels] = mean
        mine[1 + channels :] = std
    parts = [torch.empty_like(mine) for _ in range(world_size(process_group))]
    dist.all_gather(parts, mine, group=process_group)
    every = torch.stack(parts)
    counts, means, stds = every[:, :1], every[:, 1 : 1 + channels], every[:, 1 + channels :]
    count, mean, var = pooled_moments(counts, means, stds.square())
    return _Pooled(count.sum(), mean.to(arithmetic_dtype(x.dtype)), var)


class _Synchronized(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, weight, bias, pooled, ctx.eps, ctx.process_group = inputs
        ctx.save_for_backward(x, weight, *pooled)
        ctx.dtypes = [None if t is None else t.dtype for t in (weight, bias)]
        if not x.numel():
            return torch.empty_like(x)
        return operator.norm(Arguments(x, weight, bias, PATTERN, ctx.eps, True, pooled.mean, pooled.var)).y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # read once: what a checkpoint has recomputed is handed out only once
        with torch.no_grad():
            grads = _gradients(ctx, dy, saved)
        if torch.is_grad_enabled():
            followed = [t for t in (dy, *saved[:2]) if t is not None]
            grads = [None if g is None else _differentiated_once(g, *followed) for g in grads]
        return *grads, None, None, None


_apply: Callable[..., Tensor] = _Synchronized.apply


def _gradients(ctx: Any, dy: Tensor, saved: Sequence[Tensor]) -> list[Tensor | None]:
    x, weight, count, mean, var = saved
    want_x, want_weight, want_bias, *_ = ctx.needs_input_grad
    # With moments that are given, the kernel's sums for weight and bias are those of dy * x_hat and of dy.
    ones = torch.ones_like(mean)
    if x.numel():
        call = Arguments(x, ones, None, PATTERN, ctx.eps, True, mean, var)
        _, along, total, *_ = operator.norm_backward(dy, call, True, Want(False, True, True))
        assert along is not None
        assert total is not None
    else:
        along, total = torch.zeros_like(mean), torch.zeros_like(mean)
    dx = None
    if want_x:
        sums = torch.stack([along, total]).to(_wide(x))
        dist.all_reduce(sums, group=ctx.process_group)
        dx = _input_gradient(dy, x, weight, mean, var, sums / count.clamp(min=1), ctx.eps)
    weight_dtype, bias_dtype = ctx.dtypes
    return [dx, along.to(weight_dtype) if want_weight else None, total.to(bias_dtype) if want_bias else None]


def _input_gradient(
    dy: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, var: Tensor, averages: Tensor, eps: float
) -> Tensor:
    """``dx = rstd * weight * (dy - mean(dy) - x_hat * mean(dy * x_hat))``, with means over the whole group."""
    along, total = averages
    rstd = (var + eps).rsqrt()
    scale = rstd if weight is None else rstd * weight.to(rstd.dtype)
    shape = [1, -1, *[1] * (x.dim() - 2)]
    scale, slope, shift, middle = (t.to(mean.dtype).view(shape) for t in (scale, -rstd * along, -total, mean))
    dx = torch.addcmul(dy.to(mean.dtype) + shift, x.to(mean.dtype) - middle, slope).mul_(scale)
    return dense_like(x, dx.to(x.dtype))


class _Once(torch.autograd.Function):
    """A gradient whose own gradient raises an error with the reason."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *followed: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        raise StateError(
            "sync_batch_norm over several processes has first derivatives only, and its gradient was differentiated "
            "again: take batch_norm where a second derivative is needed, as SyncBatchNorm.revert(model) makes it"
        )


_differentiated_once: Callable[..., Tensor] = _Once.apply
