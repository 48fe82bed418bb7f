"""The order in which the layers of a model run, and what follows each: by tracing, else by the order of calls."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from normkit.tools.model.call import Observer, observe
from normkit.tools.model.graph.recorder import tensors_in
from normkit.tools.model.graph.symbolic import symbolic_graph
from normkit.tools.model.recognise import describe
from normkit.tools.model.tree import LAYERS

FUNCTIONAL_NORMS = {F.batch_norm, F.layer_norm, F.group_norm, F.instance_norm, F.rms_norm, F.local_response_norm}


@dataclass(frozen=True)
class Use:
    """How a model uses one layer.

    Attributes:
        times: how often it is called in one pass.
        last: whether no other layer reads its output, or the model returns it: it ends a branch.
        normalized: whether a norm follows it already, with no other layer between.
        read: whether its weight is read by other code than its own.
    """

    times: int = 1
    last: bool = False
    normalized: bool = False
    read: bool = False


def traced(model: nn.Module) -> dict[str, Use] | None:
    """The use of each layer by its name, in the order of calls; None if the model cannot be traced."""
    graph = symbolic_graph(model, lambda module: isinstance(module, LAYERS) or describe(module) is not None or None)
    return None if graph is None else _uses(model, graph)


def _uses(model: nn.Module, graph: fx.Graph) -> dict[str, Use]:
    modules = dict(model.named_modules())

    def is_layer(node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(modules[str(node.target)], LAYERS)

    feeds: dict[fx.Node, bool] = {}
    returned: dict[fx.Node, bool] = {}
    for node in reversed(graph.nodes):
        feeds[node] = any(is_layer(user) or feeds[user] for user in node.users)
        # Only through functions of one input: a sum of two outputs is the output of neither layer.
        returned[node] = any(
            user.op == "output" or (returned[user] and not is_layer(user) and len(user.all_input_nodes) == 1)
            for user in node.users
        )
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if is_layer(node):
            calls.setdefault(str(node.target), []).append(node)
    reads = {str(node.target).rsplit(".", 1)[0] for node in graph.nodes if node.op == "get_attr"}
    return {
        name: Use(
            times=len(nodes),
            last=not any(feeds[node] for node in nodes) or any(returned[node] for node in nodes),
            normalized=any(_meets_norm(node, modules) for node in nodes),
            read=name in reads,
        )
        for name, nodes in calls.items()
    }


def _meets_norm(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the output of a layer reaches a norm before any other layer or a sum."""
    while len(node.users) == 1:
        (node,) = node.users
        if node.op == "call_module":
            module = modules[str(node.target)]
            if describe(module) is not None or isinstance(module, LAYERS):
                return not isinstance(module, LAYERS)
        elif node.target in FUNCTIONAL_NORMS:
            return True
        if len(node.all_input_nodes) != 1:
            return False
    return False


def ordered(model: nn.Module, example: Any = None) -> dict[str, Use]:
    """The same without tracing: modules in the order in which an example calls them, else in that of the model."""
    leaves = {
        module: name
        for name, module in model.named_modules()
        if not module._modules or isinstance(module, LAYERS) or describe(module) is not None
    }
    order = list(leaves)
    returned: set[nn.Module] = set()
    if example is not None:
        order, returned = _called(model, leaves, example)
    layers = [module for module in order if isinstance(module, LAYERS)]
    uses: dict[str, Use] = {}
    for index, module in enumerate(order):
        if isinstance(module, LAYERS):
            following = next((m for m in order[index + 1 :] if isinstance(m, LAYERS) or describe(m) is not None), None)
            uses[leaves[module]] = Use(
                times=layers.count(module),
                last=module is layers[-1] or module in returned,
                normalized=following is not None and not isinstance(following, LAYERS),
            )
    return uses


def _called(model: nn.Module, leaves: Collection[nn.Module], example: Any) -> tuple[list[nn.Module], set[nn.Module]]:
    """The order in which an example calls the leaves, and those whose output the model returns, as it is or a view."""
    calls: list[tuple[nn.Module, Any]] = []
    outputs: list[Any] = []
    observers: dict[nn.Module, Observer] = {module: lambda m, x, y: calls.append((m, y)) for module in leaves}
    observers.setdefault(model, lambda m, x, y: outputs.append(y))
    observe(model, [example], observers)
    # By the storage, because a view is another tensor, and its address is 0 where there is no memory.
    storages = {tensor.untyped_storage()._cdata for tensor in tensors_in(outputs)}
    returned = {m for m, y in calls for tensor in tensors_in(y) if tensor.untyped_storage()._cdata in storages}
    return [module for module, _ in calls], returned


def output_shapes(model: nn.Module, example: Any) -> dict[nn.Module, torch.Size]:
    """The shape of the output of each layer for an example."""
    seen: dict[nn.Module, torch.Size] = {}
    layers = [module for module in model.modules() if isinstance(module, LAYERS)]
    observe(model, [example], {module: lambda m, x, y: seen.update({m: y.shape}) for module in layers})
    return seen
