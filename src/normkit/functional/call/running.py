"""Running statistics: what a call updates, and how."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from normkit.errors import StateError
from normkit.functional.call.mapped import is_mapped
from normkit.functional.call.recompute import must_ask
from normkit.kernels import fastpath
from normkit.kernels.context import is_exported, is_transformed, is_watched
from normkit.kernels.devices import kernels_for
from normkit.kernels.dtypes import working_dtype
from normkit.kernels.sharded import is_distributed, replicated, whole


class Running(NamedTuple):
    """Running statistics that a call updates.

    `values` is the number of values that each moment comes from; one number for each where padding makes them differ.
    """

    mean: Tensor
    var: Tensor
    values: int | Tensor
    momentum: float


_skipped = 0


def skipped_channels() -> int:
    """How many channels have kept their running statistics so far, because the new ones would not have been finite.

    Counted over the whole process, in eager execution on a CPU.
    """
    return _skipped + fastpath.skipped()


def update(running: Running, mean: Tensor, std: Tensor) -> None:
    """Update running statistics towards the moments of a batch."""
    values = running.values
    global _skipped
    simple = not torch.compiler.is_compiling() and not isinstance(values, Tensor) and not is_exported()
    kernels = kernels_for(mean) if simple and _has_kernel(running.mean) and _has_kernel(running.var) else None
    if kernels is not None and is_mapped(running.mean, running.var):
        torch.ops.normkit.move_running.default(running.mean, running.var, mean, std, values, running.momentum)
        return
    if kernels is not None and not is_watched(running.mean) and not is_watched(mean):
        assert not isinstance(values, Tensor)
        _skipped += kernels.move_running(running.mean, running.var, mean, std, values, running.momentum)
        # A compiled operator does not count in-place changes; its caller has to.
        torch.autograd.graph.increment_version([running.mean, running.var])
        return
    with torch.no_grad():
        # Statistics that are not distributed are whole on every process.
        distributed = running._replace(mean=replicated(running.mean, mean), var=replicated(running.var, mean))
        moments = _unbiased(distributed, mean, std)
        *new, finite = updated(distributed.mean, distributed.var, *moments, running.momentum)
        if mean.is_cpu and not is_exported() and not is_watched(mean):
            _skipped += finite.numel() - int(finite.sum())
        for old, value in zip((running.mean, running.var), new, strict=True):
            store(old, value)


def updated(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The running statistics after a batch, and whether each channel was updated.

    Computed as csrc does it, rounded once to the dtype of the buffers. A channel whose new statistics would not be
    finite keeps its old ones.
    """
    pairs = ((running_mean, mean), (running_var, var))
    new = [towards(old, now, momentum) for old, now in pairs]
    finite = new[0].isfinite() & new[1].isfinite()
    mean, var = (torch.where(finite, now, old) for now, (old, _) in zip(new, pairs, strict=True))
    return mean, var, finite


def towards(old: Tensor, now: Tensor, momentum: float) -> Tensor:
    """A running statistic after a batch, rounded once to the dtype of its buffer."""
    return (old.to(now.dtype) + momentum * (now - old.to(now.dtype))).to(old.dtype)


def store(statistic: Tensor, value: Tensor) -> None:
    """Write a running statistic; where a transform of torch.func forbids that, the error names the remedy."""
    if torch.compiler.is_compiling() and must_ask(statistic):
        # Asked each time that the graph runs: a checkpoint round a compiled module runs it again in backward.
        value = torch.where(torch.ops.normkit.is_first_pass.default(statistic.device), value, statistic)
    if not is_distributed(statistic):
        value = whole(value)
    try:
        statistic.copy_(value)
    except RuntimeError as cause:
        if not is_transformed():
            raise
        if "vmap" in str(cause):
            raise StateError(
                "running statistics of one batch cannot be updated by many under torch.func.vmap, got statistics that "
                "are not batched: use eval(), track_running_stats=False, or batch the buffers, too"
            ) from cause
        raise StateError(
            "running statistics are updated under torch.func if they are arguments of the transformed function, got "
            "those of the layer itself: use eval(), track_running_stats=False, or pass the buffers in by "
            "torch.func.functional_call"
        ) from cause


def _unbiased(running: Running, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Each channel's mean and unbiased variance, averaged over the samples where each of those has its own."""
    wide, channels = working_dtype(mean), running.mean.numel()
    samples = mean.numel() // channels if channels else 1
    mean, var, values = mean.to(wide), std.to(wide).square(), running.values
    if not isinstance(values, Tensor):
        var = var * (values / (values - 1) / samples)
    else:
        # A cell of padding alone has no moments: it counts as the statistics that are there.
        empty = values == 0
        var = var * (values / (values - 1).clamp(min=1)).to(wide)
        mean = torch.where(empty, running.mean.to(wide).repeat(samples), mean)
        var = torch.where(empty, running.var.to(wide).repeat(samples), var) / samples
    if samples == 1:
        return mean, var
    return mean.view(samples, channels).sum(0) / samples, var.view(samples, channels).sum(0)


def _has_kernel(running: Tensor) -> bool:
    """Whether a kernel can update it."""
    known = (torch.float32, torch.float64)
    return running.dtype in known and running.is_contiguous() and not running.requires_grad
