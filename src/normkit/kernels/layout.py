"""Lays tensors out for a plan on the way into a kernel, and the kernel's results on the way out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from normkit.kernels import devices, fastpath
from normkit.kernels.backend import Mask
from normkit.kernels.dtypes import arithmetic_dtype
from normkit.kernels.formula import Arguments, counts_of
from normkit.pattern import parse
from normkit.plan import Plan, Prepare, plan

MOST_PLANS = 4096
"""When this many are known, all are given up."""


def _inverse(order: Sequence[int]) -> list[int]:
    return [order.index(i) for i in range(len(order))]


def _reorder(t: Tensor, sizes: Sequence[int], axes: Sequence[int], *, to_memory: bool) -> Tensor:
    """A flat tensor over some axes, from their logical order to their order in memory, or back."""
    logical = sorted(axes)
    order = [logical.index(axis) for axis in axes]
    if to_memory:
        return t.reshape([sizes[axis] for axis in logical]).permute(order).reshape(-1)
    return t.reshape([sizes[axis] for axis in axes]).permute(_inverse(order)).reshape(-1)


Varying = tuple[bool, ...] | None
"""`Arguments.varying`"""


@lru_cache(maxsize=MOST_PLANS)
def plan_of(
    pattern: str, shape: torch.Size, strides: tuple[int, ...], varying: Varying = None, slabs_in_regions: bool = True
) -> Plan:
    return plan(parse(pattern), shape, strides, varying, slabs_in_regions=slabs_in_regions)


def _plan_on(device: str, pattern: str, shape: torch.Size, strides: tuple[int, ...], varying: Varying) -> Plan:
    kernels = devices.kernels_on(device)
    return plan_of(pattern, shape, strides, varying, kernels is None or kernels.slabs_in_regions)


_Key = tuple[str, torch.Size, tuple[int, ...], Varying, str]
_direct: dict[_Key, tuple[int, tuple[int, ...]]] = {}
_numbered: dict[tuple[tuple[int, ...], str], int] = {}


def direct_plan(
    pattern: str, shape: torch.Size, strides: tuple[int, ...], varying: Varying, device: str
) -> tuple[int, tuple[int, ...]]:
    """The number of a plan for the kernels of a device, -1 if a tensor cannot go to them as it is; and y's strides."""
    key = (pattern, shape, strides, varying, device)
    return _direct.get(key) or _made_known(key)


def _made_known(key: _Key) -> tuple[int, tuple[int, ...]]:
    """Make a plan known to the kernels and to the fast path. Each has a limit, at which it gives up all its plans."""
    pattern, shape, strides, varying, device = key
    plan = _plan_on(device, pattern, shape, strides, varying)
    number = _number_of(plan, device) if plan.direct else -1
    if _known_to_fast_path(key, number, plan) or len(_direct) >= MOST_PLANS:
        _direct.clear()
    _direct[key] = number, strides if plan.prepare is Prepare.AS_IS else dense_strides(shape, strides)
    return _direct[key]


