"""One specification for each method, and the one function that carries out a call of any of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

from normkit.errors import ShapeError
from normkit.functional.call import running as running_statistics
from normkit.functional.call.checks import check_call, check_parameter
from normkit.functional.call.epilogue import Epilogue
from normkit.functional.call.fusions import check_activation, check_residual, checked_mask
from normkit.functional.call.nested import by_rows
from normkit.functional.call.precision import rounded
from normkit.functional.call.recompute import is_recomputing
from normkit.functional.call.running import Running
from normkit.functional.extras import Output
from normkit.kernels import fastpath, operator
from normkit.kernels.dtypes import arithmetic_dtype
from normkit.kernels.formula import ACTIVATIONS, Arguments, counts_of
from normkit.kernels.layout import dense_like
from normkit.kernels.regions import region_of

Fused = tuple[Any, ...]
"""mask, lengths, residual, return_residual, activation, in the order of csrc/fastpath/call.h; then, from methods that
take them, gate, skip, gate_activation, gate_first."""
NOTHING: Fused = (None, None, None, False, None)

RunningStatistics = tuple[Tensor | None, Tensor | None, float | None]
"""Mean, variance and momentum: running statistics that the call updates, or without a momentum those it uses."""
OWN: RunningStatistics = (None, None, None)


class Spec(NamedTuple):
    """The facts of a method that `carry_out` needs; csrc/fastpath/call.h reads some of them by their position.

    Attributes:
        name: of the function, for its errors.
        check: refuses an input that does not suit the method, and returns the shape of weight and bias; it is given
            the name, the input and ``size``.
        center: whether a mean is subtracted.
        over_last: whether the region is the last dimensions, of which `size` has the sizes.
        checked_before: whether the function itself has checked weight and bias, so that the fast path need not.
        keeps_vector: whether an empty vector, in which no channels can be found, is returned as it is.
        lenient: whether an eps of None means the machine epsilon, and a float64 weight is rounded, as torch's RMSNorm
            has both.
        cast_first: whether x_hat is cast to the input's dtype before weight and bias, which are applied in that dtype.
        zero_centered: whether 1 is added to the weight.
    """

    name: str
    check: Callable[[str, Tensor, Any], tuple[int, ...]]
    center: bool = True
    over_last: bool = False
    checked_before: bool = False
    keeps_vector: bool = False
    lenient: bool = False
    cast_first: bool = False
    zero_centered: bool = False


def with_conventions(spec: Spec) -> dict[tuple[str, bool], Spec]:
    """A method with the conventions of language models, by `cast` and `zero_centered`."""
    return {
        (cast, zero_centered): spec._replace(cast_first=cast == "before", zero_centered=zero_centered)
        for cast in ("after", "before")
        for zero_centered in (False, True)
    }


class Call(NamedTuple):
    """One call, checked."""

    name: str
    arguments: Arguments
    return_residual: bool

    def plain(self) -> Arguments:
        """The arguments without residual and activation, for methods that take more than one pass; x is the sum."""
        return self.arguments._replace(x=self.total(), residual=None, activation="none")

    def total(self) -> Tensor:
        """The sum of input and residual."""
        a = self.arguments
        return a.x if a.residual is None else a.x + a.residual

    def valid(self, total: Tensor) -> Tensor:
        """A sum in the arithmetic dtype, 0 at padding, whatever its values are there."""
        dtype, mask = arithmetic_dtype(total.dtype), self.arguments.mask
        x = total if total.dtype is dtype else total.to(dtype)
        return x if mask is None else torch.where(mask, x, 0)

    def rounded(self, y: Tensor, total: Tensor) -> Output:
        """`finished` of a result in the arithmetic dtype and in any memory layout."""
        x = self.arguments.x
        return self.finished(dense_like(x, y if y.dtype is x.dtype else y.to(x.dtype)), total)

    def finished(self, y: Tensor, total: Tensor) -> Output:
        """The output of the function, from the sum and a result without activation and padding."""
        y, mask = ACTIVATIONS[self.arguments.activation](y), self.arguments.mask
        y = y if mask is None else y.masked_fill(~mask, 0)
        return (y, total) if self.return_residual else y

    def output(self, y: Tensor, total: Tensor | None) -> Output:
        """The output of the function; without a residual the sum is the input."""
        return (y, self.arguments.x if total is None else total) if self.return_residual else y


def carry_out(
    spec: Spec,
    pattern: str,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    fused: Fused = NOTHING,
    size: Any = None,
    statistics: RunningStatistics = OWN,
) -> Output:
    """Normalize by the fast path if it takes the call, else after all checks by the operator.

    `size` belongs to the method: the number of groups, or the sizes of the last dimensions.
    """
    if not is_compiling():
        y: Output | None = fastpath.norm(spec, pattern, input, weight, bias, eps, fused, size, statistics)
        if y is not None:
            return y
    if spec.over_last and isinstance(input, Tensor) and input.is_nested:
        # Without a closure, which would make all arguments slower to reach.
        rest = (weight, bias, eps, fused, size, statistics)
        return by_rows(spec.name, input, size, fused, partial(_of_rows, spec, pattern, rest))
    if spec.keeps_vector and isinstance(input, Tensor) and input.shape == (0,):
        check_call(spec.name, input, eps)
        return input.clone()
    return run(checked(spec, pattern, input, weight, bias, eps, fused, size, statistics), statistics)


def _of_rows(spec: Spec, pattern: str, rest: tuple[Any, ...], rows: Tensor) -> Output:
    return carry_out(spec, pattern, rows, *rest)


def checked(
    spec: Spec,
    pattern: str,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    fused: Fused = NOTHING,
    size: Any = None,
    statistics: RunningStatistics = OWN,
) -> Call:
    """The call, after all checks; nothing has been changed if one fails."""
    name = spec.name
    check_call(name, input, 0.0 if eps is None and spec.lenient else eps)
    if eps is None:
        eps = torch.finfo(arithmetic_dtype(input.dtype)).eps
    if spec.lenient:
        weight = rounded(weight, input)
    shape = spec.check(name, input, size)
    mean, var, momentum = statistics
    for what, statistic in (("running_mean", mean), ("running_var", var)):
        check_parameter(name, what, statistic, shape, input)
    mask, lengths, residual, return_residual, activation, *around = fused
    check_residual(name, input, residual)
    activation = check_activation(name, activation)
    mask = checked_mask(name, input, pattern, mask, lengths)
    if around:
        epilogue = Epilogue(weight, bias, *around)
        epilogue = epilogue._replace(zero_centered=spec.zero_centered, cast_first=spec.cast_first)
        epilogue = epilogue.checked(name, input, shape, residual)
        if not epilogue.is_plain(shape):
            epilogue = epilogue.merged(input, _features(spec, pattern, input, shape), mask)
        weight, bias, *around = epilogue
    else:  # a method without gates takes weights of the features alone
        for what, parameter in (("weight", weight), ("bias", bias)):
            check_parameter(name, what, parameter, shape, input)
    given = (mean, var) if momentum is None else (None, None)
    arguments = Arguments(input, weight, bias, pattern, eps, spec.center, *given, residual, mask, activation, *around)
    return Call(name, arguments, bool(return_residual))


def _features(spec: Spec, pattern: str, x: Tensor, shape: tuple[int, ...]) -> list[int]:
    """The dimensions over which weight and bias vary."""
    if spec.over_last:
        return list(range(x.dim() - len(shape), x.dim()))
    return sorted({level.dim for level in region_of(pattern).levels(x.shape) if level.feature})


def run(call: Call, statistics: RunningStatistics = OWN) -> Output:
    """Run a checked call; running statistics are updated by the valid elements alone."""
    x = call.arguments.x
    running_mean, running_var, momentum = statistics
    if momentum is None or running_mean is None or running_var is None or not x.numel() or is_recomputing():
        out = operator.run(call.arguments)
        return call.output(out.y, out.sum)
    counts = checked_counts(call.name, call.arguments)
    out = operator.run(call.arguments, moments=True)
    mean, std = out.moments()
    values = x.numel() // mean.numel() if counts is None else counts
    running_statistics.update(Running(running_mean, running_var, values, momentum), mean, std)
    return call.output(out.y, out.sum)


def checked_counts(name: str, a: Arguments) -> Tensor | None:
    """The number of valid elements in each cell, None without a mask; no cell has a single one.

    A traced call cannot be asked.
    """
    if a.mask is None:
        return None
    counts = counts_of(a.mask, a.x.shape, region_of(a.pattern).levels(a.x.shape))
    if not is_compiling() and not counts.is_meta and bool((counts == 1).any()):
        raise ShapeError(
            f"{name} in training needs more than one valid value per channel, because a variance needs two; got a "
            f"single one by the mask for shape {tuple(a.x.shape)}: use a larger batch, or group_norm"
        )
    return counts
