"""Layer norm made RMS norm, where weights can be changed so that nothing else changes."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from normkit.parametrize.checks import check_values
from normkit.tools.fold.check import check_tolerance
from normkit.tools.model.refusal import refuse_strictly
from normkit.tools.model.tree import copy_of
from normkit.tools.model.wrapped import refuse_unready, refuse_wrapped
from normkit.tools.to_rms_norm.conversion import Conversion
from normkit.tools.to_rms_norm.report import RMSNormReport

M = TypeVar("M", bound=nn.Module)


def to_rms_norm(
    model: M,
    example: Any,
    *,
    untie: bool = False,
    tolerance: float | None = None,
    inplace: bool = False,
    strict: bool = False,
) -> tuple[M, RMSNormReport]:
    """Make RMS norms of the layer norms of a model, exactly: its outputs stay the same.

    ``LayerNorm(x) = RMSNorm(x - mean(x))``, with the same weight, bias and eps. If every layer that adds to x adds
    numbers with a mean of 0, x has a mean of 0, and nothing has to be subtracted. So the mean over the output channels
    is taken out of the weights and biases of these layers: of each row of an embedding, of each column of a linear
    layer's weight, of its bias, of position embeddings. New weights are computed in float64.

    That is possible only if nothing but layer norms sees the mean of x. The model runs once on the example, and every
    call of a function of torch is recorded. Each call between those layers and the norms is repeated on random numbers,
    in float64: it must pass a mean of 0 on, as a sum, a view or a dropout does, or not depend on the mean. If the model
    can be traced symbolically, its graph must show the same. Finally the outputs are compared: of a copy in float64, on
    the example and on random inputs; and of the model in its own precision.

    Args:
        model: compared in evaluation. In training, dropout on what a layer adds would give it a mean again.
        example: a tensor, a tuple of positional or a mapping of keyword arguments.
        untie: whether an embedding whose weight is also that of the last linear layer gets a copy of its own. Without
            it, such an embedding cannot be centred.
        tolerance: how much outputs may change, relative to their largest value; None for the root of the dtype's
            resolution, 3e-4 in float32.
        inplace: whether to change the model itself and not a copy.
        strict: whether to raise where a layer norm stays.

    Returns:
        The model with `normkit.RMSNorm`, or for a bias `normkit.Norm`, in place of the layer norms that can be
        converted, and the report. The keys of the state dict stay, and a model of the original architecture that loads
        it computes the same. Parameters that are centred are new ones, so that an optimizer must be made anew.
        If outputs change by more than the tolerance nothing is converted, and the report says so.

    Raises:
        ArgumentError: an example of another type, or a model that returns no floating-point tensor, or only nan, inf
            or empty ones; a tolerance below 0.
        DtypeError: `model` is not a module, or the tolerance is no number.
        StateError: with `strict`, a layer norm that stays; layers that do not know their size yet or are on the meta
            device; a model that is compiled, in a wrapper for several processes, or cannot be copied. In every case
            the model is as it was.

    Example:
        >>> import torch, normkit
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 2))
        >>> converted, report = normkit.to_rms_norm(model, torch.randn(5, 3))
        >>> print(report.changes[0])
        1: torch LayerNorm -> Norm('... [c]', num_features=(8,), eps=1e-05, affine=True, bias=True, center=False)
        >>> print(report.centred[0])
        0.weight (8, 3): centred over dimension 0

    Source: Jiang et al. 2023, Pre-RMSNorm and Pre-CRMSNorm Transformers, arXiv:2305.14858.
    """
    refuse_unready(model, "to_rms_norm")
    refuse_wrapped(model, "to_rms_norm")
    check_values("to_rms_norm", model.named_modules())
    check_tolerance(tolerance)
    # New parameters made in inference mode could never be trained or written to.
    with torch.inference_mode(False):
        if not inplace:
            model = copy_of(model)
        work = Conversion(model)
        try:
            report = work.convert(example, tolerance, untie)
            refuse_strictly(strict, report.refusals, "no layer norm to stay, {} do")
        except BaseException:
            work.undo()
            raise
    return model, report
