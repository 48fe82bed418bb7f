"""Fits the single numbers of layers that take the place of a norm: slope and shift of a bounded function, a gain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normkit.layers import DynamicErf, DynamicTanh
from normkit.tools.convert.calibrate import columns, target_of
from normkit.tools.convert.identity import Gain
from normkit.tools.model.call import Observer, observe
from normkit.tools.model.info import NormInfo

ELEMENTS = 2**18
"""How many values of a norm's input the slope is fitted to: a sample of this size has its optimum within a few
thousandths, and weight and bias are fitted to all values afterwards."""

SLOPES = (0.5, 10.0)
"""Smallest and largest slope, times the root mean square of the input. The smallest is that of a new layer on inputs of
size 1. With a smaller one and a larger weight the function comes nearer to a linear one, but a step of training
changes the slope by a share that grows as ``slope ** -2``: at 0.1 trainings diverged. Above the largest it is the sign
of its input."""


@dataclass(frozen=True)
class FittedScalars:
    """What was fitted, in words, and the remaining error of a gain as in `calibrate.Fitted`."""

    text: str
    residual: float | None = None


def fit_scalars(
    model: nn.Module, pairs: Mapping[nn.Module, tuple[NormInfo, nn.Module]], batches: list[Any]
) -> dict[nn.Module, FittedScalars]:
    """Set slope, shift and gain of the new layers that have them.

    Of ``f(slope * x + shift) * weight + bias``, the slope and the shift with which the least squares of weight and bias
    leave the smallest error, over a sample of the input. Of ``gain * x``, the gain that keeps the root mean square.

    Args:
        model: holds the old norms; run in evaluation mode, and left as it was.
        pairs: for each old norm its description, and the new layer.
        batches: inputs of the model.

    Returns:
        What was fitted for each norm that a batch reached.
    """
    samples = {module: _Sample(info, len(batches)) for module, (info, _) in pairs.items()}
    observers: dict[nn.Module, Observer] = {
        module: _observer(module, info, samples[module]) for module, (info, _) in pairs.items()
    }
    observe(model, batches, observers)
    return {
        module: _fitted(new, *sample.values())
        for module, (_, new) in pairs.items()
        if (sample := samples[module]).is_usable()
    }


def _observer(module: nn.Module, info: NormInfo, sample: _Sample) -> Observer:
    target = target_of(module, info)
    return lambda _, x, y: sample.add(x, target(x, y))


class _Sample:
    """Rows of inputs x and outputs y of a norm, the same number from each batch."""

    def __init__(self, info: NormInfo, batches: int) -> None:
        self.info = info
        self.rows = max(ELEMENTS // max(info.channels, 1) // batches, 16)
        self.generator = torch.Generator().manual_seed(0)
        self.kept: list[tuple[Tensor, Tensor]] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        x, y = columns(x, self.info), columns(y, self.info)
        chosen = torch.randperm(len(x), generator=self.generator)[: self.rows].to(x.device)
        self.kept.append((x[chosen], y[chosen]))

    def values(self) -> tuple[Tensor, Tensor]:
        x, y = (torch.cat(parts) for parts in zip(*self.kept, strict=True))
        return x, y

    def is_usable(self) -> bool:
        """Whether there are values, all finite and not all 0; `calibrate.fit` raises for those that are not finite."""
        return bool(self.kept) and all(bool(t.isfinite().all()) and bool(t.any()) for t in self.values())


@torch.no_grad()
def _fitted(new: nn.Module, x: Tensor, y: Tensor) -> FittedScalars:
    if isinstance(new, Gain):
        new.gain.fill_(float((y.square().mean() / x.square().mean()).sqrt()))
        wrong = (x * new.gain.to(x) - y).square().sum() / (y - y.mean(0)).square().sum().clamp_min(1e-300)
        return FittedScalars(f"gain {float(new.gain):.3g}", float(wrong.sqrt()))
    assert isinstance(new, DynamicTanh | DynamicErf)
    slope, shift = _nearest(_error(new, x, y), x, shifts=isinstance(new, DynamicErf))
    new.alpha.fill_(slope)
    if not isinstance(new, DynamicErf):
        return FittedScalars(f"alpha {slope:.3g}")
    new.shift.fill_(shift)
    return FittedScalars(f"alpha {slope:.3g}, shift {shift:.3g}")


def _error(new: DynamicTanh | DynamicErf, x: Tensor, y: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The sum of squares that the best weight and bias leave, as a function of slope and shift, over that of y."""
    function = torch.tanh if isinstance(new, DynamicTanh) else torch.erf
    centred = y if new.bias is None else y - y.mean(0)
    total = centred.square().sum().clamp_min(1e-300)

    def error(slope: Tensor, shift: Tensor) -> Tensor:
        z = function(x * slope + shift)
        if new.weight is None:
            return (z - y).square().sum() / total
        z = z if new.bias is None else z - z.mean(0)
        zz, zy = z.square().sum(0), (z * centred).sum(0)
        explained = torch.where(zz > 1e-12 * len(z), zy.square() / zz.clamp_min(1e-300), 0)
        return (total - explained.sum()) / total

    return error


def _nearest(error: Callable[[Tensor, Tensor], Tensor], x: Tensor, *, shifts: bool) -> tuple[float, float]:
    """The slope and the shift of the smallest error: a search over slopes, then quasi-Newton steps for both."""
    size = float(x.square().mean().sqrt())
    low, high = (torch.tensor(bound / size, dtype=x.dtype, device=x.device).log() for bound in SLOPES)
    grid = torch.linspace(float(low), float(high), 25, dtype=x.dtype, device=x.device)
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    best = grid[int(torch.stack([error(point.exp(), zero) for point in grid]).argmin())]
    log_slope, shift = best.clone().requires_grad_(), zero.clone().requires_grad_(shifts)
    parameters = [log_slope, shift] if shifts else [log_slope]
    search = torch.optim.LBFGS(parameters, max_iter=30, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        loss = error(log_slope.clamp(low, high).exp(), shift)
        loss.backward()
        return loss

    with torch.enable_grad():
        search.step(closure)
    log_slope = log_slope.detach().clamp(low, high)
    if error(log_slope.exp(), shift) < error(best.exp(), zero):
        return float(log_slope.exp()), float(shift)
    return float(best.exp()), 0.0
