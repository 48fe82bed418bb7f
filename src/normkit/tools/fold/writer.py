"""A norm folded into the layer that makes its input: only one that is an affine map as a whole can be."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from normkit.tools.fold import fold_math
from normkit.tools.fold.check import agree, doubled
from normkit.tools.fold.evidence import Change, Evidence, check_finite
from normkit.tools.fold.norms import AffineMap
from normkit.tools.model.graph.dataflow import layer_before
from normkit.tools.model.refusal import RefusedError
from normkit.tools.model.tree import Layer


def into_writer(evidence: Evidence, affine: AffineMap) -> Change:
    """The layer that makes the input of a norm, with the affine map that the norm is.

    Raises:
        RefusedError: there is no such layer, or it also makes something else.
    """
    norm = affine.norm
    layer = _layer_before(evidence, norm, affine.scale)
    name = repr(evidence.names[layer])
    weight, bias = fold_math.after(layer, affine.scale, affine.shift)
    check_finite(layer, evidence.names[layer], weight, bias)
    exact = [copy.deepcopy(module).double() for module in (layer, norm)]
    # The mode of a norm of a frozen class must make no difference.
    exact[0].training, exact[1].training = False, norm in evidence.training
    new, then = copy.deepcopy(layer).double(), copy.deepcopy(affine.left).double()
    fold_math.set_parameters(new, weight, bias)
    given = [doubled(call.args) for call in evidence.flow.calls[layer]]
    agree(
        lambda *args, **kwargs: exact[1](exact[0](*args, **kwargs)),
        lambda *args, **kwargs: then(new(*args, **kwargs)),
        given,
        evidence.limit,
        f"{name} or the norm",
    )
    return Change(layer, weight, bias)


def _layer_before(evidence: Evidence, norm: nn.Module, scale: Tensor) -> Layer:
    """The layer whose whole output goes to the norm alone."""
    flow = evidence.flow
    layer = layer_before(flow.calls[norm], evidence.names)
    name = repr(evidence.names[layer])
    others = [taker for call in flow.calls[layer] for taker in call.consumers if taker is not norm]
    if others:
        raise RefusedError(f"the output of {name} also goes to {evidence.called(others[0])}")
    evidence.check_usable(layer)
    if fold_math.channels_out(layer) != scale.numel() or (
        isinstance(layer, nn.Linear) and any(call.input.dim() != 2 for call in flow.calls[norm])
    ):
        raise RefusedError(f"it normalizes another dimension than {name} makes")
    if evidence.graph is not None and not evidence.graph.joins(layer, norm):
        raise RefusedError(f"the model's graph has another path from {name}, or to the norm")
    return layer
