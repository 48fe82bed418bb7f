"""Finds the layers of a model that a batch norm follows, so that one module can take the place of the two."""

from __future__ import annotations

from typing import Any

from torch import nn

from normkit.errors import ArgumentError
from normkit.evaluation import preserving
from normkit.layers import (
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
)
from normkit.tools.model.activated import module_of
from normkit.tools.model.frozen import is_frozen
from normkit.tools.model.graph.dataflow import Dataflow, layer_before, record
from normkit.tools.model.graph.symbolic import SymbolicGraph
from normkit.tools.model.info import NormInfo
from normkit.tools.model.refusal import RefusedError
from normkit.tools.model.tree import LAYERS, Layer, Place, hooked, module_places, refuse_layer

OTHERS_IN_TRAINING = (
    *(BatchRenorm1d, BatchRenorm2d, BatchRenorm3d),
    *(GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d),
)
"""In evaluation they are batch norms."""


class Pairs:
    """What runs of the model on the example show about its layers and norms.

    Args:
        model: run in evaluation mode and, if it is in training mode, in that too, and left as it was: in training the
            output of a layer may also go elsewhere.
        found: the norms, with place and description.
        example: a tensor, a tuple of positional or a mapping of keyword arguments.

    Raises:
        ArgumentError: the model cannot be trained on the example.
    """

    def __init__(self, model: nn.Module, found: dict[nn.Module, tuple[Place, NormInfo]], example: Any) -> None:
        self.found = found
        self.names = {place.module: place.name for place in module_places(model)}
        watched = {module for module in model.modules() if isinstance(module, LAYERS)} | found.keys()
        self.runs: list[tuple[Dataflow, SymbolicGraph | None]] = []
        for training in (True, False) if model.training else (False,):
            with preserving(model):
                if not training:
                    model.eval()
                try:
                    flow = record(model, watched, example)
                except ValueError as error:
                    if not training:
                        raise
                    raise ArgumentError(
                        f"fold_for_training runs a model in its own mode, and in training mode it raises {error!r}: "
                        "give an example of several samples, or call model.eval() first"
                    ) from error
                self.runs.append((flow, SymbolicGraph.of(model, watched, example)))

    @property
    def graph(self) -> bool:
        """Whether symbolic tracing shows in each run that every input takes the same path."""
        return all(graph is not None for _, graph in self.runs)

    def layer_of(self, norm: nn.Module) -> Layer:
        """The layer whose whole output goes to this norm alone.

        Raises:
            RefusedError: there is none, or one of the two cannot be exchanged.
        """
        info = self.found[norm][1]
        refuse_norm(norm, info)
        calls = [call for flow, _ in self.runs for call in flow.calls[norm]]
        if not calls:
            raise RefusedError("the example does not reach it")
        layer = layer_before(calls, self.names)
        name = repr(self.names[layer])
        _refuse_layer(layer, name)
        for flow, graph in self.runs:
            self._refuse_other_uses(layer, norm, flow, graph)
        channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        dims = {call.input.dim() for call in calls} if isinstance(layer, nn.Linear) else {2}
        if channels != info.channels or dims != {2}:
            raise RefusedError(f"it normalizes another dimension than {name} makes")
        return layer

    def _refuse_other_uses(self, layer: Layer, norm: nn.Module, flow: Dataflow, graph: SymbolicGraph | None) -> None:
        """Refuse a layer whose output or weight anything but the norm reads."""
        name = repr(self.names[layer])
        others = [taker for call in flow.calls[layer] for taker in call.consumers if taker is not norm]
        if others:
            to = others[0] if isinstance(others[0], str) else repr(self.names[others[0]])
            raise RefusedError(f"the output of {name} also goes to {to}")
        if flow.reads[layer]:
            raise RefusedError(f"the weight of {name} is also read by {min(flow.reads[layer])}")
        if graph is None:
            return
        if graph.reads_values(layer):
            raise RefusedError(f"the model's graph also reads the weight of {name}")
        if flow.calls[norm] and not graph.joins(layer, norm):
            raise RefusedError(f"the model's graph has another path from {name}, or to the norm")


def _refuse_layer(layer: Layer, name: str) -> None:
    refuse_layer(layer, name)
    base = next(cls for cls in LAYERS if isinstance(layer, cls))
    steps = ("forward", "_conv_forward", "_output_padding")
    if any(getattr(type(layer), step, None) is not getattr(base, step, None) for step in steps):
        raise RefusedError(f"{name} is a {type(layer).__name__}, whose forward is not that of {base.__name__}")


def refuse_norm(norm: nn.Module, info: NormInfo) -> None:
    """Refuse what is no batch norm with running statistics of one process.

    Raises:
        RefusedError: with the reason.
    """
    if info.kind != "batch_norm":
        raise RefusedError(info.reason or f"it is no batch norm but {info.kind}")
    if not info.running:
        raise RefusedError("it has no running statistics")
    if isinstance(norm, OTHERS_IN_TRAINING):
        raise RefusedError(f"in training a {type(norm).__name__} normalizes by other values than the whole batch's")
    if info.synced and not is_frozen(norm):
        raise RefusedError("it takes its statistics over several processes: freeze it, or use a batch norm")
    if reason := hooked(norm):
        raise RefusedError(f"it {reason}")


def children_of(norm: nn.Module) -> dict[str, nn.Module]:
    """The dropout and the activation that a norm applies to its output."""
    own = getattr(norm, "activation", None)
    children = {key: norm._modules.get(key) for key in ("drop", "act")}
    if isinstance(own, str):
        children["act"] = module_of(own)
    return {key: child for key, child in children.items() if child is not None}
