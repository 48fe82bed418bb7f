"""Power normalization: each channel by a running quadratic mean, with an approximate gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor

from normkit.errors import ArgumentError, ShapeError, StateError
from normkit.functional.batch.norm import PATTERN, check_channels
from normkit.functional.call.checks import check_parameter
from normkit.functional.call.moments import moments, normalized_by
from normkit.functional.call.recompute import as_at_first, is_recomputing
from normkit.functional.call.running import store, towards
from normkit.functional.call.spec import Spec, checked
from normkit.functional.extras import Fusions, Output
from normkit.kernels import operator
from normkit.kernels.context import is_transformed, is_watched
from normkit.kernels.dtypes import arithmetic_dtype, working_dtype
from normkit.kernels.formula import Arguments, counts_of
from normkit.kernels.layout import dense_like
from normkit.kernels.operator import library
from normkit.kernels.regions import region_of

POWER = Spec("power_norm", check_channels, center=False)


@overload
def power_norm(
    input: Tensor,
    running_phi: Tensor,
    running_gradient: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    warmup: bool | Tensor = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    **fused: Unpack[Fusions],
) -> Tensor: ...
@overload
def power_norm(
    input: Tensor,
    running_phi: Tensor,
    running_gradient: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    warmup: bool | Tensor = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    return_residual: Literal[True],
    **fused: Unpack[Fusions],
) -> tuple[Tensor, Tensor]: ...
@overload
def power_norm(
    input: Tensor,
    running_phi: Tensor,
    running_gradient: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    warmup: bool | Tensor = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    return_residual: bool,
    **fused: Unpack[Fusions],
) -> Output: ...
def power_norm(
    input: Tensor,
    running_phi: Tensor,
    running_gradient: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    warmup: bool | Tensor = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    residual: Tensor | None = None,
    return_residual: bool = False,
    activation: str | None = None,
) -> Output:
    """Divide each channel by its quadratic mean: the running one in training after the warm-up, and in evaluation.

    ``y = x / sqrt(phi + eps) * weight + bias``, where phi is the mean of ``x ** 2`` over batch and positions: the
    batch's in the warm-up, else the running one of before this batch. No mean is subtracted. The gradient of the
    running one is approximate, as in the paper: ``dx = (g - nu * x_hat) / sqrt(phi + eps)`` with
    ``g = dy * weight`` and ``nu <- nu * (1 - momentum * mean(x_hat ** 2)) + momentum * mean(g * x_hat)``. In the
    warm-up the gradient is exact, and nu is updated.

    Args:
        input: (N, C) or (N, C, ...), any strides.
        running_phi: (C,), the running quadratic mean, updated in place in training; a channel keeps its own where the
            new one would not be finite.
        running_gradient: (C,), nu, updated in place by each backward pass in training; None for 0 throughout.
        weight, bias: (C,) or None.
        training: update the statistics, and use the approximate gradient.
        warmup: use the batch's quadratic mean in training; a tensor where a graph is to decide it each time it runs.
        momentum: share of the new batch in both statistics.
        eps: added to phi, in units of the input squared.
        mask, lengths, residual, return_residual, activation: as in `normkit.functional.extras.Extras`.

    Returns:
        A tensor with the input's shape, dtype and memory layout.

    Raises:
        ShapeError: one value per channel in the warm-up, or parameters of another size; nothing is updated then.
        ArgumentError: no running quadratic mean.
        StateError: a transform of `torch.func` in training, with a running gradient.

    Example:
        >>> import torch
        >>> from normkit import functional
        >>> phi = torch.tensor([4.0])
        >>> functional.power_norm(torch.tensor([[2.0], [6.0]]), phi, training=True, eps=0.0).flatten(), phi
        (tensor([1., 3.]), tensor([5.6000]))

    Source: Shen et al. 2020, PowerNorm: Rethinking Batch Normalization in Transformers, arXiv:2003.07845.
    """
    fused = (mask, lengths, residual, return_residual, activation)
    if running_phi is None:
        raise ArgumentError("power_norm needs a running quadratic mean, got None: pass running_phi, at first 1")
    call = checked(POWER, PATTERN, input, weight, bias, eps, fused)
    for what, statistic in (("running_phi", running_phi), ("running_gradient", running_gradient)):
        check_parameter("power_norm", what, statistic, (input.shape[1],), input)
    if training and warmup is not False and input.numel() == input.shape[1] > 0:
        raise ShapeError(
            "power_norm in the warm-up needs more than one value per channel, because of a single one only the sign is "
            f"left; got one from shape {tuple(input.shape)}: use a larger batch, or eval() to use the running mean"
        )
    if not training or not input.numel():
        out = operator.run(_given(call.arguments, running_phi))
        return call.output(out.y, out.sum)
    if running_gradient is not None and not torch.compiler.is_compiling() and is_transformed():
        raise StateError(
            "power_norm in training updates a statistic in its backward pass, which a transform of torch.func cannot, "
            "got a call under one: use eval(), or the function with running_gradient=None"
        )
    total = call.plain().x
    a = call.arguments._replace(x=total, residual=None)
    state = _either if isinstance(warmup, Tensor) else _one
    own, phi, warm = state(a._replace(weight=None, bias=None, activation="none"), running_phi, warmup)
    values = _values(a)
    if running_gradient is not None:
        ones = torch.ones_like(phi) if weight is None else weight
        x, ones = _corrected(total, ones, own, phi, running_gradient, warm, momentum, values, eps)
        a = a._replace(x=x, weight=ones)
    y = operator.run(a).y if warm is True else normalized_by(_given(a, phi))
    if not is_recomputing():
        _update(running_phi, own, values, momentum)
    return call.output(y, total)


def _given(a: Arguments, phi: Tensor) -> Arguments:
    """The call with this quadratic mean."""
    return a._replace(center=True, mean=torch.zeros_like(phi, dtype=arithmetic_dtype(a.x.dtype)), var=phi)


def _one(a: Arguments, running_phi: Tensor, warmup: Any) -> tuple[Tensor, Tensor, bool]:
    """The batch's root mean square, the quadratic mean to divide by, and whether it is the batch's own."""
    a = a._replace(x=a.x.detach())
    own = moments(a)[1]
    if not is_watched(own):
        running_phi, first = _as_at_first(own, running_phi, torch.tensor(bool(warmup)))
        warmup = bool(first)
    return own, own.to(working_dtype(own)).square() if warmup else running_phi, bool(warmup)


def _either(a: Arguments, running_phi: Tensor, warmup: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The same without a decision in Python: for graphs, and where reading a value would wait for the GPU."""
    std = moments(a)[1]
    own, mean_square = std.detach(), std.to(working_dtype(std)).square()
    compiling = torch.compiler.is_compiling()
    transformed = not compiling and is_transformed()
    state = torch.ops.normkit.power_state.default if compiling else _as_at_first
    phi, warm = (running_phi, warmup) if transformed else state(own, running_phi.detach(), warmup)
    return own, torch.where(warm, mean_square, phi.to(mean_square.dtype)), warm


