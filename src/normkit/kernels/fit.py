"""Fits tensors to a plan on the way into a kernel, and the kernel's results to the tensors on the way out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, lru_cache

import torch
from torch import Tensor

from normkit.kernels import backend, door
from normkit.kernels.reference import arithmetic_dtype
from normkit.pattern import parse
from normkit.plan import Plan, Prepare, plan


def _inverse(order: Sequence[int]) -> list[int]:
    return [order.index(i) for i in range(len(order))]


def _reorder(t: Tensor, sizes: Sequence[int], axes: Sequence[int], *, to_memory: bool) -> Tensor:
    """A flat tensor over some axes, from their logical order to their order in memory, or back."""
    logical = sorted(axes)
    order = [logical.index(axis) for axis in axes]
    if to_memory:
        return t.reshape([sizes[axis] for axis in logical]).permute(order).reshape(-1)
    return t.reshape([sizes[axis] for axis in axes]).permute(_inverse(order)).reshape(-1)


@lru_cache(maxsize=4096)
def plan_of(pattern: str, shape: torch.Size, strides: tuple[int, ...]) -> Plan:
    return plan(parse(pattern), shape, strides)


@cache
def _registered(numbers: tuple[int, ...], device: str) -> int:
    kernels = backend.kernels_on(device)
    assert kernels is not None
    return kernels.plan(*numbers)


@lru_cache(maxsize=4096)
def direct_plan(pattern: str, shape: torch.Size, strides: tuple[int, ...], device: str) -> int:
    """What the kernels of a device know the plan by, if a tensor can go to them as it is; else -1."""
    plan = plan_of(pattern, shape, strides)
    known_as = _registered(plan.numbers, device) if plan.direct else -1
    if device == "cpu" and door.learn(pattern, shape, strides, known_as):
        direct_plan.cache_clear()  # so that the door learns them again
    return known_as


class Call:
    """One tensor under one plan: the copies it needs on the way in, and the way back out."""

    def __init__(self, x: Tensor, pattern: str) -> None:
        self.shape = x.shape
        self.plan = plan_of(pattern, x.shape, x.stride())
        if self.plan.prepare is Prepare.DENSE:
            x = x.clone()
            self.plan = plan_of(pattern, x.shape, x.stride())
        self.like = x
        self.x = x if self.plan.prepare is Prepare.AS_IS else self.into(x)
        self.stat = arithmetic_dtype(x.dtype)
        self.known_as = _registered(self.plan.numbers, x.device.type)

    def into(self, t: Tensor) -> Tensor:
        """Another tensor of x's shape, laid out as the kernel expects x."""
        if t.stride() != self.like.stride():
            t = torch.empty_like(self.like, dtype=t.dtype).copy_(t)
        if self.plan.prepare is not Prepare.REGROUP:
            return t
        return t.reshape(self.plan.sizes).permute(self._order()).contiguous()

    def out(self, t: Tensor) -> Tensor:
        """A result of the kernel, laid out as x."""
        if self.plan.prepare is not Prepare.REGROUP:
            return t
        return torch.empty_like(self.like).copy_(t.permute(_inverse(self._order())).reshape(self.shape))

    def _order(self) -> list[int]:
        ones = [i for i, size in enumerate(self.plan.sizes) if size == 1]
        return [*ones, *self.plan.memory]

    def parameter(self, t: Tensor | None) -> Tensor | None:
        if t is None:
            return None
        if not self.plan.features_in_order:
            t = _reorder(t, self.plan.sizes, self.plan.features, to_memory=True)
        return t.to(self.stat).contiguous()

    def parameter_back(self, t: Tensor) -> Tensor:
        if self.plan.features_in_order or t.numel() == 0:
            return t
        return _reorder(t, self.plan.sizes, self.plan.features, to_memory=False)

    def statistic(self, t: Tensor) -> Tensor:
        if t.numel() and not self.plan.kept_in_order:
            t = _reorder(t, self.plan.sizes, self.plan.kept, to_memory=True)
        return t.to(self.stat).contiguous()

    def count(self, t: Tensor) -> Tensor:
        """Real elements of each cell, in float64, in the order of the kernel."""
        if not self.plan.kept_in_order:
            t = _reorder(t, self.plan.sizes, self.plan.kept, to_memory=True)
        return t.contiguous()

    def mask(self, mask: Tensor) -> tuple[Tensor, int, int]:
        """One byte for all channels of a place, in x's order of memory; how many those are, and how far apart.

        `mask` has size 1 in x's channel dimensions.
        """
        shared = [d for d, size in enumerate(self.shape) if size > 1 and mask.shape[d] == 1]
        strides = self.like.stride()
        order = sorted((d for d, size in enumerate(self.shape) if size > 1), key=lambda d: -strides[d])
        places = [order.index(d) for d in shared]
        if self.plan.prepare is Prepare.REGROUP or (places and max(places) - min(places) >= len(places)):
            full = self.into(mask.expand(self.shape).contiguous())
            return full.reshape(-1), 1, full.numel()
        ones = [d for d, size in enumerate(self.shape) if size == 1]
        inner = [self.shape[d] for d in order[max(places) + 1 :]] if places else [self.like.numel()]
        flat = mask.permute(*ones, *order).contiguous().reshape(-1)
        return flat, math.prod([self.shape[d] for d in shared]), math.prod(inner)

    def statistic_back(self, t: Tensor) -> Tensor:
        if self.plan.kept_in_order or t.numel() == 0:
            return t
        return _reorder(t, self.plan.sizes, self.plan.kept, to_memory=False)


def is_ready(t: Tensor | None, x: Tensor) -> bool:
    """Whether a parameter can go to the kernel as it is."""
    return t is None or (t.dtype is arithmetic_dtype(x.dtype) and t.is_contiguous())


def dense_like(x: Tensor, y: Tensor) -> Tensor:
    """Layout in = layout out, for results of the reference."""
    out = torch.empty_like(x)
    return y if y.stride() == out.stride() else out.copy_(y)
