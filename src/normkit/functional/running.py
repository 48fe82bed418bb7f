"""Running statistics: what a call updates, and how."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from normkit.errors import StateError
from normkit.kernels import fastpath, operator
from normkit.kernels.context import is_exported, is_transformed, is_watched
from normkit.kernels.devices import kernels_for
from normkit.kernels.dtypes import working_dtype
from normkit.kernels.formula import Arguments


class Running(NamedTuple):
    """Running statistics that a call updates, and how: towards moments of so many values each, a number for each where
    they differ, as padding makes them."""

    mean: Tensor
    var: Tensor
    values: int | Tensor
    momentum: float


_skipped = 0


def skipped_channels() -> int:
    """How many channels have kept their running statistics so far, because the new ones would not have been finite.

    Calls of the process in all; on a CPU, in eager execution.
    """
    return _skipped + fastpath.skipped()


def normalized(a: Arguments, running: Running | None) -> Tensor:
    """y; the moments that it is normalized by update the running statistics."""
    out = operator.run(a, moments=running is not None)
    if running is not None:
        move(running, *out.moments())
    return out.y


def move(running: Running, mean: Tensor, std: Tensor) -> None:
    values = running.values
    plain = not isinstance(values, Tensor) and not is_exported()
    plain = plain and not is_watched(running.mean) and not is_watched(mean)
    global _skipped
    kernels = kernels_for(mean) if plain else None
    if kernels is not None and _is_moved(running.mean) and _is_moved(running.var) and not isinstance(values, Tensor):
        _skipped += kernels.move_running(running.mean, running.var, mean, std, values, running.momentum)
        # An operator with a schema of its own leaves the counting of in-place changes to its caller.
        torch.autograd.graph.increment_version([running.mean, running.var])
        return
    with torch.no_grad():
        *new, finite = moved(running.mean, running.var, *_unbiased(running, mean, std), running.momentum)
        if mean.is_cpu and not is_exported() and not is_watched(mean):
            _skipped += finite.numel() - int(finite.sum())
        for old, value in zip((running.mean, running.var), new, strict=True):
            keep(old, value)


def moved(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The running statistics after a batch, and which channels they have moved in.

    Computed as csrc/running.h does, rounded once to the dtype that they are stored in. Where that would not be finite a
    channel keeps what it has.
    """
    pairs = ((running_mean, mean), (running_var, var))
    new = [(old.to(now.dtype) + momentum * (now - old.to(now.dtype))).to(old.dtype) for old, now in pairs]
    finite = new[0].isfinite() & new[1].isfinite()
    mean, var = (torch.where(finite, now, old) for now, (old, _) in zip(new, pairs, strict=True))
    return mean, var, finite


def keep(statistic: Tensor, value: Tensor) -> None:
    """Write a running statistic; what a transform of torch.func refuses is said with its remedy."""
    if torch.compiler.is_compiling():
        # Asked each time that the graph runs: a checkpoint round a compiled module runs it again in backward.
        value = torch.where(torch.ops.normkit.is_first_pass.default(statistic.device), value, statistic)
    try:
        statistic.copy_(value)
    except RuntimeError as cause:
        if not is_transformed():
            raise
        if "vmap" in str(cause):
            raise StateError(
                "running statistics of one batch cannot be moved by many under torch.func.vmap, got statistics that "
                "are not batched: use eval(), track_running_stats=False, or batch the buffers, too"
            ) from cause
        raise StateError(
            "running statistics move under torch.func where the transformed function is given them, got those of the "
            "layer itself: use eval(), track_running_stats=False, or hand the buffers in by torch.func.functional_call"
        ) from cause


def _unbiased(running: Running, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Each channel's mean and unbiased variance, averaged over the samples where each of those has its own."""
    wide, channels = working_dtype(mean), running.mean.numel()
    samples = mean.numel() // channels if channels else 1
    mean, var, values = mean.to(wide), std.to(wide).square(), running.values
    if not isinstance(values, Tensor):
        var = var * (values / (values - 1) / samples)
    else:
        # Where all is padding there is nothing to move towards: such a cell counts as what is already there.
        empty = values == 0
        var = var * (values / (values - 1).clamp(min=1)).to(wide)
        mean = torch.where(empty, running.mean.to(wide).repeat(samples), mean)
        var = torch.where(empty, running.var.to(wide).repeat(samples), var) / samples
    if samples == 1:
        return mean, var
    return mean.view(samples, channels).sum(0) / samples, var.view(samples, channels).sum(0)


def _is_moved(running: Tensor) -> bool:
    """Whether a kernel moves it; on a GPU, where numbers are passed in fp32, only if it is fp32 itself."""
    known = (torch.float32, torch.float64) if running.is_cpu else (torch.float32,)
    return running.dtype in known and running.is_contiguous() and not running.requires_grad
