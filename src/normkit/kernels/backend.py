"""The interface of the kernels of a device, compiled or in Triton."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from normkit.kernels.formula import Arguments, Gradients


class Mask(NamedTuple):
    """A mask in the order of the plan's memory: one byte for all channels of a place."""

    valid: Tensor
    counts: Tensor
    """Valid elements of each cell, in float64."""
    channels: int
    """How many elements of x share a byte."""
    inner: int
    """How far apart those are."""


class Want(NamedTuple):
    """Which gradients are asked for; kernels may return others as well."""

    x: bool
    weight: bool
    bias: bool
    gate: bool = False
    skip: bool = False


class Kernels(Protocol):
    """The kernels of one kind of device."""

    reads_half: bool
    """Whether weight and bias may have less precision than the arithmetic dtype."""
    slabs_in_regions: bool
    """Whether weights may change within a region that has its values in columns."""

    def plan(
        self, k0: int, r0: int, k1: int, r1: int, period: int, inner: int, columns: int, slabs: int, group: int,
        pitch: int, outer: int, /,
    ) -> int:  # fmt: skip
        """Make a plan known, and return the number that calls name it by."""

    def forget(self, plan: int, /) -> None:
        """Give up a plan, if it is known."""

    def norm(
        self, a: Arguments, plan: int, std: Tensor | None, eps: float, mask: Mask | None, moments: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """y, the sum with a residual, and mean and standard deviation if `moments` asks for them and none are given.

        `std`, `eps` and `mask` replace those in `a`, whose tensors are laid out by the plan, in the arithmetic dtype.
        `std` is what `given` has made of a given variance.
        """

    def norm_backward(
        self, dy: Tensor, a: Arguments, plan: int, std: Tensor, eps: float, mask: Mask | None, fixed: bool, want: Want
    ) -> Gradients:
        """Gradients of x, with `a.residual` added, of weight and bias, gate and skip; None where not computed.

        `std` is the deviation, or with `fixed` what `given` has made of a given variance.
        """

    def given(self, var: Tensor, eps: float, /) -> tuple[Tensor, float]:
        """A given variance as the kernels take it, and the eps that they still add to it.

        A stored variance may be slightly negative, so eps is added before the root is taken. That is the kernels' task,
        because torch's root may differ from theirs in the last bit, in eager mode or in a compiled graph.
        """

    def move_running(
        self, running_mean: Tensor, running_var: Tensor, mean: Tensor, std: Tensor, count: int, momentum: float, /
    ) -> int:
        """Update running statistics, and return how many channels kept theirs, as far as that is known at once."""

    def weight_norm(self, v: Tensor, g: Tensor, plan: int, /) -> tuple[Tensor, Tensor]:
        """The weight, and the lengths that it was divided by."""

    def weight_norm_backward(
        self, dw: Tensor, v: Tensor, g: Tensor, length: Tensor, plan: int, /
    ) -> tuple[Tensor, Tensor]:
        """The gradients of direction and length."""

    def quantize(
        self, a: Arguments, scale: Tensor | None, dtype: torch.dtype, scaling: str, group_size: int, /
    ) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
        """Rows in 8 bits, their scales unless one is given, and the sum; None where the kernels do not serve."""