def dense_strides(shape: torch.Size, strides: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a dense tensor that has the dimensions in the same order of memory."""
    return torch.empty_like(torch.empty_strided(shape, strides, device="meta")).stride()


def _known_to_fast_path(key: _Key, number: int, plan: Plan) -> bool:
    """Let the fast path take calls of a plan; True if it has given up all other plans."""
    pattern, shape, strides, varying, device = key
    over_features = varying is None
    if varying is None:
        features = {level.dim for level in parse(pattern).levels(shape) if level.feature and shape[level.dim] != 1}
        varying = tuple([dim in features for dim in range(len(shape))])
    dims = sum(1 << dim for dim, varies in enumerate(varying) if varies)
    known_by = (pattern, shape, strides, dims, over_features)
    if device == "cpu":
        return fastpath.cache_plan(*known_by, number)
    if number < 0 or device != "cuda":
        return False
    from normkit.kernels.triton import recipes

    return recipes.cache_plan(*known_by, number, plan.numbers)


def _number_of(plan: Plan, device: str) -> int:
    """The number of a plan, whether or not tensors have to be copied for it."""
    key = (plan.numbers, device)
    number = _numbered.get(key)
    if number is None:
        if len(_numbered) >= MOST_PLANS:
            forget_plans()
        kernels = devices.kernels_on(device)
        assert kernels is not None
        number = _numbered[key] = kernels.plan(*plan.numbers)
    return number


def forget_plans() -> None:
    """Give up all plans; calls make them known again."""
    for (_, device), number in _numbered.items():
        kernels = devices.kernels_on(device)
        if kernels is not None:
            kernels.forget(number)
    _numbered.clear()
    _direct.clear()
    fastpath.forget_gpu_plans()


# Calls --------------------------------------------------------------------------------------------------------


def ready_plan(a: Arguments, std: Tensor | None, dy: Tensor | None = None) -> int:
    """The number of the plan, if all tensors of a call can go to the kernels as they are; else -1."""
    x, weight, bias, mean, residual, gate, skip = a.x, a.weight, a.bias, a.mean, a.residual, a.gate, a.skip
    number, strides = direct_plan(a.pattern, x.shape, x.stride(), a.varying(), "cpu" if x.is_cpu else x.device.type)
    if (
        number >= 0
        and a.mask is None
        and is_ready(x, weight, bias)
        and (mean is None or _is_statistic(mean, x))
        and (std is None or _is_statistic(std, x))
        and (residual is None or residual.stride() == strides)
        and (dy is None or dy.stride() == strides)
        and (gate is None or gate.stride() == strides)
        and (skip is None or skip.stride() == strides)
    ):
        return number
    return -1


class Layout:
    """One tensor under one plan: the copies it needs on the way in, and the way back out."""

    def __init__(self, a: Arguments) -> None:
        x = a.x
        self.shape, self.pattern, varying = x.shape, a.pattern, a.varying()
        device = x.device.type
        self.plan = _plan_on(device, a.pattern, x.shape, x.stride(), varying)
        if self.plan.prepare is Prepare.DENSE:
            x = x.clone()
            self.plan = _plan_on(device, a.pattern, x.shape, x.stride(), varying)
        strided = self.plan.prepare is Prepare.STRIDED
        self.like = torch.empty_like(x, device="meta") if strided else x
        self.device = x.device
        self.x = self.into(x) if self.plan.prepare is Prepare.REGROUP else x
        self.stat = arithmetic_dtype(x.dtype)
        self.number = _number_of(self.plan, device)

    def arguments(self, a: Arguments) -> Arguments:
        """A call as the kernels expect it, but for its variance and its mask."""
        return a._replace(
            x=self.x,
            weight=self.parameter(a.weight),
            bias=self.parameter(a.bias),
            mean=None if a.mean is None else self.statistic(a.mean),
            residual=None if a.residual is None else self.into(a.residual),
            gate=None if a.gate is None else self.into(a.gate),
            skip=None if a.skip is None else self.into(a.skip),
        )

    def into(self, t: Tensor) -> Tensor:
        """Another tensor of x's shape, laid out as the kernel expects x."""
        if t.stride() != self.like.stride():
            t = torch.empty_like(self.like, dtype=t.dtype, device=self.device).copy_(t)
        if self.plan.prepare is not Prepare.REGROUP:
            return t
        return t.reshape(self.plan.sizes).permute(self._order()).contiguous()

    def out(self, t: Tensor) -> Tensor:
        """A result of the kernel, laid out as x."""
        if self.plan.prepare is not Prepare.REGROUP:
            return t
        return torch.empty_like(self.like, device=self.device).copy_(
            t.permute(_inverse(self._order())).reshape(self.shape)
        )

    def _order(self) -> list[int]:
        ones = [i for i, size in enumerate(self.plan.sizes) if size == 1]
        return [*ones, *self.plan.memory]

    def parameter(self, t: Tensor | None) -> Tensor | None:
        if t is None:
            return None
        if not self.plan.features_in_order:
            t = _reorder(t, self.plan.sizes, self.plan.features, to_memory=True)
        return (t if _is_read(t, self.x) else t.to(self.stat)).contiguous()

    def parameter_back(self, t: Tensor) -> Tensor:
        if self.plan.features_in_order or t.numel() == 0:
            return t
        return _reorder(t, self.plan.sizes, self.plan.features, to_memory=False)

    def statistic(self, t: Tensor) -> Tensor:
        if t.numel() and not self.plan.kept_in_order:
            t = _reorder(t, self.plan.sizes, self.plan.kept, to_memory=True)
        return t.to(self.stat).contiguous()

    def mask(self, mask: Tensor | None) -> Mask | None:
        """A mask that has size 1 in x's channel dimensions, and how many of its values are valid in each cell."""
        if mask is None:
            return None
        counts = counts_of(mask, self.shape, parse(self.pattern).levels(self.shape))
        if not self.plan.kept_in_order:
            counts = _reorder(counts, self.plan.sizes, self.plan.kept, to_memory=True)
        counts = counts.contiguous()
        shared = [d for d, size in enumerate(self.shape) if size > 1 and mask.shape[d] == 1]
        strides = self.like.stride()
        order = sorted((d for d, size in enumerate(self.shape) if size > 1), key=lambda d: -strides[d])
        places = [order.index(d) for d in shared]
        if self.plan.prepare is Prepare.REGROUP or (places and max(places) - min(places) >= len(places)):
            full = self.into(mask.expand(self.shape).contiguous())
            return Mask(full.as_strided((full.numel(),), (1,)), counts, 1, full.numel())
        ones = [d for d, size in enumerate(self.shape) if size == 1]
        inner = [self.shape[d] for d in order[max(places) + 1 :]] if places else [self.like.numel()]
        flat = mask.permute(*ones, *order).contiguous().reshape(-1)
        return Mask(flat, counts, math.prod([self.shape[d] for d in shared]), math.prod(inner))

    def statistic_back(self, t: Tensor) -> Tensor:
        if self.plan.kept_in_order or t.numel() == 0:
            return t
        return _reorder(t, self.plan.sizes, self.plan.kept, to_memory=False)


def is_ready(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether parameters can go to the kernel as they are."""
    dtype = arithmetic_dtype(x.dtype)
    for t in parameters:
        if t is not None and not (t.is_contiguous() and (t.dtype is dtype or _is_read(t, x))):
            return False
    return True


def _is_statistic(t: Tensor, x: Tensor) -> bool:
    return t.dtype is arithmetic_dtype(x.dtype) and t.is_contiguous()


def _is_read(t: Tensor, x: Tensor) -> bool:
    """Whether the kernels for x read a parameter in its own dtype, which is not the arithmetic one."""
    kernels = devices.kernels_for(x)
    return kernels is not None and kernels.reads_half and t.element_size() < arithmetic_dtype(x.dtype).itemsize


def dense_like(x: Tensor, y: Tensor) -> Tensor:
    """Layout in = layout out, for results of the reference."""
    out = torch.empty_like(x)
    return y if y.stride() == out.stride() else out.copy_(y)
