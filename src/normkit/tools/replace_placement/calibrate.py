"""Scales the branches and the last norm of changed stacks, so that training starts at the scale of the original."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from normkit.tools.model.info import NormInfo
from normkit.tools.replace_placement.record import Event, Record, record, root_mean_square
from normkit.tools.replace_placement.residuals import Residual, last_linear
from normkit.tools.replace_placement.undo import Undo


def calibrated(
    model: nn.Module,
    known: Mapping[nn.Module, NormInfo],
    example: object,
    seen: Record,
    shares: Mapping[Residual, float],
    undo: Undo,
) -> tuple[dict[Residual, float], Record]:
    """Give the branch of each block the share that it had before the change, in the order of the blocks.

    In one run, each block multiplies its branch by k = share * rms(x) / rms(f(x)), so that the blocks after it see
    the scaled one. k goes into the weight and bias of the norm of the branch's output, or of the last linear layer.

    Args:
        model: the changed model.
        known: its norms.
        example: what it is run on.
        seen: a record of it on that example.
        shares: for each of its blocks, rms(f(x)) / rms(x) in the original.
        undo: keeps the old values.

    Returns:
        The factors, and the record of the run.
    """
    blocks = {residual.sum.index: residual for residual in shares}
    gains: dict[Residual, float] = {}

    def on_sum(index: int, *operands: Tensor) -> None:
        residual = blocks.get(index)
        if residual is None:
            return
        branch, skip = operands[residual.operand], operands[1 - residual.operand]
        size = root_mean_square(branch)
        tensors = scalable(seen, residual)
        factor = shares[residual] * root_mean_square(skip) / size if size else math.nan
        if math.isfinite(factor) and tensors:
            gains[residual] = factor
            norm = residual.output_norm
            scale(tensors, factor, None if norm is None or norm.module is None else known[norm.module], undo)
            branch.mul_(factor)

    return gains, record(model, known, example, on_sum)


def scalable(seen: Record, residual: Residual) -> tuple[nn.Parameter, ...]:
    """The weight and bias whose factor is the factor of the branch; none if other code uses them too."""
    norm = residual.output_norm
    if norm is not None and norm.module is not None:
        return weight_and_bias(norm.module)
    layer = last_linear(seen, residual)
    if layer is None or _used_again(seen, layer):
        return ()
    # Attention has the weight and bias of its input first; its output is linear in the last weight and bias.
    count = 2 if layer.parameters[-1].dim() == 1 else 1
    return layer.parameters[-count:] if layer.name == "multi_head_attention_forward" else layer.parameters


def weight_and_bias(norm: nn.Module) -> tuple[nn.Parameter, ...]:
    """The parameters of a norm with the names weight and bias; none if it has others."""
    named = [(name.rpartition(".")[2], parameter) for name, parameter in norm.named_parameters()]
    if not named or named[0][0] != "weight" or {name for name, _ in named} - {"weight", "bias"}:
        return ()
    return tuple(parameter for _, parameter in named)


def _used_again(seen: Record, layer: Event) -> bool:
    held = {id(parameter) for parameter in layer.parameters}
    return not held or any(
        held & {id(parameter) for parameter in event.parameters} for event in seen.events if event is not layer
    )


@torch.no_grad()
def scale(parameters: Collection[nn.Parameter], factor: float, norm: NormInfo | None, undo: Undo) -> None:
    """Multiply weight and bias; of a weight that is stored as its difference from 1, the sum with 1."""
    undo.keep(parameters)
    for index, parameter in enumerate(parameters):
        offset = norm.offset if norm is not None and index == 0 else 0.0
        parameter.copy_((parameter.double() + offset) * factor - offset)
