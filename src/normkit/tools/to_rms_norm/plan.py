"""Decides which layer norms of a model become RMS norms, and which parameters are centred for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from normkit.evaluation import arguments
from normkit.tools.model.graph.symbolic import symbolic_graph
from normkit.tools.model.graph.values import ValueGraph, record_values
from normkit.tools.model.info import NormInfo
from normkit.tools.model.refusal import RefusedError
from normkit.tools.model.tree import Place, has_hooks, module_places, norms
from normkit.tools.to_rms_norm.change import rms_norm_of, tensors_of
from normkit.tools.to_rms_norm.channels import Channels
from normkit.tools.to_rms_norm.streams import Stream, Streams, TiedError

LAYER_NORMS = ("layer_norm", "layer_norm2d")


@dataclass
class Plan:
    """What is to be changed in a model.

    Attributes:
        found: the layer norms of the model, and all norms that are not understood.
        kept: the names of the others.
        streams: of each norm that can be converted, what it reads.
        reasons: why the others cannot.
        ties: the shared parameters among these reasons.
        graph: whether the symbolic graph shows the same.
        output: of the model, on the example.
        parameters: the names of all parameters and buffers.
    """

    found: dict[nn.Module, tuple[Place, NormInfo]] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    streams: dict[nn.Module, list[Stream]] = field(default_factory=dict)
    reasons: dict[nn.Module, str] = field(default_factory=dict)
    ties: list[TiedError] = field(default_factory=list)
    graph: bool = False
    output: Any = None
    parameters: dict[Tensor, str] = field(default_factory=dict)

    @property
    def norms(self) -> dict[str, NormInfo]:
        """The norms that can be converted, by name."""
        return {place.name: info for norm, (place, info) in self.found.items() if norm in self.streams}

    @property
    def centred(self) -> dict[str, Channels]:
        """The parameters and buffers to centre, by name."""
        found = [stream.parameters for streams in self.streams.values() for stream in streams]
        return {self.parameters[v.tensor]: c for each in found for v, c in each.items() if v.tensor is not None}


@torch.no_grad()
def planned(model: nn.Module, example: Any) -> Plan:
    """Run the model on the example, and find the streams of its layer norms.

    Args:
        model: in evaluation mode.
        example: a tensor, a tuple of positional or a mapping of keyword arguments.
    """
    plan = Plan()
    known = list(norms(model))
    for place, info in known:
        if (info.kind or info.base) in LAYER_NORMS or not (info.kind or info.base or info.running):
            plan.found[place.module] = place, info
        else:
            plan.kept.append(place.name)
    atomic = {place.module for place, _ in known}
    graph = record_values(model, atomic, example)
    plan.output = graph.output
    streams = _streams(plan, model, graph)
    plan.parameters = {tensor: streams.path(*held[0]) for tensor, held in streams.owners.items()}
    for norm in plan.found:
        try:
            _check(plan, norm, graph)
            plan.streams[norm] = [streams.read_by(call) for call in graph.calls[norm]]
        except RefusedError as refusal:
            plan.reasons[norm] = str(refusal)
            if isinstance(refusal, TiedError):
                plan.ties.append(refusal)
    _compare(plan, model, atomic, example)
    return plan


def _streams(plan: Plan, model: nn.Module, graph: ValueGraph) -> Streams:
    readable = {norm: info for norm, (_, info) in plan.found.items() if info.kind and len(info.shape) == 1}
    owners: dict[Tensor, list[tuple[nn.Module, str]]] = {}
    names = {place.module: place.name for place in module_places(model)}
    for module in names:
        for key, tensor in tensors_of(module).items():
            owners.setdefault(tensor, []).append((module, key))
    return Streams(names, readable, owners, graph.read)


def _check(plan: Plan, norm: nn.Module, graph: ValueGraph) -> None:
    """The norm itself can be exchanged."""
    place, info = plan.found[norm]
    if info.kind is None:
        raise RefusedError(info.reason)
    if len(info.shape) != 1:
        raise RefusedError("it normalizes several dimensions")
    if info.channels < 2:
        raise RefusedError("it has a single channel, which is its own mean")
    if not graph.calls[norm]:
        raise RefusedError("the example does not reach it")
    if has_hooks(norm):
        raise RefusedError("it has hooks, which would see other values")
    if any(isinstance(parent, nn.TransformerEncoderLayer) for parent, _ in place.parents):
        raise RefusedError(
            "in evaluation torch's TransformerEncoderLayer reads weight and eps of its norms and computes a layer "
            "norm, whatever module is there"
        )
    rms_norm_of(norm, info)


def _compare(plan: Plan, model: nn.Module, atomic: set[nn.Module], example: Any) -> None:
    """Refuse what the symbolic graph of the model, if there is one, does not show too."""
    args, kwargs = arguments(example)
    traced = symbolic_graph(model, lambda module: module in atomic or None, args, kwargs)
    if traced is None:
        return
    try:
        graph = record_values(model, atomic, example, fx.GraphModule(model, traced))
    except Exception:  # a graph that leaves out arguments of the example, or that torch cannot run
        return
    plan.graph = True
    streams = _streams(plan, model, graph)
    for norm in [*plan.streams]:
        try:
            shown = [streams.read_by(call) for call in graph.calls[norm]]
        except RefusedError as refusal:
            reason = f"in the model's graph {refusal}"
        else:
            if _tensors(shown) == _tensors(plan.streams[norm]):
                continue
            reason = "in the model's graph it reads other tensors"
        del plan.streams[norm]
        plan.reasons[norm] = reason


def _tensors(streams: list[Stream]) -> list[dict[int, Channels]]:
    return [{id(value.tensor): channels for value, channels in stream.parameters.items()} for stream in streams]
