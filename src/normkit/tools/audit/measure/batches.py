"""Whether the batches of a loader come from one distribution: what each looks like, and an analysis of variance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from normkit.tools.audit.measure.moments import InputMoments

CERTAIN = 5.0
"""Standard deviations beyond chance: one in three million."""

FEWEST, ENOUGH = 8, 64
"""Samples of a batch, and of all: of fewer, two clusters or a heavy tail make batches of one distribution differ."""


@dataclass(frozen=True)
class Batch:
    """Each channel of one batch; tensors of shape (C,), in float64.

    Attributes:
        samples: how many.
        mean, var: over samples and positions.
        means, squares: biased variance between samples, of their means and of their mean squared deviations.
    """

    samples: int
    mean: Tensor
    var: Tensor
    means: Tensor
    squares: Tensor

    @classmethod
    def of(cls, x: Tensor, measured: InputMoments) -> Batch:
        """Of an input (N, C, ...) and its moments."""
        flat = x.detach().cpu().double().flatten(2) if x.dim() > 2 else x.detach().cpu().double()[:, :, None]
        squares = (flat - measured.mean[:, None]).square().mean(2)
        return cls(len(x), measured.mean, measured.var, measured.between, squares.var(0, unbiased=False))


@dataclass(frozen=True)
class Difference:
    """How batches differ.

    Attributes:
        share: of the channels that differ, by more than chance and by much.
        shift: of the batches' means, in standard deviations of all batches together; in the median channel.
        ratio: of the batches' standard deviations, one typical difference; in the median channel.
        groups: numbers of the batches of the smaller of two groups that explain the differences; empty if none do.
    """

    share: float
    shift: float
    ratio: float
    groups: tuple[int, ...]


def difference(batches: list[Batch]) -> Difference | None:
    """How batches differ; None if they are too few or too small to tell.

    A channel differs by more than chance if the variance between batches, of means or of squared deviations, exceeds
    what the variance between the samples of a batch lets expect; and by much if means are half a standard deviation
    apart or variances a factor of 4, as of two domains whose running statistics would fit neither.
    """
    counted = [batch.samples for batch in batches]
    if len(batches) < 4 or min(counted) < FEWEST or sum(counted) < ENOUGH:
        return None
    counts = torch.tensor(counted, dtype=torch.float64)[:, None]
    mean, var = torch.stack([b.mean for b in batches]), torch.stack([b.var for b in batches])
    shares = counts / counts.sum()
    shifted = mean - (mean * shares).sum(0)
    within, between = (var * shares).sum(0), (shifted.square() * shares).sum(0)
    shift = (between / (within + between + 1e-30)).sqrt()
    spread = (var + 1e-30).log().std(0)
    apart = (shift > 0.5) & (_excess(mean, torch.stack([b.means for b in batches]), counts) > CERTAIN)
    apart |= (spread > math.log(2)) & (_excess(var, torch.stack([b.squares for b in batches]), counts) > CERTAIN)
    seen = torch.cat([shifted / (within + 1e-30).sqrt(), (var + 1e-30).log()], 1)
    return Difference(
        float(apart.double().mean()),
        float(shift.median()),
        float(spread.median().mul(0.5).exp()),
        _smaller_group(seen),
    )


def _excess(group: Tensor, inside: Tensor, counts: Tensor) -> Tensor:
    """By how many standard deviations the variance between groups exceeds chance; Paulson's approximation of F."""
    first, second = len(counts) - 1, float(counts.sum()) - len(counts)
    centre = (group * counts).sum(0) / counts.sum()
    between = ((group - centre).square() * counts).sum(0) / first
    within = (inside * counts).sum(0) / second
    root = (between / (within + 1e-30)).clamp(max=1e30) ** (1 / 3)
    a, b = 2 / (9 * first), 2 / (9 * second)
    return ((1 - b) * root - (1 - a)) / (b * root**2 + a).sqrt()


def _smaller_group(seen: Tensor) -> tuple[int, ...]:
    """The best division of rows into two groups along their main direction, if it explains most of their variance."""
    seen = seen - seen.mean(0)
    order = torch.linalg.svd(seen, full_matrices=False).U[:, 0].argsort()
    best: tuple[float, Tensor] = (0.0, order[:0])
    for cut in range(1, len(order)):
        one, other = order[:cut], order[cut:]
        explained = sum(len(part) * float(seen[part].mean(0).square().sum()) for part in (one, other))
        # Of two as large, the one without the first batch.
        smaller = min(one, other, key=lambda part: (len(part), bool((part == 0).any())))
        best = max(best, (explained, smaller), key=lambda each: each[0])
    return tuple(sorted(best[1].tolist())) if best[0] > 0.8 * float(seen.square().sum()) else ()
