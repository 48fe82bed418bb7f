"""A norm, or its weight and bias, folded into the layers that read its output."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from normkit.tools.fold import fold_math
from normkit.tools.fold.check import agree, doubled
from normkit.tools.fold.evidence import Change, Evidence, check_finite
from normkit.tools.fold.norms import ACTIVATED, AffineMap
from normkit.tools.model.graph.dataflow import MOVING, ModuleCall
from normkit.tools.model.graph.recorder import Arguments
from normkit.tools.model.refusal import RefusedError

MOVING_NAMES = frozenset(name.strip("_") for name in MOVING)


def into_readers(evidence: Evidence, affine: AffineMap) -> tuple[Change, ...]:
    """The layers that read the output of a norm, with its affine map.

    If the norm stays without weight and bias, there may be several layers, and functions between that only move values;
    one that goes must be followed by one layer.

    Raises:
        RefusedError: something else reads the output, or a layer reads something else too.
    """
    norm, shift, taken = affine.norm, affine.shift, affine.taken
    if not taken and not isinstance(affine.left, nn.Identity):
        raise RefusedError(ACTIVATED)
    calls = evidence.flow.calls[norm]
    if any(not isinstance(call.output, Tensor) for call in calls):
        raise RefusedError("it returns more than one tensor")
    layers = _all_readers(evidence, norm) if taken else _one_reader(evidence, norm)
    rows = {layer: _row(evidence, layer, norm, shift) for layer in layers}
    for layer in layers:
        evidence.check_usable(layer)
        if (why := fold_math.shift_is_lost(layer)) and bool(shift.any()):
            name = repr(evidence.names[layer])
            raise RefusedError(f"it cannot be folded into {name}, which follows it: {why}")
    if evidence.graph is None:
        if taken:
            _check_unseen(evidence, norm, layers)
    elif not evidence.graph.joins(norm, *layers, moves=MOVING_NAMES if taken else ()):
        names = ", ".join(repr(evidence.names[layer]) for layer in layers)
        raise RefusedError(f"the model's graph has another path to {names}, or from the norm")
    _check_norm(evidence, affine)
    return tuple(_change(evidence, layer, affine, row) for layer, row in rows.items())


def _one_reader(evidence: Evidence, norm: nn.Module) -> list[Any]:
    takers = {taker for call in evidence.flow.calls[norm] for taker in call.consumers}
    layer = next(iter(takers), None)
    if len(takers) != 1 or isinstance(layer, str) or layer is None or not fold_math.is_layer(layer):
        raise RefusedError("its output does not go straight to one such layer")
    return [layer]


def _all_readers(evidence: Evidence, norm: nn.Module) -> list[Any]:
    takers = list(dict.fromkeys(taker for call in evidence.flow.calls[norm] for taker in call.consumers))
    if not takers:
        raise RefusedError("nothing reads its output")
    layers = [taker for taker in takers if isinstance(taker, nn.Module) and fold_math.is_layer(taker)]
    others = [
        evidence.called(taker) + ("" if isinstance(taker, str) else f", a {type(taker).__name__}")
        for taker in takers
        if taker not in layers
    ]
    if others:
        text = " and ".join(others[:3])
        if layers:
            raise RefusedError(f"the output of {evidence.names[norm]!r} also goes to {text}")
        raise RefusedError(f"its output goes to {text}, and to no linear layer")
    return layers


def _row(evidence: Evidence, layer: nn.Module, norm: nn.Module, shift: Tensor) -> Tensor:
    """For each input channel of a layer, the number of the feature of the norm that it gets, from 1; 0 for none."""
    name = repr(evidence.names[layer])
    calls: list[ModuleCall] = evidence.flow.calls[layer]
    if any(call.source is None or call.source.module is not norm for call in calls):
        raise RefusedError(f"{name} also has other inputs")
    rows = []
    for call in calls:
        assert call.features is not None
        dim = -1 if fold_math.is_linear(layer) else -1 - len(layer.kernel_size)  # type: ignore[arg-type]
        if call.features.dim() < -dim or call.features.shape[dim] != fold_math.channels_in(layer):
            raise RefusedError(f"it normalizes another dimension than {name} sums over")
        numbers = call.features.movedim(dim, -1).flatten(0, -2)
        row = numbers.amax(0)
        if not bool(((numbers == row) | (numbers == 0)).all()):
            raise RefusedError(f"it normalizes another dimension than {name} sums over")
        if bool((numbers == 0).any()) and bool(shift.any()):
            raise RefusedError(f"zeros are put between it and {name}, which its bias does not shift")
        if call.padded and bool(shift.any()):
            raise RefusedError(
                f"pad() is between it and {name}: inputs of other sizes get zeros there, which its bias does not shift"
            )
        rows.append(row)
    if any(not torch.equal(row, rows[0]) for row in rows):
        raise RefusedError(f"the calls of {name} get its features in different orders")
    return rows[0]


def _check_unseen(evidence: Evidence, norm: nn.Module, layers: list[Any]) -> None:
    """No layer nearby that the example does not reach might read the output for another input, as an expert does."""
    holders = [evidence.names[module].split(".")[:-1] for module in (norm, *layers)]
    scope = [parts[0] for parts in itertools.takewhile(lambda parts: len({*parts}) == 1, zip(*holders, strict=False))]
    widths = {fold_math.channels_in(layer) for layer in layers}
    for module in sorted(evidence.flow.calls, key=evidence.names.__getitem__):
        unused = not evidence.flow.calls[module] and not evidence.flow.reads[module] and fold_math.is_layer(module)
        near = evidence.names[module].split(".")[: len(scope)] == scope
        if unused and near and fold_math.channels_in(module) in widths:
            name = repr(evidence.names[module])
            raise RefusedError(f"the example does not reach {name}, which may read its output too")


def _check_norm(evidence: Evidence, affine: AffineMap) -> None:
    """What is left of the norm, scaled and shifted, is the norm."""
    norm = affine.norm
    old, new = copy.deepcopy(norm).double(), copy.deepcopy(affine.left).double()
    # The mode of a norm of a frozen class must make no difference.
    old.training, new.training = norm in evidence.training, False
    calls = evidence.flow.calls[norm]
    if any(call.output.dtype != call.input.dtype for call in calls):
        raise RefusedError(f"its output is {calls[0].output.dtype} where its input is {calls[0].input.dtype}")

    def mapped(*args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = new(*args, **kwargs)
        numbers = affine.features(y).long() - 1
        return torch.addcmul(affine.shift[numbers], y, affine.scale[numbers])

    agree(old, mapped, [doubled(call.args) for call in calls], evidence.limit, "it")


def _change(evidence: Evidence, layer: Any, affine: AffineMap, row: Tensor) -> Change:
    """The layer with the scale and shift of its input, compared with the layer without."""
    numbers = row.long()
    scale = torch.cat([affine.scale.new_ones(1), affine.scale])[numbers]
    shift = torch.cat([affine.shift.new_zeros(1), affine.shift])[numbers]
    weight, bias = fold_math.before(layer, scale, shift)
    name = evidence.names[layer]
    check_finite(layer, name, weight, bias)
    old, new = copy.deepcopy(layer).double(), copy.deepcopy(layer).double()
    fold_math.set_parameters(new, weight, bias)
    sizes = () if fold_math.is_linear(layer) else (1,) * len(layer.kernel_size)
    scale, shift = (each.view(-1, *sizes) for each in (scale, shift))
    given: list[Arguments] = [((doubled(call.input),), {}) for call in evidence.flow.calls[layer]]
    agree(lambda x: old(x * scale + shift), new, given, evidence.limit, f"{name!r} or the norm")
    return Change(layer, weight, bias)
