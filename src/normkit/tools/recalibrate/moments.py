"""Mean and variance of a stream of tensors, per channel, in float64: what running statistics estimate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from normkit.merging import merging_weights
from normkit.tools.model.statistics import statistics_of
from normkit.tools.model.valid import is_unbatched, valid_positions

CHUNK = 1 << 22
"""Elements made float64 at a time: 32 MiB, so that large activations are not held twice."""


class RunningMoments:
    """Count, mean and spread of each channel of all tensors given to `add`.

    Batch norm pools every value: means that differ between tensors are part of the variance, and one tensor of a
    thousand values weighs as much as a thousand tensors of one. Instance norm evaluates with the moments of a typical
    instance, so every instance counts once: its mean, and its unbiased variance.

    Args:
        norm: the norm whose inputs are added; its class determines where the channels are.

    Attributes:
        calls: number of inputs.
        elements: number of values per channel.
        first: the place of the first input among those of other norms; the caller counts.
    """

    def __init__(self, norm: _NormBase) -> None:
        self.norm = norm
        self.pooled = not isinstance(norm, _InstanceNorm)
        self.calls = 0
        self.first = math.inf
        self.elements = 0
        like = statistics_of(norm)[0]
        # On the devices without float64 the sums over one chunk are float32, and merged on the CPU.
        self.home = torch.device("cpu") if like.device.type == "mps" else like.device
        self.count = 0
        self.mean = torch.zeros(like.shape, dtype=torch.float64, device=self.home)
        self.spread = torch.zeros_like(self.mean)

    def rows(self, x: Tensor) -> Tensor:
        """(samples, channels, values) of an input, without a copy where strides allow."""
        if self.pooled:
            return x.reshape(*x.shape[:2], -1)
        return (x.unsqueeze(0) if is_unbatched(self.norm, x.dim()) else x).flatten(2)

    def add(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Add an input; return the mean and biased variance of its channels.

        Args:
            x: the input of a call.
            mask: True for valid positions, with size 1 in the channel dimension and all others as in `x`; padding does
                not count, and neither does an instance of padding alone. None if all is valid.
        """
        rows = self.rows(x.detach())
        own = RunningMoments(self.norm)
        if mask is not None and not self.pooled:
            return self._add_instances(rows, self.rows(mask))
        if mask is not None:
            rows = valid_positions(x.detach(), mask, 0).unsqueeze(2)
        for part in rows.split(max(CHUNK // max(rows[:1].numel(), 1), 1)):
            if part.numel():
                own.merge(*self._of(part))
        self.merge(own.count, own.mean, own.spread)
        self.calls += 1
        self.elements += rows.shape[0] * rows.shape[2]
        return own.mean, own.spread / max(own.count, 1)

    def _add_instances(self, rows: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Add the valid positions of each instance, one by one, since instances differ in their number."""
        own = RunningMoments(self.norm)
        for row, kept in zip(rows, valid[:, 0], strict=True):
            values = row[:, kept].unsqueeze(0)
            if values.numel():
                own.merge(*self._of(values))
        self.merge(own.count, own.mean, own.spread)
        self.calls += 1
        self.elements += int(valid.sum())
        return own.mean, own.spread / max(own.count, 1)

    def _of(self, part: Tensor) -> tuple[int, Tensor, Tensor]:
        part = part if part.device.type == "mps" else part.double()
        if self.pooled:
            values = part.transpose(0, 1).flatten(1)
            var, mean = torch.var_mean(values, dim=1, correction=0)
            count = values.shape[1]
            spread = var * count
        else:
            vars, means = torch.var_mean(part, dim=2, correction=1)
            count, mean, spread = part.shape[0], means.mean(0), vars.sum(0)
        return count, mean.to(self.mean), spread.to(self.mean)

    def merge(self, count: int, mean: Tensor, spread: Tensor) -> None:
        """Add the moments of other values: Chan's formula, which subtracts means and never squares of them."""
        share, factor = merging_weights(self.count, count)
        step = mean - self.mean
        self.mean += step * share
        self.spread += spread + step.square() * factor if self.pooled else spread
        self.count += count

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean, and variance as running statistics hold it: unbiased."""
        return self.mean, self.spread / (self.count - 1 if self.pooled else self.count)


def reduce_over_ranks(all_moments: Sequence[RunningMoments], group: dist.ProcessGroup | None) -> None:
    """Make every rank's moments those of all ranks together, whatever each has seen.

    Two sums: counts and means give the common mean; spreads are summed once they are taken about it.
    """
    if not all_moments:
        return
    device = reduction_device(group, all_moments[0].mean.device)
    counts = torch.stack([torch.tensor([m.count, m.calls, m.elements], dtype=torch.float64) for m in all_moments])
    own = counts.to(device, copy=True)
    dist.all_reduce(counts := counts.to(device), group=group)
    firsts = torch.tensor([m.first for m in all_moments], dtype=torch.float64, device=device)
    dist.all_reduce(firsts, dist.ReduceOp.MIN, group=group)
    shares = (own[:, 0] / counts[:, 0].clamp(min=1)).tolist()
    means = torch.cat([m.mean.to(device) * share for m, share in zip(all_moments, shares, strict=True)])
    dist.all_reduce(means, group=group)
    spreads = []
    for m, mean in zip(all_moments, _cut(means, all_moments), strict=True):
        about = m.spread.to(device)
        spreads.append(about + m.count * (m.mean.to(device) - mean).square() if m.pooled else about)
    spread = torch.cat(spreads)
    dist.all_reduce(spread, group=group)
    rows = [(first, *row) for first, row in zip(firsts.tolist(), counts.tolist(), strict=True)]
    for m, row, mean, part in zip(all_moments, rows, _cut(means, all_moments), _cut(spread, all_moments), strict=True):
        m.first, (m.count, m.calls, m.elements) = row[0], map(int, row[1:])
        m.mean, m.spread = mean.to(m.home), part.to(m.home)


def reduction_device(group: dist.ProcessGroup | None, device: torch.device) -> torch.device:
    """The device a backend sums on: that of the statistics, but for the backends of the CPU."""
    return torch.device("cpu") if dist.get_backend(group) in ("gloo", "mpi") else device


def _cut(flat: Tensor, all_moments: Sequence[RunningMoments]) -> Iterator[Tensor]:
    yield from flat.split([m.mean.numel() for m in all_moments])
