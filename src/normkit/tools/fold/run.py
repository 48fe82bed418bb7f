"""Norms, or their weight and bias, taken into the layers next to them, where that changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from normkit.errors import StateError
from normkit.evaluation import keeping_modes
from normkit.parametrize.checks import check_values
from normkit.tools.fold.check import check_tolerance
from normkit.tools.fold.folding import Folding
from normkit.tools.fold.report import FoldReport
from normkit.tools.fold_training.layer import TrainableFold
from normkit.tools.model.names import Where
from normkit.tools.model.refusal import refuse_strictly
from normkit.tools.model.tree import copy_of
from normkit.tools.model.wrapped import refuse_unready, refuse_wrapped

M = TypeVar("M", bound=nn.Module)


def fold(
    model: M,
    example: Any,
    *,
    where: Where = None,
    untie: bool = False,
    tolerance: float | None = None,
    inplace: bool = False,
    strict: bool = False,
) -> tuple[M, FoldReport]:
    """Fold norms, or their weight and bias, into the linear layers and convolutions next to them, for inference.

    A batch norm in evaluation is ``y = x * s + t`` with ``s = weight / sqrt(running_var + eps)`` and
    ``t = bias - running_mean * s``. After a layer ``x = W a + b`` that is a layer with ``s W`` and ``s b + t``; before
    one, ``W (x * s + t) + b``, it is ``W s`` and ``b + W t``, unless padding puts zeros where ``t`` should be.
    Layer, group, instance and root mean square norms are ``y = n(x) * s + t`` with the input's own statistics in n: the
    layers that read y take up s and t, and ``n(x)`` stays, a norm without weight and bias.
    New weights are computed in float64. Instance norms that use running statistics are folded as batch norms are.

    A norm is folded only where nothing else makes its input or reads its output, seen by recording every function of
    torch while the model runs on the example, and where the model can be traced symbolically, by its graph too.
    Each norm is checked in float64 on what it got from the example and on random numbers, the model as a whole in its
    own precision.

    Args:
        model: in evaluation mode; a norm in training mode stays.
        example: a tensor, a tuple of positional or a mapping of keyword arguments.
        where: names or patterns of names of norms, or a function of name and module; None for all.
        untie: whether a layer whose weight other modules share, as an output layer shares that of the embedding, gets
            a weight of its own for it; by default such a norm stays.
        tolerance: how much outputs may change, relative to their largest value; None for the root of the dtype's
            resolution, 3e-4 in float32: rounding keeps half of the digits even through many layers, and a wrong
            weight does not.
        inplace: whether to change the model itself and not a copy.
        strict: whether to raise where a norm stays.

    Returns:
        The model with `torch.nn.Identity`, or the activation that the norm brought along, or the norm without weight
        and bias, in place of what was folded; and the report. If outputs change by more than the tolerance nothing is
        folded, and the report says so.

    Raises:
        ArgumentError: an example of another type, a model that returns no floating-point tensor, or only nan, inf or
            empty ones, a pattern in `where` that fits no norm, or a tolerance below 0.
        DtypeError: `model` is not a module, or the tolerance is no number.
        StateError: with `strict`, a norm that stays; layers that do not know their size yet or are on the meta device;
            a model that is compiled, folded for training, in a wrapper for several processes, or cannot be copied. In
            every case the model is as it was.

    Example:
        >>> import torch, normkit
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()).eval()
        >>> folded, report = normkit.fold(model, torch.randn(1, 3, 5, 5))
        >>> folded
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
          (1): Identity()
          (2): ReLU()
        )
        >>> print(report.folds[0])
        1: BatchNorm2d folded into 0
        >>> model = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 2)).eval()
        >>> normkit.fold(model, torch.randn(3, 4))[0][0]
        LayerNorm((4,), eps=1e-05, elementwise_affine=False, bias=False)
    """
    refuse_unready(model, "fold")
    for name, module in model.named_modules():
        if isinstance(module, TrainableFold):
            raise StateError(
                f"fold takes models as they are used, and {name!r} is folded for training: call "
                "normkit.finish(model) first, which is exact"
            )
    refuse_wrapped(model, "fold")
    check_values("fold", model.named_modules())
    check_tolerance(tolerance)
    # New parameters made in inference mode could never be trained or written to.
    with torch.inference_mode(False):
        if not inplace:
            model = copy_of(model)
        work = Folding(model, where, untie=untie)
        try:
            with _in_evaluation(work):
                report = work.fold(example, tolerance)
            refuse_strictly(strict, report.refusals)
        except BaseException:
            work.undo()
            raise
    return model, report


@contextlib.contextmanager
def _in_evaluation(work: Folding) -> Iterator[None]:
    """Evaluation mode for all modules; then each has its own mode again, and the successor of a norm has the norm's."""
    with keeping_modes(work.model) as modes:
        for module in modes:
            module.training = False
        try:
            yield
        finally:
            modes |= {new: modes[norm] for norm, left in work.successors.items() for new in left.modules()} | modes
