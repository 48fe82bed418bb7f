"""Finds the pairs of layer and batch norm in the graph of an exported model, and makes modules of them."""

from __future__ import annotations

import operator
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from normkit.tools.fold_training.layer import FoldedNorm, TrainableFold
from normkit.tools.model.refusal import RefusedError
from normkit.tools.model.tree import Layer

ATEN = torch.ops.aten

CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}

LAYER_CALLS = {
    *(ATEN.linear.default, ATEN.convolution.default),
    *(ATEN.conv1d.default, ATEN.conv2d.default, ATEN.conv3d.default),
    *(ATEN.conv1d.padding, ATEN.conv2d.padding, ATEN.conv3d.padding),
    *(ATEN.conv_transpose1d.default, ATEN.conv_transpose2d.input, ATEN.conv_transpose3d.input),
}
"""The operators of the layers that a norm can be folded into."""

NORM_CALLS = {ATEN.batch_norm.default}

OWN_NORM = "normkit.norm.default"
"""The operator of normkit's layers, by name, because it is made when it is first used."""

COUNTS = {ATEN.add_.Tensor, ATEN.add.Tensor, ATEN.copy_.default, operator.iadd}
"""Operators that count the batches."""


def is_exported(model: nn.Module) -> bool:
    """Whether a model is a graph of torch's operators, as ``torch.export.export(...).module()`` is."""
    return isinstance(model, fx.GraphModule) and any(node.target in LAYER_CALLS for node in model.graph.nodes)


