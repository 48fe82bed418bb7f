"""Takes the figures of a norm's call, on the device of its tensors; nothing is read back until the record is made.

Mean and deviation of each channel come from one pass of the kernel that batch norm has; those of everything follow
from them, since channels have equally many elements.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from normkit.kernels import operator
from normkit.kernels.formula import Arguments
from normkit.tools.model.info import NormInfo
from normkit.tools.model.valid import FIRST, input_of, is_unbatched, last, valid_mask, valid_positions
from normkit.tools.watch.record import COUNTS, DEAD, NormRecord

MOMENTS = ("mean", "std", "mean_min", "mean_max", "std_min", "std_max")


class Row:
    """The figures of one call while they come in.

    Args:
        step, name, kind, call: as in `NormRecord`.
        info: the description of the norm.
        done: whether a gradient has arrived.
    """

    def __init__(self, step: int, name: str, kind: str, call: int, info: NormInfo) -> None:
        self.named = (step, name, kind, call)
        self.info = info
        self.known: dict[str, int | None] = {}
        self.waiting: list[tuple[tuple[str, ...], Tensor]] = []
        self.done = False
        self._mask: Tensor | None = None
        self._unbatched = False

    def keep(self, names: tuple[str, ...], values: Tensor) -> None:
        """Keep numbers that stay on their device for now, under these names."""
        self.waiting.append((names, values.detach().reshape(-1).float()))

    def input(self, norm: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Take the figures of the input, the parameters, and the running statistics before they are updated."""
        self._parameters(norm)
        x = input_of(norm, args, kwargs)
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return
        self._unbatched = is_unbatched(norm, x.dim())
        x = x.detach().unsqueeze(0) if self._unbatched else x.detach()
        pattern = _pattern(norm, self.info, x)
        if pattern is not None:
            self._mask = valid_mask(norm, x, kwargs, pattern)
        x, pattern = self._valid(x, pattern)
        if not x.numel():
            return
        mean, std = self._moments("input", x, pattern)
        self.known["channels"] = None if pattern is None else mean.numel()
        self._nonfinite("nonfinite_input", x, mean.sum() + std.sum())
        self._running(norm, x, mean, std)

    def output(self, y: Any) -> Tensor | None:
        """Take the figures of the output; returns its tensor if that may get a gradient."""
        y = y[0] if isinstance(y, tuple) and y else y
        if not isinstance(y, Tensor) or not y.is_floating_point():
            return None
        x = y.detach().unsqueeze(0) if self._unbatched else y.detach()
        x, pattern = self._valid(x, _pattern(None, self.info, x, self.known.get("channels")))
        if x.numel():
            _, std = self._moments("output", x, pattern)
            if pattern is not None and x.numel() > std.numel():
                self.keep(("dead",), (std < DEAD).sum())
        return y if y.requires_grad else None

    def gradient(self, name: str, grad: Tensor) -> None:
        """The first gradient by the output or a parameter."""
        self.done = True
        if any(name in names for names, _ in self.waiting):
            return
        grad = grad.detach()
        wide = torch.float32 if grad.dtype.itemsize < 4 else grad.dtype
        length = torch.linalg.vector_norm(grad, dtype=wide)
        self.keep((name,), length)
        if name == "grad_output":
            self._nonfinite("nonfinite_grad", grad, length)

    def _parameters(self, norm: nn.Module) -> None:
        for name, offset in (("weight", self.info.offset), ("bias", 0.0)):
            # A parametrized one is not read: computing it could change the state of its parametrization.
            value: Tensor | None = norm._parameters.get(name)
            value = norm._buffers.get(name) if value is None else value
            if value is None or not value.numel():
                continue
            value = value.detach() + offset if offset else value.detach()
            self.keep((f"{name}_min", f"{name}_max"), torch.stack(torch.aminmax(value)))
            if name == "weight":
                self.keep(("dead_weights",), (value.abs() < DEAD).sum())

    def _valid(self, x: Tensor, pattern: str | None) -> tuple[Tensor, str | None]:
        """The valid positions alone, as (positions, features)."""
        if self._mask is None or pattern is None:
            return x, pattern
        channels = 0 if pattern == FIRST else len(pattern.split()) - 1
        return valid_positions(x, self._mask, channels), last(max(channels, 1))

    def _moments(self, what: str, x: Tensor, pattern: str | None) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel; kept are those of everything, and the extremes."""
        x, pattern = (x.reshape(-1, 1), FIRST) if pattern is None else (x, pattern)
        mean, std = operator.norm(Arguments(x, None, None, pattern, 0.0, True)).moments()
        whole = (std.square().mean() + mean.var(correction=0)).sqrt()
        figures = torch.stack([mean.mean(), whole, *torch.aminmax(mean), *torch.aminmax(std)])
        self.keep(tuple(f"{what}_{moment}" for moment in MOMENTS), figures)
        return mean, std

    def _nonfinite(self, name: str, x: Tensor, sign: Tensor) -> None:
        """Counts only where `sign` is not finite; on another device it is not read, which would wait for the device."""
        if sign.is_cpu and bool(sign.isfinite()):
            self.known[name] = 0
        else:
            self.keep((name,), (~x.isfinite()).sum())

    def _running(self, norm: nn.Module, x: Tensor, mean: Tensor, std: Tensor) -> None:
        eps = getattr(norm, "eps", None) or 0.0
        running_mean, running_var, phi = (norm._buffers.get(f"running_{name}") for name in ("mean", "var", "phi"))
        kept = phi if running_var is None else running_var
        if kept is None or kept.numel() != mean.numel():
            return
        kept = kept.detach() + eps
        if running_mean is not None:
            self.keep(("running_shift",), ((mean - running_mean).abs() / kept.sqrt()).max())
        var: Tensor | None
        if running_var is None:
            var = mean.square() + std.square()
        elif isinstance(norm, _InstanceNorm):
            var = x.float().flatten(2).var(2, correction=1).mean(0) if x.dim() > 2 else None
        else:
            count = x.numel() // mean.numel()
            var = std.square() * (count / max(count - 1, 1))
        if var is not None:
            ratio = (var + eps) / kept
            self.keep(("running_var_ratio",), torch.maximum(ratio, 1 / ratio).max())


def _pattern(norm: nn.Module | None, info: NormInfo, x: Tensor, size: int | None = None) -> str | None:
    """The region of one channel over everything; None if the channels are not known."""
    if info.kind is not None:
        dims = len(info.shape) or 1
        if info.axis == "first":
            fits = x.dim() > 1
            return FIRST if fits else None
        return last(dims) if tuple(x.shape[-dims:]) == info.shape or not info.shape else None
    if norm is not None:
        if isinstance(norm, _NormBase):
            return FIRST
        owned = [*norm._parameters.values(), *norm._buffers.values()]
        size = next((t.numel() for t in owned if t is not None and t.numel() > 1), None)
    if size is None or x.dim() < 2:
        return None
    # Of a norm that is not understood: images have channels first, unless only the last dimension fits.
    fitting = [dim for dim in (1, -1) if x.shape[dim] == size]
    if x.dim() < 4:
        fitting.reverse()
    return None if not fitting else FIRST if fitting[0] == 1 else last()


def records_of(rows: list[Row]) -> list[NormRecord]:
    """Read all figures of a step back, at once where they are on one device."""
    tensors = [values for row in rows for _, values in row.waiting]
    if len({t.device for t in tensors}) == 1:
        numbers = torch.cat(tensors).tolist()
    else:
        numbers = [number for t in tensors for number in t.tolist()]
    made, at = [], 0
    for row in rows:
        found: dict[str, Any] = dict(row.known)
        for names, values in row.waiting:
            found |= zip(names, numbers[at : at + values.numel()], strict=True)
            at += values.numel()
        found |= {name: int(found[name]) for name in COUNTS if found.get(name) is not None}
        made.append(NormRecord(*row.named, **found))
    return made
