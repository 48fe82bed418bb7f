"""Means and products of deviations of a stream of tensors, in float64, and the running statistics made of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.instancenorm import _InstanceNorm

from normkit.functional.iter_norm import whitening_of
from normkit.layers import IterNorm, PowerNorm
from normkit.merging import merging_weights
from normkit.tools.model.statistics import statistics_of
from normkit.tools.model.valid import is_unbatched, valid_positions

CHUNK = 1 << 22
"""Elements made float64 at a time: 32 MiB, so that large activations are not held twice."""


class RunningMoments:
    """Count, mean and spread of each channel of all tensors given to `add`.

    Batch norm pools every value: means that differ between tensors are part of the variance, and one tensor of a
    thousand values weighs as much as a thousand tensors of one. Instance norm evaluates with the moments of a typical
    instance, so every instance counts once: its mean, and its unbiased variance. For iterative norm the spread is that
    of each pair of channels of a group, (groups, width, width).

    Args:
        norm: the norm whose inputs are added; its class determines where the channels are.

    Attributes:
        calls: number of inputs.
        elements: number of values per channel.
        first: the place of the first input among those of other norms; the caller counts.
    """

    def __init__(self, norm: nn.Module) -> None:
        self.norm = norm
        self.pooled = not isinstance(norm, _InstanceNorm)
        self.groups = norm.num_groups if isinstance(norm, IterNorm) else None
        self.calls = 0
        self.first = math.inf
        self.elements = 0
        like = next(iter(statistics_of(norm).values()))
        # On the devices without float64 the sums over one chunk are float32, and merged on the CPU.
        self.home = torch.device("cpu") if like.device.type == "mps" else like.device
        self.count = 0
        self.mean = torch.zeros(like.shape, dtype=torch.float64, device=self.home)
        self.spread = torch.zeros_like(self.products(self.mean))

    def rows(self, x: Tensor) -> Tensor:
        """(samples, channels, values) of an input, without a copy where strides allow."""
        if self.pooled:
            return x.reshape(*x.shape[:2], -1)
        return (x.unsqueeze(0) if is_unbatched(self.norm, x.dim()) else x).flatten(2)

    def products(self, step: Tensor) -> Tensor:
        """The squares of deviations, one for each channel; of iterative norm the products within each group."""
        if self.groups is None:
            return step.square()
        step = step.view(self.groups, -1)
        return step[:, :, None] * step[:, None, :]

    def add(self, x: Tensor, mask: Tensor | None = None) -> RunningMoments:
        """Add an input, and return its own moments.

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
        return own

    def _add_instances(self, rows: Tensor, valid: Tensor) -> RunningMoments:
        """Add the valid positions of each instance, one by one, since instances differ in their number."""
        own = RunningMoments(self.norm)
        for row, kept in zip(rows, valid[:, 0], strict=True):
            values = row[:, kept].unsqueeze(0)
            if values.numel():
                own.merge(*self._of(values))
        self.merge(own.count, own.mean, own.spread)
        self.calls += 1
        self.elements += int(valid.sum())
        return own

    def _of(self, part: Tensor) -> tuple[int, Tensor, Tensor]:
        part = part if part.device.type == "mps" else part.double()
        if self.pooled:
            values = part.transpose(0, 1).flatten(1)
            count = values.shape[1]
            if self.groups is None:
                var, mean = torch.var_mean(values, dim=1, correction=0)
                spread = var * count
            else:
                mean = values.mean(1)
                centred = (values - mean[:, None]).view(self.groups, -1, count)
                spread = centred @ centred.mT
        else:
            vars, means = torch.var_mean(part, dim=2, correction=1)
            count, mean, spread = part.shape[0], means.mean(0), vars.sum(0)
        return count, mean.to(self.mean), spread.to(self.mean)

    def merge(self, count: int, mean: Tensor, spread: Tensor) -> None:
        """Add the moments of other values: Chan's formula, which subtracts means and never squares of them."""
        share, factor = merging_weights(self.count, count)
        step = mean - self.mean
        self.mean += step * share
        self.spread += spread + self.products(step) * factor if self.pooled else spread
        self.count += count

    def result(self, correction: int = 1) -> dict[str, Tensor]:
        """The running statistics of these values, by name.

        Args:
            correction: 1 for the unbiased variance of batch norm, which running statistics hold; 0 for the biased one.
        """
        if isinstance(self.norm, PowerNorm):
            return {"running_phi": self.mean.square() + self.spread / self.count}
        if isinstance(self.norm, IterNorm):
            whitening = whitening_of(self.spread / self.count, self.norm.eps, self.norm.iterations)
            return {"running_mean": self.mean, "running_whitening": whitening}
        var = self.spread / (self.count - correction if self.pooled else self.count)
        found = {"running_mean": self.mean, "running_var": var}
        return {name: found[name] for name in statistics_of(self.norm)}


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
    for m, mean in zip(all_moments, _cut(means, [m.mean for m in all_moments]), strict=True):
        about = m.spread.to(device)
        about = about + m.count * m.products(m.mean.to(device) - mean) if m.pooled else about
        spreads.append(about.flatten())
    spread = torch.cat(spreads)
    dist.all_reduce(spread, group=group)
    rows = [(first, *row) for first, row in zip(firsts.tolist(), counts.tolist(), strict=True)]
    parts = _cut(means, [m.mean for m in all_moments]), _cut(spread, [m.spread for m in all_moments])
    for m, row, mean, part in zip(all_moments, rows, *parts, strict=True):
        m.first, (m.count, m.calls, m.elements) = row[0], map(int, row[1:])
        m.mean, m.spread = mean.to(m.home), part.to(m.home)


def reduction_device(group: dist.ProcessGroup | None, device: torch.device) -> torch.device:
    """The device a backend sums on: that of the statistics, but for the backends of the CPU."""
    return torch.device("cpu") if dist.get_backend(group) in ("gloo", "mpi") else device


def _cut(flat: Tensor, like: Sequence[Tensor]) -> Iterator[Tensor]:
    """The parts of a vector in the shapes of these tensors."""
    for part, each in zip(flat.split([t.numel() for t in like]), like, strict=True):
        yield part.view(each.shape)
