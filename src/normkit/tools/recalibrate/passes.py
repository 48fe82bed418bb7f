"""One pass of a model over all batches, in which the moments of its norms' inputs are collected."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.instancenorm import _InstanceNorm

from normkit.errors import StateError
from normkit.layers import PowerNorm
from normkit.parametrize.checks import stored
from normkit.tools.model.statistics import statistics_of
from normkit.tools.model.valid import FIRST, input_of, is_unbatched, valid_mask
from normkit.tools.recalibrate.moments import RunningMoments, reduce_over_ranks, reduction_device

Forward = Callable[[nn.Module, Any], Any]


def collect(
    model: nn.Module,
    norms: Mapping[str, nn.Module],
    batches: Iterable[Any],
    step: Forward,
    device: torch.device | str | None,
    group: dist.ProcessGroup | None,
) -> tuple[int, dict[nn.Module, RunningMoments]]:
    """Read all batches once; the moments of each norm's inputs, over all ranks."""
    moments = {norm: RunningMoments(norm) for norm in norms.values()}
    read, failure, turns = 0, None, itertools.count()
    with contextlib.ExitStack() as hooks:
        for name, norm in norms.items():
            hook = _collecting(name, moments[norm], turns)
            hooks.callback(norm.register_forward_pre_hook(hook, with_kwargs=True).remove)
            hooks.callback(norm.register_forward_hook(_train_again(norm.training), always_call=True).remove)
        try:
            for batch in batches:
                step(model, batch if device is None else _moved(batch, device))
                read += 1
        except Exception as error:
            failure = error
    if dist.is_available() and dist.is_initialized():
        # Every rank reaches this, even after an error: the others would wait for ever.
        place = reduction_device(group, next(iter(moments.values())).mean.device)
        dist.all_reduce(count := torch.tensor([read, failure is not None], device=place), group=group)
        read, failed = count.tolist()
        if failed and failure is None:
            raise StateError("recalibrate stopped because another rank raised: see its error; the model is as it was")
        if not failed:
            reduce_over_ranks(list(moments.values()), group)
    if failure is not None:
        raise failure
    if not read:
        raise StateError("recalibrate needs at least one batch, got none: a generator is empty once it was read")
    return read, moments


def _collecting(name: str, seen: RunningMoments, turns: Iterator[int]) -> Callable[..., None]:
    """A hook that adds the input to the moments, and lets the norm use statistics where the batch has none."""

    def hook(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = input_of(norm, args, kwargs)
        mask = valid_mask(norm, x.unsqueeze(0) if is_unbatched(norm, x.dim()) else x, kwargs, FIRST)
        if not x.numel() or (mask is not None and not mask.any()):
            return
        if not seen.calls:
            seen.first = next(turns)
        own = seen.add(x, mask)
        if not norm.training or isinstance(norm, _InstanceNorm):
            return
        alone = (seen.rows(x)[:, 0].numel() if mask is None else int(mask.sum())) == 1
        if alone or isinstance(norm, nn.SyncBatchNorm | PowerNorm):
            # A single value has no variance: the statistics so far are used. A SyncBatchNorm would wait for ranks, and
            # a power norm after its warm-up uses the running statistic, which may be far from the data or not finite.
            norm.training = False
            if seen.elements > 1:
                write(name, norm, seen.result() if alone else own.result(correction=0))

    return hook


def _train_again(training: bool) -> Callable[..., None]:
    def hook(norm: nn.Module, args: Any, output: Any) -> None:
        norm.training = training

    return hook


def write(name: str, norm: nn.Module, statistics: Mapping[str, Tensor]) -> None:
    """Set the running statistics of a norm.

    Raises:
        StateError: they do not fit into the dtype that they are kept in; none is set then.
    """
    what, remedy = f"statistics of {name!r}", "keep this norm in float32, with norm.float(); the model is as it was"
    running = statistics_of(norm)
    kept = {key: stored(value, running[key].dtype, what, remedy) for key, value in statistics.items()}
    for key, value in kept.items():
        running[key].copy_(value)


def _moved(batch: Any, device: torch.device | str) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: _moved(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return [_moved(value, device) for value in batch]
    return batch


def with_progress(batches: Iterable[Any], progress: bool) -> Iterable[Any] | Iterator[Any]:
    """The batches; with a bar on the terminal, if that is asked for and rich is installed."""
    if not progress:
        return batches
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        warnings.warn("progress=True shows a bar where rich is installed: pip install rich", stacklevel=3)
        return batches
    return track(batches, description="recalibrate", console=Console(stderr=True), transient=True)