def _as_at_first(own: Tensor, running_phi: Tensor, warmup: Tensor) -> tuple[Tensor, Tensor]:
    """Running mean and warm-up; of a batch that activation checkpointing computes again, those of the first time."""
    phi, warm = as_at_first("power_norm", torch.zeros_like(own), own, running_phi.clone(), warmup.clone())
    return phi, warm


# An operator for torch.compile, as that of batch_renorm: a graph would else read in backward what was updated since.
library.define(
    "power_state(Tensor std, Tensor running_phi, Tensor warmup) -> (Tensor phi, Tensor warm)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library.impl("power_state", _as_at_first, "CompositeExplicitAutograd")


@torch.library.register_fake("normkit::power_state", lib=library)  # type: ignore[untyped-decorator]
def _(std: Tensor, running_phi: Tensor, warmup: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(running_phi), torch.empty_like(warmup)


def _values(a: Arguments) -> int | Tensor:
    """The number of values of a channel; one number for each where padding leaves some out."""
    if a.mask is None:
        return a.x.numel() // a.x.shape[1]
    return counts_of(a.mask, a.x.shape, region_of(a.pattern).levels(a.x.shape))


def _update(running_phi: Tensor, own: Tensor, values: int | Tensor, momentum: float) -> None:
    """A channel of padding alone, or whose new mean would not be finite, keeps its old one."""
    with torch.no_grad():
        new = towards(running_phi, own.to(working_dtype(own)).square(), momentum)
        updated = new.isfinite() if isinstance(values, int) else new.isfinite() & (values > 0)
        store(running_phi, torch.where(updated, new, running_phi))


class _Corrected(torch.autograd.Function):
    """x and weight as they are; backward corrects the gradient of x, and updates nu by the gradient of the weight."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        own: Tensor,
        phi: Tensor,
        running: Tensor,
        warm: bool | Tensor,
        momentum: float,
        values: int | Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight)
        # Not saved: backward reads nu as it is then, and changes it.
        ctx.running = running
        ctx.rest = own, phi.detach(), warm, momentum, values, eps
        return x.view_as(x), weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, dx: Tensor, dweight: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        own, phi, warm, momentum, values, eps = ctx.rest
        dtype = arithmetic_dtype(x.dtype)
        with torch.no_grad():
            old, phi, own = ctx.running.to(dtype), phi.to(dtype) + eps, own.to(dtype)
            count = values.clamp(min=1).to(dtype) if isinstance(values, Tensor) else values
            # The weight's gradient is the sum of dy * x_hat, from which that of g * x_hat follows.
            new = old * (1 - momentum * own.square() / phi) + momentum * weight.to(dtype) * dweight.to(dtype) / count
            new = new.to(ctx.running.dtype)
            slope = torch.where(warm, 0, old / phi) if isinstance(warm, Tensor) else old / phi
            ctx.running.copy_(torch.where(new.isfinite(), new, ctx.running))
        if warm is not True:
            shape = [-1, *[1] * (x.dim() - 2)]
            dx = dense_like(x, (dx.to(dtype) - slope.view(shape) * x.to(dtype)).to(x.dtype))
        return dx, dweight, *(None,) * 7


_corrected: Callable[..., tuple[Tensor, Tensor]] = _Corrected.apply