class GraphPair:
    """A layer and a norm in a graph, to be replaced by one call of a module.

    Args:
        model: the graph module.
        norm: the call of the norm.

    Raises:
        RefusedError: it does not follow a layer, or one of the two has other uses.
    """

    def __init__(self, model: fx.GraphModule, norm: fx.Node) -> None:
        self.model = model
        self.norm = norm
        given = arguments(norm)
        layer = given["input"]
        if not isinstance(layer, fx.Node) or layer.target not in LAYER_CALLS:
            raise RefusedError("its input does not come straight from one convolution or linear layer")
        self.layer = layer
        others = [user for user in layer.users if user is not norm]
        if others:
            raise RefusedError(f"the output of {layer.name!r} also goes to {others[0].name!r}")
        self.options = arguments(layer)
        if given["running_mean"] is None or given["running_var"] is None:
            raise RefusedError("it has no running statistics")
        if layer.target is ATEN.linear.default and len(layer.meta["val"].shape) != 2:
            raise RefusedError(f"it normalizes another dimension than {layer.name!r} makes")
        self.layer_name = self._owner(layer, {"weight": self.options["weight"], "bias": self.options["bias"]})
        names = ("weight", "bias", "running_mean", "running_var")
        self.norm_name = self._owner(norm, {name: given[name] for name in names})
        self.eps, self.momentum = given["eps"], given["momentum"]

    def _owner(self, user: fx.Node, tensors: dict[str, Any]) -> str:
        """The module that holds the tensors of a call under these names, and for this call alone."""
        owners = set()
        for key, node in tensors.items():
            if node is None:
                continue
            if not isinstance(node, fx.Node) or node.op != "get_attr":
                raise RefusedError(f"the {key} of {user.name!r} is computed")
            owner, _, name = str(node.target).rpartition(".")
            owners.add(owner)
            readers = [
                u for n in self.model.graph.nodes if n.op == "get_attr" and n.target == node.target for u in n.users
            ]
            if readers != [user]:
                raise RefusedError(f"the {key} of {user.name!r} is also read by another operation")
            if name != key or not owner:
                raise RefusedError(
                    f"the {key} of {user.name!r} is {str(node.target)!r}, and no module holds it as {key!r}"
                )
        if len(owners) != 1:
            raise RefusedError(f"the parameters of {user.name!r} are those of several modules")
        return owners.pop()

    def made_layer(self) -> Layer:
        """A module with the options of the call and the parameters of its owner."""
        owner = self.model.get_submodule(self.layer_name)
        weight = cast("Tensor", owner.weight)
        bias = owner._parameters.get("bias")
        if not isinstance(weight, nn.Parameter):
            raise RefusedError(f"the weight of {self.layer_name!r} is no parameter")
        layer: Layer
        if self.layer.target is ATEN.linear.default:
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        else:
            layer = self._made_convolution(weight, bias is not None)
        layer._parameters.update(weight=weight, bias=bias)
        return layer

    def _made_convolution(self, weight: Tensor, bias: bool) -> Layer:
        options, dims = dict(self.options), weight.dim() - 2
        name = str(self.layer.target)
        transposed = options.pop("transposed", "transpose" in name)
        for key in ("stride", "padding", "dilation", "output_padding"):
            value = options.get(key)
            if isinstance(value, list | tuple):
                options[key] = tuple(value) * (dims if len(value) == 1 else 1)
        kept = {key: options[key] for key in ("stride", "padding", "dilation", "groups")}
        groups = options["groups"]
        if transposed:
            kept["output_padding"] = options["output_padding"]
            sizes = weight.shape[0], weight.shape[1] * groups
        else:
            sizes = weight.shape[1] * groups, weight.shape[0]
        kind = (TRANSPOSED if transposed else CONVS)[dims]
        return cast("Layer", kind(*sizes, tuple(weight.shape[2:]), bias=bias, device="meta", **kept))

    def made_norm(self, frozen: bool) -> FoldedNorm:
        """A module with the statistics and parameters of the norm's owner.

        Raises:
            RefusedError: the graph does not say how its statistics are updated.
        """
        if not self.momentum and not frozen:
            raise RefusedError(
                "its momentum in the graph is 0, as torch exports momentum=None in evaluation, so that its statistics "
                "would stay: give the model's norm a momentum before the export, or use statistics='frozen'"
            )
        owner = self.model.get_submodule(self.norm_name)
        norm = SimpleNamespace(
            _parameters={key: owner._parameters.get(key) for key in ("weight", "bias")},
            _buffers=dict(owner._buffers),
            eps=self.eps,
            momentum=self.momentum,
        )
        norm._buffers.setdefault("num_batches_tracked", None)
        return FoldedNorm(norm, {}, frozen)

    def rewrite(self, fold: TrainableFold) -> None:
        """One call of the module in place of the two operators."""
        graph = self.model.graph
        self.model.set_submodule(self.layer_name, fold)
        self.model.set_submodule(self.norm_name, fold.norm)
        with graph.inserting_before(self.norm):
            call = graph.call_module(self.layer_name, (self.options["input"],))
        call.meta = dict(self.norm.meta)
        self.norm.replace_all_uses_with(call)
        read = [*self.norm.all_input_nodes[1:], *self.layer.all_input_nodes[1:]]
        graph.erase_node(self.norm)
        graph.erase_node(self.layer)
        # The module counts its batches itself.
        counter = f"{self.norm_name}.num_batches_tracked"
        counters = [node for node in graph.nodes if node.op == "get_attr" and node.target == counter]
        for node in [*counters, *read]:
            self._erase(node)

    def _erase(self, node: fx.Node) -> None:
        """A node and what counts with it."""
        for user in list(node.users):
            if user.target in COUNTS:
                self._erase(user)
        if not node.users:
            self.model.graph.erase_node(node)


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call of an operator by name, with defaults."""
    target = cast("Any", node.target)
    known = {argument.name: argument.default_value for argument in target._schema.arguments}
    return known | dict(zip(known, node.args, strict=False)) | dict(node.kwargs)


def pairs_in(model: fx.GraphModule) -> dict[str, GraphPair | RefusedError]:
    """The pairs in a graph by the name of the norm, or why a norm is in none."""
    found: dict[str, GraphPair | RefusedError] = {}
    for node in model.graph.nodes:
        if node.target in NORM_CALLS:
            name = _name(node, arguments(node)["running_mean"])
            try:
                found[name] = GraphPair(model, node)
            except RefusedError as reason:
                found[name] = reason
        elif str(node.target) == OWN_NORM and str(node.args[3]).startswith("[b]"):
            owners = [each for each in node.all_input_nodes[1:] if each.op == "get_attr"]
            found[_name(node, next(iter(owners), None))] = RefusedError(
                "it is an operator of normkit in the graph, with its statistics in others: "
                "call fold_for_training on the model, and export the result"
            )
    return found


def _name(node: fx.Node, tensor: Any) -> str:
    """The module that holds a tensor of a call, or the name of the call."""
    return str(tensor.target).rpartition(".")[0] if isinstance(tensor, fx.Node) else node.name
